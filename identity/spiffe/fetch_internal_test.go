package spiffe

import (
	"bytes"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/encoding/protowire"
)

func FuzzParseSVIDs(f *testing.F) {
	message := func(number protowire.Number, v []byte) []byte {
		return protowire.AppendBytes(protowire.AppendTag(nil, number, protowire.BytesType), v)
	}
	const id = "spiffe://shop.example/web"
	f.Add(message(1, append(message(1, []byte(id)), message(2, []byte{0x30, 0})...)))
	f.Add(message(3, append(message(1, []byte("spiffe://partner.example")), message(2, []byte{0x30, 0})...)))
	f.Add([]byte{0x08, 0x01})
	f.Fuzz(func(t *testing.T, b []byte) {
		got, err := parseSVIDs(b, id, time.Unix(0, 0))
		if err != nil {
			return
		}
		if who, err := ID(got.svid.Leaf); err != nil || who != id || got.roots == nil || got.foreign["shop.example"] != nil {
			t.Errorf("%q %v", who, err)
		}
	})
}

func TestReadMessage(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]string{
		"\x00\x00\x00\x00\x02ab": "ab",
		"\x00\x00\x00\x00\x00":   "",
		"\x01\x00\x00\x00\x00":   "compressed",
		"\x00\xff\xff\xff\xff":   "larger than",
		"\x00\x00\x00\x00\x02a":  "unexpected EOF",
		"\x00\x00":               "unexpected EOF",
	} {
		got, err := readMessage(bytes.NewReader([]byte(text)))
		if err != nil {
			got = []byte(err.Error())
		}
		if !strings.Contains(string(got), want) {
			t.Errorf("%q: %q, want %q", text, got, want)
		}
	}
}
