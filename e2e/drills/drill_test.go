package drills

import (
	"bytes"
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/groupcast/groupcast/e2e/harness"
	"github.com/groupcast/groupcast/e2e/pgtest"
	"github.com/groupcast/groupcast/models"
	"github.com/groupcast/groupcast/openapi/adminapi"
	"github.com/groupcast/groupcast/openapi/api"
	"github.com/groupcast/groupcast/server/eventqueue"
	"github.com/groupcast/groupcast/server/eventrelay/relaytest"
	"github.com/groupcast/groupcast/server/keys"
	"github.com/groupcast/groupcast/server/store"
	"github.com/groupcast/groupcast/server/store/storetest"
)

// duration makes the drill longer: `make chaos`. Zero is each step once.
var duration = flag.Duration("drill.duration", 0, "how long processes are killed, at random; 0: each once")

// patience bounds what the drill waits for; nothing is measured by it.
const patience = 60 * time.Second

// installation is all the processes.
type installation struct {
	postgres *pgtest.Cluster
	db       *storetest.DB
	nats     *natsCluster
	replicas []*replica
}

type replica struct {
	*harness.Server
	metrics string
}

func install(t *testing.T) *installation {
	t.Helper()
	file := filepath.Join(t.TempDir(), "kek")
	kek, err := keys.LoadOrCreateKEK(file)
	require.NoError(t, err)
	known, err := eventqueue.NewKeys(kek.Derive)
	require.NoError(t, err)
	in := &installation{nats: startNATS(t, known, "svc-smith", "svc-jones")}
	in.postgres = pgtest.New(t, pgtest.Options{Settings: map[string]string{"synchronous_commit": "on"}})
	url := in.postgres.URL(t)
	in.db = storetest.PostgresAt(t, url, store.Options{})
	for range 3 {
		metrics := harness.FreePort(t)
		args := []string{
			"--metrics-listen", metrics, "--nats-url", in.nats.url(), "--nats-replicas", "3", "--nats-services", "--key-encryption-key-file", file, "--event-queue-size", "64", "--drain-time", "100ms",
			"--public-url", "http://127.0.0.1:8080", "--rate-limit-source", "0", "--rate-limit-principal", "0", "--log-level", "info",
		}
		in.replicas = append(in.replicas, &replica{harness.StartServer(t, harness.Options{DatabaseURL: url, Args: args}), metrics})
	}
	return in
}

// leads tells whether the replica publishes events.
func (r *replica) leads() bool {
	answer, err := http.Get("http://" + r.metrics + "/metrics")
	if err != nil {
		return false
	}
	defer answer.Body.Close()
	text, _ := io.ReadAll(answer.Body)
	return bytes.Contains(text, []byte("\ngroupcast_events_leader 1\n"))
}

func (in *installation) relay(t *testing.T, leads bool) (found *replica) {
	t.Helper()
	require.Eventually(t, func() bool {
		for _, r := range in.replicas {
			if r.leads() == leads {
				found = r
				return true
			}
		}
		return false
	}, patience, 20*time.Millisecond)
	return found
}

// tenant is an account in which things happen, and the service that listens.
type tenant struct {
	account  models.AccountID
	premises models.PremisesID
	service  models.ServiceID
	link     models.ID
	camera   string
	cameraID models.ID
	phones   []*phone

	accepted atomic.Int64
	// heard hears the account, and reads is what its service reads.
	heard, reads *listener
}

// phone moves from address to address, and so makes an event with each answer.
type phone struct {
	id    models.ID
	token string
	group string
	n     int
	// accepted counts the answers; last is the address of the newest, and unsure those after it that nobody knows about.
	accepted int
	last     string
	unsure   []string
}

var groupNames = []string{"door", "garden"}

