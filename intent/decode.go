package intent

import (
	"path"
	"strconv"
	"strings"
	"time"

	"go.yaml.in/yaml/v4"

	"merlon"
)

// Defaults.
const (
	defaultListen  = ":8443"
	defaultTimeout = 15 * time.Second
	defaultRetry   = 20
	defaultMaxBody = 1 << 20
	defaultSample  = 10_000 // of a million
)

// estate is what all files say together, before names are resolved. Values in
// it have passed the table; what failed is absent and already reported.
type estate struct {
	report      *reporter
	trustDomain string
	mode        merlon.Mode
	gateway     *merlon.Gateway
	telemetry   *merlon.Telemetry
	partners    []*partnerDef
	nodes       []*nodeDef
	logins      []*loginDef
	services    []*serviceDef
	guardrails  []guardrailDef
	tests       []testDef
	named       map[string]merlon.Pos // services, logins and external services
	incomplete  bool                  // some file could not be read: what is missing may be there
	dubious     map[string]bool       // names whose definition failed: reported already
	domainSeen  bool                  // trustDomain is there, good or not
	zones       map[string]merlon.Pos
}

type loginDef struct {
	merlon.LoginRule
	name, issuer, keys word
	local              *word // allowLocal, when it is true
	used               bool
}

type partnerDef struct {
	merlon.Partner
	name              word
	profile, id, file *word
	badID             bool // there is one, and it is reported
}

type nodeDef struct {
	merlon.Node
	name, proof word  // proof is what no other node may have
	ca          *word // a file
	unsure      bool  // a way to prove itself could not be read
	used        bool
}

type serviceDef struct {
	merlon.Service
	name     word
	file     string
	contract *word
	protocol *word
	hosts    []word
	inline   []operationDef
	rules    []*ruleDef
	sign     *word  // the first thing by which it is recognised
	operated *word  // the key operations
	sockets  []word // operations that may become WebSockets, or all
	ports    []portDef
	nodes    []word
	runs     word            // the key run
	told     bool            // the key workload is there, good or not
	foreign  *word           // the workload of another trust domain that it is
	hostless bool            // it is external and has no key hosts
	unsure   bool            // some operation could not be read
	all      []string        // the names of all operations
	index    map[string]bool // the same
}

type portDef struct{ service, port word }

type operationDef struct{ name, value word }

type ruleDef struct {
	merlon.Rule
	caller word
	width  int // of what stands at Pos
	ops    []word
	per    *word
}

type guardrailDef struct {
	merlon.Guardrail
	name  word
	edges edges
	good  bool
}

type testDef struct {
	call
	whole  word
	claims *word
	good   bool
}

// decoder reads one file into the estate.
type decoder struct {
	*checker
	*estate
}

// read checks one file against the language and takes over what it says.
func (e *estate) read(s *source, lang *shape) {
	if s.root == nil {
		return
	}
	d := &decoder{&checker{source: s, report: e.report, bad: map[*yaml.Node]bool{}}, e}
	if s.root.Kind != yaml.MappingNode {
		e.incomplete = true
		d.fail(s.root, codeKind, "an intent starts with keys such as services:", "the file expects a mapping, not %s", kindName(s.root))
		return
	}
	top := *lang
	top.object = append([]key(nil), lang.object...)
	for i := range top.object {
		top.object[i].required = false // of the whole, not of each file
	}
	d.check(s.root, &top, "an intent", d.word(s.root))
	for i := 0; i+1 < len(s.root.Content); i += 2 {
		d.doubt(s.root.Content[i].Value, s.root.Content[i+1])
	}
	for _, f := range d.fields(s.root) {
		switch f.key.Value {
		case "trustDomain", "mode", "gateway", "telemetry", "federation", "nodes":
			if s.name != rootFile {
				d.fail(f.key, codeRootOnly, "move it to "+rootFile+", so that nobody changes the whole estate from the file of one service",
					"%s is about the whole estate", f.key.Value)
				continue
			}
		}
		switch f.key.Value {
		case "trustDomain":
			d.trustDomain = f.value.Value
		case "mode":
			d.mode = modeOf(f.value)
		case "gateway":
			d.readGateway(f)
		case "telemetry":
			d.readTelemetry(f.value)
		case "federation":
			for _, p := range d.fields(f.value) {
				d.readPartner(p)
			}
		case "nodes":
			for _, n := range d.fields(f.value) {
				d.readNode(n)
			}
		case "services", "external":
			for _, s := range d.fields(f.value) {
				d.readService(s, f.key.Value == "external")
			}
		case "guardrails":
			for _, item := range f.value.Content {
				d.readGuardrail(item)
			}
		case "tests":
			for _, item := range f.value.Content {
				d.readTest(item)
			}
		}
	}
}

