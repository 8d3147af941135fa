// Package hotcache is a bounded map for answers that are asked for again and
// again on a hot path. A hit allocates nothing.
//
// It is split into shards so that processors seldom wait for each other, and
// each shard evicts by the clock algorithm: an entry that was read since the
// hand last passed is spared once. Keys are compared in full and the maps of
// Go are seeded, so nobody outside can make two keys collide.
package hotcache

import "sync"

const shards = 16 // a power of two

// Cache maps K to V and holds a bounded number of entries. It is safe for
// concurrent use.
type Cache[K comparable, V any] struct {
	hash  func(K) uint64 // only picks the shard
	shard [shards]shard[K, V]
}

type shard[K comparable, V any] struct {
	mu    sync.Mutex
	index map[K]int32 // into slots
	slots []slot[K, V]
	max   int
	hand  int
	_     [64]byte // neighbours do not share a cache line
}

type slot[K comparable, V any] struct {
	key   K
	value V
	used  bool
}

// New makes a cache of about max entries, at least one per shard. The hash
// must not allocate; it spreads the keys over the shards.
func New[K comparable, V any](max int, hash func(K) uint64) *Cache[K, V] {
	c := &Cache[K, V]{hash: hash}
	for i := range c.shard {
		c.shard[i].index = make(map[K]int32)
		c.shard[i].max = (max + shards - 1) / shards
		if c.shard[i].max < 1 {
			c.shard[i].max = 1
		}
	}
	return c
}

// Get finds the value of key.
func (c *Cache[K, V]) Get(key K) (value V, ok bool) {
	s := &c.shard[c.hash(key)%shards]
	s.mu.Lock()
	if i, found := s.index[key]; found {
		s.slots[i].used = true
		value, ok = s.slots[i].value, true
	}
	s.mu.Unlock()
	return value, ok
}

// Put sets the value of key. The cache keeps key and value: strings that are
// views must be cloned first.
func (c *Cache[K, V]) Put(key K, value V) {
	s := &c.shard[c.hash(key)%shards]
	s.mu.Lock()
	defer s.mu.Unlock()
	if i, found := s.index[key]; found {
		// The stored key stays: it is equal, and older.
		s.slots[i].value = value
		return
	}
	if len(s.slots) < s.max {
		s.index[key] = int32(len(s.slots))
		s.slots = append(s.slots, slot[K, V]{key: key, value: value})
		return
	}
	for s.slots[s.hand].used { // ends after one round: the hand takes the marks away
		s.slots[s.hand].used = false
		s.hand = (s.hand + 1) % s.max
	}
	delete(s.index, s.slots[s.hand].key)
	s.index[key] = int32(s.hand)
	s.slots[s.hand] = slot[K, V]{key: key, value: value}
	s.hand = (s.hand + 1) % s.max
}

// Len is the number of entries.
func (c *Cache[K, V]) Len() int {
	n := 0
	for i := range c.shard {
		c.shard[i].mu.Lock()
		n += len(c.shard[i].slots)
		c.shard[i].mu.Unlock()
	}
	return n
}
