package relay

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/groupcast/groupcast/e2e/netlab"
	"github.com/groupcast/groupcast/e2e/scripted"
	"github.com/groupcast/groupcast/gateway-agent/duplicator"
	"github.com/groupcast/groupcast/gateway-agent/packet"
	"github.com/groupcast/groupcast/openapi/api"
)

// A relay takes the kernel where it can, and says so; where it can't or shall not, sockets.
func TestRelayAgentChoosesItsBackend(t *testing.T) {
	for name, c := range map[string]struct {
		args []string
		says string
	}{
		"the kernel by default":   {nil, "copying in the kernel\" backend=ebpf why=\"this host can run it\" tunnel=gcrelay"},
		"sockets if it is told":   {[]string{"--backend", "socket"}, "copying by sockets\" backend=socket why=\"it is the configured backend\""},
		"sockets for fixed rates": {[]string{"--destination-rate", "50M"}, "copying by sockets\" backend=socket why=\"the kernel path is not available: destination-rate"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			netlab.Require(t)
			l := newNetwork(t, netlab.New(t, "relay"), 1)
			h, r := l.homes[0], l.receiver(netlab.Upload)
			service := scripted.NewRelay(api.RelayInformation{
				// An answer that says nothing new may wait for twenty-four minutes, but not after a hang.
				RelayID: relayID, Epoch: "e", Revision: "1", MaxStaleSeconds: 86_400, Groups: []api.GatewayGroup{apiGroup(0, netlab.Upload)},
				Premises: []api.RelayPremises{{PremisesID: "p_0", GatewayID: gatewayID, TunnelKey: h.key.Public(), TunnelAddress: h.inside}},
			}, relayInside, token)
			relay := newNode(t, l.relayNS, service.Handler(), append([]string{
				"--mode", "relay", "--relay-id", relayID.String(), "--tunnel-endpoint", relayAddr + ":51820", "--uplink-address", relayAddr,
			}, c.args...)...)
			relay.publicKey(l)
			l.relayKey = l.loadKey(filepath.Join(relay.dir, "state", "tunnel.key"))
			l.until("the relay holds it", func() bool { return service.Cursor() == "e.1" })
			h.start()
			require.NoError(t, h.forward.Apply(h.groups(netlab.Upload), relayInside))
			h.send(datagram(1, cameraAddr, payload(1, 700)))
			require.Equal(t, string(payload(1, 700)), r.next())
			l.until("counted", func() bool { g := relay.status().Groups; return len(g) == 1 && g[0].Received == 1 })
			hangs(l, relay, h, r)
			// What the network answers comes to the reserved port.
			require.NoError(t, r.conn.Close())
			l.until("that nobody listens is counted", func() bool {
				h.send(datagram(2, cameraAddr, payload(2, 700)))
				g := relay.status().Groups
				return len(g) == 1 && len(g[0].Destinations) == 1 && g[0].Destinations[0].Drops[duplicator.DropRefused] > 0
			})
			relay.kill()
			require.Contains(t, relay.log.String(), c.says)
		})
	}
}

// hangs has the relay stand still for as long as the service waits for one. What was sent to it meanwhile waits with it, and is copied to nobody when it goes on: another
// relay may copy by then. It goes on to copy once the service has answered.
func hangs(l *lab, relay *node, h *home, r *receiver) {
	t := l.t
	t.Helper()
	goesOn := relay.status().Tunnel.Kernel // then the program in the kernel does, too, for as long
	require.NoError(t, relay.cmd.Process.Signal(syscall.SIGSTOP))
	l.until("each of its threads is stopped", func() bool {
		states, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/stat", relay.cmd.Process.Pid))
		require.NoError(t, err)
		return !slices.ContainsFunc(states, func(path string) bool {
			b, err := os.ReadFile(path)
			return err == nil && !bytes.Contains(b, []byte(") T "))
		})
	})
	stopped := time.Now()
	const first, many = 100, 20
	send := func() {
		for n := first; n < first+many; n++ {
			h.send(datagram(uint16(n), cameraAddr, payload(n, 700)))
		}
	}
	if !goesOn {
		send()
	}
	l.until("it stood still for too long", func() bool { return time.Since(stopped) > duplicator.StandStill+500*time.Millisecond })
	if goesOn {
		send()
	}
	require.NoError(t, relay.cmd.Process.Signal(syscall.SIGCONT))
	l.until("what waited is judged", func() bool {
		g := relay.status().Groups
		return len(g) == 1 && g[0].Drops[packet.Stale.String()] > 0
	})
	n := first + many
	l.until("it copies again", func() bool {
		n++
		h.send(datagram(uint16(n), cameraAddr, payload(n, 700)))
		for p := r.poll(); p != ""; p = r.poll() {
			number := 0
			_, err := fmt.Sscanf(p, "%06d ", &number)
			require.NoError(t, err)
			require.GreaterOrEqual(t, number, first+many, "what waited was copied")
			if number == n {
				return true
			}
		}
		return false
	})
}
