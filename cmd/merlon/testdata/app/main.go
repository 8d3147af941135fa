// Command app is a service for the tests of merlon up. It knows nothing of
// Merlon: NAME is what it answers, LISTEN where, PEER whom it calls.
package main

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// get calls what it reads, a URL a line, and says what came of it: the test is
// at the other end of its input.
func get() {
	for lines := bufio.NewScanner(os.Stdin); lines.Scan(); {
		res, err := http.Get(lines.Text())
		if err != nil {
			fmt.Println(err)
			continue
		}
		body, _ := io.ReadAll(res.Body)
		res.Body.Close()
		fmt.Println(res.StatusCode, strings.TrimSpace(string(body)))
	}
}

// probe tries what NETWORK/ADDRESS says, and returns why it could not.
func probe(what string) error {
	network, address, _ := strings.Cut(what, "/")
	switch network {
	case "dns":
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		_, err := net.DefaultResolver.LookupHost(ctx, address)
		return err
	case "read":
		f, err := os.Open("/" + address)
		if err != nil {
			return err
		}
		defer f.Close()
		_, err = f.Read(make([]byte, 1))
		return err
	case "enter":
		return enter("/" + address)
	}
	c, err := net.DialTimeout(network, address, 10*time.Second)
	if err != nil {
		return err
	}
	defer c.Close()
	if _, err := c.Write([]byte(what)); err != nil || network != "udp" {
		return err
	}
	c.SetReadDeadline(time.Now().Add(10 * time.Second))
	_, err = c.Read(make([]byte, 1))
	return err
}

func main() {
	if len(os.Args) > 1 && os.Args[1] == "get" {
		get()
		return
	}
	if len(os.Args) > 2 && os.Args[1] == "dial" {
		_, err := net.Dial("unix", os.Args[2])
		fmt.Println(err)
		return
	}
	if len(os.Args) > 2 && os.Args[1] == "probe" {
		for _, what := range os.Args[2:] {
			fmt.Printf("probe %s: %v\n", what, probe(what))
		}
		return
	}
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
