// Package expiry ends leases (SPEC §5): the only place where a member leaves because time passed.
//
// Every replica runs it. It decides by the database's clock alone, and each removal is conditional, so that a renewal which
// came first wins and two replicas never remove twice. After an outage of the service it gives everybody the outage's length
// back before it removes anyone.
package expiry

import (
	"context"
	"errors"
	"log/slog"
	"maps"
	"slices"
	"time"

	"github.com/groupcast/groupcast/models"
	"github.com/groupcast/groupcast/server/audit"
	"github.com/groupcast/groupcast/server/registrations"
	"github.com/groupcast/groupcast/server/store"
)

const (
	// interval is how often leases are looked at.
	interval = time.Second
	// markEvery is how often it is recorded that they are: each record is a write to the disk.
	markEvery = 3 * time.Second
	// Outage is how long no replica recorded it when the service counts as having been away.
	Outage = 2*markEvery + 4*time.Second

	// batch bounds the leases of one look and the transactions it leads to; rounds bounds the looks before others get a turn.
	batch  = 100
	rounds = 50
	// amnestyBatch bounds the leases that one transaction extends.
	amnestyBatch = 1000
)

// Reaper ends leases.
type Reaper struct {
	store *store.Store
	log   *slog.Logger
}

// New makes the reaper.
func New(st *store.Store, log *slog.Logger) *Reaper {
	return &Reaper{store: st, log: log}
}

// Run ends leases until the context is done. A database that is away is logged once and tried again.
func (r *Reaper) Run(ctx context.Context) {
	tick := time.NewTicker(interval)
	defer tick.Stop()
	failing := false
	for {
		ended, err := r.Look(ctx)
		switch {
		case ctx.Err() != nil:
			return
		case err != nil && !failing:
			r.log.WarnContext(ctx, "leases can't be ended now; trying again every second", "error", err)
		case err == nil && failing:
			r.log.InfoContext(ctx, "leases are being ended again")
		}
		failing = err != nil
		if ended > 0 {
			r.log.InfoContext(ctx, "ended registrations", "count", ended)
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// Look ends what is over now and tells how many registrations ended. It also gives the amnesty that is due, and then ends
// nothing.
func (r *Reaper) Look(ctx context.Context) (ended int, err error) {
	if err := r.endLinks(ctx); err != nil {
		return 0, err
	}
	w, err := r.store.Watch(ctx)
	if err != nil {
		return 0, err
	}
	if w.Amnesty > 0 || w.Now.Sub(w.RanAt) >= markEvery {
		for more := true; more; {
			if more, err = r.mark(ctx); err != nil {
				return 0, err
			}
		}
	}
	for range rounds {
		due, err := r.store.DueLeases(ctx, batch)
		if err != nil {
			return ended, err
		}
		n, err := r.end(ctx, due)
		ended += n
		if err != nil || n == 0 || len(due) < batch {
			return ended, err
		}
	}
	return ended, nil
}

// endLinks ends the consents whose time is over, with the service's registrations in the account, one transaction for each. No
// amnesty extends them: whoever consented until a moment didn't until a later one.
func (r *Reaper) endLinks(ctx context.Context) error {
	due, err := r.store.DueLinks(ctx, batch)
	if err != nil {
		return err
	}
	for _, l := range due {
		err := r.store.Write(ctx, func(tx *store.Tx) error {
			if err := registrations.EndOwned(ctx, tx, store.Owner{Service: l.ServiceID, ServiceAccountID: l.ServiceAccountID}); err != nil {
				return err
			}
			over, err := tx.DeleteDueLink(l)
			switch {
			case r.store.IsReference(err): // a registration that was under way came in
				return store.ErrAgain
			case err != nil:
				return err
			case !over: // consented again, or another replica was first
				return errNothingOver
			}
			if err := tx.AppendLinkEvent(models.EventLinkRevoked, l); err != nil {
				return err
			}
			return audit.Record(tx, audit.Entry{Actor: audit.System, Account: l.AccountID, Action: audit.LinkEnd, Object: audit.OfService(l.ServiceID)})
		})
		if errors.Is(err, errNothingOver) {
			continue
		}
		if err != nil {
			return err
		}
		r.log.InfoContext(ctx, "a consent for a service has ended", "service", l.ServiceID)
	}
	return nil
}

// mark records that leases are being looked at. If nobody did for the time of an outage, everybody's lease is extended by the
// outage's length, at most by its own TTL; mark does that batch by batch, and tells whether there is more to do. The lock lets one
// replica at a time do it, and what is recorded lets any replica go on.
func (r *Reaper) mark(ctx context.Context) (more bool, err error) {
	err = r.store.Write(ctx, func(tx *store.Tx) error {
		w, err := tx.LockWatch()
		if err != nil {
			return err
		}
		gap := w.Now.Sub(w.RanAt)
		if !w.RanAt.IsZero() && gap > Outage {
			// An amnesty that the outage interrupted begins again with both: nobody gets less than both lengths.
			w.Amnesty, w.AmnestyAfter = w.Amnesty+gap, ""
			r.log.InfoContext(ctx, "nobody looked at the leases for a while; extending all of them by that", "gap", gap)
		}
		w.RanAt = w.Now
		if more = w.Amnesty > 0; more {
			if w.AmnestyAfter, err = tx.ExtendLeases(w.AmnestyAfter, amnestyBatch, w.Amnesty); err != nil {
				return err
			}
			if w.AmnestyAfter == "" {
				w.Amnesty, more = 0, false
			}
		}
		return tx.SetWatch(w)
	})
	return more, err
}

// errNothingOver rolls back a transaction that would raise a revision for nothing.
var errNothingOver = errors.New("nothing is over any more")

// end ends leases, one transaction for each gateway, and counts the registrations that ended with them.
func (r *Reaper) end(ctx context.Context, due []store.Place) (ended int, err error) {
	at := store.ByGateway(due)
	for _, id := range slices.Sorted(maps.Keys(at)) {
		n := 0
		err := r.store.Write(ctx, func(tx *store.Tx) error {
			gateway, found, err := tx.LockGateway(id)
			if err != nil {
				return err
			}
			if !found {
				return errNothingOver
			}
			over, err := tx.EndDueLeases(at[id], Outage)
			if err != nil {
				return err
			}
			if len(over) == 0 { // renewed, or another replica was first
				return errNothingOver
			}
			all, err := registrations.End(ctx, tx, gateway, over, models.EventMemberExpired)
			n = len(all)
			return err
		})
		if errors.Is(err, errNothingOver) {
			continue
		}
		if err != nil {
			return ended, err
		}
		ended += n
	}
	return ended, nil
}
