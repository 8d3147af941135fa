package learn

import (
	"slices"
	"strings"

	"go.yaml.in/yaml/v4"

	"merlon"
)

// kubeService is a Service: a name for the pods that its selector chooses.
type kubeService struct {
	name, namespace string
	pos             merlon.Pos
	selector        map[string]string
	ports           []port
	external        bool // LoadBalancer or NodePort
	target          *service
}

// ingress is a rule that leads a host from the outside to a Service.
type ingress struct {
	namespace, host, service string
	pos                      merlon.Pos
}

// manifest reads one Kubernetes object.
func (s *scan) manifest(name string, doc *yaml.Node, depth int) {
	meta := s.get(doc, "metadata")
	called, namespace := s.text(s.get(meta, "name")), s.text(s.get(meta, "namespace"))
	if namespace == "" {
		namespace = "default"
	}
	kind := s.text(s.get(doc, "kind"))
	if kind == "List" && depth == 0 {
		for _, item := range s.items(s.get(doc, "items")) {
			s.manifest(name, item, depth+1)
		}
		return
	}
	if called == "" {
		return
	}
	pos := s.at(name, s.get(meta, "name"))
	spec := s.get(doc, "spec")
	switch kind {
	case "Deployment", "StatefulSet", "DaemonSet":
		s.used(name)
		if svc := s.service("namespace "+namespace, called, pos); svc != nil {
			svc.zone = namespace
			svc.labels = s.strings(s.get(spec, "template", "metadata", "labels"))
			s.pod(name, svc, s.get(spec, "template", "spec"))
		}
	case "Service":
		s.used(name)
		k := kubeService{name: called, namespace: namespace, pos: pos, selector: s.strings(s.get(spec, "selector"))}
		t := s.text(s.get(spec, "type"))
		k.external = t == "LoadBalancer" || t == "NodePort"
		var list service
		for _, p := range s.items(s.get(spec, "ports")) {
			if n := s.get(p, "port"); n != nil {
				list.listen(s.text(n), s.at(name, n))
			}
		}
		k.ports = list.ports
		if len(s.kube) < maxServices {
			s.kube = append(s.kube, k)
		}
	case "Ingress":
		s.used(name)
		s.ingress(name, namespace, spec)
	case "ServiceAccount":
		s.used(name)
	}
}

func (s *scan) strings(n *yaml.Node) map[string]string {
	m := map[string]string{}
	s.fields(n, 0, func(k, v *yaml.Node) bool {
		if _, there := m[k.Value]; !there {
			m[k.Value] = s.text(v)
		}
		return true
	})
	return m
}

func (s *scan) pod(name string, svc *service, spec *yaml.Node) {
	if n := s.get(spec, "serviceAccountName"); n != nil {
		svc.account = s.at(name, n)
	}
	for _, c := range s.items(s.get(spec, "containers")) {
		if n := s.get(c, "image"); n != nil && svc.image == "" {
			svc.image, svc.imagePos = s.text(n), s.at(name, n)
		}
		for _, e := range s.items(s.get(c, "env")) {
			if n := s.get(e, "value"); n != nil {
				svc.settings = append(svc.settings, setting{s.at(name, n), s.text(s.get(e, "name")), s.text(n)})
			}
		}
		for _, key := range []string{"command", "args"} {
			svc.settings = append(svc.settings, s.arguments(name, key, s.get(c, key))...)
		}
	}
}

func (s *scan) ingress(name, namespace string, spec *yaml.Node) {
	for _, rule := range s.items(s.get(spec, "rules")) {
		host := s.text(s.get(rule, "host"))
		for _, p := range s.items(s.get(rule, "http", "paths")) {
			if n := s.get(p, "backend", "service", "name"); n != nil {
				s.ingresses = append(s.ingresses, ingress{namespace, host, s.text(n), s.at(name, n)})
			}
		}
	}
	if n := s.get(spec, "defaultBackend", "service", "name"); n != nil {
		s.ingresses = append(s.ingresses, ingress{namespace, "", s.text(n), s.at(name, n)})
	}
}

// bindKube gives each Service and ingress the workload behind it.
func (s *scan) bindKube() {
	for i := range s.kube {
		k := &s.kube[i]
		for _, svc := range s.services {
			if slices.Contains(svc.scopes, "namespace "+k.namespace) && chooses(k.selector, svc.labels) {
				k.target = svc
				break
			}
		}
		if k.target == nil {
			s.note(k.pos, "service %q chooses no workload that was found", k.name)
			continue
		}
		t := k.target
		if t.host == "" {
			t.host = strings.Join([]string{k.name, k.namespace, "svc", "cluster", "local"}, ".")
			t.ports = k.ports
		}
		if k.external {
			t.exposed = append(t.exposed, proof{k.pos, "its Service is open to the outside"})
		}
	}
	s.index()
	for _, in := range s.ingresses {
		if t := s.resolve("namespace "+in.namespace, in.service); t != nil {
			text := "an ingress leads to it"
			if in.host != "" {
				text += " from " + clean(in.host)
			}
			t.exposed = append(t.exposed, proof{in.pos, text})
		} else {
			s.note(in.pos, "the ingress leads to %q, which was not found", in.service)
		}
	}
}

func chooses(selector, labels map[string]string) bool {
	for k, v := range selector {
		if have, ok := labels[k]; !ok || have != v {
			return false
		}
	}
	return len(selector) > 0
}
