// Package bucket bounds how often something may happen: a token bucket.
package bucket

import (
	"math"
	"time"
)

// Bucket is a token bucket. It is not safe for concurrent use.
type Bucket struct {
	most, rate, left float64
	at               time.Time
}

// New is a full bucket: there are at most so many tokens, and each second
// brings rate.
func New(most, rate float64, now time.Time) *Bucket {
	return &Bucket{most: most, rate: rate, left: most, at: now}
}

// Take takes a token, if there is one. A clock that is set back brings none.
func (b *Bucket) Take(now time.Time) bool {
	b.left = math.Min(b.most, b.left+math.Max(0, now.Sub(b.at).Seconds())*b.rate)
	b.at = now
	if b.left < 1 {
		return false
	}
	b.left--
	return true
}
