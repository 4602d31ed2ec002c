// Package longpoll lets gateways and relays wait for their group information to change (SPEC §6, design: control-plane.md §3.3). It owns the set of
// waiters, what wakes them, the snapshots that are being served, and the acknowledgements on their way to the database.
//
// The database is the truth: a wake-up is only a hint to read it, and losing all hints costs two seconds. The package reads no
// request, writes no answer, and never makes an empty snapshot of an error.
package longpoll

import (
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	lru "github.com/hashicorp/golang-lru/v2"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/groupcast/groupcast/models"
)

const (
	// MaxWait is the longest wait that is granted; with its jitter it stays below the usual 60 s of load balancers.
	MaxWait = 50 * time.Second
	// maxPerGateway waiters of one gateway may be there at once; one more ends the oldest.
	maxPerGateway = 2
	// pollEvery is how often the database is asked about all waiting gateways at once.
	pollEvery = 2 * time.Second
	// lookAtOnce gateways are asked about in one statement; lookPause is the pause before the next.
	lookAtOnce = 500
	lookPause  = 5 * time.Millisecond
	// pace is the shortest time between two changes that are answered to one gateway.
	pace = 50 * time.Millisecond
	// readTimeout bounds a read that several callers share.
	readTimeout = 10 * time.Second
	// cachedSnapshots is how many gateways' snapshots are kept.
	cachedSnapshots = 2048
	// forgetAfter is when a gateway that doesn't ask any more is forgotten.
	forgetAfter = time.Hour
)

// Options say where the hub reads and writes.
type Options struct {
	// Epoch reads the name of this life of the database.
	Epoch func(context.Context) (string, error)
	// Standings reads where those of the gateways stand that exist.
	Standings func(context.Context, []models.ID) (map[models.ID]models.Standing, error)
	// Information reads the group information of those of the gateways that exist, whole.
	Information func(context.Context, []models.ID) (map[models.ID]models.GroupInformation, error)
	// Render makes the bytes that are served; the same information has to give the same bytes.
	Render func(models.GroupInformation) ([]byte, error)
	// Record stores acknowledgements.
	Record func(context.Context, []models.Poll) error
	// MaxWaiters is how many may wait at once in this process.
	MaxWaiters int
	Log        *slog.Logger
	Metrics    prometheus.Registerer
}

// Snapshot is a gateway's group information as it is served.
type Snapshot struct {
	Cursor Cursor
	// Body must not be changed: it is shared.
	Body []byte
}

// Hub is the set of waiters of one process. It is safe for concurrent use.
type Hub struct {
	o       Options
	metrics metrics
	builds  builds
	cache   *lru.Cache[models.ID, built]

	mu       sync.Mutex
	gateways map[models.ID]*gateway
	ahead    sync.Once // warns of a database that may have been restored
	waiters  int
	wakes    uint64 // how often anybody was woken
	draining bool
	empty    chan struct{} // closed when draining and nobody waits any more
	epoch    string
	epochAt  time.Time

	answering atomic.Int64  // waiters that were woken and have no answer yet
	calm      chan struct{} // closed when they are a crowd no more; nil if nobody asked

	flush chan struct{} // asks for the acknowledgements to be written soon
}

// gateway is what the hub remembers of one gateway, or of a relay, which waits like one.
type gateway struct {
	waiters  []*waiter // oldest first
	wake     uint64    // number of the newest wake-up; 0 before the first
	answered time.Time // when a change was answered last
	polled   time.Time // when it asked last
	acked    Cursor    // the newest it said it holds
	unsaved  bool      // polled and acked are not in the database yet
	relay    bool      // it is a relay
}

// crowd is how many have to be answered at once for new requests to wait.
const crowd = 64

// waiter is one request that waits.
type waiter struct {
	gateway  models.ID
	cursor   Cursor
	issuedAt time.Time
	wake     chan struct{} // look at the database
	finish   chan Reason   // answer now, with what is there
}

// New makes a hub. Run has to run for as long as it is used.
func New(o Options) *Hub {
	cache, err := lru.New[models.ID, built](cachedSnapshots)
	if err != nil {
		panic(err) // only for a size below 1
	}
	return &Hub{
		o: o, metrics: newMetrics(o.Metrics), cache: cache, gateways: map[models.ID]*gateway{},
		empty: make(chan struct{}), flush: make(chan struct{}, 1),
	}
}

// Wake says that a gateway's group information has changed, that it is gone, or that its tokens were withdrawn. It is called after commit and
// never blocks.
func (h *Hub) Wake(id models.ID) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if g := h.gateways[id]; g != nil {
		h.wakes++
		g.wake = h.wakes
		for _, w := range g.waiters {
			w.nudge()
		}
	}
}

