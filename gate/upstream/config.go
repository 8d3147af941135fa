package upstream

import (
	"context"
	"net"
	"time"
)

// Bounds of RefreshEvery. A failed lookup is tried again after the least.
const (
	minRefresh = time.Second
	maxRefresh = 10 * time.Minute
)

func (cfg Config) withDefaults() Config {
	orDuration(&cfg.ConnectTimeout, 2*time.Second)
	orDuration(&cfg.IdleTimeout, 55*time.Second)
	orDuration(&cfg.MaxAge, time.Hour)
	orDuration(&cfg.EjectBase, 5*time.Second)
	orDuration(&cfg.EjectMax, 5*time.Minute)
	orDuration(&cfg.RefreshEvery, 15*time.Second)
	orInt(&cfg.MaxIdle, 256)
	orInt(&cfg.MaxConns, 1024)
	orInt(&cfg.MaxWaiting, 1024)
	orInt(&cfg.EjectAfter, 5)
	cfg.MaxIdle = min(cfg.MaxIdle, cfg.MaxConns)
	cfg.EjectMax = max(cfg.EjectMax, cfg.EjectBase)
	cfg.RefreshEvery = min(max(cfg.RefreshEvery, minRefresh), maxRefresh)
	cfg.RetryPercent = min(max(cfg.RetryPercent, 0), 100)
	if cfg.Dial == nil {
		dialer := net.Dialer{KeepAlive: 15 * time.Second}
		cfg.Dial = func(ctx context.Context, address string) (net.Conn, error) {
			return dialer.DialContext(ctx, "tcp", address)
		}
	}
	if cfg.Resolver == nil {
		cfg.Resolver = net.DefaultResolver
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.after == nil {
		cfg.after = time.After
	}
	return cfg
}

func orDuration(d *time.Duration, otherwise time.Duration) {
	if *d <= 0 {
		*d = otherwise
	}
}

func orInt(n *int, otherwise int) {
	if *n <= 0 {
		*n = otherwise
	}
}
