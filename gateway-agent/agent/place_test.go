package agent

import (
	"crypto/rand"
	"encoding/binary"
	"log/slog"
	"net/netip"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/groupcast/groupcast/e2e/netlab"
	"github.com/groupcast/groupcast/gateway-agent/duplicator"
	"github.com/groupcast/groupcast/gateway-agent/lan"
	"github.com/groupcast/groupcast/gateway-agent/sync"
	"github.com/groupcast/groupcast/gateway-agent/table"
	"github.com/groupcast/groupcast/gateway-agent/tunnel"
	"github.com/groupcast/groupcast/models"
	"github.com/groupcast/groupcast/openapi/api"
)

// heldBackend is the socket backend, at each of whose steps the test may look at what else is going on.
type heldBackend struct {
	*duplicator.Socket
	steps []string
	at    func(step string)
}

func (b *heldBackend) Apply(s *table.Snapshot) error {
	copies := 0
	if s != nil {
		for _, g := range s.Groups {
			copies += len(g.Destinations)
		}
	}
	step := map[bool]string{true: "copy", false: "don't copy"}[copies > 0]
	b.steps = append(b.steps, step)
	if step == "copy" { // what comes before it returns may be copied
		b.at(step)
		return b.Socket.Apply(s)
	}
	err := b.Socket.Apply(s)
	b.at(step)
	return err
}

func (b *heldBackend) Drain(wait time.Duration) bool {
	b.steps = append(b.steps, "drain")
	b.at("drain")
	drained := b.Socket.Drain(wait)
	b.at("drained")
	return drained
}

// While the place of copying changes, either copies or forwards, or neither: the backend ends before forwarding begins, and forwarding before the backend is drained
// and copies. Datagrams come at each step, and each is copied or forwarded at most once.
func TestRelayOneOfTheTwoAtEachStep(t *testing.T) {
	t.Parallel()
	netlab.Isolated(t, oneOfTheTwoAtEachStep)
}

