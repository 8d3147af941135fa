package control

import (
	"context"
	"fmt"
	"math/rand/v2"
	"reflect"
	"strings"
	"testing"

	"merlon"
)

// smallChange changes one word of an intent.
func smallChange(r *rand.Rand, text string) string {
	swaps := [][2]string{
		{"[get]", "[put]"}, {"[put]", "[get]"}, {":80\n", ":82\n"}, {"zone: red", "zone: blue"}, {"deny: \"zone:red", "deny: \"zone:blue"},
		{"mode: shadow", "mode: enforce"}, {"mode: enforce", "mode: shadow"}, {"hosts: [t.example]", "hosts: [u.example]"}, {"/x,", "/w,"},
	}
	swap := swaps[r.IntN(len(swaps))]
	at := strings.Count(text, swap[0])
	if at == 0 {
		return text
	}
	parts := strings.SplitN(text, swap[0], 2+r.IntN(at))
	last := len(parts) - 1
	return strings.Join(parts[:last], swap[0]) + swap[1] + parts[last]
}

// randomEstate is an intent over the services a to h, some of them absent.
func randomEstate(r *rand.Rand) string {
	names := strings.Split("abcdefgh", "")
	var present []string
	for _, n := range names {
		if r.IntN(8) > 0 {
			present = append(present, n)
		}
	}
	one := func(of ...string) string { return of[r.IntN(len(of))] }
	var b strings.Builder
	b.WriteString("trustDomain: t.example\n")
	if r.IntN(12) == 0 {
		b.WriteString("mode: shadow\n")
	}
	if r.IntN(12) > 0 {
		b.WriteString("gateway: {hosts: [t.example], certificate: none, listen: \"127.0.0.1:8080\"}\n")
	}
	b.WriteString("services:\n")
	for i, n := range present {
		fmt.Fprintf(&b, "  %s:\n    address: 10.0.0.%d:%s\n", n, i, one("80", "81"))
		if r.IntN(3) > 0 {
			fmt.Fprintf(&b, "    zone: %s\n", one("red", "blue"))
		}
		if r.IntN(10) == 0 {
			b.WriteString("    mode: shadow\n")
		}
		fmt.Fprintf(&b, "    operations: {get: GET /%s/x, put: PUT /%s/%s}\n", n, n, one("x", "y", "z"))
		var callers []string
		for _, caller := range present {
			if r.IntN(3) == 0 {
				callers = append(callers, caller+": ["+one("get", "put")+"]")
			}
		}
		if strings.Contains(b.String(), "gateway:") && r.IntN(3) == 0 {
			callers = append(callers, "anyone: ["+one("get", "put")+"]")
		}
		fmt.Fprintf(&b, "    callers: {%s}\n", strings.Join(callers, ", "))
	}
	if r.IntN(4) > 0 {
		fmt.Fprintf(&b, "guardrails: [{name: g, deny: \"zone:%s -> zone:%s\"}]\n", one("red", "blue"), one("red", "blue"))
	}
	return b.String()
}

// What a change sends to each place is what would be sent to a gate that comes
// new: leaving a place out must never leave it with old orders.
func TestAffectedIsEnough(t *testing.T) {
	t.Parallel()
	for seed := range uint64(6) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			t.Parallel()
			r := rand.New(rand.NewPCG(seed, 7))
			c := open(t, tempState(t), Options{})
			gate(t, c, hello("", 0), nil)
			for i, n := range strings.Split("abcdefgh", "") {
				gate(t, c, hello(n, 9000+i), nil)
			}
			spared, applied := 0, 0
			for range 25 {
				text := randomEstate(r)
				for range 8 { // and some small changes after the big one
					l, ds := loadAny(text)
					if ds.Failed() {
						break // no service is left in a guardrail's zone
					}
					before := c.inForce
					if _, err := c.Apply(context.Background(), l, ApplyOptions{Widen: true}); err != nil {
						t.Fatalf("%v\n%s", err, text)
					}
					if c.inForce != before {
						spared += checkCurrent(t, c, before)
						applied++
					}
					text = smallChange(r, text)
				}
			}
			t.Logf("%d changes, %d places spared", applied, spared)
			if spared < applied || applied < 60 {
				t.Error("too few changes, or nearly all affect every place; the test shows little")
			}
		})
	}
}

// checkCurrent compares what each place has with what it should have, and
// counts the places that the last change left out.
func checkCurrent(t *testing.T, c *Control, before *force) (spared int) {
	t.Helper()
	c.mu.Lock()
	defer c.mu.Unlock()
	places, all := affected(before, c.inForce)
	for p := range c.sessions {
		want, err := c.ordersFor(c.inForce, p)
		if err != nil {
			t.Fatal(err)
		}
		if got := c.current[p]; !reflect.DeepEqual(got, want) {
			t.Fatalf("%v has\n%+v\nand should have\n%+v", p, got, want)
		}
		if !all && !places[p] {
			spared++
		}
	}
	return spared
}

func TestPairs(t *testing.T) {
	t.Parallel()
	list := func(names string) []merlon.Service {
		var all []merlon.Service
		for _, n := range strings.Fields(names) {
			all = append(all, merlon.Service{Name: n})
		}
		return all
	}
	var got []string
	for o, n := range pairs(list("a b d"), list("b c d e")) {
		text := ""
		if o != nil {
			text += o.Name
		}
		text += "|"
		if n != nil {
			text += n.Name
		}
		got = append(got, text)
	}
	if want := "[a| b|b |c d|d |e]"; fmt.Sprint(got) != want {
		t.Errorf("got %v, want %s", got, want)
	}
}
