// Command web is the storefront: what people outside call. It asks catalog
// for products and orders for orders.
package main

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"io"
	"log"
	"net/http"
	"net/url"
	"os"
	"os/signal"
	"syscall"
	"time"
)

type web struct{ catalog, orders, ledger string }

func main() {
	s := web{
		catalog: cmp.Or(os.Getenv("CATALOG_URL"), "http://catalog"),
		orders:  cmp.Or(os.Getenv("ORDERS_URL"), "http://orders"),
		ledger:  cmp.Or(os.Getenv("LEDGER_URL"), "http://ledger"),
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /products", s.products)
	mux.HandleFunc("GET /products/{sku}", s.product)
	mux.HandleFunc("POST /checkout", s.checkout)
	mux.HandleFunc("GET /balance", s.balance)
	if err := serve(cmp.Or(os.Getenv("LISTEN"), "127.0.0.1:7001"), mux); err != nil {
		log.Fatalf("web: %v", err)
	}
}

func (s web) products(w http.ResponseWriter, r *http.Request) {
	forward(w, r, http.MethodGet, s.catalog+"/products?"+r.URL.RawQuery, nil)
}

func (s web) product(w http.ResponseWriter, r *http.Request) {
	forward(w, r, http.MethodGet, s.catalog+"/products/"+url.PathEscape(r.PathValue("sku")), nil)
}

func (s web) checkout(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, 4096))
	if err != nil {
		http.Error(w, "the order is too long", http.StatusRequestEntityTooLarge)
		return
	}
	forward(w, r, http.MethodPost, s.orders+"/orders", body)
}

// balance shows how much the shop has sold. It is a mistake on purpose: web
// has no business in the ledger, nothing in this program stops it, and the
// intent does.
func (s web) balance(w http.ResponseWriter, r *http.Request) {
	forward(w, r, http.MethodGet, s.ledger+"/accounts/sales", nil)
}

// forward makes one call and answers as it was answered.
func forward(w http.ResponseWriter, r *http.Request, method, url string, body []byte) {
	ctx, cancel := context.WithTimeout(r.Context(), 10*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, method, url, bytes.NewReader(body))
	if err != nil {
		http.Error(w, "bad request", http.StatusBadRequest)
		return
	}
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		log.Printf("web: %v", err)
		http.Error(w, "a service of the shop cannot be reached", http.StatusBadGateway)
		return
	}
	defer res.Body.Close()
	w.Header().Set("Content-Type", res.Header.Get("Content-Type"))
	w.WriteHeader(res.StatusCode)
	if _, err := io.Copy(w, res.Body); err != nil {
		log.Printf("web: %v", err)
	}
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
	log.Printf("web: listening on %s", addr)
	if err := srv.ListenAndServe(); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return <-drained
}
