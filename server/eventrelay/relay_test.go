package eventrelay_test

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"

	"github.com/groupcast/groupcast/models"
	"github.com/groupcast/groupcast/openapi/api"
	"github.com/groupcast/groupcast/server/eventqueue"
	"github.com/groupcast/groupcast/server/eventrelay"
	"github.com/groupcast/groupcast/server/servertest"
	"github.com/groupcast/groupcast/server/store"
	"github.com/groupcast/groupcast/server/store/storetest"
)

var (
	ctx   = context.Background()
	quiet = slog.New(slog.DiscardHandler)
)

// patience bounds what a test waits for; nothing is measured by it.
const patience = 30 * time.Second

// queue opens the queue in a directory, which is a process's own.
func queue(t *testing.T, o eventqueue.Options) *eventqueue.Queue {
	t.Helper()
	if o.DataDir == "" {
		o.DataDir = t.TempDir()
	}
	if o.MaxBytes == 0 {
		o.MaxBytes = 64 << 20
	}
	o.Log = quiet
	q, err := eventqueue.Open(o)
	require.NoError(t, err)
	t.Cleanup(q.Close)
	return q
}

// relaying runs a relay until the function it gives is called.
func relaying(t *testing.T, st *store.Store, q eventrelay.Queue) (stop func()) {
	t.Helper()
	r := eventrelay.New(st, q, quiet, prometheus.NewRegistry())
	st.OnCommit(func(store.Changed) { r.Wake() })
	running, cancel := context.WithCancel(ctx)
	done := make(chan struct{})
	go func() { defer close(done); r.Run(running) }()
	var once sync.Once
	stop = func() { once.Do(func() { cancel(); <-done }) }
	t.Cleanup(stop)
	return stop
}

// life is a home in which things happen.
type life struct {
	*servertest.Home
	camera models.Principal
	upload servertest.Linked
	phones []models.Principal
	n      int
}

func newLife(t *testing.T, db *storetest.DB) *life {
	t.Helper()
	l := &life{Home: servertest.On(db, db.Store).NewHome(t)}
	l.camera = l.Device(t, models.DeviceCamera, "camera")
	l.upload = l.Service(t, models.ServiceID("svc-"+strings.ToLower(string(l.Account.ID[len(l.Account.ID)-6:]))), 0)
	for i := range 3 {
		l.phones = append(l.phones, l.Device(t, models.DevicePhone, fmt.Sprint("phone ", i)))
	}
	for i := range 4 {
		l.Join(t, l.camera, servertest.Source(l.camera, "172.168.0.5", fmt.Sprint("g", i)))
	}
	return l
}

// happen lets n things happen, each a commit with an event.
func (l *life) happen(t *testing.T, n int) {
	t.Helper()
	for range n {
		l.n++
		phone := l.phones[l.n%len(l.phones)]
		l.Join(t, phone, servertest.Destination(phone, fmt.Sprintf("198.51.100.%d", 1+l.n%200), fmt.Sprint("g", l.n%4)))
	}
}

// published waits until nothing waits to be published.
func published(t *testing.T, db *storetest.DB) {
	t.Helper()
	require.Eventually(t, func() bool {
		b, err := db.EventBacklog(ctx)
		return err == nil && b.Count == 0
	}, patience, 20*time.Millisecond)
}

// received is what is in the stream, by subject.
func received(t *testing.T, q *eventqueue.Queue) map[string][]api.GroupEvent {
	t.Helper()
	js, err := jetstream.New(q.Conn())
	require.NoError(t, err)
	s, err := js.Stream(ctx, eventqueue.StreamName)
	require.NoError(t, err)
	c, err := s.OrderedConsumer(ctx, jetstream.OrderedConsumerConfig{})
	require.NoError(t, err)
	info, err := s.Info(ctx)
	require.NoError(t, err)
	all := map[string][]api.GroupEvent{}
	for n := uint64(0); n < info.State.Msgs; {
		// One asks for no more than there is: a fetch that wants more waits for it.
		batch, err := c.Fetch(int(min(500, info.State.Msgs-n)), jetstream.FetchMaxWait(2*time.Second))
		require.NoError(t, err)
		for m := range batch.Messages() {
			var e api.GroupEvent
			require.NoError(t, json.Unmarshal(m.Data(), &e), "%s", m.Data())
			all[m.Subject()] = append(all[m.Subject()], e)
			n++
		}
		require.NoError(t, batch.Error())
	}
	return all
}

