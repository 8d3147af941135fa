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
