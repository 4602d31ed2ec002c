package webhooks_test

import (
	"context"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	standardwebhooks "github.com/standard-webhooks/standard-webhooks/libraries/go"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/groupcast/groupcast/models"
	"github.com/groupcast/groupcast/server/keys"
	"github.com/groupcast/groupcast/server/outbound"
	"github.com/groupcast/groupcast/server/servertest"
	"github.com/groupcast/groupcast/server/store"
	"github.com/groupcast/groupcast/server/store/storetest"
	"github.com/groupcast/groupcast/server/webhooks"
)

var ctx = context.Background()

// patience bounds waits for what has to happen; it is never the measure of a test.
const patience = time.Minute

// delivery is what a partner got.
type delivery struct {
	header http.Header
	body   []byte
	event  event
}

type event struct {
	ID, Type, Source string
	Data             struct {
		GroupID          string
		Rev              int64
		ServiceAccountID string
		Link             struct{ ServiceAccountID string }
	}
}

// partner is a real HTTPS server of somebody else.
type partner struct {
	*httptest.Server
	mu  sync.Mutex
	got []delivery
	// answer decides what a delivery is answered; nil takes it.
	answer func(w http.ResponseWriter, d delivery)
}

func newPartner(t *testing.T, answer func(w http.ResponseWriter, d delivery)) *partner {
	t.Helper()
	p := &partner{answer: answer}
	p.Server = httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			return
		}
		d := delivery{header: r.Header.Clone(), body: body}
		if json.Unmarshal(body, &d.event) != nil {
			w.WriteHeader(http.StatusBadRequest)
			return
		}
		p.mu.Lock()
		p.got = append(p.got, d)
		answer := p.answer
		p.mu.Unlock()
		if answer != nil {
			answer(w, d)
		}
	}))
	t.Cleanup(p.Close)
	return p
}

func (p *partner) answers(f func(w http.ResponseWriter, d delivery)) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.answer = f
}

func (p *partner) deliveries() []delivery {
	p.mu.Lock()
	defer p.mu.Unlock()
	return append([]delivery(nil), p.got...)
}

// heard waits for so many deliveries and gives them.
func (p *partner) heard(t *testing.T, n int) []delivery {
	t.Helper()
	require.Eventually(t, func() bool { return len(p.deliveries()) >= n }, patience, 5*time.Millisecond, "%d of %d deliveries", len(p.deliveries()), n)
	return p.deliveries()
}

func status(code int) func(http.ResponseWriter, delivery) {
	return func(w http.ResponseWriter, _ delivery) { w.WriteHeader(code) }
}

// world is a home with a linked service, and what delivers to it.
type world struct {
	*servertest.Home
	hooks   *webhooks.Service
	service servertest.Linked
	camera  models.Principal
	rules   outbound.Rules
	kek     *keys.KEK
	joined  int
	wake    []func()
}

// advance moves the clock and lets couriers look at it.
func (w *world) advance(t *testing.T, d time.Duration) {
	t.Helper()
	w.DB.Advance(t, d)
	for _, wake := range w.wake {
		wake()
	}
}

func newWorld(t *testing.T, db *storetest.DB, partners ...*partner) *world {
	t.Helper()
	pool := x509.NewCertPool()
	for _, p := range partners {
		pool.AddCert(p.Certificate())
	}
	kek, err := keys.LoadOrCreateKEK(filepath.Join(t.TempDir(), "kek"))
	require.NoError(t, err)
	w := &world{Home: servertest.On(db, db.Store).NewHome(t), rules: outbound.Rules{AllowLoopback: true, RootCAs: pool}, kek: kek}
	w.hooks = webhooks.New(db.Store, kek, w.rules)
	w.service = w.Home.Service(t, "svc-upload", 0)
	w.camera = w.Device(t, models.DeviceCamera, "camera")
	return w
}

func (w *world) hook(t *testing.T, p *partner, service models.ServiceID, types ...string) (models.WebhookID, string) {
	t.Helper()
	h, secret, err := w.hooks.Create(ctx, service, p.URL+"/hook", types)
	require.NoError(t, err)
	return h.ID, secret.Reveal()
}

// courier runs one on a store until the test or stop ends it.
func (w *world) courier(t *testing.T, st *store.Store) (stop func()) {
	t.Helper()
	c := webhooks.NewCourier(webhooks.New(st, w.kek, w.rules), time.Now, slog.New(slog.DiscardHandler), nil)
	st.OnCommit(func(store.Changed) { c.Wake() })
	w.wake = append(w.wake, c.Wake)
	running, cancel := context.WithCancel(ctx)
	done := make(chan struct{})
	go func() { defer close(done); c.Run(running) }()
	stop = func() { cancel(); <-done }
	t.Cleanup(stop)
	return stop
}

// group makes a group and lets n phones join and leave it: 1 + 2n events.
func (w *world) group(t *testing.T, name string, n int) {
	t.Helper()
	w.Join(t, w.camera, servertest.Source(w.camera, "172.168.0.5", name))
	w.more(t, name, n)
}

