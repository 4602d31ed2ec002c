package queueaccess_test

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"net/url"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/groupcast/groupcast/e2e/harness"
	"github.com/groupcast/groupcast/models"
	"github.com/groupcast/groupcast/openapi/api"
	"github.com/groupcast/groupcast/server/eventqueue"
	"github.com/groupcast/groupcast/server/eventrelay"
	"github.com/groupcast/groupcast/server/queueaccess"
	"github.com/groupcast/groupcast/server/servertest"
	"github.com/groupcast/groupcast/server/store"
	"github.com/groupcast/groupcast/server/store/storetest"
)

// patience bounds what a test waits for; nothing is measured by it.
const patience = time.Minute

var quiet = slog.New(slog.DiscardHandler)

// TestMain keeps the tests' files in memory where it can; no test here cuts the power.
func TestMain(m *testing.M) {
	if os.Getenv(childOf) != "" { // it has its parent's, and doesn't live to remove one
		os.Exit(m.Run())
	}
	dir, err := os.MkdirTemp("/dev/shm", "groupcast-access-")
	if err == nil {
		err = os.Setenv("TMPDIR", dir)
	}
	code := m.Run()
	if err == nil {
		_ = os.RemoveAll(dir)
	}
	os.Exit(code)
}

// lab is a home, two services that it linked, and a replica that publishes what happens there. The home stays while queue and replicas come and go.
type lab struct {
	*servertest.Home
	db      *storetest.DB
	keys    *eventqueue.Keys
	open    func(*testing.T) *eventqueue.Queue
	one     *replica
	url     string
	camera  models.Principal
	phone   models.Principal
	upload  servertest.Linked
	other   servertest.Linked
	ahead   atomic.Int64 // of the clock that tokens end by, in seconds
	mu      sync.Mutex
	tokens  map[string]eventqueue.Reader
	n       int
	cluster bool
}

// each runs a test on the queue within the process and on a cluster of three servers that has the configuration an operator would print.
func each(t *testing.T, test func(t *testing.T, l *lab)) {
	on(t, []string{"embedded", "cluster"}, test)
}

func on(t *testing.T, queues []string, test func(t *testing.T, l *lab)) {
	for _, name := range queues {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			l := &lab{db: storetest.SQLite(t), keys: keysOf(t, rand.Text()), tokens: map[string]eventqueue.Reader{}, cluster: name == "cluster"}
			l.Home = servertest.On(l.db, l.db.Store).NewHome(t)
			l.camera, l.phone = l.Device(t, models.DeviceCamera, "camera"), l.Device(t, models.DevicePhone, "phone")
			l.upload, l.other = l.Service(t, "svc-upload", 0), l.Service(t, "svc-other", 0)
			l.Join(t, l.camera, servertest.Source(l.camera, "172.168.0.5", "door"))
			if l.cluster {
				l.url = startCluster(t, l.keys.Configuration([]models.ServiceID{"svc-upload", "svc-other"}))
				l.open = func(t *testing.T) *eventqueue.Queue {
					return l.queue(t, eventqueue.Options{URL: l.url, Replicas: 3})
				}
			} else {
				dir, at := t.TempDir(), harness.FreePort(t)
				l.url = "nats://" + at
				l.open = func(t *testing.T) *eventqueue.Queue { return l.queue(t, eventqueue.Options{DataDir: dir, Listen: at}) }
			}
			l.one = l.replica(t, true)
			test(t, l)
		})
	}
}

func keysOf(t *testing.T, secret string) *eventqueue.Keys {
	t.Helper()
	k, err := eventqueue.NewKeys(func(purpose string) ([]byte, error) { return []byte(fmt.Sprintf("%-32.32s", purpose+secret)), nil })
	require.NoError(t, err)
	return k
}

func (l *lab) queue(t *testing.T, o eventqueue.Options) *eventqueue.Queue {
	t.Helper()
	o.Keys, o.MaxBytes, o.Log = l.keys, 16<<20, quiet
	q, err := eventqueue.Open(o)
	require.NoError(t, err)
	t.Cleanup(q.Close)
	return q
}

// replica is what one process does for those who read.
type replica struct {
	*queueaccess.Access
	queue *eventqueue.Queue
	stop  func()
}

