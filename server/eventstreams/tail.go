package eventstreams

import (
	"context"
	"log/slog"
	"sync"
	"time"

	"github.com/groupcast/groupcast/models"
	"github.com/groupcast/groupcast/server/eventhub"
	"github.com/groupcast/groupcast/server/store"
)

const (
	// lookEvery is how often the database is asked for events of other replicas whose hint didn't come.
	lookEvery = 2 * time.Second
	// settleAfter is the wait for transactions that took an id before the newest event and have not ended.
	settleAfter = 5 * time.Millisecond
)

// Tail follows the table of all events. It knows up to which id nothing can come any more, which makes a single number the place of
// a stream that mixes those of many groups; and it wakes who waits for what other replicas recorded.
type Tail struct {
	store *store.Store
	hub   *eventhub.Hub
	log   *slog.Logger
	nudge chan struct{}

	mu      sync.Mutex
	settled int64
	known   chan struct{} // closed once settled is known
}

// NewTail makes a tail; Run has to run for as long as it is used.
func NewTail(st *store.Store, hub *eventhub.Hub, log *slog.Logger) *Tail {
	return &Tail{store: st, hub: hub, log: log, nudge: make(chan struct{}, 1), known: make(chan struct{})}
}

// Nudge says that there may be events. It never blocks.
func (t *Tail) Nudge() {
	select {
	case t.nudge <- struct{}{}:
	default: // it is about to look anyway
	}
}

// Run looks when it is nudged, and every two seconds, until the context is done.
func (t *Tail) Run(ctx context.Context) {
	tick := time.NewTicker(lookEvery)
	defer tick.Stop()
	for {
		if err := t.Look(ctx); err != nil && ctx.Err() == nil {
			t.log.WarnContext(ctx, "The events could not be looked at; it is tried again.", "error", err)
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		case <-t.nudge:
		}
	}
}

// Look catches up with the table and wakes who waits for what is new.
func (t *Tail) Look(ctx context.Context) error {
	t.mu.Lock()
	before := t.settled
	t.mu.Unlock()
	mark, err := t.store.MarkEvents(ctx, before)
	if err != nil {
		return err
	}
	if mark.Newest <= before { // sweeping may have taken the newest
		t.settle(before)
		return nil
	}
	for {
		settled, err := t.store.MarkSettled(ctx, mark)
		if err != nil {
			return err
		}
		if settled {
			break
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(settleAfter):
		}
	}
	if !t.isKnown() { // nobody can be waiting for what was before
		t.settle(mark.Newest)
		return nil
	}
	places, err := t.store.EventPlacesBetween(ctx, before, mark.Newest)
	if err != nil {
		return err
	}
	t.settle(mark.Newest)
	accounts := map[models.AccountID]bool{}
	for _, p := range places {
		t.hub.Wake(p)
		if !accounts[p.AccountID] {
			accounts[p.AccountID] = true
			t.hub.Wake(models.EventPlace{EventStream: wholeAccount(p.AccountID), Rev: mark.Newest})
		}
	}
	t.hub.Wake(models.EventPlace{EventStream: allAccounts, Rev: mark.Newest})
	return nil
}

func (t *Tail) settle(id int64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.settled = max(t.settled, id)
	select {
	case <-t.known:
	default:
		close(t.known)
	}
}

func (t *Tail) isKnown() bool {
	select {
	case <-t.known:
		return true
	default:
		return false
	}
}

// place is the id up to which everything is there. Right after the start it waits for the first look.
func (t *Tail) place(ctx context.Context) (int64, error) {
	select {
	case <-ctx.Done():
		return 0, ctx.Err()
	case <-t.known:
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.settled, nil
}

// What the hub knows mixed streams by; no group has such an id. Their numbers are ids of events.
const mixed = models.GroupID("*")

var allAccounts = models.EventStream{AccountID: "*", GroupID: mixed}

func wholeAccount(a models.AccountID) models.EventStream {
	return models.EventStream{AccountID: a, GroupID: mixed}
}