func (w *world) more(t *testing.T, name string, n int) {
	t.Helper()
	for range n {
		w.joined++
		phone := w.Device(t, models.DevicePhone, "phone")
		a := w.Join(t, phone, servertest.Destination(phone, fmt.Sprintf("198.51.99.%d", 1+w.joined%200), name))
		w.Leave(t, phone, a.RegistrationID)
	}
}

func (w *world) status(t *testing.T, id models.WebhookID) models.Webhook {
	t.Helper()
	h, err := w.hooks.Get(ctx, "svc-upload", id)
	require.NoError(t, err)
	return h
}

// settled waits until nothing waits for a webhook.
func (w *world) settled(t *testing.T, id models.WebhookID) {
	t.Helper()
	require.Eventually(t, func() bool { return w.status(t, id).Pending == 0 }, patience, 5*time.Millisecond)
}

// failed waits until a webhook failed so often.
func (w *world) failed(t *testing.T, id models.WebhookID, n int) models.Webhook {
	t.Helper()
	require.Eventually(t, func() bool { return w.status(t, id).Failures == n }, patience, 5*time.Millisecond, "failures: %d", w.status(t, id).Failures)
	return w.status(t, id)
}

func verifies(t *testing.T, secret string, d delivery) bool {
	t.Helper()
	verifier, err := standardwebhooks.NewWebhook(secret)
	require.NoError(t, err)
	return verifier.Verify(d.body, d.header) == nil
}

func revs(all []delivery) map[string][]int64 {
	m := map[string][]int64{}
	for _, d := range all {
		m[d.event.Data.GroupID] = append(m[d.event.Data.GroupID], d.event.Data.Rev)
	}
	return m
}

// TestEveryEventIsDelivered: signed, in order, once, and with nothing in it that a service may not know.
func TestEveryEventIsDelivered(t *testing.T) {
	storetest.Each(t, func(t *testing.T, db *storetest.DB) {
		p := newPartner(t, nil)
		w := newWorld(t, db, p)
		id, secret := w.hook(t, p, "svc-upload")
		w.courier(t, db.Store)
		w.group(t, "door", 5)
		w.group(t, "garden", 5)
		all := p.heard(t, 22)
		w.settled(t, id)
		require.Len(t, p.deliveries(), 22)
		byGroup := revs(all)
		require.Len(t, byGroup, 2)
		for g, list := range byGroup {
			assert.Equal(t, []int64{1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11}, list, g)
		}
		for _, d := range all {
			assert.True(t, verifies(t, secret, d))
			assert.Equal(t, d.event.ID, d.header.Get("webhook-id"))
			assert.Equal(t, fmt.Sprintf("%s/%d", d.event.Data.GroupID, d.event.Data.Rev), d.event.ID)
			assert.Equal(t, "application/cloudevents+json", d.header.Get("Content-Type"))
			assert.Equal(t, w.service.Link.ServiceAccountID.String(), d.event.Data.ServiceAccountID)
			assert.NotContains(t, string(d.body), string(w.Account.ID))
			for _, address := range []string{"198.51.99.", "172.168.0.5"} {
				assert.NotContains(t, string(d.body), address)
			}
			d.body[len(d.body)-2] ^= 1
			assert.False(t, verifies(t, secret, d), "tampered with")
		}
		h := w.status(t, id)
		assert.False(t, h.LastSuccess.IsZero())
		assert.Zero(t, h.Failures)
	})
}

// TestAKilledCourier leaves what it had claimed to the next one, and nothing is lost that was recorded while nobody delivered.
func TestAKilledCourier(t *testing.T) {
	storetest.Each(t, func(t *testing.T, db *storetest.DB) {
		p := newPartner(t, nil)
		w := newWorld(t, db, p)
		id, _ := w.hook(t, p, "svc-upload")
		w.group(t, "door", 3)
		claimed, err := db.ClaimWebhookStreams(ctx, id, 10) // and then it was killed
		require.NoError(t, err)
		require.Len(t, claimed, 1)
		again, err := db.ClaimWebhookStreams(ctx, id, 10)
		require.NoError(t, err)
		require.Empty(t, again, "while the claim holds nobody else has it")
		w.advance(t, store.WebhookLease)
		w.courier(t, db.Store)
		assert.Equal(t, []int64{1, 2, 3, 4, 5, 6, 7}, revs(p.heard(t, 7))[string(claimed[0].GroupID)])
		w.settled(t, id)
		// Whoever was away for longer than its claim takes nothing back.
		w.group(t, "garden", 0)
		p.heard(t, 8)
		require.NoError(t, db.Write(ctx, func(tx *store.Tx) error { return tx.AdvanceWebhookStream(claimed[0], 1) }))
		w.more(t, "door", 1)
		list := revs(p.heard(t, 10))[string(claimed[0].GroupID)]
		assert.Equal(t, []int64{1, 2, 3, 4, 5, 6, 7, 8, 9}, list)
	})
}

