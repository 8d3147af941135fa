package main

import (
	"context"
	"crypto/tls"
	"log/slog"
	"time"
)

// age tells how near its end the gate's SVID is, when nothing has come in its
// place. Who renews in time is never heard of: authorities do so while a third is left at
// least.
type age struct {
	svid *tls.Certificate
	from time.Time // when it came; its certificate is dated back
	said int       // how many of ages
}

var ages = [...]struct {
	left  float64 // of its life, at most
	level slog.Level
	says  string
}{
	{0.25, slog.LevelWarn, "the SVID is not renewed: a quarter of its life is left"},
	{0.1, slog.LevelError, "the SVID is not renewed: a tenth of its life is left"},
	{0, slog.LevelError, "the SVID has expired: every call to and from this gate is denied until there is another"},
}

// look logs each age of the SVID once; svid is nil when it has expired.
func (a *age) look(svid *tls.Certificate, now time.Time, log *slog.Logger) {
	if svid != nil && svid != a.svid {
		if a.said == len(ages) {
			log.Info("the SVID is renewed: calls go through again")
		}
		*a = age{svid: svid, from: now}
	}
	if a.svid == nil {
		return
	}
	ends := a.svid.Leaf.NotAfter
	life, left := ends.Sub(a.from), ends.Sub(now)
	for a.said < len(ages) && left <= time.Duration(ages[a.said].left*float64(life)) {
		if next := a.said + 1; next == len(ages) || left > time.Duration(ages[next].left*float64(life)) {
			log.Log(context.Background(), ages[a.said].level, ages[a.said].says, "ends", ends, "left", max(left, 0).Round(time.Millisecond))
		}
		a.said++
	}
}
