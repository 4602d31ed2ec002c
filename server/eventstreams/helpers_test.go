package eventstreams_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/groupcast/groupcast/models"
	"github.com/groupcast/groupcast/server/eventhub"
	"github.com/groupcast/groupcast/server/eventstreams"
	"github.com/groupcast/groupcast/server/servertest"
	"github.com/groupcast/groupcast/server/store"
	"github.com/groupcast/groupcast/server/store/storetest"
)

var ctx = context.Background()

// lab is a home with one replica that lets listen.
type lab struct {
	*servertest.Home
	streams *eventstreams.Service
	t       testing.TB
	db      *storetest.DB
	hub     *eventhub.Hub
	tail    *eventstreams.Tail
	now     atomic.Int64 // the tokens' clock, in seconds
	// sessions that live
	sessions map[string]bool
}

func inLab(t *testing.T, f func(t *testing.T, l *lab)) {
	storetest.Each(t, func(t *testing.T, db *storetest.DB) { f(t, newLab(t, db)) })
}

func newLab(t *testing.T, db *storetest.DB) *lab {
	t.Helper()
	l := &lab{t: t, db: db, sessions: map[string]bool{}}
	db.OnCommit(func(c store.Changed) {
		if l.hub == nil {
			return
		}
		for _, p := range c.Events {
			l.hub.Wake(p)
		}
		l.tail.Nudge()
	})
	l.Home = servertest.On(db, db.Store).NewHome(t)
	l.now.Store(time.Now().Unix())
	l.streams, l.hub, l.tail = l.replica(db.Store, true, 1000)
	return l
}

// replica lets listen at a store. If it doesn't run, it looks and checks only when it is told.
func (l *lab) replica(st *store.Store, run bool, limit int) (*eventstreams.Service, *eventhub.Hub, *eventstreams.Tail) {
	hub := eventhub.New()
	tail := eventstreams.NewTail(st, hub, slog.New(slog.DiscardHandler))
	s, err := eventstreams.New(eventstreams.Options{
		Store: st, Groups: l.Groups, Hub: hub, Tail: tail, CursorKey: []byte("0123456789abcdef0123456789abcdef"), MaxStreams: limit,
		SessionLives: func(_ context.Context, hash []byte) (bool, error) { return l.sessions[string(hash)], nil },
		Now:          func() time.Time { return time.Unix(l.now.Load(), 0) }, Log: slog.New(slog.DiscardHandler),
	})
	require.NoError(l.t, err)
	if run {
		ctx, stop := context.WithCancel(ctx)
		done := make(chan struct{})
		go func() { defer close(done); tail.Run(ctx) }()
		l.t.Cleanup(func() { stop(); <-done })
	} else {
		require.NoError(l.t, tail.Look(ctx))
	}
	return s, hub, tail
}

// as is a caller with a token of an hour.
func (l *lab) as(p models.Principal) eventstreams.Caller {
	return eventstreams.Caller{Principal: p, IssuedAt: time.Now(), ExpiresAt: time.Unix(l.now.Load(), 0).Add(time.Hour)}
}

func (l *lab) user() eventstreams.Caller {
	l.sessions["s"] = true
	return eventstreams.Caller{Principal: models.Principal{Kind: models.KindUser, AccountID: l.Account.ID, UserID: "u_1", Session: []byte("s")}}
}

// ear is a stream that a test listens to.
type ear struct {
	t testing.TB
	*eventstreams.Stream
	last    string
	pending []told
}

// told is what one event says.
type told struct {
	Type   string
	Source string
	Data   struct {
		GroupID          string
		Rev, State       int
		AccountRev       int
		ServiceAccountID string
		Members          []struct{ ID, Name string }
		JoinPolicy       *struct{ Services []string }
		Device           *struct{ Name string }
		Link             *struct{ ServiceID string }
	}
	text string
}

func (v told) String() string {
	return fmt.Sprintf("%s %d", strings.TrimPrefix(v.Type, "groupcast."), v.Data.State)
}

func (l *lab) listen(by eventstreams.Caller, group models.GroupID, cursor *string) *ear {
	l.t.Helper()
	// What an account was told while the tail hadn't caught up may come after how everything is now, too.
	require.NoError(l.t, l.tail.Look(ctx))
	st, err := l.streams.Open(ctx, by, group, cursor)
	require.NoError(l.t, err)
	l.t.Cleanup(st.Close)
	e := &ear{t: l.t, Stream: st}
	for cursor == nil && e.last == "" { // it begins with how everything is now
		_, err = e.take(time.Second)
		require.NoError(l.t, err)
	}
	return e
}

// take reads one batch into what is pending; false after the wait.
func (e *ear) take(wait time.Duration) (bool, error) {
	b, err := e.Next(ctx, wait)
	if err != nil {
		return false, err
	}
	if b.Cursor != "" {
		e.last = b.Cursor
	}
	for _, v := range b.Events {
		var m told
		require.NoError(e.t, json.Unmarshal(v.JSON, &m))
		m.text = string(v.JSON)
		e.pending = append(e.pending, m)
	}
	return len(b.Events) > 0, nil
}

// next waits for n events.
func (e *ear) next(n int) (all []told) {
	e.t.Helper()
	deadline := time.Now().Add(time.Minute)
	for len(e.pending) < n {
		require.True(e.t, time.Now().Before(deadline), "only %v came", e.pending)
		_, err := e.take(time.Second)
		require.NoError(e.t, err)
	}
	all, e.pending = e.pending[:n:n], e.pending[n:]
	return all
}

func (e *ear) hears(want ...string) {
	e.t.Helper()
	var got []string
	for _, v := range e.next(len(want)) {
		got = append(got, v.String())
	}
	require.Equal(e.t, want, got)
}

// nothing is to be heard of what was recorded until now.
func (e *ear) nothing(l *lab) {
	e.t.Helper()
	require.Empty(e.t, e.pending)
	require.NoError(e.t, l.tail.Look(ctx))
	some, err := e.take(0)
	require.NoError(e.t, err)
	require.False(e.t, some, "%v", e.pending)
}

// over wants the stream to end within the wait that a client waits anyway.
func (e *ear) over(reason string) {
	e.t.Helper()
	_, err := e.take(20 * time.Second)
	end, ok := errors.AsType[*eventstreams.EndedError](err)
	require.True(e.t, ok, "%v, pending %v", err, e.pending)
	require.Equal(e.t, reason, end.Reason)
	require.NotEmpty(e.t, end.Detail)
}

// group is that of the name.
func (l *lab) group(name string) models.GroupID {
	for _, g := range l.Information(l.t).Groups {
		if g.Name == name {
			return g.ID
		}
	}
	l.t.Fatalf("there is no group %s", name)
	return ""
}
