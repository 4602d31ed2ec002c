package e2e

import (
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/groupcast/groupcast/e2e/harness"
	"github.com/groupcast/groupcast/e2e/netlab"
	"github.com/groupcast/groupcast/models"
	"github.com/groupcast/groupcast/openapi/adminapi"
)

// tunnelled is a network with the service, receivers and relays on the internet, and homes without gateways behind NATs of their own.
type tunnelled struct {
	*harness.Server
	t        *testing.T
	internet *netlab.Namespace
	relays   map[netip.Addr]*harness.Process
}

// tunnelledHome is a camera behind a NAT. All have the same addresses.
type tunnelledHome struct {
	camera *netlab.Namespace
	uplink *netlab.Capture
	send   *net.UDPConn // to the relay input of the camera's program
	got    *harness.Process
}

const (
	mobileCamera = "192.168.8.5"
	serviceAt    = "127.0.0.1:8080"
	cameraInput  = "127.0.0.1:6000"
)

func newTunnelled(t *testing.T) *tunnelled {
	t.Helper()
	l := &tunnelled{t: t, internet: netlab.New(t, "internet"), relays: map[netip.Addr]*harness.Process{}}
	l.internet.Sysctl("net.ipv4.ip_forward", "1")
	l.Server = harness.StartServer(t, harness.Options{In: l.internet, Listen: serviceAt})
	return l
}

// addRelay adds one for all premises.
func (l *tunnelled) addRelay(n int) {
	t := l.t
	t.Helper()
	in := netlab.New(t, fmt.Sprint("relay", n))
	at := netip.AddrFrom4([4]byte{96, 114, 20, byte(4*n + 1)})
	netlab.Connect(in, "wan0", l.internet, fmt.Sprint("relay", n))
	in.Address("wan0", at.String()+"/30")
	l.internet.Address(fmt.Sprint("relay", n), at.Next().String()+"/30")
	in.Route("0.0.0.0/0", at.Next().String())
	harness.Reach(t, in, l.internet, serviceAt)
	l.relays[at] = harness.StartRelay(t, harness.RelayOptions{Server: l.Server, In: in, Name: fmt.Sprint("relay-", n), Address: at.String()})
}

// addHome is a home whose camera is the only thing behind its NAT, with a camera program that sends what comes in locally, as it does.
func (l *tunnelled) addHome(n int, premises models.PremisesID, group string) *tunnelledHome {
	t := l.t
	t.Helper()
	h := &tunnelledHome{camera: netlab.New(t, fmt.Sprint("camera", n))}
	nat := netlab.New(t, fmt.Sprint("nat", n))
	netlab.Connect(h.camera, "cam0", nat, "lan0")
	netlab.Connect(nat, "wan0", l.internet, fmt.Sprint("home", n))
	h.camera.Address("cam0", mobileCamera+"/24")
	nat.Address("lan0", "192.168.8.1/24")
	h.camera.Route("0.0.0.0/0", "192.168.8.1")
	at := netip.AddrFrom4([4]byte{96, 114, 21, byte(4*n + 1)})
	nat.Address("wan0", at.String()+"/30")
	l.internet.Address(fmt.Sprint("home", n), at.Next().String()+"/30")
	nat.Route("0.0.0.0/0", at.Next().String())
	nat.Sysctl("net.ipv4.ip_forward", "1")
	nat.Run("nft", "table ip nat { chain post { type nat hook postrouting priority 100; oifname wan0 masquerade; }; chain in { type filter hook forward priority 0; policy drop; "+
		"ct state established,related accept; iifname lan0 accept; }; }")
	h.uplink = nat.Capture("wan0")
	harness.Reach(t, h.camera, l.internet, serviceAt)

	off := false
	id := l.Device(t, premises, adminapi.DeviceRequest{Type: models.DeviceCamera, Name: fmt.Sprint("camera", n), Pop: &off})
	dir := t.TempDir()
	token := filepath.Join(dir, "token")
	require.NoError(t, os.WriteFile(token, []byte(l.DeviceToken(t, id)), 0o600))
	h.got = harness.Start(t, h.camera, "groupcastctl", exec.Command(harness.Bin(t, "groupcastctl"), "camera", "--server", l.URL, "--token-file", token, "--id", id.String(),
		"--group", group, "--private-ip", mobileCamera, "--tunnel", filepath.Join(dir, "tunnel.key"), "--relay", cameraInput))
	h.camera.Do(func() {
		conn, err := net.Dial("udp", cameraInput)
		require.NoError(t, err)
		h.send = conn.(*net.UDPConn) //nolint:forcetypeassert // it is of that network
	})
	t.Cleanup(func() { h.send.Close() })
	return h
}

// message is WireGuard's that carries data, to a relay.
type message struct {
	relay netip.Addr
	size  int // of UDP payload
}

// crossed are the data messages that left the home. Nothing else but its tunnel may go there: no datagram to a group IP, and no fragment.
func (h *tunnelledHome) crossed(t *testing.T) (all []message) {
	t.Helper()
	for _, f := range h.uplink.Frames() {
		p := f.IPv4()
		if !f.Outgoing || p == nil || p[9] != syscall.IPPROTO_UDP {
			continue
		}
		udp := p[int(p[0]&15)*4:]
		to, _ := netip.AddrFromSlice(p[16:20])
		if binary.BigEndian.Uint16(udp[2:]) != 51820 || binary.BigEndian.Uint16(p[6:])&0x3fff != 0 {
			t.Fatalf("what isn't a tunnel's left the home, to %s", to)
		}
		if udp[8] == 4 && len(udp) > 8+32 { // with data: not a handshake, nor an empty keep-alive
			all = append(all, message{to, len(udp) - 8})
		}
	}
	return all
}

