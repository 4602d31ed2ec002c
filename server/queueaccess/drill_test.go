package queueaccess_test

import (
	"bufio"
	"cmp"
	"context"
	"crypto/rand"
	"encoding/json"
	"flag"
	"fmt"
	"maps"
	"net"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/groupcast/groupcast/e2e/harness"
	"github.com/groupcast/groupcast/models"
	"github.com/groupcast/groupcast/openapi/api"
	"github.com/groupcast/groupcast/server/eventqueue"
	"github.com/groupcast/groupcast/server/eventrelay/relaytest"
	"github.com/groupcast/groupcast/server/servertest"
	"github.com/groupcast/groupcast/server/store"
	"github.com/groupcast/groupcast/server/store/storetest"
)

// rounds makes the drills longer: `make chaos`.
var rounds = flag.Int("drill.rounds", 1, "how often a drill does to the service what it does")

// gate is a network that stops delivering when it is closed.
type gate struct {
	mu   sync.Mutex
	cond *sync.Cond
	shut bool
}

func (g *gate) set(shut bool) { g.mu.Lock(); g.shut = shut; g.mu.Unlock(); g.cond.Broadcast() }

// Dial is nats.CustomDialer.
func (g *gate) Dial(network, address string) (net.Conn, error) {
	c, err := net.Dial(network, address)
	return &gated{c, g}, err
}

type gated struct {
	net.Conn
	gate *gate
}

func (c *gated) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	c.gate.mu.Lock()
	defer c.gate.mu.Unlock()
	for c.gate.shut {
		c.gate.cond.Wait()
	}
	return n, err
}

// TestDrillAStalledReader: one that doesn't take what is sent delays nobody, and is sent no more than it may leave unacknowledged; when it takes again
// it has everything.
func TestDrillAStalledReader(t *testing.T) {
	t.Parallel()
	on(t, []string{"embedded"}, func(t *testing.T, l *lab) {
		g := &gate{}
		g.cond = sync.NewCond(&g.mu)
		t.Cleanup(func() { g.set(false) })
		stalled, _ := listen(t, l.connect(t, l.token("svc-upload"), nats.SetCustomDialer(g)), "svc-upload")
		other, _ := listen(t, l.connect(t, l.token("svc-other")), "svc-other")
		l.happen(t, 1)
		both := func(n int) func() bool {
			return func() bool { return len(stalled.all()) >= n && len(other.all()) >= n }
		}
		require.Eventually(t, both(2), patience, 10*time.Millisecond)
		js, err := jetstream.New(l.one.queue.Conn())
		require.NoError(t, err)
		const events = 1300
		for round := range *rounds {
			before := 2 + round*events
			all := before + events
			g.set(true)
			l.happen(t, events)
			require.Eventually(t, func() bool { return len(other.all()) == all }, 2*patience, 10*time.Millisecond)
			require.Equal(t, upTo(int32(all)), other.all(), "each once, in order, as if the other one weren't there")
			require.Less(t, len(stalled.all()), all, "else nobody was stalled")
			c, err := js.Consumer(t.Context(), eventqueue.StreamName, "svc-upload")
			require.NoError(t, err)
			require.LessOrEqual(t, c.CachedInfo().NumAckPending, 1000)
			require.Positive(t, c.CachedInfo().NumPending, "the rest waits in the stream, on the disk")
			g.set(false)
			require.Eventually(t, func() bool {
				heard := stalled.all()
				slices.Sort(heard)
				return slices.Equal(upTo(int32(all)), slices.Compact(heard))
			}, 2*patience, 50*time.Millisecond)
		}
	})
}

