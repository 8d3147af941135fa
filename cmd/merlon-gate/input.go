package main

import (
	"fmt"
	"os"

	"merlon"
)

// maxOrders bounds the file of orders, in bytes.
const maxOrders = 64 << 20

// orderFile is the file of orders, as it was when it was last read.
type orderFile struct {
	name string
	seen os.FileInfo // nil when it was not there
}

// changed reports whether there is another file than the last one read.
func (f *orderFile) changed() bool {
	info, err := os.Stat(f.name)
	return err == nil && !(f.seen != nil && os.SameFile(info, f.seen) && info.ModTime().Equal(f.seen.ModTime()) && info.Size() == f.seen.Size())
}

// read reads the orders. What replaces them meanwhile is a change.
func (f *orderFile) read() (*merlon.Orders, error) {
	info, err := os.Stat(f.name)
	if f.seen = info; err != nil {
		return nil, err
	}
	if info.Size() > maxOrders {
		return nil, fmt.Errorf("%s: larger than %d bytes", f.name, maxOrders)
	}
	data, err := os.ReadFile(f.name)
	if err != nil {
		return nil, err
	}
	orders, err := merlon.DecodeOrders(data)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", f.name, err)
	}
	return orders, nil
}
