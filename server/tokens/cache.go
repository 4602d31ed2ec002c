package tokens

import (
	"crypto/sha256"
	"sync"
	"time"

	"github.com/hashicorp/golang-lru/v2/simplelru"
)

const (
	// CacheSize is how many tokens are remembered, about 600 bytes each.
	CacheSize = 20000
	// CacheTime is how long a token is remembered at most.
	CacheTime = time.Minute
)

// Cache remembers which tokens were found valid, so that a token that comes again costs a hash and not a signature. It holds no token,
// only its SHA-256, forgets it before it ends, and is bounded. What revokes a token it can't and need not know: whoever uses a token
// reads the row of the one it names at each request. It is safe for concurrent use.
type Cache struct {
	verifier interface {
		Verify(token string) (Subject, error)
	}
	now func() time.Time

	mu    sync.Mutex
	known *simplelru.LRU[[sha256.Size]byte, verified]
}

type verified struct {
	subject Subject
	until   time.Time
}

// NewCache makes a cache in front of a verifier.
func NewCache(v interface {
	Verify(token string) (Subject, error)
}, now func() time.Time,
) *Cache {
	known, err := simplelru.NewLRU[[sha256.Size]byte, verified](CacheSize, nil)
	if err != nil {
		panic(err) // only a size below 1 is refused
	}
	return &Cache{verifier: v, now: now, known: known}
}

// Verify is Verifier.Verify, remembered.
func (c *Cache) Verify(token string) (Subject, error) {
	if len(token) > MaxSize {
		return c.verifier.Verify(token)
	}
	key := sha256.Sum256([]byte(token))
	now := c.now()
	c.mu.Lock()
	v, ok := c.known.Get(key)
	c.mu.Unlock()
	if ok && now.Before(v.until) {
		return v.subject, nil
	}
	s, err := c.verifier.Verify(token)
	if err != nil {
		return s, err
	}
	until := now.Add(CacheTime)
	if s.ExpiresAt.Before(until) {
		until = s.ExpiresAt
	}
	c.mu.Lock()
	c.known.Add(key, verified{subject: s, until: until})
	c.mu.Unlock()
	return s, nil
}
