package authority

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// openBao starts a real server with a PKI engine and gives its address, the CA
// of its certificate, and a function that asks it as root.
func openBao(t *testing.T) (address string, cas *x509.CertPool, ask func(method, path, body string) map[string]any) {
	t.Helper()
	bao, err := exec.LookPath("bao")
	if err != nil {
		t.Skip("OpenBao (bao) is not installed: that it signs intermediates is not shown")
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	at := l.Addr().String()
	l.Close()
	dir := t.TempDir()
	log, err := os.Create(filepath.Join(dir, "log"))
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	cmd := exec.Command(bao, "server", "-dev", "-dev-tls", "-dev-tls-cert-dir="+dir, "-dev-root-token-id=test-root", "-dev-listen-address="+at, "-dev-no-store-token")
	cmd.Env = append(os.Environ(), "HOME="+dir)
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
	address, cas = "https://"+at, x509.NewCertPool()
	client := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: cas}}}
	send := func(method, path, body string) (map[string]any, error) {
		req, err := http.NewRequest(method, address+"/v1/"+path, strings.NewReader(body))
		if err != nil {
			return nil, err
		}
		req.Header.Set("X-Vault-Token", "test-root")
		res, err := client.Do(req)
		if err != nil {
			return nil, err
		}
		defer res.Body.Close()
		b, err := io.ReadAll(res.Body)
		if err == nil && res.StatusCode >= 300 {
			err = fmt.Errorf("%s: %s", res.Status, b)
		}
		var m map[string]any
		json.Unmarshal(b, &m)
		return m, err
	}
	for end := time.Now().Add(time.Minute); ; time.Sleep(50 * time.Millisecond) {
		if files, _ := filepath.Glob(filepath.Join(dir, "*ca.pem")); len(files) > 0 {
			if text, err := os.ReadFile(files[0]); err == nil {
				cas.AppendCertsFromPEM(text)
			}
			if _, err = send("GET", "sys/health", ""); err == nil {
				break
			}
		}
		if time.Now().After(end) {
			said, _ := os.ReadFile(log.Name())
			t.Fatalf("OpenBao does not start: %v\n%s", err, said)
		}
	}
	return address, cas, func(method, path, body string) map[string]any {
		t.Helper()
		m, err := send(method, path, body)
		if err != nil {
			t.Fatal(err)
		}
		return m
	}
}

