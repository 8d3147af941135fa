package attest

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/json"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"

	"merlon"
	"merlon/internal/jws"
)

const issuer = "https://kubernetes.default.svc.cluster.local"

// cluster is the keys of a cluster, and what signs as it does.
func cluster(t testing.TB) (*Cluster, func(change map[string]any) string) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	keys, err := json.Marshal(jose.JSONWebKeySet{Keys: []jose.JSONWebKey{{Key: key.Public(), KeyID: "k1", Use: "sig", Algorithm: "ES256"}}})
	if err != nil {
		t.Fatal(err)
	}
	c, err := NewCluster(issuer, "merlon", keys)
	if err != nil {
		t.Fatal(err)
	}
	return c, func(change map[string]any) string {
		// As an API server of Kubernetes 1.32 fills a projected token.
		claims := map[string]any{
			"aud": []string{"merlon"}, "exp": time.Now().Add(time.Hour).Unix(), "iat": time.Now().Unix(), "nbf": time.Now().Unix(),
			"iss": issuer, "sub": "system:serviceaccount:shop:web", "jti": "b2f8b1d2-4b0e-4b7f-9d7c-0d5f5b6f1e11",
			"kubernetes.io": map[string]any{
				"namespace": "shop", "node": map[string]any{"name": "n1", "uid": "u1"},
				"pod":            map[string]any{"name": "web-0", "uid": uuid},
				"serviceaccount": map[string]any{"name": "web", "uid": "u2"},
			},
		}
		maps.Copy(claims, change)
		body, err := json.Marshal(claims)
		if err != nil {
			t.Fatal(err)
		}
		token, err := jws.Sign(key, []byte(`{"alg":"ES256","kid":"k1"}`), body)
		if err != nil {
			t.Fatal(err)
		}
		return token
	}
}

func TestToken(t *testing.T) {
	t.Parallel()
	c, sign := cluster(t)
	_, forge := cluster(t)
	inner := func(change map[string]any) map[string]any {
		m := map[string]any{"namespace": "shop", "pod": map[string]any{"uid": uuid}, "serviceaccount": map[string]any{"name": "web"}}
		maps.Copy(m, change)
		return map[string]any{"kubernetes.io": m}
	}
	for _, tt := range []struct{ name, token, pod, want string }{
		{"good", sign(nil), uuid, "shop/web"},
		{"another pod", sign(nil), "1" + uuid[1:], ""},
		{"another cluster", forge(nil), uuid, ""},
		{"ended", sign(map[string]any{"exp": time.Now().Add(-time.Hour).Unix()}), uuid, ""},
		{"for somebody else", sign(map[string]any{"aud": []string{"vault"}}), uuid, ""},
		{"another issuer", sign(map[string]any{"iss": "https://evil.example"}), uuid, ""},
		{"subject and claims differ", sign(map[string]any{"sub": "system:serviceaccount:shop:admin"}), uuid, ""},
		{"a user's", sign(map[string]any{"sub": "ann"}), uuid, ""},
		{"not bound to a pod", sign(inner(map[string]any{"pod": nil})), uuid, ""},
		{"bound to nothing", sign(map[string]any{"kubernetes.io": nil}), "", ""},
		{"bound to an empty pod", sign(inner(map[string]any{"pod": map[string]any{"uid": ""}})), uuid, ""},
		{"no namespace", sign(inner(map[string]any{"namespace": ""})), uuid, ""},
		{"names with colons", sign(map[string]any{"sub": "system:serviceaccount:shop:a:web",
			"kubernetes.io": inner(map[string]any{"namespace": "shop:a"})["kubernetes.io"]}), uuid, "shop:a/web"}, // no rule can name it
		{"garbage", "a.b.c", uuid, ""},
		{"empty", "", uuid, ""},
	} {
		if got, err := c.inPod(tt.token, tt.pod, time.Now()); got != tt.want || (err == nil) != (tt.want != "") {
			t.Errorf("%s: %q, %v", tt.name, got, err)
		}
	}
	if _, err := NewCluster(issuer, "merlon", []byte("{}")); err == nil {
		t.Error("a cluster without keys")
	}
}

// A process in a pod's control group, with a root of its own in which the token
// lies as the kubelet puts it.
func TestKubernetes(t *testing.T) {
	t.Parallel()
	root(t)
	c, sign := cluster(t)
	opt := Options{Cluster: c}
	path := program(t)
	pod := func(token string) func(dir string) error {
		return func(dir string) error { return os.WriteFile(filepath.Join(dir, "token"), []byte(token+"\n"), 0o644) }
	}
	for name, tt := range map[string]struct {
		put func(dir string) error
		ok  bool
		why string
	}{
		"good":                {pod(sign(nil)), true, ""},
		"another account":     {pod(sign(map[string]any{"sub": "system:serviceaccount:shop:web2"})), false, "not that of a service account"},
		"stolen from a pod":   {pod(sign(map[string]any{"kubernetes.io": map[string]any{"namespace": "shop", "pod": map[string]any{"uid": "x"}, "serviceaccount": map[string]any{"name": "web"}}})), false, "not bound to the pod"},
		"none":                {func(string) error { return nil }, false, "no such file"},
		"a pipe":              {func(dir string) error { return syscall.Mkfifo(filepath.Join(dir, "token"), 0o644) }, false, "no regular file"},
		"a link out of it":    {func(dir string) error { return os.Symlink("/proc/self/root/etc/passwd", filepath.Join(dir, "token")) }, false, "could not be checked"},
		"huge":                {pod(strings.Repeat("a", 1<<20)), false, "too_large"},
		"by links, as always": {func(dir string) error { return os.Symlink("..data/token", filepath.Join(dir, "token")) }, true, ""},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			data := filepath.Join(dir, "secrets", "kubernetes.io", "serviceaccount", "..data")
			if err := os.MkdirAll(data, 0o755); err != nil {
				t.Fatal(err)
			}
			if err := pod(sign(nil))(data); err != nil {
				t.Fatal(err)
			}
			if err := tt.put(filepath.Dir(data)); err != nil {
				t.Fatal(err)
			}
			p := moved(t, &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS}, "/kubepods/burstable/pod"+uuid+"/"+random(32),
				"/bin/sh", "-c", `mount --bind "$1" /run && exec "$2"`, "sh", dir, path)
			if ok, why := holds(t, opt, merlon.WorkloadRule{Kubernetes: "shop/web"}, p); ok != tt.ok || !strings.Contains(why, tt.why) {
				t.Errorf("%v\n%s", ok, why)
			}
			if ok, why := holds(t, opt, merlon.WorkloadRule{Kubernetes: "shop/admin"}, p); ok {
				t.Error(why)
			}
		})
	}
}
