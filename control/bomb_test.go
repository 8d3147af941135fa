package control

import (
	"archive/zip"
	"bytes"
	"fmt"
	"testing"
)

// bomb is a zip of n files that unpack to size bytes each, as far as they say.
func bomb(t *testing.T, n int, size uint64) []byte {
	t.Helper()
	var buf bytes.Buffer
	z := zip.NewWriter(&buf)
	for i := range n {
		_, err := z.CreateRaw(&zip.FileHeader{Name: fmt.Sprintf("f%d", i), Method: zip.Deflate, UncompressedSize64: size})
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}
