package receiver_test

import (
	"context"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/groupcast/groupcast/gateway-agent/consent"
	"github.com/groupcast/groupcast/internal/scripted"
	"github.com/groupcast/groupcast/models"
	"github.com/groupcast/groupcast/openapi/api"
	"github.com/groupcast/groupcast/receiver"
	"github.com/groupcast/groupcast/receiver/consentcheck"
)

const soon = time.Minute

// agent is a gateway's reserved port with the agent's own machine behind it: it asks and answers, and sends a datagram of media each time somebody proves that
// he wants it.
type agent struct {
	conn *net.UDPConn
	mu   sync.Mutex
	m    *consent.Machine
	at   netip.AddrPort // that asked last
}

func newAgent(credential models.ConsentCredential) *agent {
	conn, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 201, 8, 1)})
	if err != nil {
		panic(err)
	}
	a := &agent{conn: conn, m: consent.New(func(netip.Addr) bool { return true })}
	a.m.Want(time.Now(), []consent.Wanted{{Key: consent.Key{Sender: camera, Destination: "d"}, Credential: credential, Addr: netip.MustParseAddr("127.201.8.9")}})
	go func() {
		b := make([]byte, 1500)
		for {
			n, from, err := conn.ReadFromUDPAddrPort(b)
			if err != nil {
				return
			}
			a.mu.Lock()
			a.at = from
			packets := a.m.Receive(time.Now(), camera, from, b[:n])
			media := a.m.Counters().Validated > 0
			a.mu.Unlock()
			for _, p := range packets {
				_, _ = conn.WriteToUDPAddrPort(p.Data, p.To)
			}
			if media {
				_, _ = conn.WriteToUDPAddrPort([]byte("media"), from)
			}
		}
	}()
	return a
}

// asked tells whether a receiver asked.
func (a *agent) asked() bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.at.IsValid()
}

func (a *agent) live() bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return len(a.m.Leases(time.Now())) == 1
}

// sender is the agent's place as the service tells it.
func (a *agent) sender() []api.Sender {
	at := a.conn.LocalAddr().(*net.UDPAddr).AddrPort()
	return []api.Sender{{SourceID: 1, Address: at.Addr().Unmap().String(), Port: int32(at.Port())}}
}

// asking is an answer that asks for consent, and isn't to be renewed within a test.
func asking(credential models.ConsentCredential, senders []api.Sender) api.RegistrationAnswer {
	a := scripted.Answer("127.201.8.230", 1)
	hour := int32(3600)
	a.RenewAfter = &hour
	a.Consent = &api.RegistrationConsent{State: models.ConsentPending, Policy: models.PolicyLearned, Ufrag: &credential.Ufrag, Pwd: &credential.Password}
	a.Senders = &senders
	return a
}

// held is the registration as it is read.
func held(senders []api.Sender) *api.Registration {
	return &api.Registration{
		GroupID: "g_1", RegistrationID: scripted.RegistrationID, Senders: &senders, Type: models.MemberDevice, ID: 1, GroupName: "groupcast1",
		GroupIP: netip.MustParseAddr("127.201.8.230"), Destination: true,
	}
}

// told collects what a receiver says.
type told struct {
	mu     sync.Mutex
	states []models.ConsentState
	joined []netip.Addr
}

func (l *told) config(c receiver.Config) receiver.Config {
	c.Member = api.RegistrationRequest{Type: models.MemberDevice, ID: 1, GroupName: "groupcast1"}
	c.Listen, c.Log = netip.MustParseAddrPort("127.201.8.9:0"), slog.New(slog.DiscardHandler)
	c.Consent = func(s models.ConsentState) {
		l.mu.Lock()
		defer l.mu.Unlock()
		l.states = append(l.states, s)
	}
	c.Joined = func(a api.RegistrationAnswer) {
		l.mu.Lock()
		defer l.mu.Unlock()
		l.joined = append(l.joined, a.GroupIP)
	}
	return c
}

func (l *told) all() ([]models.ConsentState, []netip.Addr) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return append([]models.ConsentState{}, l.states...), append([]netip.Addr{}, l.joined...)
}

func groupEvent(rev int32, senders []api.Sender, members ...models.ID) api.GroupEventData {
	g := api.GroupEventData{GroupID: "g_1", GroupName: "groupcast1", GroupIP: netip.MustParseAddr("127.201.8.230"), Rev: rev, Senders: &senders}
	for _, id := range members {
		g.Members = append(g.Members, api.Member{Type: models.MemberDevice, ID: id, Role: api.Destination})
	}
	return g
}

