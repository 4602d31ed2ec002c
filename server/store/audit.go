package store

import (
	"context"
	"net/netip"
	"time"

	"github.com/groupcast/groupcast/models"
)

const auditColumns = "id, at, actor, account_id, action, object, result, reason, source, request_id, coalesce(seq, 0), coalesce(hash, '')"

func scanAuditRow(r row) (a models.AuditRow, err error) {
	err = r.Scan(&a.ID, timeColumn{&a.At}, &a.Actor, &a.AccountID, &a.Action, &a.Object, &a.Result, &a.Reason, prefixColumn{&a.Source}, &a.RequestID,
		&a.Seq, &a.Hash)
	return a, err
}

func prefixText(p netip.Prefix) string {
	if !p.IsValid() {
		return ""
	}
	return p.String()
}

// InsertAuditRow adds a row that is not sealed yet. The database fills in when.
func (tx *Tx) InsertAuditRow(a models.AuditRow) error {
	_, err := tx.exec(`
		INSERT INTO audit_rows (id, at, actor, account_id, action, object, result, reason, source, request_id)
		VALUES (?, {now}, ?, ?, ?, ?, ?, ?, ?, ?)`,
		string(a.ID), a.Actor, string(a.AccountID), a.Action, a.Object, a.Result, a.Reason, prefixText(a.Source), a.RequestID)
	return err
}

// AuditHead reads the end of the hash chain.
func (tx *Tx) AuditHead() (models.AuditHead, error) {
	h, _, err := one(tx, func(r row) (h models.AuditHead, err error) {
		err = r.Scan(&h.Seq, &h.Hash)
		return h, err
	}, "SELECT seq, hash FROM audit_head")
	return h, err
}

// HasUnsealedAuditRows tells whether there is anything to seal.
func (s *Store) HasUnsealedAuditRows(ctx context.Context) (found bool, err error) {
	err = s.reading(ctx, func(tx *Tx) error {
		_, found, err = one(tx, scanInto[string], "SELECT id FROM audit_rows WHERE seq IS NULL LIMIT 1")
		return err
	})
	return found, err
}

// UnsealedAuditRows reads up to limit committed rows that are not sealed yet, in the order of their ids.
func (tx *Tx) UnsealedAuditRows(limit int) ([]models.AuditRow, error) {
	return list(tx, scanAuditRow, "SELECT "+auditColumns+" FROM audit_rows WHERE seq IS NULL ORDER BY id LIMIT ?", limit)
}

// MoveAuditHead moves the end of the chain and tells whether it was where the caller thought: another replica may have been first.
func (tx *Tx) MoveAuditHead(from, to models.AuditHead) (bool, error) {
	n, err := tx.exec("UPDATE audit_head SET seq = ?, hash = ? WHERE seq = ? AND hash = ?", to.Seq, to.Hash, from.Seq, from.Hash)
	return n == 1, err
}

// SealAuditRows gives rows their place in the chain and counts those that had none.
func (tx *Tx) SealAuditRows(rows []models.AuditRow) (int64, error) {
	args := make([]any, 0, 3*len(rows))
	for _, a := range rows {
		args = append(args, string(a.ID), a.Seq, a.Hash)
	}
	return tx.exec(`
		UPDATE audit_rows SET seq = v.column2, hash = v.column3
		FROM (VALUES `+tuples("(CAST(? AS text), CAST(? AS bigint), CAST(? AS text))", len(rows))+`) AS v
		WHERE audit_rows.id = v.column1 AND audit_rows.seq IS NULL`, args...)
}

// SealedAuditRows reads up to limit rows of the chain after a place in it.
func (tx *Tx) SealedAuditRows(after int64, limit int) ([]models.AuditRow, error) {
	return list(tx, scanAuditRow, "SELECT "+auditColumns+" FROM audit_rows WHERE seq > ? ORDER BY seq LIMIT ?", after, limit)
}

// AuditTail is what stands at the end of the chain.
type AuditTail struct {
	// LastSeq is the greatest place that any row has; 0 if none has one.
	LastSeq int64
	// Unsealed counts the rows without a place, and Waiting is how long the oldest of them has been there.
	Unsealed int64
	Waiting  time.Duration
}

// AuditTail reads what stands at the end of the chain.
func (tx *Tx) AuditTail() (AuditTail, error) {
	t, _, err := one(tx, func(r row) (t AuditTail, err error) {
		var ms int64
		err = r.Scan(&t.LastSeq, &t.Unsealed, &ms)
		t.Waiting = time.Duration(ms) * time.Millisecond
		return t, err
	}, `SELECT (SELECT coalesce(max(seq), 0) FROM audit_rows), count(*), coalesce({now} - min(at), 0) FROM audit_rows WHERE seq IS NULL`)
	return t, err
}

// AuditRows reads up to limit rows, newest first, sealed or not, of one account or of all if it is empty, and with ids before the given
// one if that is not empty.
func (s *Store) AuditRows(ctx context.Context, account models.AccountID, before string, limit int) (rows []models.AuditRow, err error) {
	err = s.reading(ctx, func(tx *Tx) error {
		text, args := "SELECT "+auditColumns+" FROM audit_rows WHERE id < ?", []any{before}
		if before == "" {
			args[0] = "~" // after every id
		}
		if account != "" {
			text, args = text+" AND account_id = ?", append(args, string(account))
		}
		rows, err = list(tx, scanAuditRow, text+" ORDER BY id DESC LIMIT ?", append(args, limit)...)
		return err
	})
	return rows, err
}
