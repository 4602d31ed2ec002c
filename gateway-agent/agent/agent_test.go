package agent_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/oapi-codegen/nullable"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/groupcast/groupcast/e2e/harness"
	"github.com/groupcast/groupcast/e2e/scripted"
	"github.com/groupcast/groupcast/gateway-agent/agent"
	"github.com/groupcast/groupcast/gateway-agent/config"
	"github.com/groupcast/groupcast/gateway-agent/packet"
	"github.com/groupcast/groupcast/internal/logtest"
	"github.com/groupcast/groupcast/models"
	"github.com/groupcast/groupcast/openapi/api"
	"github.com/groupcast/groupcast/receiver/consentcheck"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const (
	token                = "the-token"
	gatewayID  models.ID = 812345678901234567
	camera               = "127.31.0.5"
	groupIP              = "127.31.0.233"
	secondIP             = "127.31.0.235"
	uplink               = "127.0.0.1"
	soon                 = time.Minute // nothing waits as long unless the test fails
	patience             = 10 * time.Millisecond
	quietness            = 150 * time.Millisecond
	mediaCount           = 3
)

// home is one machine that plays everything: a scripted server, the agent, a camera and receivers, each on loopback addresses of its
// own. The camera sends and the copies arrive through real sockets.
type home struct {
	t       *testing.T
	service *scripted.Service
	address string
	server  *http.Server
	config  config.Config
	log     logtest.Log
	media   uint16 // the UDP port of the streams
	cancel  context.CancelFunc
	ended   chan error
}

func newHome(t *testing.T) *home {
	t.Helper()
	t.Parallel() // every home has ports of its own
	// Not t.TempDir: the path of a unix socket must stay short.
	dir, err := os.MkdirTemp("", "gca-")
	require.NoError(t, err)
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	tokenFile := filepath.Join(dir, "token")
	require.NoError(t, os.WriteFile(tokenFile, []byte(token), 0o600))

	h := &home{t: t, service: scripted.New(information("e1", 1), token), media: freeAddr(t).Port()}
	h.serve(harness.Listen(t))
	server, err := url.Parse("http://" + h.address)
	require.NoError(t, err)
	h.config = config.Config{
		Server: server, Credential: tokenFile,
		Gateway: models.Gateway{
			ID: gatewayID, LANPrefix: netip.MustParsePrefix("127.31.0.0/24"), LANAddr: netip.MustParseAddr("127.31.0.1"),
			Uplink: netip.MustParseAddr(uplink),
			Range:  models.AddrRange{First: netip.MustParseAddr("127.31.0.230"), Last: netip.MustParseAddr("127.31.0.254")},
		},
		MediaPorts: []uint16{h.media}, CopyOptions: packet.Strip, Backend: config.BackendAuto, StateDir: filepath.Join(dir, "state"),
		AllowLoopback: true,
	}
	require.NoError(t, h.config.Check())
	t.Cleanup(func() {
		h.stop()
		h.serverAway()
		if t.Failed() {
			t.Log("the agent's log:\n" + h.log.String())
		}
	})
	return h
}

func freeAddr(t *testing.T) netip.AddrPort { return netip.MustParseAddrPort(harness.FreePort(t)) }

func (h *home) serve(l net.Listener) {
	h.address = l.Addr().String()
	h.server = &http.Server{Handler: h.service.Handler()}
	go func(s *http.Server) { _ = s.Serve(l) }(h.server)
}

// serverAway ends the server the hard way; serverBack brings it back at the same address.
func (h *home) serverAway() { _ = h.server.Close() }

func (h *home) serverBack() {
	h.t.Helper()
	l, err := net.Listen("tcp", h.address)
	require.NoError(h.t, err)
	h.serve(l)
}

// start runs an agent; stop ends it as SIGTERM does.
func (h *home) start() {
	h.t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	h.cancel, h.ended = cancel, make(chan error, 1)
	log := slog.New(slog.NewTextHandler(&h.log, &slog.HandlerOptions{Level: slog.LevelDebug}))
	go func() { h.ended <- agent.Run(ctx, h.config, "test", log) }()
}

