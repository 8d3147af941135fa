package learn

import (
	"cmp"
	"fmt"
	"maps"
	"net/netip"
	"path"
	"slices"
	"strconv"
	"strings"

	"merlon/intent"
)

// writer writes the proposal. Everything in it that comes from a file goes
// through clean, when it is a comment, or through plain.
type writer struct{ strings.Builder }

func (w *writer) line(format string, args ...any) { fmt.Fprintf(w, format+"\n", args...) }

// clean makes text fit for a comment: on one line, and harmless on a terminal.
// A file name with a line break would else write sentences of the intent.
func clean(text string) string {
	if len(text) > 200 {
		text = text[:200] + "..."
	}
	quoted := strconv.QuoteToGraphic(text)
	return strings.ReplaceAll(quoted[1:len(quoted)-1], `\"`, `"`)
}

// plain is text as a scalar of YAML.
func plain(text string) string {
	if text != "" && strings.Trim(text, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_./-") == "" && !strings.ContainsAny(text[:1], "-.0123456789") {
		return text
	}
	return strconv.QuoteToASCII(text)
}

const preamble = `# A starting intent, made from what this directory says about itself.
#
# What is written here is allowed, and everything else is denied. A caller is
# written only where a file proves it: the caller's configuration holds the
# address of the service. That proves that it calls, not what it calls, so it
# gets each operation that the contract has today; strike what it does not need.
# What is only likely is a comment, and so is all that would open a service to
# the internet: nothing is reachable from outside until you say so.
`

func (s *scan) write() []byte {
	w := &writer{}
	w.WriteString(preamble)
	w.line("#\n# Read:")
	for _, name := range s.read[:min(len(s.read), 40)] {
		w.line("#   %s", clean(name))
	}
	if n := len(s.read) - 40; n > 0 {
		w.line("#   and %d more", n)
	}
	if len(s.read) == 0 {
		w.line("#   nothing: there are no contracts, compose files or manifests here")
	}
	w.line("\n# The name of the estate in every identity. Choose it once; it is part of certificates.")
	w.line("trustDomain: %s.internal\n", label(cmp.Or(s.project, "example")))
	s.writeGateway(w)
	zones := map[string]bool{}
	var left []*service
	var kept []*service
	for _, svc := range s.services {
		if svc.zone != "" {
			zones[svc.zone] = true
		}
		if svc.speaks() != "" {
			left = append(left, svc)
		} else {
			kept = append(kept, svc)
		}
	}
	for _, svc := range left {
		s.writeLeft(w, svc)
	}
	if len(kept) == 0 {
		w.line("services: {}")
	} else {
		w.line("services:")
	}
	for _, svc := range kept {
		s.writeService(w, svc, len(zones) > 1)
	}
	out := []byte(w.String())
	if formatted, err := intent.Format(out); err == nil {
		return formatted
	}
	return out
}

// writeGateway suggests the edge, if a file speaks of one.
func (s *scan) writeGateway(w *writer) {
	hosts := map[string]proof{}
	exposed := false
	for _, svc := range s.services {
		exposed = exposed || len(svc.exposed) > 0
	}
	for _, in := range s.ingresses {
		if _, there := hosts[in.host]; !there && in.host != "" {
			hosts[in.host] = proof{pos: in.pos}
		}
	}
	if !exposed {
		return
	}
	w.line("# The edge. Without it, nothing is reachable from outside.")
	w.line("# gateway:\n#   hosts:")
	names := slices.Sorted(maps.Keys(hosts))
	for _, host := range names[:min(len(names), 40)] {
		w.line("#     - %s # %s", clean(host), clean(hosts[host].pos.String()))
	}
	if len(names) == 0 {
		w.line("#     - shop.example # no file says a host name; write yours")
	}
	w.line("")
}

// foreign are images of programs that speak a protocol of their own.
const foreign = " postgres postgresql postgis mysql mariadb percona mongo mongodb redis valkey memcached rabbitmq kafka nats zookeeper etcd cassandra mosquitto "

// speaks is the name of the program, when the image says that it is not one
// that speaks HTTP; else "".
func (svc *service) speaks() string {
	image, _, _ := strings.Cut(path.Base(svc.image), "@")
	image, _, _ = strings.Cut(image, ":")
	if svc.contract == nil && image != "" && strings.Contains(foreign, " "+image+" ") {
		return image
	}
	return ""
}

// writeLeft says which service is left out, and who would call it.
func (s *scan) writeLeft(w *writer, svc *service) {
	w.line("# %q is left out: its image is %s (%s), which does not speak HTTP, and gates", svc.name, clean(svc.speaks()), clean(svc.imagePos.String()))
	w.line("# speak nothing else so far. Merlon does not protect it. Callers that were found:")
	for _, name := range slices.Sorted(maps.Keys(svc.callers)) {
		for _, p := range svc.callers[name].proofs {
			w.line("#   %s: %s, %s", name, p.text, clean(p.pos.String()))
		}
	}
	if len(svc.callers) == 0 {
		w.line("#   none")
	}
	w.line("")
}