func (in *installation) tenant(t *testing.T, name string) *tenant {
	t.Helper()
	s := in.replicas[0]
	v := &tenant{account: s.Account(t, name), service: models.ServiceID("svc-" + name)}
	v.premises = s.Premises(t, v.account, "home", true)
	off := false
	add := func(kind models.DeviceType) (models.ID, string) {
		id := s.Device(t, v.premises, adminapi.DeviceRequest{Type: kind, Name: string(kind), Pop: &off})
		return id, s.DeviceToken(t, id)
	}
	gateway, token := add(models.DeviceGateway)
	groupRange := "172.168.0.233-172.168.0.254"
	r, err := s.Client(t, token).DeclareGatewayWithResponse(t.Context(), gateway, api.GatewayDeclaration{
		LanPrefix: "172.168.0.0/24", GatewayIPv4: netip.MustParseAddr("172.168.0.1"), UplinkIPv4: netip.MustParseAddr("203.0.113.1"), GroupRange: &groupRange,
	})
	require.NoError(t, err)
	require.NotNil(t, r.JSON200, "%s", r.Body)
	s.Service(t, v.service, name)
	v.link = s.Link(t, v.service, v.account, 0)
	v.cameraID, v.camera = add(models.DeviceCamera)
	for _, g := range groupNames {
		status, body := s.Post(t, "/v1/registrations", "Bearer "+v.camera, fmt.Sprintf(
			`{"type":"Device","id":"%d","destination":false,"privateIPv4":"172.168.0.5","publicIPv4":null,"IPv6":null,"groupName":%q,"groupIP":null,"TTLs":86400}`, v.cameraID, g))
		require.Equal(t, 200, status, "%s", body)
	}
	for _, g := range groupNames {
		p := &phone{group: g}
		p.id, p.token = add(models.DevicePhone)
		v.phones = append(v.phones, p)
	}
	return v
}

// move lets a phone move until the context is done: every answer but 200 and 503 is a fault of the service, and an answer of 200 is a promise.
func (v *tenant) move(ctx context.Context, t *testing.T, p *phone, replicas []*replica) {
	client := &http.Client{Timeout: 30 * time.Second}
	defer client.CloseIdleConnections()
	for at := rand.IntN(len(replicas)); ctx.Err() == nil; at++ {
		p.n++
		address := fmt.Sprintf("96.115.%d.%d", p.n/250%250, 1+p.n%250)
		body := fmt.Sprintf(`{"type":"Device","id":"%d","destination":true,"privateIPv4":null,"publicIPv4":%q,"IPv6":null,"groupName":%q,"groupIP":null,"TTLs":86400}`, p.id, address, p.group)
		req, err := http.NewRequest(http.MethodPost, replicas[at%len(replicas)].URL+"/v1/registrations", strings.NewReader(body))
		if !assert.NoError(t, err) {
			return
		}
		req.Header.Set("Content-Type", "application/json")
		req.Header.Set("Authorization", "Bearer "+p.token)
		r, err := client.Do(req)
		if err != nil { // the replica is dead; nobody knows whether it had done it
			p.unsure = append(p.unsure, address)
			time.Sleep(10 * time.Millisecond)
			continue
		}
		text, err := io.ReadAll(r.Body)
		_ = r.Body.Close()
		switch {
		case err != nil || r.StatusCode == http.StatusServiceUnavailable:
			p.unsure = append(p.unsure, address)
			time.Sleep(10 * time.Millisecond)
		case assert.Equal(t, http.StatusOK, r.StatusCode, "%s", text):
			p.accepted, p.last, p.unsure = p.accepted+1, address, nil
			v.accepted.Add(1)
			time.Sleep(20 * time.Millisecond) // it is the deaths that are tested, not the load
		default:
			return
		}
	}
}

// listener is a durable consumer, as an operator's service has one: it takes what is newer than what it has, and nothing else.
type listener struct {
	mu     sync.Mutex
	groups map[models.GroupID]api.GroupEventData
	again  int
}

