package mqtt

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/groupcast/groupcast/models"
	"github.com/groupcast/groupcast/server/events"
)

const (
	// maxAge is how old a reading may be when something of it is delivered.
	maxAge = time.Second
	// maxBehind is how many events of an account are kept for those who didn't take them yet.
	maxBehind = 64
)

// feed is a stream that somebody subscribed to, as of the last reading. All its subscribers share it.
type feed struct {
	edge *Edge
	of   models.EventStream
	subs map[*subscription]struct{} // guarded by edge.mu

	loading sync.Mutex // held during a reading

	mu             sync.Mutex
	content        content
	readAt         time.Time // when the last reading began
	running, again bool
	stale          bool // the last reading failed
}

// content is what a feed read.
type content interface {
	// load reads it again. What it reads is used only once commit was called, under the feed's lock.
	load(ctx context.Context) (commit func(), err error)
	// next is what a client is to hear after a place.
	next(c *Client, after int64) next
	// end is the place of the newest.
	end() int64
	// missed tells whether there is something else, by how far it is in the database.
	missed(rev int64, groups []models.GroupID) bool
}

// next is what a client is to hear.
type next struct {
	verdict verdict
	place   int64
	body    []byte
}

type verdict int

const (
	nothing verdict = iota
	tell
	tellLast // and nothing after it
	silence  // it may not hear of this stream (any more)
	revoked  // nor of any other
	behind   // what it would have to hear is not there any more
)

func newFeed(e *Edge, of models.EventStream) *feed {
	f := &feed{edge: e, of: of, subs: map[*subscription]struct{}{}}
	if of.GroupID != "" {
		f.content = &groupContent{edge: e, of: of}
	} else {
		f.content = &accountContent{feed: f}
	}
	return f
}

// wake has the feed read and its subscribers told. It never blocks.
func (f *feed) wake() {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.running {
		f.again = true
		return
	}
	f.running = true
	go f.refresh()
}

func (f *feed) refresh() {
	for {
		if err := f.fresh(time.Now()); err == nil {
			for _, sub := range f.edge.subscribers(f) {
				sub.session.mark(sub)
			}
		} // else the next look finds it stale
		f.mu.Lock()
		if !f.again {
			f.running = false
			f.mu.Unlock()
			return
		}
		f.again = false
		f.mu.Unlock()
	}
}

// fresh makes sure that the feed was read since a time.
func (f *feed) fresh(since time.Time) error {
	if f.isFresh(since) {
		return nil
	}
	f.loading.Lock()
	defer f.loading.Unlock()
	if f.isFresh(since) { // whoever held the lock read it
		return nil
	}
	f.edge.loads <- struct{}{}
	defer func() { <-f.edge.loads }()
	ctx, cancel := context.WithTimeout(f.edge.life, readTimeout)
	defer cancel()
	began := time.Now()
	commit, err := f.content.load(ctx)
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.stale = err != nil; f.stale {
		return err
	}
	commit()
	f.readAt = began
	return nil
}

func (f *feed) isFresh(since time.Time) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return !f.readAt.IsZero() && !f.readAt.Before(since)
}

// next is what a client is to hear now.
func (f *feed) next(c *Client, after int64) (next, error) {
	if err := f.fresh(time.Now().Add(-maxAge)); err != nil {
		return next{}, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.content.next(c, after), nil
}

// admits tells whether a client may subscribe, by a reading that begins now, and from which place on.
func (f *feed) admits(c *Client) (bool, int64, error) {
	if err := f.fresh(time.Now()); err != nil {
		return false, 0, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.of.GroupID != "" {
		return f.content.next(c, 0).verdict == tell, 0, nil
	}
	return f.content.next(c, f.content.end()).verdict == nothing, f.content.end(), nil
}

func (f *feed) missed(rev int64, groups []models.GroupID) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.stale || f.content.missed(rev, groups)
}

// isNews tells whether an account's feed doesn't know a group.
func (f *feed) isNews(g models.GroupID) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	a, ok := f.content.(*accountContent)
	_, known := a.groups[g]
	return ok && !known
}

// groupContent is the newest state of a group.
type groupContent struct {
	edge  *Edge
	of    models.EventStream
	state events.State
	found bool
	body  []byte
}

func (g *groupContent) load(ctx context.Context) (func(), error) {
	state, found, err := g.edge.o.State(ctx, g.of)
	if err != nil {
		return nil, err
	}
	var body []byte
	if found {
		if body, err = events.JSON(state.Event, events.Listener{}); err != nil {
			return nil, err
		}
	}
	return func() { g.state, g.found, g.body = state, found, body }, nil
}

func (g *groupContent) next(c *Client, after int64) next {
	switch {
	case !g.found || !g.state.Hears(c.Device):
		return next{verdict: silence}
	case g.state.Rev <= after && g.state.Type == models.EventGroupEnded:
		return next{verdict: silence}
	case g.state.Rev <= after:
		return next{}
	case g.state.Type == models.EventGroupEnded:
		if after == 0 { // nobody subscribes to what is over
			return next{verdict: silence}
		}
		return next{verdict: tellLast, place: g.state.Rev, body: g.body}
	default:
		return next{verdict: tell, place: g.state.Rev, body: g.body}
	}
}

