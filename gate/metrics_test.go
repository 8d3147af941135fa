package gate_test

import (
	"bytes"
	"fmt"
	"io"
	"maps"
	"math"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"

	"merlon"
	"merlon/gate"
)

// exposed is metrics as a scraper sees them: values by series, and what is said
// about families.
type exposed struct {
	text   string
	values map[string]float64
	types  map[string]string // by family
	order  []string          // of the families
}

// scrape reads the metrics of gates and holds them to the format.
func scrape(t testing.TB, gates ...*gate.Gate) exposed {
	t.Helper()
	var buf bytes.Buffer
	if err := gate.WriteMetrics(&buf, gates...); err != nil {
		t.Fatal(err)
	}
	e := exposed{text: buf.String(), values: map[string]float64{}, types: map[string]string{}}
	head := regexp.MustCompile(`^# (HELP|TYPE) ([a-z_]+) (.+)$`)
	line := regexp.MustCompile(`^([a-z_]+)(\{(?:[a-z_]+="(?:[^"\\\n]|\\["\\n])*",?)*\})? (\S+)$`)
	family := ""
	for text := range strings.Lines(e.text) {
		text = strings.TrimSuffix(text, "\n")
		if m := head.FindStringSubmatch(text); m != nil {
			if m[1] == "HELP" {
				family = m[2]
				e.order = append(e.order, family)
				continue
			}
			if _, again := e.types[m[2]]; again || m[2] != family {
				t.Errorf("%q stands twice, or without its help", text)
			}
			e.types[family] = m[3]
			continue
		}
		m := line.FindStringSubmatch(text)
		if m == nil {
			t.Fatalf("not a sample: %q", text)
		}
		name := m[1]
		if e.types[family] == "histogram" {
			name = strings.TrimSuffix(strings.TrimSuffix(strings.TrimSuffix(name, "_bucket"), "_sum"), "_count")
		}
		if name != family {
			t.Errorf("%q stands under %s", text, family)
		}
		v, err := strconv.ParseFloat(m[3], 64)
		if err != nil {
			t.Errorf("%q: %v", text, err)
		}
		if _, again := e.values[m[1]+m[2]]; again {
			t.Errorf("%q stands twice", text)
		}
		e.values[m[1]+m[2]] = v
	}
	return e
}

// sum adds up the series of a family that have all of these labels, written
// name="value".
func (e exposed) sum(family string, labels ...string) (total float64) {
	for series, v := range e.values {
		name, rest, _ := strings.Cut(series, "{")
		if name == family && !slices.ContainsFunc(labels, func(l string) bool { return !strings.Contains("{"+rest, "{"+l) && !strings.Contains(rest, ","+l) }) {
			total += v
		}
	}
	return total
}

// counts waits until a series of a gate has a value: a call is counted when it
// is over, which its client may see before the gate does.
func (e *estate) counts(place merlon.Place, series string, want float64) {
	e.t.Helper()
	var m exposed
	defer func() {
		if e.t.Failed() {
			e.t.Logf("%v has\n%s", place, m.grep(series[:strings.IndexByte(series, '{')]))
		}
	}()
	until(e.t, fmt.Sprintf("%s to be %v", series, want), func() bool {
		m = scrape(e.t, e.gates[place])
		return m.values[series] == want
	})
}

const measured = `
trustDomain: shop.example
gateway:
  hosts: [shop.example]
  certificate: none
services:
  web:
    operations: {page: 'GET /pages/{id}', send: POST /send}
    callers: {anyone: all}
  orders:
    operations: {list: 'GET /orders', make: 'POST /orders'}
    callers: {web: [list]}
`