func (w *waiter) nudge() {
	select {
	case w.wake <- struct{}{}:
	default: // it is about to look anyway
	}
}

func (w *waiter) end(why Reason) {
	select {
	case w.finish <- why:
	default: // it is about to end anyway
	}
}

// Run looks at the database every two seconds on behalf of all who wait, and writes acknowledgements, until the context is done.
func (h *Hub) Run(ctx context.Context) {
	var wg sync.WaitGroup
	wg.Go(func() { h.saveAcknowledgements(ctx) })
	tick := time.NewTicker(pollEvery)
	defer tick.Stop()
	for ctx.Err() == nil {
		select {
		case <-ctx.Done():
		case <-tick.C:
			h.lookForAll(ctx)
			h.forget()
		}
	}
	wg.Wait()
}

// lookForAll wakes everyone whose gateway is no longer where its cursor is, is gone, or whose token was withdrawn: what a hint would have
// done, had it come.
func (h *Hub) lookForAll(ctx context.Context) {
	ids := h.waiting()
	for len(ids) > 0 && ctx.Err() == nil {
		n := min(len(ids), lookAtOnce)
		h.lookFor(ctx, ids[:n])
		if ids = ids[n:]; len(ids) > 0 {
			// Else all statements would come at the same moment, and whoever waits for a change would wait for them.
			select {
			case <-ctx.Done():
			case <-time.After(lookPause):
			}
		}
	}
}

// lookFor does so for some gateways, in one statement.
func (h *Hub) lookFor(ctx context.Context, ids []models.ID) {
	ctx, cancel := context.WithTimeout(ctx, readTimeout)
	defer cancel()
	epoch, err := h.currentEpoch(ctx, true)
	var standings map[models.ID]models.Standing
	if err == nil {
		standings, err = h.o.Standings(ctx, ids)
	}
	if err != nil {
		if ctx.Err() == nil {
			h.o.Log.WarnContext(ctx, "changed group information can't be looked for; waiting gateways are not told", "error", err, "waiting", len(ids))
		}
		return
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, id := range ids {
		g := h.gateways[id]
		if g == nil {
			continue
		}
		at, exists := standings[id]
		for _, w := range g.waiters {
			if exists && w.cursor.Epoch == epoch && at.Revision <= w.cursor.Revision && !w.issuedAt.Before(at.NotBefore) {
				continue
			}
			if len(w.wake) == 0 {
				h.metrics.missedHints.Inc()
			}
			h.wakes++
			g.wake = h.wakes
			w.nudge()
		}
	}
}

func (h *Hub) waiting() []models.ID {
	h.mu.Lock()
	defer h.mu.Unlock()
	ids := make([]models.ID, 0, h.waiters)
	for id, g := range h.gateways {
		if len(g.waiters) > 0 {
			ids = append(ids, id)
		}
	}
	return ids
}

func (h *Hub) forget() {
	h.mu.Lock()
	defer h.mu.Unlock()
	for id, g := range h.gateways {
		if len(g.waiters) == 0 && !g.unsaved && time.Since(g.polled) > forgetAfter {
			delete(h.gateways, id)
		}
	}
}

// gatewayLocked gives what is remembered of a gateway; h.mu is held.
func (h *Hub) gatewayLocked(id models.ID) *gateway {
	g := h.gateways[id]
	if g == nil {
		g = &gateway{}
		h.gateways[id] = g
	}
	return g
}

// join makes the caller a waiter. It is refused while the hub drains or is full; superseding an older waiter of the same gateway
// always has room.
func (h *Hub) join(r Request, c Cursor) (w *waiter, draining, full bool) {
	id := r.Gateway
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.draining {
		return nil, true, false
	}
	g := h.gateways[id]
	supersedes := g != nil && len(g.waiters) >= maxPerGateway
	if h.waiters >= h.o.MaxWaiters && !supersedes {
		return nil, false, true
	}
	g = h.gatewayLocked(id)
	w = &waiter{gateway: id, cursor: c, issuedAt: r.IssuedAt, wake: make(chan struct{}, 1), finish: make(chan Reason, 1)}
	if supersedes {
		oldest := g.waiters[0]
		h.removeLocked(g, oldest)
		oldest.end(Superseded)
	}
	g.waiters = append(g.waiters, w)
	h.waiters++
	h.metrics.waiters.Set(float64(h.waiters))
	return w, false, false
}

// leave ends a wait, for whatever reason.
func (h *Hub) leave(w *waiter) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if g := h.gateways[w.gateway]; g != nil {
		h.removeLocked(g, w)
	}
}

