package relay

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/groupcast/groupcast/e2e/netlab"
	"github.com/groupcast/groupcast/e2e/scripted"
	"github.com/groupcast/groupcast/gateway-agent/tunnel"
	"github.com/groupcast/groupcast/models"
	"github.com/groupcast/groupcast/openapi/api"
)

// initiations gives how often a home has asked for a session.
func (h *home) initiations() (n int) {
	for _, f := range h.uplink.Frames() {
		p := f.IPv4()
		if f.Outgoing || p == nil || p[9] != 17 {
			continue
		}
		if udp := p[int(p[0]&15)*4:]; binary.BigEndian.Uint16(udp[2:]) == tunnelPort && udp[8] == 1 {
			n++
		}
	}
	return n
}

// A gateway that knows the relay before the relay knows it doesn't wait for the five seconds that WireGuard waits between two attempts.
func TestRelayAnswersAGatewayThatAskedBeforeItHadAPeer(t *testing.T) {
	t.Parallel()
	netlab.Isolated(t, answersAGatewayThatAskedBefore)
}

func answersAGatewayThatAskedBefore(t *testing.T) {
	l := newNetwork(t, netlab.Current(t, "relay"), 1)
	h := l.homes[0]
	l.homes = nil // the relay begins without a peer
	l.startRelay()
	h.open()
	require.NoError(t, h.tunnel.Apply([]tunnel.Peer{h.relayPeer()}))
	// WireGuard alone would need more than a quarter of a minute for so many.
	h.until("it asked again and again", func() bool { return h.initiations() >= 5 })
	require.NoError(t, l.tunnel.Apply([]tunnel.Peer{{Key: h.key.Public(), Address: h.inside}}))
	h.until("a session", func() bool {
		all, err := h.tunnel.Status()
		require.NoError(t, err)
		return !all[l.relayKey.Public()].Handshake.IsZero()
	})
	// It is left alone from then on.
	n := h.initiations()
	require.NoError(t, h.tunnel.Apply([]tunnel.Peer{h.relayPeer()}))
	require.Equal(t, n, h.initiations())
}

func TestRelayHasNoPeerForAnIdleHome(t *testing.T) {
	t.Parallel()
	netlab.Require(t)
	l := newNetwork(t, netlab.New(t, "relay"), 1)
	h := l.homes[0]
	receiver := l.receiver(netlab.Upload)

	network := models.FanoutNetwork
	revision := 1
	forGateway := scripted.New(api.GroupInformation{GatewayID: gatewayID, Epoch: "e", Revision: "1", MaxStaleSeconds: 900, Groups: []api.GatewayGroup{}}, token)
	gateway := newNode(t, h.gateway, forGateway.Handler(), "--gateway-id", gatewayID.String(), "--lan-prefix", "172.16.0.0/24", "--lan-address", "172.16.0.1",
		"--uplink-address", "198.18.1.1", "--backend", "socket")
	forRelay := scripted.NewRelay(api.RelayInformation{
		RelayID: relayID, Epoch: "e", Revision: "1", MaxStaleSeconds: 900, Premises: []api.RelayPremises{}, Groups: []api.GatewayGroup{},
	}, relayInside, token)
	relay := newNode(t, l.relayNS, forRelay.Handler(), "--mode", "relay", "--relay-id", relayID.String(), "--tunnel-endpoint", relayAddr+":51820", "--uplink-address", relayAddr)
	forGatewayRelay := &api.GatewayRelay{
		RelayID: relayID, TunnelKey: relay.publicKey(l), EndpointIPv4: netip.MustParseAddr(relayAddr), EndpointPort: tunnelPort,
		TunnelAddress: relayInside, OwnTunnelAddress: h.inside, Forwarding: true,
	}
	gatewayKey := gateway.publicKey(l)
	tellGateway := func(to ...string) {
		t.Helper()
		forGateway.Set(api.GroupInformation{
			GatewayID: gatewayID, Epoch: "e", Revision: fmt.Sprint(revision), MaxStaleSeconds: 900, Groups: []api.GatewayGroup{apiGroup(0, to...)},
			Fanout: &network, Relay: forGatewayRelay,
		})
		l.until("the gateway has it", func() bool { return gateway.status().Cursor == fmt.Sprintf("e.%d", revision) })
	}
	tellRelay := func(to ...string) {
		t.Helper()
		forRelay.Set(api.RelayInformation{
			RelayID: relayID, Epoch: "e", Revision: fmt.Sprint(revision), MaxStaleSeconds: 900, Groups: []api.GatewayGroup{apiGroup(0, to...)},
			Premises: []api.RelayPremises{{PremisesID: "p_0", GatewayID: gatewayID, TunnelKey: gatewayKey, TunnelAddress: h.inside}},
		})
		l.until("the relay has it", func() bool { return relay.status().Cursor == fmt.Sprintf("e.%d", revision) })
	}
	n := 0
	arrives := func() {
		t.Helper()
		l.until("copies come from the relay", func() bool {
			n++
			h.send(datagram(uint16(n), cameraAddr, payload(n, 700)))
			return receiver.tryNext() == string(payload(n, 700)) && receiver.from == relayAddr
		})
	}

	revision++
	tellRelay()
	tellGateway()
	require.Zero(t, relay.status().Tunnel.Peers)
	require.Empty(t, relay.status().Groups)
	require.Zero(t, gateway.status().Tunnel.Peers)
	require.Zero(t, h.initiations(), "an idle gateway is silent")

	revision++
	tellGateway(netlab.Upload) // who hears of it first doesn't matter
	tellRelay(netlab.Upload)
	arrives()
	require.Equal(t, 1, relay.status().Tunnel.Peers)
	require.NotZero(t, relay.status().Groups[0].Ports["r_camera0"])

	// The relay hears that the last destination left and that another came, the gateway only of the latter: it has a session that the relay has no more.
	revision++
	tellRelay()
	require.Zero(t, relay.status().Tunnel.Peers)
	before := h.initiations()
	revision++
	tellRelay(netlab.Upload)
	tellGateway(netlab.Upload)
	arrives()
	require.Equal(t, before, h.initiations(), "it was the relay that asked, where the gateway was")

	revision++
	tellGateway()
	tellRelay()
	require.Zero(t, relay.status().Tunnel.Peers)
	require.Zero(t, gateway.status().Tunnel.Peers)
}