// TestStopBreaksOffWithoutBlame: what was being delivered when the process stopped is due at once for another, and counts as no failure.
func TestStopBreaksOffWithoutBlame(t *testing.T) {
	db := storetest.SQLite(t)
	release := make(chan struct{})
	p := newPartner(t, func(http.ResponseWriter, delivery) { <-release })
	t.Cleanup(func() { close(release) })
	w := newWorld(t, db, p)
	id, _ := w.hook(t, p, "svc-upload")
	stop := w.courier(t, db.Store)
	w.group(t, "door", 0)
	p.heard(t, 1)
	stop()
	h := w.status(t, id)
	assert.Zero(t, h.Failures)
	assert.Equal(t, 1, h.Pending)
	p.answers(nil)
	w.courier(t, db.Store)
	w.settled(t, id)
	assert.Len(t, p.deliveries(), 2)
}

func TestRetries(t *testing.T) {
	storetest.Each(t, func(t *testing.T, db *storetest.DB) {
		p := newPartner(t, status(500))
		w := newWorld(t, db, p)
		id, _ := w.hook(t, p, "svc-upload")
		w.courier(t, db.Store)
		w.group(t, "door", 1)
		h := w.failed(t, id, 1)
		assert.Equal(t, "status 500", h.LastError)
		assert.Equal(t, h.FailingSince, h.LastFailure)
		assert.True(t, h.LastSuccess.IsZero())
		assert.Equal(t, 1, h.Pending)
		since := h.FailingSince
		// 5 s, 30 s, 2 min, 10 min, 1 h, 3 h, 6 h, 6 h, each up to 20 % more or less.
		for i, wait := range []time.Duration{5 * time.Second, 30 * time.Second, 2 * time.Minute, 10 * time.Minute, time.Hour, 3 * time.Hour, 6 * time.Hour, 6 * time.Hour} {
			due := db.Ints(t, "SELECT due_at - (SELECT last_failure FROM webhooks) FROM webhook_streams")
			assert.InDelta(t, wait.Milliseconds(), due[0], float64(wait.Milliseconds())/5+1000)
			w.advance(t, wait*6/5)
			h = w.failed(t, id, i+2)
		}
		assert.Equal(t, since, h.FailingSince)
		p.answers(nil)
		w.advance(t, 8*time.Hour)
		w.settled(t, id)
		h = w.status(t, id)
		assert.Zero(t, h.Failures)
		assert.True(t, h.FailingSince.IsZero())
		assert.Empty(t, h.LastError)
		got := p.deliveries()
		require.Len(t, got, 9+3, "nine tries of the first event, then it and the others")
		for _, d := range got[:10] {
			assert.Equal(t, got[0].event.ID, d.event.ID, "the same id at each try")
		}
		assert.EqualValues(t, 3, got[11].event.Data.Rev)
	})
}

func audited(t *testing.T, db *storetest.DB, action string) int {
	t.Helper()
	return len(db.Texts(t, "SELECT id FROM audit_rows WHERE action = '"+action+"'"))
}

func TestGoneDisables(t *testing.T) {
	storetest.Each(t, func(t *testing.T, db *storetest.DB) {
		p := newPartner(t, status(410))
		w := newWorld(t, db, p)
		id, _ := w.hook(t, p, "svc-upload")
		w.group(t, "door", 2) // before anything is sent: what is recorded at the very moment of the disabling may be kept
		w.courier(t, db.Store)
		require.Eventually(t, func() bool { return w.status(t, id).Disabled == models.WebhookGone }, patience, 5*time.Millisecond)
		assert.Zero(t, w.status(t, id).Pending)
		assert.Equal(t, 1, audited(t, db, "webhook.disable"))
		p.answers(nil)
		n := len(p.deliveries())
		w.more(t, "door", 2)
		assert.Zero(t, w.status(t, id).Pending, "nothing is kept for it")
		yes := true
		_, err := w.hooks.Change(ctx, "svc-upload", id, webhooks.Change{Enabled: &yes})
		require.NoError(t, err)
		w.more(t, "door", 1)
		got := p.heard(t, n+2)
		assert.Equal(t, int64(10), got[n].event.Data.Rev, "it hears from then on")
	})
}