func (h *home) stop() {
	if h.cancel == nil {
		return
	}
	h.cancel()
	assert.NoError(h.t, <-h.ended)
	h.cancel = nil
}

func (h *home) status() agent.Status {
	s, _ := agent.Ask(h.t.Context(), h.config.StateDir)
	return s
}

// inForce waits until the agent copies by this snapshot.
func (h *home) inForce(cursor string) {
	h.t.Helper()
	require.Eventually(h.t, func() bool { s := h.status(); return s.Forwarding && s.Cursor == cursor }, soon, patience, "%s comes into force", cursor)
}

// acknowledged waits until the agent has sent the cursor.
func (h *home) acknowledged(cursor string) {
	h.t.Helper()
	require.Eventually(h.t, func() bool { return slices.Contains(h.service.Cursors(), cursor) }, soon, patience, "%s is acknowledged", cursor)
}

func (h *home) failedClosed() {
	h.t.Helper()
	require.Eventually(h.t, func() bool { s := h.status(); return s.PID != 0 && !s.Forwarding }, soon, patience, "the agent fails closed")
}

// receiver is a destination on an address of its own.
type receiver struct {
	t    *testing.T
	conn *net.UDPConn
}

func (h *home) receiver(address string) *receiver {
	h.t.Helper()
	c, err := net.ListenUDP("udp4", net.UDPAddrFromAddrPort(netip.AddrPortFrom(netip.MustParseAddr(address), h.media)))
	require.NoError(h.t, err)
	h.t.Cleanup(func() { _ = c.Close() })
	return &receiver{h.t, c}
}

// send sends datagrams from the camera to the group IP.
func (h *home) send(group, payload string) {
	h.t.Helper()
	c, err := net.DialUDP("udp4", &net.UDPAddr{IP: net.ParseIP(camera)}, net.UDPAddrFromAddrPort(netip.AddrPortFrom(netip.MustParseAddr(group), h.media)))
	require.NoError(h.t, err)
	defer c.Close()
	for i := range mediaCount {
		_, _ = fmt.Fprintf(c, "%s %d", payload, i) // refused if nobody listens: that is what some tests are about
	}
}

// gets waits for all datagrams of a send, and for nothing else but checks. It tells where they came from.
func (r *receiver) gets(payload string) (from netip.AddrPort) {
	r.t.Helper()
	for i := range mediaCount {
		var got string
		got, from = r.copy()
		require.Equal(r.t, fmt.Sprintf("%s %d", payload, i), got)
	}
	return from
}

// copy waits for the next datagram that is no check.
func (r *receiver) copy() (payload string, from netip.AddrPort) {
	r.t.Helper()
	require.NoError(r.t, r.conn.SetReadDeadline(time.Now().Add(soon)))
	b := make([]byte, 1500)
	for {
		n, from, err := r.conn.ReadFromUDPAddrPort(b)
		require.NoError(r.t, err)
		if !consentcheck.IsSTUN(b[:n]) {
			return string(b[:n]), from
		}
	}
}

// hears tells whether the next datagram comes soon, and is that one.
func (r *receiver) hears(payload string) bool {
	r.t.Helper()
	require.NoError(r.t, r.conn.SetReadDeadline(time.Now().Add(quietness)))
	b := make([]byte, 1500)
	n, err := r.conn.Read(b)
	return err == nil && string(b[:n]) == payload
}

func (r *receiver) getsNothing() {
	r.t.Helper()
	require.NoError(r.t, r.conn.SetReadDeadline(time.Now().Add(quietness)))
	b := make([]byte, 1500)
	n, err := r.conn.Read(b)
	require.ErrorIs(r.t, err, os.ErrDeadlineExceeded, "%q", b[:max(n, 0)])
}

// information has groupcast1 with a camera that needs no option, and one destination per address.
func information(epoch string, revision int, destinations ...string) api.GroupInformation {
	g := group(1, groupIP, destinations...)
	return api.GroupInformation{
		GatewayID: gatewayID, Epoch: epoch, Revision: fmt.Sprint(revision), MaxStaleSeconds: 900, Groups: []api.GatewayGroup{g},
	}
}

