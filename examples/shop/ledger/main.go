// Command ledger keeps the shop's money: entries in an append-only file.
package main

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log"
	"net/http"
	"os"
	"os/signal"
	"sync"
	"syscall"
	"time"
)

// entry moves cents into an account, or out of it when negative.
type entry struct {
	ID      int    `json:"id"`
	Account string `json:"account"`
	Cents   int    `json:"cents"`
	Memo    string `json:"memo"`
}

// ledger is the entries in memory and, with a file, on disk. An entry is
// on disk before it is answered.
type ledger struct {
	mu      sync.Mutex
	entries []entry
	file    *os.File // nil: memory only
}

func main() {
	l, err := open(os.Getenv("LEDGER_FILE"))
	if err != nil {
		log.Fatalf("ledger: %v", err)
	}
	mux := http.NewServeMux()
	mux.HandleFunc("POST /entries", l.post)
	mux.HandleFunc("GET /accounts/{account}", l.account)
	if err := serve(cmp.Or(os.Getenv("LISTEN"), "127.0.0.1:7005"), mux); err != nil {
		log.Fatalf("ledger: %v", err)
	}
}

// open reads the entries of a file, one JSON object a line. A last line
// without its end was never answered and is cut off; any other damage is an
// error.
func open(name string) (*ledger, error) {
	l := &ledger{}
	if name == "" {
		return l, nil
	}
	f, err := os.OpenFile(name, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	var size int64
	lines := bufio.NewReader(f)
	for {
		line, err := lines.ReadBytes('\n')
		if err != nil {
			break // the end, or a torn line
		}
		var e entry
		if err := json.Unmarshal(line, &e); err != nil {
			return nil, fmt.Errorf("%s is damaged at byte %d: %w", name, size, err)
		}
		l.entries = append(l.entries, e)
		size += int64(len(line))
	}
	if err := f.Truncate(size); err != nil {
		return nil, err
	}
	if _, err := f.Seek(size, 0); err != nil {
		return nil, err
	}
	l.file = f
	return l, nil
}

func (l *ledger) add(e entry) (entry, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	e.ID = len(l.entries) + 1
	if l.file != nil {
		var line bytes.Buffer
		if err := json.NewEncoder(&line).Encode(e); err != nil {
			return e, err
		}
		if _, err := l.file.Write(line.Bytes()); err != nil {
			return e, err
		}
		if err := l.file.Sync(); err != nil {
			return e, err
		}
	}
	l.entries = append(l.entries, e)
	return e, nil
}

func (l *ledger) post(w http.ResponseWriter, r *http.Request) {
	var e entry
	if err := json.NewDecoder(http.MaxBytesReader(w, r.Body, 4096)).Decode(&e); err != nil || e.Account == "" || e.Cents == 0 {
		reply(w, http.StatusBadRequest, map[string]string{"error": "an entry needs an account and cents"})
		return
	}
	e, err := l.add(e)
	if err != nil {
		log.Printf("ledger: %v", err)
		reply(w, http.StatusInternalServerError, map[string]string{"error": "the entry could not be kept"})
		return
	}
	reply(w, http.StatusCreated, e)
}

func (l *ledger) account(w http.ResponseWriter, r *http.Request) {
	l.mu.Lock()
	defer l.mu.Unlock()
	sum := 0
	for _, e := range l.entries {
		if e.Account == r.PathValue("account") {
			sum += e.Cents
		}
	}
	reply(w, http.StatusOK, map[string]any{"account": r.PathValue("account"), "cents": sum})
}

func reply(w http.ResponseWriter, status int, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	json.NewEncoder(w).Encode(v)
}

// serve answers on addr until the process is asked to stop, then finishes what
// it has begun.
func serve(addr string, h http.Handler) error {
	srv := &http.Server{Addr: addr, Handler: h, ReadHeaderTimeout: 5 * time.Second}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	drained := make(chan error, 1)
	go func() {
		<-ctx.Done()
		grace, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		drained <- srv.Shutdown(grace)
	}()
	log.Printf("ledger: listening on %s", addr)
	if err := srv.ListenAndServe(); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return <-drained
}
