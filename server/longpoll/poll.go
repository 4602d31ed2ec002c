package longpoll

import (
	"context"
	"errors"
	"time"

	"github.com/groupcast/groupcast/models"
)

// Reason says why a poll was answered; it is a label of the metrics.
type Reason string

// The reasons.
const (
	Immediate  Reason = "immediate"  // there was something to say at once
	Plain      Reason = "plain"      // nothing changed, and the gateway didn't want to wait
	Changed    Reason = "change"     // the group information changed during the wait
	TimedOut   Reason = "timeout"    // it didn't
	Superseded Reason = "superseded" // a newer poll of the same gateway took its place
	Draining   Reason = "drain"      // the process stops
	Resync     Reason = "resync"     // the cursor was not usable
	Gone       Reason = "client_gone"
	Refused    Reason = "overloaded"
	Ended      Reason = "token_ended" // the token expired or was withdrawn, or the gateway is gone
	Failed     Reason = "error"
)

// Why a cursor is not usable: the values of Groupcast-Resync.
const (
	ResyncMalformed = "malformed"     // not a cursor of ours
	ResyncEpoch     = "unknown-epoch" // of another life of the database, such as before a restore
	ResyncAhead     = "ahead"         // newer than anything there is
)

// Request is one poll.
type Request struct {
	Gateway models.ID
	// Cursor is what the gateway sent, nil if it sent none.
	Cursor *string
	// Wait is 0 for a plain poll, at most MaxWait.
	Wait time.Duration
	// Full wants the snapshot even if nothing changed.
	Full bool
	// IssuedAt and ExpiresAt are those of the token that asks. A wait ends with the token: when it expires, when it is withdrawn, when the
	// gateway is removed.
	IssuedAt, ExpiresAt time.Time
}

// Answer is what a poll is answered with.
type Answer struct {
	// Cursor is where the group information stands.
	Cursor Cursor
	// Body is the snapshot; nil if nothing changed and the request wasn't Full.
	Body []byte
	// Changed is false if the gateway has this state already.
	Changed bool
	// Resync says why the cursor was not usable; empty if it was, or there was none.
	Resync string
	// Close asks for the connection to be closed: this process stops.
	Close bool
}

// Poll answers at once if the gateway doesn't have the newest group information, else when that changes or the wait is over. Its
// cursor is recorded as an acknowledgement. An error is an error: there is no answer without having asked the database.
// CodeUnauthenticated is a token that has ended.
func (h *Hub) Poll(ctx context.Context, r Request) (Answer, error) {
	a, why, err := h.poll(ctx, r)
	if refusal, ok := errors.AsType[*models.Error](err); ok && refusal.Code == models.CodeNotFound {
		err = removed() // between two looks
	}
	switch {
	case err == nil || why == Refused:
	case ctx.Err() != nil:
		why = Gone
	case ended(err):
		why = Ended
	default:
		why = Failed
	}
	h.metrics.answers.WithLabelValues(string(why)).Inc()
	return a, err
}

func ended(err error) bool {
	refusal, ok := errors.AsType[*models.Error](err)
	return ok && refusal.Code == models.CodeUnauthenticated
}

func removed() error {
	return models.Errorf(models.CodeUnauthenticated, "The gateway of this token was removed. Enrol it again.")
}

func (h *Hub) poll(ctx context.Context, r Request) (Answer, Reason, error) {
	var cursor Cursor
	known := false
	if r.Cursor != nil {
		cursor, known = ParseCursor(*r.Cursor)
	}
	// To become a waiter first and to look then leaves no gap for a change to fall into.
	var w *waiter
	var draining, full bool
	if known && r.Wait > 0 {
		if w, draining, full = h.join(r, cursor); w != nil {
			defer h.leave(w)
		}
	}
	at, err := h.current(ctx, r)
	if err != nil {
		return Answer{}, "", err
	}
	resync := ""
	switch {
	case r.Cursor == nil:
	case !known:
		resync = ResyncMalformed
	case cursor.Epoch != at.Epoch:
		resync = ResyncEpoch
	case cursor.Revision > at.Revision:
		resync = ResyncAhead
		h.ahead.Do(func() {
			h.o.Log.WarnContext(ctx, "A gateway holds newer group information than the database. If the database was restored by other means than "+
				"`groupcastd restore`, run `groupcastctl admin epoch rotate` now, or a group IP may come to two groups.", "gateway", r.Gateway.String())
		})
	default:
		h.acknowledge(r.Gateway, cursor)
		if cursor == at {
			return h.await(ctx, r, w, at, draining, full)
		}
		if err := h.slowDown(ctx, r, w); err != nil {
			return Answer{}, "", err
		}
		a, err := h.answer(ctx, r.Gateway, at)
		a.Close = draining
		return a, Immediate, err
	}
	h.acknowledge(r.Gateway, Cursor{Epoch: at.Epoch})
	a, err := h.answer(ctx, r.Gateway, at)
	a.Resync = resync
	if resync != "" {
		return a, Resync, err
	}
	return a, Immediate, err
}