func (l *lab) replica(t *testing.T, publishes bool) *replica {
	t.Helper()
	q := l.open(t)
	require.Eventually(t, func() bool { _, err := q.Prepare(t.Context()); return err == nil }, patience, 50*time.Millisecond)
	running, cancel := context.WithCancel(context.Background())
	var work sync.WaitGroup
	a := queueaccess.New(queueaccess.Options{
		Queue: q, NotBefore: func(ctx context.Context, services []models.ServiceID) (map[models.ServiceID]time.Time, error) {
			all, err := l.db.NotBefore(ctx, store.HeldBy{Services: services})
			of := map[models.ServiceID]time.Time{}
			for id, at := range all {
				of[models.ServiceID(id)] = at
			}
			return of, err
		},
		Authenticate: func(_ context.Context, token, _ string) (eventqueue.Reader, error) {
			l.mu.Lock()
			defer l.mu.Unlock()
			r, ok := l.tokens[token]
			if !ok {
				return r, models.Errorf(models.CodeUnauthenticated, "No such token.")
			}
			return r, nil
		},
		AllowSource: func(a netip.Addr) bool { return a.IsLoopback() }, AllowService: func(models.ServiceID) bool { return true },
		Now: func() time.Time { return time.Now().Add(time.Duration(l.ahead.Load()) * time.Second) }, Log: quiet, Metrics: prometheus.NewRegistry(),
	})
	work.Go(func() { a.Run(running) })
	if publishes {
		r := eventrelay.New(l.db.Store, q, quiet, prometheus.NewRegistry())
		l.db.OnCommit(func(store.Changed) { r.Wake() })
		work.Go(func() { r.Run(running) })
	}
	var once sync.Once
	stop := func() { once.Do(func() { cancel(); work.Wait(); q.Close() }) }
	t.Cleanup(stop)
	return &replica{a, q, stop}
}

// happen lets n things happen, each with an event of the group door.
func (l *lab) happen(t *testing.T, n int) {
	t.Helper()
	for range n {
		l.n++
		l.Join(t, l.phone, servertest.Destination(l.phone, fmt.Sprintf("198.51.99.%d", 1+l.n%200), "door"))
	}
}

func (l *lab) published(t *testing.T) {
	t.Helper()
	require.Eventually(t, func() bool { b, err := l.db.EventBacklog(t.Context()); return err == nil && b.Count == 0 }, patience, 10*time.Millisecond)
}

// token makes one that is good for an hour.
func (l *lab) token(service models.ServiceID) string {
	l.mu.Lock()
	defer l.mu.Unlock()
	token := rand.Text()
	l.tokens[token] = eventqueue.Reader{Service: service, IssuedAt: time.Now(), ExpiresAt: time.Now().Add(time.Hour)}
	return token
}

// connect is a client as anybody would write one.
func (l *lab) connect(t *testing.T, token string, o ...nats.Option) *nats.Conn {
	t.Helper()
	var c *nats.Conn
	require.Eventually(t, func() bool {
		var err error
		c, err = nats.Connect(l.url, append([]nats.Option{
			nats.Token(token), nats.MaxReconnects(-1), nats.ReconnectWait(50 * time.Millisecond), nats.ErrorHandler(func(*nats.Conn, *nats.Subscription, error) {}),
			nats.IgnoreAuthErrorAbort(),
		}, o...)...)
		return err == nil
	}, patience, 50*time.Millisecond)
	t.Cleanup(c.Close)
	return c
}

// heard is what a consumer took, in order.
type heard struct {
	mu     sync.Mutex
	revs   []int32
	types  []string
	others []string // subjects that are not the service's
}

func (h *heard) take(service models.ServiceID, m jetstream.Msg) {
	var e api.GroupEvent
	err := json.Unmarshal(m.Data(), &e)
	h.mu.Lock()
	defer h.mu.Unlock()
	if err != nil || !strings.HasPrefix(m.Subject(), "gc.s."+string(service)+".") {
		h.others = append(h.others, m.Subject())
	}
	h.types = append(h.types, e.Type)
	if e.Data.GroupID != "" {
		h.revs = append(h.revs, e.Data.Rev)
	}
	_ = m.Ack()
}

