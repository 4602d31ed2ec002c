package store

import (
	"context"
	"net/netip"
	"time"

	"github.com/groupcast/groupcast/models"
)

const auditColumns = "id, at, actor, account_id, action, object, result, reason, source, request_id, count, coalesce(seq, 0), coalesce(hash, '')"

func scanAuditRow(r row) (a models.AuditRow, err error) {
	err = r.Scan(&a.ID, timeColumn{&a.At}, &a.Actor, &a.AccountID, &a.Action, &a.Object, &a.Result, &a.Reason, prefixColumn{&a.Source}, &a.RequestID,
		&a.Count, &a.Seq, &a.Hash)
	return a, err
}

func prefixText(p netip.Prefix) string {
	if !p.IsValid() {
		return ""
	}
	return p.String()
}

// maxAuditRows keeps a statement below the number of parameters that SQLite takes.
const maxAuditRows = 1000

// InsertAuditRows adds rows that are not sealed yet, as few statements as can be. The database fills in when.
func (tx *Tx) InsertAuditRows(rows []models.AuditRow) error {
	for len(rows) > 0 {
		batch := rows[:min(len(rows), maxAuditRows)]
		rows = rows[len(batch):]
		args := make([]any, 0, 10*len(batch))
		for _, a := range batch {
			args = append(args, string(a.ID), a.Actor, string(a.AccountID), a.Action, a.Object, a.Result, a.Reason, prefixText(a.Source), a.RequestID, a.Count)
		}
		err := tx.later(nil, `INSERT INTO audit_rows (id, at, actor, account_id, action, object, result, reason, source, request_id, count)
			VALUES `+tuples("(?, {now}, ?, ?, ?, ?, ?, ?, ?, ?, ?)", len(batch)), args...)
		if err != nil {
			return err
		}
	}
	return nil
}

// AuditHead reads the end of the hash chain.
func (tx *Tx) AuditHead() (models.AuditHead, error) {
	c, err := tx.AuditChain()
	return c.Head, err
}

// AuditChain is where the kept part of the hash chain begins and ends.
type AuditChain struct {
	// Base is the last row that was removed because of its age; the kept part begins after it.
	Base, Head models.AuditHead
	Now        time.Time
}

// AuditChain reads where the hash chain begins and ends.
func (tx *Tx) AuditChain() (AuditChain, error) {
	return tx.auditChain("SELECT base_seq, base_hash, seq, hash, {now} FROM audit_head")
}

// LockAuditChain is AuditChain, and keeps others from moving either end until commit.
func (tx *Tx) LockAuditChain() (AuditChain, error) {
	return tx.auditChain("UPDATE audit_head SET seq = seq RETURNING base_seq, base_hash, seq, hash, {now}")
}

func (tx *Tx) auditChain(text string) (AuditChain, error) {
	c, _, err := one(tx, func(r row) (c AuditChain, err error) {
		err = r.Scan(&c.Base.Seq, &c.Base.Hash, &c.Head.Seq, &c.Head.Hash, timeColumn{&c.Now})
		return c, err
	}, text)
	return c, err
}

// AuditRow reads one row.
func (tx *Tx) AuditRow(id models.AuditID) (models.AuditRow, bool, error) {
	return one(tx, scanAuditRow, "SELECT "+auditColumns+" FROM audit_rows WHERE id = ?", string(id))
}

// RemoveAuditRows removes the rows of the chain up to a place, which becomes the base, and counts them.
func (tx *Tx) RemoveAuditRows(base models.AuditHead) (int64, error) {
	n, err := tx.exec("DELETE FROM audit_rows WHERE seq <= ?", base.Seq)
	if err != nil {
		return n, err
	}
	_, err = tx.exec("UPDATE audit_head SET base_seq = ?, base_hash = ?", base.Seq, base.Hash)
	return n, err
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
	places := newColumns(len(rows))
	for _, a := range rows {
		places.add(string(a.ID), a.Seq, a.Hash)
		places.end()
	}
	table, args := places.table(tx.store.dialect)
	return tx.exec(`
		WITH place (id, seq, hash) AS (`+table+`)
		UPDATE audit_rows SET seq = place.seq, hash = place.hash FROM place WHERE audit_rows.id = place.id AND audit_rows.seq IS NULL`, args...)
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

// AuditRows reads up to limit of the rows that the filter chooses, newest first, sealed or not, with ids before the given one if that is
// not empty.
func (s *Store) AuditRows(ctx context.Context, f models.AuditFilter, before string, limit int) (rows []models.AuditRow, err error) {
	err = s.reading(ctx, func(tx *Tx) error {
		text, args := "SELECT "+auditColumns+" FROM audit_rows WHERE id < ?", []any{before}
		if before == "" {
			args[0] = "~" // after every id
		}
		for _, c := range []struct {
			given bool
			where string
			arg   any
		}{
			{f.AccountID != "", "account_id = ?", string(f.AccountID)},
			{f.Actor != "", "actor = ?", f.Actor},
			{f.Action != "", "action = ?", f.Action},
			{!f.Since.IsZero(), "at >= ?", f.Since.UnixMilli()},
			{!f.Until.IsZero(), "at < ?", f.Until.UnixMilli()},
		} {
			if c.given {
				text, args = text+" AND "+c.where, append(args, c.arg)
			}
		}
		rows, err = list(tx, scanAuditRow, text+" ORDER BY id DESC LIMIT ?", append(args, limit)...)
		return err
	})
	return rows, err
}
