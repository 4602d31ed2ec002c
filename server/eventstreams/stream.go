package eventstreams

import (
	"context"
	"errors"
	"slices"
	"sync"
	"time"

	"github.com/groupcast/groupcast/models"
	"github.com/groupcast/groupcast/server/eventhub"
	"github.com/groupcast/groupcast/server/events"
	"github.com/groupcast/groupcast/server/groups"
	"github.com/groupcast/groupcast/server/store"
)

// Why a cursor was not usable: the reason of a resync.
const (
	ResyncUnknown = "unknown-cursor" // not one of ours, of another listener, or of another life of the database
	ResyncTooOld  = "too-old"        // what came after it isn't kept any more
)

// Event is one that the listener hears.
type Event struct {
	// Cursor is the place after the event; empty if one can't go on from there.
	Cursor string
	// OfGroup tells the events of groups from those of accounts.
	OfGroup bool
	// JSON is a CloudEvent.
	JSON []byte
}

// Batch is what a stream gives at once.
type Batch struct {
	Events []Event
	// Cursor is the place after the batch; empty if one can't go on from there.
	Cursor string
	// Resync says why the stream begins anew: the events are how everything is now, and what isn't among them is no more. More tells that the next batch
	// belongs to them, too.
	Resync string
	More   bool

	now bool // it is worth telling
}

// Stream is what one listener hears. Next and Close are for one goroutine.
type Stream struct {
	s     *Service
	by    Caller
	who   store.Hearer
	epoch string
	group models.GroupID
	of    models.EventStream // a group's; of a service only known while the group is there
	watch *eventhub.Watch
	at    int64 // rev of the group, or id of an event

	// How everything is now comes first if tell is set; page is where its next part begins.
	tell   bool
	resync string
	page   string
	// newest are the revs that were told of groups so far, until the stream has read all that may be older than them, up to the id until. There is
	// no place to go on from before that: who is cut off there begins anew.
	newest map[models.GroupID]int64
	until  int64
	ended  bool // the group's end was told

	once sync.Once
	over chan struct{} // closed when why is set
	why  *EndedError
}

// beginGroup finds the place in a group's stream.
func (st *Stream) beginGroup(ctx context.Context, cursor *string) error {
	known := false
	if cursor != nil {
		st.at, known = parseRev(*cursor)
	}
	g, err := st.s.o.Groups.Get(ctx, st.by.Principal, st.group)
	refusal, _ := errors.AsType[*models.Error](err)
	switch {
	case refusal != nil && refusal.Code == models.CodeNotFound && known:
		// Whoever was away hears how the group ended.
		rest, readErr := st.s.o.Store.GroupEventsHeard(ctx, st.who, st.group, st.at, batch)
		if readErr != nil {
			return readErr
		}
		mine, readErr := st.written(ctx, rest)
		if readErr != nil {
			return readErr
		}
		if len(mine) == 0 {
			return err
		}
		st.of = rest[0].EventStream
	case err != nil:
		return err
	default:
		st.of = models.EventStream{AccountID: g.AccountID, GroupID: g.ID}
		if st.by.Kind == models.KindDevice && !isIn(st.by.Device.ID, g) {
			return models.Errorf(models.CodeForbidden, "The device is no member of this group, so it doesn't hear of it. Register in the group first.")
		}
	}
	st.watch = st.s.o.Hub.Watch(st.of)
	st.tell = !known
	if cursor != nil && !known {
		st.resync = ResyncUnknown
	}
	return nil
}

// beginMixed finds the place in all that the caller hears.
func (st *Stream) beginMixed(ctx context.Context, cursor *string) error {
	of := allAccounts
	if st.by.Kind != models.KindService {
		of = wholeAccount(st.by.AccountID)
	}
	st.watch = st.s.o.Hub.Watch(of)
	now, err := st.s.o.Tail.place(ctx)
	if err != nil {
		return err
	}
	st.tell, st.at = true, now
	if cursor == nil {
		return nil
	}
	at, known := st.s.cursors.open(st.epoch, st.by.key(), *cursor)
	if !known {
		st.resync = ResyncUnknown
		return nil
	}
	if at < now {
		oldest, err := st.s.o.Store.OldestEvent(ctx)
		if err != nil {
			return err
		}
		if oldest == 0 || at < oldest-1 {
			st.resync = ResyncTooOld
			return nil
		}
	}
	// A cursor may be ahead of this replica, which has not looked yet; nothing is heard until it has.
	st.tell, st.at = false, at
	return nil
}