// TestDisabledAfterDays: with a success in between the days begin again.
func TestDisabledAfterDays(t *testing.T) {
	storetest.Each(t, func(t *testing.T, db *storetest.DB) {
		p := newPartner(t, status(503))
		w := newWorld(t, db, p)
		id, _ := w.hook(t, p, "svc-upload")
		w.courier(t, db.Store)
		w.group(t, "door", 0)
		w.failed(t, id, 1)
		w.advance(t, webhooks.GiveUp-time.Hour)
		w.failed(t, id, 2)
		p.answers(nil)
		w.advance(t, time.Hour)
		w.settled(t, id)

		p.answers(status(503))
		w.group(t, "garden", 0) // a home without the service running has lost its groups by now: another one
		w.failed(t, id, 1)
		w.advance(t, webhooks.GiveUp-time.Hour)
		w.failed(t, id, 2)
		assert.Empty(t, w.status(t, id).Disabled)
		w.advance(t, 2*time.Hour)
		require.Eventually(t, func() bool { return w.status(t, id).Disabled == models.WebhookFailing }, patience, 5*time.Millisecond)
		assert.Equal(t, 1, audited(t, db, "webhook.disable"))
		assert.Zero(t, w.status(t, id).Pending)
	})
}

// TestAPoisonWebhookDelaysNobody: one that never answers has few deliveries at once and holds up no other, not even of its own service.
func TestAPoisonWebhookDelaysNobody(t *testing.T) {
	storetest.Each(t, func(t *testing.T, db *storetest.DB) {
		release := make(chan struct{})
		hung := newPartner(t, func(http.ResponseWriter, delivery) { <-release })
		t.Cleanup(func() { close(release) })
		well := newPartner(t, nil)
		w := newWorld(t, db, hung, well)
		hangs, _ := w.hook(t, hung, "svc-upload")
		id, _ := w.hook(t, well, "svc-upload")
		w.courier(t, db.Store)
		for i := range 8 {
			w.group(t, fmt.Sprintf("g%d", i), 2)
		}
		for g, list := range revs(well.heard(t, 40)) {
			assert.Equal(t, []int64{1, 2, 3, 4, 5}, list, g)
		}
		w.settled(t, id)
		// Those that have waited too long meanwhile have failed, and others were made.
		assert.LessOrEqual(t, len(hung.deliveries()), 4*(1+w.status(t, hangs).Failures), "the hung one has so many at once")
	})
}

// TestAPoisonEventDelaysNoGroup: an event that its webhook refuses holds up its own group only, and is given up in the end.
func TestAPoisonEventDelaysNoGroup(t *testing.T) {
	db := storetest.SQLite(t)
	p := newPartner(t, nil)
	w := newWorld(t, db, p)
	id, _ := w.hook(t, p, "svc-upload")
	w.courier(t, db.Store)
	w.group(t, "poison", 0)
	poison := p.heard(t, 1)[0].event.Data.GroupID
	p.answers(func(rw http.ResponseWriter, d delivery) {
		if d.event.Data.GroupID == poison && d.event.Data.Rev == 2 {
			rw.WriteHeader(http.StatusUnprocessableEntity)
		}
	})
	w.more(t, "poison", 1)
	w.failed(t, id, 1)
	w.group(t, "good", 3)
	require.Eventually(t, func() bool { return len(revs(p.deliveries())) == 2 }, patience, 5*time.Millisecond)
	p.heard(t, 1+1+7)
	require.Eventually(t, func() bool { return w.status(t, id).Pending == 1 }, patience, 5*time.Millisecond, "the poisoned one waits")
	for range 40 { // more than an event is tried
		// Others are taken meanwhile, or the webhook as a whole would be disabled.
		db.Exec(t, "UPDATE webhooks SET failing_since = 0, paused_until = 0, failures = 0")
		w.advance(t, 8*time.Hour)
		var h models.Webhook
		require.Eventually(t, func() bool { h = w.status(t, id); return h.Failures == 1 || h.Pending == 0 }, patience, 5*time.Millisecond)
		if h.Pending == 0 {
			break
		}
	}
	w.settled(t, id)
	assert.Empty(t, w.status(t, id).Disabled)
	list := revs(p.deliveries())[poison]
	assert.Equal(t, int64(3), list[len(list)-1], "what came after it is delivered")
}

// TestOneAtATimeForAGroup: an older state never overtakes a newer one.
func TestOneAtATimeForAGroup(t *testing.T) {
	storetest.Each(t, func(t *testing.T, db *storetest.DB) {
		var mu sync.Mutex
		running, most, at, mostAt := map[string]int{}, 0, 0, 0
		p := newPartner(t, func(_ http.ResponseWriter, d delivery) {
			mu.Lock()
			running[d.event.Data.GroupID]++
			at++
			most, mostAt = max(most, running[d.event.Data.GroupID]), max(mostAt, at)
			mu.Unlock()
			time.Sleep(time.Millisecond)
			mu.Lock()
			running[d.event.Data.GroupID]--
			at--
			mu.Unlock()
		})
		w := newWorld(t, db, p)
		id, _ := w.hook(t, p, "svc-upload")
		for i := range 6 {
			w.group(t, fmt.Sprintf("g%d", i), 3)
		}
		stores := []*store.Store{db.Store}
		if db.Dialect() == "postgres" {
			stores = append(stores, db.Replica(t), db.Replica(t))
		}
		for _, st := range stores {
			w.courier(t, st)
		}
		for _, list := range revs(p.heard(t, 42)) {
			assert.Equal(t, []int64{1, 2, 3, 4, 5, 6, 7}, list)
		}
		w.settled(t, id)
		require.Len(t, p.deliveries(), 42)
		mu.Lock()
		defer mu.Unlock()
		assert.Equal(t, 1, most)
		assert.LessOrEqual(t, mostAt, 4*len(stores))
	})
}

