package capture

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"slices"
)

// The table is written and read in nft's JSON (libnftables-json(5)), in the very
// form in which nft lists it, so that what is there can be compared with what was
// asked for.

type object = map[string]any

// The numbers that nft -n lists, from linux/in.h, linux/rtnetlink.h and
// linux/netfilter/nf_conntrack_tuple_common.h.
const (
	protocolTCP = 6
	typeLocal   = 2
	reply       = 1
)

func match(op string, left object, right any) object {
	return object{"match": object{"op": op, "left": left, "right": right}}
}

func meta(key string) object { return object{"meta": object{"key": key}} }

func field(protocol, name string) object {
	return object{"payload": object{"protocol": protocol, "field": name}}
}

func to(ports []uint16) object {
	ports = slices.Compact(slices.Sorted(slices.Values(ports)))
	var right any = object{"set": ports}
	if len(ports) == 1 {
		right = ports[0] // as nft lists it
	}
	return match("==", field("tcp", "dport"), right)
}

var (
	giveBack = object{"return": nil}
	refuse   = object{"reject": object{"type": "tcp reset"}}
	counter  = object{"counter": nil}
	isTCP    = match("==", meta("l4proto"), protocolTCP)
	notTCP   = match("!=", meta("l4proto"), protocolTCP)
	local    = match("==", object{"fib": object{"result": "type", "flags": []string{"daddr"}}}, typeLocal)
	fromHere = match("==", meta("iifname"), "lo")
)

// chain is one chain with its rules.
type chain struct {
	name, kind, hook string
	priority         int
	rules            [][]object
}

// chains are the table.
func (r *Rules) chains() []chain {
	gate := match("==", meta("skuid"), r.Gate)
	redirect := object{"redirect": object{"port": r.Port}}

	// What opens a connection is brought to the gate, whose own connections go
	// where they go: otherwise they would come back to it for ever.
	capture := chain{name: "capture", kind: "nat", hook: "output", priority: -100}
	capture.add(notTCP, giveBack) // UDP, and so most of DNS, is left alone
	capture.add(gate, giveBack)
	if len(r.Loopback) > 0 {
		capture.add(match("==", field("ip", "daddr"), object{"prefix": object{"addr": "127.0.0.0", "len": 8}}), to(r.Loopback), counter, redirect)
		capture.add(match("==", field("ip6", "daddr"), "::1"), to(r.Loopback), counter, redirect)
	}
	capture.add(local, giveBack)
	r.resolve(&capture)
	capture.add(isTCP, counter, redirect)

	// What was not brought to it, being open already, or because another table
	// came first, or a family of addresses is not translated, goes nowhere.
	held := chain{name: "held", kind: "filter", hook: "output"}
	held.add(notTCP, giveBack)
	held.add(gate, giveBack)
	if len(r.Service) > 0 {
		held.add(to(r.Service), local, refuse)
	}
	held.add(local, giveBack) // the gate's port, by now
	held.add(match("==", object{"ct": object{"key": "direction"}}, reply), giveBack)
	r.resolve(&held)
	held.add(isTCP, counter, refuse)

	service := chain{name: "service", kind: "filter", hook: "input"}
	service.add(fromHere, giveBack)
	if len(r.Service) > 0 {
		service.add(to(r.Service), refuse)
	}
	return []chain{capture, held, service}
}

// resolve lets name servers be asked over TCP.
func (r *Rules) resolve(c *chain) {
	addrs := slices.Clone(r.Resolvers)
	for i := range addrs {
		addrs[i] = addrs[i].Unmap()
	}
	slices.SortFunc(addrs, netip.Addr.Compare)
	for _, a := range slices.Compact(addrs) {
		protocol := "ip6"
		if a.Is4() {
			protocol = "ip"
		}
		c.add(match("==", field(protocol, "daddr"), a.String()), to([]uint16{53}), giveBack)
	}
}

func (c *chain) add(statements ...object) { c.rules = append(c.rules, statements) }

// objects are the table as nft lists it: first it, then its chains, then rules.
func (r *Rules) objects() []object {
	all := []object{{"table": object{"family": "inet", "name": Table}}}
	var rules []object
	for _, c := range r.chains() {
		all = append(all, object{"chain": object{"family": "inet", "table": Table, "name": c.name,
			"type": c.kind, "hook": c.hook, "prio": c.priority, "policy": "accept"}})
		for _, statements := range c.rules {
			rules = append(rules, object{"rule": object{"family": "inet", "table": Table, "chain": c.name, "expr": statements}})
		}
	}
	return append(all, rules...)
}

// transaction replaces the table, whatever it was, in one step.
func (r *Rules) transaction() ([]byte, error) {
	commands := removal()
	for _, o := range r.objects() {
		commands = append(commands, object{"add": o})
	}
	return json.Marshal(object{"nftables": commands})
}

// removal removes the table, whether it is there or not.
func removal() []object {
	table := object{"table": object{"family": "inet", "name": Table}}
	return []object{{"add": table}, {"delete": table}}
}

// listed is what nft lists of a table.
type listed struct {
	objects  []json.RawMessage
	captured uint64 // connections that were brought to the gate
}

// read reads what nft lists, in the form in which it was written: without what
// the kernel adds.
func read(text []byte) (l listed, err error) {
	var list struct {
		Objects []map[string]any `json:"nftables"`
	}
	dec := json.NewDecoder(bytes.NewReader(text))
	dec.UseNumber()
	if err := dec.Decode(&list); err != nil {
		return l, fmt.Errorf("what nft lists cannot be read: %w", err)
	}
	for _, o := range list.Objects {
		if o["metainfo"] != nil {
			continue
		}
		for _, what := range o {
			if inner, ok := what.(map[string]any); ok {
				delete(inner, "handle")
				l.count(inner)
			}
		}
		one, err := json.Marshal(o)
		if err != nil {
			return l, err
		}
		l.objects = append(l.objects, one)
	}
	return l, nil
}

// count takes the counters out of a rule. Those of the chain capture count
// connections, of which only the first packet is translated.
func (l *listed) count(rule map[string]any) {
	statements, _ := rule["expr"].([]any)
	for _, s := range statements {
		statement, _ := s.(map[string]any)
		c, ok := statement["counter"].(map[string]any)
		if !ok {
			continue
		}
		statement["counter"] = nil
		if n, ok := c["packets"].(json.Number); ok && rule["chain"] == "capture" {
			packets, _ := n.Int64()
			l.captured += uint64(max(packets, 0))
		}
	}
}

// differs says how a table is not what r asks for, and nothing if it is.
func (r *Rules) differs(l listed) error {
	want := r.objects()
	for i, o := range want {
		text, err := json.Marshal(o)
		switch {
		case err != nil:
			return err
		case i >= len(l.objects):
			return fmt.Errorf("there is no %s", text)
		case !bytes.Equal(text, l.objects[i]):
			return fmt.Errorf("there is %.400s\nwhere %s should be", l.objects[i], text)
		}
	}
	if len(l.objects) > len(want) {
		return fmt.Errorf("there is %.400s, which nobody asked for", l.objects[len(want)])
	}
	return nil
}

var errNoTable = errors.New("there is no table inet " + Table + ": nothing is captured")
