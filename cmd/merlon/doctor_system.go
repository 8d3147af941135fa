package main

import (
	"context"
	"fmt"
	"net"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"merlon"
	"merlon/internal/sockowner"
)

// checkGates finds sentences that are not enforced, and gates that are not ready.
func checkGates(_ context.Context, p *patient) []finding {
	if p.status.Intent == nil {
		return []finding{{What: "no intent is in force: everything is denied", Do: "merlon apply " + relative(p.dir)}}
	}
	type gap struct{ place, why string }
	rules := map[gap][]string{}
	var gaps []gap
	for _, r := range p.status.Rules {
		for _, m := range r.Missing {
			g := gap{m.Place, m.Why}
			if rules[g] == nil {
				gaps = append(gaps, g)
			}
			rules[g] = append(rules[g], r.Name)
		}
	}
	var found []finding
	for _, g := range gaps {
		found = append(found, finding{
			What: fmt.Sprintf("%s at the %s: %s", count(len(rules[g]), "rule")+" not enforced", g.place, g.why),
			Why:  strings.Join(rules[g][:min(3, len(rules[g]))], ", "),
			Do:   "merlon status " + relative(p.dir) + " shows each; the log of the gate says why it took no orders",
		})
	}
	for _, s := range p.status.Gates {
		stale := func(g gap) bool { return g.place == s.Place }
		if s.Behind != "" && !slices.ContainsFunc(gaps, stale) {
			found = append(found, finding{What: fmt.Sprintf("the %s does not enforce its newest orders: %s", s.Place, s.Behind), Do: "the log of the gate says why; merlon apply sends them again"})
		}
	}
	for _, place := range sortedKeys(p.id.Problems) {
		found = append(found, finding{What: fmt.Sprintf("the %s is not ready", place), Why: strings.Join(p.id.Problems[place], "; "), Do: "look at the log; docs/operations.md says what each problem means"})
	}
	return found
}

// checkWorkloadAPI connects to where it is served.
func checkWorkloadAPI(ctx context.Context, p *patient) []finding {
	if p.id.Workloads == "" {
		return nil // checkHost says why
	}
	network, address, _ := strings.Cut(p.id.Workloads, "://")
	d := net.Dialer{Timeout: doctorAsks}
	c, err := d.DialContext(ctx, network, address)
	if err != nil {
		return []finding{{What: "the Workload API does not answer: no workload gets or renews an identity", Why: err.Error(), Do: "stop merlon up and start it again; its log says how the Workload API ended"}}
	}
	c.Close()
	return nil
}

// checkFederation finds partners whose bundles do not come.
func checkFederation(_ context.Context, p *patient) []finding {
	var found []finding
	for _, f := range p.id.Federation {
		if f.Err == "" {
			continue
		}
		what := "its last one stays in use"
		if f.Roots == 0 {
			what = "nobody of it is let in"
		}
		found = append(found, finding{What: fmt.Sprintf("the bundle of %s cannot be fetched: %s", f.TrustDomain, what), Why: f.Err,
			Do: "see that its bundle endpoint answers, and that the intent names it and its profile right"})
	}
	return found
}

// checkPorts tries the ports of a system that is stopped.
func checkPorts(_ context.Context, p *patient) []finding {
	if p.intent == nil {
		return nil
	}
	var found []finding
	try := func(whose, address, do string) {
		l, err := net.Listen("tcp", address)
		if err != nil {
			found = append(found, finding{What: whose + " cannot listen on " + address, Why: err.Error(), Do: do})
			return
		}
		l.Close()
	}
	if g := p.intent.Gateway; g != nil {
		try("the gateway", g.Listen, "stop what uses the port, or choose another at gateway.listen")
	}
	known, err := readPorts(filepath.Join(p.state, "ports.json"))
	if err != nil {
		text, hint := hintOf(err)
		return append(found, finding{What: text, Do: hint})
	}
	for _, name := range sortedKeys(known.at) {
		service, _, _ := strings.Cut(name, "/")
		svc := p.intent.Service(service)
		if svc == nil {
			continue
		}
		before := len(found)
		try("the gate of "+service, known.at[name], "stop what uses the port; else the gate moves to another when it starts, and what was told the old one has to be told")
		if len(found) > before {
			found[before].Note = svc.Run != nil // merlon up starts it, and tells it where the gate is
		}
	}
	for i := range p.intent.Services {
		s := &p.intent.Services[i]
		for _, name := range sortedKeys(s.LocalPorts) {
			before := len(found)
			try(fmt.Sprintf("the gate of %s, for %s,", s.Name, name), fmt.Sprintf("127.0.0.1:%d", s.LocalPorts[name]), "stop what uses the port, or choose another at localPorts")
			if len(found) > before {
				found[before].Note = s.Run != nil // with --isolate its ports are its own
			}
		}
	}
	return found
}

// leastFiles is how many open files merlon up needs to be of use: each call that
// passes two gates has four connections.
const leastFiles = 4096

// checkHost says what this host cannot do.
func checkHost(_ context.Context, p *patient) []finding {
	var found []finding
	var files syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &files); err == nil && files.Max < leastFiles {
		found = append(found, finding{What: fmt.Sprintf("a process may open %d files here, fewer than %d", files.Max, leastFiles), Why: "gates refuse connections when there are no more",
			Do: "raise the limit: ulimit -Hn, or LimitNOFILE= of the unit"})
	}
	note := func(what, do string) { found = append(found, finding{What: what, Do: do, Note: true}) }
	if !sockowner.Supported() {
		note("this system does not tell who is at the other end of a connection: there is no Workload API, and gates cannot tell services of one host apart", "use Linux")
	}
	engine := func(name, socket, flag string, asks func(*merlon.WorkloadRule) bool) {
		if p.intent == nil || !slices.ContainsFunc(p.intent.Here().Services, func(s merlon.Service) bool { return s.Workload != nil && asks(s.Workload) }) {
			return
		}
		if c, err := net.Dial("unix", socket); err == nil {
			c.Close()
		} else {
			note(fmt.Sprintf("%s does not answer: %v", name, err), "let merlon up reach its socket, if "+flag+" names no other: services known by their container have no identity without it")
		}
	}
	engine("the Docker Engine", "/var/run/docker.sock", "--docker", func(w *merlon.WorkloadRule) bool { return w.DockerImage != "" || len(w.DockerLabels) > 0 })
	engine("containerd", "/run/containerd/containerd.sock", "--containerd", func(w *merlon.WorkloadRule) bool { return w.ContainerdNamespace != "" })
	if _, err := exec.LookPath("nft"); err != nil {
		if _, err := exec.LookPath("/usr/sbin/nft"); err != nil {
			note("nft is not installed: merlon capture cannot be used", "install nftables")
		}
	}
	return append(found, hostNotes()...)
}