func (in *installation) listen(t *testing.T, name, subject string, own func(api.GroupEventData) bool) *listener {
	t.Helper()
	l := &listener{groups: map[models.GroupID]api.GroupEventData{}}
	var c jetstream.Consumer
	require.Eventually(t, func() bool {
		var err error
		c, err = in.nats.js.CreateOrUpdateConsumer(t.Context(), eventqueue.StreamName, jetstream.ConsumerConfig{
			Durable: name, FilterSubject: subject, AckPolicy: jetstream.AckExplicitPolicy, AckWait: 2 * time.Second,
		})
		return err == nil
	}, patience, 50*time.Millisecond)
	l.consume(t, name, c, own)
	return l
}

// reads is the service itself: a client as anybody would write one, with its access token, and nothing of ours.
func (in *installation) reads(t *testing.T, service models.ServiceID, own func(api.GroupEventData) bool) *listener {
	t.Helper()
	l := &listener{groups: map[models.GroupID]api.GroupEventData{}}
	token := in.replicas[0].ServiceToken(t, service)
	conn, err := nats.Connect(in.nats.url(), nats.Token(token), nats.MaxReconnects(-1), nats.RetryOnFailedConnect(true), nats.ReconnectWait(100*time.Millisecond),
		nats.IgnoreAuthErrorAbort()) // while every replica is away it is refused
	require.NoError(t, err)
	t.Cleanup(conn.Close)
	js, err := jetstream.New(conn)
	require.NoError(t, err)
	var c jetstream.Consumer
	require.Eventually(t, func() bool {
		c, err = js.Consumer(t.Context(), eventqueue.StreamName, string(service))
		return err == nil
	}, patience, 50*time.Millisecond)
	l.consume(t, string(service), c, own)
	return l
}

func (l *listener) consume(t *testing.T, name string, c jetstream.Consumer, own func(api.GroupEventData) bool) {
	t.Helper()
	consuming, err := c.Consume(func(m jetstream.Msg) {
		var e api.GroupEvent
		if !assert.NoError(t, json.Unmarshal(m.Data(), &e)) {
			return
		}
		if e.Data.GroupID != "" {
			assert.True(t, own(e.Data), "%s hears %s, of another tenant", name, m.Subject())
			l.mu.Lock()
			if e.Data.Rev > l.groups[e.Data.GroupID].Rev {
				l.groups[e.Data.GroupID] = e.Data
			} else {
				l.again++
			}
			l.mu.Unlock()
		}
		_ = m.Ack()
	}, jetstream.PullExpiry(5*time.Second), jetstream.PullHeartbeat(time.Second))
	require.NoError(t, err)
	t.Cleanup(consuming.Stop)
}

// isTruth tells whether a listener has the account's groups as they are.
func (in *installation) isTruth(t *testing.T, v *tenant, l *listener) bool {
	t.Helper()
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, row := range in.db.Texts(t, "SELECT id || ' ' || rev || ' ' || (SELECT count(*) FROM registrations r WHERE r.group_id = g.id AND r.role = 'destination') FROM groups g WHERE account_id = '"+string(v.account)+"'") {
		var id models.GroupID
		var rev, state int32
		_, err := fmt.Sscan(row, &id, &rev, &state)
		require.NoError(t, err)
		if d := l.groups[id]; d.Rev != rev || d.State != state {
			return false
		}
	}
	return len(l.groups) == len(groupNames)
}