// TestEnablingBeginsAnew: a webhook that is enabled gets nothing of before, not even what somebody recorded at the moment of the disabling; enabling
// one that is enabled keeps what waits.
func TestEnablingBeginsAnew(t *testing.T) {
	storetest.Each(t, func(t *testing.T, db *storetest.DB) {
		p := newPartner(t, nil)
		w := newWorld(t, db, p)
		id, _ := w.hook(t, p, "svc-upload")
		w.group(t, "door", 1)
		set := func(enabled bool) {
			t.Helper()
			_, err := w.hooks.Change(ctx, "svc-upload", id, webhooks.Change{Enabled: &enabled})
			require.NoError(t, err)
		}
		set(true)
		require.Equal(t, 1, w.status(t, id).Pending)
		waits := db.Texts(t, "SELECT group_id FROM webhook_streams")
		set(false)
		require.Zero(t, w.status(t, id).Pending)
		// As if somebody had changed the group at the same moment, and had seen the webhook enabled.
		db.Exec(t, fmt.Sprintf("INSERT INTO webhook_streams (webhook_id, service_account_id, group_id, account_id, rev, newest_rev, due_at) VALUES ('%s', %s, '%s', '%s', 0, 2, 1)",
			id, w.service.Link.ServiceAccountID, waits[0], w.Account.ID))
		set(true)
		require.Zero(t, w.status(t, id).Pending)
		w.more(t, "door", 1)
		w.courier(t, db.Store)
		p.heard(t, 2)
		w.settled(t, id)
		for _, list := range revs(p.deliveries()) {
			require.Equal(t, []int64{4, 5}, list)
		}
	})
}

// TestAttackWebhookAfterUnlink: an account's events that were recorded before it ended the link are not delivered after that, and another
// service goes on hearing them.
func TestAttackWebhookAfterUnlink(t *testing.T) {
	storetest.Each(t, func(t *testing.T, db *storetest.DB) {
		p, other := newPartner(t, nil), newPartner(t, nil)
		w := newWorld(t, db, p, other)
		w.Home.Service(t, "svc-live", 0)
		id, _ := w.hook(t, p, "svc-upload")
		w.hook(t, other, "svc-live")
		w.group(t, "door", 2)
		require.Equal(t, 1, w.status(t, id).Pending)
		rows := db.Texts(t, "SELECT group_id FROM webhook_streams WHERE webhook_id = '"+string(id)+"'")
		require.NoError(t, w.Accounts.DeleteLink(ctx, "svc-upload", w.Account.ID))
		// As if somebody had changed a group at the same moment, and had seen the link.
		db.Exec(t, fmt.Sprintf("INSERT INTO webhook_streams (webhook_id, service_account_id, group_id, account_id, rev, newest_rev, due_at) VALUES ('%s', %s, '%s', '%s', 0, 5, 1)",
			id, w.service.Link.ServiceAccountID, rows[0], w.Account.ID))
		w.more(t, "door", 1)
		w.courier(t, db.Store)
		other.heard(t, 7)
		w.settled(t, id)
		got := p.deliveries()
		require.Len(t, got, 1)
		assert.Equal(t, "groupcast.link.revoked", got[0].event.Type)
		assert.Regexp(t, "^"+w.service.Link.ServiceAccountID.String()+"/[0-9]{13}$", got[0].event.ID)

		// The account links it again: another name, and only what happens from then on.
		again, err := w.Accounts.PutLink(ctx, models.Link{ServiceID: "svc-upload", AccountID: w.Account.ID, GrantedBy: "u"})
		require.NoError(t, err)
		w.more(t, "door", 1)
		got = p.heard(t, 4)
		w.settled(t, id)
		assert.Equal(t, "groupcast.link.granted", got[1].event.Type)
		for _, d := range p.deliveries()[1:] {
			assert.NotContains(t, string(d.body), w.service.Link.ServiceAccountID.String())
			if d.event.Data.GroupID != "" {
				assert.Equal(t, again.ServiceAccountID.String(), d.event.Data.ServiceAccountID)
				assert.Greater(t, d.event.Data.Rev, int64(7))
			}
		}
	})
}