func (h *heard) all() []int32 {
	h.mu.Lock()
	defer h.mu.Unlock()
	return slices.Clone(h.revs)
}

// listen consumes with the library as it comes.
func listen(t *testing.T, c *nats.Conn, service models.ServiceID) (*heard, jetstream.ConsumeContext) {
	t.Helper()
	js, err := jetstream.New(c)
	require.NoError(t, err)
	consumer, err := js.Consumer(t.Context(), eventqueue.StreamName, string(service))
	require.NoError(t, err)
	h := &heard{}
	consuming, err := consumer.Consume(func(m jetstream.Msg) { h.take(service, m) }, jetstream.PullExpiry(time.Second), jetstream.PullHeartbeat(500*time.Millisecond))
	require.NoError(t, err)
	return h, consuming
}

func upTo(n int32) (all []int32) {
	for i := range n {
		all = append(all, i+1)
	}
	return all
}

// rests waits until the service's consumer is so: what is sent to a client that is gone, or whose acknowledgement got lost, comes again only after a while.
func (l *lab) rests(t *testing.T, so func(*jetstream.ConsumerInfo) bool) {
	t.Helper()
	js, err := jetstream.New(l.one.queue.Conn())
	require.NoError(t, err)
	require.Eventually(t, func() bool {
		c, err := js.Consumer(t.Context(), eventqueue.StreamName, "svc-upload")
		return err == nil && so(c.CachedInfo())
	}, patience, 50*time.Millisecond)
}

func unasked(c *jetstream.ConsumerInfo) bool      { return c.NumWaiting == 0 && acknowledged(c) }
func acknowledged(c *jetstream.ConsumerInfo) bool { return c.NumAckPending == 0 }

// TestAServiceReadsDurably: what it hasn't acknowledged comes when it is back, through restarts of the service and of the queue; each once.
func TestAServiceReadsDurably(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, l *lab) {
		c := l.connect(t, l.token("svc-upload"))
		h, consuming := listen(t, c, "svc-upload")
		l.happen(t, 4)
		require.Eventually(t, func() bool { return slices.Equal(upTo(5), h.all()) }, patience, 10*time.Millisecond, "%v", h.all())
		consuming.Stop()
		<-consuming.Closed()
		require.NoError(t, c.FlushTimeout(patience))
		c.Close()
		l.rests(t, unasked)

		l.happen(t, 5) // while it is away
		l.published(t)
		c = l.connect(t, "", nats.UserInfo("anything", l.token("svc-upload")))
		h, _ = listen(t, c, "svc-upload")
		require.Eventually(t, func() bool { return len(h.all()) == 5 }, patience, 10*time.Millisecond)
		require.Equal(t, []int32{6, 7, 8, 9, 10}, h.all())
		l.rests(t, acknowledged)

		// The replica stops with all that it runs, and another begins; the client comes back by itself.
		l.one.stop()
		l.one = l.replica(t, true)
		require.NoError(t, l.one.Look(t.Context()), "nobody may be back yet")
		l.happen(t, 3)
		want := []int32{6, 7, 8, 9, 10, 11, 12, 13}
		require.Eventually(t, func() bool { return len(h.all()) >= len(want) }, patience, 10*time.Millisecond, "%v", h.all())
		require.Equal(t, want, h.all())
		require.Empty(t, h.others)
	})
}

// TestAnEndedLinkTakesBack: what was published for a service and not fetched is not delivered when its link has ended, but for the end itself.
func TestAnEndedLinkTakesBack(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, l *lab) {
		c := l.connect(t, l.token("svc-upload"))
		js, err := jetstream.New(c)
		require.NoError(t, err)
		consumer, err := js.Consumer(t.Context(), eventqueue.StreamName, "svc-upload")
		require.NoError(t, err)
		l.happen(t, 6)
		l.published(t)
		first, err := consumer.Next(jetstream.FetchMaxWait(patience))
		require.NoError(t, err, "there is something to take back")
		require.NotNil(t, first)

		require.NoError(t, l.Accounts.DeleteLink(t.Context(), "svc-upload", l.Account.ID))
		l.happen(t, 3)
		l.published(t)
		h := &heard{}
		revoked, err := consumer.Next(jetstream.FetchMaxWait(patience))
		require.NoError(t, err)
		h.take("svc-upload", revoked)
		batch, err := consumer.Fetch(50, jetstream.FetchMaxWait(time.Second)) // and nothing else
		require.NoError(t, err)
		for m := range batch.Messages() {
			h.take("svc-upload", m)
		}
		require.Equal(t, []string{"groupcast.link.revoked"}, h.types)
		require.Empty(t, h.others)
		require.Equal(t, nats.CONNECTED, c.Status(), "it may hear of other accounts")
	})
}

