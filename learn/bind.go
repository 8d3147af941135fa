package learn

import (
	"cmp"
	"fmt"
	"path"
	"slices"
	"strconv"
	"strings"

	"merlon"
	"merlon/contract"
)

// contractFile is a contract that was found.
type contractFile struct {
	file       string
	operations []string // names, sorted
	protocol   merlon.Protocol
	err        string // why it cannot be used
}

// fileLetters may stand in the path of a contract. An intent takes more; what
// else a file is called is more likely a trick than a name.
const fileLetters = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789 _./-"

func (s *scan) openContract(name string) {
	s.used(name)
	c := &contractFile{file: name}
	if strings.Trim(name, fileLetters) != "" {
		s.note(merlon.Pos{File: name}, "the contract is not used: its name has characters that an intent does not take")
		return
	}
	loaded, ds := contract.Load(s.fsys, name)
	switch {
	case ds.Failed() || loaded == nil:
		c.err = firstError(ds)
		s.note(merlon.Pos{File: name}, "the contract cannot be used: %s", c.err)
	default:
		c.protocol = loaded.Protocol
		for _, op := range loaded.Operations {
			c.operations = append(c.operations, op.Name)
		}
		if len(c.operations) == 0 {
			return // messages only
		}
		if c.protocol == merlon.GRPC {
			c.err = "gates speak only HTTP/1.1 so far, and this is gRPC"
			s.note(merlon.Pos{File: name}, "the contract is not used: %s", c.err)
		}
	}
	if len(s.contracts) < maxServices {
		s.contracts = append(s.contracts, c)
	}
}

func firstError(ds merlon.Diagnostics) string {
	for _, d := range ds {
		if !d.Warning {
			return d.Error()
		}
	}
	return "it says nothing"
}

// bind brings together what is said about one service in several files.
func (s *scan) bind() {
	s.bindKube()
	s.joinPlatforms()
	running := len(s.services) > 0
	for _, c := range s.contracts {
		s.bindContract(c, running)
	}
	s.index()
	slices.SortStableFunc(s.services, func(a, b *service) int {
		return cmp.Or(strings.Compare(a.called, b.called), strings.Compare(a.zone, b.zone), a.pos.Compare(b.pos))
	})
}

// joinPlatforms takes a compose service and the one workload of the same name
// for the same service: a project often says both how it runs here and there.
func (s *scan) joinPlatforms() {
	var rest []*service
	workloads := map[string][]*service{}
	for _, svc := range s.services {
		if svc.zone != "" {
			workloads[svc.called] = append(workloads[svc.called], svc)
		}
	}
	for _, svc := range s.services {
		if svc.zone != "" || len(workloads[svc.called]) != 1 {
			rest = append(rest, svc)
			continue
		}
		to := workloads[svc.called][0]
		to.scopes = append(to.scopes, svc.scopes...)
		to.settings = append(to.settings, svc.settings...)
		to.starts = append(to.starts, svc.starts...)
		to.exposed = append(to.exposed, svc.exposed...)
		s.note(svc.pos, "taken for the same service as %q in %v", to.called, to.pos)
	}
	s.services = rest
}

// generic are words in paths that name no service.
const generic = " openapi api apis spec specs schema schemas contract contracts proto protos docs doc src server service services http rest grpc public internal index main app pkg cmd v1 v2 v3 "

// bindContract gives a contract to the service that its path names, nearest
// word first, or makes a service of it.
func (s *scan) bindContract(c *contractFile, running bool) {
	var words []string
	dir := strings.TrimSuffix(c.file, path.Ext(c.file))
	for _, part := range strings.Split(dir, "/") {
		word := strings.ToLower(part)
		for _, affix := range []string{"openapi", "api", "swagger", "spec"} {
			word = strings.TrimSuffix(strings.TrimSuffix(strings.TrimSuffix(word, "."+affix), "-"+affix), "_"+affix)
		}
		words = append(words, word)
	}
	slices.Reverse(words)
	words = slices.DeleteFunc(words, func(w string) bool { return w == "" || strings.Contains(generic, " "+w+" ") })
	for _, w := range words {
		for _, svc := range s.services {
			stem := strings.ToLower(svc.called)
			for _, affix := range []string{"-service", "-svc", "-api", "_service", "service"} {
				stem = cmp.Or(strings.TrimSuffix(stem, affix), stem)
			}
			if w != strings.ToLower(svc.called) && w != stem {
				continue
			}
			if svc.contract != nil {
				s.note(merlon.Pos{File: c.file}, "not used: %q has the contract %s already", svc.called, svc.contract.file)
				return
			}
			svc.contract = c
			return
		}
	}
	if running {
		s.note(merlon.Pos{File: c.file}, "no service of this name runs anywhere; it was added for the contract")
	}
	if len(words) == 0 {
		words = []string{"service"}
	}
	if svc := s.service("contract "+c.file, words[0], merlon.Pos{File: c.file}); svc != nil {
		svc.contract = c
	}
}

