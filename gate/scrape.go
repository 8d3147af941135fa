package gate

import (
	"cmp"
	"crypto/tls"
	"io"
	"maps"
	"slices"
	"strconv"
	"time"

	"merlon/gate/upstream"
	"merlon/internal/exposition"
	"merlon/internal/otlp"
	"merlon/record"
)

// MetricsType is the content type of what WriteMetrics writes.
const MetricsType = exposition.ContentType

// WriteMetrics writes the gate's metrics, and those of its process, in the text
// format of Prometheus. docs/telemetry.md says what each of them means.
func (g *Gate) WriteMetrics(w io.Writer) error { return WriteMetrics(w, g) }

// WriteMetrics writes the metrics of gates in one process: the label "place"
// tells one from the other.
func WriteMetrics(w io.Writer, gates ...*Gate) error {
	out := exposition.New(w)
	looks := make([]*look, len(gates))
	for i, g := range gates {
		looks[i] = g.look()
	}
	for _, f := range families {
		out.Family(f.name, f.kind, f.help)
		for _, l := range looks {
			f.write(l, out)
		}
	}
	out.Build("merlon_build_info")
	out.Process()
	out.Runtime()
	return out.Flush()
}

// look is what a gate is like at one instant.
type look struct {
	g        *Gate
	now      time.Time
	force    *force // nil before the first orders
	place    exposition.Labels
	cells    []*cell
	conns    [positions]uint64
	streams  [positions]uint64
	tunnels  [positions]uint64
	clusters []clusterLook
	records  record.Stats
	spans    otlp.Stats
}

// clusterLook is all endpoints of a service together.
type clusterLook struct {
	labels  exposition.Labels
	cluster *upstream.Cluster

	endpoints, ejected  uint64
	open, idle, waiting uint64
}

func (g *Gate) look() *look {
	l := &look{g: g, now: time.Now(), force: g.force.Load(), place: g.metrics.place, records: g.cfg.Records.Stats(), spans: g.spans.Stats()}
	l.cells = g.metrics.all()
	g.open.eachConn(func(c *conn) {
		if c.lane {
			l.streams[c.at]++
		} else {
			l.conns[c.at]++
		}
	})
	for _, t := range g.tunnels.all() {
		l.tunnels[t.at]++
	}
	if l.force == nil {
		return l
	}
	for _, name := range slices.Sorted(maps.Keys(l.force.clusters)) {
		c := clusterLook{labels: l.place.With("service", name), cluster: l.force.clusters[name]}
		for _, s := range c.cluster.Status() {
			c.endpoints++
			if s.Ejected > 0 {
				c.ejected++
			}
			c.open += uint64(s.Open)
			c.idle += uint64(s.Idle)
			c.waiting += uint64(s.Waiting)
		}
		l.clusters = append(l.clusters, c)
	}
	return l
}

// all is every cell, in order.
func (m *metrics) all() []*cell {
	m.mu.Lock()
	cells := slices.Collect(maps.Values(m.cells))
	m.mu.Unlock()
	slices.SortFunc(cells, func(a, b *cell) int {
		return cmp.Or(cmp.Compare(a.name.at, b.name.at), cmp.Compare(a.name.service, b.name.service),
			cmp.Compare(a.name.operation, b.name.operation), cmp.Compare(a.name.caller, b.name.caller))
	})
	return cells
}

