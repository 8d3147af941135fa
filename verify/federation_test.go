package verify

import (
	"strings"
	"testing"

	"merlon"
	"merlon/policy"
)

// TestFederationChange: who may say which keys are a partner's is who may be any
// of its workloads.
func TestFederationChange(t *testing.T) {
	t.Parallel()
	compile := func(p merlon.Partner, callers ...string) *policy.Policy {
		t.Helper()
		svc := merlon.Service{Name: "orders", Operations: []merlon.Operation{{Name: "get", Method: "GET", Path: "/"}}}
		for _, caller := range callers {
			svc.Rules = append(svc.Rules, merlon.Rule{Caller: caller, Operations: []string{"get"}})
		}
		out, ds := policy.Compile(&merlon.Intent{TrustDomain: "shop.example", Federation: []merlon.Partner{p}, Services: []merlon.Service{svc}})
		if ds.Failed() {
			t.Fatal(ds)
		}
		return out
	}
	const a, b = "partner.example/a", "partner.example/b"
	was := merlon.Partner{TrustDomain: "partner.example", Bundle: "https://partner.example/"}
	for want, change := range map[string]func(*merlon.Partner){
		"another bundle endpoint": func(p *merlon.Partner) { p.Bundle += "x" },
		"another endpoint ID":     func(p *merlon.Partner) { p.EndpointID = "spiffe://partner.example/x" },
		"another first bundle":    func(p *merlon.Partner) { p.First = "{}" },
	} {
		is := was
		change(&is)
		got := Diff(compile(was, a), compile(is, a))
		if len(got) != 1 || got[0].Kind != Trusted || !got[0].Widens() || !strings.Contains(got[0].Text, want) {
			t.Errorf("%s: %+v", want, got)
		}
	}
	if got := Diff(compile(was, a), compile(was, a, b)); len(got) != 1 || got[0].Kind != Allowed || got[0].Caller != b {
		t.Errorf("%+v", got)
	}
	if got := Diff(compile(was, a, b), compile(was, a)); len(got) != 1 || got[0].Kind != Refused {
		t.Errorf("%+v", got)
	}
}

// TestProofChange: who proves to be a service that is called is told as who proves
// to be a caller is.
func TestProofChange(t *testing.T) {
	t.Parallel()
	compile := func(foreign, bundle string) *policy.Policy {
		t.Helper()
		out, ds := policy.Compile(&merlon.Intent{TrustDomain: "shop.example", Federation: []merlon.Partner{{TrustDomain: "bank.example", Bundle: bundle}},
			Services: []merlon.Service{{Name: "billing", External: true, Foreign: foreign, Hosts: []string{"billing.example"}, Operations: []merlon.Operation{{Name: "get", Method: "GET", Path: "/"}}}}})
		if ds.Failed() {
			t.Fatal(ds)
		}
		return out
	}
	const a, b, from = "bank.example/a", "bank.example/b", "https://bank.example/"
	for _, tt := range []struct{ was, is, bundle, want string }{
		{a, b, from, "billing proves itself by the SPIFFE ID spiffe://bank.example/b, did by the SPIFFE ID spiffe://bank.example/a"},
		{a, "", from, "billing proves itself by a public certificate, did by the SPIFFE ID spiffe://bank.example/a"},
		{"", a, from, "billing proves itself by the SPIFFE ID spiffe://bank.example/a, did by a public certificate"},
		{a, a, from + "x", "another bundle endpoint"},
	} {
		if got := Diff(compile(tt.was, from), compile(tt.is, tt.bundle)); len(got) != 1 || got[0].Kind != Trusted || !strings.Contains(got[0].Text, tt.want) {
			t.Errorf("%+v: %+v", tt, got)
		}
	}
}

// TestNodesChange: what a host that counts as a node gets is who may be any of the
// services on it.
func TestNodesChange(t *testing.T) {
	t.Parallel()
	type nodes = []merlon.Node
	compile := func(all nodes, on ...string) *policy.Policy {
		t.Helper()
		out, ds := policy.Compile(&merlon.Intent{TrustDomain: "shop.example", Nodes: all,
			Services: []merlon.Service{{Name: "pay", Workload: &merlon.WorkloadRule{UnixUser: "pay"}, Nodes: on}}})
		if ds.Failed() {
			t.Fatal(ds)
		}
		return out
	}
	x509 := func(ca, dns string) merlon.Node {
		return merlon.Node{Name: "db1", X509: &merlon.NodeX509{CA: ca, DNS: dns}}
	}
	db1, pod, db2 := merlon.Node{Name: "db1", JoinToken: true}, merlon.Node{Name: "db1", Kubernetes: "shop/agent"}, merlon.Node{Name: "db2", JoinToken: true}
	both := []string{"db1", "db2"}
	for _, tt := range []struct {
		was   nodes
		wasOn []string
		is    nodes
		isOn  []string
		want  string // "" is no change
	}{
		{nodes{db1, db2}, both, nodes{db1, db2}, []string{"db2", "db1"}, ""},
		{nodes{db1, db2}, both, nodes{db1}, both[:1], ""},
		{nodes{db1}, both[:1], nodes{db1, db2}, both, "pay is recognised on db2 too"},
		{nil, nil, nodes{db1}, both[:1], "pay is recognised on db1 too"},
		{nodes{db1}, both[:1], nil, nil, "pay is recognised on the host of the control plane too"},
		{nodes{db1}, both[:1], nodes{pod}, both[:1], "node db1 proves itself by its kubernetes service account shop/agent, did by its join token"},
		{nodes{x509("a", "db1")}, both[:1], nodes{x509("a", "db9")}, both[:1], "did by its certificate for db1"},
		{nodes{x509("a", "db1")}, both[:1], nodes{x509("b", "db1")}, both[:1], "certificate for db1, of other CAs"},
	} {
		got := Diff(compile(tt.was, tt.wasOn...), compile(tt.is, tt.isOn...))
		if tt.want == "" && len(got) == 0 {
			continue
		}
		if len(got) != 1 || got[0].Kind != Trusted || !got[0].Widens() || tt.want == "" || !strings.Contains(got[0].Text, tt.want) {
			t.Errorf("%+v\nis told as %+v", tt, got)
		}
	}
}

// TestProofOfNobody: what a service has to prove must be provable.
func TestProofOfNobody(t *testing.T) {
	t.Parallel()
	for _, s := range []merlon.Service{
		{Name: "billing", External: true, Foreign: "other.example/a"},
		{Name: "billing", External: true, Foreign: "shop.example/a"},
		{Name: "billing", External: true, Foreign: "bank.example"},
		{Name: "billing", Foreign: "bank.example/a"},
	} {
		in := &merlon.Intent{TrustDomain: "shop.example", Federation: []merlon.Partner{{TrustDomain: "bank.example"}}, Services: []merlon.Service{s}}
		if _, ds := policy.Compile(in); !ds.Failed() || ds[0].Code != "E0302" {
			t.Errorf("%+v: %v", s, ds)
		}
	}
}
