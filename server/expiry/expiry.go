// Package expiry ends leases (SPEC §5): the only place where a member leaves because time passed.
//
// Every replica runs it. It never decides by a clock of its own, and never removes anyone after an outage of the service
// before everyone got the outage's length back.
package expiry

import (
	"context"
	"log/slog"
	"time"

	"github.com/groupcast/groupcast/models"
	"github.com/groupcast/groupcast/server/store"
)

// Waker is told which gateways have new group information, after the change is committed.
type Waker interface{ Wake(gatewayID models.ID) }

// Options are for tests; the zero value is right for production.
type Options struct {
	// Interval is the time between two looks; 0 means one second.
	Interval time.Duration
}

// Reaper ends leases.
type Reaper struct {
	store *store.Store
	waker Waker
	log   *slog.Logger
	opts  Options
}

// New makes the reaper; the waker is called after commit only.
func New(st *store.Store, waker Waker, log *slog.Logger, opts Options) *Reaper {
	return &Reaper{store: st, waker: waker, log: log, opts: opts}
}

// Run ends leases until the context is done.
func (r *Reaper) Run(ctx context.Context) {
	<-ctx.Done()
}
