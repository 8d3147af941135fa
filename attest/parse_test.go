package attest

import (
	"reflect"
	"strings"
	"testing"
)

const (
	id64 = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"
	uuid = "0f3c2a1b-1234-4abc-8def-0123456789ab"
)

// What the system's manager, the engines and the kubelet make, and what users
// can make below it.
func TestControlGroups(t *testing.T) {
	t.Parallel()
	under := strings.ReplaceAll(uuid, "-", "_")
	for _, tt := range []struct{ path, unit, container, pod string }{
		{"/", "", "", ""},
		{"", "", "", ""},
		{"/system.slice/web.service", "web.service", "", ""},
		{"/system.slice/web.service/worker", "web.service", "", ""},
		{"/a.slice/a-b.slice/web@1.service", "web@1.service", "", ""},
		{"/init.scope", "init.scope", "", ""},
		{"/system.slice", "", "", ""},
		{"/system.slice/x/web.service", "", "", ""},
		{"/../system.slice/web.service", "", "", ""},
		{"/system.slice/../web.service", "", "", ""},
		{"//web.service", "", "", ""},
		{"web.service", "", "", ""},
		{"/user.slice/user-1000.slice/user@1000.service/app.slice/web.service", "user@1000.service", "", ""},
		{"/user.slice/user-1000.slice/session-2.scope", "session-2.scope", "", ""},
		{"/user.slice/user-1000.slice/user@1000.service/docker-" + id64 + ".scope", "user@1000.service", "", ""},
		{"/user.slice/user-1000.slice/user@1000.service/docker/" + id64, "user@1000.service", "", ""},
		{"/docker/" + id64, "", id64, ""},
		{"/docker/" + id64 + "/docker/" + strings.Repeat("f", 64), "", id64, ""},
		{"/docker/" + id64[1:], "", "", ""},
		{"/docker/" + strings.ToUpper(id64), "", "", ""},
		{"/docker/" + id64[:63] + "/", "", "", ""},
		{"/x/docker/" + id64, "", "", ""},
		{"/system.slice/docker-" + id64 + ".scope", "docker-" + id64 + ".scope", id64, ""},
		{"/system.slice/evil-" + id64 + ".scope", "evil-" + id64 + ".scope", "", ""},
		{"/system.slice/docker-" + id64 + ".service", "docker-" + id64 + ".service", "", ""},
		{"/system.slice/docker-" + id64 + ".scope/docker-" + strings.Repeat("f", 64) + ".scope", "docker-" + id64 + ".scope", id64, ""},
		{"/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod" + under + ".slice/cri-containerd-" + id64 + ".scope",
			"cri-containerd-" + id64 + ".scope", id64, uuid},
		{"/kubepods.slice/kubepods-pod" + under + ".slice/crio-" + id64 + ".scope", "crio-" + id64 + ".scope", id64, uuid},
		{"/kubepods/burstable/pod" + uuid + "/" + id64, "", id64, uuid},
		{"/kubepods/pod" + uuid + "/" + id64, "", id64, uuid},
		{"/kubepods/burstable/x/pod" + uuid + "/" + id64, "", id64, ""},
		{"/system.slice/kubepods.slice/kubepods-pod" + under + ".slice", "", "", ""},
		{"/user.slice/user-1000.slice/user@1000.service/kubepods.slice/kubepods-pod" + under + ".slice", "user@1000.service", "", ""},
		{"/kubepods/pod" + uuid[1:] + "/" + id64, "", id64, ""},
	} {
		if got := unitOf(tt.path); got != tt.unit {
			t.Errorf("%s: unit %q, want %q", tt.path, got, tt.unit)
		}
		if got := containerOf(tt.path); got != tt.container {
			t.Errorf("%s: container %q, want %q", tt.path, got, tt.container)
		}
		if got := podOf(tt.path); got != tt.pod {
			t.Errorf("%s: pod %q, want %q", tt.path, got, tt.pod)
		}
	}
}

