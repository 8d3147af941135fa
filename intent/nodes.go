package intent

import (
	"crypto/x509"
	"encoding/pem"
	"slices"
	"strings"

	"merlon"
)

func (d *decoder) readNode(f field) {
	n := &nodeDef{name: d.word(f.key)}
	n.Name, n.Pos = f.key.Value, n.name.pos
	n.unsure = len(d.fields(f.value))*2 < len(f.value.Content)
	var ways []word
	for _, way := range d.fields(f.value) {
		ways = append(ways, d.word(way.key))
		n.proof = d.word(way.value)
		switch way.key.Value {
		case "joinToken":
			n.JoinToken = true
		case "x509":
			n.X509 = &merlon.NodeX509{DNS: d.text(way.value, "dns")}
			ca, dns := d.get(way.value, "ca"), d.get(way.value, "dns")
			if n.unsure = n.unsure || ca == nil || dns == nil; !n.unsure {
				w := d.word(ca)
				n.ca, n.proof = &w, d.word(dns)
			}
		case "kubernetes":
			n.Kubernetes = way.value.Value
		}
	}
	switch {
	case len(ways) > 1:
		d.estate.report.add(ways[1], codeContradiction, "keep one, or define another node", []merlon.Pos{ways[0].pos},
			"node %s proves itself by %s and by %s", n.Name, ways[0].text, ways[1].text)
	case len(ways) == 0 && !n.unsure:
		d.estate.report.at(n.name, codeMissingKey, "write joinToken: true, for example", "nothing says how node %q proves itself", n.Name)
	}
	d.nodes = append(d.nodes, n)
}

func (e *estate) node(name string) *nodeDef {
	i := slices.IndexFunc(e.nodes, func(n *nodeDef) bool { return n.Name == name })
	if i < 0 {
		return nil
	}
	return e.nodes[i]
}

// resolveNodes reads the CAs of nodes, and finds two that one host could be: it
// would be neither.
func (e *estate) resolveNodes(rec *recorder) {
	slices.SortStableFunc(e.nodes, func(a, b *nodeDef) int { return strings.Compare(a.Name, b.Name) })
	proofs := map[string]*nodeDef{}
	for _, n := range e.nodes {
		if n.ca != nil {
			if text, ok := e.file(*n.ca, rec, n.ca.pos.File); ok {
				if why := authorities(text); why != "" {
					e.report.at(*n.ca, codeKeys, "name a file with the certificates of CAs, PEM", "%q %s", clip(n.ca.text), why)
				}
				n.X509.CA = string(text)
			}
		}
		if n.JoinToken || n.unsure {
			continue
		}
		if first := proofs[n.Proof()]; first != nil {
			e.report.add(n.proof, codeTwice, "let each prove something of its own, or join the two: several hosts may be one node", []merlon.Pos{first.proof.pos},
				"nodes %q and %q prove themselves by the same %s", first.Name, n.Name, n.Proof())
		}
		proofs[n.Proof()] = n
	}
}

// authorities says what is wrong with the certificates of CAs, or "".
func authorities(text []byte) string {
	found := false
	for {
		var block *pem.Block
		if block, text = pem.Decode(text); block == nil {
			break
		}
		if block.Type != "CERTIFICATE" {
			return "holds something else than certificates" // a private key does not belong into an intent
		}
		cert, err := x509.ParseCertificate(block.Bytes)
		switch {
		case err != nil:
			return "holds a certificate that cannot be read"
		case !cert.IsCA:
			return "holds a certificate that is not a CA's"
		}
		found = true
	}
	if !found {
		return "holds no certificate"
	}
	return ""
}

// resolvePlace finds where the workloads of s run.
func (e *estate) resolvePlace(s *serviceDef) {
	if len(s.nodes) == 0 {
		return
	}
	for _, w := range s.nodes {
		n := e.node(w.text)
		if n != nil {
			n.used = true
			continue
		}
		if e.unsure(w.text) || e.report.full() {
			continue
		}
		defined := map[string]merlon.Pos{}
		for _, n := range e.nodes {
			defined[n.Name] = n.Pos
		}
		hint := didYouMean(w.text, defined)
		if hint == "" {
			hint = "write nodes: {" + clip(w.text) + ": {joinToken: true}} in " + rootFile
		}
		e.report.at(w, codeNoNode, hint, "no node is called %q", clip(w.text))
	}
	switch {
	case s.Run != nil:
		e.report.add(s.runs, codeContradiction, "remove run, or the nodes", []merlon.Pos{s.nodes[0].pos}, "merlon up starts %s on its own host, and the service is on a node", s.Name)
	case !s.told:
		e.report.at(s.nodes[0], codeNothing, "write workload: {unix: {user: "+s.Name+"}}, for example", "nothing says how a workload of %s is recognised on its nodes", s.Name)
	}
}