// TestDrillEndedLink: an account ends its link again and again while things happen and while its service has taken messages that it hasn't
// acknowledged. The end is the last that is heard of a link, and all that is left of it in the stream.
func TestDrillEndedLink(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, l *lab) {
		js, err := jetstream.New(l.connect(t, l.token("svc-upload")))
		require.NoError(t, err)
		consumer, err := js.Consumer(t.Context(), eventqueue.StreamName, "svc-upload")
		require.NoError(t, err)
		var mu sync.Mutex
		heard := map[string][]string{} // types, by link
		n := 0
		consuming, err := consumer.Consume(func(m jetstream.Msg) {
			var e struct{ Type string }
			assert.NoError(t, json.Unmarshal(m.Data(), &e))
			link := strings.Split(m.Subject(), ".")[3]
			mu.Lock()
			defer mu.Unlock()
			heard[link] = append(heard[link], e.Type)
			if n++; n%3 > 0 { // the others would come again
				_ = m.Ack()
			}
		}, jetstream.PullExpiry(time.Second), jetstream.PullHeartbeat(500*time.Millisecond))
		require.NoError(t, err)
		defer consuming.Stop()
		hears := func(link, kind string) {
			t.Helper()
			require.Eventually(t, func() bool {
				mu.Lock()
				defer mu.Unlock()
				return slices.Contains(heard[link], kind)
			}, patience, 10*time.Millisecond, "%s of %s", kind, link)
		}
		ctx, stop := context.WithCancel(t.Context())
		var busy sync.WaitGroup
		busy.Go(func() {
			for n := 0; ctx.Err() == nil; n++ {
				_, err := l.Registrations.Join(t.Context(), l.phone, servertest.Destination(l.phone, fmt.Sprintf("198.51.99.%d", 1+n%200), "door"))
				assert.NoError(t, err)
				time.Sleep(time.Millisecond) // others want the database, too
			}
		})
		defer busy.Wait()
		defer stop()
		var links []string
		upload := l.upload
		for range 4 * *rounds {
			link := upload.Link.ServiceAccountID.String()
			links = append(links, link)
			hears(link, "groupcast.member.moved")
			require.NoError(t, l.Accounts.DeleteLink(t.Context(), "svc-upload", l.Account.ID))
			hears(link, "groupcast.link.revoked")
			upload = l.Service(t, "svc-upload", 0)
		}
		hears(upload.Link.ServiceAccountID.String(), "groupcast.member.moved")
		stop()
		busy.Wait()
		l.published(t)
		for subject, got := range relaytest.Received(t, l.one.queue.Conn()) {
			if part := strings.Split(subject, "."); part[1] == "s" && slices.Contains(links, part[3]) {
				require.Equal(t, "link", part[4])
				require.Equal(t, "groupcast.link.revoked", got[len(got)-1].Type)
			}
		}
		mu.Lock()
		defer mu.Unlock()
		for _, link := range links {
			end := slices.Index(heard[link], "groupcast.link.revoked")
			for _, later := range heard[link][end:] {
				require.Equal(t, "groupcast.link.revoked", later, "the end is the last")
			}
		}
	})
}

// childOf is the variable that makes the test be the replica that is killed; its value is a child as JSON.
const childOf = "GROUPCAST_DRILL_REPLICA"

// child is what the replica of a drill is told.
type child struct {
	Secret, Dir string
	// Listen is where the queue within the replica is read; URL is that of a cluster instead.
	Listen, URL string
}

// token is the one that a drill's service reads with.
const token = "a token of the drill"

// lab is that of a replica, which may be the next one after another was killed.
func (c child) lab(t *testing.T) *lab {
	t.Helper()
	l := &lab{
		db: storetest.SQLiteAt(t, c.Dir), keys: keysOf(t, c.Secret), url: c.URL, cluster: c.URL != "",
		tokens: map[string]eventqueue.Reader{token: {Service: "svc-upload", IssuedAt: time.Now(), ExpiresAt: time.Now().Add(time.Hour)}},
	}
	l.open = func(t *testing.T) *eventqueue.Queue {
		if l.cluster {
			return l.queue(t, eventqueue.Options{URL: l.url, Replicas: 3})
		}
		return l.queue(t, eventqueue.Options{DataDir: c.Dir, Listen: c.Listen})
	}
	return l
}

// TestDrillKilledReplica: the replica that lets a service in, and that publishes, is killed again and again. The service is a client as it comes; it
// comes back by itself, and misses nothing.
func TestDrillKilledReplica(t *testing.T) {
	if text := os.Getenv(childOf); text != "" {
		var c child
		require.NoError(t, json.Unmarshal([]byte(text), &c))
		c.live(t)
		return
	}
	t.Parallel()
	for _, name := range []string{"embedded", "cluster"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := child{Secret: rand.Text(), Dir: t.TempDir()}
			if name == "cluster" {
				c.URL = startCluster(t, keysOf(t, c.Secret).Configuration([]models.ServiceID{"svc-upload"}))
			} else {
				c.Listen = harness.FreePort(t)
			}
			st, err := store.Open(t.Context(), store.Options{DataDir: c.Dir})
			require.NoError(t, err)
			require.NoError(t, st.Migrate(t.Context()))
			require.NoError(t, st.Close())

			h := readThroughDeaths(t, cmp.Or(c.URL, "nats://"+c.Listen))
			for round := range 3 * *rounds {
				c.killed(t, 20+13*round)
			}
			l := c.lab(t)
			l.one = l.replica(t, true)
			l.published(t)
			relaytest.Ledger(t, l.db, l.one.queue.Conn())
			truth := l.db.Texts(t, "SELECT group_id || ' ' || max(rev) FROM events WHERE group_id <> '' GROUP BY group_id")
			require.Len(t, truth, 3**rounds)
			for _, row := range truth {
				var group string
				var newest int32
				_, err := fmt.Sscan(row, &group, &newest)
				require.NoError(t, err)
				require.Eventually(t, func() bool { return slices.Equal(upTo(newest), h.of(group)) }, patience, 20*time.Millisecond, "%s: it has %v of %d", group, h.of(group), newest)
			}
		})
	}
}

