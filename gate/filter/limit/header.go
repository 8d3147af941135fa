package limit

import (
	"math/bits"
	"strconv"
	"time"

	"merlon"
)

// maxInteger is the largest Integer of a structured field (RFC 9651 3.3.1).
const maxInteger = 999_999_999_999_999

// AppendHeaders appends the fields that tell a client where it stands, each
// line with its CRLF: RateLimit-Policy and RateLimit
// (draft-ietf-httpapi-ratelimit-headers-10), and Retry-After (RFC 9110 10.2.3)
// if the call is refused. It allocates only if dst must grow.
//
// The policy is named by what the limit counts by, "client" or "caller". The
// partition key is left out: it is nobody's business how clients are told
// apart. A State without a limit behind it appends nothing.
func (s State) AppendHeaders(dst []byte, lim *merlon.Limit) []byte {
	if s.Limit <= 0 || lim == nil || lim.Count <= 0 || lim.Window <= 0 || lim.Burst <= 0 {
		return dst
	}
	name := `"client"`
	if lim.Per == merlon.PerCaller {
		name = `"caller"`
	}
	q, w := quota(lim)
	reset := seconds(s.Reset)
	dst = append(append(dst, "RateLimit-Policy: "...), name...)
	dst = appendInteger(append(dst, ";q="...), q)
	dst = appendInteger(append(dst, ";w="...), w)
	dst = append(append(dst, "\r\nRateLimit: "...), name...)
	dst = appendInteger(append(dst, ";r="...), int64(s.Remaining))
	dst = appendInteger(append(dst, ";t="...), reset)
	dst = append(dst, "\r\n"...)
	if !s.OK {
		// Never before the reset, and never 0: that invites a storm.
		dst = appendInteger(append(dst, "Retry-After: "...), max(reset, 1))
		dst = append(dst, "\r\n"...)
	}
	return dst
}

// quota says a token bucket in the words of the draft: q calls in w seconds.
// The window is a whole number of seconds, so it is rounded up and the count
// with it: ten in 100 ms are 100 in 1 s. A burst beyond that is told as the
// burst and the time in which it grows, so that what remains never exceeds
// the quota.
func quota(lim *merlon.Limit) (q, w int64) {
	w = seconds(lim.Window)
	hi, lo := bits.Mul64(uint64(lim.Count), uint64(w)*uint64(time.Second))
	if hi >= uint64(lim.Window) {
		q = maxInteger
	} else {
		n, _ := bits.Div64(hi, lo, uint64(lim.Window))
		q = int64(min(n, maxInteger))
	}
	if b := bucketOf(lim); b.burst > q {
		q, w = b.burst, seconds(time.Duration(b.depth))
	}
	return q, w
}

// seconds rounds up: a client that waits as long as told is not refused again
// for a fraction.
func seconds(d time.Duration) int64 {
	if d <= 0 {
		return 0
	}
	return int64((d-1)/time.Second) + 1
}

func appendInteger(dst []byte, n int64) []byte {
	return strconv.AppendInt(dst, min(max(n, 0), maxInteger), 10)
}