func oneOfTheTwoAtEachStep(t *testing.T) {
	n := netlab.NewHome(t, netlab.Current(t, "gateway"))
	camera, group := netip.MustParseAddr("172.168.0.5"), netip.MustParseAddr("172.168.0.233")
	own, relay := netip.MustParseAddr("fd12:3456:789a::1"), netip.MustParseAddr("fd12:3456:789a:1::1")
	config := duplicator.Config{
		GroupRange: models.AddrRange{First: netip.MustParseAddr("172.168.0.230"), Last: netip.MustParseAddr("172.168.0.254")},
		Uplink:     netip.MustParseAddr("203.0.113.1"), Log: slog.New(slog.DiscardHandler),
	}
	socket, err := duplicator.OpenSocket(config)
	require.NoError(t, err)
	backend := &heldBackend{Socket: socket, at: func(string) {}}
	guard, err := lan.Open("lan0", config.GroupRange)
	require.NoError(t, err)
	key, err := tunnel.LoadKey(filepath.Join(t.TempDir(), "key"))
	require.NoError(t, err)
	h := &home{duplicator: backend, backend: backend, guard: guard, way: &forwarding{config: config, iface: "lan0", key: key, enabled: true, log: config.Log}}
	t.Cleanup(func() {
		backend.at = func(string) {}
		require.NoError(t, h.stop())
		require.NoError(t, h.way.close())
		require.NoError(t, guard.Close())
		require.NoError(t, socket.Close())
	})

	db, err := table.Open()
	require.NoError(t, err)
	info := models.GroupInformation{GatewayID: 1, Epoch: "e", Revision: 1, MaxStale: time.Hour, Groups: []models.GatewayGroup{{
		Group:   models.Group{ID: "g", PremisesID: "p", Name: "groupcast1", IP: group, Generation: 1},
		Sources: []models.GatewaySource{{RegistrationID: "r_camera", Name: "camera", IPv4: camera, Trigger: models.TriggerOption}},
		Destinations: []models.GatewayDestination{{
			RegistrationID: "r_upload", Name: "upload", IPv4: netip.MustParseAddr(netlab.Upload), Port: 5004, Policy: models.PolicyExempt,
		}},
	}}}
	require.NoError(t, db.Replace(info))
	var relayKey models.TunnelKey
	_, _ = rand.Read(relayKey[:])
	put := func(forwarding *bool) { // nil: there is no relay
		t.Helper()
		held := &sync.Information{GroupInformation: info, MaxStale: time.Hour, Network: forwarding != nil}
		if forwarding != nil {
			held.Relay = &api.GatewayRelay{
				RelayID: 2, TunnelKey: relayKey, EndpointIPv4: netip.MustParseAddr("203.0.113.254"), EndpointPort: 51820, TunnelAddress: relay, OwnTunnelAddress: own, Forwarding: *forwarding,
			}
		}
		_, err := h.put(db.Read(), table.Inputs{ValidUntil: time.Now().Add(time.Hour), Unasked: true}, held)
		require.NoError(t, err)
	}

	frame := func(ttl byte) []byte { // a TTL of 0 is malformed, whatever is in force
		udp := []byte{0x0f, 0xa0, 5004 >> 8, 5004 & 0xff, 0, 9, 0, 0, 'v'}
		p := append([]byte{0x47, 0, 0, 37, 0, 1, 0, 0, ttl, 17, 0, 0}, slices.Concat(camera.AsSlice(), group.AsSlice(), []byte{0x88, 6}, camera.AsSlice(), []byte{0, 0}, udp)...)
		var sum uint32
		for i := 0; i < 28; i += 2 {
			sum += uint32(binary.BigEndian.Uint16(p[i:]))
		}
		binary.BigEndian.PutUint16(p[10:], ^uint16(sum>>16+sum&0xffff))
		if ttl == 0 {
			p[10]++
		}
		return slices.Concat(n.Gateway.HardwareAddr("lan0"), n.Camera.HardwareAddr("cam0"), []byte{8, 0}, p)
	}
	forwarded := func() (packets, malformed uint64) {
		e := h.way.ends.Load()
		if e == nil {
			return 0, 0
		}
		c := e.forward.Counters()
		return c.Packets, c.Drops["malformed"]
	}
	copied := func() uint64 { return socket.Counters().Destinations["r_upload"].Packets }
	// send sends a datagram and tells what became of it, once both have judged it.
	send := func() (copies, forwards uint64) {
		t.Helper()
		copiedBefore, received := copied(), socket.Counters().Groups[group].Received
		forwardedBefore, malformed := forwarded()
		n.Camera.InjectFrame("cam0", frame(64), frame(0))
		require.Eventually(t, func() bool {
			_, m := forwarded()
			return (h.way.ends.Load() == nil || m == malformed+1) && socket.Counters().Groups[group].Received == received+1
		}, time.Minute, time.Millisecond)
		require.True(t, socket.Drain(time.Minute)) // what was received has been copied
		after, _ := forwarded()
		return copied() - copiedBefore, after - forwardedBefore
	}
	became := map[string][2]uint64{}
	neither := [2]uint64{0, 0}

	put(nil) // nothing is received before the first table
	backend.at = func(step string) {
		copies, forwards := send()
		became[step] = [2]uint64{copies, forwards}
	}
	copies, forwards := send()
	require.Equal(t, [2]uint64{1, 0}, [2]uint64{copies, forwards}, "copied at home")

	yes, no := true, false
	for _, home := range []*bool{&no, nil} { // with the tunnel kept, and closed
		backend.steps = nil
		clear(became)
		put(&yes)
		require.Equal(t, []string{"copy", "don't copy"}, backend.steps)
		require.Equal(t, map[string][2]uint64{"copy": {1, 0}, "don't copy": neither}, became, "it copies until the relay answers in the tunnel, or for a moment; then nothing, before the network copies")
		copies, forwards = send()
		require.Equal(t, [2]uint64{0, 1}, [2]uint64{copies, forwards}, "copied in the network")

		backend.steps = nil
		clear(became)
		put(home)
		require.Equal(t, []string{"drain", "copy"}, backend.steps)
		require.Equal(t, map[string][2]uint64{"drain": neither, "drained": neither, "copy": neither}, became, "before the home copies again")
		copies, forwards = send()
		require.Equal(t, [2]uint64{1, 0}, [2]uint64{copies, forwards}, "copied at home again")
	}

	// Who copied nothing begins with nothing: the account holder may not want copies at home.
	backend.at = func(string) {}
	require.NoError(t, h.stop())
	backend.steps = nil
	put(&yes)
	require.Equal(t, []string{"don't copy"}, backend.steps)
}
