// Command catalog is what the shop sells: read-only data.
package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"log"
	"net/http"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"syscall"
	"time"
)

type product struct {
	SKU   string `json:"sku"`
	Name  string `json:"name"`
	Cents int    `json:"cents"`
}

var products = []product{
	{"anvil", "Anvil, 50 kg", 18900},
	{"bucket", "Bucket, zinc", 1450},
	{"hammer", "Hammer, 500 g", 2390},
	{"lantern", "Lantern, storm proof", 3995},
	{"rope", "Rope, hemp, 20 m", 2700},
}

func main() {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /products", search)
	mux.HandleFunc("GET /products/{sku}", get)
	if err := serve(cmp.Or(os.Getenv("LISTEN"), "127.0.0.1:7002"), mux); err != nil {
		log.Fatalf("catalog: %v", err)
	}
}

// search lists the products whose name has the word q, at most limit of them.
func search(w http.ResponseWriter, r *http.Request) {
	word := strings.ToLower(r.URL.Query().Get("q"))
	limit := len(products)
	if s := r.URL.Query().Get("limit"); s != "" {
		n, err := strconv.Atoi(s)
		if err != nil || n < 1 {
			reply(w, http.StatusBadRequest, map[string]string{"error": "limit must be a positive number"})
			return
		}
		limit = n
	}
	found := []product{}
	for _, p := range products {
		if len(found) < limit && strings.Contains(strings.ToLower(p.Name), word) {
			found = append(found, p)
		}
	}
	reply(w, http.StatusOK, found)
}

func get(w http.ResponseWriter, r *http.Request) {
	for _, p := range products {
		if p.SKU == r.PathValue("sku") {
			reply(w, http.StatusOK, p)
			return
		}
	}
	reply(w, http.StatusNotFound, map[string]string{"error": "no such product"})
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
	log.Printf("catalog: listening on %s", addr)
	if err := srv.ListenAndServe(); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return <-drained
}