// TestMetrics: every call is counted once at every gate that it passes, under
// the operation and the caller of the orders.
func TestMetrics(t *testing.T) {
	t.Parallel()
	e := start(t, measured, map[string]http.Handler{"web": echo("web"), "orders": echo("orders")})
	client, web := e.client(), e.as("web")
	for range 3 {
		do(t, client, "GET", "http://shop.example/pages/1")
	}
	do(t, client, "DELETE", "http://shop.example/pages/1")
	do(t, client, "GET", "http://elsewhere.example/")
	do(t, web, "GET", "http://orders/orders")
	do(t, web, "POST", "http://orders/orders")

	edge := e.gates[merlon.Edge]
	for _, want := range []struct {
		of     merlon.Place
		labels string
		n      float64
	}{
		{merlon.Edge, `{place="gateway",at="edge",service="web",operation="page",caller="anyone",verdict="allow",reason="allowed",status="2xx"}`, 3},
		{merlon.Edge, `{place="gateway",at="edge",service="",operation="",caller="anyone",verdict="deny",reason="no_operation",status="4xx"}`, 1},
		{merlon.Edge, `{place="gateway",at="edge",service="",operation="",caller="anyone",verdict="deny",reason="no_service",status="4xx"}`, 1},
		{merlon.Place{Service: "web"}, `{place="web",at="in",service="web",operation="page",caller="anyone",verdict="allow",reason="allowed",status="2xx"}`, 3},
		{merlon.Place{Service: "web"}, `{place="web",at="out",service="orders",operation="list",caller="web",verdict="allow",reason="allowed",status="2xx"}`, 1},
		{merlon.Place{Service: "web"}, `{place="web",at="out",service="orders",operation="make",caller="web",verdict="deny",reason="no_rule",status="4xx"}`, 1},
		{merlon.Place{Service: "orders"}, `{place="orders",at="in",service="orders",operation="list",caller="web",verdict="allow",reason="allowed",status="2xx"}`, 1},
	} {
		e.counts(want.of, "merlon_requests_total"+want.labels, want.n)
	}
	m := scrape(t, edge)
	page := `{place="gateway",at="edge",service="web",operation="page",caller="anyone"`
	if n, all := m.values["merlon_request_duration_seconds_count"+page+"}"], m.values["merlon_request_duration_seconds_bucket"+page+`,le="+Inf"}`]; n != 3 || all != 3 {
		t.Errorf("%v calls were measured, %v in all buckets", n, all)
	}
	if s := m.values["merlon_request_duration_seconds_sum"+page+"}"]; s <= 0 || s > 60 {
		t.Errorf("they took %v s", s)
	}
	if n := m.values["merlon_response_body_bytes_total"+page+"}"]; n < 100 {
		t.Errorf("%v bytes came back", n)
	}
	if n := m.values[`merlon_connections{place="gateway",at="edge"}`]; n < 1 {
		t.Errorf("%v connections", n)
	}
	if n := m.values[`merlon_upstream_connections{place="gateway",service="web"}`]; n < 1 {
		t.Errorf("%v connections to web", n)
	}
	if n := m.sum("merlon_orders_info", `orders="`+edge.Hash()+`"`); n != 1 {
		t.Errorf("the orders in force are not there:\n%s", m.grep("merlon_orders"))
	}
	if n := m.values[`merlon_certificate_expires_in_seconds{place="gateway",certificate="svid"}`]; n <= 0 || n > 3600 {
		t.Errorf("the certificate holds for %v s", n)
	}
	if n := m.values[`merlon_records_total{place="gateway"}`]; n != 5 {
		t.Errorf("%v records", n)
	}
	if m.values["process_resident_memory_bytes"] < 1<<20 && m.values["go_goroutines"] < 5 {
		t.Errorf("the process says nothing of itself:\n%s", m.grep("process"))
	}
}

func (e exposed) grep(prefix string) (found string) {
	for line := range strings.Lines(e.text) {
		if strings.HasPrefix(line, prefix) {
			found += line
		}
	}
	return found
}

// TestMetricsOnSwap: counters go on over new orders, also when an operation goes
// and comes back.
func TestMetricsOnSwap(t *testing.T) {
	t.Parallel()
	e := start(t, measured, map[string]http.Handler{"web": echo("web")})
	client := e.client()
	page := `merlon_requests_total{place="gateway",at="edge",service="web",operation="page",caller="anyone",verdict="allow",reason="allowed",status="2xx"}`
	without := strings.Replace(measured, "page: 'GET /pages/{id}', ", "", 1)
	for i := range 6 {
		if i%2 == 0 {
			e.swap(measured)
			do(t, client, "GET", "http://shop.example/pages/1")
		} else {
			e.swap(without)
			do(t, client, "GET", "http://shop.example/pages/1")
		}
		e.counts(merlon.Edge, page, float64(i/2+1))
	}
	m := scrape(t, e.gates[merlon.Edge])
	if n := m.values[`merlon_orders_swaps_total{place="gateway",result="in_force"}`]; n != 7 {
		t.Errorf("%v swaps", n)
	}
}

