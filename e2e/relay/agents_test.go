package relay

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/oapi-codegen/nullable"
	"github.com/stretchr/testify/require"

	"github.com/groupcast/groupcast/e2e/harness"
	"github.com/groupcast/groupcast/e2e/netlab"
	"github.com/groupcast/groupcast/e2e/scripted"
	"github.com/groupcast/groupcast/gateway-agent/agent"
	"github.com/groupcast/groupcast/internal/logtest"
	"github.com/groupcast/groupcast/models"
	"github.com/groupcast/groupcast/openapi/api"
)

const (
	token     = "the-token"
	relayID   = models.ID(731298765432109876)
	gatewayID = models.ID(812345678901234567)
)

// node is a running agent and the service it asks, in a namespace of their own.
type node struct {
	t    testing.TB
	in   *netlab.Namespace
	dir  string
	args []string
	as   func(dir string, command []string) []string // nil: as the test's own user
	cmd  *exec.Cmd
	log  *logtest.Log
}

func newNode(t testing.TB, in *netlab.Namespace, service http.Handler, args ...string) *node {
	t.Helper()
	return newNodeAs(t, in, nil, service, args...)
}

func newNodeAs(t testing.TB, in *netlab.Namespace, as func(dir string, command []string) []string, service http.Handler, args ...string) *node {
	t.Helper()
	return newAsking(t, in, as, service, append([]string{"--allow-without-consent"}, args...)...)
}

// newAsking is newNodeAs, but destinations are asked for their consent.
func newAsking(t testing.TB, in *netlab.Namespace, as func(dir string, command []string) []string, service http.Handler, args ...string) *node {
	t.Helper()
	var listener net.Listener
	var err error
	in.Do(func() { listener, err = net.Listen("tcp", "127.0.0.1:0") })
	require.NoError(t, err)
	server := &http.Server{Handler: service, ReadHeaderTimeout: time.Minute}
	go func() { _ = server.Serve(listener) }()
	t.Cleanup(func() { _ = server.Close() })
	dir, err := os.MkdirTemp("", "gcr-") // the path of a unix socket must stay short
	require.NoError(t, err)
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	require.NoError(t, os.WriteFile(filepath.Join(dir, "token"), []byte(token), 0o600))
	n := &node{t: t, in: in, dir: dir, as: as, args: append([]string{
		"run", "--server", "http://" + listener.Addr().String(), "--credential", filepath.Join(dir, "token"), "--state-dir", filepath.Join(dir, "state"),
		"--metrics-listen", "", "--log-level", "debug",
	}, args...)}
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("%s:\n%s", in.Name, n.log)
		}
	})
	n.start()
	return n
}

func (n *node) start() {
	n.t.Helper()
	command := append([]string{harness.Bin(n.t, "gateway-agent")}, n.args...)
	if n.as != nil {
		command = n.as(n.dir, command)
	}
	n.cmd, n.log = exec.Command(command[0], command[1:]...), &logtest.Log{}
	n.cmd.Stderr = n.log
	n.in.Start(n.cmd)
	n.t.Cleanup(n.kill)
}

// kill ends it as a power cut would.
func (n *node) kill() {
	if n.cmd.ProcessState == nil {
		_ = n.cmd.Process.Kill()
		_ = n.cmd.Wait()
	}
}

func (n *node) status() agent.Status {
	s, _ := agent.Ask(context.Background(), filepath.Join(n.dir, "state"))
	return s
}

// publicKey is that of the key file that the agent made.
func (n *node) publicKey(l *lab) models.TunnelKey {
	n.t.Helper()
	path := filepath.Join(n.dir, "state", "tunnel.key")
	l.until("the agent has a key", func() bool { _, err := os.Stat(path); return err == nil })
	return l.keyOf(path)
}

