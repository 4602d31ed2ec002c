package longpoll

import (
	"context"
	"errors"
	"fmt"
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
	// Gateway is the id of the gateway, or of the relay: one number names a node.
	Gateway models.ID
	// Relay tells that it is a relay. Its polls are recorded soon, because others decide by them whether it lives.
	Relay bool
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
	a, w, err := h.Begin(ctx, r)
	if w != nil {
		return w.End(ctx)
	}
	return a, err
}

// Begin is Poll without the wait: it answers, or makes the caller a waiter, whose answer is that of End. A Wait that isn't nil has to be
// ended.
func (h *Hub) Begin(ctx context.Context, r Request) (Answer, *Wait, error) {
	a, why, w, err := h.begin(ctx, r)
	if w != nil {
		return Answer{}, w, nil
	}
	a, err = h.count(ctx, a, why, err)
	return a, nil, err
}

// count notes why a poll was answered.
func (h *Hub) count(ctx context.Context, a Answer, why Reason, err error) (Answer, error) {
	if refusal, ok := errors.AsType[*models.Error](err); ok && refusal.Code == models.CodeNotFound {
		err = removed() // between two looks
	}
	switch {
	case err == nil || why == Refused || why == Gone:
	case ctx.Err() != nil, errors.Is(err, errGone):
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
	return models.Errorf(models.CodeUnauthenticated, "The gateway or relay of this token was removed. Enrol it again.")
}

func (h *Hub) begin(ctx context.Context, r Request) (a Answer, why Reason, wait *Wait, err error) {
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
			defer func() {
				if wait == nil {
					h.leave(w)
				}
			}()
		}
	}
	at, err := h.current(ctx, r)
	if err != nil {
		return Answer{}, "", nil, err
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
		h.acknowledge(r, cursor)
		if cursor == at {
			return h.wait(ctx, r, w, at, draining, full)
		}
		if err := h.slowDown(ctx, r, w); err != nil {
			return Answer{}, "", nil, err
		}
		a, err := h.answer(ctx, r.Gateway, at)
		a.Close = draining
		return a, Immediate, nil, err
	}
	h.acknowledge(r, Cursor{Epoch: at.Epoch})
	a, err = h.answer(ctx, r.Gateway, at)
	a.Resync = resync
	if resync != "" {
		return a, Resync, nil, err
	}
	return a, Immediate, nil, err
}

// wait answers a gateway that has the newest state, or lets it wait.
func (h *Hub) wait(ctx context.Context, r Request, w *waiter, at Cursor, draining, full bool) (Answer, Reason, *Wait, error) {
	if full {
		return Answer{}, Refused, nil, models.Errorf(models.CodeOverloaded,
			"This replica already has as many waiting long polls as it takes. Wait as long as Retry-After says and try again.")
	}
	if w == nil {
		why := Plain
		if draining {
			why = Draining
		}
		a, err := h.unchanged(ctx, r, at)
		a.Close = draining
		return a, why, nil, err
	}
	h.mu.Lock()
	w.cursor = at // the same, but its text holds nothing of the request
	h.mu.Unlock()
	now := time.Now()
	return Answer{}, "", &Wait{
		hub: h, waiter: w, at: at, full: r.Full, expires: r.ExpiresAt, until: now.Add(r.Wait + upTo(r.Wait/16)),
	}, nil
}

// Wait is a poll that waits for a change. There may be very many, so it holds little.
type Wait struct {
	hub     *Hub
	waiter  *waiter
	at      Cursor
	full    bool
	until   time.Time
	expires time.Time // of the token; zero if it doesn't
}

// lookAtAll reads the group information itself after a hint, which is rarely for nothing: asking for the revision first would be one more
// round trip for each change. It reads after the pause that a burst of changes is held up by, so that the answer has all of the burst.
func (w *Wait) lookAtAll(ctx context.Context) (a Answer, _ Reason, over bool, err error) {
	h, r := w.hub, w.request()
	if err := h.slowDown(ctx, r, w.waiter); err != nil {
		return Answer{}, "", true, err
	}
	s, err := h.fresh(ctx, r)
	if err != nil {
		return Answer{}, "", true, err
	}
	if s.Cursor == w.at {
		h.metrics.emptyWakes.Inc() // the hint was for nothing; go on waiting
		return Answer{}, "", false, nil
	}
	a = h.changed(r.Gateway, s)
	a.Resync = resyncTo(w.at, s.Cursor)
	return a, Changed, true, nil
}

