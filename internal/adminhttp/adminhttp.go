// Package adminhttp answers those who keep a process running: a few exact paths,
// that show and change nothing of any single call.
package adminhttp

import (
	"fmt"
	"io"
	"log"
	"maps"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"sync/atomic"
	"time"
)

// MaxConns bounds the connections to an admin address: no prober needs more, and
// more would take from those of calls.
const MaxConns = 16

// Answers are what there is, by its path.
type Answers map[string]func(http.ResponseWriter)

// Serve serves answers at l until the server is closed. An idle connection, a slow
// one, or one of many costs what the bounds say.
func Serve(l net.Listener, answers Answers) *http.Server {
	protocols := new(http.Protocols)
	protocols.SetHTTP1(true)
	s := &http.Server{
		Handler:           answers,
		ReadHeaderTimeout: 2 * time.Second,
		ReadTimeout:       2 * time.Second,
		WriteTimeout:      10 * time.Second,
		MaxHeaderBytes:    4 << 10,
		Protocols:         protocols,

		DisableGeneralOptionsHandler: true,
		ErrorLog:                     log.New(io.Discard, "", 0), // what probers send is no concern of ours
	}
	s.SetKeepAlivesEnabled(false)
	go s.Serve(&bounded{l, make(chan struct{}, MaxConns)})
	return s
}

// Loopback reports whether only this host reaches an address that is listened at.
func Loopback(a net.Addr) bool {
	address, err := netip.ParseAddrPort(a.String())
	return err == nil && address.Addr().Unmap().IsLoopback()
}

// ServeHTTP answers by the exact path.
func (a Answers) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	h := w.Header()
	h.Set("Cache-Control", "no-store")
	h.Set("X-Content-Type-Options", "nosniff")
	// A page in a browser on this host can send requests here, and read the
	// answers if its own name leads here (DNS rebinding): names are refused,
	// and what says that it comes from a page.
	if !literal(r.Host) || r.Header.Get("Origin") != "" || r.Header.Get("Sec-Fetch-Site") != "" {
		http.Error(w, "this address is called by its number, and not by pages", http.StatusForbidden)
		return
	}
	answer := a[r.RequestURI] // and not URL.Path, which has been made nice
	if answer == nil {
		http.Error(w, fmt.Sprintf("there is %s", strings.Join(slices.Sorted(maps.Keys(a)), ", ")), http.StatusNotFound)
		return
	}
	if r.Method != http.MethodGet && r.Method != http.MethodHead {
		h.Set("Allow", "GET, HEAD")
		http.Error(w, "this address is only asked", http.StatusMethodNotAllowed)
		return
	}
	answer(w)
}

// literal reports whether a Host is an IP address or localhost, with any port.
func literal(host string) bool {
	if name, _, err := net.SplitHostPort(host); err == nil {
		host = name
	}
	_, err := netip.ParseAddr(strings.Trim(host, "[]"))
	return err == nil || host == "localhost"
}

// bounded is a listener that turns away whom it has no room for.
type bounded struct {
	net.Listener
	room chan struct{}
}

func (b *bounded) Accept() (net.Conn, error) {
	for {
		c, err := b.Listener.Accept()
		if err != nil {
			return nil, err
		}
		select {
		case b.room <- struct{}{}:
			return &guest{Conn: c, leave: b.room}, nil
		default:
			c.Close()
		}
	}
}

// guest gives its room back once.
type guest struct {
	net.Conn
	leave <-chan struct{}
	gone  atomic.Bool
}

func (g *guest) Close() error {
	if !g.gone.Swap(true) {
		<-g.leave
	}
	return g.Conn.Close()
}
