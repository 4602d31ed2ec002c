// Package replay remembers what may be used only once, such as the jti of a proof or of a client assertion, until it is no
// longer valid anyway. It knows nothing of tokens: a key is whatever text the caller makes unique.
//
// Memory serves one node, Table several replicas on one database; whoever needs either of them declares
// the one method it calls.
package replay

import (
	"container/heap"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"sync"
	"time"
)

var (
	// ErrUsed tells that the key was used before.
	ErrUsed = errors.New("used before")
	// ErrForgotten tells that the memory can't say whether the key was used before: it had to forget keys that expire as early
	// as this one. A key that expires later is fine; the caller asks for one.
	ErrForgotten = errors.New("expires before the oldest use that is still remembered")
)

// Memory remembers keys in this process, at most a fixed number of them. When it is full it forgets the keys that expire first,
// and from then on refuses every key that expires as early as those: however many keys are poured in, no key is ever
// accepted twice. It is safe for concurrent use.
type Memory struct {
	now      func() time.Time
	capacity int

	mu      sync.Mutex
	used    map[digest]struct{}
	expiry  byExpiry
	horizon int64 // Unix seconds; what expires at or before it is refused
}

// digest stands for a key, so that a long key costs no more memory than a short one.
type digest [16]byte

type entry struct {
	until int64
	key   digest
}

// NewMemory makes a memory of at most capacity keys, about 80 bytes each. It fails unless capacity is positive.
func NewMemory(capacity int, now func() time.Time) (*Memory, error) {
	if capacity < 1 {
		return nil, fmt.Errorf("a replay memory of %d keys can remember nothing: give it a capacity of 1 or more", capacity)
	}
	return &Memory{now: now, capacity: capacity, used: map[digest]struct{}{}}, nil
}

// RefuseUntil refuses every key that expires at or before the time. A process that starts calls it with the latest expiry that a key can have
// that was used before the start, of which this memory knows nothing.
func (m *Memory) RefuseUntil(t time.Time) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.horizon = max(m.horizon, t.Unix()+1)
}

// Use marks the key as used. It fails with ErrUsed if the key was used before, and with ErrForgotten if it can't know; until is when
// the key stops being valid by itself, with a precision of a second.
func (m *Memory) Use(_ context.Context, key string, until time.Time) error {
	sum := sha256.Sum256([]byte(key))
	d := digest(sum[:16])
	expires := until.Unix() + 1 // rounded up: rather remembered too long

	m.mu.Lock()
	defer m.mu.Unlock()
	// What has expired may be forgotten without consequence: the caller refuses it for its age.
	for now := m.now().Unix(); len(m.expiry) > 0 && m.expiry[0].until < now; {
		m.forgetFirst()
	}
	if _, ok := m.used[d]; ok {
		return ErrUsed
	}
	if expires <= m.horizon {
		return ErrForgotten
	}
	m.used[d] = struct{}{}
	heap.Push(&m.expiry, entry{expires, d})
	for len(m.expiry) > m.capacity {
		m.horizon = m.expiry[0].until
		for len(m.expiry) > 0 && m.expiry[0].until <= m.horizon {
			m.forgetFirst()
		}
	}
	if expires <= m.horizon {
		return ErrForgotten
	}
	return nil
}

// Len is the number of keys that are remembered now.
func (m *Memory) Len() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return len(m.expiry)
}

func (m *Memory) forgetFirst() {
	delete(m.used, heap.Pop(&m.expiry).(entry).key)
}

type byExpiry []entry

func (h byExpiry) Len() int           { return len(h) }
func (h byExpiry) Less(i, j int) bool { return h[i].until < h[j].until }
func (h byExpiry) Swap(i, j int)      { h[i], h[j] = h[j], h[i] }
func (h *byExpiry) Push(x any)        { *h = append(*h, x.(entry)) }
func (h *byExpiry) Pop() any {
	old := *h
	e := old[len(old)-1]
	*h = old[:len(old)-1]
	return e
}