// TestDrillEveryProcessDies: three replicas, three NATS servers, Postgres. Each is killed in turn under load, and what the clients were
// promised is in the stream: per group each number once, in order, up to the database's, and the listeners end with the truth.
func TestDrillEveryProcessDies(t *testing.T) {
	in := install(t)
	tenants := []*tenant{in.tenant(t, "smith"), in.tenant(t, "jones")}
	for _, v := range tenants {
		v.heard = in.listen(t, "account-"+string(v.service), "gc.a."+string(v.account)+".>", func(d api.GroupEventData) bool { return d.PremisesID == v.premises })
		v.reads = in.reads(t, v.service, func(d api.GroupEventData) bool {
			return d.PremisesID == v.premises && d.ServiceAccountID != nil && *d.ServiceAccountID == v.link
		})
	}
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	var busy sync.WaitGroup
	for _, v := range tenants {
		for _, p := range v.phones {
			busy.Go(func() { v.move(ctx, t, p, in.replicas) })
		}
	}
	// goOn waits until every tenant was promised some more.
	goOn := func(n int64) {
		t.Helper()
		for _, v := range tenants {
			want := v.accepted.Load() + n
			require.Eventually(t, func() bool { return v.accepted.Load() >= want }, patience, 5*time.Millisecond, "the API has stopped accepting")
		}
	}
	published := func() {
		t.Helper()
		require.Eventually(t, func() bool { b, err := in.db.EventBacklog(t.Context()); return err == nil && b.Oldest < 2*time.Second }, patience, 50*time.Millisecond)
	}
	type step struct {
		name string
		do   func()
	}
	kill := func(n *node) { n.kill(); goOn(10); in.nats.start(t) }
	steps := []step{
		{"the replica that publishes", func() { r := in.relay(t, true); r.Kill(); goOn(10); in.relay(t, true); r.Start(t) }},
		{"a replica that doesn't", func() { r := in.relay(t, false); r.Kill(); goOn(10); r.Start(t) }},
		{"the NATS server that leads the stream", func() { kill(in.nats.leader(t)) }},
		{"one that follows", func() { kill(in.nats.follower(t)) }},
		{"the lead of the stream, given away", func() { in.nats.stepDown(t); goOn(10); in.nats.stepDown(t) }},
		{"Postgres", func() { require.NoError(t, in.postgres.Kill()); require.NoError(t, in.postgres.Start()) }},
		{"all of NATS, for three seconds", func() {
			for _, n := range in.nats.nodes {
				n.kill()
			}
			goOn(20) // the API goes on accepting
			time.Sleep(3 * time.Second)
			in.nats.start(t)
		}},
		{"the database's clock, an hour ahead and back", func() {
			in.db.Outage(t, time.Hour)
			goOn(10)
			in.db.Outage(t, -time.Hour)
		}},
		{"the database's clock, an hour back and ahead", func() {
			in.db.Outage(t, -time.Hour)
			goOn(10)
			in.db.Outage(t, time.Hour)
		}},
	}
	run := func(s step) {
		began := time.Now()
		goOn(5)
		s.do()
		goOn(5)
		published()
		t.Logf("%s: %v", s.name, time.Since(began).Round(time.Millisecond))
	}
	in.relay(t, true)
	for _, s := range steps {
		run(s)
	}
	for end := time.Now().Add(*duration); time.Now().Before(end); {
		run(steps[rand.IntN(len(steps))])
	}
	stop()
	busy.Wait()
	require.Eventually(t, func() bool { b, err := in.db.EventBacklog(t.Context()); return err == nil && b.Count == 0 }, patience, 50*time.Millisecond)
	relaytest.Ledger(t, in.db, in.nats.conn)

	for _, v := range tenants {
		for _, l := range []*listener{v.heard, v.reads} {
			require.Eventually(t, func() bool { return in.isTruth(t, v, l) }, patience, 100*time.Millisecond, "a listener doesn't end with the truth")
		}
		for _, p := range v.phones {
			now := in.db.Texts(t, fmt.Sprintf("SELECT public_ipv4 FROM registrations WHERE member_id = %d", int64(p.id)))
			require.Len(t, now, 1)
			require.True(t, now[0] == p.last || slices.Contains(p.unsure, now[0]), "what was accepted last is gone")
			events := in.db.Ints(t, fmt.Sprintf("SELECT count(*) FROM events e JOIN groups g ON g.id = e.group_id WHERE g.account_id = '%s' AND g.name = '%s'", v.account, p.group))
			require.GreaterOrEqual(t, events[0], int64(p.accepted), "each answer had an event")
		}
		t.Logf("%s: %d accepted, %d and %d messages came again", v.service, v.accepted.Load(), v.heard.again, v.reads.again)
	}
}
