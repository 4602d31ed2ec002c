package replay_test

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/groupcast/groupcast/server/replay"
)

type clock struct{ now time.Time }

func (c *clock) Now() time.Time { return c.now }

func newMemory(t testing.TB, capacity int) (*replay.Memory, *clock) {
	t.Helper()
	c := &clock{now: time.Unix(1_700_000_000, 0)}
	m, err := replay.NewMemory(capacity, c.Now)
	if err != nil {
		t.Fatal(err)
	}
	return m, c
}

func TestAKeyCanBeUsedOnce(t *testing.T) {
	m, c := newMemory(t, 10)
	ctx := context.Background()
	until := c.now.Add(time.Minute)
	if err := m.Use(ctx, "a", until); err != nil {
		t.Fatal(err)
	}
	if err := m.Use(ctx, "a", until); !errors.Is(err, replay.ErrUsed) {
		t.Fatalf("second use: %v, want ErrUsed", err)
	}
	if err := m.Use(ctx, "a", until.Add(time.Hour)); !errors.Is(err, replay.ErrUsed) {
		t.Fatalf("second use with a later expiry: %v, want ErrUsed", err)
	}
	if err := m.Use(ctx, "b", until); err != nil {
		t.Fatalf("another key: %v", err)
	}
}

func TestExpiredKeysCostNothing(t *testing.T) {
	m, c := newMemory(t, 1000)
	for i := range 500 {
		if err := m.Use(context.Background(), fmt.Sprint(i), c.now.Add(time.Minute)); err != nil {
			t.Fatal(err)
		}
	}
	c.now = c.now.Add(2 * time.Minute)
	if err := m.Use(context.Background(), "new", c.now.Add(time.Minute)); err != nil {
		t.Fatal(err)
	}
	if n := m.Len(); n != 1 {
		t.Fatalf("%d keys are remembered, want only the one that is alive", n)
	}
}

func TestHostileFloodNeverMakesRoomForAReplay(t *testing.T) {
	m, c := newMemory(t, 100)
	ctx := context.Background()
	if err := m.Use(ctx, "victim", c.now.Add(time.Minute)); err != nil {
		t.Fatal(err)
	}
	for i := range 10_000 {
		_ = m.Use(ctx, fmt.Sprint("flood", i), c.now.Add(2*time.Minute+time.Duration(i)*time.Millisecond))
	}
	if n := m.Len(); n > 100 {
		t.Fatalf("%d keys are remembered, capacity is 100", n)
	}
	if err := m.Use(ctx, "victim", c.now.Add(time.Minute)); err == nil {
		t.Fatal("the flood made the memory forget the victim's key, and it was accepted again")
	}
	// A caller that asks for a later expiry, as a fresh nonce gives, is served.
	if err := m.Use(ctx, "honest", c.now.Add(5*time.Minute)); err != nil {
		t.Fatalf("a later key was refused: %v", err)
	}
}

func TestNoSequenceOfUsesIsEverAcceptedTwice(t *testing.T) {
	rapid.Check(t, func(r *rapid.T) {
		c := &clock{now: time.Unix(1_700_000_000, 0)}
		m, err := replay.NewMemory(rapid.IntRange(1, 8).Draw(r, "capacity"), c.Now)
		if err != nil {
			r.Fatal(err)
		}
		accepted := map[string]time.Time{}
		for range rapid.IntRange(1, 200).Draw(r, "steps") {
			c.now = c.now.Add(time.Duration(rapid.IntRange(0, 3000).Draw(r, "ms")) * time.Millisecond)
			key := fmt.Sprint(rapid.IntRange(0, 30).Draw(r, "key"))
			until, again := accepted[key]
			if !again {
				until = c.now.Add(time.Duration(rapid.IntRange(0, 20_000).Draw(r, "life")) * time.Millisecond)
			}
			if until.Before(c.now) {
				continue // the caller refuses it for its age
			}
			if err := m.Use(context.Background(), key, until); err == nil {
				if again {
					r.Fatalf("key %s was accepted twice before %v", key, until)
				}
				accepted[key] = until
			}
		}
	})
}

func TestOneOfManyAtOnceIsAccepted(t *testing.T) {
	m, c := newMemory(t, 100)
	var accepted atomic.Int64
	var wg sync.WaitGroup
	for range 64 {
		wg.Go(func() {
			if m.Use(context.Background(), "same", c.now.Add(time.Minute)) == nil {
				accepted.Add(1)
			}
		})
	}
	wg.Wait()
	if n := accepted.Load(); n != 1 {
		t.Fatalf("%d of 64 uses at once were accepted, want 1", n)
	}
}

func TestACapacityIsNeeded(t *testing.T) {
	if _, err := replay.NewMemory(0, time.Now); err == nil {
		t.Fatal("a memory without room was made")
	}
}
