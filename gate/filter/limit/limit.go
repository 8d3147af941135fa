// Package limit bounds how often something may happen, in bounded memory.
//
// Each key has a token bucket, kept as one number by the generic cell rate
// algorithm (GCRA, ITU-T I.371): the theoretical arrival time (TAT), when the
// bucket will be full again. A key whose TAT has passed has a full bucket, so
// it carries no information and its place may be given away.
//
// # When the table is full
//
// A place is given away only when its TAT has passed. A key that still owes
// something is never evicted: otherwise someone with many keys (a botnet, an
// IPv6 prefix) could push out his own exhausted key and start it afresh, and
// the limit would bound nothing. A new key that finds no place shares an
// overflow bucket with the other homeless keys of its shard, under the same
// limit: together they get what one key would. Denying them all would be as
// safe, but would turn a flood of keys into an outage for every newcomer; the
// shared bucket keeps a trickle. So whatever the number of keys, one limit never
// admits more than one bucket for each place and shard of the table, and keys
// that are known keep exactly what they have.
//
// # Collisions
//
// A key is a 64-bit hash keyed with a secret of the Limiter. Two callers whose
// keys collide share a bucket: each may be limited by the other, neither gets
// more than the limit. With a million keys the chance that any two collide is
// about 3 in 10^8, and without the secret nobody can construct a collision or
// aim at a bucket of the table.
package limit

import (
	"hash/maphash"
	"math"
	"math/bits"
	"net/netip"
	"sync"
	"time"

	"merlon"
)

const (
	shardBits   = 5
	shardCount  = 1 << shardBits
	ways        = 8                  // entries in a set: two cache lines
	overflowing = 16                 // overflow buckets of a shard, one for each limit in need of one
	slack       = int64(time.Minute) // more than two callers' readings of the clock are ever apart, even over a pause
	minSets     = 2
	maxKeysEver = 1 << 28 // 8 GiB; beyond it is a mistake
)

// Limiter holds the state of every key. It is safe for concurrent use. Make
// it with New; the zero Limiter denies.
type Limiter struct {
	seed   maphash.Seed
	shards []shard
}

// shard is a part of the table with its own lock.
type shard struct {
	mu       sync.Mutex
	sets     []set
	overflow [overflowing]entry // the shared buckets, by limit
	_        [64]byte           // keeps the next shard's lock off this cache line
}

// set holds the entries that compete for the same places. An entry whose TAT
// has passed is free, whatever its key.
type set [ways]entry

type entry struct {
	key uint64
	tat int64
}

// New makes a Limiter that remembers at least maxKeys keys, as far as their
// hashes spread: each key has sixteen possible places, and there are half as
// many places again as keys. It takes 24 to 48 bytes a key, all of it at once.
func New(maxKeys int) *Limiter {
	maxKeys = min(max(maxKeys, 1), maxKeysEver)
	perShard := (maxKeys + maxKeys/2 + shardCount*ways - 1) / (shardCount * ways)
	n := 1 << bits.Len(uint(max(perShard, minSets)-1))
	l := &Limiter{seed: maphash.MakeSeed(), shards: make([]shard, shardCount)}
	for i := range l.shards {
		l.shards[i].sets = make([]set, n)
	}
	return l
}

// State is what a limit says about one call. The zero State denies.
type State struct {
	OK        bool
	Limit     int           // calls that may come at once: the burst
	Remaining int           // calls that would be admitted right now, after this one
	Reset     time.Duration // until Remaining grows by one; for a refused call, until it may come again
}

// Allow takes one call of key at the instant now from the bucket that lim
// describes. now is monotonic nanoseconds, not negative. A nil lim, or one
// without a positive count, window and burst, denies.
//
// A limit may change between calls: the key keeps its debt, but if that is
// more than a minute beyond an empty bucket of the new limit it is cut to that.
func (l *Limiter) Allow(key uint64, lim *merlon.Limit, now int64) State {
	if l == nil || len(l.shards) == 0 || lim == nil || lim.Count <= 0 || lim.Window <= 0 || lim.Burst <= 0 {
		return State{}
	}
	b := bucketOf(lim)
	now = min(max(now, 0), math.MaxInt64/2)
	s := &l.shards[key>>(64-shardBits)]
	s.mu.Lock()
	e := s.place(key, now)
	if e == nil {
		e = s.shared(b, now)
	}
	tat, ok := b.take(e, now)
	s.mu.Unlock()
	return b.state(tat, now, ok)
}