// doubt remembers the names whose definition is bad, so that one mistake is
// not reported again at every place that uses the name.
func (d *decoder) doubt(key string, n *yaml.Node) {
	switch key {
	case "trustDomain":
		d.domainSeen = true
	case "gateway":
		for i := 0; i+1 < len(n.Content); i += 2 {
			d.doubt(n.Content[i].Value, n.Content[i+1])
		}
	case "services", "external", "login", "federation", "nodes":
		for i := 0; i+1 < len(n.Content); i += 2 {
			if k, v := n.Content[i], n.Content[i+1]; d.bad[n] || d.bad[k] || d.bad[v] {
				d.dubious[k.Value] = true
			}
		}
	}
}

// define takes a name of the one namespace of services, logins and external
// services, or reports that it is taken.
func (d *decoder) define(w word, what string) bool {
	if first, taken := d.named[w.text]; taken {
		d.estate.report.add(w, codeTwice, "services, logins and external services share one set of names, and each has one definition: join the two, or rename one",
			[]merlon.Pos{first}, "%s %q is defined twice", what, w.text)
		return false
	}
	d.named[w.text] = w.pos
	return true
}

func (d *decoder) readGateway(f field) {
	g := &merlon.Gateway{Pos: d.word(f.key).pos, Listen: defaultListen, MinTLS: "1.3"}
	d.gateway = g
	for _, f := range d.fields(f.value) {
		v := f.value
		switch f.key.Value {
		case "listen":
			g.Listen = v.Value
		case "hosts":
			g.Hosts = d.distinct(d.words(v), "host")
		case "certificate":
			g.Certificate = d.readCertificate(v)
		case "minTLS":
			g.MinTLS = v.Value
		case "trustedProxies":
			g.TrustedProxies = d.distinct(d.words(v), "range")
		case "proxyProtocol":
			g.ProxyProtocol = d.distinct(d.words(v), "range")
		case "login":
			for _, l := range d.fields(v) {
				d.readLogin(l)
			}
		case "limit":
			g.Limit, _ = d.readLimit(v, merlon.PerClient)
		}
	}
}

func (d *decoder) readTelemetry(n *yaml.Node) {
	d.telemetry = new(merlon.Telemetry)
	traces := d.get(n, "traces")
	if traces == nil {
		return
	}
	t := &merlon.Traces{Pos: d.word(traces).pos, Collector: strings.TrimRight(d.text(traces, "collector"), "/"), Sample: defaultSample}
	if v := d.get(traces, "sample"); v != nil {
		t.Sample, _ = parseSample(v.Value)
	}
	t.Trust = d.text(traces, "trust") == "true"
	d.telemetry.Traces = t
}

// distinct takes the texts of words, of which none may come twice.
func (d *decoder) distinct(words []word, what string) []string {
	seen := make(map[string]merlon.Pos, len(words))
	var out []string
	for _, w := range words {
		if first, there := seen[w.text]; there {
			d.estate.report.add(w, codeTwice, "remove one", []merlon.Pos{first}, "%s %q is here twice", what, clip(w.text))
			continue
		}
		seen[w.text] = w.pos
		out = append(out, w.text)
	}
	return out
}

func (d *decoder) readCertificate(n *yaml.Node) merlon.Certificate {
	if n.Kind == yaml.ScalarNode {
		if n.Value == "none" {
			return merlon.Certificate{Kind: merlon.CertificateNone}
		}
		return merlon.Certificate{Kind: merlon.CertificateSelfSigned}
	}
	return merlon.Certificate{Kind: merlon.CertificateFiles, Cert: d.text(n, "cert"), Key: d.text(n, "key")}
}

