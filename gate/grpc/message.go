package grpc

import (
	"encoding/binary"
	"errors"
)

// Why a stream of messages is not taken.
var (
	ErrFrame    = errors.New("grpc: the frame of a message is invalid")
	ErrTooLarge = errors.New("grpc: a message is too large")
)

// frameHead is the head of a message: one byte of flags, four of length.
const frameHead = 5

// Messages walks over the frames of messages in a body. The zero Messages is at
// the beginning of one.
type Messages struct {
	head [frameHead]byte
	have int   // bytes of head
	left int64 // of the message
}

// Scan takes the next piece of the body. It refuses a message of more than max
// bytes as soon as its head tells, and flags that nobody has defined.
func (m *Messages) Scan(data []byte, max int64) error {
	for len(data) > 0 {
		if m.left > 0 {
			n := min(m.left, int64(len(data)))
			m.left -= n
			data = data[n:]
			continue
		}
		n := copy(m.head[m.have:], data)
		m.have += n
		data = data[n:]
		if m.head[0] > 1 { // compressed, or not
			return ErrFrame
		}
		if m.have == frameHead {
			m.have, m.left = 0, int64(binary.BigEndian.Uint32(m.head[1:]))
			if m.left > max {
				return ErrTooLarge
			}
		}
	}
	return nil
}

// Between reports whether the walk is between two messages.
func (m *Messages) Between() bool { return m.have == 0 && m.left == 0 }
