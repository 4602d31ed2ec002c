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
	// pruneEvery is how often old rows are looked for.
	pruneEvery = time.Hour
	// pruneSlack is how much older than asked the oldest row gets before anything is removed: removing leaves a row, and it shall not
	// leave one an hour.
	pruneSlack = 24 * time.Hour
	// pruneBatch bounds the rows of one transaction.
	pruneBatch = 1000
)

// Pruner removes rows that are older than the retention, oldest first. The hash of the last one that is gone stays as the base that the
// rest is verified from, and a row in the chain says so. Every replica may run one.
type Pruner struct {
	store     *store.Store
	retention time.Duration
	log       *slog.Logger
}

// NewPruner makes a pruner; with retention 0 it keeps everything.
func NewPruner(st *store.Store, retention time.Duration, log *slog.Logger) *Pruner {
	return &Pruner{store: st, retention: retention, log: log}
}

// Run removes old rows until the context is done.
func (p *Pruner) Run(ctx context.Context) {
	if p.retention == 0 {
		return
	}
	tick := time.NewTicker(pruneEvery)
	defer tick.Stop()
	for {
		n, err := p.Prune(ctx)
		switch {
		case ctx.Err() != nil:
			return
		case err != nil:
			p.log.WarnContext(ctx, "old audit rows can't be removed; trying again in an hour", "error", err)
		case n > 0:
			p.log.InfoContext(ctx, "removed old audit rows", "count", n)
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// errNothingOld rolls back a look that found nothing to remove.
var errNothingOld = errors.New("no row is old enough")

// Prune removes what is older than the retention, if the oldest row is so by a day, and counts the rows. A part of the chain that
// isn't as it was sealed is not removed: it is evidence.
func (p *Pruner) Prune(ctx context.Context) (removed int, err error) {
	slack := pruneSlack
	for {
		n, err := p.pruneBatch(ctx, slack)
		removed += n
		if errors.Is(err, errNothingOld) {
			return removed, nil
		}
		if err != nil {
			return removed, err
		}
		slack = 0 // having begun, remove all
	}
}

func (p *Pruner) pruneBatch(ctx context.Context, slack time.Duration) (n int, err error) {
	err = p.store.Write(ctx, func(tx *store.Tx) error {
		c, err := tx.LockAuditChain()
		if err != nil {
			return err
		}
		rows, err := tx.SealedAuditRows(c.Base.Seq, pruneBatch)
		if err != nil {
			return err
		}
		n = 0
		base, slack := c.Base, slack
		for _, row := range rows {
			if row.At.After(c.Now.Add(-p.retention-slack)) || row.Seq > c.Head.Seq {
				break
			}
			slack = 0
			if b := check(base, row, models.AuditHead{}); b != nil {
				return fmt.Errorf("audit: %s Nothing from there on is removed: run groupcastctl audit verify", b.What)
			}
			base = models.AuditHead{Seq: row.Seq, Hash: row.Hash}
			n++
		}
		if n == 0 {
			return errNothingOld
		}
		gone, err := tx.RemoveAuditRows(base)
		if err != nil {
			return err
		}
		if gone != int64(n) {
			return fmt.Errorf("audit: %d rows would go instead of %d: run groupcastctl audit verify", gone, n)
		}
		return p.tell(tx, c.Head, base)
	})
	if err != nil {
		n = 0
	}
	return n, err
}

// tell writes the row about a removal, and seals it: it is what the new base is believed for.
func (p *Pruner) tell(tx *store.Tx, head, base models.AuditHead) error {
	row, err := Entry{Actor: System, Action: AuditPrune, Object: OfChain(base)}.row()
	if err != nil {
		return err
	}
	if err := tx.InsertAuditRows([]models.AuditRow{row}); err != nil {
		return err
	}
	row, found, err := tx.AuditRow(row.ID) // with the time that the database gave it
	if err == nil && !found {
		err = errors.New("audit: a row that was just written is missing")
	}
	if err != nil {
		return err
	}
	return chain(tx, head, []models.AuditRow{row})
}
