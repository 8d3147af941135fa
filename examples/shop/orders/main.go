// Command orders takes orders: it asks catalog for the price and payments for
// the money, and keeps what was ordered in memory.
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
	"net/url"
	"os"
	"os/signal"
	"strconv"
	"sync"
	"syscall"
	"time"
)

type order struct {
	ID       string `json:"id"`
	SKU      string `json:"sku"`
	Quantity int    `json:"quantity"`
	Cents    int    `json:"cents"`
	Charge   string `json:"charge"`
}

type orders struct {
	mu       sync.Mutex
	kept     []order
	next     int
	catalog  string
	payments string
}

func main() {
	o := &orders{
		catalog:  cmp.Or(os.Getenv("CATALOG_URL"), "http://catalog"),
		payments: cmp.Or(os.Getenv("PAYMENTS_URL"), "http://payments"),
	}
	mux := http.NewServeMux()
	mux.HandleFunc("POST /orders", o.create)
	mux.HandleFunc("GET /orders", o.list)
	mux.HandleFunc("GET /orders/{id}", o.get)
	if err := serve(cmp.Or(os.Getenv("LISTEN"), "127.0.0.1:7003"), mux); err != nil {
		log.Fatalf("orders: %v", err)
	}
}

// create orders a quantity of one product and has it paid. The price is
// catalog's, never the caller's.
func (o *orders) create(w http.ResponseWriter, r *http.Request) {
	var in struct {
		SKU      string `json:"sku"`
		Quantity int    `json:"quantity"`
		Card     string `json:"card"`
	}
	if err := json.NewDecoder(http.MaxBytesReader(w, r.Body, 4096)).Decode(&in); err != nil || in.SKU == "" || in.Quantity < 1 || in.Quantity > 1000 {
		reply(w, http.StatusBadRequest, map[string]string{"error": "an order needs a sku, a quantity and a card"})
		return
	}
	var product struct {
		Cents int `json:"cents"`
	}
	if status, err := call(r.Context(), http.MethodGet, o.catalog+"/products/"+url.PathEscape(in.SKU), nil, &product); err != nil {
		fail(w, status, "catalog", err)
		return
	}
	o.mu.Lock()
	o.next++
	made := order{ID: strconv.Itoa(o.next), SKU: in.SKU, Quantity: in.Quantity, Cents: product.Cents * in.Quantity}
	o.mu.Unlock()

	var charge struct {
		ID string `json:"id"`
	}
	ask := map[string]any{"order": made.ID, "cents": made.Cents, "card": in.Card}
	if status, err := call(r.Context(), http.MethodPost, o.payments+"/charges", ask, &charge); err != nil {
		fail(w, status, "payments", err)
		return
	}
	made.Charge = charge.ID
	o.mu.Lock()
	o.kept = append(o.kept, made)
	o.mu.Unlock()
	reply(w, http.StatusCreated, made)
}

func (o *orders) list(w http.ResponseWriter, r *http.Request) {
	o.mu.Lock()
	defer o.mu.Unlock()
	reply(w, http.StatusOK, append([]order{}, o.kept...))
}

func (o *orders) get(w http.ResponseWriter, r *http.Request) {
	o.mu.Lock()
	defer o.mu.Unlock()
	for _, kept := range o.kept {
		if kept.ID == r.PathValue("id") {
			reply(w, http.StatusOK, kept)
			return
		}
	}
	reply(w, http.StatusNotFound, map[string]string{"error": "no such order"})
}

// call sends in as JSON and reads the answer into out. The status is that of
// the answer, or 0 without one.
func call(ctx context.Context, method, url string, in, out any) (int, error) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	var body bytes.Buffer
	if in != nil {
		if err := json.NewEncoder(&body).Encode(in); err != nil {
			return 0, err
		}
	}
	req, err := http.NewRequestWithContext(ctx, method, url, &body)
	if err != nil {
		return 0, err
	}
	if in != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		return 0, err
	}
	defer res.Body.Close()
	if res.StatusCode >= 300 {
		var why struct {
			Error  string `json:"error"`
			Reason string `json:"reason"`
		}
		json.NewDecoder(res.Body).Decode(&why) // without a body the status says enough
		return res.StatusCode, fmt.Errorf("%s %s", res.Status, cmp.Or(why.Reason, why.Error))
	}
	return res.StatusCode, json.NewDecoder(res.Body).Decode(out)
}

// fail hands on what the caller can mend, and hides the rest behind 502.
func fail(w http.ResponseWriter, status int, peer string, err error) {
	log.Printf("orders: %s: %v", peer, err)
	if status != http.StatusNotFound && status != http.StatusPaymentRequired && status != http.StatusBadRequest {
		status = http.StatusBadGateway
	}
	reply(w, status, map[string]string{"error": peer + " answered " + err.Error()})
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
	log.Printf("orders: listening on %s", addr)
	if err := srv.ListenAndServe(); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return <-drained
}
