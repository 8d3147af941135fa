package merlon

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
)

// Seal sets Content and Hash, once all other fields are what they should be.
func (o *Orders) Seal() error {
	content, err := json.Marshal(struct {
		Intent    *Intent               `json:"intent"`
		Endpoints map[string][]Endpoint `json:"endpoints"`
	}{&o.Intent, o.Endpoints})
	if err != nil {
		return err
	}
	sum := sha256.Sum256(content)
	o.Content = hex.EncodeToString(sum[:])
	o.name()
	return nil
}

// name sets Hash from the fields that stand for all.
func (o *Orders) name() {
	sum := sha256.Sum256(fmt.Appendf(nil, "orders %d\n%q\n%q\n%q\n", o.Version, o.Place.Service, o.Of, o.Content))
	o.Hash = hex.EncodeToString(sum[:])
}

// Under returns sealed orders with the same content under another intent. They
// share it with o.
func (o *Orders) Under(of string) *Orders {
	again := *o
	again.Of = of
	again.name()
	return &again
}

// Encode seals o and returns the one text that stands for these orders.
func (o *Orders) Encode() ([]byte, error) {
	if err := o.Seal(); err != nil {
		return nil, err
	}
	return json.Marshal(o)
}

// DecodeOrders reads what Encode wrote and nothing else. Orders of another
// version, with a field this program does not know, with a field twice or in
// other letters, or with a wrong hash are refused: a gate must never enforce
// what it only half understands.
func DecodeOrders(text []byte) (*Orders, error) {
	var head struct {
		Version int `json:"version"`
	}
	if err := json.Unmarshal(text, &head); err != nil {
		return nil, fmt.Errorf("orders cannot be read: %w", err)
	}
	if head.Version != OrdersVersion {
		return nil, fmt.Errorf("orders have version %d; this program reads version %d", head.Version, OrdersVersion)
	}
	o := new(Orders)
	dec := json.NewDecoder(bytes.NewReader(text))
	dec.DisallowUnknownFields()
	if err := dec.Decode(o); err != nil {
		return nil, fmt.Errorf("orders cannot be read: %w", err)
	}
	given := o.Hash
	again, err := o.Encode()
	if err != nil {
		return nil, fmt.Errorf("orders cannot be read: %w", err)
	}
	if o.Hash != given {
		return nil, fmt.Errorf("orders are named %.12q but their hash is %.12q", given, o.Hash)
	}
	if !bytes.Equal(again, text) {
		return nil, errors.New("orders are not in the form in which they are written")
	}
	return o, nil
}