func FuzzControlGroups(f *testing.F) {
	f.Add("/system.slice/docker-" + id64 + ".scope")
	f.Add("/kubepods/burstable/pod" + uuid + "/" + id64)
	f.Add("/user.slice/user@1000.service/x")
	f.Fuzz(func(t *testing.T, path string) {
		if c := containerOf(path); c != "" && (len(c) != 64 || !strings.Contains(path, c)) {
			t.Errorf("container %q", c)
		}
		if p := podOf(path); p != "" && len(p) != 36 {
			t.Errorf("pod %q", p)
		}
		u := unitOf(path)
		if u != "" && (strings.Contains(u, "/") || !strings.Contains(path, "/"+u)) {
			t.Errorf("unit %q", u)
		}
		// Whatever a unit or a container makes below its own group, it stays what it is.
		if c := containerOf(path); u != "" {
			for _, below := range []string{"/docker-" + id64 + ".scope", "/web.service", "/a.slice/b.service", "/docker/" + id64} {
				if unitOf(path+below) != u || containerOf(path+below) != c {
					t.Errorf("%s%s is %q, %q", path, below, unitOf(path+below), containerOf(path+below))
				}
			}
		}
	})
}

// containerd names control groups by namespace and container, and takes any name
// for either; what others name so lies elsewhere.
func TestContainerdControlGroups(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct{ path, namespace, want string }{
		{"/default/web", "default", "web"},
		{"/default/web/below", "default", "web"},
		{"/default/web", "k8s.io", ""},
		{"/default", "default", ""},
		{"/default/", "default", ""},
		{"/default/../x", "default", ""},
		{"/default//x", "default", ""},
		{"default/web", "default", ""},
		{"/x/default/web", "default", ""},
		{"/default/" + strings.Repeat("x", 77), "default", ""},
		{"/user.slice/user-1000.slice/user@1000.service/default/web", "default", ""},
		{"/system.slice/nerdctl-" + id64 + ".scope", "default", id64},
		{"/kubepods/pod" + uuid + "/" + id64, "k8s.io", id64},
	} {
		if got := containerIn(tt.path, tt.namespace); got != tt.want {
			t.Errorf("%s in %s: %q, want %q", tt.path, tt.namespace, got, tt.want)
		}
	}
}

func TestOCI(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		text string
		want ociDocument
		why  string
	}{
		{`{"manifests":[{"digest":"sha256:a"},{"digest":"sha256:b"}]}`, ociDocument{manifests: []string{"sha256:a", "sha256:b"}}, ""},
		{`{"config":{"digest":"sha256:c"},"layers":[{"digest":"sha256:l"}]}`, ociDocument{config: "sha256:c"}, ""},
		{`{"config":{"Env":[]},"rootfs":{"type":"layers","diff_ids":["sha256:a"]}}`, ociDocument{chain: "sha256:a"}, ""},
		// $ printf 'sha256:a sha256:b' | sha256sum
		{`{"rootfs":{"diff_ids":["sha256:a","sha256:b"]}}`, ociDocument{chain: digestOf([]byte("sha256:a sha256:b"))}, ""},
		{`{}`, ociDocument{}, "names no layers"},
		{`{"manifests":[{"digest":"sha256:a","platform":{"architecture":"pdp11"}}]}`, ociDocument{}, "for this machine"},
		{`{"config":{},"layers":[{}]}`, ociDocument{}, "names no layers"},
		{`{"layers":[{"digest":"sha256:l"}],"config":"x"}`, ociDocument{}, "cannot be read"},
		{`{"rootfs":{"diff_ids":[` + strings.Repeat(`"a",`, maxLayers) + `"a"]}}`, ociDocument{}, "too many"},
		{`{"manifests":[` + strings.Repeat(`{},`, maxManifests) + `{}]}`, ociDocument{}, "too many"},
		{`nothing`, ociDocument{}, "cannot be read"},
	} {
		got, err := parseOCI([]byte(tt.text))
		if tt.why == "" && err != nil || tt.why != "" && (err == nil || !strings.Contains(err.Error(), tt.why)) || !reflect.DeepEqual(got, tt.want) {
			t.Errorf("%.80s: %+v, %v", tt.text, got, err)
		}
	}
}

func FuzzContainerd(f *testing.F) {
	f.Add([]byte{0, 0, 0, 0, 4, 0x12, 2, 'a', 'b'}, true)
	f.Add([]byte{0, 0, 0, 0, 0}, false)
	f.Add([]byte(`{"rootfs":{"diff_ids":["sha256:a","sha256:b"]}}`), false)
	f.Fuzz(func(t *testing.T, b []byte, stream bool) {
		if out, err := joinMessages(b, stream); err == nil && len(out) > len(b) {
			t.Errorf("%d bytes of %d", len(out), len(b))
		}
		if m, err := parseMessage(b); err == nil && len(m.text(1)) > len(b) {
			t.Error("a field is longer than its message")
		}
		if doc, err := parseOCI(b); err == nil && doc.chain == "" && doc.config == "" && len(doc.manifests) == 0 {
			t.Error("a description of nothing is no error")
		}
	})
}
