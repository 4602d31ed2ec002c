package replay

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"log/slog"
	"time"

	"github.com/groupcast/groupcast/server/store"
)

const (
	// sweepEvery is how often the table is swept.
	sweepEvery = time.Minute
	// clockMargin is how far the clocks of replicas and database may be apart: a key is kept that much longer than it is valid.
	clockMargin = 5 * time.Minute
	// sweepBatch bounds the keys of one statement.
	sweepBatch = 5000
)

// Table remembers keys in the database, for all replicas, as digests. It costs a write for each key.
type Table struct {
	store *store.Store
	log   *slog.Logger
}

// NewTable makes the memory that all replicas on one database share.
func NewTable(st *store.Store, log *slog.Logger) *Table { return &Table{store: st, log: log} }

// Use marks the key as used. It fails with ErrUsed if the key was used before on any replica, or because the database can't be reached.
func (t *Table) Use(ctx context.Context, key string, until time.Time) error {
	sum := sha256.Sum256([]byte(key))
	first, err := t.store.InsertReplay(ctx, hex.EncodeToString(sum[:]), until)
	if err == nil && !first {
		err = ErrUsed
	}
	return err
}

// Run sweeps expired keys until the context is done. A database that is away is logged once and tried again.
func (t *Table) Run(ctx context.Context) {
	tick := time.NewTicker(sweepEvery)
	defer tick.Stop()
	failing := false
	for {
		err := t.Sweep(ctx)
		switch {
		case ctx.Err() != nil:
			return
		case err != nil && !failing:
			t.log.WarnContext(ctx, "used proofs can't be swept now; trying again every minute", "error", err)
		}
		failing = err != nil
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// Sweep forgets the keys that have expired on every replica's clock.
func (t *Table) Sweep(ctx context.Context) error {
	for {
		n, err := t.store.DeleteReplays(ctx, clockMargin, sweepBatch)
		if err != nil || n < sweepBatch {
			return err
		}
	}
}
