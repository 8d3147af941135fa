package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
)

// ports remembers where gates listened, so that a service that was told its
// gate's address finds it there after a restart.
type ports struct {
	file string
	at   map[string]string // such as "orders/in" -> 127.0.0.1:43210
}

func readPorts(file string) (*ports, error) {
	p := &ports{file: file, at: map[string]string{}}
	data, err := os.ReadFile(file)
	if errors.Is(err, os.ErrNotExist) {
		return p, nil
	}
	if err == nil {
		err = json.Unmarshal(data, &p.at)
	}
	if err != nil {
		return nil, fmt.Errorf("%s cannot be read: %w; remove it, and gates choose new ports", file, err)
	}
	return p, nil
}

// listen listens where name did before, or anywhere on this host if that is
// taken or name is new.
func (p *ports) listen(name string) (net.Listener, error) {
	if old := p.at[name]; old != "" {
		if l, err := net.Listen("tcp", old); err == nil {
			return l, nil
		}
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	p.at[name] = l.Addr().String()
	if err := p.write(); err != nil {
		l.Close()
		return nil, err
	}
	return l, nil
}

// write replaces the file whole: a process killed here leaves the old one.
func (p *ports) write() error {
	data, err := json.MarshalIndent(p.at, "", "  ")
	if err != nil {
		return err
	}
	f, err := os.CreateTemp(filepath.Dir(p.file), "ports-*")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	if _, err := f.Write(append(data, '\n')); err != nil {
		f.Close()
		return err
	}
	if err := f.Close(); err != nil {
		return err
	}
	return os.Rename(f.Name(), p.file)
}
