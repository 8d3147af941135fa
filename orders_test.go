package merlon

import (
	"bytes"
	"reflect"
	"strings"
	"testing"
	"time"
)

func sampleOrders() *Orders {
	return &Orders{
		Version: OrdersVersion,
		Place:   Place{Service: "orders"},
		Of:      "abc",
		Intent: Intent{TrustDomain: "shop.example", Mode: Shadow, Services: []Service{{
			Name: "orders", Pos: Pos{"merlon.yaml", 3, 5}, Timeout: time.Second,
			Rules: []Rule{{Caller: "web", Operations: []string{"get"}, Limit: &Limit{Count: 3, Window: time.Minute, Per: PerCaller}}},
		}}},
		Endpoints: map[string][]Endpoint{"orders": {{Address: "127.0.0.1:1"}}, "catalog": {{Address: "127.0.0.1:2", ID: "spiffe://shop.example/catalog"}}},
	}
}

func TestOrdersRoundTrip(t *testing.T) {
	t.Parallel()
	o := sampleOrders()
	text, err := o.Encode()
	if err != nil {
		t.Fatal(err)
	}
	got, err := DecodeOrders(text)
	if err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(got, o) {
		t.Errorf("got %+v\nwant %+v", got, o)
	}
	again, err := sampleOrders().Encode()
	if err != nil || !bytes.Equal(again, text) {
		t.Errorf("the same orders have two texts: %v", err)
	}
	other := sampleOrders()
	other.Endpoints["orders"][0].Address = "127.0.0.1:9"
	if _, err := other.Encode(); err != nil || other.Hash == o.Hash || other.Content == o.Content {
		t.Errorf("other orders have the same hash: %v", err)
	}
	moved := sampleOrders()
	moved.Place.Service = "web"
	if err := moved.Seal(); err != nil || moved.Hash == o.Hash || moved.Content != o.Content {
		t.Errorf("orders of another place have the same hash: %v", err)
	}
	under := o.Under("def")
	renamed := sampleOrders()
	renamed.Of = "def"
	if err := renamed.Seal(); err != nil || !reflect.DeepEqual(under, renamed) || under.Hash == o.Hash || o.Of != "abc" {
		t.Errorf("under another intent: %+v, want %+v", under, renamed)
	}
}

func TestDecodeOrdersRefuses(t *testing.T) {
	t.Parallel()
	o := sampleOrders()
	raw, err := o.Encode()
	if err != nil {
		t.Fatal(err)
	}
	text := string(raw)
	for name, tc := range map[string]struct{ text, want string }{
		"nothing":         {"", "cannot be read"},
		"other version":   {strings.Replace(text, `"version":2`, `"version":1`, 1), "version 1; this program reads version 2"},
		"no version":      {`{}`, "version 0"},
		"unknown field":   {strings.Replace(text, `"version":2`, `"version":2,"tarpit":true`, 1), `unknown field "tarpit"`},
		"unknown inside":  {strings.Replace(text, `"caller":"web"`, `"caller":"web","unless":"x"`, 1), `unknown field "unless"`},
		"unknown mode":    {strings.Replace(text, `"mode":"shadow"`, `"mode":"dream"`, 1), `"dream" is no mode`},
		"changed":         {strings.Replace(text, `"caller":"web"`, `"caller":"anyone"`, 1), "their hash is"},
		"field twice":     {strings.Replace(text, `"caller":"web"`, `"caller":"anyone","caller":"web"`, 1), "not in the form"},
		"in capitals":     {strings.Replace(text, `"caller"`, `"CALLER"`, 1), "not in the form"},
		"with more after": {text + `{}`, "cannot be read"},
		"with a space":    {text + ` `, "not in the form"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if tc.text == text {
				t.Fatal("the case changes nothing")
			}
			if _, err := DecodeOrders([]byte(tc.text)); err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("got %v, want an error with %q", err, tc.want)
			}
		})
	}
}

func FuzzDecodeOrders(f *testing.F) {
	text, err := sampleOrders().Encode()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(text)
	f.Add([]byte(`{"version":2}`))
	f.Fuzz(func(t *testing.T, text []byte) {
		o, err := DecodeOrders(text)
		if err != nil {
			return
		}
		again, err := o.Encode()
		if err != nil || !bytes.Equal(again, text) {
			t.Fatalf("accepted %q, which is written %q: %v", text, again, err)
		}
	})
}