// TestAConnectionEndsWithItsToken: when it expires and when it was withdrawn, by a replica that didn't let it in, too; and it doesn't come back.
func TestAConnectionEndsWithItsToken(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, l *lab) {
		ended := func(token string, with func()) {
			t.Helper()
			lost := make(chan struct{}, 10)
			c := l.connect(t, token, nats.DisconnectErrHandler(func(*nats.Conn, error) { lost <- struct{}{} }))
			stays := l.connect(t, l.token("svc-other"))
			_, _ = listen(t, c, "svc-upload")
			with()
			select {
			case <-lost:
			case <-time.After(patience):
				t.Fatal("it is still connected")
			}
			require.Equal(t, nats.CONNECTED, stays.Status(), "another service isn't concerned")
			c.Close()
			stays.Close()
		}
		// Withdrawn.
		token := l.token("svc-upload")
		ended(token, func() {
			if l.cluster { // whoever let it in is gone
				l.one.stop()
				l.one = l.replica(t, true)
			}
			require.NoError(t, l.db.Write(t.Context(), func(tx *store.Tx) error { return tx.EndServiceTokens("svc-upload") }))
		})
		// Expired, by our clock.
		l.mu.Lock()
		l.tokens["short"] = eventqueue.Reader{Service: "svc-upload", IssuedAt: time.Now().Add(2 * time.Second), ExpiresAt: time.Now().Add(10 * time.Minute)}
		l.mu.Unlock()
		ended("short", func() { l.ahead.Store(11 * 60) })
		// Expired, by that of the NATS server, should nobody look.
		l.ahead.Store(0)
		l.one.stop()
		if !l.cluster {
			return // the queue ended with it
		}
		queue := l.open(t)
		alone, cancel := context.WithCancel(t.Context())
		defer cancel()
		go func() {
			assert.NoError(t, queue.Logins(alone, func(context.Context, eventqueue.Login) *eventqueue.Reader {
				return &eventqueue.Reader{Service: "svc-upload", IssuedAt: time.Now(), ExpiresAt: time.Now().Add(3 * time.Second)}
			}))
		}()
		lost := make(chan struct{})
		l.connect(t, "any", nats.NoReconnect(), nats.ClosedHandler(func(*nats.Conn) { close(lost) }))
		<-lost
	})
}

