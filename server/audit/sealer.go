package audit

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/groupcast/groupcast/models"
	"github.com/groupcast/groupcast/server/store"
)

const (
	// interval is how often committed rows are looked for: twice as often as they have to be sealed.
	interval = 500 * time.Millisecond
	// batch bounds the rows of one transaction.
	batch = 500
)

// Sealer chains committed rows. Every replica runs one; whichever comes first does a batch.
type Sealer struct {
	store *store.Store
	log   *slog.Logger
}

// NewSealer makes a sealer.
func NewSealer(st *store.Store, log *slog.Logger) *Sealer { return &Sealer{store: st, log: log} }

// Run seals until the context is done. A database that is away is logged once and tried again.
func (s *Sealer) Run(ctx context.Context) {
	tick := time.NewTicker(interval)
	defer tick.Stop()
	failing := false
	for {
		_, err := s.Seal(ctx)
		switch {
		case ctx.Err() != nil:
			return
		case err != nil && !failing:
			s.log.WarnContext(ctx, "audit rows can't be sealed now; trying again twice a second", "error", err)
		case err == nil && failing:
			s.log.InfoContext(ctx, "audit rows are being sealed again")
		}
		failing = err != nil
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// errOutrun rolls back a batch that another replica sealed first.
var errOutrun = errors.New("another replica sealed first")

// Seal chains all rows that are committed now, and counts those that it chained itself.
func (s *Sealer) Seal(ctx context.Context) (sealed int, err error) {
	for {
		found, err := s.store.HasUnsealedAuditRows(ctx)
		if err != nil || !found {
			return sealed, err
		}
		n, err := s.sealBatch(ctx)
		if errors.Is(err, errOutrun) {
			return sealed, nil // it is doing the work
		}
		if err != nil {
			return sealed, err
		}
		sealed += n
	}
}

func (s *Sealer) sealBatch(ctx context.Context) (n int, err error) {
	err = s.store.Write(ctx, func(tx *store.Tx) error {
		head, err := tx.AuditHead()
		if err != nil {
			return err
		}
		rows, err := tx.UnsealedAuditRows(batch)
		if err != nil {
			return err
		}
		if n = len(rows); n == 0 {
			return nil
		}
		return chain(tx, head, rows)
	})
	return n, err
}

// chain seals rows at the end of the chain.
func chain(tx *store.Tx, head models.AuditHead, rows []models.AuditRow) error {
	end := head
	for i := range rows {
		rows[i].Seq = end.Seq + 1
		rows[i].Hash = next(end.Hash, rows[i])
		end = models.AuditHead{Seq: rows[i].Seq, Hash: rows[i].Hash}
	}
	moved, err := tx.MoveAuditHead(head, end)
	if err != nil {
		return err
	}
	if !moved {
		return errOutrun
	}
	changed, err := tx.SealAuditRows(rows)
	if n := int64(len(rows)); err == nil && changed != n {
		err = fmt.Errorf("audit: %d of %d rows were sealed already, though the chain had not moved: run groupcastctl audit verify", n-changed, n)
	}
	return err
}