// TestWhatNobodyWaitsForIsRemoved: rows that a race left behind.
func TestWhatNobodyWaitsForIsRemoved(t *testing.T) {
	storetest.Each(t, func(t *testing.T, db *storetest.DB) {
		p := newPartner(t, nil)
		w := newWorld(t, db, p)
		id, _ := w.hook(t, p, "svc-upload")
		w.group(t, "door", 0)
		row := "INSERT INTO webhook_streams (webhook_id, service_account_id, group_id, account_id, rev, newest_rev, due_at) VALUES ('%s', %d, '%s', '%s', 0, 1, 1)"
		db.Exec(t, fmt.Sprintf(row, models.NewWebhookID(), w.service.Link.ServiceAccountID, "g_1", w.Account.ID))
		db.Exec(t, fmt.Sprintf(row, id, 77, "g_2", w.Account.ID))
		n, err := db.SweepWebhookStreams(ctx)
		require.NoError(t, err)
		assert.EqualValues(t, 2, n)
		assert.Equal(t, 1, w.status(t, id).Pending)
	})
}

// TestAnotherAccountIsNeverHeard: a service hears of the accounts that linked it.
func TestAttackWebhookOfAnotherAccount(t *testing.T) {
	db := storetest.SQLite(t)
	p, other := newPartner(t, nil), newPartner(t, nil)
	w := newWorld(t, db, p, other)
	neighbours := newWorldBeside(t, w, "svc-live")
	id, _ := w.hook(t, p, "svc-upload")
	w.hook(t, other, "svc-live")
	w.courier(t, db.Store)
	w.group(t, "door", 2)
	neighbours.group(t, "door", 3)
	p.heard(t, 5)
	other.heard(t, 7)
	w.settled(t, id)
	for _, d := range p.deliveries() {
		assert.Equal(t, w.service.Link.ServiceAccountID.String(), d.event.Data.ServiceAccountID)
	}
	for _, d := range other.deliveries() {
		assert.Equal(t, neighbours.service.Link.ServiceAccountID.String(), d.event.Data.ServiceAccountID)
	}
}

func newWorldBeside(t *testing.T, w *world, service models.ServiceID) *world {
	t.Helper()
	n := &world{Home: w.Services.NewHome(t)}
	n.service = n.Home.Service(t, service, 0)
	n.camera = n.Device(t, models.DeviceCamera, "camera")
	return n
}

func TestOnlyWantedTypes(t *testing.T) {
	storetest.Each(t, func(t *testing.T, db *storetest.DB) {
		p := newPartner(t, nil)
		w := newWorld(t, db, p)
		id, _ := w.hook(t, p, "svc-upload", "groupcast.member.left", "groupcast.link.revoked")
		w.courier(t, db.Store)
		w.group(t, "door", 3)
		got := p.heard(t, 3)
		w.settled(t, id)
		assert.Equal(t, []int64{3, 5, 7}, revs(got)[got[0].event.Data.GroupID])
		require.NoError(t, w.Accounts.DeleteLink(ctx, "svc-upload", w.Account.ID))
		assert.Equal(t, "groupcast.link.revoked", p.heard(t, 4)[3].event.Type)
		all := []string{}
		_, err := w.hooks.Change(ctx, "svc-upload", id, webhooks.Change{Types: &all})
		require.NoError(t, err)
		_, err = w.Accounts.PutLink(ctx, models.Link{ServiceID: "svc-upload", AccountID: w.Account.ID, GrantedBy: "u"})
		require.NoError(t, err)
		assert.Equal(t, "groupcast.link.granted", p.heard(t, 5)[4].event.Type)
		for _, unknown := range []string{"group.created", "groupcast.device.added", "groupcast.", "groupcast.group.created'", "%"} {
			_, _, err := w.hooks.Create(ctx, "svc-upload", p.URL, []string{unknown})
			servertest.Refused(t, models.CodeBadRequest, err)
		}
	})
}

// TestTwoSecretsForADay: a day after a rotation the old one is of no use, and an answer that got lost costs nothing.
func TestTwoSecretsForADay(t *testing.T) {
	storetest.Each(t, func(t *testing.T, db *storetest.DB) {
		p := newPartner(t, nil)
		w := newWorld(t, db, p)
		id, first := w.hook(t, p, "svc-upload")
		_, lost, err := w.hooks.Rotate(ctx, "svc-upload", id)
		require.NoError(t, err)
		h, second, err := w.hooks.Rotate(ctx, "svc-upload", id)
		require.NoError(t, err)
		assert.True(t, h.Overlap)
		require.NotEqual(t, first, second.Reveal())
		w.courier(t, db.Store)
		w.group(t, "door", 0)
		d := p.heard(t, 1)[0]
		assert.True(t, verifies(t, first, d))
		assert.True(t, verifies(t, second.Reveal(), d))
		assert.False(t, verifies(t, lost.Reveal(), d))
		assert.Len(t, strings.Fields(d.header.Get("webhook-signature")), 2)
		w.advance(t, webhooks.Overlap)
		w.group(t, "garden", 0)
		d = p.heard(t, 2)[1]
		assert.False(t, verifies(t, first, d))
		assert.True(t, verifies(t, second.Reveal(), d))
		assert.False(t, w.status(t, id).Overlap)

		// Neither the database nor a log line has a secret.
		for _, text := range db.Texts(t, "SELECT CAST(secret_sealed AS text) || CAST(old_secret_sealed AS text) FROM webhooks") {
			assert.NotContains(t, text, first[6:])
			assert.NotContains(t, text, second.Reveal()[6:])
		}
		assert.NotContains(t, fmt.Sprintf("%v %+v %#v %s %q", second, second, second, second, second), second.Reveal()[6:])
		assert.Equal(t, 2, audited(t, db, "webhook.rotate"))
	})
}

