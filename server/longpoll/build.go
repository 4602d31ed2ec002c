package longpoll

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/groupcast/groupcast/models"
)

const (
	// buildAtOnce gateways are read in one statement, and builders work at once: while one reads, the other renders.
	buildAtOnce = 500
	builders    = 2
)

// built is a snapshot, and the gateway's tokens that it isn't for.
type built struct {
	Snapshot
	notBefore time.Time
	wake      uint64 // after which it was read; 0 if that isn't known
}

// asked is what is built once for all who ask for it: a gateway's group information as it is after a wake-up, or at least as new as at.
type asked struct {
	gateway models.ID
	wake    uint64
	at      Cursor
}

// builds are the snapshots that somebody waits for. Gateways that are asked for while others are being read go into the next statement, and
// few goroutines do the work of all: a change of very many at once needs no stack for each, nor a turn of the scheduler for each step.
type builds struct {
	mu      sync.Mutex
	open    map[asked]*building // asked for and not built yet
	waiting []*building         // those of them that nobody has begun
	workers int
}

type building struct {
	asked
	done chan struct{} // closed when the rest is there
	built
	err error
}

// build reads and renders a gateway's group information, once for all who ask for the same thing meanwhile. It begins after it was asked for.
func (h *Hub) build(ctx context.Context, a asked) (built, error) {
	h.builds.mu.Lock()
	b := h.builds.open[a]
	if b == nil {
		b = &building{asked: a, done: make(chan struct{})}
		if h.builds.open == nil {
			h.builds.open = map[asked]*building{}
		}
		h.builds.open[a] = b
		h.builds.waiting = append(h.builds.waiting, b)
		if h.builds.workers < builders {
			h.builds.workers++
			go h.buildAll() //nolint:contextcheck // it builds for others too
		}
	}
	h.builds.mu.Unlock()
	select {
	case <-ctx.Done():
		return built{}, context.Cause(ctx)
	case <-b.done:
		return b.built, b.err
	}
}

// buildAll builds until nobody waits.
func (h *Hub) buildAll() {
	for {
		h.builds.mu.Lock()
		n := min(len(h.builds.waiting), buildAtOnce)
		if n == 0 {
			h.builds.workers--
			h.builds.mu.Unlock()
			return
		}
		batch := h.builds.waiting[:n:n]
		h.builds.waiting = h.builds.waiting[n:]
		h.builds.mu.Unlock()
		h.buildSome(batch)
	}
}

// buildSome reads some in one statement, and renders them.
func (h *Hub) buildSome(batch []*building) {
	ids := make([]models.ID, len(batch))
	for i, b := range batch {
		ids[i] = b.gateway
	}
	ctx, cancel := context.WithTimeout(context.Background(), readTimeout)
	defer cancel()
	all, err := h.o.Information(ctx, ids)
	for _, b := range batch {
		info, exists := all[b.gateway]
		switch {
		case err != nil:
			b.err = fmt.Errorf("read the group information: %w", err)
		case !exists:
			b.err = models.NotFound()
		default:
			b.built, b.err = h.render(info, b.asked)
		}
		h.builds.mu.Lock()
		delete(h.builds.open, b.asked) // who asks from now on may mean something newer
		h.builds.mu.Unlock()
		close(b.done)
	}
}

func (h *Hub) render(info models.GroupInformation, a asked) (built, error) {
	body, err := h.o.Render(info)
	if err != nil {
		return built{}, fmt.Errorf("render the group information: %w", err)
	}
	b := built{Snapshot{Cursor: Cursor{Epoch: info.Epoch, Revision: info.Revision}, Body: body}, info.NotBefore, a.wake}
	h.keep(a.gateway, b)
	return b, nil
}