func (d *decoder) readLogin(f field) {
	l := &loginDef{name: d.word(f.key)}
	if !d.define(l.name, "login") {
		return
	}
	l.Name, l.Pos = f.key.Value, l.name.pos
	l.Algorithms = []string{"RS256", "ES256", "EdDSA"}
	for _, f := range d.fields(f.value) {
		switch f.key.Value {
		case "issuer":
			l.issuer, l.Issuer = d.word(f.value), f.value.Value
		case "audience":
			l.Audience = f.value.Value
		case "keys":
			l.keys = d.word(f.value)
		case "algorithms":
			l.Algorithms = d.distinct(d.words(f.value), "algorithm")
		case "allowLocal":
			if l.AllowLocal = f.value.Value == "true"; l.AllowLocal {
				w := d.word(f.key)
				l.local = &w
			}
		}
	}
	d.logins = append(d.logins, l)
}

func (d *decoder) readPartner(f field) {
	p := &partnerDef{name: d.word(f.key)}
	p.TrustDomain, p.Pos = f.key.Value, p.name.pos
	for _, f := range d.fields(f.value) {
		w := d.word(f.value)
		switch f.key.Value {
		case "bundle":
			p.Bundle = w.text
		case "profile":
			p.profile = &w
		case "endpointID":
			p.id, p.EndpointID = &w, w.text
		case "first":
			p.file = &w
		case "allowLocal":
			p.AllowLocal = w.text == "true"
		}
	}
	for i := 0; p.id == nil && i < len(f.value.Content); i += 2 {
		p.badID = p.badID || f.value.Content[i].Value == "endpointID"
	}
	d.partners = append(d.partners, p)
}

// readLimit reads a rate or a mapping; per is where it says what it counts.
func (d *decoder) readLimit(n *yaml.Node, def merlon.LimitKey) (_ *merlon.Limit, per *word) {
	l := &merlon.Limit{Pos: d.word(n).pos, Per: def}
	rate := n
	if n.Kind == yaml.MappingNode {
		if rate = d.get(n, "rate"); rate == nil {
			return nil, nil
		}
	}
	l.Count, l.Window, _ = parseRate(rate.Value)
	l.Burst = l.Count
	if v := d.get(n, "burst"); v != nil {
		l.Burst, _ = parseCount(v.Value)
	}
	if v := d.get(n, "per"); v != nil {
		w := d.word(v)
		per, l.Per = &w, merlon.PerClient
		if v.Value == "caller" {
			l.Per = merlon.PerCaller
		}
	}
	return l, per
}

func (d *decoder) readService(f field, external bool) {
	what := "service"
	if external {
		what = "external service"
	}
	s := &serviceDef{name: d.word(f.key), file: d.source.name}
	if !d.define(s.name, what) {
		return
	}
	s.Name, s.Pos, s.External = f.key.Value, s.name.pos, external
	s.unsure = d.get(f.value, "operations") == nil && d.has(f.value, "operations") || d.get(f.value, "contract") == nil && d.has(f.value, "contract")
	s.told = d.has(f.value, "workload")
	s.Timeout, s.Retry, s.MaxBody = defaultTimeout, defaultRetry, defaultMaxBody
	fields := d.fields(f.value)
	s.hostless = external && d.get(f.value, "hosts") == nil && 2*len(fields) == len(f.value.Content)
	for _, f := range fields {
		v, w := f.value, d.word(f.value)
		switch f.key.Value {
		case "address":
			s.Addresses = d.distinct(d.words(v), "address")
		case "contract":
			s.contract = &w
		case "operations":
			k := d.word(f.key)
			s.operated = &k
			good := d.fields(v)
			s.unsure = s.unsure || len(good)*2 < len(v.Content)
			for _, o := range good {
				s.inline = append(s.inline, operationDef{d.word(o.key), d.word(o.value)})
			}
		case "webSockets":
			s.sockets = d.words(v)
			d.distinct(s.sockets, "operation")
		case "localPorts":
			for _, p := range d.fields(v) {
				s.ports = append(s.ports, portDef{d.word(p.key), d.word(p.value)})
			}
		case "protocol":
			s.protocol = &w
		case "callers":
			for _, c := range d.fields(v) {
				d.readCaller(s, c)
			}
		case "hosts":
			s.hosts = d.words(v)
			s.Hosts = d.distinct(s.hosts, "host")
		case "spiffe":
			s.Foreign, s.foreign = v.Value, &w
		case "zone":
			s.Zone = v.Value
		case "mode":
			s.Mode = modeOf(v)
		case "timeout":
			s.Timeout, _ = parseTimeout(v.Value)
		case "retries":
			s.Retry, _ = parsePercent(d.text(v, "budget"))
		case "maxBody":
			s.MaxBody, _ = parseSize(v.Value)
		case "slashes":
			s.Slashes = true
		case "workload":
			s.readWorkload(d, f)
		case "nodes":
			s.nodes = d.words(v)
			s.Nodes = d.distinct(s.nodes, "node")
		case "run":
			s.runs, s.Run = d.word(f.key), d.readRun(f)
		}
	}
	d.services = append(d.services, s)
}