// TestNewestStaysForWebhooks: what is older than the events' retention is gone but for the state that a webhook still needs.
func TestNewestStaysForWebhooks(t *testing.T) {
	storetest.Each(t, func(t *testing.T, db *storetest.DB) {
		p := newPartner(t, nil)
		w := newWorld(t, db, p)
		id, _ := w.hook(t, p, "svc-upload")
		w.group(t, "door", 3)
		db.Exec(t, "UPDATE events SET published_at = 1")
		w.advance(t, store.EventRetention)
		for range 3 { // however small the batches
			_, err := db.SweepEvents(ctx, 100)
			require.NoError(t, err)
		}
		require.Len(t, db.Ints(t, "SELECT id FROM events"), 1)
		w.courier(t, db.Store)
		w.settled(t, id)
		got := p.deliveries()
		require.Len(t, got, 1)
		assert.EqualValues(t, 7, got[0].event.Data.Rev)
		_, err := db.SweepEvents(ctx, 100)
		require.NoError(t, err)
		assert.Empty(t, db.Ints(t, "SELECT id FROM events"))
	})
}

// TestAnswersAreReadInMeasure: an endless answer is cut, an endless head refused; what is 2xx counts.
func TestAnswersAreReadInMeasure(t *testing.T) {
	db := storetest.SQLite(t)
	written := make(chan int, 10)
	p := newPartner(t, func(w http.ResponseWriter, _ delivery) {
		n, chunk := 0, make([]byte, 32<<10)
		for n < 64<<20 {
			m, err := w.Write(chunk)
			if n += m; err != nil {
				break
			}
		}
		written <- n
	})
	w := newWorld(t, db, p)
	id, _ := w.hook(t, p, "svc-upload")
	w.courier(t, db.Store)
	w.group(t, "door", 0)
	select {
	case n := <-written:
		assert.Less(t, n, 32<<20, "only what buffers on the way hold")
	case <-time.After(patience):
		t.Fatal("the answer was read to its end")
	}
	w.settled(t, id)
	p.answers(func(w http.ResponseWriter, _ delivery) { w.Header().Set("X-Long", strings.Repeat("a", 1<<20)) })
	w.more(t, "door", 1)
	assert.Equal(t, "connection", w.failed(t, id, 1).LastError)
}

// TestWhatFailedIsSaidInAWord, without anybody's address.
func TestWhatFailedIsSaidInAWord(t *testing.T) {
	db := storetest.SQLite(t)
	stranger, closed := newPartner(t, nil), newPartner(t, nil)
	closed.Close()
	w := newWorld(t, db)
	c := webhooks.NewCourier(w.hooks, time.Now, slog.New(slog.DiscardHandler), nil)
	for target, want := range map[string]string{
		stranger.URL: "tls", closed.URL: "connection", "https://localhost.invalid/": "name", "https://ip6-localhost:9/": "address",
	} {
		h, _, err := w.hooks.Create(ctx, "svc-upload", target, nil)
		require.NoError(t, err)
		o, err := c.Test(ctx, "svc-upload", h.ID)
		require.NoError(t, err)
		if want == "address" && o.Problem == "name" {
			continue // a host without that name
		}
		assert.Equal(t, webhooks.Outcome{Problem: want}, o, target)
	}
	_, err := c.Test(ctx, "svc-upload", models.NewWebhookID())
	servertest.Refused(t, models.CodeNotFound, err)
}

func TestTestEvent(t *testing.T) {
	db := storetest.SQLite(t)
	p := newPartner(t, nil)
	w := newWorld(t, db, p)
	id, secret := w.hook(t, p, "svc-upload", "groupcast.group.ended")
	no := false
	_, err := w.hooks.Change(ctx, "svc-upload", id, webhooks.Change{Enabled: &no})
	require.NoError(t, err)
	c := webhooks.NewCourier(w.hooks, time.Now, slog.New(slog.DiscardHandler), nil)
	o, err := c.Test(ctx, "svc-upload", id)
	require.NoError(t, err)
	assert.Equal(t, webhooks.Outcome{Delivered: true, Status: 200}, o)
	d := p.heard(t, 1)[0]
	assert.True(t, verifies(t, secret, d))
	assert.Equal(t, "groupcast.webhook.test", d.event.Type)
	h := w.status(t, id)
	assert.True(t, h.LastSuccess.IsZero(), "it changes nothing")
	assert.Equal(t, models.WebhookPaused, h.Disabled)
}