func (g *groupContent) end() int64 { return g.state.Rev }

func (g *groupContent) missed(rev int64, _ []models.GroupID) bool {
	if rev == 0 { // it has no row
		return g.found && g.state.Type != models.EventGroupEnded
	}
	return !g.found || rev != g.state.Rev
}

// accountContent is what is announced to the devices of an account: new devices and new groups. Each counts, so the last of them are kept, for
// all together.
type accountContent struct {
	feed    *feed
	known   bool // it was read before
	rev     int64
	groups  map[models.GroupID]struct{} // those that live
	devices map[models.ID]models.Device // those of the subscribers
	places  int64                       // how many there were
	last    []announcement
}

type announcement struct {
	device models.ID // the one that it announces, which needn't hear it; 0 for a group
	body   []byte
}

func (a *accountContent) load(ctx context.Context) (func(), error) {
	o, account := &a.feed.edge.o, a.feed.of.AccountID
	var ids []models.ID
	for _, sub := range a.feed.edge.subscribers(a.feed) {
		ids = append(ids, sub.session.client.Device)
	}
	news, err := o.News(ctx, []models.AccountID{account})
	if err != nil {
		return nil, err
	}
	n := news[account]
	groups := make(map[models.GroupID]struct{}, len(n.Groups))
	for _, g := range n.Groups {
		groups[g] = struct{}{}
	}
	var added []announcement
	lost := false
	if a.known {
		if added, lost, err = a.devicesAdded(ctx, n.Rev); err != nil {
			return nil, err
		}
		created, err := a.groupsCreated(ctx, n.Groups)
		if err != nil {
			return nil, err
		}
		added = append(added, created...)
	}
	// Whose device it still is comes last, so that it is as of after what is announced.
	devices, err := a.feed.edge.devices(ctx, ids)
	if err != nil {
		return nil, err
	}
	return func() {
		a.known, a.rev, a.groups, a.devices = true, n.Rev, groups, devices
		if lost {
			a.places, a.last = a.places+1, nil // everybody is behind
		}
		a.places += int64(len(added))
		a.last = append(a.last, added...)
		if over := len(a.last) - maxBehind; over > 0 {
			a.last = append([]announcement(nil), a.last[over:]...)
		}
	}, nil
}

// devicesAdded reads the account's own events up to rev. lost tells that some are not there any more.
func (a *accountContent) devicesAdded(ctx context.Context, rev int64) (all []announcement, lost bool, err error) {
	for at := a.rev; at < rev; {
		b, err := a.feed.edge.o.After(ctx, a.feed.of, at)
		if err != nil {
			return nil, false, err
		}
		lost = lost || b.Gap
		for _, e := range b.Events {
			if at = e.Rev; e.Device == nil || at > rev {
				continue
			}
			body, err := events.JSON(e, events.Listener{})
			if err != nil {
				return nil, false, err
			}
			all = append(all, announcement{device: e.Device.ID, body: body})
		}
		if len(b.Events) == 0 {
			if b.Newest < rev && !b.Gap {
				return nil, false, fmt.Errorf("the events after %d of an account are not to be read yet", at)
			}
			break
		}
	}
	return all, lost || rev < a.rev, nil
}

// groupsCreated reads how the groups began that were not there at the last reading.
func (a *accountContent) groupsCreated(ctx context.Context, now []models.GroupID) (all []announcement, err error) {
	for _, id := range now {
		if _, known := a.groups[id]; known {
			continue
		}
		b, err := a.feed.edge.o.After(ctx, models.EventStream{AccountID: a.feed.of.AccountID, GroupID: id}, 0)
		if err != nil {
			return nil, err
		}
		if len(b.Events) == 0 || b.Events[0].Type != models.EventGroupCreated {
			continue // it is old: a restore brought it back
		}
		body, err := events.JSON(b.Events[0], events.Listener{})
		if err != nil {
			return nil, err
		}
		all = append(all, announcement{body: body})
	}
	return all, nil
}

func (a *accountContent) next(c *Client, after int64) next {
	if d, ok := a.devices[c.Device]; !ok || !c.holds(d) {
		return next{verdict: revoked}
	}
	if after < a.places-int64(len(a.last)) {
		return next{verdict: behind}
	}
	for place := after; place < a.places; place++ {
		if n := a.last[int64(len(a.last))-(a.places-place)]; n.device != c.Device {
			return next{verdict: tell, place: place + 1, body: n.body}
		}
	}
	return next{}
}

func (a *accountContent) end() int64 { return a.places }

func (a *accountContent) missed(rev int64, groups []models.GroupID) bool {
	if rev != a.rev {
		return true
	}
	for _, g := range groups {
		if _, known := a.groups[g]; !known {
			return true
		}
	}
	return false
}