func (h *Hub) removeLocked(g *gateway, w *waiter) {
	for i, other := range g.waiters {
		if other == w {
			g.waiters = append(g.waiters[:i:i], g.waiters[i+1:]...)
			h.waiters--
			h.metrics.waiters.Set(float64(h.waiters))
			if h.draining && h.waiters == 0 {
				close(h.empty)
			}
			return
		}
	}
}

// Drain ends all waits, spread over the given time so that the gateways don't come back all at once, and from then on lets
// nobody wait. It returns when nobody waits any more or the context is done.
func (h *Hub) Drain(ctx context.Context, spread time.Duration) {
	h.mu.Lock()
	if h.draining {
		h.mu.Unlock()
		return
	}
	h.draining = true
	if h.waiters == 0 {
		close(h.empty)
	}
	var timers []*time.Timer
	for _, g := range h.gateways {
		for _, w := range g.waiters {
			timers = append(timers, time.AfterFunc(upTo(spread), func() { w.end(Draining) }))
		}
	}
	h.mu.Unlock()
	select {
	case <-h.empty:
	case <-ctx.Done():
	}
	for _, t := range timers {
		t.Stop()
	}
}

// upTo draws a time from 0 to d.
func upTo(d time.Duration) time.Duration {
	if d <= 0 {
		return 0
	}
	return rand.N(d)
}

// currentEpoch reads the epoch, at most every two seconds unless fresh: it changes only when a backup is restored.
func (h *Hub) currentEpoch(ctx context.Context, fresh bool) (string, error) {
	h.mu.Lock()
	epoch, at := h.epoch, h.epochAt
	h.mu.Unlock()
	if epoch != "" && !fresh && time.Since(at) < pollEvery {
		return epoch, nil
	}
	epoch, err := h.o.Epoch(ctx)
	if err != nil {
		return "", fmt.Errorf("read the epoch: %w", err)
	}
	h.mu.Lock()
	h.epoch, h.epochAt = epoch, time.Now()
	h.mu.Unlock()
	return epoch, nil
}

// current reads where a gateway's group information stands, for a request that still may know.
func (h *Hub) current(ctx context.Context, r Request) (Cursor, error) {
	epoch, err := h.currentEpoch(ctx, false)
	if err != nil {
		return Cursor{}, err
	}
	standings, err := h.o.Standings(ctx, []models.ID{r.Gateway})
	if err != nil {
		return Cursor{}, fmt.Errorf("read the revision: %w", err)
	}
	at, ok := standings[r.Gateway]
	switch {
	case !ok:
		return Cursor{}, removed()
	case r.IssuedAt.Before(at.NotBefore):
		return Cursor{}, withdrawn()
	}
	return Cursor{Epoch: epoch, Revision: at.Revision}, nil
}

func withdrawn() error {
	return models.Errorf(models.CodeUnauthenticated, "The access token was withdrawn while this waited: get a new one.")
}

// fresh gives a gateway's group information as it was after its newest wake-up. Those whom that woke share one read, and nobody shares one
// that may have begun before the change that woke him.
func (h *Hub) fresh(ctx context.Context, r Request) (Snapshot, error) {
	h.mu.Lock()
	wake := h.gatewayLocked(r.Gateway).wake
	h.mu.Unlock()
	b, ok := h.cache.Get(r.Gateway)
	var err error
	if !ok || wake == 0 || b.wake != wake {
		b, err = h.build(ctx, asked{gateway: r.Gateway, wake: wake})
	}
	if err == nil && r.IssuedAt.Before(b.notBefore) {
		err = withdrawn()
	}
	return b.Snapshot, err
}

// snapshot gives the snapshot of a state or of a newer one. It is built once, however many ask.
func (h *Hub) snapshot(ctx context.Context, id models.ID, at Cursor) (Snapshot, error) {
	if b, ok := h.cache.Get(id); ok && b.Cursor == at {
		return b.Snapshot, nil
	}
	b, err := h.build(ctx, asked{gateway: id, at: at})
	return b.Snapshot, err
}

// keep caches a snapshot unless there is a newer one. A build that was slow must not replace what came after it.
func (h *Hub) keep(id models.ID, b built) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if old, ok := h.cache.Peek(id); ok && old.Cursor.Epoch == b.Cursor.Epoch && old.Cursor.Revision > b.Cursor.Revision {
		return
	}
	h.cache.Add(id, b)
}