func group(n int, ip string, destinations ...string) api.GatewayGroup {
	g := api.GatewayGroup{
		GroupID: models.GroupID(fmt.Sprintf("g_%d", n)), PremisesID: "p_1", GroupName: fmt.Sprintf("groupcast%d", n),
		GroupIP: netip.MustParseAddr(ip), Generation: 1, State: int32(len(destinations)),
		GroupSources: []api.GroupSource{{
			RegistrationID: models.RegistrationID(fmt.Sprintf("r_camera%d", n)), SourceName: "camera1", SourceIPv4: netip.MustParseAddr(camera),
			SourceIPv6: nullable.NewNullNullable[netip.Addr](), Trigger: models.TriggerSource,
		}},
		GroupDestinations: []api.GroupDestination{},
	}
	for i, d := range destinations {
		g.GroupDestinations = append(g.GroupDestinations, api.GroupDestination{
			RegistrationID: models.RegistrationID(fmt.Sprintf("r_%d_%d", n, i)), DestinationID: fmt.Sprint(i + 1), DestinationName: "receiver " + fmt.Sprint(i),
			DestinationIPv4: nullable.NewNullableWithValue(netip.MustParseAddr(d)),
			DestinationIPv6: nullable.NewNullNullable[netip.Addr](), DestinationPort: nullable.NewNullNullable[int32](),
			Consent: &api.GatewayConsent{Policy: models.PolicyExempt},
		})
	}
	return g
}

func TestCopiesFollowTheServer(t *testing.T) {
	h := newHome(t)
	one, two := h.receiver("127.31.1.1"), h.receiver("127.31.1.2")
	h.start()
	h.inForce("e1.1")
	h.service.Set(information("e1", 2, "127.31.1.1"))
	h.inForce("e1.2")
	h.send(groupIP, "one")
	one.gets("one")
	two.getsNothing()

	h.service.Set(information("e1", 3, "127.31.1.1", "127.31.1.2"))
	h.inForce("e1.3")
	h.send(groupIP, "both")
	one.gets("both")
	two.gets("both")

	// The first leaves.
	left := information("e1", 4, "127.31.1.1", "127.31.1.2")
	left.Groups[0].GroupDestinations = left.Groups[0].GroupDestinations[1:]
	h.service.Set(left)
	h.acknowledged("e1.4")
	h.send(groupIP, "two")
	two.gets("two")
	one.getsNothing()

	// The group ends.
	none := information("e1", 5)
	none.Groups = []api.GatewayGroup{}
	h.service.Set(none)
	h.acknowledged("e1.5")
	h.send(groupIP, "nobody")
	two.getsNothing()
	assert.Empty(t, h.status().Groups)
}

func TestAnOlderRevisionIsNeverApplied(t *testing.T) {
	h := newHome(t)
	one, two := h.receiver("127.31.1.1"), h.receiver("127.31.1.2")
	h.service.Set(information("e1", 9, "127.31.1.1"))
	h.start()
	h.acknowledged("e1.9")

	h.service.Set(information("e1", 8, "127.31.1.2"))
	require.Eventually(t, func() bool { return h.status().Polls.Failed > 0 }, soon, patience)
	h.send(groupIP, "held")
	one.gets("held")
	two.getsNothing()
	assert.NotContains(t, h.service.Cursors(), "e1.8")
	assert.Contains(t, h.log.String(), "older than 9")

	// Another epoch is another life of the database: there 8 isn't older.
	h.service.Set(information("e2", 8, "127.31.1.2"))
	h.acknowledged("e2.8")
	h.send(groupIP, "restored")
	two.gets("restored")
	one.getsNothing()
}

