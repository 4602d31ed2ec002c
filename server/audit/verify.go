package audit

import (
	"context"
	"fmt"
	"time"

	"github.com/groupcast/groupcast/models"
	"github.com/groupcast/groupcast/server/store"
)

// Break is the first place where the chain is not what was sealed.
type Break struct {
	// Seq is the place; ID is the row there, if there is one.
	Seq int64
	ID  models.AuditID
	// What says in a sentence what is wrong.
	What string
}

// Report is what Verify found.
type Report struct {
	// Head is the end of the part that is as it was sealed. Noted somewhere else, it is the anchor for a later Verify.
	Head models.AuditHead
	// Break is nil if the whole chain is as it was sealed.
	Break *Break
	// Unsealed counts the rows that no sealer has reached yet, and Waiting is how long the oldest of them has been there. More than some seconds
	// mean that no sealer runs, or that somebody took rows out of the chain.
	Unsealed int64
	Waiting  time.Duration
}

// verifyPage is how many rows are read at once.
const verifyPage = 1000

// Verify reads the whole chain, from its first row to its head, as of one instant for each page. anchor is a head that an earlier Verify gave; the zero anchor
// is none. The error says that the database could not be read, never that the chain is broken.
func Verify(ctx context.Context, st *store.Store, anchor models.AuditHead) (Report, error) {
	var r Report
	var head models.AuditHead
	var tail store.AuditTail
	if err := st.Read(ctx, func(tx *store.Tx) (err error) {
		if head, err = tx.AuditHead(); err != nil {
			return err
		}
		tail, err = tx.AuditTail()
		return err
	}); err != nil {
		return Report{}, fmt.Errorf("verify the audit log: %w", err)
	}
	r.Unsealed, r.Waiting = tail.Unsealed, tail.Waiting
	for r.Break == nil && r.Head.Seq < head.Seq {
		var rows []models.AuditRow
		if err := st.Read(ctx, func(tx *store.Tx) (err error) {
			rows, err = tx.SealedAuditRows(r.Head.Seq, verifyPage)
			return err
		}); err != nil {
			return Report{}, fmt.Errorf("verify the audit log: %w", err)
		}
		if len(rows) == 0 {
			r.Break = &Break{Seq: r.Head.Seq + 1, What: fmt.Sprintf("Row %d is missing; the chain goes to %d.", r.Head.Seq+1, head.Seq)}
			break
		}
		for _, row := range rows {
			if r.Break = check(r.Head, row, anchor); r.Break != nil {
				break
			}
			r.Head = models.AuditHead{Seq: row.Seq, Hash: row.Hash}
			if r.Head.Seq == head.Seq {
				break // what came after is for the next time
			}
		}
	}
	switch {
	case r.Break != nil:
	case r.Head != head:
		r.Break = &Break{Seq: head.Seq, What: fmt.Sprintf("The recorded end of the chain, row %d, has another hash than the last row.", head.Seq)}
	case tail.LastSeq > head.Seq:
		r.Break = &Break{Seq: head.Seq + 1, What: fmt.Sprintf("The recorded end of the chain is row %d, and there are rows up to %d: nobody sealed those.", head.Seq, tail.LastSeq)}
	case anchor.Seq > head.Seq:
		r.Break = &Break{Seq: head.Seq + 1, What: fmt.Sprintf("The chain went to row %d when the anchor was noted, and ends at %d now: rows were cut off.", anchor.Seq, head.Seq)}
	}
	return r, nil
}

// check compares the next row with what has to follow.
func check(before models.AuditHead, row models.AuditRow, anchor models.AuditHead) *Break {
	at := before.Seq + 1
	switch {
	case row.Seq != at:
		return &Break{Seq: at, What: fmt.Sprintf("Row %d is missing; the next one is %d.", at, row.Seq)}
	case row.Hash != next(before.Hash, row):
		return &Break{Seq: at, ID: row.ID, What: fmt.Sprintf("Row %d is not what was sealed: it was changed, or another row took its place.", at)}
	case row.Seq == anchor.Seq && row.Hash != anchor.Hash:
		return &Break{Seq: at, ID: row.ID, What: fmt.Sprintf("Row %d has another hash than the anchor: the chain was written anew up to it.", at)}
	}
	return nil
}

// List reads a page of rows, newest first, of one account, or of all if it is empty; and the token of the next page, which is empty on the
// last.
func List(ctx context.Context, st *store.Store, account models.AccountID, page models.Page) (rows []models.AuditRow, next string, err error) {
	before, err := page.After()
	if err != nil {
		return nil, "", err
	}
	limit := page.Limit()
	rows, err = st.AuditRows(ctx, account, before, limit+1)
	if err != nil {
		return nil, "", fmt.Errorf("list the audit log: %w", err)
	}
	if len(rows) > limit {
		rows = rows[:limit]
		next = models.PageToken(string(rows[limit-1].ID))
	}
	return rows, next, nil
}
