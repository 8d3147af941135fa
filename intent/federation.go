package intent

import (
	"slices"
	"strings"

	"merlon"
	"merlon/identity/spiffe"
)

// resolvePartners checks the other trust domains, and reads their first
// bundles.
func (e *estate) resolvePartners(rec *recorder) {
	slices.SortStableFunc(e.partners, func(a, b *partnerDef) int { return strings.Compare(a.TrustDomain, b.TrustDomain) })
	for _, p := range e.partners {
		if p.TrustDomain == e.trustDomain {
			e.report.at(p.name, codeContradiction, "remove it: who is of our own trust domain is proved by our own authority alone",
				"%q is our own trust domain, not a partner", clip(p.TrustDomain))
		}
		byID := p.profile != nil && p.profile.text == "https_spiffe"
		switch {
		case byID && p.id == nil && !p.badID:
			e.report.at(*p.profile, codeContradiction, "write endpointID: spiffe://"+p.TrustDomain+"/..., as the partner says", "%q says nothing without endpointID", p.profile.text)
		case !byID && p.id != nil:
			e.report.at(*p.id, codeContradiction, "write profile: https_spiffe, or remove endpointID", "an endpoint of https_web proves its host name, not a SPIFFE ID")
		case byID && p.id != nil:
			e.resolveEndpoint(p)
		}
		if p.file == nil {
			continue
		}
		if text, ok := e.file(*p.file, rec, p.file.pos.File); ok {
			if _, err := spiffe.ParseBundle(p.TrustDomain, text); err != nil {
				e.report.at(*p.file, codeKeys, "ask the partner for its bundle, a JSON Web Key Set", "%q is no bundle: %v", clip(p.file.text), err)
			}
			p.First = string(text)
		}
	}
}

// resolveEndpoint checks that there is something to verify the SVID of a bundle
// endpoint by.
func (e *estate) resolveEndpoint(p *partnerDef) {
	of := merlon.ForeignDomain(strings.TrimPrefix(p.EndpointID, "spiffe://"))
	switch {
	case of == p.TrustDomain && p.file == nil:
		e.report.at(*p.id, codeContradiction, "write first: FILE, with the bundle that the partner gave you", "%q cannot be verified without a first bundle of its trust domain", clip(p.EndpointID))
	case of != p.TrustDomain && e.partner(of) == nil && !e.unsure(of):
		e.report.at(*p.id, codeNothing, "name an ID of "+p.TrustDomain+", or add "+of+" to the federation", "nothing verifies an SVID of %q", clip(of))
	}
}

func (e *estate) partner(trustDomain string) *partnerDef {
	for _, p := range e.partners {
		if p.TrustDomain == trustDomain {
			return p
		}
	}
	return nil
}

// resolveForeign checks a caller of another trust domain.
func (e *estate) resolveForeign(s *serviceDef, r *ruleDef) {
	of := merlon.ForeignDomain(r.Caller)
	switch {
	case of == e.trustDomain:
		e.report.at(r.caller, codeNoCaller, "write the service's name alone", "%q is of our own trust domain", clip(r.Caller))
	case e.partner(of) == nil && !e.unsure(of):
		e.report.at(r.caller, codeNoCaller, "write federation: {"+of+": {bundle: https://...}} in "+rootFile, "%q is no trust domain of the federation", clip(of))
	case s.External:
		e.report.at(r.caller, codeCannotCall, "name the services that call it", "%q is of another trust domain and cannot call the external service %s", r.Caller, s.Name)
	case s.Protocol == merlon.TCP:
		// Layer 4 between gates is a protocol of our own gates.
		e.report.at(r.caller, codeCannotCall, "let a service of yours call it", "%q is of another trust domain and cannot call %s, which speaks tcp", r.Caller, s.Name)
	case r.per != nil && r.Limit.Per == merlon.PerClient:
		e.report.at(*r.per, codeNothing, "write per: caller, or leave it out", "a call from %q has no client address to count by", r.Caller)
	}
}

// resolveProof checks an external service that proves to be a workload of another
// trust domain.
func (e *estate) resolveProof(s *serviceDef) {
	of := merlon.ForeignDomain(s.Foreign)
	switch {
	case of == e.trustDomain:
		e.report.at(*s.foreign, codeContradiction, "write it under services", "%q is of our own trust domain, and so no external service", clip(s.Foreign))
	case e.partner(of) == nil && !e.unsure(of):
		e.report.at(*s.foreign, codeNoCaller, "write federation: {"+of+": {bundle: https://...}} in "+rootFile, "%q is no trust domain of the federation", clip(of))
	case s.Protocol == merlon.TCP:
		e.report.add(*s.foreign, codeContradiction, "remove the one or the other", []merlon.Pos{s.protocol.pos}, "the gate adds no TLS to tcp, by which %s could prove who it is", s.Name)
	case s.hostless && len(s.Addresses) == 0:
		e.report.at(s.name, codeMissingKey, "write address: dns:HOST:PORT", "external service without hosts needs the key %q", "address")
	}
}