// A real OpenBao signs the intermediates, by a token that may do nothing else.
func TestOpenBao(t *testing.T) {
	t.Parallel()
	address, cas, ask := openBao(t)
	ask("POST", "sys/mounts/corp-pki", `{"type": "pki", "config": {"max_lease_ttl": "87600h"}}`)
	ask("POST", "corp-pki/root/generate/internal", `{"common_name": "corp root", "ttl": "87600h", "key_type": "ec", "key_bits": 256}`)
	ask("PUT", "sys/policies/acl/merlon", `{"policy": "path \"corp-pki/root/sign-intermediate\" { capabilities = [\"update\"] }"}`)
	made := ask("POST", "auth/token/create", `{"policies": ["merlon"], "no_default_policy": true}`)
	token, _ := made["auth"].(map[string]any)["client_token"].(string)
	file := filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(file, []byte(token+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir() + "/state"
	up := &Vault{Address: address, Mount: "corp-pki", TokenFile: file, Roots: cas}
	a := open(t, dir, Options{Upstream: up})
	now := time.Now()
	leaf, between := issue(t, a, newKey(t).Public(), now)
	if err := verify(a, leaf, between, now); err != nil {
		t.Error(err)
	}
	root, err := x509.ParseCertificate(a.Trust().DER[0])
	if err != nil || root.Subject.CommonName != "corp root" || len(a.Trust().DER) != 1 {
		t.Errorf("%v, %v", root.Subject, err)
	}
	if d := between.NotAfter.Sub(now); d < betweenLifetime-time.Hour || d > betweenLifetime+time.Hour || !between.MaxPathLenZero {
		t.Errorf("the intermediate lives for %v", d)
	}
	if between.CheckSignatureFrom(root) != nil || len(between.URIs) != 1 || between.URIs[0].String() != "spiffe://"+td {
		t.Errorf("%v", between.URIs)
	}
	if got := a.entries(t); got[len(got)-1].Kind != "svid" {
		t.Errorf("%+v", got)
	}
	a.Close()
	// After a restart nobody is asked.
	up.Address = "https://127.0.0.1:1"
	a = open(t, dir, Options{Upstream: up})
	if _, b := issue(t, a, newKey(t).Public(), now); !b.Equal(between) {
		t.Error("another intermediate after a restart")
	}
	// A token that may not says so, and is in no error.
	up.Address = address
	if err := os.WriteFile(file, []byte("hvs.wrong-token"), 0o600); err != nil {
		t.Fatal(err)
	}
	_, err = Open(t.TempDir()+"/other", td, Options{Upstream: up})
	if err == nil || !strings.Contains(err.Error(), "403") || strings.Contains(err.Error(), "wrong-token") {
		t.Error(err)
	}
}

// What an answer may be, and where a token may go.
func TestVaultRefuses(t *testing.T) {
	t.Parallel()
	for _, v := range []Vault{
		{Address: "http://vault.example:8200", TokenFile: "x"}, {Address: "https://u:p@vault.example", TokenFile: "x"}, {Address: "vault.example", TokenFile: "x"},
		{Address: "https://vault.example/v1", TokenFile: "x"}, {Address: "https://vault.example?x", TokenFile: "x"}, {Address: "https://vault.example"},
	} {
		if v.Check() == nil {
			t.Errorf("%+v", v)
		}
	}
	file := filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(file, []byte("hvs.secret"), 0o600); err != nil {
		t.Fatal(err)
	}
	var leaked []string
	other := httptest.NewTLSServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { leaked = append(leaked, r.Header.Get("X-Vault-Token")) }))
	defer other.Close()
	answers := map[string]http.HandlerFunc{
		"a redirect": func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, other.URL, http.StatusTemporaryRedirect)
		},
		"no JSON":        func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "<html>") },
		"nothing":        func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "{}") },
		"no certificate": func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, `{"data":{"certificate":"x"}}`) },
		"without end":    func(w http.ResponseWriter, _ *http.Request) { w.Write(bytes.Repeat([]byte(" "), maxVaultAnswer+1)) },
		"an error": func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(500)
			io.WriteString(w, `{"errors":["sealed"]}`)
		},
		"a key": func(w http.ResponseWriter, _ *http.Request) {
			json.NewEncoder(w).Encode(map[string]any{"data": map[string]any{"certificate": string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY"}))}})
		},
	}
	for name, answer := range answers {
		s := httptest.NewTLSServer(answer)
		cas := x509.NewCertPool()
		cas.AddCert(s.Certificate())
		cas.AddCert(other.Certificate())
		v := &Vault{Address: s.URL, TokenFile: file, Roots: cas}
		if _, err := Open(t.TempDir()+"/state", td, Options{Upstream: v}); err == nil || strings.Contains(err.Error(), "hvs.secret") {
			t.Errorf("%s: %v", name, err)
		}
		s.Close()
	}
	if len(leaked) > 0 {
		t.Errorf("the token went to another server: %q", leaked)
	}
	s := httptest.NewTLSServer(answers["nothing"])
	defer s.Close()
	if _, _, err := (&Vault{Address: s.URL, TokenFile: file}).Sign(context.Background(), nil, time.Hour); err == nil || !strings.Contains(err.Error(), "certificate") {
		t.Errorf("a server that nobody vouches for: %v", err)
	}
}

// openssl runs openssl in a directory, and writes and reads files there.
func openssl(t *testing.T) (run func(args ...string), put func(name string, b []byte), get func(name string) []byte) {
	t.Helper()
	program, err := exec.LookPath("openssl")
	if err != nil {
		t.Skip("openssl is not installed: that an offline root can sign is not shown")
	}
	work := t.TempDir()
	run = func(args ...string) {
		t.Helper()
		cmd := exec.Command(program, args...)
		cmd.Dir = work
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("openssl %v: %v\n%s", args, err, out)
		}
	}
	put = func(name string, b []byte) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(work, name), b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	get = func(name string) []byte {
		t.Helper()
		b, err := os.ReadFile(filepath.Join(work, name))
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	return run, put, get
}

// An offline root, kept by openssl as operators keep it, signs the
// intermediate: request, sign, install.
func TestOfflineRoot(t *testing.T) {
	t.Parallel()
	dir := t.TempDir() + "/state"
	run, put, get := openssl(t)
	put("ca.cnf", []byte("basicConstraints=critical,CA:TRUE,pathlen:0\nkeyUsage=critical,keyCertSign\nsubjectAltName=URI:spiffe://"+td+"\n"))
	put("leaf.cnf", []byte("basicConstraints=CA:FALSE\n"))
	run("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-keyout", "root.key", "-out", "root.pem", "-days", "3650", "-subj", "/CN=offline root")
	sign := func(config, days string) []byte {
		t.Helper()
		csr, err := Request(dir, td)
		if err != nil {
			t.Fatal(err)
		}
		if again, err := Request(dir, td); err != nil || !samePublic(t, csr, again) {
			t.Fatalf("another key when it is asked again: %v", err)
		}
		put("csr.pem", csr)
		run("x509", "-req", "-in", "csr.pem", "-CA", "root.pem", "-CAkey", "root.key", "-days", days, "-extfile", config, "-out", "signed.pem")
		return get("signed.pem")
	}
	if err := Install(dir, td, get("root.pem"), time.Now()); err == nil {
		t.Error("installed what nobody asked for")
	}
	bad, root := sign("leaf.cnf", "90"), get("root.pem")
	for name, certs := range map[string][]byte{"no CA": append(bad, root...), "no root": sign("ca.cnf", "90"), "nothing": nil, "the root alone": root} {
		if err := Install(dir, td, certs, time.Now()); err == nil {
			t.Errorf("%s: installed", name)
		}
	}
	if err := Install(dir, td, append(sign("ca.cnf", "90"), root...), time.Now()); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(dir, requestFile)); err == nil {
		t.Error("the request is still there")
	}
	c := newClock()
	c.now.Store(time.Now().UnixNano())
	a := open(t, dir, Options{Now: c.Now})
	leaf, between := issue(t, a, newKey(t).Public(), c.Now())
	if err := verify(a, leaf, between, c.Now()); err != nil || !bytes.Equal(bytes.TrimSpace(a.Bundle()), bytes.TrimSpace(root)) {
		t.Errorf("%v\n%s", err, a.Bundle())
	}
	// It is due: only a person can help, and is told. What they install is taken up.
	c.Advance(50 * day)
	a.keep(c.Now())
	if s := a.Status(c.Now()); !strings.Contains(s.Err, "merlon id csr") || s.Alarms["intermediate"] != "half over" {
		t.Errorf("%+v", s)
	}
	if err := Install(dir, td, append(sign("ca.cnf", "180"), root...), c.Now()); err != nil {
		t.Fatal(err)
	}
	c.Advance(2 * time.Minute)
	a.keep(c.Now())
	leaf, next := issue(t, a, newKey(t).Public(), c.Now())
	if err := verify(a, leaf, next, c.Now()); err != nil || next.Equal(between) {
		t.Errorf("the new intermediate is not taken up: %v", err)
	}
	if s := a.Status(c.Now()); len(s.Alarms) != 0 || s.Err != "" {
		t.Errorf("%+v", s)
	}
}

func samePublic(t *testing.T, a, b []byte) bool {
	t.Helper()
	var keys [2][]byte
	for i, text := range [][]byte{a, b} {
		block, _ := pem.Decode(text)
		if block == nil || block.Type != "CERTIFICATE REQUEST" {
			t.Fatalf("%q", text)
		}
		r, err := x509.ParseCertificateRequest(block.Bytes)
		if err != nil {
			t.Fatal(err)
		}
		keys[i] = r.RawSubjectPublicKeyInfo
	}
	return bytes.Equal(keys[0], keys[1])
}