func apiGroup(n int, to ...string) api.GatewayGroup {
	gateway := gatewayID + models.ID(n)
	g := api.GatewayGroup{
		GroupID: models.GroupID(fmt.Sprintf("g_%d", n)), GatewayID: &gateway, PremisesID: models.PremisesID(fmt.Sprintf("p_%d", n)), GroupName: "groupcast1", GroupIP: groupIP, Generation: 1,
		GroupSources: []api.GroupSource{{
			RegistrationID: models.RegistrationID(fmt.Sprintf("r_camera%d", n)), SourceName: "camera1", SourceIPv4: cameraAddr,
			SourceIPv6: nullable.NewNullNullable[netip.Addr](), Trigger: models.TriggerOption,
		}},
		GroupDestinations: []api.GroupDestination{},
	}
	for i, a := range to {
		g.GroupDestinations = append(g.GroupDestinations, api.GroupDestination{
			RegistrationID: models.RegistrationID(fmt.Sprintf("r_%d_%d", n, i)), DestinationID: fmt.Sprint(i + 1), DestinationName: fmt.Sprintf("receiver %d", i),
			DestinationIPv4: nullable.NewNullableWithValue(netip.MustParseAddr(a)), DestinationIPv6: nullable.NewNullNullable[netip.Addr](),
			DestinationPort: nullable.NewNullableWithValue(int32(mediaPort)), Consent: &api.GatewayConsent{Policy: models.PolicyExempt},
		})
	}
	return g
}

