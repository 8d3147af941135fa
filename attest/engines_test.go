package attest

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"merlon"
	"merlon/internal/sockowner"
)

// image is an OCI image of one static program, made here, and an index that
// names it and one for another platform.
type image struct {
	blobs                   map[string][]byte // by digest
	index, manifest, config string            // digests
}

func (i *image) add(v any) (digest string, size int) {
	b, ok := v.([]byte)
	if !ok {
		b, _ = json.Marshal(v)
	}
	digest = digestOf(b)
	i.blobs[digest] = b
	return digest, len(b)
}

type object = map[string]any

// imageOf makes an image of a program, with two layers.
func imageOf(t testing.TB, program, mark string) *image {
	t.Helper()
	text, err := os.ReadFile(program)
	if err != nil {
		t.Fatal(err)
	}
	i := &image{blobs: map[string][]byte{}}
	var layers []object
	var diffs []string
	for name, content := range map[string][]byte{"web": text, "mark": []byte(mark)} {
		var b bytes.Buffer
		w := tar.NewWriter(&b)
		if err := errors.Join(w.WriteHeader(&tar.Header{Name: name, Mode: 0o755, Size: int64(len(content))}), second(w.Write(content)), w.Close()); err != nil {
			t.Fatal(err)
		}
		digest, size := i.add(b.Bytes())
		layers = append(layers, object{"mediaType": "application/vnd.oci.image.layer.v1.tar", "digest": digest, "size": size})
		diffs = append(diffs, digest)
	}
	var size int
	i.config, size = i.add(object{"architecture": runtime.GOARCH, "os": "linux", "config": object{"Entrypoint": []string{"/web"}},
		"rootfs": object{"type": "layers", "diff_ids": diffs}})
	const manifest = "application/vnd.oci.image.manifest.v1+json"
	i.manifest, size = i.add(object{"schemaVersion": 2, "mediaType": manifest, "layers": layers,
		"config": object{"mediaType": "application/vnd.oci.image.config.v1+json", "digest": i.config, "size": size}})
	i.index, _ = i.add(object{"schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json", "manifests": []object{
		{"mediaType": manifest, "digest": i.manifest, "size": size, "platform": object{"architecture": runtime.GOARCH, "os": "linux"}},
		{"mediaType": manifest, "digest": digestOf([]byte(mark)), "size": 1, "platform": object{"architecture": "s390x", "os": "linux"}},
		{"mediaType": manifest, "digest": digestOf([]byte(mark + "2")), "size": 1, "platform": object{"architecture": runtime.GOARCH, "os": "linux", "variant": "v9"}},
	}})
	return i
}

func second(_ int, err error) error { return err }

// archive writes the image to a file, as ctr image import reads it.
func (i *image) archive(t testing.TB, name string) (file string) {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	add := func(name string, content []byte) {
		if err := errors.Join(w.WriteHeader(&tar.Header{Name: name, Mode: 0o644, Size: int64(len(content))}), second(w.Write(content))); err != nil {
			t.Fatal(err)
		}
	}
	add("oci-layout", []byte(`{"imageLayoutVersion":"1.0.0"}`))
	top, _ := json.Marshal(object{"schemaVersion": 2, "manifests": []object{{"mediaType": "application/vnd.oci.image.index.v1+json",
		"digest": i.index, "size": len(i.blobs[i.index]), "annotations": object{"io.containerd.image.name": name}}}})
	add("index.json", top)
	for digest, content := range i.blobs {
		add("blobs/"+strings.Replace(digest, ":", "/", 1), content)
	}
	file = filepath.Join(t.TempDir(), "image.tar")
	if err := errors.Join(w.Close(), os.WriteFile(file, b.Bytes(), 0o600)); err != nil {
		t.Fatal(err)
	}
	return file
}