// Next gives what there is to hear, or waits for it. An empty batch says that there was nothing within the wait. An error may be [EndedError].
func (st *Stream) Next(ctx context.Context, wait time.Duration) (Batch, error) {
	timer := time.NewTimer(wait)
	defer timer.Stop()
	for last := wait <= 0; ; {
		if st.expired(); st.isOver() {
			return Batch{}, st.why
		}
		next := st.watch.Next(st.at)
		b, err := st.read(ctx)
		if err != nil || len(b.Events) > 0 || b.Resync != "" || b.now || last {
			return b, err
		}
		select {
		case <-next: // a hint that came too early
			last = pause(ctx, timer, emptyWake)
			continue
		default:
		}
		select {
		case <-ctx.Done():
			return Batch{}, context.Cause(ctx)
		case <-st.over:
		case <-next:
		case <-timer.C:
			last = true
		}
	}
}

// pause tells whether the timer fired meanwhile.
func pause(ctx context.Context, timer *time.Timer, d time.Duration) bool {
	short := time.NewTimer(d)
	defer short.Stop()
	select {
	case <-ctx.Done():
	case <-short.C:
	case <-timer.C:
		return true
	}
	return false
}

// Close ends the stream. Closing it twice is allowed.
func (st *Stream) Close() {
	if st.watch != nil {
		st.watch.Close()
	}
	st.s.remove(st)
}

// end has Next give the reason, the first one that there is.
func (st *Stream) end(why *EndedError) {
	st.once.Do(func() {
		st.why = why
		close(st.over)
	})
}

func (st *Stream) isOver() bool {
	select {
	case <-st.over:
		return true
	default:
		return false
	}
}

// expired ends the stream with its token.
func (st *Stream) expired() bool {
	if st.by.ExpiresAt.IsZero() || st.s.o.Now().Before(st.by.ExpiresAt) {
		return false
	}
	st.end(ended(TokenExpired))
	return true
}

// checkLink ends a service's stream of a group that it may not see any more.
func (st *Stream) checkLink(ctx context.Context) error {
	_, err := st.s.o.Groups.Get(ctx, st.by.Principal, st.group)
	if refusal, ok := errors.AsType[*models.Error](err); ok && refusal.Code == models.CodeNotFound {
		live, err := st.s.o.Store.GroupEventsHeard(ctx, st.who, st.group, st.at, 1)
		if err == nil && len(live) == 0 { // else the stream itself tells of the end
			st.end(ended(Unlinked))
		}
		return err
	}
	return err
}

func (st *Stream) read(ctx context.Context) (Batch, error) {
	switch {
	case st.tell && st.group != "":
		return st.tellGroup(ctx)
	case st.tell:
		return st.tellAll(ctx)
	case st.group != "":
		return st.readGroup(ctx)
	default:
		return st.readMixed(ctx)
	}
}

// tellGroup gives how the group is now.
func (st *Stream) tellGroup(ctx context.Context) (Batch, error) {
	g, err := st.s.o.Groups.Get(ctx, st.by.Principal, st.group)
	if refusal, ok := errors.AsType[*models.Error](err); ok && refusal.Code == models.CodeNotFound {
		return Batch{}, st.finish(GroupEnded)
	}
	if err != nil {
		return Batch{}, err
	}
	if st.by.Kind == models.KindDevice && !isIn(st.by.Device.ID, g) {
		return Batch{}, st.finish(Left)
	}
	states, err := st.s.states(ctx, st.by.Principal, []models.GroupState{g})
	if err != nil {
		return Batch{}, err
	}
	if len(states) == 0 {
		return Batch{}, st.finish(Unlinked)
	}
	st.tell, st.at = false, g.Rev
	states[0].Cursor = st.s.cursor(st, g.Rev)
	return Batch{Events: states, Cursor: states[0].Cursor, Resync: st.takeResync()}, nil
}

// finish ends the stream by itself.
func (st *Stream) finish(reason string) error {
	st.end(ended(reason))
	return st.why
}

func (st *Stream) takeResync() (why string) {
	why, st.resync = st.resync, ""
	return why
}

