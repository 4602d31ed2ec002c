package daemon_test

import (
	"context"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"sync"
	"testing"
	"time"

	paho "github.com/eclipse/paho.mqtt.golang"
	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	standardwebhooks "github.com/standard-webhooks/standard-webhooks/libraries/go"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/groupcast/groupcast/e2e/harness"
	"github.com/groupcast/groupcast/e2e/pgtest"
	"github.com/groupcast/groupcast/models"
	"github.com/groupcast/groupcast/openapi/adminapi"
	"github.com/groupcast/groupcast/server/eventqueue"
	"github.com/groupcast/groupcast/server/eventrelay/relaytest"
	"github.com/groupcast/groupcast/server/keys"
	"github.com/groupcast/groupcast/server/mqtt"
	"github.com/groupcast/groupcast/server/store"
	"github.com/groupcast/groupcast/server/store/storetest"
)

// skewed are three replicas on one database whose hosts' clocks are an hour apart.
type skewed struct {
	db       *storetest.DB
	replicas []*service
	queue    string // where services read
	conn     *nats.Conn
	partner  *httptest.Server

	mu    sync.Mutex
	tries map[string][]time.Time // of deliveries to the partner, by id
	heads []http.Header
	body  [][]byte
}

func startSkewed(t *testing.T) *skewed {
	t.Helper()
	v := &skewed{tries: map[string][]time.Time{}}
	v.partner = httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			return
		}
		v.mu.Lock()
		defer v.mu.Unlock()
		id := r.Header.Get("webhook-id")
		v.tries[id] = append(v.tries[id], time.Now())
		v.heads, v.body = append(v.heads, r.Header.Clone()), append(v.body, body)
		if len(v.heads) == 1 {
			w.WriteHeader(http.StatusInternalServerError)
		}
	}))
	t.Cleanup(v.partner.Close)
	roots := x509.NewCertPool()
	roots.AddCert(v.partner.Certificate())

	file := filepath.Join(t.TempDir(), "kek")
	kek, err := keys.LoadOrCreateKEK(file)
	require.NoError(t, err)
	known, err := eventqueue.NewKeys(kek.Derive)
	require.NoError(t, err)
	o := &server.Options{}
	require.NoError(t, o.ProcessConfigString(known.Configuration([]models.ServiceID{"svc-smith"})))
	o.Host, o.Port, o.JetStream, o.StoreDir, o.JetStreamMaxStore, o.NoSigs, o.NoLog = "127.0.0.1", server.RANDOM_PORT, true, t.TempDir(), 256<<20, true, true
	n, err := server.NewServer(o)
	require.NoError(t, err)
	go n.Start()
	require.True(t, n.ReadyForConnections(waitLong))
	t.Cleanup(func() { n.Shutdown(); n.WaitForShutdown() })
	v.queue = n.ClientURL()
	v.conn, err = nats.Connect(v.queue, known.Login(false))
	require.NoError(t, err)
	t.Cleanup(v.conn.Close)

	url := pgtest.URL(t)
	v.db = storetest.PostgresAt(t, url, store.Options{})
	for _, skew := range []time.Duration{-time.Hour, 0, time.Hour} {
		v.replicas = append(v.replicas, startOn(t, settings(t, dataDir(t), "--database-url", url, "--key-encryption-key-file", file, "--nats-url", v.queue, "--nats-services",
			"--event-queue-size", "64", "--mqtt-listen", "127.0.0.1:0", "--allow-loopback", "--rate-limit-principal", "0", "--rate-limit-source", "0"),
			func() time.Time { return time.Now().Add(skew) }, roots))
	}
	return v
}

// issue lets the service make a token that lives for so long.
func (s *service) issue(t *testing.T, life time.Duration, who adminapi.TokenRequest) string {
	t.Helper()
	who.LifetimeSeconds = new(int32(life / time.Second))
	r, err := s.admin.CreateTokenWithResponse(t.Context(), who)
	require.NoError(t, err)
	require.NotNil(t, r.JSON200, "%s", r.Body)
	return r.JSON200.AccessToken
}

// over MQTT: connect with a token and give what is heard of a topic, and a channel that is closed with the connection.
func (s *service) overMQTT(t *testing.T, token, topic string) (heard <-chan string, lost <-chan struct{}) {
	t.Helper()
	messages, ended := make(chan string, 100), make(chan struct{})
	c := paho.NewClient(paho.NewClientOptions().AddBroker("tcp://" + s.MQTTAddr().String()).SetUsername("device").SetPassword(token).SetProtocolVersion(4).
		SetAutoReconnect(false).SetConnectTimeout(waitLong).SetConnectionLostHandler(func(paho.Client, error) { close(ended) }))
	connecting := c.Connect()
	connecting.Wait()
	require.NoError(t, connecting.Error())
	t.Cleanup(func() { c.Disconnect(0) })
	subscribing := c.Subscribe(topic, 1, func(_ paho.Client, m paho.Message) { messages <- string(m.Payload()) })
	subscribing.Wait()
	require.NoError(t, subscribing.Error())
	return messages, ended
}

