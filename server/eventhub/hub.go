// Package eventhub lets many wait, in one process, for the next event of a stream: SSE, long polls and MQTT all wait here (SPEC §7).
//
// It carries hints and no events. Whoever is woken reads the database and asks again whether the listener may hear it, so a hint that comes
// twice, late or never does no harm beyond the time that its waiter looks by itself. It remembers nothing of streams that nobody
// watches.
package eventhub

import (
	"context"
	"hash/maphash"
	"log/slog"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/groupcast/groupcast/models"
)

// shards keep watchers of different streams from waiting for one lock.
const shards = 64

const (
	// lookEvery is how often the database is asked about all watched streams at once.
	lookEvery = 2 * time.Second
	// lookTimeout bounds that, and lookBatch the streams of one question.
	lookTimeout = 10 * time.Second
	lookBatch   = 1000
)

// Hub knows who waits for which stream. It is safe for concurrent use.
type Hub struct {
	seed   maphash.Seed
	shards [shards]shard
}

type shard struct {
	mu     sync.Mutex
	topics map[models.EventStream]*topic
	_      [40]byte // a cache line for each
}

// topic is a stream that somebody watches.
type topic struct {
	rev      int64         // the newest that was heard of
	next     chan struct{} // closed at the next hint
	watchers int
}

// New makes a hub.
func New() *Hub {
	h := &Hub{seed: maphash.MakeSeed()}
	for i := range h.shards {
		h.shards[i].topics = map[models.EventStream]*topic{}
	}
	return h
}

func (h *Hub) shard(of models.EventStream) *shard {
	return &h.shards[maphash.Comparable(h.seed, of)%shards]
}

// Watch is somebody's interest in a stream, until Close.
type Watch struct {
	hub  *Hub
	of   models.EventStream
	once sync.Once
}

// Watch begins to watch a stream. To miss nothing: Watch, then Next, then read the database, then wait for what Next gave.
func (h *Hub) Watch(of models.EventStream) *Watch {
	s := h.shard(of)
	s.mu.Lock()
	defer s.mu.Unlock()
	t := s.topics[of]
	if t == nil {
		t = &topic{next: make(chan struct{})}
		s.topics[of] = t
	}
	t.watchers++
	return &Watch{hub: h, of: of}
}

// woken is for those who need not wait.
var woken = func() chan struct{} { c := make(chan struct{}); close(c); return c }()

// Next gives a channel that is closed when there may be something newer than rev; at once if that is known already. It must not be called
// after Close.
func (w *Watch) Next(rev int64) <-chan struct{} {
	s := w.hub.shard(w.of)
	s.mu.Lock()
	defer s.mu.Unlock()
	t := s.topics[w.of]
	if t.rev > rev {
		return woken
	}
	return t.next
}

// Close ends the watch. Closing it twice is allowed.
func (w *Watch) Close() {
	w.once.Do(func() {
		s := w.hub.shard(w.of)
		s.mu.Lock()
		defer s.mu.Unlock()
		t := s.topics[w.of]
		if t.watchers--; t.watchers == 0 {
			delete(s.topics, w.of)
		}
	})
}

// Wake says that an event was recorded. It never blocks; one that is not newer than what was heard of wakes nobody.
func (h *Hub) Wake(p models.EventPlace) {
	s := h.shard(p.EventStream)
	s.mu.Lock()
	defer s.mu.Unlock()
	if t := s.topics[p.EventStream]; t != nil && p.Rev > t.rev {
		t.rev = p.Rev
		t.wake()
	}
}

func (t *topic) wake() {
	close(t.next)
	t.next = make(chan struct{})
}

// WakeAll wakes everybody, spread over the given time so that they don't read all at once: hints may have been lost. It returns
// when the last was woken.
func (h *Hub) WakeAll(spread time.Duration) {
	pause := spread / shards
	for _, i := range rand.Perm(shards) {
		s := &h.shards[i]
		s.mu.Lock()
		for _, t := range s.topics {
			t.wake()
		}
		s.mu.Unlock()
		time.Sleep(pause)
	}
}

// Run asks the database every two seconds for the newest events of all streams that somebody watches, until the context is done: it does
// what hints would have done, had they come.
func (h *Hub) Run(ctx context.Context, newest func(context.Context, []models.EventStream) ([]models.EventPlace, error), log *slog.Logger) {
	tick := time.NewTicker(lookEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		watched := h.watched()
		for len(watched) > 0 && ctx.Err() == nil {
			some := watched[:min(len(watched), lookBatch)]
			watched = watched[len(some):]
			bounded, cancel := context.WithTimeout(ctx, lookTimeout)
			places, err := newest(bounded, some)
			cancel()
			if err != nil {
				if ctx.Err() == nil {
					log.WarnContext(ctx, "new events can't be looked for; whoever waits for them is not told", "error", err, "streams", len(some))
				}
				break
			}
			for _, p := range places {
				h.Wake(p)
			}
		}
	}
}

func (h *Hub) watched() (all []models.EventStream) {
	for i := range h.shards {
		s := &h.shards[i]
		s.mu.Lock()
		for of := range s.topics {
			all = append(all, of)
		}
		s.mu.Unlock()
	}
	return all
}

// Watched counts the streams that somebody watches.
func (h *Hub) Watched() int { return len(h.watched()) }