// Where the service asks for consent it is kept on the socket of the media; what is handed on is media and nothing else. The place to ask is known only
// from a later answer. A receiver closes in good order when its context ends, and leaves once.
func TestJoin(t *testing.T) {
	service, c := scripted.Start(t)
	a := newAgent(secret)
	defer a.conn.Close()
	service.Say(http.StatusOK, asking(secret, nil))
	service.Say(http.StatusOK, asking(secret, a.sender()))
	file, err := os.Create(filepath.Join(t.TempDir(), "stream"))
	require.NoError(t, err)
	defer file.Close()
	var l told
	ctx, stop := context.WithCancel(t.Context())
	r, err := receiver.Join(ctx, l.config(receiver.Config{Client: c, Media: receiver.ToWriter(file)}))
	require.NoError(t, err)
	require.Eventually(t, func() bool {
		got, err := os.ReadFile(file.Name())
		return err == nil && len(got) >= 5 && string(got[:5]) == "media"
	}, soon, 10*time.Millisecond)
	assert.Equal(t, models.ConsentLive, r.Consent())
	require.Eventually(t, func() bool { states, _ := l.all(); return len(states) == 1 && states[0] == models.ConsentLive }, soon, 10*time.Millisecond)
	stop()
	<-r.Done()
	require.NoError(t, r.Wait())
	require.NoError(t, r.Close(), "again")
	assert.Equal(t, 1, service.Leaves())
	got := r.Summary()
	assert.Equal(t, 5*got.Datagrams, got.Bytes)
	conn, err := net.ListenUDP("udp4", net.UDPAddrFromAddrPort(r.Addr()))
	require.NoError(t, err, "the port is free")
	_ = conn.Close()
}

// What the service refuses is told at once, and nothing stays open.
func TestJoinRefused(t *testing.T) {
	service, c := scripted.Start(t)
	detail := "There is no such group."
	service.Say(http.StatusNotFound, api.Problem{Type: "/problems/not-found", Title: "Not found", Detail: &detail, Status: 404})
	free, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 201, 8, 9)})
	require.NoError(t, err)
	at := free.LocalAddr().(*net.UDPAddr).AddrPort()
	require.NoError(t, free.Close())
	config := (&told{}).config(receiver.Config{Client: c})
	config.Listen = netip.AddrPortFrom(at.Addr().Unmap(), at.Port())
	_, err = receiver.Join(t.Context(), config)
	var refused *receiver.RefusedError
	require.ErrorAs(t, err, &refused)
	assert.True(t, refused.Final())
	taken, err := net.ListenUDP("udp4", net.UDPAddrFromAddrPort(config.Listen))
	require.NoError(t, err, "the port is free")
	defer taken.Close()
	_, err = receiver.Join(t.Context(), config)
	require.ErrorContains(t, err, "open the port for the copies")
	assert.Len(t, service.Posts(), 1)
}

// Events tell that copies will come from elsewhere: the receiver asks there, without registering anew, and nowhere else. By a stream, and by long poll where streams
// are held back. An older event changes nothing.
func TestOtherSendersAreHeardOf(t *testing.T) {
	service, c := scripted.Start(t)
	first, second := newAgent(secret), newAgent(secret)
	defer first.conn.Close()
	defer second.conn.Close()
	service.Say(http.StatusOK, asking(secret, first.sender()))
	service.Hold(held(first.sender()))
	service.Tell(models.EventGroupState, groupEvent(4, first.sender(), 1))
	var l told
	r, err := receiver.Join(t.Context(), l.config(receiver.Config{Client: c}))
	require.NoError(t, err)
	require.Eventually(t, first.live, soon, 10*time.Millisecond)
	assert.False(t, second.asked())
	service.Hold(held(second.sender()))
	service.Tell(models.EventConsentChanged, groupEvent(5, second.sender(), 1))
	service.Tell(models.EventConsentChanged, groupEvent(4, first.sender(), 1))
	require.Eventually(t, second.live, soon, 10*time.Millisecond)
	require.Eventually(t, func() bool { return r.Consent() == models.ConsentLive }, soon, 10*time.Millisecond)
	assert.Len(t, service.Posts(), 1)
	require.NoError(t, r.Close())
}

