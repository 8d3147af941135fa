package main

import (
	"bytes"
	"embed"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"text/template"
)

// peer is a proxy to be measured.
type peer struct {
	name  string
	short bool // part of the short run
	svid  bool // believes in SPIFFE identities

	start func(*hop) (*process, error)
	// absent tells why the peer is not measured on this machine; nil is never.
	absent func() string
	// lacks tells why the peer is not measured in a scenario; nil is never.
	lacks func(*scenario) string
}

const base, ours = "nginx", "merlon gate"

// peers are in the order of the tables.
func peers() []*peer {
	return []*peer{
		{name: ours, short: true, svid: true, start: startGate},
		{name: "merlon gate, portable", short: true, svid: true, start: startPortable, lacks: func(s *scenario) string {
			if s.kind != requests {
				return "it differs in its I/O only"
			}
			return ""
		}},
		{name: base, short: true, start: configured("nginx", "nginx.conf", func(file string) []string {
			return []string{"-p", filepath.Dir(file), "-c", file}
		}), absent: inPath("nginx")},
		{name: "haproxy", start: configured("haproxy", "haproxy.cfg", func(file string) []string {
			return []string{"-db", "-q", "-f", file}
		}), absent: inPath("haproxy")},
		{name: "Envoy", start: startEnvoy, absent: inPath("envoy")},
		{name: "Caddy", start: configured("caddy", "caddy.json", func(file string) []string {
			return []string{"run", "--config", file}
		}), absent: inPath("caddy")},
		{name: "httputil.ReverseProxy", start: itself("reverse")},
		{name: "bare relay (floor)", short: true, start: itself("relay"), lacks: func(s *scenario) string {
			if s.group != groupPlain || s.size != small {
				return "it only copies"
			}
			return ""
		}},
	}
}

// inPath looks for a program.
func inPath(name string) func() string {
	return func() string {
		if _, err := exec.LookPath(name); err != nil {
			return "no " + name + " in PATH"
		}
		return ""
	}
}

//go:embed peers
var peerFiles embed.FS

// config writes the configuration of a peer for a hop.
func (h *hop) config(name string) (string, error) {
	t, err := template.ParseFS(peerFiles, "peers/"+name)
	if err != nil {
		return "", err
	}
	var b bytes.Buffer
	if err := t.Execute(&b, h); err != nil {
		return "", err
	}
	file := filepath.Join(h.Dir, name)
	return file, os.WriteFile(file, b.Bytes(), 0o600)
}

// configured starts a program with a configuration file.
func configured(program, config string, args func(file string) []string) func(*hop) (*process, error) {
	return func(h *hop) (*process, error) {
		file, err := h.config(config)
		if err != nil {
			return nil, err
		}
		return start(h.Listen, append([]string{program}, args(file)...), h.Threads)
	}
}

func startEnvoy(h *hop) (*process, error) {
	file, err := h.config("envoy.yaml")
	if err != nil {
		return nil, err
	}
	return start(h.Listen, []string{"envoy", "-c", file, "--concurrency", strconv.Itoa(h.Threads), "--disable-hot-restart", "--log-level", "critical"}, 0)
}

// itself starts this program in another role.
func itself(role string) func(*hop) (*process, error) {
	return func(h *hop) (*process, error) {
		return start(h.Listen, []string{h.lab.program("bench"), "-be", role, "-hop", h.json()}, h.Threads)
	}
}

func (h *hop) json() string {
	text, _ := json.Marshal(h) // strings, numbers and bools
	return string(text)
}