func TestWithoutServerCopiesGoOnUntilTheyAreStale(t *testing.T) {
	h := newHome(t)
	one := h.receiver("127.31.1.1")
	info := information("e1", 2, "127.31.1.1")
	h.service.Set(info)
	h.start()
	h.inForce("e1.2")
	h.serverAway()
	h.send(groupIP, "alone")
	one.gets("alone")

	h.serverBack()
	info.Revision, info.MaxStaleSeconds = "3", 1
	h.service.Set(info)
	h.acknowledged("e1.3")
	h.serverAway()
	h.failedClosed()
	h.send(groupIP, "stale")
	one.getsNothing()
	assert.Contains(t, h.log.String(), "level=ERROR msg=\"the server was not heard from for too long")

	// The same information again, now confirmed, each time for a second.
	h.serverBack()
	require.Eventually(t, func() bool {
		h.send(groupIP, "back")
		return one.hears("back 0")
	}, soon, patience)
}

func TestAfterFailingClosedAServerThatFellBackIsBelieved(t *testing.T) {
	h := newHome(t)
	one, two := h.receiver("127.31.1.1"), h.receiver("127.31.1.2")
	info := information("e1", 9, "127.31.1.1")
	info.MaxStaleSeconds = 1
	h.service.Set(info)
	h.start()
	h.acknowledged("e1.9")
	h.service.Set(information("e1", 8, "127.31.1.2"))
	h.inForce("e1.8") // when 9 has run out, not before
	h.send(groupIP, "again")
	two.gets("again")
	one.getsNothing()
}

func TestHoursWithoutChangeStayFresh(t *testing.T) {
	h := newHome(t)
	one := h.receiver("127.31.1.1")
	info := information("e1", 2, "127.31.1.1")
	info.MaxStaleSeconds = 6 // polls wait for a third of it
	h.service.Set(info)
	h.start()
	h.inForce("e1.2")
	require.Eventually(t, func() bool { return h.status().Polls.Unchanged >= 4 }, soon, patience)
	h.send(groupIP, "fresh")
	one.gets("fresh")
	assert.NotContains(t, h.log.String(), "not heard from")
}

func TestARestartCopiesBeforeTheServerAnswers(t *testing.T) {
	h := newHome(t)
	one := h.receiver("127.31.1.1")
	h.service.Set(information("e1", 2, "127.31.1.1"))
	h.start()
	h.acknowledged("e1.2")
	h.stop()
	h.serverAway()

	h.start()
	h.inForce("e1.2")
	h.send(groupIP, "restarted")
	one.gets("restarted")
	assert.Greater(t, h.status().LastSuccessSeconds, 0.0)

	// The server is back: the cursor that was kept acknowledges what is copied.
	polls := len(h.service.Polls())
	h.serverBack()
	require.Eventually(t, func() bool { return len(h.service.Polls()) > polls }, soon, patience)
	assert.Equal(t, "e1.2", h.service.Cursors()[polls])
}

func TestARestartWithSomethingTooOldCopiesNothing(t *testing.T) {
	h := newHome(t)
	one := h.receiver("127.31.1.1")
	info := information("e1", 2, "127.31.1.1")
	info.MaxStaleSeconds = 1
	h.service.Set(info)
	h.start()
	h.acknowledged("e1.2")
	h.stop()
	h.serverAway()
	time.Sleep(1100 * time.Millisecond)

	h.start()
	h.failedClosed()
	h.send(groupIP, "old")
	one.getsNothing()
	assert.Contains(t, h.log.String(), "too old")
	polls := len(h.service.Polls())
	h.serverBack()
	require.Eventually(t, func() bool { return len(h.service.Polls()) > polls }, soon, patience)
	assert.Empty(t, h.service.Cursors()[polls], "what isn't in force isn't acknowledged")
	require.Eventually(t, func() bool { return slices.Contains(h.service.Cursors()[polls:], "e1.2") }, soon, patience)
}