// name gives every service a name that the language allows and no other has.
func (s *scan) name() {
	count := map[string]int{}
	for _, svc := range s.services {
		count[label(svc.called)]++
	}
	taken := map[string]bool{}
	for _, svc := range s.services {
		name := label(svc.called)
		if count[name] > 1 && svc.zone != "" {
			name = label(name + "-" + svc.zone)
		}
		for base, n := name, 2; taken[name]; n++ {
			suffix := "-" + strconv.Itoa(n)
			name = strings.TrimRight(base[:min(len(base), 63-len(suffix))], "-") + suffix
		}
		taken[name] = true
		svc.name = name
	}
}

// label makes a name of any text: lower-case letters, digits and hyphens,
// starting with a letter, at most 63.
func label(text string) string {
	var b strings.Builder
	for _, c := range strings.ToLower(text) {
		if c >= 'a' && c <= 'z' || c >= '0' && c <= '9' {
			b.WriteRune(c)
		} else if b.Len() > 0 {
			b.WriteByte('-')
		}
		if b.Len() >= 55 {
			break
		}
	}
	name := strings.Trim(b.String(), "-")
	if name == "" || name[0] < 'a' {
		name = strings.TrimRight("s-"+name, "-")
	}
	if slices.Contains([]string{merlon.AnyCaller, merlon.GatewayName, "all"}, name) {
		name += "-service"
	}
	return name
}

// address is a host name as it is seen from a scope; from anywhere when the
// scope is empty.
type address struct{ scope, host string }

// index makes every name under which a service is reached known to resolve.
// What was there first stays.
func (s *scan) index() {
	s.hosts = map[address]*service{}
	add := func(scope, host string, svc *service) {
		at := address{scope, strings.ToLower(host)}
		if s.hosts[at] == nil {
			s.hosts[at] = svc
		}
	}
	for _, k := range s.kube {
		if k.target == nil {
			continue
		}
		full := k.name + "." + k.namespace
		add("namespace "+k.namespace, k.name, k.target)
		for _, host := range []string{full, full + ".svc", full + ".svc.cluster.local"} {
			add("", host, k.target)
		}
	}
	for _, svc := range s.services {
		for _, scope := range svc.scopes {
			if strings.HasPrefix(scope, "compose ") {
				add(scope, svc.called, svc)
			}
		}
	}
}

// resolve finds the service behind a host name, as seen from a scope.
func (s *scan) resolve(scope, host string) *service {
	host = strings.TrimSuffix(strings.ToLower(host), ".")
	return cmp.Or(s.hosts[address{scope, host}], s.hosts[address{"", host}])
}

// prove finds out who calls whom.
func (s *scan) prove() {
	for _, svc := range s.services {
		for _, set := range svc.settings {
			for _, t := range targets(set) {
				s.edge(svc, set, t)
			}
		}
		for _, set := range svc.starts {
			for _, scope := range svc.scopes {
				if callee := s.resolve(scope, set.value); callee != nil && callee != svc {
					callee.calledBy(svc, false, proof{set.pos, "it starts after it (depends_on), which is no proof that it calls it"})
				}
			}
		}
	}
}

func (s *scan) edge(svc *service, set setting, t target) {
	for _, scope := range svc.scopes {
		callee := s.resolve(scope, t.host)
		if callee == nil || callee == svc {
			continue
		}
		listens := slices.ContainsFunc(callee.ports, func(p port) bool { return p.number == t.port })
		if t.sure || listens {
			callee.calledBy(svc, true, proof{set.pos, fmt.Sprintf("%s holds its address", clean(set.name))})
			return
		}
	}
}

func (svc *service) calledBy(caller *service, proved bool, p proof) {
	e := svc.callers[caller.name]
	if e == nil {
		e = &edge{caller: caller.name}
		svc.callers[caller.name] = e
	}
	if proved && !e.proved {
		e.proved, e.proofs = true, nil
	}
	if proved == e.proved && len(e.proofs) < 3 {
		e.proofs = append(e.proofs, p)
	}
}

// target is a host named in a setting.
type target struct {
	host string
	port int
	sure bool // it stands where only a host can stand
}

// targets finds hosts in a value: in URLs; as host:port; and alone, when the
// name of the variable says that it is a host.
func targets(set setting) []target {
	var list []target
	named := false
	upper := strings.ToUpper(set.name)
	for _, suffix := range []string{"HOST", "HOSTNAME", "ADDR", "ADDRESS", "URL", "URI", "ENDPOINT"} {
		named = named || upper == suffix || strings.HasSuffix(upper, "_"+suffix)
	}
	for _, word := range strings.FieldsFunc(set.value, func(c rune) bool { return strings.ContainsRune(" \t\r\n,;|\"'", c) }) {
		_, rest, url := strings.Cut(word, "://")
		if url {
			word = strings.TrimLeft(rest, "/") // dns:///host:port
		}
		if i := strings.IndexAny(word, "/?#"); i >= 0 {
			word = word[:i]
		}
		word = word[strings.LastIndexByte(word, '@')+1:]
		host, digits, hasPort := strings.Cut(word, ":")
		n, err := strconv.Atoi(digits)
		if hasPort && err != nil {
			continue
		}
		if url || hasPort || named {
			list = append(list, target{host, n, url || named})
		}
	}
	return list
}
