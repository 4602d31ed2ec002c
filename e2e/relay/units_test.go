package relay

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/groupcast/groupcast/e2e/netlab"
	"github.com/groupcast/groupcast/e2e/scripted"
	"github.com/groupcast/groupcast/models"
	"github.com/groupcast/groupcast/openapi/api"
)

const (
	packaging = "../../packaging/gateway-agent/"
	nobody    = 65534
)

// settings gives what units say under a key, the words of all of them: for these keys the lines of a drop-in add to those of its unit.
func settings(t *testing.T, key string, files ...string) (words []string) {
	t.Helper()
	for _, f := range files {
		b, err := os.ReadFile(packaging + f)
		require.NoError(t, err)
		for _, m := range regexp.MustCompile(`(?m)^`+key+`=(.*)$`).FindAllSubmatch(b, -1) {
			words = append(words, strings.Fields(string(m[1]))...)
		}
	}
	return words
}

// packaged starts a program as the units would: an ordinary user with these capabilities and no way to more, nothing to write but its state, and of the devices what
// they allow.
func packaged(t *testing.T, without string, files ...string) func(dir string, command []string) []string {
	t.Helper()
	var wanted []string
	capabilities := settings(t, "AmbientCapabilities", files...)
	require.Equal(t, capabilities, settings(t, "CapabilityBoundingSet", files...))
	for _, c := range capabilities {
		if c != without {
			wanted = append(wanted, "+"+strings.ToLower(strings.TrimPrefix(c, "CAP_")))
		}
	}
	caps := "-all," + strings.Join(wanted, ",")
	devices := "mount -t tmpfs none /dev/net" // and nothing in it
	if private := settings(t, "PrivateDevices", files...); slices.Contains(settings(t, "DeviceAllow", files...), "/dev/net/tun") &&
		(len(private) == 0 || private[len(private)-1] == "no") && without != "/dev/net/tun" {
		devices += " && mknod -m 0666 /dev/net/tun c 10 200" // as udev makes it
	}
	return func(dir string, command []string) []string {
		require.NoError(t, os.Chmod(filepath.Dir(command[0]), 0o755))
		require.NoError(t, os.MkdirAll(filepath.Join(dir, "state"), 0o700))
		for _, own := range []string{"", "state", "token"} {
			require.NoError(t, os.Chown(filepath.Join(dir, own), nobody, nobody))
		}
		script := fmt.Sprintf(`set -e
mount --bind %[1]s/state %[1]s/state
%[2]s
mount -o remount,bind,ro /
exec setpriv --reuid %[3]d --regid %[3]d --clear-groups --inh-caps %[4]s --ambient-caps %[4]s --bounding-set %[4]s --no-new-privs "$@"`, dir, devices, nobody, caps)
		return append([]string{"unshare", "--mount", "sh", "-c", script, "sh"}, command...)
	}
}

// The relay's unit, and the gateway's with its drop-in, let the agents do what they are for; each part of what they grant for the tunnel is needed.
func TestRelayUnitsGrantWhatTheTunnelNeeds(t *testing.T) {
	t.Parallel()
	netlab.Require(t)
	gatewayUnit := []string{"gateway-agent.service", "tunnel.conf"}
	// What can't be tried without systemd.
	assert.Contains(t, settings(t, "RestrictAddressFamilies", gatewayUnit...), "AF_PACKET")
	assert.NotContains(t, settings(t, "RestrictAddressFamilies", "groupcast-relay.service"), "AF_PACKET")
	nfpm, err := os.ReadFile(packaging + "nfpm.yaml")
	require.NoError(t, err)
	assert.Contains(t, string(nfpm), "dst: /usr/lib/systemd/system/groupcast-relay.service")
	assert.Contains(t, string(nfpm), "dst: /usr/share/doc/groupcast-gateway-agent/tunnel.conf")

	for name, test := range map[string]struct {
		gateway        []string
		relayWithout   string
		gatewayWithout string
		from           string // the copies
		says           string // one of the two
	}{
		"as packaged":                  {gatewayUnit, "", "", relayAddr, "the tunnel is up"},
		"without the drop-in":          {gatewayUnit[:1], "", "", "198.18.1.1", "no relay can copy for this gateway"},
		"a gateway without raw":        {gatewayUnit, "", "CAP_NET_RAW", "198.18.1.1", "docs/adr/0078"},
		"a gateway without the device": {gatewayUnit, "", "/dev/net/tun", "198.18.1.1", "modprobe wireguard"},
		"a relay without raw":          {gatewayUnit, "CAP_NET_RAW", "", "", "this needs CAP_NET_RAW"},
		"a relay without admin":        {gatewayUnit, "CAP_NET_ADMIN", "", "", "this needs CAP_NET_ADMIN"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			l := newNetwork(t, netlab.New(t, "relay"), 1)
			h := l.homes[0]
			receiver := l.receiver(netlab.Upload)
			forRelay := scripted.NewRelay(api.RelayInformation{
				RelayID: relayID, Epoch: "e", Revision: "1", MaxStaleSeconds: 900, Premises: []api.RelayPremises{}, Groups: []api.GatewayGroup{},
			}, relayInside, token)
			relay := newNodeAs(t, l.relayNS, packaged(t, test.relayWithout, "groupcast-relay.service"), forRelay.Handler(), "--mode", "relay",
				"--relay-id", relayID.String(), "--tunnel-endpoint", relayAddr+":51820", "--uplink-address", relayAddr)
			if test.from == "" {
				l.until("the relay says what is missing", func() bool { return strings.Contains(relay.log.String(), test.says) })
				return
			}
			network := models.FanoutNetwork
			forGateway := scripted.New(api.GroupInformation{
				GatewayID: gatewayID, Epoch: "e", Revision: "1", MaxStaleSeconds: 900, Groups: []api.GatewayGroup{apiGroup(0, netlab.Upload)}, Fanout: &network,
				Relay: &api.GatewayRelay{
					RelayID: relayID, TunnelKey: relay.publicKey(l), EndpointIPv4: netip.MustParseAddr(relayAddr), EndpointPort: tunnelPort,
					TunnelAddress: relayInside, OwnTunnelAddress: h.inside, Forwarding: true,
				},
			}, token)
			gateway := newNodeAs(t, h.gateway, packaged(t, test.gatewayWithout, test.gateway...), forGateway.Handler(), "--gateway-id", gatewayID.String(),
				"--lan-prefix", "172.16.0.0/24", "--lan-address", "172.16.0.1", "--uplink-address", "198.18.1.1", "--backend", "socket")
			if test.from == relayAddr {
				forRelay.Set(api.RelayInformation{
					RelayID: relayID, Epoch: "e", Revision: "2", MaxStaleSeconds: 900, Groups: []api.GatewayGroup{apiGroup(0, netlab.Upload)},
					Premises: []api.RelayPremises{{PremisesID: "p_0", GatewayID: gatewayID, TunnelKey: gateway.publicKey(l), TunnelAddress: h.inside}},
				})
			}
			n := 0
			l.until("copies come from "+test.from, func() bool {
				n++
				h.send(datagram(uint16(n), cameraAddr, payload(n, 700)))
				return receiver.tryNext() == string(payload(n, 700)) && receiver.from == test.from
			})
			assert.Contains(t, gateway.log.String()+relay.log.String(), test.says)
			if test.from == relayAddr {
				assert.Contains(t, relay.log.String(), "backend=ebpf", "the relay may copy in the kernel")
			}
		})
	}
}
