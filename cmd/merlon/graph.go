package main

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"merlon"
	"merlon/policy"
)

func newGraph(u *ui) *cobra.Command {
	var format string
	c := &cobra.Command{
		Use:               "graph [DIR]",
		Short:             "draw who may call whom: as text, Mermaid or DOT",
		Args:              takes(0, 1),
		ValidArgsFunction: completeDir(0),
		RunE: func(_ *cobra.Command, args []string) error {
			dir := dirArg(args, 0)
			p, err := u.policyIn(dir)
			if err != nil {
				return err
			}
			arrows := arrowsOf(p)
			if u.json {
				u.printJSON(map[string]any{"edges": append([]arrow{}, arrows...)})
				return nil
			}
			if format == "" {
				format = "mermaid"
				if u.terminal {
					format = "text"
				}
			}
			switch format {
			case "text":
				u.graphText(p.Intent(), arrows)
			case "mermaid":
				u.graphMermaid(p.Intent(), arrows)
			case "dot":
				u.graphDOT(p.Intent(), arrows)
			default:
				return usage("%q is no format\nhint: expect text, mermaid or dot", format)
			}
			return nil
		},
	}
	c.Flags().StringVarP(&format, "format", "f", "", "text, mermaid or dot; default is text on a terminal and mermaid in a pipe")
	c.RegisterFlagCompletionFunc("format", cobra.FixedCompletions([]string{"text", "mermaid", "dot"}, cobra.ShellCompDirectiveNoFileComp))
	return c
}

// arrow is all that one caller may do with one service.
type arrow struct {
	Caller      string   `json:"caller"`
	Service     string   `json:"service"`
	Operations  []string `json:"operations"`
	Conditional bool     `json:"conditional,omitzero"` // some only under a condition
	Shadow      bool     `json:"shadow,omitzero"`      // some condition is only recorded
}

// arrowsOf gathers the edges of a policy, callers from outside first.
func arrowsOf(p *policy.Policy) []arrow {
	type pair struct{ caller, service string }
	found := map[pair]*arrow{}
	outside := map[string]bool{}
	for e := range p.Edges() {
		k := pair{e.Caller, e.Service}
		a := found[k]
		if a == nil {
			a = &arrow{Caller: e.Caller, Service: e.Service}
			found[k] = a
		}
		outside[e.Caller] = e.Kind != merlon.Workload
		a.Operations = append(a.Operations, e.Operation)
		a.Conditional = a.Conditional || e.Rule.When != ""
		a.Shadow = a.Shadow || e.Shadow
	}
	all := make([]arrow, 0, len(found))
	for _, a := range found {
		slices.Sort(a.Operations)
		all = append(all, *a)
	}
	slices.SortFunc(all, func(a, b arrow) int {
		if x, y := outside[a.Caller], outside[b.Caller]; x != y {
			if x {
				return -1
			}
			return 1
		}
		return cmp.Or(strings.Compare(a.Caller, b.Caller), strings.Compare(a.Service, b.Service))
	})
	return all
}

func (a *arrow) label(all int) string {
	label := cmp.Or(strings.Join(a.Operations, ", "), merlon.TCP.String()) // which has none
	if len(a.Operations) == all && all > 1 {
		label = "all"
	} else if len(a.Operations) > 4 {
		label = fmt.Sprintf("%s and %d more", strings.Join(a.Operations[:3], ", "), len(a.Operations)-3)
	}
	if a.Shadow {
		return label + " (shadow)"
	}
	if a.Conditional {
		return label + " (when ...)"
	}
	return label
}

func operationsOf(in *merlon.Intent, service string) int {
	if s := in.Service(service); s != nil {
		return len(s.Operations)
	}
	return 0
}

// graphText draws the arrows in columns that line up.
func (u *ui) graphText(in *merlon.Intent, arrows []arrow) {
	var rows [][]string
	last := ""
	for i := range arrows {
		a := &arrows[i]
		caller := u.bold(a.Caller)
		if a.Caller == last {
			caller = ""
		}
		last = a.Caller
		name := a.Service
		if s := in.Service(a.Service); s != nil && s.Zone != "" {
			name += u.dim(" [" + s.Zone + "]")
		}
		rows = append(rows, []string{caller, u.cyan("──▶"), name, u.dim(a.label(operationsOf(in, a.Service)))})
	}
	u.table("", rows)
	for _, s := range in.Services {
		if !slices.ContainsFunc(arrows, func(a arrow) bool { return a.Service == s.Name }) {
			u.printf("%s %s\n", u.bold(s.Name), u.dim("nobody may call it"))
		}
	}
}

func (u *ui) graphMermaid(in *merlon.Intent, arrows []arrow) {
	u.printf("flowchart LR\n")
	zones := map[string][]string{}
	for _, s := range in.Services {
		zones[s.Zone] = append(zones[s.Zone], s.Name)
	}
	for _, name := range outsiders(in, arrows) {
		u.printf("  %s([%s])\n", mermaid(name), name)
	}
	for _, zone := range sortedKeys(zones) {
		indent := "  "
		if zone != "" {
			u.printf("  subgraph zone_%s[%s]\n", mermaid(zone), zone)
			indent = "    "
		}
		for _, name := range zones[zone] {
			u.printf("%s%s[%s]\n", indent, mermaid(name), name)
		}
		if zone != "" {
			u.printf("  end\n")
		}
	}
	for i := range arrows {
		a := &arrows[i]
		line := "-->"
		if a.Conditional {
			line = "-.->"
		}
		u.printf("  %s %s|\"%s\"| %s\n", mermaid(a.Caller), line, a.label(operationsOf(in, a.Service)), mermaid(a.Service))
	}
}

func (u *ui) graphDOT(in *merlon.Intent, arrows []arrow) {
	u.printf("digraph %q {\n  rankdir=LR\n  node [shape=box, fontname=\"sans-serif\"]\n", in.TrustDomain)
	for _, name := range outsiders(in, arrows) {
		u.printf("  %q [shape=oval]\n", name)
	}
	for _, s := range in.Services {
		u.printf("  %q\n", s.Name)
	}
	for i := range arrows {
		a := &arrows[i]
		style := ""
		if a.Conditional {
			style = ", style=dashed"
		}
		u.printf("  %q -> %q [label=%q%s]\n", a.Caller, a.Service, a.label(operationsOf(in, a.Service)), style)
	}
	u.printf("}\n")
}

// outsiders are the callers that are no service.
func outsiders(in *merlon.Intent, arrows []arrow) []string {
	var names []string
	for _, a := range arrows {
		if in.Service(a.Caller) == nil && !slices.Contains(names, a.Caller) {
			names = append(names, a.Caller)
		}
	}
	return names
}

// mermaid is a name as Mermaid takes it.
func mermaid(name string) string { return "n_" + strings.ReplaceAll(name, "-", "_") }

func sortedKeys[V any](m map[string]V) []string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}
