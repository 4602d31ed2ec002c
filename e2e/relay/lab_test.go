package relay

import (
	"encoding/binary"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/groupcast/groupcast/e2e/harness"
	"github.com/groupcast/groupcast/e2e/netlab"
	"github.com/groupcast/groupcast/gateway-agent/duplicator"
	"github.com/groupcast/groupcast/gateway-agent/table"
	"github.com/groupcast/groupcast/gateway-agent/tunnel"
	"github.com/groupcast/groupcast/models"
)

func TestMain(m *testing.M) {
	netlab.WaitTogether()
	code := m.Run()
	harness.RemoveBuilt()
	os.Exit(code)
}

// What every home has alike.
var (
	cameraAddr = netip.MustParseAddr("172.16.0.5")
	groupIP    = netip.MustParseAddr("172.16.0.233")
	groupRange = models.AddrRange{First: netip.MustParseAddr("172.16.0.230"), Last: netip.MustParseAddr("172.16.0.254")}
)

const (
	mediaPort  = 5004
	tunnelPort = 51820
	relayAddr  = "198.18.0.1"
)

var relayInside = inside(1, 1)

// inside is a tunnel address: kind 0 is a premises, 1 a relay.
func inside(kind, n int) netip.Addr {
	return netip.MustParseAddr(fmt.Sprintf("fd12:3456:789a:%x::%x", kind, n))
}

// lab is an internet with a relay, which is the test's own process, and receivers at addresses of the internet host.
type lab struct {
	t        *testing.T
	internet *netlab.Namespace
	relayNS  *netlab.Namespace
	relayKey tunnel.PrivateKey
	tunnel   *tunnel.Tunnel
	relay    *duplicator.Relay
	uplink   *netlab.Capture // the relay's
	homes    []*home
}

// home is a camera and a gateway. All homes have the same addresses inside.
type home struct {
	l               *lab
	n               int
	camera, gateway *netlab.Namespace
	key             tunnel.PrivateKey
	inside          netip.Addr
	tunnel          *tunnel.Tunnel
	forward         *duplicator.Forward
	uplink          *netlab.Capture
}

func newLab(t *testing.T, homes int) *lab {
	t.Helper()
	l := newNetwork(t, netlab.Current(t, "relay"), homes)
	l.startRelay()
	for _, h := range l.homes {
		h.start()
	}
	return l
}

// newNetwork has nobody running in it.
func newNetwork(t *testing.T, relay *netlab.Namespace, homes int) *lab {
	t.Helper()
	l := &lab{t: t, internet: netlab.New(t, "internet"), relayNS: relay}
	l.internet.Sysctl("net.ipv4.ip_forward", "1")
	netlab.Connect(l.relayNS, "wan0", l.internet, "relay0")
	l.relayNS.Address("wan0", relayAddr+"/30")
	l.internet.Address("relay0", "198.18.0.2/30")
	l.relayNS.Route("0.0.0.0/0", "198.18.0.2")
	l.uplink = l.internet.Capture("relay0")
	l.relayKey = l.newKey()
	for n := range homes {
		l.homes = append(l.homes, l.newHome(n))
	}
	return l
}

func (l *lab) newKey() tunnel.PrivateKey {
	l.t.Helper()
	return l.loadKey(filepath.Join(l.t.TempDir(), "tunnel.key"))
}

func (l *lab) loadKey(path string) tunnel.PrivateKey {
	l.t.Helper()
	key, err := tunnel.LoadKey(path)
	require.NoError(l.t, err)
	return key
}

func (l *lab) keyOf(path string) models.TunnelKey { return l.loadKey(path).Public() }

func (l *lab) newHome(n int) *home {
	h := &home{
		l: l, n: n, camera: netlab.New(l.t, fmt.Sprintf("camera%d", n)), gateway: netlab.New(l.t, fmt.Sprintf("gateway%d", n)),
		key: l.newKey(), inside: inside(0, n+1),
	}
	netlab.Connect(h.camera, "cam0", h.gateway, "lan0")
	h.camera.Address("cam0", cameraAddr.String()+"/24")
	h.gateway.Address("lan0", "172.16.0.1/24")
	netlab.Connect(h.gateway, "wan0", l.internet, fmt.Sprintf("home%d", n))
	h.gateway.Address("wan0", fmt.Sprintf("198.18.%d.1/30", n+1))
	l.internet.Address(fmt.Sprintf("home%d", n), fmt.Sprintf("198.18.%d.2/30", n+1))
	h.gateway.Route("0.0.0.0/0", fmt.Sprintf("198.18.%d.2", n+1))
	// The lab's gateway has no agent that answers ARP.
	h.camera.Neighbour("cam0", groupIP.String(), h.gateway.HardwareAddr("lan0"))
	h.uplink = l.internet.Capture(fmt.Sprintf("home%d", n))
	return h
}