// families are the metrics of a gate, in the order in which they are written.
var families = [...]struct {
	name  string
	kind  exposition.Kind
	help  string
	write func(*look, *exposition.Writer)
}{
	{"merlon_requests_total", exposition.Counter, "Calls that ended, by operation, caller, verdict, reason and class of the status.", (*look).requests},
	{"merlon_request_duration_seconds", exposition.Histogram, "How long allowed calls took, from the head of the request to the end of the answer.", (*look).latency},
	{"merlon_request_body_bytes_total", exposition.Counter, "Bytes of the bodies of requests of allowed calls.", (*look).bytesIn},
	{"merlon_response_body_bytes_total", exposition.Counter, "Bytes of the bodies of answers to allowed calls.", (*look).bytesOut},

	{"merlon_connections", exposition.Gauge, "Connections of clients that are open.", func(l *look, w *exposition.Writer) {
		l.each(w, func(at Position) uint64 { return l.conns[at] })
	}},
	{"merlon_streams", exposition.Gauge, "Streams of HTTP/2 with a call in progress.", func(l *look, w *exposition.Writer) {
		l.each(w, func(at Position) uint64 { return l.streams[at] })
	}},
	{"merlon_tunnels", exposition.Gauge, "Tunnels that are open: WebSockets, and connections to services that speak TCP.", func(l *look, w *exposition.Writer) {
		l.each(w, func(at Position) uint64 { return l.tunnels[at] })
	}},
	{"merlon_tunnels_ended_total", exposition.Counter, "Tunnels that have ended.", (*look).tunnelsEnded},
	{"merlon_connections_accepted_total", exposition.Counter, "Connections of clients that came.", func(l *look, w *exposition.Writer) {
		l.each(w, func(at Position) uint64 { return l.g.metrics.accepted[at].Load() })
	}},
	{"merlon_handshakes_failed_total", exposition.Counter, "Connections whose client did not prove who it is, or gave up.", func(l *look, w *exposition.Writer) {
		l.each(w, func(at Position) uint64 { return l.g.metrics.handshakes[at].Load() })
	}},
	{"merlon_connections_refused_total", exposition.Counter, "Connections for which there was no room.", func(l *look, w *exposition.Writer) {
		w.Count(l.place, l.g.metrics.turnedAway.Load())
	}},
	{"merlon_defects_total", exposition.Counter, "Connections that ended by a defect of the gate; the log has the stack.", func(l *look, w *exposition.Writer) {
		w.Count(l.place, l.g.metrics.defects.Load())
	}},

	{"merlon_upstream_endpoints", exposition.Gauge, "Addresses at which a service is known.", func(l *look, w *exposition.Writer) {
		l.upstream(w, func(c *clusterLook) uint64 { return c.endpoints })
	}},
	{"merlon_upstream_endpoints_ejected", exposition.Gauge, "Of these, the ones that get no calls because they failed.", func(l *look, w *exposition.Writer) {
		l.upstream(w, func(c *clusterLook) uint64 { return c.ejected })
	}},
	{"merlon_upstream_ejections_total", exposition.Counter, "How often an endpoint was taken out of use.", func(l *look, w *exposition.Writer) {
		l.upstream(w, func(c *clusterLook) uint64 { return c.cluster.Counts().Ejections })
	}},
	{"merlon_upstream_connects_total", exposition.Counter, "Connections that were made to a service.", func(l *look, w *exposition.Writer) {
		l.upstream(w, func(c *clusterLook) uint64 { return c.cluster.Counts().Connects })
	}},
	{"merlon_upstream_connects_failed_total", exposition.Counter, "Connections that could not be made.", func(l *look, w *exposition.Writer) {
		l.upstream(w, func(c *clusterLook) uint64 { return c.cluster.Counts().Failed })
	}},
	{"merlon_upstream_connections", exposition.Gauge, "Connections to a service that are open, with those being made.", func(l *look, w *exposition.Writer) {
		l.upstream(w, func(c *clusterLook) uint64 { return c.open })
	}},
	{"merlon_upstream_connections_idle", exposition.Gauge, "Of these, the ones that no call uses.", func(l *look, w *exposition.Writer) {
		l.upstream(w, func(c *clusterLook) uint64 { return c.idle })
	}},
	{"merlon_upstream_waiting", exposition.Gauge, "Calls that wait for a connection to come free.", func(l *look, w *exposition.Writer) {
		l.upstream(w, func(c *clusterLook) uint64 { return c.waiting })
	}},

	{"merlon_orders_info", exposition.Gauge, "The orders in force and the intent that they come from, by their hashes; always 1.", (*look).ordersInfo},
	{"merlon_orders_in_force_timestamp_seconds", exposition.Gauge, "When they came into force, in seconds since 1970.", (*look).ordersSince},
	{"merlon_orders_swaps_total", exposition.Counter, "Orders that were put in force, and that were refused.", func(l *look, w *exposition.Writer) {
		w.Count(l.place.With("result", "in_force"), l.g.metrics.swaps.Load())
		w.Count(l.place.With("result", "refused"), l.g.metrics.refused.Load())
	}},
	{"merlon_certificate_age_seconds", exposition.Gauge, "How long ago a certificate began to hold.", func(l *look, w *exposition.Writer) {
		l.certificates(w, func(c *tls.Certificate) time.Duration { return l.now.Sub(c.Leaf.NotBefore) })
	}},
	{"merlon_certificate_expires_in_seconds", exposition.Gauge, "How long it still holds; negative when it does not.", func(l *look, w *exposition.Writer) {
		l.certificates(w, func(c *tls.Certificate) time.Duration { return c.Leaf.NotAfter.Sub(l.now) })
	}},

	{"merlon_records_total", exposition.Counter, "Records in the chain: the sequence number of the last.", func(l *look, w *exposition.Writer) { w.Count(l.place, l.records.Added) }},
	{"merlon_records_synced_total", exposition.Counter, "Of these, the ones that are known to be on the disk.", func(l *look, w *exposition.Writer) { w.Count(l.place, l.records.Synced) }},
	{"merlon_records_refused_total", exposition.Counter, "Records that could not be kept; their calls were refused.", func(l *look, w *exposition.Writer) { w.Count(l.place, l.records.Refused) }},
	{"merlon_records_buffered_bytes", exposition.Gauge, "Records in memory, not yet written.", func(l *look, w *exposition.Writer) { w.Count(l.place, uint64(l.records.Buffered)) }},
	{"merlon_records_failing", exposition.Gauge, "1 while nothing can be written: every call is refused.", func(l *look, w *exposition.Writer) {
		failing := uint64(0)
		if l.records.Err != nil {
			failing = 1
		}
		w.Count(l.place, failing)
	}},

	{"merlon_spans_exported_total", exposition.Counter, "Spans that the collector has taken.", func(l *look, w *exposition.Writer) { w.Count(l.place, l.spans.Exported) }},
	{"merlon_spans_dropped_total", exposition.Counter, "Spans that were not: for want of room, for want of an answer, or because the collector rejected them.", func(l *look, w *exposition.Writer) {
		w.Count(l.place.With("why", "full"), l.spans.Full)
		w.Count(l.place.With("why", "lost"), l.spans.Lost)
		w.Count(l.place.With("why", "rejected"), l.spans.Rejected)
	}},
	{"merlon_spans_attempts_failed_total", exposition.Counter, "Attempts to send spans that failed.", func(l *look, w *exposition.Writer) { w.Count(l.place, l.spans.Failures) }},
	{"merlon_spans_queued", exposition.Gauge, "Spans that wait to be sent.", func(l *look, w *exposition.Writer) { w.Count(l.place, l.spans.Queued) }},
}