// place finds the entry of key, else takes a free one, else returns nil.
//
// Two candidate sets for a key fill far more evenly than one: sets overflow
// only when the table is almost full (Azar and others, Balanced Allocations).
func (s *shard) place(key uint64, now int64) *entry {
	mask := uint64(len(s.sets) - 1)
	first, second := &s.sets[key&mask], &s.sets[(key>>24)&mask]
	var free [2]*entry
	var count [2]int
	for i, set := range [2]*set{first, second} {
		for j := range set {
			e := &set[j]
			if e.key == key {
				return e // even when it has passed: a key never has two entries
			}
			if e.tat <= now {
				free[i] = e
				count[i]++
			}
		}
	}
	e := free[0]
	if count[1] > count[0] {
		e = free[1]
	}
	if e != nil {
		e.key = key
	}
	return e
}

// shared finds the overflow bucket of the limit b, so that a slow limit that
// is used up does not stop a fast one. When that many limits overflow at once
// that none is free, it returns nil.
func (s *shard) shared(b bucket, now int64) *entry {
	key := fold(uint64(b.interval), uint64(b.burst))
	var free *entry
	for i := range s.overflow {
		e := &s.overflow[i]
		if e.key == key {
			return e
		}
		if e.tat <= now {
			free = e
		}
	}
	if free != nil {
		free.key = key
	}
	return free
}

// bucket is a limit in the terms of GCRA.
type bucket struct {
	interval int64 // nanoseconds in which one token grows
	depth    int64 // nanoseconds in which the whole bucket fills
	burst    int64
}

// bucketOf rounds the interval up, so that the rate is never above the limit,
// and cuts depths beyond a century.
func bucketOf(lim *merlon.Limit) bucket {
	const century = 100 * 365 * 24 * int64(time.Hour)
	interval := (int64(lim.Window)-1)/int64(lim.Count) + 1
	interval = min(interval, century)
	burst := min(int64(lim.Burst), century/interval)
	return bucket{interval: interval, depth: interval * burst, burst: burst}
}

// take admits a call if the bucket of e has a token at now; without a bucket
// it refuses. A TAT in the past is a full bucket. One far beyond an empty
// bucket is the debt of an earlier, slower limit, and is cut; but not one that
// is there only because this caller read the clock long ago, for that would be
// a refund.
func (b bucket) take(e *entry, now int64) (tat int64, ok bool) {
	if e == nil {
		return now + b.depth, false
	}
	tat = max(e.tat, now)
	if tat-now > b.depth+slack {
		tat = now + b.depth
		e.tat = tat
	}
	if tat+b.interval-now > b.depth {
		return min(tat, now+b.depth), false
	}
	tat += b.interval
	e.tat = tat
	return tat, true
}

func (b bucket) state(tat, now int64, ok bool) State {
	missing := tat - now // of a full bucket, in nanoseconds of growth
	remaining := (b.depth - missing) / b.interval
	next := missing - (b.depth - (remaining+1)*b.interval)
	return State{OK: ok, Limit: int(b.burst), Remaining: int(remaining), Reset: time.Duration(max(next, 0))}
}

// Key hashes what a limit counts by, such as the rule's position and the
// caller's name and subject. Parts are told apart: ("ab", "c") is not
// ("a", "bc"). It does not allocate.
func (l *Limiter) Key(parts ...string) uint64 {
	h := uint64(len(parts))
	for _, p := range parts {
		h = fold(h, maphash.String(l.seed, p))
	}
	return h
}

// ClientKey is Key for a client's address within a scope, such as the rule's
// position. All of an IPv6 /64 is one client: a single host has that many
// addresses to itself (RFC 6177), and would have as many buckets.
func (l *Limiter) ClientKey(scope string, addr netip.Addr) uint64 {
	addr = addr.Unmap()
	b := addr.As16()
	if addr.Is6() {
		clear(b[8:])
	}
	return fold(l.Key(scope), maphash.Bytes(l.seed, b[:]))
}

// fold mixes b into a; the order matters.
func fold(a, b uint64) uint64 {
	hi, lo := bits.Mul64(bits.RotateLeft64(a, 29)^0x9e3779b97f4a7c15, b^0xd1b54a32d192ed03)
	return hi ^ lo
}