func TestADamagedOrForeignStateIsNotUsed(t *testing.T) {
	for name, test := range map[string]struct {
		spoil func(*home, string)
		want  string
	}{
		"damaged": {func(h *home, file string) {
			b, err := os.ReadFile(file)
			require.NoError(h.t, err)
			require.NoError(h.t, os.WriteFile(file, []byte(strings.Replace(string(b), "127.31.1.1", "127.31.1.2", 1)), 0o600))
		}, "damaged"},
		"another gateway": {func(h *home, _ string) { h.config.Gateway.ID++ }, "belongs to gateway"},
		"another range": {func(h *home, _ string) {
			h.config.Gateway.Range.First = netip.MustParseAddr("127.31.0.240")
		}, "outside the declared range"},
	} {
		t.Run(name, func(t *testing.T) {
			h := newHome(t)
			one, two := h.receiver("127.31.1.1"), h.receiver("127.31.1.2")
			h.service.Set(information("e1", 2, "127.31.1.1"))
			h.start()
			h.acknowledged("e1.2")
			h.stop()
			h.serverAway()
			test.spoil(h, filepath.Join(h.config.StateDir, "snapshot.json"))

			h.start()
			h.failedClosed()
			h.send(groupIP, "spoilt")
			one.getsNothing()
			two.getsNothing()
			assert.Contains(t, h.log.String(), "the kept group information is not used")
			assert.Contains(t, h.log.String(), test.want)
		})
	}
}

func TestWhatIsNotKeptIsCopiedButNotAcknowledged(t *testing.T) {
	h := newHome(t)
	one := h.receiver("127.31.1.1")
	h.start()
	h.acknowledged("e1.1")
	// The disk is full, as far as the agent can tell.
	obstacle := filepath.Join(h.config.StateDir, "snapshot.json.new")
	require.NoError(t, os.Mkdir(obstacle, 0o700))
	h.service.Set(information("e1", 2, "127.31.1.1"))
	h.inForce("e1.2")
	h.send(groupIP, "unkept")
	one.gets("unkept")
	require.Eventually(t, func() bool { return h.status().Polls.Failed >= 2 }, soon, patience)
	assert.NotContains(t, h.service.Cursors(), "e1.2")
	assert.Contains(t, h.log.String(), "make room in state-dir")
	assert.Empty(t, h.status().KeptCursor)

	// What was kept before is older than what was copied by: a restart doesn't go back to it.
	h.stop()
	h.serverAway()
	h.start()
	h.failedClosed()
	h.send(groupIP, "older")
	one.getsNothing()
	h.serverBack()
	h.inForce("e1.2")

	require.NoError(t, os.Remove(obstacle))
	h.acknowledged("e1.2")
}

func TestOneGroupThatCannotBeServedDoesNotStopTheOthers(t *testing.T) {
	h := newHome(t)
	one := h.receiver("127.31.1.1")
	// Somebody else's program has the port of the second group IP.
	obstacle := h.receiver(secondIP)
	info := information("e1", 2, "127.31.1.1")
	info.Groups = append(info.Groups, group(2, secondIP, "127.31.1.1"))
	h.service.Set(info)
	h.start()
	h.acknowledged("e1.2")
	h.send(groupIP, "first")
	one.gets("first")
	assert.Contains(t, h.status().Fault, secondIP)

	require.NoError(t, obstacle.conn.Close())
	info.Revision = "3"
	h.service.Set(info)
	h.inForce("e1.3")
	h.send(secondIP, "second")
	one.gets("second")
	assert.Empty(t, h.status().Fault)
}

func TestATokenIsReplacedWhileTheAgentRuns(t *testing.T) {
	h := newHome(t)
	h.start()
	h.acknowledged("e1.1")
	h.service.SetToken("the-next-token")
	h.service.Set(information("e1", 2)) // ends the poll that waits
	h.inForce("e1.2")
	require.Eventually(t, func() bool { return strings.Contains(h.log.String(), "put a new one there") }, soon, patience)
	require.NoError(t, os.WriteFile(h.config.Credential+".new", []byte("the-next-token\n"), 0o600))
	require.NoError(t, os.Rename(h.config.Credential+".new", h.config.Credential))
	h.acknowledged("e1.2")
	assert.NotContains(t, h.log.String(), "the-next-token")
	assert.NotContains(t, h.log.String(), token)
}

func TestOneAgentPerStateDirectory(t *testing.T) {
	h := newHome(t)
	h.start()
	h.inForce("e1.1")
	c := h.config
	c.MetricsListen = netip.AddrPort{}
	err := agent.Run(t.Context(), c, "test", slog.New(slog.DiscardHandler))
	require.ErrorContains(t, err, "another gateway-agent")
	assert.NotErrorIs(t, err, agent.ErrConfiguration)
	assert.True(t, h.status().Forwarding, "the first one goes on")
}

