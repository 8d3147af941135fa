package main

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing/fstest"
	"time"

	"merlon"
	"merlon/authority"
	"merlon/intent"
	"merlon/policy"
)

// lab holds what all measurements share.
type lab struct {
	dir         string
	backend     *process
	backendAddr string
}

// peer is a proxy to be measured.
type peer struct {
	name  string
	start func(l *lab, listen, upstream string) (*process, error) // nil, nil: not on this machine
}

var peers = []peer{
	{"bare relay (floor)", startRelay},
	{"merlon gate", startGate},
	{"merlon gate, portable", startPortable},
	{"nginx", startNginx},
}

// process is a running program and what it has used.
type process struct {
	cmd  *exec.Cmd
	pids func() []int
}

func (p *process) stop() {
	if p == nil {
		return
	}
	p.cmd.Process.Signal(os.Interrupt)
	done := make(chan struct{})
	go func() { p.cmd.Wait(); close(done) }()
	select {
	case <-done:
	case <-time.After(5 * time.Second):
		p.cmd.Process.Kill()
		<-done
	}
}

// build builds the programs and starts the backend.
func (l *lab) build(ctx context.Context) error {
	for name, pkg := range map[string]string{"merlon-gate": "./cmd/merlon-gate", "bench": "./bench"} {
		cmd := exec.CommandContext(ctx, "go", "build", "-o", filepath.Join(l.dir, name), pkg)
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("build %s: %w\n%s", pkg, err, out)
		}
	}
	if err := l.writeSVID(); err != nil {
		return err
	}
	addr, err := freeAddr()
	if err != nil {
		return err
	}
	l.backendAddr = addr
	l.backend, err = start(addr, filepath.Join(l.dir, "bench"), "-backend", addr)
	return err
}

func (l *lab) close() { l.backend.stop() }

// start runs a program and waits until it accepts connections.
func start(addr string, name string, arg ...string) (*process, error) {
	cmd := exec.Command(name, arg...)
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	p := &process{cmd: cmd, pids: func() []int { return []int{cmd.Process.Pid} }}
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		c, err := net.Dial("tcp", addr)
		if err == nil {
			c.Close()
			return p, nil
		}
		if time.Now().After(deadline) {
			p.stop()
			return nil, fmt.Errorf("%s does not listen on %s", name, addr)
		}
	}
}

func freeAddr() (string, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	defer l.Close()
	return l.Addr().String(), nil
}

func startRelay(l *lab, listen, upstream string) (*process, error) {
	return start(listen, filepath.Join(l.dir, "bench"), "-relay", listen+","+upstream)
}

func startNginx(l *lab, listen, upstream string) (*process, error) {
	nginx, err := exec.LookPath("nginx")
	if err != nil {
		return nil, nil
	}
	dir := filepath.Join(l.dir, "nginx")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	conf := fmt.Sprintf(`worker_processes 2;
daemon off;
pid %[1]s/pid;
error_log /dev/null;
events { worker_connections 1024; }
http {
  access_log off;
  client_body_temp_path %[1]s/a; proxy_temp_path %[1]s/b; fastcgi_temp_path %[1]s/c; uwsgi_temp_path %[1]s/d; scgi_temp_path %[1]s/e;
  keepalive_requests 1000000000;
  upstream app { server %[3]s; keepalive 256; keepalive_requests 1000000000; }
  server {
    listen %[2]s;
    location /api/ {
      proxy_pass http://app;
      proxy_http_version 1.1;
      proxy_set_header Connection "";
      proxy_set_header X-Forwarded-For $remote_addr;
    }
  }
}
`, dir, listen, upstream)
	file := filepath.Join(dir, "nginx.conf")
	if err := os.WriteFile(file, []byte(conf), 0o644); err != nil {
		return nil, err
	}
	p, err := start(listen, nginx, "-c", file, "-p", dir)
	if err != nil {
		return nil, err
	}
	master := p.cmd.Process.Pid
	p.pids = func() []int { return append(children(master), master) }
	return p, nil
}

// children are the processes whose parent is pid.
func children(pid int) []int {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", pid, pid))
	if err != nil {
		return nil
	}
	var pids []int
	for _, word := range strings.Fields(string(data)) {
		if n, err := strconv.Atoi(word); err == nil {
			pids = append(pids, n)
		}
	}
	return pids
}

const benchIntent = `
trustDomain: bench.example
gateway:
  listen: LISTEN
  hosts: [api.example.com]
  certificate: none
  limit: {rate: 1000000/s, burst: 1000000, per: client}
services:
  api:
    operations: {list: GET /api/items, get: 'GET /api/items/{id}', create: POST /api/items}
    callers: {anyone: [list, get]}
`

func startGate(l *lab, listen, upstream string) (*process, error) {
	return l.gate(listen, upstream)
}

func startPortable(l *lab, listen, upstream string) (*process, error) {
	return l.gate(listen, upstream, "-portable")
}

func (l *lab) gate(listen, upstream string, more ...string) (*process, error) {
	loaded, ds := intent.Load(fstest.MapFS{"merlon.yaml": {Data: []byte(strings.Replace(benchIntent, "LISTEN", listen, 1))}})
	if ds.Failed() {
		return nil, ds
	}
	orders := &merlon.Orders{
		Version:   merlon.OrdersVersion,
		Place:     merlon.Edge,
		Of:        loaded.Hash,
		Intent:    policy.Scope(loaded.Intent, merlon.Edge),
		Endpoints: map[string][]merlon.Endpoint{"api": {{Address: upstream}}},
	}
	text, err := orders.Encode()
	if err != nil {
		return nil, err
	}
	file := filepath.Join(l.dir, "orders.json")
	if err := os.WriteFile(file, text, 0o600); err != nil {
		return nil, err
	}
	args := append(more, "-orders", file, "-svid", filepath.Join(l.dir, "svid"), "-records", filepath.Join(l.dir, "records"))
	return start(listen, filepath.Join(l.dir, "merlon-gate"), args...)
}

// writeSVID makes the gate's SVID.
func (l *lab) writeSVID() error {
	a, err := authority.Open(filepath.Join(l.dir, "authority"), "bench.example", authority.Options{})
	if err != nil {
		return err
	}
	defer a.Close()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	chain, _, err := a.Issue("spiffe://bench.example/gateway", key.Public(), time.Now())
	if err != nil {
		return err
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return err
	}
	var certs []byte
	for _, c := range chain {
		certs = append(certs, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c})...)
	}
	dir := filepath.Join(l.dir, "svid")
	return errors.Join(
		os.MkdirAll(dir, 0o700),
		os.WriteFile(filepath.Join(dir, "svid.pem"), certs, 0o600),
		os.WriteFile(filepath.Join(dir, "key.pem"), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), 0o600),
		os.WriteFile(filepath.Join(dir, "bundle.pem"), a.Bundle(), 0o600),
	)
}
