package contract

import (
	"slices"

	"merlon"
	"merlon/contract/route"
)

// parameters adds the parameters of a list to those inherited, of which it
// replaces those of the same name and place (OpenAPI 4.8.10).
func (o *openAPI) parameters(list *node, inherited []merlon.ParamSpec) []merlon.ParamSpec {
	if list == nil || !o.expect(list, array, "parameters") {
		return inherited
	}
	if len(list.items) > route.MaxParams {
		o.report.Errorf(list.pos(), 1, "E0214", "", "a list of parameters has more than %d", route.MaxParams)
		return inherited
	}
	if !o.spend(list, len(list.items)*(1+len(inherited))) {
		return inherited
	}
	own := make([]merlon.ParamSpec, 0, len(list.items)+len(inherited))
	for _, item := range list.items {
		p := o.parameter(item)
		if p == nil {
			continue
		}
		if slices.ContainsFunc(own, func(q merlon.ParamSpec) bool { return q.Name == p.Name && q.In == p.In }) {
			o.report.Errorf(item.pos(), 1, "E0216", "leave one of them", "parameter %s is declared twice", route.Quote(p.Name))
			continue
		}
		own = append(own, *p)
	}
	n := len(own)
	for _, p := range inherited {
		if !slices.ContainsFunc(own[:n], func(q merlon.ParamSpec) bool { return q.Name == p.Name && q.In == p.In }) {
			own = append(own, p)
		}
	}
	return own
}

// parameter reads a parameter or a reference to one. It returns nil for one
// that is wrong or stands neither in path nor query.
func (o *openAPI) parameter(n *node) *merlon.ParamSpec {
	if p, ok := o.params[n]; ok {
		return p
	}
	o.params[n] = nil
	target := o.follow(n)
	if target == nil || !o.expect(target, object, "a parameter") {
		return nil
	}
	p := o.readParameter(target)
	o.params[n] = p
	return p
}

func (o *openAPI) readParameter(n *node) *merlon.ParamSpec {
	name, in := n.get("name"), n.get("in")
	switch {
	case name == nil:
		o.report.Errorf(n.pos(), 1, "E0216", "every parameter has a name and says where it stands", "a parameter has no name")
		return nil
	case in == nil:
		o.report.Errorf(n.pos(), 1, "E0216", "add such as in: query", "parameter %s does not say where it stands", route.Quote(name.text))
		return nil
	case !o.expect(name, text, "the name of a parameter") || !o.checkName(name, "the name of a parameter"):
		return nil
	}
	p := &merlon.ParamSpec{Name: name.text}
	switch in.text {
	case "path":
		p.In, p.Required = merlon.InPath, true
	case "query":
		p.In = merlon.InQuery
		if required := n.get("required"); required != nil && o.expect(required, boolean, "required") {
			p.Required = required.text == "true"
		}
	case "header", "cookie":
		return nil
	default:
		o.report.Errorf(in.pos(), in.width(), "E0216", "expect one of path, query, header, cookie",
			"parameter %s stands in %s, which is no place", route.Quote(p.Name), route.Quote(in.text))
		return nil
	}
	if schema := n.get("schema"); schema != nil {
		p.Type = o.schemaType(schema, 0)
	}
	return p
}

// schemaType is the type of all values that a schema lets in, as far as
// conditions know types. It is String where values of several types may come,
// and for lists and objects: then conditions see the text as it was sent.
func (o *openAPI) schemaType(n *node, depth int) merlon.ParamType {
	if depth > maxChain {
		return merlon.String
	}
	if t, ok := o.types[n]; ok {
		return t
	}
	o.types[n] = merlon.String
	target := o.follow(n)
	if target == nil || target.kind != object { // true and false are schemas too
		return merlon.String
	}
	t := o.ownType(target, depth)
	o.types[n] = t
	return t
}

func (o *openAPI) ownType(n *node, depth int) merlon.ParamType {
	if t := n.get("type"); t != nil {
		return declaredType(t)
	}
	// Each of allOf narrows: one that says a type says it for all.
	if list := n.get("allOf"); list != nil {
		for _, schema := range list.items {
			if t := o.schemaType(schema, depth+1); t != merlon.String {
				return t
			}
		}
	}
	for _, key := range []string{"oneOf", "anyOf"} {
		list := n.get(key)
		if list == nil || len(list.items) == 0 {
			continue
		}
		t := o.schemaType(list.items[0], depth+1)
		for _, schema := range list.items[1:] {
			if o.schemaType(schema, depth+1) != t {
				return merlon.String
			}
		}
		return t
	}
	return merlon.String
}

// declaredType is the type that a schema's type key says. A list of types (3.1)
// counts when but null is beside it.
func declaredType(n *node) merlon.ParamType {
	name := n.text
	for _, item := range n.items {
		switch {
		case item.text == "null":
		case name != "":
			return merlon.String
		default:
			name = item.text
		}
	}
	switch name {
	case "integer":
		return merlon.Integer
	case "number":
		return merlon.Number
	case "boolean":
		return merlon.Boolean
	}
	return merlon.String
}