// spokeFirst tells whether the relay began a handshake since then. It can't unless it knows where the peer is; else it waits to be spoken to, which takes WireGuard
// at a gateway 15 seconds after the relay's end.
func (l *lab) spokeFirst(since time.Time) bool {
	const initiation = 1
	for _, f := range l.uplink.Frames() {
		if p := f.IPv4(); p != nil && !f.Outgoing && p[9] == 17 && f.At.After(since) {
			if udp := p[int(p[0]&15)*4:]; len(udp) > 8 && udp[8] == initiation {
				return true
			}
		}
	}
	return false
}

func (l *lab) log() *slog.Logger { return slog.New(slog.NewTextHandler(testLog{l.t}, nil)) }

// testLog writes a log as that of the test.
type testLog struct{ t *testing.T }

func (w testLog) Write(b []byte) (int, error) {
	w.t.Logf("%s", b)
	return len(b), nil
}

func (l *lab) startRelay() {
	l.t.Helper()
	l.relayNS.Do(func() {
		var err error
		l.tunnel, err = tunnel.Open(tunnel.Config{Name: "gcrelay", Key: l.relayKey, Port: tunnelPort, Address: relayInside, Log: l.log()})
		require.NoError(l.t, err)
		l.relay, err = duplicator.OpenRelay(duplicator.Config{Uplink: netip.MustParseAddr(relayAddr), Log: l.log()}, l.tunnel)
		require.NoError(l.t, err)
	})
	stop := sync.OnceFunc(l.stopRelay)
	l.t.Cleanup(stop)
	var peers []tunnel.Peer
	for _, h := range l.homes {
		peers = append(peers, tunnel.Peer{Key: h.key.Public(), Address: h.inside})
	}
	require.NoError(l.t, l.tunnel.Apply(peers))
}

func (l *lab) stopRelay() {
	l.relayNS.Do(func() {
		_ = l.relay.Close()
		_ = l.tunnel.Close()
	})
}

func (h *home) start() {
	t := h.l.t
	t.Helper()
	h.open()
	require.NoError(t, h.tunnel.Apply([]tunnel.Peer{h.relayPeer()}))
	h.until("handshake", func() bool {
		all, err := h.tunnel.Status()
		require.NoError(t, err)
		return !all[h.l.relayKey.Public()].Handshake.IsZero()
	})
}

// relayPeer is the relay as a home knows it.
func (h *home) relayPeer() tunnel.Peer {
	return tunnel.Peer{Key: h.l.relayKey.Public(), Address: relayInside, Endpoint: netip.AddrPortFrom(netip.MustParseAddr(relayAddr), tunnelPort)}
}

// open brings the home's end up, without a peer.
func (h *home) open() {
	t := h.l.t
	t.Helper()
	h.gateway.Do(func() {
		var err error
		h.tunnel, err = tunnel.Open(tunnel.Config{Name: "gchome", Key: h.key, Address: h.inside, Log: h.l.log()})
		require.NoError(t, err)
		h.forward, err = duplicator.OpenForward(duplicator.Config{
			GroupRange: groupRange, Uplink: netip.MustParseAddr(fmt.Sprintf("198.18.%d.1", h.n+1)), Ports: []uint16{mediaPort}, Log: h.l.log(),
		}, "lan0", h.tunnel)
		require.NoError(t, err)
	})
	t.Cleanup(func() {
		h.gateway.Do(func() {
			_ = h.forward.Close()
			_ = h.tunnel.Close()
		})
	})
}

// groups is a home's table with one group whose copies go to these addresses.
func (h *home) groups(to ...string) *table.Snapshot {
	g := &table.Group{
		ID: fmt.Sprintf("g_%d", h.n), Name: "groupcast1", IP: groupIP, Generation: 1,
		Sources: []table.Source{{ID: fmt.Sprintf("r_camera%d", h.n), Addr: cameraAddr, Trigger: table.TriggerOption}},
	}
	for i, a := range to {
		g.Destinations = append(g.Destinations, table.Destination{ID: fmt.Sprintf("r_%d_%d", h.n, i), Addr: netip.MustParseAddr(a)})
	}
	return &table.Snapshot{Version: "e.1", ValidUntil: time.Now().Add(time.Hour), Groups: map[netip.Addr]*table.Group{groupIP: g}}
}

// send puts packets on the camera's wire.
func (h *home) send(packets ...[]byte) {
	header := slices.Concat(h.gateway.HardwareAddr("lan0"), h.camera.HardwareAddr("cam0"), []byte{8, 0})
	var frames [][]byte
	for _, p := range packets {
		frames = append(frames, slices.Concat(header, p))
	}
	h.camera.InjectFrame("cam0", frames...)
}

