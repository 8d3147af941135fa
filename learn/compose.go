package learn

import (
	"path"
	"slices"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v4"

	"merlon"
)

func isCompose(name string) bool {
	base := path.Base(name)
	return strings.HasPrefix(base, "docker-compose") || strings.HasPrefix(base, "compose")
}

// compose reads a compose file. Files of one directory are one project, as an
// override file is read together with the file it overrides.
func (s *scan) compose(name string, doc *yaml.Node) {
	s.used(name)
	if project := s.text(s.get(doc, "name")); project != "" && s.project == "" {
		s.project = project
	}
	scope := "compose " + path.Dir(name)
	s.fields(s.get(doc, "services"), 0, func(k, v *yaml.Node) bool {
		if len(k.Value) > maxText || k.Value == "" {
			return true
		}
		svc := s.service(scope, k.Value, s.at(name, k))
		if svc == nil {
			return false
		}
		svc.host = k.Value
		s.composeService(name, svc, v)
		return true
	})
}

// service finds or adds the service of this name in a scope; nil when there
// are too many.
func (s *scan) service(scope, called string, pos merlon.Pos) *service {
	if have := s.known[address{scope, called}]; have != nil {
		return have
	}
	if len(s.services) >= maxServices {
		s.note(pos, "not used: there are more than %d services", maxServices)
		return nil
	}
	svc := &service{called: called, pos: pos, scopes: []string{scope}, callers: map[string]*edge{}}
	s.services = append(s.services, svc)
	s.known[address{scope, called}] = svc
	return svc
}

func (s *scan) composeService(name string, svc *service, v *yaml.Node) {
	if n := s.get(v, "image"); n != nil && svc.image == "" {
		svc.image, svc.imagePos = s.text(n), s.at(name, n)
	}
	for _, n := range s.items(s.get(v, "expose")) {
		svc.listen(s.text(n), s.at(name, n))
	}
	for _, n := range s.items(s.get(v, "ports")) {
		s.composePort(name, svc, n)
	}
	svc.settings = append(svc.settings, s.environment(name, s.get(v, "environment"))...)
	for _, key := range []string{"command", "entrypoint"} {
		svc.settings = append(svc.settings, s.arguments(name, key, s.get(v, key))...)
	}
	for _, n := range s.items(s.get(v, "links")) {
		target, _, _ := strings.Cut(s.text(n), ":")
		svc.settings = append(svc.settings, setting{s.at(name, n), "links", "link://" + target})
	}
	depends := s.get(v, "depends_on")
	for _, n := range s.items(depends) {
		svc.starts = append(svc.starts, setting{s.at(name, n), "depends_on", s.text(n)})
	}
	s.fields(depends, 0, func(k, _ *yaml.Node) bool {
		svc.starts = append(svc.starts, setting{s.at(name, k), "depends_on", k.Value})
		return true
	})
}

// composePort reads one entry of ports: "8080:80", "127.0.0.1:8080:80/tcp",
// "80", or a mapping with target and published.
func (s *scan) composePort(name string, svc *service, n *yaml.Node) {
	pos := s.at(name, n)
	target, published := s.text(s.get(n, "target")), s.text(s.get(n, "published"))
	if text := s.text(n); text != "" {
		text, _, _ = strings.Cut(text, "/")
		i := strings.LastIndexByte(text, ':')
		target = text[i+1:]
		if i >= 0 {
			published = text[:i]
		}
	}
	svc.listen(target, pos)
	if published != "" {
		svc.exposed = append(svc.exposed, proof{pos, "a port is published"})
	}
}

// listen adds a port, once.
func (svc *service) listen(text string, pos merlon.Pos) {
	n, err := strconv.Atoi(text)
	if err != nil || n < 1 || n > 65535 || slices.ContainsFunc(svc.ports, func(p port) bool { return p.number == n }) {
		return
	}
	svc.ports = append(svc.ports, port{n, pos})
}

// environment reads a mapping, or a list of NAME=VALUE.
func (s *scan) environment(name string, n *yaml.Node) []setting {
	var list []setting
	for _, item := range s.items(n) {
		key, value, _ := strings.Cut(s.text(item), "=")
		list = append(list, setting{s.at(name, item), key, value})
	}
	s.fields(n, 0, func(k, v *yaml.Node) bool {
		list = append(list, setting{s.at(name, v), k.Value, s.text(v)})
		return true
	})
	return list
}

// arguments reads a command: a list, or one line.
func (s *scan) arguments(name, key string, n *yaml.Node) []setting {
	var list []setting
	for _, item := range s.items(n) {
		list = append(list, setting{s.at(name, item), key, s.text(item)})
	}
	if text := s.text(n); text != "" {
		list = append(list, setting{s.at(name, n), key, text})
	}
	return list
}