// TestCameraWithoutGateway: cameras that are alone in their homes end tunnels to a relay themselves, by the programs as they are delivered. Each datagram leaves the home
// once and three copies leave the relay; the camera follows to another relay when that one is killed; and what another camera sends as the first one is
// copied to nobody.
func TestCameraWithoutGateway(t *testing.T) {
	t.Parallel()
	netlab.Require(t)
	l := newTunnelled(t)
	account := l.Account(t, "mobile")
	premises := l.Premises(t, account, "car", false)
	for n := range 2 {
		l.addRelay(n)
	}
	destinations := []string{netlab.Upload, netlab.Thumbnail, netlab.Live}
	receivers := map[string]*box{}
	services := map[string]models.ID{}
	for _, a := range append(destinations, netlab.Phone) {
		l.internet.Address("lo", a+"/32")
		receivers[a] = collect(l.internet.ListenUDP(fmt.Sprintf("%s:%d", a, mediaPort)))
		l.Service(t, serviceOf(a), a)
		l.Exempt(t, serviceOf(a), a)
		services[a] = l.Link(t, serviceOf(a), account, 0)
	}
	join := func(address, group string) {
		t.Helper()
		status, text := l.Post(t, "/v1/registrations", l.ServiceToken(t, serviceOf(address)),
			fmt.Sprintf(`{"type":"Service","id":"%s","destination":true,"publicIPv4":%q,"groupName":%q,"groupIP":"198.18.0.230"}`, services[address], address, group))
		require.Equal(t, 200, status, "%s", text)
	}
	// The neighbour is in the same premises and has the same addresses.
	first, neighbour := l.addHome(0, premises, "door"), l.addHome(1, premises, "yard")
	l.network(account, premises)
	for _, h := range []*tunnelledHome{first, neighbour} {
		require.Eventually(t, func() bool { return strings.Contains(h.got.Log(), "registered as source: group IP 198.18.0.230") }, time.Minute, 10*time.Millisecond)
		require.Eventually(t, func() bool { return strings.Contains(h.got.Log(), "there is no destination") }, time.Minute, 10*time.Millisecond)
	}
	_, err := first.send.Write([]byte("to nobody"))
	require.NoError(t, err)
	for _, a := range destinations {
		join(a, "door")
	}

	arrives := func(label string, from *tunnelledHome, to ...string) {
		t.Helper()
		require.Eventually(t, func() bool {
			_, err := from.send.Write([]byte(label))
			require.NoError(t, err)
			return !slices.ContainsFunc(to, func(a string) bool { return receivers[a].count(label) == 0 })
		}, 90*time.Second, 50*time.Millisecond, "no copies come: %s", label)
	}
	arrives("first", first, destinations...)

	t.Run("each datagram leaves the home once", func(t *testing.T) {
		const many = 40
		for i := range many {
			payload := fmt.Sprintf("numbered %03d %s", i, strings.Repeat("x", 1200))
			_, err := first.send.Write([]byte(payload))
			require.NoError(t, err)
			for _, a := range destinations {
				require.Eventually(t, func() bool { return receivers[a].count(payload) == 1 }, time.Minute, time.Millisecond)
			}
		}
		long := slices.DeleteFunc(first.crossed(t), func(m message) bool { return m.size < 1200 })
		require.Len(t, long, many)
		large := strings.Repeat("4000 bytes ", 400)[:4000]
		_, err := first.send.Write([]byte(large))
		require.NoError(t, err)
		for _, a := range destinations {
			require.Eventually(t, func() bool { return receivers[a].count(large) == 1 }, time.Minute, time.Millisecond)
		}
	})

	t.Run("the neighbour's datagrams, with the same addresses in each header, go to its own destination only", func(t *testing.T) {
		join(netlab.Phone, "yard")
		arrives("neighbour", neighbour, netlab.Phone)
		arrives("after the neighbour", first, destinations...)
		for _, a := range destinations {
			require.Zero(t, receivers[a].count("neighbour"))
		}
		require.Zero(t, receivers[netlab.Phone].count("after the neighbour"))
	})

	t.Run("it follows to another relay", func(t *testing.T) {
		all := first.crossed(t)
		at := all[len(all)-1].relay
		l.relays[at].Kill()
		arrives("after the relay", first, destinations...)
		all = first.crossed(t)
		assert.NotEqual(t, at, all[len(all)-1].relay)
	})
	require.NoError(t, first.got.Stop())
	assert.Contains(t, first.got.Log(), "more went nowhere")
}

// box keeps how often each payload came.
type box struct {
	mu  sync.Mutex
	got map[string]int
}

func collect(from *net.UDPConn) *box {
	b := &box{got: map[string]int{}}
	go func() {
		buffer := make([]byte, 1<<16)
		for {
			n, err := from.Read(buffer)
			if err != nil {
				return
			}
			b.mu.Lock()
			b.got[string(buffer[:n])]++
			b.mu.Unlock()
		}
	}()
	return b
}

func (b *box) count(payload string) int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.got[payload]
}

// serviceOf is the service at an address.
func serviceOf(address string) models.ServiceID {
	return models.ServiceID("svc-" + strings.ReplaceAll(address, ".", "-"))
}

// network has the account holder let copies be made in the network.
func (l *tunnelled) network(account models.AccountID, premises models.PremisesID) {
	l.t.Helper()
	e := example{Server: l.Server, account: account, premises: premises}
	e.fanout(l.t, "network")
}