// A group that ends and comes back has another address, another registration and another secret.
func TestAGroupThatComesBack(t *testing.T) {
	other := models.ConsentCredential{Ufrag: "aaaaaaaaaaaa", Password: "bbbbbbbbbbbbbbbbbbbbbb"}
	service, c := scripted.Start(t)
	before, after := newAgent(secret), newAgent(other)
	defer before.conn.Close()
	defer after.conn.Close()
	back := asking(other, after.sender())
	id := models.RegistrationID("r_01j9zq3v6t7n8m2k4h5g6f7d8t")
	back.RegistrationID, back.GroupIP = &id, netip.MustParseAddr("127.201.8.231")
	service.Hold(held(before.sender()))
	service.Say(http.StatusOK, asking(secret, before.sender()))
	service.Say(http.StatusNotFound, api.Problem{Type: "/problems/not-found", Title: "Not found", Status: 404})
	service.Say(http.StatusOK, back)
	var l told
	r, err := receiver.Join(t.Context(), l.config(receiver.Config{Client: c}))
	require.NoError(t, err)
	require.Eventually(t, before.live, soon, 10*time.Millisecond)
	service.Hold(nil)
	service.Tell(models.EventGroupEnded, groupEvent(5, nil))
	require.Eventually(t, after.live, soon, 10*time.Millisecond)
	require.Eventually(t, func() bool { _, joined := l.all(); return len(joined) == 2 }, soon, 10*time.Millisecond)
	_, joined := l.all()
	assert.Equal(t, "127.201.8.231", joined[1].String())
	require.NoError(t, r.Close())
}

// Somebody who follows several groups over one stream passes on what happens; what is of other groups changes nothing.
func TestEventsFromElsewhere(t *testing.T) {
	service, c := scripted.Start(t)
	first, second := newAgent(secret), newAgent(secret)
	defer first.conn.Close()
	defer second.conn.Close()
	service.Say(http.StatusOK, asking(secret, first.sender()))
	service.Hold(held(second.sender()))
	var l told
	r, err := receiver.Join(t.Context(), l.config(receiver.Config{Client: c, EventsElsewhere: true}))
	require.NoError(t, err)
	defer r.Close()
	stranger := groupEvent(1, second.sender(), 1)
	stranger.GroupID, stranger.GroupIP = "g_2", netip.MustParseAddr("127.201.8.233")
	r.Hear("groupcast.consent.changed", stranger)
	r.Hear("groupcast.member.joined", groupEvent(3, first.sender())) // of before it joined
	r.Hear("groupcast.member.joined", groupEvent(4, first.sender(), 1))
	require.Eventually(t, first.live, soon, 10*time.Millisecond)
	assert.False(t, second.asked())
	r.Hear("groupcast.member.joined", groupEvent(3, first.sender())) // again: it is no news that it wasn't there
	r.Hear("groupcast.consent.changed", groupEvent(5, second.sender(), 1))
	require.Eventually(t, second.live, soon, 10*time.Millisecond)
	assert.Len(t, service.Posts(), 1)
	assert.Empty(t, service.Asked())
}

// The state as seen from here, on a clock of its own.
func TestConsentState(t *testing.T) {
	at := netip.MustParseAddrPort("198.51.99.1:40512")
	c := receiver.New(secret)
	start := time.Now()
	assert.Equal(t, models.ConsentPending, c.State(start), "nobody to ask")
	c.Senders([]netip.AddrPort{at})
	start = time.Now()
	assert.Equal(t, models.ConsentPending, c.State(start))
	assert.Equal(t, models.ConsentUnreachable, c.State(start.Add(models.ConsentPatience)))
	question, _ := consentcheck.NewRequest(secret, consentcheck.ToReceiver)
	reply, check := c.Take(start, at, question)
	assert.True(t, check)
	assert.NotNil(t, reply)
	assert.Equal(t, models.ConsentLive, c.State(start.Add(models.ConsentExpires-1)))
	assert.Equal(t, models.ConsentLost, c.State(start.Add(models.ConsentExpires)))
	c.Senders([]netip.AddrPort{at, netip.MustParseAddrPort("198.51.99.1:40513")})
	assert.Equal(t, models.ConsentPending, c.State(time.Now()), "the worst of two")
}
