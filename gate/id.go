package gate

import (
	"crypto/rand"
	"fmt"
	"sync/atomic"
)

// idLength is the length of a request id: 12 characters that name this run of
// the gate and 8 that count its calls.
const idLength = 20

// idAlphabet is Crockford's base 32: no letter is mistaken for a digit.
const idAlphabet = "0123456789abcdefghjkmnpqrstvwxyz"

// idSource makes request ids that are unique without any agreement.
type idSource struct {
	prefix [12]byte
	count  *atomic.Uint64
}

func newIDSource() (idSource, error) {
	s := idSource{count: new(atomic.Uint64)}
	if _, err := rand.Read(s.prefix[:]); err != nil {
		return s, fmt.Errorf("gate: request ids: %w", err)
	}
	for i, b := range s.prefix {
		s.prefix[i] = idAlphabet[b&31]
	}
	return s, nil
}

// next writes an id to buf, which it does not outgrow, and returns a view of it.
func (s *idSource) next(buf []byte) string {
	buf = append(buf, s.prefix[:]...)
	n := s.count.Add(1)
	for shift := 35; shift >= 0; shift -= 5 {
		buf = append(buf, idAlphabet[n>>shift&31])
	}
	return view(buf)
}

// validID is id if a gate could have made it, and else "".
func validID(id string) string {
	if len(id) != idLength {
		return ""
	}
	for i := range len(id) {
		if c := id[i]; !('0' <= c && c <= '9' || 'a' <= c && c <= 'z') {
			return ""
		}
	}
	return id
}
