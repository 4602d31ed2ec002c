package audit

import (
	"context"
	"errors"
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
	// Base is the last row that was removed because of its age, which the kept part begins after; zero if none was.
	Base models.AuditHead
	// Break is nil if the whole chain is as it was sealed.
	Break *Break
	// Unsealed counts the rows that no sealer has reached yet, and Waiting is how long the oldest of them has been there. More than some seconds
	// mean that no sealer runs, or that somebody took rows out of the chain.
	Unsealed int64
	Waiting  time.Duration
}

// verifyPage is how many rows are read at once.
const verifyPage = 1000

// Verify reads the whole chain, from the first row that is kept to its head, as of one instant for each page. anchor is a head that an earlier
// Verify gave; the zero anchor is none, and one that is older than all that is kept is CodeBadRequest. That rows were removed because of their
// age stands in the kept part itself, so nobody can say so of others without leaving a row about it. The error says that the database could not be read, never that the chain is broken.
func Verify(ctx context.Context, st *store.Store, anchor models.AuditHead) (Report, error) {
	for range maxPrunes {
		r, err := verify(ctx, st, anchor)
		if !errors.Is(err, errPruned) {
			return r, err
		}
	}
	return Report{}, models.Errorf(models.CodeUnavailable, "Old rows are being removed right now. Verify again in a minute.")
}

// errPruned says that rows were removed between two pages; maxPrunes bounds how often Verify begins again for that.
var errPruned = errors.New("old rows were removed meanwhile")

const maxPrunes = 5

func verify(ctx context.Context, st *store.Store, anchor models.AuditHead) (Report, error) {
	var r Report
	var chain store.AuditChain
	var tail store.AuditTail
	if err := st.Read(ctx, func(tx *store.Tx) (err error) {
		if chain, err = tx.AuditChain(); err != nil {
			return err
		}
		tail, err = tx.AuditTail()
		return err
	}); err != nil {
		return Report{}, fmt.Errorf("verify the audit log: %w", err)
	}
	r.Base = chain.Base
	head := chain.Head
	if anchor.Seq > 0 && anchor.Seq < r.Base.Seq {
		return Report{}, models.Errorf(models.CodeBadRequest, "The rows up to %d were removed because of their age, and the anchor is row %d. Verify without it, and note "+
			"the new head.", r.Base.Seq, anchor.Seq)
	}
	r.Unsealed, r.Waiting, r.Head = tail.Unsealed, tail.Waiting, r.Base
	if anchor.Seq == r.Base.Seq && anchor.Hash != r.Base.Hash {
		r.Break = &Break{Seq: anchor.Seq, What: fmt.Sprintf("Row %d, the last one that was removed because of its age, had another hash than the anchor.", anchor.Seq)}
	}
	based := r.Base.Seq == 0
	for r.Break == nil && r.Head.Seq < head.Seq {
		var rows []models.AuditRow
		if err := st.Read(ctx, func(tx *store.Tx) error {
			now, err := tx.AuditChain()
			if err == nil && now.Base != r.Base {
				err = errPruned
			}
			if err != nil {
				return err
			}
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
			based = based || row.Action == AuditPrune.text && row.Object == OfChain(r.Base).text
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
	case !based:
		r.Break = &Break{Seq: r.Base.Seq + 1, What: fmt.Sprintf("The chain begins after row %d, and no row says that those before were removed because of their age.", r.Base.Seq)}
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

// List reads a page of the rows that the filter chooses, newest first, and the token of the next page, which is empty on the last.
func List(ctx context.Context, st *store.Store, f models.AuditFilter, page models.Page) (rows []models.AuditRow, next string, err error) {
	before, err := page.After(models.ListAudit)
	if err != nil {
		return nil, "", err
	}
	rows, err = st.AuditRows(ctx, f, before, page.Limit()+1)
	if err != nil {
		return nil, "", fmt.Errorf("list the audit log: %w", err)
	}
	rows, next = models.Cut(rows, page, models.ListAudit, func(r models.AuditRow) string { return string(r.ID) })
	return rows, next, nil
}
