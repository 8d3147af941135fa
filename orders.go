package merlon

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
)

// Encode seals o: it sets Hash and returns the one text that stands for these
// orders. Hash is the SHA-256 of that text with an empty Hash.
func (o *Orders) Encode() ([]byte, error) {
	o.Hash = ""
	text, err := json.Marshal(o)
	if err != nil {
		return nil, err
	}
	sum := sha256.Sum256(text)
	o.Hash = hex.EncodeToString(sum[:])
	// The quotes around the key cannot stand inside a JSON string, so the
	// first match is the field itself.
	return bytes.Replace(text, []byte(`"hash":""`), []byte(`"hash":"`+o.Hash+`"`), 1), nil
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
