package audit

import (
	"context"
	"log/slog"
	"sync"
	"time"

	"github.com/groupcast/groupcast/models"
	"github.com/groupcast/groupcast/server/store"
)

const (
	// foldFor is how long refusals that are alike become one row.
	foldFor = time.Minute
	// maxFolds bounds how many kinds are told apart in that time: of callers that are known, and of strangers, who must not use up the others'
	// room. What is more is counted by its reason alone.
	maxFolds = 100
	// flushEvery is how often what came is written.
	flushEvery = time.Second
	// lastFlush bounds the one at the stop.
	lastFlush = 5 * time.Second
)

// Refusals writes rows about requests that were refused. The first of a kind, which is who, from where, what and why, is written within a
// second; those that follow within a minute become one row with their number. So neither a flood nor a loop slows anybody down: one request
// costs a lookup in memory, and all together at most some 200 rows a minute and replica. What a process that is killed had not yet written
// is lost; a refused request changed nothing.
type Refusals struct {
	store *store.Store
	log   *slog.Logger
	now   func() time.Time

	mu               sync.Mutex
	known, strangers map[Entry]*fold
}

// fold is what is known of one kind of refusals.
type fold struct {
	requestID string // of the first that is not written yet
	count     int64  // of those not written yet
	written   time.Time
}

// NewRefusals makes it; Run has to run for as long as it is used.
func NewRefusals(st *store.Store, now func() time.Time, log *slog.Logger) *Refusals {
	return &Refusals{store: st, log: log, now: now, known: map[Entry]*fold{}, strangers: map[Entry]*fold{}}
}

// Add counts a refused request. It never blocks on the database.
func (r *Refusals) Add(c Caller, operation string, why models.Code) {
	kind := Entry{Actor: By(c.Principal), Account: c.Principal.AccountID, Action: Request, Object: OfOperation(operation), Refused: why}
	r.mu.Lock()
	defer r.mu.Unlock()
	folds := r.known
	if c.Principal.Kind == "" {
		folds = r.strangers
	}
	// One network and not one address: that is all a row keeps.
	if p := models.SourcePrefix(c.Source); p.IsValid() {
		kind.Source = p.Addr()
	}
	f := folds[kind]
	if f == nil && len(folds) >= maxFolds {
		kind = Entry{Actor: System, Action: RequestMore, Refused: why}
		f = folds[kind]
	}
	if f == nil {
		f = &fold{}
		folds[kind] = f
	}
	if f.count == 0 {
		f.requestID = c.RequestID
	}
	f.count++
}

// Run writes what came until the context is done, and then the rest.
func (r *Refusals) Run(ctx context.Context) {
	tick := time.NewTicker(flushEvery)
	defer tick.Stop()
	failing := false
	for {
		select {
		case <-ctx.Done():
			ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), lastFlush)
			defer cancel()
			if err := r.flush(ctx, true); err != nil {
				r.log.WarnContext(ctx, "the last refused requests are missing in the audit log", "error", err)
			}
			return
		case <-tick.C:
		}
		err := r.Flush(ctx)
		if err != nil && !failing && ctx.Err() == nil {
			r.log.WarnContext(ctx, "refused requests can't be written to the audit log; trying again every second", "error", err)
		}
		failing = err != nil
	}
}

// Flush writes what is due. Run does it.
func (r *Refusals) Flush(ctx context.Context) error { return r.flush(ctx, false) }

// flush writes what is due, or everything, in one transaction, and forgets the kinds that have rested.
func (r *Refusals) flush(ctx context.Context, all bool) error {
	type due struct {
		folds map[Entry]*fold
		kind  Entry
		count int64
	}
	var rows []Entry
	var taken []due
	now := r.now()
	r.mu.Lock()
	for _, folds := range []map[Entry]*fold{r.known, r.strangers} {
		for kind, f := range folds {
			rested := now.Sub(f.written) >= foldFor
			switch {
			case f.count == 0 && rested:
				delete(folds, kind)
			case f.count > 0 && (rested || all):
				row := kind
				row.Count = f.count
				if row.RequestID = f.requestID; f.count > 1 {
					row.RequestID = "" // it is about all of them
				}
				rows = append(rows, row)
				taken = append(taken, due{folds, kind, f.count})
				f.count, f.written = 0, now
			}
		}
	}
	r.mu.Unlock()
	if len(rows) == 0 {
		return nil
	}
	err := r.store.Write(ctx, func(tx *store.Tx) error { return Record(tx, rows...) })
	if err != nil {
		r.mu.Lock()
		defer r.mu.Unlock()
		for _, d := range taken { // nobody else removes a fold
			f := d.folds[d.kind]
			f.count += d.count
			f.written = time.Time{}
		}
	}
	return err
}
