package http2

import "encoding/binary"

// preface is what a client sends first (RFC 9113 3.4).
const preface = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"

const (
	headerSize = 9
	frameSize  = 16384     // of the largest payload, either way (RFC 9113 4.2)
	maxWindow  = 1<<31 - 1 // RFC 9113 6.9.1
)

// kind is the type of a frame (RFC 9113 6).
type kind uint8

const (
	frameData kind = iota
	frameHeaders
	framePriority
	frameReset
	frameSettings
	framePush
	framePing
	frameGoAway
	frameWindow
	frameContinuation
)

const (
	flagAck        = 0x1 // SETTINGS, PING
	flagEndStream  = 0x1 // DATA, HEADERS
	flagEndHeaders = 0x4
	flagPadded     = 0x8
	flagPriority   = 0x20
)

// setting is the name of a setting (RFC 9113 6.5.2).
type setting uint16

const (
	settingEnablePush    setting = 0x2
	settingStreams       setting = 0x3
	settingWindow        setting = 0x4
	settingFrameSize     setting = 0x5
	settingHeaderList    setting = 0x6
	settingConnect       setting = 0x8 // RFC 8441 3
	settingNoPriorities  setting = 0x9 // RFC 9218 2.1
	settingSize                  = 6   // bytes
	maxSettings                  = 64  // in one frame
	maxContinuations             = 32  // of one block
	maxRecent                    = 64  // closed streams remembered
	maxWaitingForControl         = 32 << 10
)

// frame is the header of a frame (RFC 9113 4.1).
type frame struct {
	length int
	kind   kind
	flags  byte
	stream uint32
}

func parseFrame(b []byte) frame {
	return frame{
		length: int(b[0])<<16 | int(b[1])<<8 | int(b[2]),
		kind:   kind(b[3]),
		flags:  b[4],
		stream: binary.BigEndian.Uint32(b[5:]) &^ (1 << 31),
	}
}

func (f *frame) has(flag byte) bool { return f.flags&flag != 0 }

func appendFrame(dst []byte, length int, k kind, flags byte, stream uint32) []byte {
	dst = append(dst, byte(length>>16), byte(length>>8), byte(length), byte(k), flags)
	return binary.BigEndian.AppendUint32(dst, stream)
}

func appendSetting(dst []byte, s setting, value int) []byte {
	dst = binary.BigEndian.AppendUint16(dst, uint16(s))
	return binary.BigEndian.AppendUint32(dst, uint32(value))
}