// tellAll gives the next part of how everything is now; the place is the one from before the first part was read.
func (st *Stream) tellAll(ctx context.Context) (b Batch, err error) {
	for {
		var all []models.GroupState
		all, st.page, err = st.s.o.Groups.List(ctx, st.by.Principal, groups.Filter{}, models.Page{Size: batch, Token: st.page})
		if err != nil {
			return Batch{}, err
		}
		if b.Events, err = st.s.states(ctx, st.by.Principal, all); err != nil {
			return Batch{}, err
		}
		if st.newest == nil {
			st.newest = map[models.GroupID]int64{}
		}
		for _, g := range all {
			st.newest[g.ID] = g.Rev
		}
		b.Resync, b.More = st.resync, st.page != ""
		if !b.More {
			if st.until, err = st.s.o.Store.NewestEvent(ctx); err != nil {
				return Batch{}, err
			}
			st.tell, st.resync = false, ""
			b.Cursor, b.now = st.settle(), true
			if n := len(b.Events); n > 0 {
				b.Events[n-1].Cursor = b.Cursor
			}
			return b, nil
		}
		if len(b.Events) > 0 {
			return b, nil
		}
	}
}

// readGroup reads on in a group's stream.
func (st *Stream) readGroup(ctx context.Context) (Batch, error) {
	if st.ended {
		return Batch{}, st.finish(GroupEnded)
	}
	all, err := st.s.o.Store.GroupEventsHeard(ctx, st.who, st.group, st.at, batch)
	if err != nil {
		return Batch{}, err
	}
	if len(all) == 0 || all[0].Rev != st.at+1 {
		oldest, newest, err := st.s.o.Store.EventBounds(ctx, st.of)
		if err != nil {
			return Batch{}, err
		}
		switch {
		case newest < st.at:
			st.tell, st.resync = true, ResyncUnknown
			return st.tellGroup(ctx)
		case newest > st.at && (oldest == 0 || oldest > st.at+1):
			st.tell, st.resync = true, ResyncTooOld
			return st.tellGroup(ctx)
		}
	}
	written, err := st.written(ctx, all)
	switch {
	case err != nil:
		return Batch{}, err
	case len(all) > 0 && len(written) == 0 && st.by.Kind == models.KindDevice:
		return Batch{}, st.finish(Left)
	case len(all) > 0:
		st.at = all[len(all)-1].Rev
		st.ended = all[len(all)-1].Type == models.EventGroupEnded
	}
	return Batch{Events: written, Cursor: st.s.cursor(st, st.at)}, nil
}

// readMixed reads on in all that the caller hears.
func (st *Stream) readMixed(ctx context.Context) (Batch, error) {
	upTo, err := st.s.o.Tail.place(ctx)
	if err != nil {
		return Batch{}, err
	}
	for st.at < upTo {
		all, err := st.s.o.Store.EventsHeard(ctx, st.who, st.at, upTo, batch)
		if err != nil {
			return Batch{}, err
		}
		last := int64(0)
		if len(all) == batch {
			last = all[batch-1].ID
		}
		all = slices.DeleteFunc(all, func(e store.HeardEvent) bool { return e.Group != nil && e.Rev <= st.newest[e.GroupID] })
		written, err := st.written(ctx, all)
		if err != nil {
			return Batch{}, err
		}
		st.at = upTo
		if last != 0 {
			st.at = last
		}
		began := st.newest != nil
		cursor := st.settle()
		if began {
			for i := range written {
				written[i].Cursor = ""
			}
		}
		if len(written) > 0 || began && cursor != "" {
			return Batch{Events: written, Cursor: cursor, now: true}, nil
		}
	}
	return Batch{Cursor: st.settle()}, nil
}

// settle gives the place, if the stream can be gone on with from there.
func (st *Stream) settle() string {
	if st.at < st.until {
		return ""
	}
	st.newest = nil
	return st.s.cursor(st, st.at)
}

// written writes those of the events that the listener may hear now.
func (st *Stream) written(ctx context.Context, all []store.HeardEvent) ([]Event, error) {
	var out []Event
	for _, e := range all {
		to, may, err := st.s.mayHear(ctx, st.by.Principal, e)
		if err != nil {
			return nil, err
		}
		if !may || st.group != "" && st.by.Kind == models.KindDevice && !e.Member && e.Type != models.EventGroupEnded {
			continue
		}
		text, err := events.JSON(e.Event, to)
		if err != nil {
			return nil, err
		}
		at := e.ID
		if st.group != "" {
			at = e.Rev
		}
		out = append(out, Event{Cursor: st.s.cursor(st, at), OfGroup: e.Group != nil, JSON: text})
	}
	return out, nil
}