// TestAttackWebhookURL: what could never be called is refused at once.
func TestAttackWebhookURL(t *testing.T) {
	db := storetest.SQLite(t)
	w := newWorld(t, db)
	hooks := webhooks.New(db.Store, w.kek, outbound.Rules{Ports: []uint16{443}})
	for _, bad := range []string{
		"", "x", "http://hooks.example.com/", "ftp://hooks.example.com/", "//hooks.example.com/", "https:", "https://", "https:///x", "https:hooks.example.com", "https://:443/",
		"https://user@hooks.example.com/", "https://user:pass@hooks.example.com/", "https://hooks.example.com@127.0.0.1/", "https://hooks.example.com/#x", "https://hooks.example.com/#",
		"https://hooks.example.com:80/", "https://hooks.example.com:8443/", "https://hooks.example.com:0/", "https://hooks.example.com:99999/", "https://hooks.example.com:x/",
		"https://127.0.0.1/", "https://127.0.0.1./", "https://127.1/", "https://2130706433/", "https://0x7f000001/", "https://0x7f.0.0.1/", "https://0177.0.0.1/", "https://017700000001/",
		"https://hooks.example.0x1/", "https://0x/", "https://10.0.0.1/", "https://169.254.169.254/", "https://100.64.0.1/", "https://192.168.1.1/", "https://1.1.1.1:80/",
		"https://[::1]/", "https://[::ffff:127.0.0.1]/", "https://[::ffff:1.1.1.1]/", "https://[64:ff9b::7f00:1]/", "https://[2002:7f00:1::]/", "https://[fe80::1]/", "https://[fe80::1%25eth0]/",
		"https://[fd00:ec2::254]/", "https://hooks.example.com/\x00", "https://hooks.example.com/ \n", "https://" + strings.Repeat("a", 2048) + "/",
	} {
		_, _, err := hooks.Create(ctx, "svc-upload", bad, nil)
		servertest.Refused(t, models.CodeBadURL, err)
	}
	for _, good := range []string{"https://hooks.example.com", "https://hooks.example.com:443/a?b=c", "https://1.1.1.1/", "https://[2606:4700::1111]/", "https://xn--bcher-kva.example/"} {
		h, _, err := hooks.Create(ctx, "svc-upload", good, nil)
		require.NoError(t, err, good)
		_, err = hooks.Change(ctx, "svc-upload", h.ID, webhooks.Change{URL: new(string)})
		servertest.Refused(t, models.CodeBadURL, err)
		assert.Equal(t, good, w.status(t, h.ID).URL)
		require.NoError(t, hooks.Delete(ctx, "svc-upload", h.ID))
	}
}

// TestLimit: a service has at most so many, however many ask at once; another's are nobody's.
func TestLimit(t *testing.T) {
	storetest.Each(t, func(t *testing.T, db *storetest.DB) {
		w := newWorld(t, db)
		w.Home.Service(t, "svc-live", 0)
		var all sync.WaitGroup
		var mu sync.Mutex
		made, refused := 0, 0
		for range webhooks.Limit + 5 {
			all.Go(func() {
				_, _, err := w.hooks.Create(ctx, "svc-upload", "https://hooks.example.com/", nil)
				mu.Lock()
				defer mu.Unlock()
				var refusal *models.Error
				switch {
				case err == nil:
					made++
				case errors.As(err, &refusal) && refusal.Code == models.CodeQuotaExceeded:
					refused++
				}
			})
		}
		all.Wait()
		assert.Equal(t, []int{webhooks.Limit, 5}, []int{made, refused})
		page, next, err := w.hooks.List(ctx, "svc-upload", models.Page{Size: 6})
		require.NoError(t, err)
		require.Len(t, page, 6)
		rest, last, err := w.hooks.List(ctx, "svc-upload", models.Page{Size: 6, Token: next})
		require.NoError(t, err)
		assert.Len(t, rest, 4)
		assert.Empty(t, last)
		none, _, err := w.hooks.List(ctx, "svc-live", models.Page{})
		require.NoError(t, err)
		assert.Empty(t, none)
		id := page[0].ID
		_, err = w.hooks.Get(ctx, "svc-live", id)
		servertest.Refused(t, models.CodeNotFound, err)
		_, err = w.hooks.Change(ctx, "svc-live", id, webhooks.Change{})
		servertest.Refused(t, models.CodeNotFound, err)
		_, _, err = w.hooks.Rotate(ctx, "svc-live", id)
		servertest.Refused(t, models.CodeNotFound, err)
		servertest.Refused(t, models.CodeNotFound, w.hooks.Delete(ctx, "svc-live", id))
		require.NoError(t, w.hooks.Delete(ctx, "svc-upload", id))
		assert.Equal(t, 1, audited(t, db, "webhook.delete"))
		assert.Equal(t, webhooks.Limit, audited(t, db, "webhook.create"))
	})
}