// resyncTo tells whether a state doesn't follow the one before.
func resyncTo(before, now Cursor) string {
	switch {
	case now.Epoch != before.Epoch:
		return ResyncEpoch
	case now.Revision < before.Revision:
		return ResyncAhead
	}
	return ""
}

// request is what began the wait, as far as it still matters.
func (w *Wait) request() Request {
	return Request{Gateway: w.waiter.gateway, Full: w.full, IssuedAt: w.waiter.issuedAt, ExpiresAt: w.expires}
}

// Leave ends the wait of a client that is gone. It never blocks.
func (w *Wait) Leave() { w.waiter.end(Gone) }

// Calm is closed when no more than a crowd wait for an answer that they were woken for: whoever has one should let them go first. It never
// changes back; ask anew.
func (w *Wait) Calm() <-chan struct{} {
	h := w.hub
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.answering.Load() <= crowd {
		return closed
	}
	if h.calm == nil {
		h.calm = make(chan struct{})
	}
	return h.calm
}

var closed = func() chan struct{} { c := make(chan struct{}); close(c); return c }()

// answered counts one that was woken and has its answer. The one that ends the crowd tells those who wait for that: of the many that there
// may be, each would otherwise have to look again and again, which costs those who still wait.
func (h *Hub) answered() {
	if h.answering.Add(-1) != crowd {
		return
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.calm != nil {
		close(h.calm)
		h.calm = nil
	}
}

// errGone is End's error after Leave.
var errGone = fmt.Errorf("the client doesn't wait any more: %w", context.Canceled)

// End waits, and answers as Poll does.
func (w *Wait) End(ctx context.Context) (Answer, error) {
	defer w.hub.leave(w.waiter)
	for {
		why, err := w.sleep(ctx)
		if err != nil {
			return w.hub.count(ctx, Answer{}, why, err)
		}
		w.hub.answering.Add(1)
		a, why, over, err := w.look(ctx, why)
		w.hub.answered()
		if over {
			return w.hub.count(ctx, a, why, err)
		}
	}
}

// sleep waits until there is a reason to look.
func (w *Wait) sleep(ctx context.Context) (Reason, error) {
	end, expires := w.until, false
	if !w.expires.IsZero() && w.expires.Before(end) {
		end, expires = w.expires, true
	}
	timer := time.NewTimer(time.Until(end))
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return Gone, context.Cause(ctx)
	case <-w.waiter.wake:
		return Changed, nil
	case why := <-w.waiter.finish:
		if why == Gone {
			return Gone, errGone
		}
		return why, nil
	case <-timer.C:
	}
	if expires {
		return "", models.Errorf(models.CodeUnauthenticated, "The access token expired while this waited: get a new one.")
	}
	return TimedOut, nil
}

// look asks the database; the wait isn't over if it was woken for nothing.
func (w *Wait) look(ctx context.Context, why Reason) (a Answer, _ Reason, over bool, err error) {
	h, r, at := w.hub, w.request(), w.at
	if why == Changed {
		return w.lookAtAll(ctx)
	}
	now, err := h.current(ctx, r)
	if err != nil {
		return Answer{}, "", true, err
	}
	switch {
	case now != at:
		if err := h.slowDown(ctx, r, w.waiter); err != nil {
			return Answer{}, "", true, err
		}
		a, err = h.answer(ctx, r.Gateway, now)
		a.Resync = resyncTo(at, now)
	default:
		a, err = h.unchanged(ctx, r, now)
	}
	a.Close = why == Draining
	return a, why, true, err
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
	case why := <-w.finish:
		if why == Gone {
			return errGone
		}
	}
	return nil
}

// answer gives the snapshot of a state that the gateway doesn't have.
func (h *Hub) answer(ctx context.Context, id models.ID, at Cursor) (Answer, error) {
	s, err := h.snapshot(ctx, id, at)
	if err != nil {
		return Answer{}, err
	}
	return h.changed(id, s), nil
}

// changed is the answer with a state that the gateway doesn't have.
func (h *Hub) changed(id models.ID, s Snapshot) Answer {
	h.mu.Lock()
	h.gatewayLocked(id).answered = time.Now()
	h.mu.Unlock()
	return Answer{Cursor: s.Cursor, Body: s.Body, Changed: true}
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