// TestMetricsAreBounded: no client can make series, whatever it sends.
func TestMetricsAreBounded(t *testing.T) {
	t.Parallel()
	e := start(t, measured, map[string]http.Handler{"web": echo("web"), "orders": echo("orders")})
	addresses := []string{e.edge, e.out["web"], e.out["orders"]}
	hostile := func(i int) []string {
		return []string{
			fmt.Sprintf("GET /pages/%d HTTP/1.1\r\nHost: shop.example\r\n\r\n", i),
			fmt.Sprintf("GET /none/%d HTTP/1.1\r\nHost: shop.example\r\n\r\n", i),
			fmt.Sprintf("GET / HTTP/1.1\r\nHost: h%d.example\r\n\r\n", i),
			fmt.Sprintf("M%s / HTTP/1.1\r\nHost: shop.example\r\n\r\n", strings.Repeat("X", i%18)),
			fmt.Sprintf("GET /pages/1?a=%d HTTP/1.1\r\nHost: shop.example\r\nMerlon-Caller: c%d\r\nAuthorization: Bearer %d\r\n\r\n", i, i, i),
			fmt.Sprintf("GET /x%d HTTP/1.1\r\nHost: orders\r\n\r\n", i),
			fmt.Sprintf("GET /%%2e%%2e/%d HTTP/1.1\r\nHost: shop.example\r\n\r\n", i),
			fmt.Sprintf("GET /%d HTTP/1.1\r\nHost: shop.example\r\nHost: a%d\r\n\r\n", i, i),
			fmt.Sprintf("nonsense %d\r\n\r\n", i),
			fmt.Sprintf("POST /send HTTP/1.1\r\nHost: shop.example\r\nContent-Length: %d\r\n\r\n", -i),
			"GET /\"\\\n HTTP/1.1\r\nHost: shop.example\r\n\r\n",
		}
	}
	round := func(from, to int) {
		var wg sync.WaitGroup
		for _, address := range addresses {
			wg.Go(func() {
				for i := from; i < to; i++ {
					for _, request := range hostile(i) {
						c := dial(t, address)
						io.WriteString(c, strings.Replace(request, "\r\n\r\n", "\r\nConnection: close\r\n\r\n", 1))
						io.Copy(io.Discard, c)
						c.Close()
					}
				}
			})
		}
		wg.Wait()
	}
	gates := slices.Collect(maps.Values(e.gates))
	round(0, 20)
	before := scrape(t, gates...)
	round(20, 60)
	after := scrape(t, gates...)
	if after.sum("merlon_requests_total") <= before.sum("merlon_requests_total") {
		t.Fatal("nothing was counted")
	}
	for series := range after.values {
		// Which buckets are hit is chance, and all of them are there already.
		if _, known := before.values[series]; !known {
			t.Errorf("a client has made %s", series)
		}
	}
	for _, name := range []string{"h25", "c25", "x25", "M", "none"} {
		if strings.Contains(after.text, `="`+name) {
			t.Errorf("%q has become a label", name)
		}
	}
}

// TestPromtool holds the metrics to what Prometheus itself says of them.
func TestPromtool(t *testing.T) {
	t.Parallel()
	promtool, err := exec.LookPath("promtool")
	if err != nil {
		t.Skip("promtool is not installed: apt-get install prometheus")
	}
	e := start(t, measured, map[string]http.Handler{"web": echo("web"), "orders": echo("orders")})
	do(t, e.client(), "GET", "http://shop.example/pages/1")
	do(t, e.as("web"), "GET", "http://orders/orders")
	do(t, e.as("web"), "POST", "http://orders/orders")
	cmd := exec.Command(promtool, "check", "metrics")
	cmd.Stdin = strings.NewReader(scrape(t, slices.Collect(maps.Values(e.gates))...).text)
	if out, err := cmd.CombinedOutput(); err != nil || len(out) > 0 {
		t.Errorf("promtool: %v\n%s", err, out)
	}
	// What the document asks in PromQL can be asked.
	rules := "groups:\n- name: telemetry\n  rules:\n"
	n := 0
	for line := range strings.Lines(block(t, "../docs/telemetry.md", "promql", 1)) {
		if !strings.HasPrefix(line, "#") {
			n++
			rules += fmt.Sprintf("  - record: doc:%d\n    expr: %q\n", n, strings.TrimSpace(line))
		}
	}
	name := filepath.Join(t.TempDir(), "rules.yaml")
	if err := os.WriteFile(name, []byte(rules), 0o644); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command(promtool, "check", "rules", name).CombinedOutput(); err != nil || n < 5 {
		t.Errorf("promtool: %v, %d rules\n%s", err, n, out)
	}
}