// each writes one series for every position.
func (l *look) each(w *exposition.Writer, value func(Position) uint64) {
	for at := range Position(positions) {
		w.Count(l.place.With("at", at.String()), value(at))
	}
}

// upstream writes one series for every service that is called.
func (l *look) upstream(w *exposition.Writer, value func(*clusterLook) uint64) {
	for i := range l.clusters {
		w.Count(l.clusters[i].labels, value(&l.clusters[i]))
	}
}

func (l *look) requests(w *exposition.Writer) {
	for _, c := range l.cells {
		for class := range len(stripe{}.answered) {
			if n := c.sum(func(p *stripe) uint64 { return p.answered[class].Load() }); n > 0 {
				w.Count(c.labels.With("verdict", "allow", "reason", "allowed", "status", classText(class)), n)
			}
		}
		if all := c.outcomes.Load(); all != nil {
			for _, o := range *all {
				w.Count(c.labels.With("verdict", o.verdict, "reason", string(o.reason), "status", classText(o.class)), o.n.Load())
			}
		}
	}
}

func (l *look) tunnelsEnded(w *exposition.Writer) {
	if all := l.g.metrics.ended.outcomes.Load(); all != nil {
		for _, o := range *all {
			w.Count(l.place.With("verdict", o.verdict, "reason", string(o.reason)), o.n.Load())
		}
	}
}

// classText is the class of a status as people write it; "none" when the call
// had no answer.
func classText(class int) string {
	if class == 0 {
		return "none"
	}
	return strconv.Itoa(class) + "xx"
}

func (l *look) latency(w *exposition.Writer) {
	seconds := make([]float64, len(durations))
	for i, d := range durations {
		seconds[i] = float64(d) / 1e9
	}
	counts := make([]uint64, len(durations)+1)
	for _, c := range l.cells {
		total := uint64(0)
		for i := range counts {
			counts[i] = c.sum(func(p *stripe) uint64 { return p.buckets[i].Load() })
			total += counts[i]
		}
		if total > 0 {
			w.Distribution(c.labels, seconds, counts, float64(c.sum(func(p *stripe) uint64 { return p.nanos.Load() }))/1e9)
		}
	}
}

func (l *look) bytesIn(w *exposition.Writer) {
	l.bytes(w, func(p *stripe) uint64 { return p.in.Load() })
}

func (l *look) bytesOut(w *exposition.Writer) {
	l.bytes(w, func(p *stripe) uint64 { return p.out.Load() })
}

func (l *look) bytes(w *exposition.Writer, value func(*stripe) uint64) {
	for _, c := range l.cells {
		if n := c.sum(value); n > 0 {
			w.Count(c.labels, n)
		}
	}
}

// sum adds up what the stripes of a cell say.
func (to *cell) sum(value func(*stripe) uint64) (n uint64) {
	for i := range to.stripes {
		if p := to.stripes[i].Load(); p != nil {
			n += value(p)
		}
	}
	return n
}

func (l *look) ordersInfo(w *exposition.Writer) {
	if f := l.force; f != nil {
		w.Count(l.place.With("orders", f.orders.Hash, "intent", f.orders.Of, "version", strconv.Itoa(f.orders.Version)), 1)
	}
}

func (l *look) ordersSince(w *exposition.Writer) {
	if f := l.force; f != nil {
		w.Value(l.place, float64(f.since.UnixMilli())/1e3)
	}
}

// certificates writes one series for each certificate that the gate shows: its
// SVID, and at the edge that of the gateway's hosts.
func (l *look) certificates(w *exposition.Writer, value func(*tls.Certificate) time.Duration) {
	write := func(of string, c *tls.Certificate) {
		if c != nil && c.Leaf != nil {
			w.Value(l.place.With("certificate", of), value(c).Seconds())
		}
	}
	write("svid", l.g.cfg.Source.SVID())
	if f := l.force; f != nil && f.edgeTLS != nil && len(f.edgeTLS.Certificates) > 0 {
		write("gateway", &f.edgeTLS.Certificates[0])
	}
}
