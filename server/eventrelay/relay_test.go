package eventrelay_test

import (
	"context"
	"fmt"
	"log/slog"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"

	"github.com/groupcast/groupcast/internal/logtest"
	"github.com/groupcast/groupcast/models"
	"github.com/groupcast/groupcast/openapi/api"
	"github.com/groupcast/groupcast/server/eventqueue"
	"github.com/groupcast/groupcast/server/eventrelay"
	"github.com/groupcast/groupcast/server/eventrelay/relaytest"
	"github.com/groupcast/groupcast/server/servertest"
	"github.com/groupcast/groupcast/server/store"
	"github.com/groupcast/groupcast/server/store/storetest"
)

var (
	ctx   = context.Background()
	quiet = slog.New(slog.DiscardHandler)
)

// patience bounds what a test waits for; nothing is measured by it.
const patience = time.Minute

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
func relaying(t testing.TB, st *store.Store, q eventrelay.Queue) (stop func()) {
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
		l.Join(t, phone, servertest.Destination(phone, fmt.Sprintf("198.51.99.%d", 1+l.n%200), fmt.Sprint("g", l.n%4)))
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

func received(t *testing.T, q *eventqueue.Queue) map[string][]api.GroupEvent {
	t.Helper()
	return relaytest.Received(t, q.Conn())
}

func ledger(t *testing.T, db *storetest.DB, q *eventqueue.Queue) {
	t.Helper()
	relaytest.Ledger(t, db, q.Conn())
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

// TestANarrowerConsentTakesBack: what a service hasn't fetched of groups that it may not hear of any more goes; the rest stays.
func TestANarrowerConsentTakesBack(t *testing.T) {
	storetest.Each(t, func(t *testing.T, db *storetest.DB) {
		q := queue(t, eventqueue.Options{})
		relaying(t, db.Store, q)
		l, other := newLife(t, db), newLife(t, db)
		garden, err := l.Accounts.CreatePremises(ctx, l.Account.ID, "garden", false)
		require.NoError(t, err)
		l.happen(t, 20)
		other.happen(t, 20)
		own := fmt.Sprintf("gc.s.%s.%s.", l.upload.Link.ServiceID, l.upload.Link.ServiceAccountID)
		groups := func(prefix string) (subjects []string) {
			for subject := range received(t, q) {
				if strings.HasPrefix(subject, prefix) && !strings.HasSuffix(subject, ".link") {
					subjects = append(subjects, subject)
				}
			}
			return subjects
		}
		put := func(c models.Consent) {
			t.Helper()
			want := l.upload.Link
			want.Consent = c
			_, err := l.Accounts.PutLink(ctx, want)
			require.NoError(t, err)
			published(t, db)
		}
		published(t, db)
		require.Len(t, groups(own), 4)
		scopes := l.upload.Link.Scopes
		put(models.Consent{Scopes: scopes, Premises: []models.PremisesID{l.Premises.ID}})
		require.Len(t, groups(own), 4, "all are at the premises that is still covered")
		put(models.Consent{Scopes: scopes, Premises: []models.PremisesID{garden.ID}})
		require.Empty(t, groups(own))
		require.Len(t, groups("gc.s."+string(other.upload.Link.ServiceID)+"."), 4, "another link keeps what it has")
		put(models.Consent{Scopes: scopes})
		l.happen(t, 8)
		published(t, db)
		require.Len(t, groups(own), 4)
		// Who may only hear of groups that it is in keeps what it has of those.
		upload, err := l.Accounts.ServicePrincipal(ctx, l.upload.Link.ServiceID)
		require.NoError(t, err)
		l.Join(t, upload, servertest.ServiceDestination(l.upload, "96.114.14.140", "g2", servertest.Addr("172.168.0.235")))
		published(t, db)
		put(models.Consent{Scopes: []string{models.ScopeRegister, models.ScopeNotify}})
		require.Len(t, groups(own), 1)
	})
}

// TestEventsThatWaitAreReported: they are counted, and after five seconds it is said aloud, once, until they are gone.
func TestEventsThatWaitAreReported(t *testing.T) {
	storetest.Each(t, func(t *testing.T, db *storetest.DB) {
		l := newLife(t, db)
		l.happen(t, 3)
		db.Exec(t, "UPDATE events SET created_at = created_at + 3600000") // this may take as long as it takes
		log := &logtest.Log{}
		var open atomic.Bool
		registry := prometheus.NewRegistry()
		away := &faulty{Queue: queue(t, eventqueue.Options{}), beforePublish: func() bool { return !open.Load() }, die: func() {}}
		r := eventrelay.New(db.Store, away, slog.New(slog.NewTextHandler(log, nil)), registry)
		running, cancel := context.WithCancel(ctx)
		done := make(chan struct{})
		go func() { defer close(done); r.Run(running) }()
		t.Cleanup(func() { cancel(); <-done })
		const late = "waiting to be published for too long"
		events := len(db.Ints(t, "SELECT id FROM events"))
		require.Eventually(t, func() bool { return value(t, registry, "groupcast_events_unpublished") == float64(events) }, patience, 10*time.Millisecond)
		require.NotContains(t, log.String(), late)
		db.Advance(t, time.Hour+6*time.Second)
		require.Eventually(t, func() bool { return strings.Contains(log.String(), late) }, patience, 10*time.Millisecond)
		require.GreaterOrEqual(t, value(t, registry, "groupcast_events_oldest_unpublished_seconds"), 6.0)
		open.Store(true)
		published(t, db)
		require.Eventually(t, func() bool { return value(t, registry, "groupcast_events_unpublished") == 0 }, patience, 10*time.Millisecond)
		require.Zero(t, value(t, registry, "groupcast_events_oldest_unpublished_seconds"))
		require.EqualValues(t, events, value(t, registry, "groupcast_events_published_total"))
		require.Equal(t, 1, strings.Count(log.String(), late))
		require.EqualValues(t, 1, value(t, registry, "groupcast_events_leader"))
		cancel()
		<-done
		require.Zero(t, value(t, registry, "groupcast_events_leader"))
	})
}

// value reads a metric without labels.
func value(t *testing.T, registry *prometheus.Registry, name string) float64 {
	t.Helper()
	families, err := registry.Gather()
	require.NoError(t, err)
	for _, f := range families {
		if f.GetName() == name {
			return f.GetMetric()[0].GetGauge().GetValue() + f.GetMetric()[0].GetCounter().GetValue()
		}
	}
	t.Fatalf("there is no metric %s", name)
	return 0
}
