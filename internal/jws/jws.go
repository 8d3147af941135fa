// Package jws reads compact JSON Web Signatures (RFC 7515 7.1) more strictly
// than the standard asks: what two readers could take differently is refused
// here, before any key is touched. It also makes them, by P-256 keys.
package jws

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"encoding/asn1"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"math"
	"math/big"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/go-jose/go-jose/v4/json"
)

// Compact is a compact JWS taken apart. Nothing in it is proved.
type Compact struct {
	Header  map[string]any
	Payload map[string]any
}

// Split takes a token apart whose parts are exact base64url of JSON objects,
// nested at most depth deep.
func Split(token string, depth int) (Compact, error) {
	header, payload, err := cut(token, depth)
	if err != nil {
		return Compact{}, err
	}
	c := Compact{Header: header}
	if c.Payload, err = Object(payload, depth); err != nil {
		return Compact{}, fmt.Errorf("payload: %w", err)
	}
	return c, nil
}

// cut takes a compact JWS apart, whatever its payload is.
func cut(token string, depth int) (header map[string]any, payload []byte, err error) {
	head, rest, ok := strings.Cut(token, ".")
	body, sig, ok2 := strings.Cut(rest, ".")
	if !ok || !ok2 || strings.Contains(sig, ".") {
		return nil, nil, errors.New("not three parts")
	}
	b, err := decode(head)
	if err != nil {
		return nil, nil, errors.New("header: not base64url")
	}
	if header, err = Object(b, depth); err != nil {
		return nil, nil, fmt.Errorf("header: %w", err)
	}
	if payload, err = decode(body); err != nil {
		return nil, nil, errors.New("payload: not base64url")
	}
	if b, err := decode(sig); err != nil || len(b) == 0 {
		return nil, nil, errors.New("signature: not base64url")
	}
	return header, payload, nil
}

// decode is strict base64url without padding: one spelling for each value, so
// that a token has no second form that other caches and logs take for another.
func decode(s string) ([]byte, error) {
	if strings.ContainsAny(s, "\r\n") { // encoding/base64 skips them
		return nil, errors.New("line break")
	}
	return base64.RawURLEncoding.Strict().DecodeString(s)
}

// Object reads one JSON object: UTF-8, no duplicate member at any level
// (RFC 8725 2.4: two readers would see two values), nested at most depth deep.
//
// A whole number becomes int64 and any other float64. A whole number beyond
// int64 is refused: rounded, two account numbers would become one.
func Object(b []byte, depth int) (map[string]any, error) {
	if !utf8.Valid(b) {
		return nil, errors.New("not UTF-8")
	}
	dec := json.NewDecoder(bytes.NewReader(b))
	dec.SetNumberType(json.UnmarshalJSONNumber)
	var m map[string]any
	if err := dec.Decode(&m); err != nil {
		return nil, errors.New("not a JSON object without duplicate members")
	}
	if m == nil { // null
		return nil, errors.New("not a JSON object")
	}
	if err := dec.Decode(new(any)); err != io.EOF {
		return nil, errors.New("more than one JSON value")
	}
	for name, v := range m {
		v, err := plain(v, depth)
		if err != nil {
			return nil, err
		}
		m[name] = v
	}
	return m, nil
}

func plain(v any, depth int) (any, error) {
	if depth < 0 {
		return nil, errors.New("nested too deep")
	}
	var err error
	switch v := v.(type) {
	case json.Number:
		return number(v.String())
	case []any:
		for i := range v {
			if v[i], err = plain(v[i], depth-1); err != nil {
				return nil, err
			}
		}
	case map[string]any:
		for name := range v {
			if v[name], err = plain(v[name], depth-1); err != nil {
				return nil, err
			}
		}
	}
	return v, nil
}

func number(s string) (any, error) {
	if !strings.ContainsAny(s, ".eE") {
		n, err := strconv.ParseInt(s, 10, 64)
		if err != nil {
			return nil, errors.New("whole number out of range")
		}
		return n, nil
	}
	f, err := strconv.ParseFloat(s, 64)
	if err != nil {
		return nil, errors.New("number out of range")
	}
	return f, nil
}

// maxDate is the last second of the year 9999: what is later is a mistake of
// unit, or an attempt at overflow.
const maxDate = 253402300799

// Date reads a NumericDate (RFC 7519 2) as unix seconds, fractions cut off.
func Date(v any) (sec int64, ok bool) {
	switch v := v.(type) {
	case int64:
		return v, v >= 0 && v <= maxDate
	case float64:
		f := math.Floor(v)
		return int64(f), f >= 0 && f <= maxDate
	}
	return 0, false
}

// Audience reports whether an aud claim is well formed, a string or an array
// of strings, and names want exactly (RFC 7519 4.1.3).
func Audience(aud any, want string) bool {
	switch aud := aud.(type) {
	case string:
		return aud == want
	case []any:
		if slices.ContainsFunc(aud, func(v any) bool { _, ok := v.(string); return !ok }) {
			return false
		}
		return slices.Contains(aud, any(want))
	}
	return false
}

// Text reports whether s can be a name in records and headers: not empty, at
// most max bytes, no control characters, nothing that was replaced because it
// was no character (two different names would become one).
func Text(s string, max int) bool {
	if s == "" || len(s) > max || !utf8.ValidString(s) {
		return false
	}
	return !strings.ContainsFunc(s, func(r rune) bool {
		return r < ' ' || r >= 0x7f && r < 0xa0 || r == utf8.RuneError
	})
}

// Sign makes a compact JWS of two JSON objects with the algorithm ES256, which
// the header must name.
func Sign(key crypto.Signer, header, payload []byte) (string, error) {
	b64 := base64.RawURLEncoding
	b := make([]byte, 0, b64.EncodedLen(len(header))+b64.EncodedLen(len(payload))+b64.EncodedLen(64)+2)
	b = b64.AppendEncode(b, header)
	b = append(b, '.')
	b = b64.AppendEncode(b, payload)
	sig, err := es256(key, b)
	if err != nil {
		return "", err
	}
	b = append(b, '.')
	return string(b64.AppendEncode(b, sig)), nil
}

// es256 makes the two numbers of fixed length that JWS wants (RFC 7518 3.4)
// from what a crypto.Signer gives, which is ASN.1.
func es256(key crypto.Signer, b []byte) ([]byte, error) {
	if public, ok := key.Public().(*ecdsa.PublicKey); !ok || public.Curve != elliptic.P256() {
		return nil, errors.New("ES256 is signed with a P-256 key")
	}
	hash := sha256.Sum256(b)
	der, err := key.Sign(rand.Reader, hash[:], crypto.SHA256)
	if err != nil {
		return nil, err
	}
	var rs struct{ R, S *big.Int }
	if _, err := asn1.Unmarshal(der, &rs); err != nil {
		return nil, errors.New("the key made a signature that is not one of ECDSA")
	}
	// Unmarshal lets more stand in the sequence, or behind it.
	if again, err := asn1.Marshal(rs); err != nil || !bytes.Equal(again, der) ||
		rs.R.Sign() <= 0 || rs.S.Sign() <= 0 || rs.R.BitLen() > 256 || rs.S.BitLen() > 256 {
		return nil, errors.New("the key made a signature that is not one of P-256")
	}
	sig := make([]byte, 64)
	rs.R.FillBytes(sig[:32])
	rs.S.FillBytes(sig[32:])
	return sig, nil
}