// TestAttackReadingWhatIsAnothers: whatever a service asks of NATS, it gets nothing of another's, and puts nothing anywhere.
func TestAttackReadingWhatIsAnothers(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, l *lab) {
		l.happen(t, 5)
		l.published(t)
		victim := l.connect(t, l.token("svc-other"))
		hears, _ := listen(t, victim, "svc-other")
		inbox := make(chan *nats.Msg, 100)
		_, err := victim.ChanSubscribe("_INBOX.known", inbox)
		require.NoError(t, err)
		require.NoError(t, victim.Flush())
		require.Eventually(t, func() bool { return len(hears.all()) == 6 }, patience, 10*time.Millisecond)
		stream := func() uint64 {
			js, err := jetstream.New(l.one.queue.Conn())
			require.NoError(t, err)
			s, err := js.Stream(t.Context(), eventqueue.StreamName)
			require.NoError(t, err)
			return s.CachedInfo().State.LastSeq
		}
		last := stream()

		var mu sync.Mutex
		var faults []error
		evil := l.connect(t, l.token("svc-upload"), nats.ErrorHandler(func(_ *nats.Conn, _ *nats.Subscription, err error) {
			mu.Lock()
			defer mu.Unlock()
			faults = append(faults, err)
		}))
		got := make(chan *nats.Msg, 1000)
		for _, subject := range []string{
			">", "gc.>", "gc.s.>", "gc.s.svc-other.>", "gc.s.svc-upload.>", "gc.a.>", "gc.hint", "*.*.*", "$JS.>", "$SYS.>", "$SYS.REQ.USER.AUTH", "_R_.>", "$JSC.>",
			"$KV.>", "*.>", "$JS.ACK.>",
		} {
			_, err := evil.ChanSubscribe(subject, got)
			require.NoError(t, err)
		}
		_, err = evil.QueueSubscribe("$SYS.REQ.USER.AUTH", "groupcast", func(m *nats.Msg) { got <- m })
		require.NoError(t, err)
		require.NoError(t, evil.Flush())

		// It asks for what is another's.
		for _, subject := range []string{
			"$JS.API.INFO", "$JS.API.STREAM.NAMES", "$JS.API.STREAM.LIST", "$JS.API.STREAM.INFO.GROUPCAST", "$JS.API.STREAM.MSG.GET.GROUPCAST",
			"$JS.API.DIRECT.GET.GROUPCAST", "$JS.API.STREAM.PURGE.GROUPCAST", "$JS.API.STREAM.DELETE.GROUPCAST", "$JS.API.STREAM.UPDATE.GROUPCAST",
			"$JS.API.STREAM.CREATE.EVIL", "$JS.API.CONSUMER.NAMES.GROUPCAST", "$JS.API.CONSUMER.LIST.GROUPCAST", "$JS.API.CONSUMER.INFO.GROUPCAST.svc-other",
			"$JS.API.CONSUMER.CREATE.GROUPCAST", "$JS.API.CONSUMER.CREATE.GROUPCAST.svc-upload", "$JS.API.CONSUMER.CREATE.GROUPCAST.svc-upload.gc.s.svc-upload.>",
			"$JS.API.CONSUMER.DURABLE.CREATE.GROUPCAST.svc-upload", "$JS.API.CONSUMER.DELETE.GROUPCAST.svc-upload", "$JS.API.CONSUMER.DELETE.GROUPCAST.svc-other",
			"$JS.API.CONSUMER.PAUSE.GROUPCAST.svc-other", "$JS.API.CONSUMER.MSG.NEXT.GROUPCAST.svc-other", "$JS.API.CONSUMER.LEADER.STEPDOWN.GROUPCAST.svc-upload",
			"$SYS.REQ.SERVER.PING.CONNZ", "$SYS.REQ.ACCOUNT.GROUPCAST.CONNZ", "$SYS.REQ.USER.AUTH", "gc.hint",
		} {
			_, err := evil.Request(subject, []byte(`{"seq":1,"stream_name":"GROUPCAST","config":{"durable_name":"svc-upload","filter_subject":"gc.a.>"}}`), 100*time.Millisecond)
			require.Error(t, err, subject)
		}
		js, err := jetstream.New(evil)
		require.NoError(t, err)
		short, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
		defer cancel()
		_, err = js.Consumer(short, eventqueue.StreamName, "svc-other")
		require.Error(t, err)

		// It publishes, and has things answered to others: the answers of its own requests are the only ones it can direct.
		forged := []byte(`{"batch":1,"no_wait":true}`)
		group := l.db.Texts(t, "SELECT id FROM groups")[0]
		targets := []string{
			"gc.a." + string(l.Account.ID) + "." + group, "gc.s.svc-other." + l.other.Link.ServiceAccountID.String() + "." + group, "gc.hint", "_INBOX.known",
			"$JS.ACK.GROUPCAST.svc-other.1.1.1.1.0", "$JS.API.CONSUMER.MSG.NEXT.GROUPCAST.svc-other", "$JS.API.STREAM.PURGE.GROUPCAST", "$SYS.REQ.USER.AUTH",
		}
		for _, to := range targets {
			require.NoError(t, evil.Publish(to, []byte("forged")))
			require.NoError(t, evil.PublishRequest("$JS.API.CONSUMER.MSG.NEXT.GROUPCAST.svc-upload", to, forged))
			require.NoError(t, evil.PublishRequest("$JS.API.CONSUMER.INFO.GROUPCAST.svc-upload", to, nil))
			require.NoError(t, evil.PublishRequest("$JS.ACK.GROUPCAST.svc-upload.1.1.1.1.0", to, []byte("+NXT")))
		}
		require.NoError(t, evil.Flush())
		// Still it reads what is its own: that what was tried was refused has no other reason.
		own, err := js.Consumer(t.Context(), eventqueue.StreamName, "svc-upload")
		require.NoError(t, err)
		require.Equal(t, "gc.s.svc-upload.>", own.CachedInfo().Config.FilterSubject)

		require.Equal(t, last, stream(), "nothing came into the stream")
		l.happen(t, 1)
		require.Eventually(t, func() bool { return len(hears.all()) == 7 }, patience, 10*time.Millisecond)
		require.Equal(t, upTo(7), hears.all(), "the other service reads on")
		require.Empty(t, hears.others)
		require.Empty(t, inbox, "nobody put anything into its inbox")
		for len(got) > 0 {
			m := <-got
			require.NotContains(t, string(m.Data), "gc.s.svc-other")
			require.NotContains(t, string(m.Data), "specversion", "%s", m.Subject)
		}
		mu.Lock()
		defer mu.Unlock()
		refused := 0
		for _, err := range faults {
			if errors.Is(err, nats.ErrPermissionViolation) {
				refused++
			}
		}
		require.GreaterOrEqual(t, refused, 40, "subscriptions and messages were refused, not just unheard")
	})
}