func (h *home) until(what string, is func() bool) { h.l.until(what, is) }

func (l *lab) until(what string, is func() bool) {
	l.t.Helper()
	for end := time.Now().Add(time.Minute); !is(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			l.t.Fatalf("not after a minute: %s", what)
		}
	}
}

// receiver is a destination at an address of its own.
type receiver struct {
	t    *testing.T
	conn *net.UDPConn
	from string // of the newest datagram
}

func (l *lab) receiver(address string) *receiver {
	l.t.Helper()
	l.internet.Address("lo", address+"/32")
	return &receiver{t: l.t, conn: l.internet.ListenUDP(fmt.Sprintf("%s:%d", address, mediaPort))}
}

// next is the next datagram's payload.
func (r *receiver) next() string {
	r.t.Helper()
	require.NoError(r.t, r.conn.SetReadDeadline(time.Now().Add(time.Minute)))
	b := make([]byte, 1<<16)
	n, _, err := r.conn.ReadFrom(b)
	require.NoError(r.t, err)
	return string(b[:n])
}

// poll is the next datagram's payload, "" if none comes soon.
func (r *receiver) poll() string {
	r.t.Helper()
	require.NoError(r.t, r.conn.SetReadDeadline(time.Now().Add(300*time.Millisecond)))
	b := make([]byte, 1<<16)
	n, err := r.conn.Read(b)
	if err != nil {
		return ""
	}
	return string(b[:n])
}

// tryNext is the newest datagram's payload, "" if none comes soon.
func (r *receiver) tryNext() (payload string) {
	r.t.Helper()
	b := make([]byte, 1<<16)
	for wait := 100 * time.Millisecond; ; wait = time.Millisecond {
		require.NoError(r.t, r.conn.SetReadDeadline(time.Now().Add(wait)))
		n, from, err := r.conn.ReadFromUDPAddrPort(b)
		if err != nil {
			return payload
		}
		payload, r.from = string(b[:n]), from.Addr().Unmap().String()
	}
}

// nothing fails the test if something has come.
func (r *receiver) nothing() {
	r.t.Helper()
	require.NoError(r.t, r.conn.SetReadDeadline(time.Now().Add(time.Millisecond)))
	b := make([]byte, 1<<16)
	n, _, err := r.conn.ReadFrom(b)
	require.ErrorIs(r.t, err, os.ErrDeadlineExceeded, "%q", b[:min(n, 60)])
}

// datagram is an IPv4 packet with option 0x88 and the given address in it.
func datagram(id uint16, streamID netip.Addr, payload []byte) []byte {
	options := append([]byte{0x88, 6}, streamID.AsSlice()...)
	options = append(options, 0, 0)
	udp := binary.BigEndian.AppendUint16(nil, 4000)
	udp = binary.BigEndian.AppendUint16(udp, mediaPort)
	udp = binary.BigEndian.AppendUint16(udp, uint16(8+len(payload)))
	udp = append(append(udp, 0, 0), payload...)
	pseudo := slices.Concat(cameraAddr.AsSlice(), groupIP.AsSlice(), []byte{0, 17}, binary.BigEndian.AppendUint16(nil, uint16(len(udp))), udp)
	binary.BigEndian.PutUint16(udp[6:], ^sum(pseudo))
	b := make([]byte, 20, 28+len(udp))
	b[0], b[8], b[9] = 4<<4|7, 64, 17
	binary.BigEndian.PutUint16(b[2:], uint16(28+len(udp)))
	binary.BigEndian.PutUint16(b[4:], id)
	copy(b[12:], cameraAddr.AsSlice())
	copy(b[16:], groupIP.AsSlice())
	b = append(b, options...)
	binary.BigEndian.PutUint16(b[10:], ^sum(b))
	return append(b, udp...)
}

// fragments cuts a packet for an MTU of 1500, each with all options.
func fragments(whole []byte) [][]byte {
	const header, size = 28, 1472
	body := whole[header:]
	var all [][]byte
	for offset := 0; offset < len(body); offset += size {
		part := body[offset:min(offset+size, len(body))]
		b := slices.Concat(whole[:header], part)
		field := uint16(offset / 8)
		if offset+len(part) < len(body) {
			field |= 0x2000
		}
		binary.BigEndian.PutUint16(b[2:], uint16(len(b)))
		binary.BigEndian.PutUint16(b[6:], field)
		b[10], b[11] = 0, 0
		binary.BigEndian.PutUint16(b[10:], ^sum(b[:header]))
		all = append(all, b)
	}
	return all
}

func sum(b []byte) uint16 {
	var s uint32
	for i, v := range b {
		s += uint32(v) << (8 * (1 - i%2))
	}
	for s > 0xffff {
		s = s>>16 + s&0xffff
	}
	return uint16(s)
}