// live lets things happen in a home of its own until it is killed, and says each commit aloud, after it.
func (c child) live(t *testing.T) {
	l := c.lab(t)
	l.db.OnCommit(func(c store.Changed) {
		for _, p := range c.Events {
			fmt.Println("committed", p.GroupID, p.Rev)
		}
	})
	l.Home = servertest.On(l.db, l.db.Store).NewHome(t)
	l.camera, l.phone = l.Device(t, models.DeviceCamera, "camera"), l.Device(t, models.DevicePhone, "phone")
	l.upload = l.Service(t, "svc-upload", 0)
	l.Join(t, l.camera, servertest.Source(l.camera, "172.168.0.5", "door"))
	l.one = l.replica(t, true)
	for end := time.Now().Add(patience); time.Now().Before(end); {
		l.happen(t, 1)
	}
}

// killed runs a replica until it has said so many commits, and kills it.
func (c child) killed(t *testing.T, commits int) {
	t.Helper()
	text, err := json.Marshal(c)
	require.NoError(t, err)
	cmd := exec.Command(os.Args[0], "-test.run=^TestDrillKilledReplica$", "-test.v")
	cmd.Env = append(os.Environ(), childOf+"="+string(text))
	out, err := cmd.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, cmd.Start())
	n := 0
	var said []string
	for lines := bufio.NewScanner(out); lines.Scan(); {
		said = append(said, lines.Text())
		if strings.HasPrefix(lines.Text(), "committed ") {
			if n++; n == commits {
				require.NoError(t, cmd.Process.Kill())
			}
		}
	}
	require.ErrorContains(t, cmd.Wait(), "killed", "%v", said)
}

// taken is what a service has taken of each group. What it was being sent when the connection ended comes again, after what is newer.
type taken struct {
	mu   sync.Mutex
	revs map[string]map[int32]bool
}

func (h *taken) of(group string) []int32 {
	h.mu.Lock()
	defer h.mu.Unlock()
	return slices.Sorted(maps.Keys(h.revs[group]))
}

// readThroughDeaths reads from now on, also while there is nothing to read from yet.
func readThroughDeaths(t *testing.T, url string) *taken {
	t.Helper()
	c, err := nats.Connect(url, nats.Token(token), nats.MaxReconnects(-1), nats.ReconnectWait(20*time.Millisecond), nats.ReconnectJitter(0, 0), nats.RetryOnFailedConnect(true),
		nats.IgnoreAuthErrorAbort(), nats.ErrorHandler(func(*nats.Conn, *nats.Subscription, error) {}))
	require.NoError(t, err)
	js, err := jetstream.New(c)
	require.NoError(t, err)
	h := &taken{revs: map[string]map[int32]bool{}}
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan struct{})
	t.Cleanup(func() { stop(); c.Close(); <-done })
	go func() {
		defer close(done)
		for ctx.Err() == nil {
			h.read(ctx, js)
			time.Sleep(20 * time.Millisecond)
		}
	}()
	return h
}

// read takes a batch, if there is one.
func (h *taken) read(ctx context.Context, js jetstream.JetStream) {
	bounded, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	consumer, err := js.Consumer(bounded, eventqueue.StreamName, "svc-upload")
	if err != nil {
		return
	}
	batch, err := consumer.Fetch(50, jetstream.FetchMaxWait(300*time.Millisecond))
	if err != nil {
		return
	}
	for m := range batch.Messages() {
		var e api.GroupEvent
		if json.Unmarshal(m.Data(), &e) == nil && e.Data.GroupID != "" {
			group := string(e.Data.GroupID)
			h.mu.Lock()
			if h.revs[group] == nil {
				h.revs[group] = map[int32]bool{}
			}
			h.revs[group][e.Data.Rev] = true
			h.mu.Unlock()
		}
		_ = m.Ack()
	}
}