// reads connects to the queue with a token.
func (v *skewed) reads(t *testing.T, token string) (*nats.Conn, <-chan struct{}) {
	t.Helper()
	ended := make(chan struct{})
	c, err := nats.Connect(v.queue, nats.Token(token), nats.NoReconnect(), nats.Timeout(waitLong), nats.ClosedHandler(func(*nats.Conn) { close(ended) }))
	require.NoError(t, err)
	t.Cleanup(c.Close)
	return c, ended
}

// TestDrillSkewedReplicas: the hosts of three replicas disagree about the time by an hour and two. It is the database's that counts: for who publishes,
// for when a delivery is tried again, and for which tokens are good, from when, and until when.
func TestDrillSkewedReplicas(t *testing.T) {
	t.Parallel()
	v := startSkewed(t)
	h := v.replicas[0].home(t, "Smith")
	service := models.ServiceID("svc-smith")
	v.replicas[1].source(t, h, "door")
	n := 0
	// move is an event of the group, recorded by a replica, with a token of another.
	move := func(at int, token string) {
		t.Helper()
		n++
		status, body := v.replicas[at].post(t, token, `{"type":"Device","id":"%s","destination":true,"publicIPv4":"198.51.99.9","port":%d,"groupName":"door"}`, h.phone, 5000+n)
		require.Equal(t, http.StatusOK, status, "%v", body)
	}
	phone, gateway, reader := adminapi.TokenRequest{DeviceID: &h.phone}, adminapi.TokenRequest{DeviceID: &h.gateway}, adminapi.TokenRequest{ServiceID: &service}
	var tokens []string
	for _, s := range v.replicas {
		tokens = append(tokens, s.issue(t, 30*time.Minute, phone))
	}
	var created struct{ Secret string }
	r := v.replicas[0].do(t, http.MethodPost, "/v1/webhooks", fmt.Sprintf(`{"url":"%s/hook"}`, v.partner.URL), "Authorization", "Bearer "+h.uploadToken)
	require.Equal(t, http.StatusCreated, r.StatusCode)
	require.NoError(t, json.Unmarshal([]byte(text(t, r)), &created))
	harness.Secret("webhook secret", created.Secret)

	// A token that lives shorter than the clocks are apart is good everywhere, and whoever listens with it hears, on every way.
	for at := range v.replicas {
		for _, token := range tokens {
			move(at, token)
		}
	}
	r = v.replicas[0].do(t, http.MethodGet, "/v1/groups", "", "Authorization", "Bearer "+tokens[2])
	group := object(t, r)["groups"].([]any)[0].(map[string]any)["groupId"].(string)
	rev := n + 1
	var streams []func() string
	var overMQTT []<-chan string
	var consumers []jetstream.Consumer
	for at, s := range v.replicas {
		next, _ := s.curl(t, "/v1/groups/"+group+"/events", "-H", "Authorization: Bearer "+tokens[(at+1)%3])
		require.Equal(t, fmt.Sprintf("group %d group.state", rev), next())
		streams = append(streams, next)
		heard, _ := s.overMQTT(t, tokens[(at+2)%3], mqtt.StateTopic(models.GroupID(group)))
		<-heard
		overMQTT = append(overMQTT, heard)
		c, _ := v.reads(t, s.issue(t, 30*time.Minute, reader))
		js, err := jetstream.New(c)
		require.NoError(t, err)
		consumer, err := js.Consumer(t.Context(), eventqueue.StreamName, string(service))
		require.NoError(t, err)
		consumers = append(consumers, consumer)
	}
	for at := range v.replicas {
		move(at, tokens[(at+2)%3])
		rev++
		for _, next := range streams {
			require.Equal(t, fmt.Sprintf("group %d member.moved", rev), next())
		}
		for _, heard := range overMQTT {
			require.Contains(t, <-heard, fmt.Sprintf(`"rev":%d,`, rev))
		}
		m, err := consumers[at].Next(jetstream.FetchMaxWait(waitLong))
		require.NoError(t, err)
		require.NoError(t, m.Ack())
	}

	// One that ends is over everywhere, on every way, and nowhere before.
	var ends sync.WaitGroup
	const life = 10 * time.Second // long enough to connect with it four times on a busy machine
	for issuer := range v.replicas {
		short := func(who adminapi.TokenRequest) string { return v.replicas[issuer].issue(t, life, who) }
		at, began := v.replicas[(issuer+1)%3], time.Now()
		token, waits := short(phone), short(gateway)
		_, lost := at.overMQTT(t, token, mqtt.StateTopic(models.GroupID(group)))
		_, ended := v.reads(t, short(reader))
		stream, _ := at.curl(t, "/v1/groups/"+group+"/events", "-H", "Authorization: Bearer "+token)
		etag := at.do(t, http.MethodGet, "/v1/gateways/"+h.gateway.String()+"/groups", "", "Authorization", "Bearer "+waits).Header.Get("ETag")
		wait := at.request(t, http.MethodGet, "/v1/gateways/"+h.gateway.String()+"/groups?wait=50", "", "Authorization", "Bearer "+waits, "If-None-Match", etag)
		over := func(what string) {
			assert.GreaterOrEqual(t, time.Since(began), life-time.Second, "%s: a token's times are in seconds", what)
		}
		ends.Go(func() {
			answer, err := at.client.Do(wait)
			if !assert.NoError(t, err) {
				return
			}
			defer answer.Body.Close()
			assert.Equal(t, http.StatusUnauthorized, answer.StatusCode, "a wait ends with its token")
			over("long poll")
		})
		ends.Go(func() {
			for said := "group"; said != "end  token-expired"; said = stream() {
				if !assert.Contains(t, said, "group") {
					return
				}
			}
			over("stream")
		})
		for what, end := range map[string]<-chan struct{}{"MQTT": lost, "queue": ended} {
			ends.Go(func() {
				select {
				case <-end:
					over(what)
				case <-time.After(waitLong):
					assert.Fail(t, "the connection goes on", what)
				}
			})
		}
	}
	ends.Wait()

	// What was withdrawn is withdrawn, wherever it was issued; what is issued after that is good.
	credential, err := v.replicas[0].admin.CreateServiceCredentialWithResponse(t.Context(), service, nil, adminapi.ServiceCredentialRequest{})
	require.NoError(t, err)
	require.NotNil(t, credential.JSON200, "%s", credential.Body)
	var before []string
	for _, s := range v.replicas {
		before = append(before, s.issue(t, 12*time.Hour, reader))
	}
	_, err = v.replicas[2].admin.DeleteServiceCredentialWithResponse(t.Context(), service, credential.JSON200.CredentialID)
	require.NoError(t, err)
	for _, s := range v.replicas {
		after := s.issue(t, time.Hour, reader)
		for at, s := range v.replicas {
			assert.Equal(t, http.StatusUnauthorized, s.do(t, http.MethodGet, "/v1/webhooks", "", "Authorization", "Bearer "+before[at]).StatusCode)
			assert.Equal(t, http.StatusUnauthorized, s.do(t, http.MethodGet, "/v1/webhooks", "", "Authorization", "Bearer "+before[(at+1)%3]).StatusCode)
			assert.Equal(t, http.StatusOK, s.do(t, http.MethodGet, "/v1/webhooks", "", "Authorization", "Bearer "+after).StatusCode)
		}
	}

	v.webhooks(t, created.Secret, func(i int) { move(i%3, tokens[(i+1)%3]) })
	v.leadership(t, func() { move(0, tokens[2]) })
}

