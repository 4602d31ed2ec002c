// Package events reads what happened and says it in the words of the contract: CloudEvents 1.0 in JSON, for an account or for a service
// that it linked (SPEC §7).
//
// The events are written by the domain services in the transaction of what they tell about (store.Tx.AppendGroupEvents and
// AppendAccountEvent). This package never writes one, never delivers one, and doesn't decide who may hear it; but what it makes for a service
// holds nothing that only the account may know.
package events

import (
	"context"

	"github.com/groupcast/groupcast/models"
	"github.com/groupcast/groupcast/server/store"
)

// maxBatch bounds the events of one read.
const maxBatch = 500

// Service reads events.
type Service struct {
	store *store.Store
}

// New makes the service.
func New(st *store.Store) *Service { return &Service{store: st} }

// Batch is a part of a stream.
type Batch struct {
	// Events are oldest first. If there are more, the next read gives them.
	Events []models.Event
	// Gap says that events between rev and the first of these are not there any more: the reader should read the state with a GET. It is
	// also set if rev is ahead of the stream, as after a restore of the database.
	Gap bool
	// Newest is the number of the stream's newest event.
	Newest int64
}

// After reads what comes after rev in a stream. A reader that waits has to watch the stream before it reads, or it misses what happens in
// between.
func (s *Service) After(ctx context.Context, of models.EventStream, rev int64) (b Batch, err error) {
	if b.Events, err = s.store.EventsAfter(ctx, of, rev, maxBatch); err != nil {
		return Batch{}, err
	}
	if n := len(b.Events); n > 0 && b.Events[0].Rev == rev+1 {
		b.Newest = b.Events[n-1].Rev
		return b, nil
	}
	oldest, newest, err := s.store.EventBounds(ctx, of)
	if err != nil {
		return Batch{}, err
	}
	b.Newest = newest
	// An event that came between the two reads is in the next batch.
	b.Gap = newest < rev || len(b.Events) > 0 || newest > rev && (oldest == 0 || oldest > rev+1)
	return b, nil
}
