// Command payments charges cards and books what it took in the ledger.
package main

import (
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
	"strings"
	"sync"
	"syscall"
	"time"
)

type charge struct {
	ID    string `json:"id"`
	Order string `json:"order"`
	Cents int    `json:"cents"`
	Card  string `json:"card,omitempty"` // the last four digits, once charged
}

type payments struct {
	mu      sync.Mutex
	charges map[string]charge
	ledger  string
}

func main() {
	p := &payments{charges: map[string]charge{}, ledger: cmp.Or(os.Getenv("LEDGER_URL"), "http://ledger")}
	mux := http.NewServeMux()
	mux.HandleFunc("POST /charges", p.create)
	mux.HandleFunc("GET /charges/{id}", p.get)
	mux.HandleFunc("GET /payments/status", p.status)
	if err := serve(cmp.Or(os.Getenv("LISTEN"), "127.0.0.1:7004"), mux); err != nil {
		log.Fatalf("payments: %v", err)
	}
}

// create takes a charge. Cards that start with 0 are declined.
func (p *payments) create(w http.ResponseWriter, r *http.Request) {
	var c charge
	if err := json.NewDecoder(http.MaxBytesReader(w, r.Body, 4096)).Decode(&c); err != nil || c.Order == "" || c.Cents <= 0 || len(c.Card) < 12 {
		reply(w, http.StatusBadRequest, map[string]string{"error": "a charge needs an order, cents and a card"})
		return
	}
	if strings.HasPrefix(c.Card, "0") {
		reply(w, http.StatusPaymentRequired, map[string]string{"error": "the card was declined"})
		return
	}
	c.Card = c.Card[len(c.Card)-4:]
	if err := p.book(r.Context(), c); err != nil {
		log.Printf("payments: %v", err)
		reply(w, http.StatusBadGateway, map[string]string{"error": err.Error()})
		return
	}
	p.mu.Lock()
	c.ID = fmt.Sprintf("c%d", len(p.charges)+1)
	p.charges[c.ID] = c
	p.mu.Unlock()
	reply(w, http.StatusCreated, c)
}

func (p *payments) book(ctx context.Context, c charge) error {
	body, err := json.Marshal(map[string]any{"account": "sales", "cents": c.Cents, "memo": "order " + c.Order})
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, p.ledger+"/entries", bytes.NewReader(body))
	if err != nil {
		return err
	}
	req.Header.Set("Content-Type", "application/json")
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		return fmt.Errorf("ledger cannot be reached: %w", err)
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusCreated {
		return fmt.Errorf("ledger answered %s", res.Status)
	}
	return nil
}

func (p *payments) get(w http.ResponseWriter, r *http.Request) {
	p.mu.Lock()
	c, ok := p.charges[r.PathValue("id")]
	p.mu.Unlock()
	if !ok {
		reply(w, http.StatusNotFound, map[string]string{"error": "no such charge"})
		return
	}
	reply(w, http.StatusOK, c)
}

func (p *payments) status(w http.ResponseWriter, r *http.Request) {
	p.mu.Lock()
	n := len(p.charges)
	p.mu.Unlock()
	reply(w, http.StatusOK, map[string]any{"status": "open", "charges": n})
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
	log.Printf("payments: listening on %s", addr)
	if err := srv.ListenAndServe(); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return <-drained
}