func (s *scan) writeService(w *writer, svc *service, zones bool) {
	w.line("")
	called := ""
	if svc.called != svc.name {
		called = fmt.Sprintf(" (%s there)", clean(strconv.Quote(svc.called)))
	}
	w.line("  # %s%s", clean(svc.pos.String()), called)
	if svc.account.Line > 0 {
		w.line("  # It has a service account: %s.", clean(svc.account.String()))
	}
	body := &writer{}
	svc.writeAddress(body)
	svc.writeContract(body)
	svc.writeCallers(body)
	if zones && svc.zone != "" {
		body.line("    zone: %s", label(svc.zone))
	}
	// A mapping needs an entry; comments alone are none.
	empty := true
	for line := range strings.Lines(body.String()) {
		empty = empty && strings.HasPrefix(strings.TrimSpace(line), "#")
	}
	if !empty {
		w.line("  %s:\n%s", svc.name, strings.TrimSuffix(body.String(), "\n"))
		return
	}
	for line := range strings.Lines(body.String()) {
		w.line("  %s", strings.TrimSpace(line))
	}
	w.line("  %s: {}", svc.name)
}

func (svc *service) writeAddress(w *writer) {
	switch {
	case svc.host == "" && len(svc.ports) == 0:
		return // only a contract: where it runs is not said
	case !hostName(svc.host):
		w.line("    # address: dns:HOST:PORT  # %s is not a host name", clean(strconv.Quote(svc.host)))
	case len(svc.ports) == 0:
		w.line("    # address: dns:%s:PORT  # no file says its port", svc.host)
	default:
		best := svc.ports[0]
		for _, p := range svc.ports {
			if p.number == 80 || p.number == 8080 {
				best = p
				break
			}
		}
		w.line("    # The port: %s.", clean(best.pos.String()))
		w.line("    address: dns:%s:%d", svc.host, best.number)
		for _, p := range svc.ports {
			if p.number != best.number {
				w.line("    # It listens on port %d too: %s.", p.number, clean(p.pos.String()))
			}
		}
	}
}

// hostName reports whether text can stand in an address: RFC 1123 labels, and
// no number.
func hostName(text string) bool {
	if _, err := netip.ParseAddr(text); err == nil || len(text) > 253 {
		return false
	}
	for _, l := range strings.Split(text, ".") {
		if l == "" || len(l) > 63 || strings.Trim(l, "abcdefghijklmnopqrstuvwxyz0123456789-") != "" || l[0] == '-' || l[len(l)-1] == '-' {
			return false
		}
	}
	return strings.ContainsAny(text, "abcdefghijklmnopqrstuvwxyz")
}

func (svc *service) writeContract(w *writer) {
	switch c := svc.contract; {
	case c == nil:
		w.line("    # No contract was found. Until it has one, or operations, nothing may be called:")
		w.line("    # operations: {getOrder: GET /orders/{id}}")
	case c.err != "":
		w.line("    # contract: %s  # cannot be used: %s", clean(plain(c.file)), clean(c.err))
	default:
		w.line("    contract: %s", plain(c.file))
	}
}

// operations are those of a usable contract, or nil.
func (svc *service) operations() []string {
	if svc.contract == nil || svc.contract.err != "" {
		return nil
	}
	return svc.contract.operations
}

// writeCallers writes proved callers of known operations, and all others as
// comments.
func (svc *service) writeCallers(w *writer) {
	ops := svc.operations()
	for i, op := range ops {
		ops[i] = plain(op)
	}
	active, likely := &writer{}, &writer{}
	for _, name := range slices.Sorted(maps.Keys(svc.callers)) {
		e := svc.callers[name]
		proved := e.proved && ops != nil
		to, prose := likely, "      # #"
		if proved {
			to, prose = active, "      #"
		}
		for _, p := range e.proofs {
			text := p.text
			if e.proved {
				text = "proof: " + text
			}
			to.line("%s %s, %s", prose, text, clean(p.pos.String()))
		}
		if !proved {
			to.line("      # %s: all", name)
			continue
		}
		if line := fmt.Sprintf("      %s: [%s]", name, strings.Join(ops, ", ")); len(line) <= 100 {
			to.line("%s", line)
			continue
		}
		to.line("      %s:", name)
		for _, op := range ops {
			to.line("        - %s", op)
		}
	}
	for _, p := range svc.exposed {
		likely.line("      # # %s, %s; to let everyone in from outside:", p.text, clean(p.pos.String()))
	}
	if len(svc.exposed) > 0 {
		likely.line("      # anyone: all")
	}
	switch {
	case active.Len() > 0:
		w.line("    callers:")
		w.WriteString(active.String() + strings.ReplaceAll(likely.String(), "      # # ", "      # "))
	case likely.Len() > 0:
		w.line("    # callers:")
		w.WriteString(strings.ReplaceAll(likely.String(), "      # ", "    #   "))
	}
}