// TestMetricsAreDocumented holds docs/telemetry.md to what a gate writes: every
// family, in its order, with its type.
func TestMetricsAreDocumented(t *testing.T) {
	t.Parallel()
	doc, err := os.ReadFile("../docs/telemetry.md")
	if err != nil {
		t.Fatal(err)
	}
	e := start(t, measured, nil)
	m := scrape(t, e.gates[merlon.Edge])
	var said []string
	for _, row := range regexp.MustCompile("(?m)^\\| `([a-z_]+)` \\| (counter|gauge|histogram) \\| .+ \\| .+ \\|$").FindAllStringSubmatch(string(doc), -1) {
		said = append(said, row[1])
		if m.types[row[1]] != row[2] {
			t.Errorf("docs/telemetry.md says that %s is a %s; it is a %q", row[1], row[2], m.types[row[1]])
		}
	}
	if !slices.Equal(said, m.order) {
		t.Errorf("docs/telemetry.md lists\n%s\na gate writes\n%s", strings.Join(said, "\n"), strings.Join(m.order, "\n"))
	}
}

// TestMetricsMeanwhile: a scrape sees counters that only grow, whatever happens
// at the same time.
func TestMetricsMeanwhile(t *testing.T) {
	t.Parallel()
	e := start(t, measured, map[string]http.Handler{"web": echo("web")})
	stop := make(chan struct{})
	var wg sync.WaitGroup
	for range 4 {
		client := e.client()
		wg.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
					do(t, client, "GET", "http://shop.example/pages/1")
				}
			}
		})
	}
	last := map[string]float64{}
	for i := range 30 {
		if i%3 == 0 {
			e.swap(measured)
		}
		m := scrape(t, e.gates[merlon.Edge])
		for series, v := range m.values {
			family, _, _ := strings.Cut(series, "{")
			if (strings.HasSuffix(family, "_total") || strings.HasSuffix(family, "_count") || strings.HasSuffix(family, "_bucket")) && v < last[series] {
				t.Errorf("%s went from %v to %v", series, last[series], v)
			}
			if math.IsNaN(v) {
				t.Errorf("%s is no number", series)
			}
			last[series] = v
		}
	}
	close(stop)
	wg.Wait()
}

// TestTunnelMetrics: a tunnel is one call, is open while it is, and leaves its
// bytes.
func TestTunnelMetrics(t *testing.T) {
	t.Parallel()
	e := startTCP(t, nil)
	place := merlon.Place{Service: "web"}
	c, r := e.local()
	expect(t, r, "ledger ready\n")
	const who = `{place="web",at="out",service="ledger",operation="",caller="web"`
	e.counts(place, "merlon_requests_total"+who+`,verdict="allow",reason="allowed",status="2xx"}`, 1)
	e.counts(place, `merlon_tunnels{place="web",at="out"}`, 1)
	io.WriteString(c, "hello")
	c.(*net.TCPConn).CloseWrite()
	expect(t, r, "hellobye")
	e.counts(place, `merlon_tunnels{place="web",at="out"}`, 0)
	e.counts(place, `merlon_tunnels_ended_total{place="web",verdict="allow",reason="allowed"}`, 1)
	e.counts(place, "merlon_request_body_bytes_total"+who+"}", 5)
	e.counts(place, "merlon_response_body_bytes_total"+who+"}", float64(len("ledger ready\nhellobye")))
	e.counts(place, "merlon_requests_total"+who+`,verdict="allow",reason="allowed",status="2xx"}`, 1)
}