func (s *serviceDef) readWorkload(d *decoder, f field) {
	at := d.word(f.key)
	w := &merlon.WorkloadRule{Pos: at.pos}
	unix, docker, containerd := d.get(f.value, "unix"), d.get(f.value, "docker"), d.get(f.value, "containerd")
	for _, text := range []struct {
		in   *yaml.Node
		name string
		to   *string
	}{
		{unix, "user", &w.UnixUser}, {unix, "group", &w.UnixGroup}, {unix, "path", &w.Executable}, {unix, "sha256", &w.SHA256},
		{d.get(f.value, "systemd"), "unit", &w.SystemdUnit}, {docker, "image", &w.DockerImage},
		{containerd, "namespace", &w.ContainerdNamespace}, {containerd, "image", &w.ContainerdImage}, {f.value, "kubernetes", &w.Kubernetes},
	} {
		if n := d.get(text.in, text.name); n != nil {
			*text.to = n.Value
			if s.sign == nil {
				sign := d.word(n)
				s.sign = &sign
			}
		}
	}
	for _, labels := range []struct {
		in *yaml.Node
		to *map[string]string
	}{{docker, &w.DockerLabels}, {containerd, &w.ContainerdLabels}} {
		for _, label := range d.fields(d.get(labels.in, "label")) {
			if *labels.to == nil {
				*labels.to = map[string]string{}
			}
			(*labels.to)[label.key.Value] = label.value.Value
			if s.sign == nil {
				sign := d.word(label.value)
				s.sign = &sign
			}
		}
	}
	if containerd != nil && w.ContainerdNamespace == "" {
		w.ContainerdNamespace = "default"
	}
	if s.sign == nil {
		if len(f.value.Content) == 0 || docker != nil && len(docker.Content) == 0 || containerd != nil && len(containerd.Content) == 0 {
			d.estate.report.add(at, codeNothing, "say by what it is recognised, such as unix: {user: web}, or leave the key out", nil, "workload names nothing")
		}
		return // what is wrong is reported
	}
	s.Workload = w
}

func (d *decoder) readRun(f field) *merlon.Run {
	r := &merlon.Run{Pos: d.word(f.key).pos, Dir: path.Dir(d.source.name)}
	for _, f := range d.fields(f.value) {
		switch f.key.Value {
		case "dir":
			w := d.word(f.value)
			dir, p := relative(d.source.name, w.text)
			if p != nil {
				d.estate.report.problem(w, p)
			}
			r.Dir = dir
		case "build":
			r.Build = texts(d.words(f.value))
		case "command":
			r.Command = texts(d.words(f.value))
		case "env":
			r.Env = map[string]string{}
			for _, e := range d.fields(f.value) {
				r.Env[e.key.Value] = e.value.Value
			}
		}
	}
	return r
}