// TestAttackLogins: who has no token of a service doesn't get in, whatever else it shows.
func TestAttackLogins(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, l *lab) {
		good := l.token("svc-upload")
		l.connect(t, good).Close()
		for name, o := range map[string]nats.Option{
			"nothing":                  nats.Name("x"),
			"made up":                  nats.Token("made-up"),
			"the token as a user name": nats.UserInfo(good, ""),
			"groupcastd's public key":  nats.Nkey(publicUser(t, l.keys), func([]byte) ([]byte, error) { return []byte("signed"), nil }),
			"a service without account": nats.Token(func() string {
				return l.token("GROUPCAST")
			}()),
			"the system account": nats.Token(l.token("GROUPCAST-SYSTEM")),
		} {
			c, err := nats.Connect(l.url, o, nats.MaxReconnects(0), nats.Timeout(patience))
			if err == nil {
				c.Close()
			}
			require.Error(t, err, name)
		}
	})
}

// publicUser finds groupcastd's public key in the configuration, where anybody may read it.
func publicUser(t *testing.T, k *eventqueue.Keys) string {
	t.Helper()
	_, rest, ok := strings.Cut(k.Configuration(nil), "nkey: ")
	require.True(t, ok)
	key, _, _ := strings.Cut(rest, "}")
	return key
}

// startCluster starts three servers with a configuration.
func startCluster(t *testing.T, configuration string) (all string) {
	t.Helper()
	var peers, urls []string
	for range 3 {
		peers = append(peers, "nats://"+harness.FreePort(t))
	}
	for i, peer := range peers {
		o := &server.Options{}
		require.NoError(t, o.ProcessConfigString(configuration))
		at, err := url.Parse(peer)
		require.NoError(t, err)
		_, port, err := net.SplitHostPort(at.Host)
		require.NoError(t, err)
		o.ServerName, o.Host, o.Port, o.NoSigs, o.NoLog = fmt.Sprint("n", i), "127.0.0.1", server.RANDOM_PORT, true, true
		o.JetStream, o.StoreDir, o.JetStreamMaxStore = true, t.TempDir(), 64<<20
		_, err = fmt.Sscan(port, &o.Cluster.Port)
		require.NoError(t, err)
		o.Cluster.Name, o.Cluster.Host = "test", "127.0.0.1"
		for _, other := range peers {
			route, err := url.Parse(other)
			require.NoError(t, err)
			o.Routes = append(o.Routes, route)
		}
		s, err := server.NewServer(o)
		require.NoError(t, err)
		go s.Start()
		require.True(t, s.ReadyForConnections(patience))
		t.Cleanup(func() { s.Shutdown(); s.WaitForShutdown() })
		urls = append(urls, s.ClientURL())
	}
	return strings.Join(urls, ",")
}