// ledger holds the stream against the database: per stream the numbers 1 to n, each once, in order; the last is how the group is; services have
// just what is theirs.
func ledger(t *testing.T, db *storetest.DB, q *eventqueue.Queue) {
	t.Helper()
	all := received(t, q)
	truth := db.Texts(t, "SELECT account_id || '.' || CASE group_id WHEN '' THEN 'account' ELSE group_id END || ' ' || max(rev) FROM events GROUP BY account_id, group_id")
	var subjects int
	for _, row := range truth {
		stream, newest, _ := strings.Cut(row, " ")
		got := all["gc.a."+stream]
		require.Equal(t, newest, fmt.Sprint(len(got)), stream)
		for i, e := range got {
			require.Equal(t, fmt.Sprintf("%010d", i+1), e.Sequence, "%s: each once, in order", stream)
		}
		subjects++
	}
	for _, row := range db.Texts(t, "SELECT g.account_id || '.' || g.id || ' ' || (SELECT count(*) FROM registrations r WHERE r.group_id = g.id AND r.role = 'destination') FROM groups g") {
		stream, state, _ := strings.Cut(row, " ")
		got := all["gc.a."+stream]
		require.Equal(t, state, fmt.Sprint(got[len(got)-1].Data.State), "the last that is heard is the truth")
	}
	for subject, got := range all {
		if strings.HasPrefix(subject, "gc.a.") {
			subjects--
			continue
		}
		part := strings.Split(subject, ".") // gc.s.SERVICE.SERVICEACCOUNTID.STREAM
		require.Len(t, part, 5)
		if part[4] == "link" {
			continue
		}
		linked := db.Texts(t, fmt.Sprintf("SELECT l.service_id FROM service_links l JOIN events e ON e.account_id = l.account_id AND e.group_id = '%s' AND e.rev = 1 "+
			"WHERE l.service_account_id = %s", part[4], part[3]))
		require.Equal(t, []string{part[2]}, linked, "no service has anything of an account that it is not linked with")
		for i, e := range got {
			require.Equal(t, part[3], e.Data.ServiceAccountID.String())
			if i > 0 {
				require.Equal(t, got[i-1].Data.Rev+1, e.Data.Rev)
			}
		}
	}
	require.Zero(t, subjects, "and nothing else is in the stream")
}

func TestWhatHappensIsPublished(t *testing.T) {
	storetest.Each(t, func(t *testing.T, db *storetest.DB) {
		q := queue(t, eventqueue.Options{})
		relaying(t, db.Store, q)
		one, two := newLife(t, db), newLife(t, db)
		var both sync.WaitGroup
		for _, l := range []*life{one, two} {
			both.Go(func() { l.happen(t, 60) })
		}
		both.Wait()
		published(t, db)
		ledger(t, db, q)
		before := received(t, q)
		own := fmt.Sprintf("gc.s.%s.%s.", one.upload.Link.ServiceID, one.upload.Link.ServiceAccountID)
		count := func(all map[string][]api.GroupEvent, prefix string) (n int) {
			for subject, got := range all {
				if strings.HasPrefix(subject, prefix) {
					n += len(got)
				}
			}
			return n
		}
		require.Greater(t, count(before, own), 30)

		// The end of a link takes back what its service hasn't fetched.
		require.NoError(t, one.Accounts.DeleteLink(ctx, one.upload.Link.ServiceID, one.Account.ID))
		one.happen(t, 5)
		published(t, db)
		after := received(t, q)
		require.Equal(t, 1, count(after, own))
		require.Equal(t, "groupcast.link.revoked", after[own+"link"][0].Type)
		require.True(t, strings.HasPrefix(after[own+"link"][0].ID, one.upload.Link.ServiceAccountID.String()+"/"))
		ledger(t, db, q)
	})
}

// forceCollection runs the garbage collector and what it finalises.
func forceCollection() {
	runtime.GC()
	runtime.GC()
}