func TestRelayAgents(t *testing.T) {
	t.Parallel()
	netlab.Require(t)
	l := newNetwork(t, netlab.New(t, "relay"), 1)
	h := l.homes[0]
	to := []string{netlab.Upload, netlab.Thumbnail, netlab.Phone}
	var receivers []*receiver
	for _, a := range to {
		receivers = append(receivers, l.receiver(a))
	}

	atHome := api.GroupInformation{GatewayID: gatewayID, Epoch: "e", Revision: "1", MaxStaleSeconds: 900, Groups: []api.GatewayGroup{apiGroup(0, to...)}}
	forGateway := scripted.New(atHome, token)
	gateway := newNode(t, h.gateway, forGateway.Handler(), "--gateway-id", gatewayID.String(), "--lan-prefix", "172.16.0.0/24", "--lan-address", "172.16.0.1",
		"--uplink-address", "198.18.1.1", "--backend", "socket")
	forRelay := scripted.NewRelay(api.RelayInformation{
		RelayID: relayID, Epoch: "e", Revision: "1", MaxStaleSeconds: 900, Premises: []api.RelayPremises{}, Groups: []api.GatewayGroup{},
	}, relayInside, token)
	relay := newNode(t, l.relayNS, forRelay.Handler(), "--mode", "relay", "--relay-id", relayID.String(), "--tunnel-endpoint", relayAddr+":51820", "--uplink-address", relayAddr)

	n := 0
	from := "" // where the copies came from last
	arrives := func(what string) {
		t.Helper()
		l.until(what, func() bool {
			n++
			h.send(datagram(uint16(n), cameraAddr, payload(n, 700)))
			for _, r := range receivers {
				if r.tryNext() != string(payload(n, 700)) {
					return false
				}
				from = r.from
			}
			return true
		})
	}
	arrives("copies made at home")
	require.Equal(t, "198.18.1.1", from)
	require.Nil(t, gateway.status().Tunnel)
	require.NotNil(t, forGateway.Declarations()[0].TunnelKey)

	forwarding := atHome
	t.Run("the network takes over", func(t *testing.T) {
		forRelay.Set(api.RelayInformation{
			RelayID: relayID, Epoch: "e", Revision: "2", MaxStaleSeconds: 900, Groups: []api.GatewayGroup{apiGroup(0, to...)},
			Premises: []api.RelayPremises{{PremisesID: "p_0", GatewayID: gatewayID, TunnelKey: gateway.publicKey(l), TunnelAddress: h.inside}},
		})
		l.until("the relay holds it", func() bool { return forRelay.Cursor() == "e.2" })
		network := models.FanoutNetwork
		forwarding.Revision, forwarding.Fanout = "2", &network
		forwarding.Relay = &api.GatewayRelay{
			RelayID: relayID, TunnelKey: relay.publicKey(l), EndpointIPv4: netip.MustParseAddr(relayAddr), EndpointPort: tunnelPort,
			TunnelAddress: relayInside, OwnTunnelAddress: h.inside, Forwarding: true,
		}
		forGateway.Set(forwarding)
		l.until("copies come from the relay", func() bool { arrives("copies"); return from == relayAddr })
		before := len(h.uplinkData())
		arrives("one more")
		l.until("it crossed the uplink", func() bool { return len(h.uplinkData()) > before })
		require.NotNil(t, gateway.status().Tunnel.Forwarded)
		require.Equal(t, 1, relay.status().Tunnel.Connected)
	})
	t.Run("a relay that is killed resumes by itself", func(t *testing.T) {
		l.until("where the gateway is was kept", func() bool {
			b, _ := os.ReadFile(filepath.Join(relay.dir, "state", "tunnel.json"))
			return bytes.Contains(b, []byte("198.18.1.1:"))
		})
		kernels := relay.log.String()
		relay.kill()
		killed := time.Now()
		if strings.Contains(kernels, "kernel=false") { // the kernel's WireGuard outlives the agent, and the next one replaces it
			l.until("the tunnel ends with the agent, and with it the program", func() bool { return !strings.Contains(l.relayNS.Run("ip", "-o", "link"), "gcrelay") })
		}
		relay.start()
		arrives("copies again")
		require.Equal(t, relayAddr, from)
		require.Equal(t, 1, strings.Count(l.relayNS.Run("ip", "-6", "rule"), "iif gcrelay"), "what is left behind is taken over, not added to")
		require.True(t, l.spokeFirst(killed), "the relay waited for the gateway to notice")
	})
	t.Run("a gateway that is killed resumes by itself", func(t *testing.T) {
		gateway.kill()
		gateway.start()
		arrives("copies again")
		require.Equal(t, relayAddr, from)
	})
	t.Run("no datagram is copied by both while the place changes", func(t *testing.T) {
		network := models.FanoutNetwork
		seen := map[string]int{}
		for i := range 10 {
			next := atHome
			next.Revision = fmt.Sprint(10 + i)
			if i%2 == 1 {
				next.Fanout, next.Relay = &network, forwarding.Relay
			}
			forGateway.Set(next)
			for until := "e." + next.Revision; gateway.status().Cursor != until; {
				for range 20 {
					n++
					h.send(datagram(uint16(n), cameraAddr, payload(n, 200)))
				}
			}
		}
		for p := receivers[0].poll(); p != ""; p = receivers[0].poll() {
			seen[p]++
			require.Equal(t, 1, seen[p], "%.7s came twice", p)
		}
		require.NotEmpty(t, seen)
		arrives("copies from the network")
		require.Equal(t, relayAddr, from)
	})
	t.Run("nobody copies while there is no relay", func(t *testing.T) {
		stopped := atHome
		network := models.FanoutNetwork
		stopped.Revision, stopped.Fanout = "30", &network
		forGateway.Set(stopped)
		l.until("the gateway has it", func() bool { return gateway.status().Cursor == "e.30" })
		h.send(datagram(1, cameraAddr, payload(1, 100)))
		waiting := gateway.status().Tunnel
		require.NotNil(t, waiting, "the tunnel is kept for the next relay")
		require.Zero(t, waiting.Peers, "and leads nowhere")
		l.until("it was counted", func() bool { g := gateway.status().Groups; return len(g) == 1 && g[0].Received > 0 })
		for _, r := range receivers {
			r.nothing()
		}
	})
	t.Run("and back home", func(t *testing.T) {
		home := atHome
		home.Revision = "40"
		forGateway.Set(home)
		arrives("copies made at home")
		require.Equal(t, "198.18.1.1", from)
		l.until("the tunnel is gone", func() bool { return gateway.status().Tunnel == nil })
	})
}
