// Command app is a service for the tests of merlon up. It knows nothing of
// Merlon: NAME is what it answers, LISTEN where, PEER whom it calls.
package main

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/signal"
	"strconv"
	"syscall"
	"time"
)

func main() {
	if why := os.Getenv("DIE"); why != "" {
		fmt.Fprintln(os.Stderr, "cannot go on:", why)
		os.Exit(3)
	}
	http.HandleFunc("/hello", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("App-Pid", strconv.Itoa(os.Getpid()))
		io.Copy(io.Discard, r.Body)
		fmt.Fprint(w, os.Getenv("NAME"))
	})
	http.HandleFunc("/slow", func(w http.ResponseWriter, r *http.Request) {
		fmt.Println("slow begins") // the test waits for this line in the log
		time.Sleep(time.Second)
		fmt.Fprint(w, "done")
	})
	http.HandleFunc("/call", func(w http.ResponseWriter, r *http.Request) {
		res, err := http.Get("http://" + os.Getenv("PEER") + "/hello")
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadGateway)
			return
		}
		defer res.Body.Close()
		w.WriteHeader(res.StatusCode)
		io.Copy(w, res.Body)
	})
	srv := &http.Server{Addr: os.Getenv("LISTEN")}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		<-ctx.Done()
		srv.Shutdown(context.Background())
	}()
	if err := srv.ListenAndServe(); err != http.ErrServerClosed {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	<-ended
}