func TestWhatKeepsTheAgentFromStarting(t *testing.T) {
	for name, test := range map[string]struct {
		spoil         func(*home)
		want          string
		configuration bool
	}{
		"token for everybody": {func(h *home) { require.NoError(h.t, os.Chmod(h.config.Credential, 0o644)) }, "chmod 600", true},
		"no token":            {func(h *home) { require.NoError(h.t, os.Remove(h.config.Credential)) }, "there is no credential file", true},
		"no CA":               {func(h *home) { h.config.CA = "/does/not/exist" }, "ca: ", true},
		"no such interface":   {func(h *home) { h.config.LANInterface = "nope0" }, "nope0", false},
		"metrics port taken": {func(h *home) {
			h.config.MetricsListen = netip.MustParseAddrPort(h.address)
		}, "metrics-listen: ", false},
	} {
		t.Run(name, func(t *testing.T) {
			h := newHome(t)
			test.spoil(h)
			err := agent.Run(t.Context(), h.config, "test", slog.New(slog.DiscardHandler))
			require.ErrorContains(t, err, test.want)
			assert.Equal(t, test.configuration, errors.Is(err, agent.ErrConfiguration))
			assert.NotContains(t, err.Error(), token)
		})
	}
}

func TestAStateDirTooLongForASocketCostsOnlyTheStatus(t *testing.T) {
	h := newHome(t)
	h.config.StateDir += strings.Repeat("x", 100)
	h.start()
	h.acknowledged("e1.1")
	assert.Contains(t, h.log.String(), "nobody can ask for the status")
}

func TestAStopFreesEverythingAtOnce(t *testing.T) {
	h := newHome(t)
	one := h.receiver("127.31.1.1")
	h.service.Set(information("e1", 2, "127.31.1.1"))
	h.start()
	h.acknowledged("e1.2")
	h.stop() // while a poll waits
	h.send(groupIP, "stopped")
	one.getsNothing()
	_, err := agent.Ask(t.Context(), h.config.StateDir)
	assert.ErrorContains(t, err, "is it running")
	again := h.receiver(groupIP)
	require.NoError(t, again.conn.Close())
	h.start()
	h.inForce("e1.2")
}