// webhooks: deliveries are dated by the time that partners have, whichever replica makes them, and none is tried again before it is due.
func (v *skewed) webhooks(t *testing.T, secret string, happen func(i int)) {
	t.Helper()
	delivered := func() bool {
		for _, s := range v.replicas {
			if n := s.metric(t, `groupcast_webhook_deliveries_total{result="delivered"}`); n == "" || n == "0" {
				return false
			}
		}
		return true
	}
	for i := 0; !delivered(); i++ {
		require.Less(t, i, 1000, "a replica delivers nothing")
		happen(i)
	}
	again := func() (tries []time.Time) {
		v.mu.Lock()
		defer v.mu.Unlock()
		return v.tries[v.heads[0].Get("webhook-id")]
	}
	require.Eventually(t, func() bool { return len(again()) > 1 }, waitLong, waitStep)
	assert.GreaterOrEqual(t, again()[1].Sub(again()[0]), 4*time.Second, "the first retry is due after 5 seconds, a fifth more or less")
	verifier, err := standardwebhooks.NewWebhook(secret)
	require.NoError(t, err)
	v.mu.Lock()
	defer v.mu.Unlock()
	for i, head := range v.heads {
		assert.NoError(t, verifier.Verify(v.body[i], head))
	}
}

// leadership: one publishes, another goes on when that one is gone, and the books balance.
func (v *skewed) leadership(t *testing.T, happen func()) {
	t.Helper()
	leads := func() (all []*service) {
		for _, s := range v.replicas {
			if s.metric(t, "groupcast_events_leader") == "1" {
				all = append(all, s)
			}
		}
		return all
	}
	first := leads()
	require.Len(t, first, 1)
	if first[0] == v.replicas[0] { // which the test goes on using
		v.replicas[0], v.replicas[1] = v.replicas[1], v.replicas[0]
	}
	for i, s := range v.replicas {
		if s == first[0] {
			v.replicas = append(v.replicas[:i:i], v.replicas[i+1:]...)
			break
		}
	}
	require.NoError(t, first[0].Stop(context.Background()))
	happen()
	require.Eventually(t, func() bool { return len(leads()) == 1 }, waitLong, 10*time.Millisecond)
	happen()
	require.Eventually(t, func() bool { b, err := v.db.EventBacklog(t.Context()); return err == nil && b.Count == 0 }, waitLong, 10*time.Millisecond)
	relaytest.Ledger(t, v.db, v.conn)
}
