package capture

import (
	"encoding/json"
	"net/netip"
	"testing"
)

// TestCheck: rules that would hold nobody are none.
func TestCheck(t *testing.T) {
	t.Parallel()
	for name, r := range map[string]Rules{
		"no port":             {Gate: 1},
		"a gate of root":      {Port: 1},
		"port 0":              {Port: 1, Gate: 1, Service: []uint16{0}},
		"its own port":        {Port: 1, Gate: 1, Loopback: []uint16{1}},
		"the service's":       {Port: 1, Gate: 1, Loopback: []uint16{2}, Service: []uint16{2}},
		"no name server":      {Port: 1, Gate: 1, Resolvers: []netip.Addr{{}}},
		"one with a zone":     {Port: 1, Gate: 1, Resolvers: []netip.Addr{netip.MustParseAddr("fe80::1%eth0")}},
		"every name server":   {Port: 1, Gate: 1, Resolvers: []netip.Addr{netip.IPv4Unspecified()}},
		"more than are meant": {Port: 1, Gate: 1, Service: make([]uint16, 2000)},
	} {
		if r.check() == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

// FuzzRead: nothing that nft might list makes reading it fail badly, and what is
// not the table is never taken for it.
func FuzzRead(f *testing.F) {
	r := Rules{Port: 15001, Gate: 990, Service: []uint16{8080}}
	text, err := json.Marshal(object{"nftables": r.objects()})
	if err != nil {
		f.Fatal(err)
	}
	l, err := read(text)
	if err == nil {
		err = r.differs(l)
	}
	if err != nil {
		f.Fatal(err)
	}
	f.Add(text)
	f.Add([]byte(`{"nftables":[{"rule":{"chain":"capture","handle":3,"expr":[{"counter":{"packets":-1,"bytes":0}}]}}]}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		if l, err := read(b); err == nil && len(l.objects) != len(r.objects()) && r.differs(l) == nil {
			t.Errorf("%s is taken for the table", b)
		}
	})
}