func TestStatusAndMetricsCountAndShowNoDestination(t *testing.T) {
	h := newHome(t)
	one := h.receiver("127.31.1.1")
	refused := information("e1", 2, "127.31.1.1", "127.31.0.240") // the second is inside the group range
	h.service.Set(refused)
	h.config.MetricsListen = freeAddr(t)
	h.start()
	h.acknowledged("e1.2")
	h.send(groupIP, "media")
	one.gets("media")
	stranger, err := net.DialUDP("udp4", nil, net.UDPAddrFromAddrPort(netip.AddrPortFrom(netip.MustParseAddr(groupIP), h.media))) // not from the camera's address
	require.NoError(t, err)
	_, err = stranger.Write([]byte("stranger"))
	require.NoError(t, err)
	require.NoError(t, stranger.Close())

	require.Eventually(t, func() bool { return h.status().Groups[0].Drops["unregistered"] == 1 }, soon, patience)
	s := h.status()
	assert.Equal(t, "test", s.Version)
	assert.Equal(t, gatewayID.String(), s.GatewayID)
	assert.Equal(t, 1, s.RefusedCount)
	assert.InDelta(t, 900, s.ValidForSeconds, 30)
	require.Len(t, s.Groups, 1)
	g := s.Groups[0]
	assert.Equal(t, "groupcast1", g.Name)
	assert.Equal(t, []string{"camera1"}, g.Sources)
	assert.EqualValues(t, mediaCount+1, g.Received)
	require.Len(t, g.Destinations, 2)
	assert.Equal(t, "receiver 0", g.Destinations[0].Name)
	assert.EqualValues(t, mediaCount, g.Destinations[0].Packets)
	assert.EqualValues(t, mediaCount*len("media 0"), g.Destinations[0].Bytes)
	assert.Zero(t, g.Destinations[1].Packets)

	metrics := h.get("http://" + h.config.MetricsListen.String() + "/metrics")
	for _, line := range []string{
		"groupcast_agent_forwarding 1",
		"groupcast_agent_revision 2",
		"groupcast_agent_refused_destinations 1",
		`groupcast_agent_polls_total{result="changed"} 1`,
		`groupcast_agent_group_info{group_ip="127.31.0.233",group="groupcast1",generation="1"} 1`,
		`groupcast_agent_group_received_total{group_ip="127.31.0.233"} 4`,
		`groupcast_agent_group_drops_total{group_ip="127.31.0.233",reason="unregistered"} 1`,
		`groupcast_agent_destination_info{destination="r_1_0",group_ip="127.31.0.233"} 1`,
		`groupcast_agent_destination_packets_total{destination="r_1_0"} 3`,
		`groupcast_agent_destination_bytes_total{destination="r_1_0"} 21`,
	} {
		assert.Contains(t, metrics, line+"\n")
	}
	assert.Regexp(t, `(?m)^groupcast_agent_last_success_age_seconds [0-9.e-]+$`, metrics)
	assert.Contains(t, metrics, "process_resident_memory_bytes")
	typed := map[string]int{}
	for line := range strings.Lines(metrics) {
		if name, ok := strings.CutPrefix(line, "# TYPE "); ok {
			typed[name]++
		}
	}
	for name, n := range maps.All(typed) {
		assert.Equal(t, 1, n, name)
	}

	text, err := json.Marshal(s)
	require.NoError(t, err)
	for where, text := range map[string]string{"status": string(text), "metrics": metrics, "log": h.log.String()} {
		assert.NotContains(t, text, "127.31.1.1", where)
		assert.NotContains(t, text, token, where)
	}
}

// What doesn't fit into the uplink's rate is left out, which the status and the metrics say, and counted for the destination.
func TestCopiesThatTheUplinkHasNoRoomFor(t *testing.T) {
	h := newHome(t)
	h.service.Set(information("e1", 2, "127.31.7.1"))
	h.config.UplinkRate = 100 // bits per second
	h.config.MetricsListen = freeAddr(t)
	h.start()
	h.acknowledged("e1.2")
	require.Equal(t, &agent.UplinkStatus{Rate: 100}, h.status().Uplink)
	require.Eventually(t, func() bool {
		h.send(groupIP, "media")
		d := h.status().Groups[0].Destinations[0]
		return d.LeftOut && d.Drops["uplink-rate"] > 0
	}, soon, patience)
	s := h.status()
	assert.Equal(t, 1, s.Uplink.LeftOut)
	assert.Greater(t, s.Uplink.Wanted, s.Uplink.Rate)
	metrics := h.get("http://" + h.config.MetricsListen.String() + "/metrics")
	assert.Contains(t, metrics, "groupcast_agent_uplink_rate_bits 100\n")
	assert.Contains(t, metrics, "groupcast_agent_left_out_destinations 1\n")
	assert.Regexp(t, `groupcast_agent_destination_drops_total\{destination="r_1_0",reason="uplink-rate"\} [1-9]`, metrics)
}

func (h *home) get(url string) string {
	h.t.Helper()
	r, err := (&http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: soon}).Get(url)
	require.NoError(h.t, err)
	defer r.Body.Close()
	var b strings.Builder
	_, err = io.Copy(&b, r.Body)
	require.NoError(h.t, err)
	return b.String()
}

// Whatever the host: loopback is no LAN that the kernel path can be on.
func TestTheBackendIsChosenByTrying(t *testing.T) {
	h := newHome(t)
	h.start()
	h.inForce("e1.1")
	assert.Contains(t, h.log.String(), "copying by sockets")
	assert.Contains(t, h.log.String(), "LAN interface lo is not Ethernet")
	h.stop()

	h.config.Backend = config.BackendEBPF
	h.start()
	err := <-h.ended
	h.cancel()
	h.cancel = nil
	assert.ErrorContains(t, err, "LAN interface lo is not Ethernet", "what was asked for is not replaced by something else")
}