// ServeHTTP is a registry (OCI Distribution) that has the image as web:1.
func (i *image) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	rest, manifest := strings.CutPrefix(r.URL.Path, "/v2/web/manifests/")
	if !manifest {
		rest = strings.TrimPrefix(r.URL.Path, "/v2/web/blobs/")
	}
	if rest == "1" {
		rest = i.manifest
	}
	b, ok := i.blobs[rest]
	switch {
	case r.URL.Path == "/v2/":
		return
	case !ok:
		w.WriteHeader(http.StatusNotFound)
		return
	case manifest:
		w.Header().Set("Content-Type", "application/vnd.oci.image.manifest.v1+json")
		w.Header().Set("Docker-Content-Digest", rest)
	}
	http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(b))
}

// engineOf starts an engine, which keeps all that it has in dir, and ends it
// with the test. It is ready when ready says so.
func engineOf(t testing.TB, ready func() error, command ...string) {
	t.Helper()
	path, err := exec.LookPath(command[0])
	if err != nil {
		t.Skipf("%s is not installed: that its containers are recognised is not shown", command[0])
	}
	root(t)
	log := new(bytes.Buffer)
	cmd := exec.Command(path, command[1:]...)
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() { cmd.Wait(); close(ended) }()
	t.Cleanup(func() {
		cmd.Process.Signal(syscall.SIGTERM)
		select {
		case <-ended:
		case <-time.After(30 * time.Second):
			cmd.Process.Kill()
			<-ended
		}
	})
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(50 * time.Millisecond) {
		if err = ready(); err == nil {
			return
		}
		select {
		case <-ended:
			t.Fatalf("%s ended: %s", command[0], log)
		default:
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s is not ready: %v", command[0], err)
		}
	}
}

// waits builds the program that runs in containers.
func waits(t testing.TB) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "waits")
	cmd := exec.Command("go", "build", "-o", file, "./testdata/waits")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	return file
}

func shortDir(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "eng") // t.TempDir may be longer than a socket's path
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

// ctr runs containerd's own client.
type ctr struct {
	t                 testing.TB
	socket, namespace string
}

func (c ctr) run(args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	out, err := exec.CommandContext(ctx, "ctr", append([]string{"-a", c.socket, "-n", c.namespace}, args...)...).CombinedOutput()
	if err != nil {
		err = fmt.Errorf("ctr %v: %w\n%s", args, err, out)
	}
	return string(out), err
}

func (c ctr) must(args ...string) string {
	c.t.Helper()
	out, err := c.run(args...)
	if err != nil {
		c.t.Fatal(err)
	}
	return out
}

// start starts a container and pins its process.
func (c ctr) start(image, id string, args ...string) *sockowner.Process {
	c.t.Helper()
	c.must(append(append([]string{"run", "-d", "--snapshotter", "native"}, args...), image, id)...)
	c.t.Cleanup(func() {
		if _, err := c.run("task", "rm", "-f", id); err != nil {
			c.t.Error(err)
		}
		c.run("container", "rm", id)
	})
	for line := range strings.Lines(c.must("task", "ls")) {
		f := strings.Fields(line)
		if len(f) > 1 && f[0] == id {
			return pinned(c.t, f[1])
		}
	}
	c.t.Fatal("the container has no process")
	return nil
}

func pinned(t testing.TB, pid string) *sockowner.Process {
	t.Helper()
	n, err := strconv.Atoi(pid)
	if err != nil {
		t.Fatal(err)
	}
	p, err := sockowner.OpenProcess(n)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.Close() })
	return p
}