// await answers a gateway that has the newest state.
func (h *Hub) await(ctx context.Context, r Request, w *waiter, at Cursor, draining, full bool) (Answer, Reason, error) {
	if full {
		return Answer{}, Refused, models.Errorf(models.CodeOverloaded,
			"This replica already has as many waiting long polls as it takes. Wait as long as Retry-After says and try again.")
	}
	if w == nil {
		why := Plain
		if draining {
			why = Draining
		}
		a, err := h.unchanged(ctx, r, at)
		a.Close = draining
		return a, why, err
	}
	timer := time.NewTimer(r.Wait + upTo(r.Wait/16))
	defer timer.Stop()
	end, stop := r.expiry()
	defer stop()
	for {
		why := Changed
		select {
		case <-ctx.Done():
			return Answer{}, Gone, context.Cause(ctx)
		case <-w.wake:
		case why = <-w.finish:
		case <-timer.C:
			why = TimedOut
		case <-end:
			return Answer{}, "", models.Errorf(models.CodeUnauthenticated, "The access token expired while this waited: get a new one.")
		}
		now, err := h.current(ctx, r)
		if err != nil {
			return Answer{}, "", err
		}
		switch {
		case now != at:
			if err := h.slowDown(ctx, r, w); err != nil {
				return Answer{}, "", err
			}
			a, err := h.answer(ctx, r.Gateway, now)
			a.Close = why == Draining
			switch {
			case now.Epoch != at.Epoch:
				a.Resync = ResyncEpoch
			case now.Revision < at.Revision:
				a.Resync = ResyncAhead
			}
			return a, why, err
		case why == Changed:
			h.metrics.emptyWakes.Inc() // the hint was for nothing; go on waiting
		default:
			a, err := h.unchanged(ctx, r, now)
			a.Close = why == Draining
			return a, why, err
		}
	}
}

// expiry gives what fires when the request's token expires; nil if it doesn't.
func (r Request) expiry() (end <-chan time.Time, stop func()) {
	if r.ExpiresAt.IsZero() {
		return nil, func() {}
	}
	t := time.NewTimer(time.Until(r.ExpiresAt))
	return t.C, func() { t.Stop() }
}

// slowDown lets a gateway that waits, and was told a change less than 50 ms ago, wait out the rest, so that a burst of changes
// becomes one answer. The first change is never delayed.
func (h *Hub) slowDown(ctx context.Context, r Request, w *waiter) error {
	if w == nil {
		return nil
	}
	h.mu.Lock()
	rest := pace - time.Since(h.gatewayLocked(r.Gateway).answered)
	h.mu.Unlock()
	if rest <= 0 {
		return nil
	}
	timer := time.NewTimer(rest)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-timer.C:
	case <-w.finish:
	}
	return nil
}

// answer gives the snapshot of a state that the gateway doesn't have.
func (h *Hub) answer(ctx context.Context, id models.ID, at Cursor) (Answer, error) {
	s, err := h.snapshot(ctx, id, at)
	if err != nil {
		return Answer{}, err
	}
	h.mu.Lock()
	h.gatewayLocked(id).answered = time.Now()
	h.mu.Unlock()
	return Answer{Cursor: s.Cursor, Body: s.Body, Changed: true}, nil
}

// unchanged confirms the state that the gateway has, or repeats it if that was asked for.
func (h *Hub) unchanged(ctx context.Context, r Request, at Cursor) (Answer, error) {
	if !r.Full {
		return Answer{Cursor: at}, nil
	}
	s, err := h.snapshot(ctx, r.Gateway, at)
	if err != nil {
		return Answer{}, err
	}
	return Answer{Cursor: s.Cursor, Body: s.Body, Changed: s.Cursor != at}, nil
}
