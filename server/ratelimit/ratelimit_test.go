package ratelimit_test

import (
	"fmt"
	"net/netip"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/groupcast/groupcast/models"
	"github.com/groupcast/groupcast/server/ratelimit"
)

type clock struct{ now time.Time }

func (c *clock) Now() time.Time { return c.now }

func newLimiter(t testing.TB, limit ratelimit.Limit, capacity int) (*ratelimit.Limiter, *clock) {
	t.Helper()
	c := &clock{now: time.Unix(1_700_000_000, 0)}
	l, err := ratelimit.New(limit, capacity, c.Now)
	require.NoError(t, err)
	return l, c
}

var alice = ratelimit.ByPrincipal(models.KindDevice, "664123086043511412")

func TestABucketEmptiesAndFills(t *testing.T) {
	l, c := newLimiter(t, ratelimit.Limit{Requests: 10, Window: time.Minute}, 10) // one every six seconds
	for i := range 10 {
		d := l.Take(alice)
		assert.Equal(t, ratelimit.Decision{Allowed: true, Limit: 10, Remaining: 9 - i, Reset: time.Duration(i+1) * 6 * time.Second}, d)
	}
	refused := ratelimit.Decision{Limit: 10, Reset: time.Minute, RetryAfter: 6 * time.Second}
	assert.Equal(t, refused, l.Take(alice))
	assert.Equal(t, refused, l.Take(alice), "a refused request costs nothing")
	c.now = c.now.Add(5999 * time.Millisecond)
	assert.LessOrEqual(t, l.Take(alice).RetryAfter, 2*time.Millisecond)
	c.now = c.now.Add(time.Millisecond)
	assert.True(t, l.Take(alice).Allowed)
	assert.False(t, l.Take(alice).Allowed)
	c.now = c.now.Add(time.Hour)
	assert.Equal(t, 9, l.Take(alice).Remaining, "it never holds more than the limit")
}

func TestCallersDoNotShareABucket(t *testing.T) {
	l, _ := newLimiter(t, ratelimit.Limit{Requests: 1, Window: time.Minute}, 100)
	for _, k := range []ratelimit.Key{
		alice,
		ratelimit.ByPrincipal(models.KindGateway, "664123086043511412"),
		ratelimit.ByPrincipal(models.KindDevice, "664123086043511413"),
		ratelimit.ByPrincipal(models.KindDevice, ""),
		ratelimit.BySource(netip.MustParseAddr("198.51.100.7")),
		ratelimit.BySource(netip.MustParseAddr("198.51.101.7")),
		ratelimit.BySource(netip.MustParseAddr("2001:db8:0:1::1")),
		ratelimit.BySource(netip.MustParseAddr("2001:db8:0:2::1")),
		ratelimit.BySource(netip.Addr{}),
	} {
		assert.True(t, l.Take(k).Allowed, "%+v", k)
		assert.False(t, l.Take(k).Allowed, "%+v", k)
	}
	for _, same := range []string{"198.51.100.255", "::ffff:198.51.100.1", "2001:db8:0:1:ffff::"} {
		assert.False(t, l.Take(ratelimit.BySource(netip.MustParseAddr(same))).Allowed, same)
	}
}

func TestHostileFloodOfCallersTakesNoMoreMemory(t *testing.T) {
	l, c := newLimiter(t, ratelimit.Limit{Requests: 5, Window: time.Minute}, 1000)
	for i := range 100_000 {
		k := ratelimit.BySource(netip.AddrFrom16([16]byte{0x20, 1, 0xd, 0xb8, byte(i >> 16), byte(i >> 8), byte(i)}))
		require.True(t, l.Take(k).Allowed)
		if i%500 == 0 { // a caller that keeps coming is kept, and keeps being counted
			d := l.Take(alice)
			require.Equal(t, i/500 < 5, d.Allowed, "request %d", i/500)
		}
		require.LessOrEqual(t, l.Len(), 1000)
	}
	c.now = c.now.Add(time.Minute)
	assert.True(t, l.Take(alice).Allowed)
}

func TestNobodyGetsMoreThanTheLimit(t *testing.T) {
	rapid.Check(t, func(r *rapid.T) {
		limit := ratelimit.Limit{Requests: rapid.IntRange(1, 50).Draw(r, "requests"), Window: time.Duration(rapid.IntRange(1, 100_000).Draw(r, "window")) * time.Millisecond}
		c := &clock{now: time.Unix(1_700_000_000, 0)}
		l, err := ratelimit.New(limit, 4, c.Now)
		if err != nil {
			r.Fatal(err)
		}
		start, allowed := c.now, 0
		for range rapid.IntRange(1, 200).Draw(r, "steps") {
			d := l.Take(alice)
			if d.Allowed {
				allowed++
			} else if d.RetryAfter <= 0 {
				r.Fatalf("refused without saying for how long: %+v", d)
			}
			if d.Remaining < 0 || d.Remaining > limit.Requests || d.Reset < 0 || d.Reset > limit.Window+time.Millisecond {
				r.Fatalf("%+v is out of range for %+v", d, limit)
			}
			// Whoever does as told is served.
			if !d.Allowed && rapid.Bool().Draw(r, "obey") {
				c.now = c.now.Add(d.RetryAfter)
				if !l.Take(alice).Allowed {
					r.Fatalf("refused after waiting %s", d.RetryAfter)
				}
				allowed++
			}
			c.now = c.now.Add(time.Duration(rapid.IntRange(0, 1000).Draw(r, "ms")) * time.Millisecond)
			most := float64(limit.Requests) + float64(limit.Requests)*float64(c.now.Sub(start))/float64(limit.Window)
			if float64(allowed) > most+1e-6 {
				r.Fatalf("%d requests in %s with %+v", allowed, c.now.Sub(start), limit)
			}
		}
	})
}

func TestAttackAtOnce(t *testing.T) {
	l, _ := newLimiter(t, ratelimit.Limit{Requests: 10, Window: time.Minute}, 10)
	var allowed atomic.Int64
	var wg sync.WaitGroup
	for range 500 {
		wg.Go(func() {
			if l.Take(alice).Allowed {
				allowed.Add(1)
			}
		})
	}
	wg.Wait()
	assert.EqualValues(t, 10, allowed.Load())
}

func TestLimitsThatAllowNothing(t *testing.T) {
	for _, l := range []ratelimit.Limit{{}, {Requests: 1}, {Window: time.Second}, {Requests: -1, Window: time.Second}} {
		_, err := ratelimit.New(l, 1, time.Now)
		assert.Error(t, err)
	}
	_, err := ratelimit.New(ratelimit.Limit{Requests: 1, Window: time.Second}, 0, time.Now)
	assert.Error(t, err)
}

func BenchmarkTake(b *testing.B) {
	l, err := ratelimit.New(ratelimit.Limit{Requests: 1000, Window: time.Second}, 1<<16, time.Now)
	require.NoError(b, err)
	keys := make([]ratelimit.Key, 1000)
	for i := range keys {
		keys[i] = ratelimit.ByPrincipal(models.KindDevice, fmt.Sprint(i))
	}
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		l.Take(keys[i%len(keys)])
	}
}