// A real containerd: its containers are recognised by namespace, label and
// image, and nothing else is taken for one.
func TestContainersOfContainerd(t *testing.T) {
	t.Parallel()
	dir := shortDir(t)
	socket := filepath.Join(dir, "s")
	config := fmt.Sprintf("version = 2\nroot = %q\nstate = %q\ndisabled_plugins = [\"io.containerd.grpc.v1.cri\"]\n[grpc]\naddress = %q\n",
		dir+"/root", dir+"/state", socket)
	if err := os.WriteFile(dir+"/config.toml", []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	c := ctr{t, socket, "shop"}
	engineOf(t, func() error { _, err := c.run("version"); return err }, "containerd", "-c", dir+"/config.toml")
	copied, runs := program(t), waits(t)
	web, other := imageOf(t, runs, "web"), imageOf(t, runs, "other")
	const name = "registry.example/web"
	c.must("image", "import", "--snapshotter", "native", web.archive(t, name+":1"))
	id := random(8)
	p := c.start(name+":1", id, "--label", "app=web")
	long := c.start(name+":1", random(32), "--label", "app=web")
	// The name of the image means another one now, and containerd keeps the one
	// before for its other name.
	c.must("image", "tag", name+":1", name+":before")
	c.must("image", "import", "--snapshotter", "native", other.archive(t, name+":1"))

	opt := Options{Containerd: socket}
	rule := func(namespace, image string, labels ...string) merlon.WorkloadRule {
		w := merlon.WorkloadRule{ContainerdNamespace: namespace, ContainerdImage: image}
		for i := 0; i < len(labels); i += 2 {
			w.ContainerdLabels = map[string]string{labels[i]: labels[i+1]}
		}
		return w
	}
	for _, tt := range []struct {
		name string
		rule merlon.WorkloadRule
		why  string // "" if it holds
	}{
		{"namespace", rule("shop", ""), ""},
		{"another namespace", rule("default", ""), "in no container"},
		{"label", rule("shop", "", "app", "web"), ""},
		{"another value", rule("shop", "", "app", "orders"), `has the label "app=web"`},
		{"no label", rule("shop", "", "none", ""), "has no such label"},
		{"manifest", rule("shop", web.manifest), ""},
		{"configuration", rule("shop", web.config), ""},
		{"index", rule("shop", web.index), ""},
		{"by its name", rule("shop", name+"@"+web.manifest), ""},
		{"all together", rule("shop", name+":1@"+web.index, "app", "web"), ""},
		{"of another name", rule("shop", "registry.example/other@"+web.manifest), "was made of"},
		{"what the name means now", rule("shop", other.manifest), "with the layers sha256:"},
		{"the index of that", rule("shop", name+"@"+other.index), "with the layers sha256:"},
		{"an image that is not there", rule("shop", digestOf([]byte("x"))), "has no image"},
		{"a layer", rule("shop", digestOf(web.blobs[web.manifest][:1])), "has no image"},
	} {
		if ok, why := holds(t, opt, tt.rule, p); ok != (tt.why == "") || !strings.Contains(why, tt.why) {
			t.Errorf("%s: %v\n%s", tt.name, ok, why)
		}
	}
	if ok, why := holds(t, opt, rule("shop", web.index, "app", "web"), long); !ok {
		t.Errorf("a container whose ID is long: %s", why)
	}
	// With no name at all it is gone, and nobody knows what its digest meant.
	c.must("image", "rm", "--sync", name+":before")
	if ok, why := holds(t, opt, rule("shop", web.index), p); ok || !strings.Contains(why, "has no image") {
		t.Errorf("an image that was deleted: %v %s", ok, why)
	}
	own := pinned(t, strconv.Itoa(os.Getpid()))
	if ok, why := holds(t, opt, rule("shop", ""), own); ok || !strings.Contains(why, "in no container") {
		t.Errorf("this process: %v %s", ok, why)
	}
	if ok, why := holds(t, Options{Containerd: "/nowhere"}, rule("shop", ""), p); ok || !strings.Contains(why, "could not be asked") {
		t.Errorf("no containerd: %v %s", ok, why)
	}
	// A control group with the name of a container that is in another: the name
	// alone is no proof.
	aside := random(8)
	c.start(name+":1", aside, "--cgroup", "/merlon-"+aside)
	stranger := moved(t, nil, "/shop/"+aside, copied)
	if ok, why := holds(t, opt, rule("shop", ""), stranger); ok || !strings.Contains(why, "changed its control group") {
		t.Errorf("a control group with a container's name: %v %s", ok, why)
	}
}

// A real Docker Engine: its containers are recognised by label and image.
func TestContainersOfDocker(t *testing.T) {
	t.Parallel()
	dir := shortDir(t)
	socket := filepath.Join(dir, "s")
	client := &http.Client{Timeout: time.Minute, Transport: &http.Transport{DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", socket)
		}}}
	ask := func(method, path string, body any) (object, error) {
		text, _ := json.Marshal(body)
		r, err := http.NewRequest(method, "http://docker/v1.41"+path, bytes.NewReader(text))
		if err != nil {
			return nil, err
		}
		r.Header.Set("Content-Type", "application/json")
		res, err := client.Do(r)
		if err != nil {
			return nil, err
		}
		defer res.Body.Close()
		b, err := io.ReadAll(res.Body)
		if err != nil || res.StatusCode >= 300 {
			return nil, fmt.Errorf("%s %s: %s %v %s", method, path, res.Status, err, b)
		}
		var out object
		json.Unmarshal(b, &out) // progress is no object
		return out, nil
	}
	must := func(method, path string, body any) object {
		t.Helper()
		out, err := ask(method, path, body)
		if err != nil {
			t.Fatal(err)
		}
		return out
	}
	engineOf(t, func() error { _, err := ask("GET", "/version", nil); return err }, "dockerd", "-H", "unix://"+socket,
		"--data-root", dir+"/root", "--exec-root", dir+"/exec", "--pidfile", dir+"/pid", "--storage-driver", "vfs",
		"--bridge", "none", "--iptables=false", "--ip6tables=false", "--ip-forward=false", "--ip-masq=false",
		"--exec-opt", "native.cgroupdriver=cgroupfs")
	web := imageOf(t, waits(t), "web")
	registry := httptest.NewServer(web)
	t.Cleanup(registry.Close)
	name := registry.Listener.Addr().String() + "/web"
	must("POST", "/images/create?fromImage="+name+"&tag=1", nil)
	made := must("POST", "/containers/create", object{"Image": name + ":1", "Labels": object{"app": "web"}, "HostConfig": object{"NetworkMode": "none"}})
	id, _ := made["Id"].(string)
	t.Cleanup(func() {
		if _, err := ask("DELETE", "/containers/"+id+"?force=1", nil); err != nil {
			t.Error(err)
		}
	})
	must("POST", "/containers/"+id+"/start", nil)
	about := must("GET", "/containers/"+id+"/json", nil)
	state, _ := about["State"].(object)
	p := pinned(t, fmt.Sprint(state["Pid"]))

	for _, tt := range []struct {
		name string
		rule merlon.WorkloadRule
		why  string
	}{
		{"label", merlon.WorkloadRule{DockerLabels: map[string]string{"app": "web"}}, ""},
		{"another value", merlon.WorkloadRule{DockerLabels: map[string]string{"app": "orders"}}, `has the label "app=web"`},
		{"configuration", merlon.WorkloadRule{DockerImage: web.config}, ""},
		{"as it was pulled", merlon.WorkloadRule{DockerImage: web.manifest}, ""},
		{"as it was pulled, by name", merlon.WorkloadRule{DockerImage: name + "@" + web.manifest}, ""},
		{"of another name", merlon.WorkloadRule{DockerImage: "registry.example/web@" + web.manifest}, "is of image"},
		{"another image", merlon.WorkloadRule{DockerImage: digestOf([]byte("x"))}, "is of image"},
	} {
		if ok, why := holds(t, Options{Docker: socket}, tt.rule, p); ok != (tt.why == "") || !strings.Contains(why, tt.why) {
			t.Errorf("%s: %v\n%s", tt.name, ok, why)
		}
	}
	own := pinned(t, strconv.Itoa(os.Getpid()))
	if ok, why := holds(t, Options{Docker: socket}, merlon.WorkloadRule{DockerImage: web.config}, own); ok || !strings.Contains(why, "in no container") {
		t.Errorf("this process: %v %s", ok, why)
	}
}