// readCaller reads one caller of a service: one sentence, or several.
func (d *decoder) readCaller(s *serviceDef, f field) {
	one := func(n *yaml.Node, at word) {
		r := &ruleDef{caller: d.word(f.key), width: at.width}
		r.Caller, r.Pos = f.key.Value, at.pos
		d.readSentence(r, n)
		s.rules = append(s.rules, r)
	}
	n := f.value
	if n.Kind != yaml.SequenceNode {
		one(n, d.word(f.key))
		return
	}
	var mappings, scalars []*yaml.Node
	for _, item := range n.Content {
		switch {
		case d.bad[item]:
		case item.Kind == yaml.MappingNode:
			mappings = append(mappings, item)
		default:
			scalars = append(scalars, item)
		}
	}
	if len(mappings) > 0 && len(scalars) > 0 {
		d.estate.report.add(d.word(scalars[0]), codeKind, "write the operations as a mapping too: {operations: [...]}",
			[]merlon.Pos{d.word(mappings[0]).pos}, "a list of operations or a list of mappings, not both")
		return
	}
	if len(mappings) == 0 {
		one(n, d.word(f.key))
	}
	for _, m := range mappings {
		one(m, d.word(m))
	}
}

// readSentence reads what follows the name of a caller.
func (d *decoder) readSentence(r *ruleDef, n *yaml.Node) {
	ops := n
	if n.Kind == yaml.MappingNode {
		ops = d.get(n, "operations")
		for _, f := range d.fields(n) {
			switch f.key.Value {
			case "when":
				r.When, r.WhenPos = f.value.Value, d.word(f.value).pos
			case "mode":
				r.Mode = modeOf(f.value)
			case "limit":
				def := merlon.PerCaller
				if r.Caller == merlon.AnyCaller {
					def = merlon.PerClient
				}
				r.Limit, r.per = d.readLimit(f.value, def)
			}
		}
	}
	switch {
	case ops == nil:
	case ops.Kind == yaml.ScalarNode:
		r.All = true
	default:
		r.ops = d.words(ops)
		d.distinct(r.ops, "operation")
	}
}

func (d *decoder) readGuardrail(n *yaml.Node) {
	if d.bad[n] {
		return
	}
	var g guardrailDef
	g.Pos = d.word(n).pos
	if v := d.get(n, "name"); v != nil {
		g.name, g.Name = d.word(v), v.Value
	}
	g.Because = d.text(n, "because")
	if v := d.get(n, "deny"); v != nil {
		w := d.word(v)
		e, p := parseEdges(w)
		if p != nil {
			d.estate.report.problem(w, p)
		}
		g.edges, g.Deny, g.good = e, e.Edges, p == nil
	}
	d.guardrails = append(d.guardrails, g)
}

func (d *decoder) readTest(n *yaml.Node) {
	if d.bad[n] {
		return
	}
	var t testDef
	if v := d.get(n, "call"); v != nil {
		t.whole = d.word(v)
		c, p := parseCall(t.whole)
		if p != nil {
			d.estate.report.problem(t.whole, p)
		}
		t.call, t.good = c, p == nil
	}
	t.Pos = d.word(n).pos
	if d.text(n, "expect") == "allow" {
		t.Expect = merlon.Allow
	}
	for _, f := range d.fields(n) {
		if f.key.Value == "claims" {
			w := d.word(f.key)
			t.claims = &w
			t.Claims, _ = d.value(f.value).(map[string]any)
		}
	}
	d.tests = append(d.tests, t)
}

// value is n as JSON would have it: what a token holds.
func (d *decoder) value(n *yaml.Node) any {
	switch n.Kind {
	case yaml.MappingNode:
		m := make(map[string]any, len(n.Content)/2)
		for _, f := range d.fields(n) {
			m[f.key.Value] = d.value(f.value)
		}
		return m
	case yaml.SequenceNode:
		list := make([]any, 0, len(n.Content))
		for _, item := range n.Content {
			list = append(list, d.value(item))
		}
		return list
	}
	switch n.Tag {
	case "!!null":
		return nil
	case "!!bool":
		return strings.EqualFold(n.Value, "true")
	case "!!int", "!!float":
		if x, err := strconv.ParseFloat(n.Value, 64); err == nil && x-x == 0 { // JSON has no infinity
			return x
		}
	}
	return n.Value
}

// text is the text of a good key, or "".
func (d *decoder) text(n *yaml.Node, name string) string {
	if v := d.get(n, name); v != nil {
		return v.Value
	}
	return ""
}

func modeOf(n *yaml.Node) merlon.Mode {
	if n.Value == "shadow" {
		return merlon.Shadow
	}
	return merlon.Enforce
}

func texts(words []word) []string {
	var out []string
	for _, w := range words {
		out = append(out, w.text)
	}
	return out
}
