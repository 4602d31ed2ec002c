// Package ratelimit says whether a caller may send another request now: one token bucket for each principal or source prefix. It knows nothing of HTTP;
// the edge writes RateLimit and Retry-After headers from its decisions.
//
// Each replica counts by itself and forgets at a restart: this protects a replica from being flooded. What must hold over all replicas, such as single
// use, is the database's business.
package ratelimit

import (
	"fmt"
	"math"
	"net/netip"
	"sync"
	"time"

	"github.com/hashicorp/golang-lru/v2/simplelru"
	"golang.org/x/time/rate"

	"github.com/groupcast/groupcast/models"
)

// Limit is how much one caller may send: Requests in each Window, of which Requests may come at once.
type Limit struct {
	Requests int
	Window   time.Duration
}

// Key is who is counted.
type Key struct {
	kind   models.Kind
	name   string
	prefix netip.Prefix
}

// ByPrincipal counts an authenticated caller. name is unique within its kind.
func ByPrincipal(kind models.Kind, name string) Key { return Key{kind: kind, name: name} }

// BySource counts everybody behind one network: the /24 or /64 of the address.
func BySource(a netip.Addr) Key { return Key{prefix: models.SourcePrefix(a)} }

// Decision says whether a request may go on, and what to tell the caller.
type Decision struct {
	Allowed bool
	// Limit is how many requests may come at once.
	Limit int
	// Remaining is how many of them are left.
	Remaining int
	// Reset is how long it takes until all of them are back, if no more come.
	Reset time.Duration
	// RetryAfter is how long to wait for the next one; 0 if Allowed.
	RetryAfter time.Duration
}

// Limiter holds the buckets of one limit. It is safe for concurrent use.
type Limiter struct {
	limit Limit
	now   func() time.Time

	mu      sync.Mutex
	buckets *simplelru.LRU[Key, *rate.Limiter]
}

// New makes a limiter that remembers the capacity callers who came last, about 250 bytes each. A caller that was forgotten begins with a full
// bucket. It fails if the limit allows nothing or the capacity is not positive.
func New(limit Limit, capacity int, now func() time.Time) (*Limiter, error) {
	if limit.Requests < 1 || limit.Window <= 0 {
		return nil, fmt.Errorf("a limit of %d requests in %s allows nothing: give at least one request in a positive time", limit.Requests, limit.Window)
	}
	buckets, err := simplelru.NewLRU[Key, *rate.Limiter](capacity, nil)
	if err != nil {
		return nil, fmt.Errorf("a rate limiter for %d callers can count nobody: give it a capacity of 1 or more", capacity)
	}
	return &Limiter{limit: limit, now: now, buckets: buckets}, nil
}

// Take counts one request of the caller.
func (l *Limiter) Take(k Key) Decision {
	l.mu.Lock()
	defer l.mu.Unlock()
	bucket, ok := l.buckets.Get(k)
	if !ok {
		bucket = rate.NewLimiter(rate.Limit(l.perSecond()), l.limit.Requests)
		l.buckets.Add(k, bucket)
	}
	now := l.now()
	d := Decision{Allowed: bucket.AllowN(now, 1), Limit: l.limit.Requests}
	tokens := bucket.TokensAt(now)
	d.Remaining = max(int(tokens), 0)
	d.Reset = l.timeFor(float64(l.limit.Requests) - tokens)
	if !d.Allowed {
		d.RetryAfter = l.timeFor(1 - tokens)
	}
	return d
}

// Len is how many callers are remembered.
func (l *Limiter) Len() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buckets.Len()
}

func (l *Limiter) perSecond() float64 {
	return float64(l.limit.Requests) / l.limit.Window.Seconds()
}

// timeFor is how long the tokens take to come, rounded up to a millisecond so that whoever waits as long is not refused for a rounding error.
func (l *Limiter) timeFor(tokens float64) time.Duration {
	return time.Duration(math.Ceil(max(tokens, 0)/l.perSecond()*1000)) * time.Millisecond
}
