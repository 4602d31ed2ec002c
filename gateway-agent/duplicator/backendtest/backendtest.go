// Package backendtest is the suite that every backend of the duplicator passes, at home and in the network. Each case runs a backend and the LAN guard as
// the gateway of the worked example (SPEC §3) in network namespaces of its own, or a gateway that forwards and a relay that copies; what has to arrive is what package packet makes of
// the datagram, never what another backend did.
package backendtest

import (
	"net"
	"net/netip"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/groupcast/groupcast/e2e/netlab"
	"github.com/groupcast/groupcast/gateway-agent/duplicator"
	"github.com/groupcast/groupcast/gateway-agent/lan"
	"github.com/groupcast/groupcast/gateway-agent/packet"
	"github.com/groupcast/groupcast/gateway-agent/table"
	"github.com/groupcast/groupcast/models"
)

// LAN is the interface of the gateway that the cameras of the suite are on.
const LAN = "lan0"

// Backend is one implementation under test.
type Backend struct {
	// Open opens it. The suite closes it.
	Open func(t *testing.T, c duplicator.Config) duplicator.Duplicator
	// PacketByPacket says that it copies IP packets and not datagrams: identification, type of service, don't-fragment bit and
	// fragment boundaries are the camera's.
	PacketByPacket bool
	// OpenRelay opens what copies in the network instead of Open, and the suite runs with a relay in the middle; see relay.go.
	OpenRelay func(t *testing.T, c duplicator.Config, inside duplicator.Inside) Relay
	// Reserved gives every source a port of its own, as agents do: copies of all its streams leave from there.
	Reserved bool
	// Entries counts what it holds in the kernel's maps; nil if it has none.
	Entries func(duplicator.Duplicator) map[string]int
}

// Run runs every case against the backend, each in a process and network of its own, and beside others: most of the time they wait for
// the kernel. Those that send at a pace run alone.
func Run(t *testing.T, b Backend) {
	for _, c := range cases {
		if b.OpenRelay != nil && c.atHome != "" || b.OpenRelay == nil && c.inNetwork {
			continue
		}
		if b.Reserved && c.unreserved != "" {
			continue
		}
		t.Run(c.name, func(t *testing.T) {
			if !c.paced {
				t.Parallel()
			}
			netlab.Isolated(t, func(t *testing.T) { c.run(t, b) })
		})
	}
}

// Cases gives the names of the cases that Run runs.
func Cases() (names []string) {
	for _, c := range cases {
		names = append(names, c.name)
	}
	return names
}

const (
	wait      = time.Minute // nothing takes as long unless the test fails
	mediaPort = 5004
)

// Addresses of the worked example.
var (
	Camera     = netip.MustParseAddr("172.168.0.5")
	Neighbour  = netip.MustParseAddr("172.168.0.6") // another host on the LAN
	Uplink     = netip.MustParseAddr("203.0.113.1")
	Groupcast1 = netip.MustParseAddr("172.168.0.233")
	Groupcast2 = netip.MustParseAddr("172.168.0.235")
	GroupRange = models.AddrRange{First: netip.MustParseAddr("172.168.0.230"), Last: netip.MustParseAddr("172.168.0.254")}
)

// StreamID is the option 0x88 of the worked example's camera.
var StreamID = []byte{0x88, 6, 172, 168, 0, 5}

// Home is the worked example with a backend at work in the test's own process, which is the gateway, or the relay if one copies.
type Home struct {
	netlab.Home
	Duplicator   duplicator.Duplicator
	Inside, Wide *netlab.Capture // the camera's interface, and the far end of the uplink

	t        *testing.T
	backend  Backend
	config   duplicator.Config
	relayed  *relayed // what Duplicator is if a relay copies; else nil
	guard    *lan.Guard
	snapshot *table.Snapshot
	lanMAC   net.HardwareAddr
	cameraIf net.HardwareAddr
}

// NewHome builds the network and has the backend serve the snapshot; nil stands for the worked example.
func NewHome(t *testing.T, b Backend, mode packet.CopyOptions, s *table.Snapshot) *Home {
	t.Helper()
	h := newHome(t, b, duplicator.Config{CopyOptions: mode})
	h.Inside, h.Wide = h.Home.Camera.Capture("cam0"), h.WAN.Capture("ext0")
	if s == nil {
		s = WorkedExample()
	}
	h.Apply(s)
	return h
}

// newHome builds the network with a backend that serves nothing yet, and captures nothing.
func newHome(t *testing.T, b Backend, c duplicator.Config) *Home {
	t.Helper()
	h := &Home{t: t, backend: b, config: c}
	h.config.GroupRange, h.config.Uplink = GroupRange, Uplink
	if b.OpenRelay != nil {
		h.Home = netlab.NewRelayedHome(t, netlab.Current(t, "relay"))
		h.relayed = openRelayed(t, h.Home, b, h.config)
		h.Duplicator = h.relayed
	} else {
		h.Home = netlab.NewHome(t, netlab.Current(t, "gateway"))
		h.Duplicator = b.Open(t, h.config)
	}
	t.Cleanup(func() { h.Duplicator.Close() })
	h.Home.Camera.Address("cam0", Neighbour.String()+"/24")
	h.lanMAC, h.cameraIf = h.Gateway.HardwareAddr(LAN), h.Home.Camera.HardwareAddr("cam0")
	var err error
	h.Gateway.Do(func() { h.guard, err = lan.Open(LAN, GroupRange) })
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { h.guard.Close() })
	return h
}

// Apply puts a snapshot into force.
func (h *Home) Apply(s *table.Snapshot) {
	h.t.Helper()
	if err := h.Duplicator.Apply(s); err != nil {
		h.t.Fatal(err)
	}
	if err := h.guard.Apply(s); err != nil {
		h.t.Fatal(err)
	}
	h.snapshot = s
}

// WorkedExample is table 600 of the source document: three destinations for groupcast1, one for groupcast2.
func WorkedExample() *table.Snapshot {
	return Snapshot(
		[]table.Destination{To("phone", netlab.Phone), To("thumbnail", netlab.Thumbnail), To("upload", netlab.Upload)},
		[]table.Destination{To("live", netlab.Live)},
	)
}

// Snapshot gives groupcast1 and, if there are two lists, groupcast2 these destinations, and both the one camera.
func Snapshot(destinations ...[]table.Destination) *table.Snapshot {
	s := &table.Snapshot{ValidUntil: time.Now().Add(time.Minute), Groups: map[netip.Addr]*table.Group{}}
	for i, d := range destinations {
		ip := []netip.Addr{Groupcast1, Groupcast2}[i]
		s.Groups[ip] = &table.Group{
			ID: ip.String(), Name: ip.String(), IP: ip, Generation: 1, Destinations: d,
			Sources: []table.Source{{ID: "camera", Addr: Camera, Trigger: table.TriggerOption}},
		}
	}
	return s
}

// To is a destination without a port of its own.
func To(id, addr string) table.Destination {
	return table.Destination{ID: id, Addr: netip.MustParseAddr(addr)}
}

// withTrigger sets the trigger of every source.
func withTrigger(s *table.Snapshot, trigger table.Trigger) *table.Snapshot {
	for _, g := range s.Groups {
		for i := range g.Sources {
			g.Sources[i].Trigger = trigger
		}
	}
	return s
}

// Receiver opens the socket of a destination.
func (h *Home) Receiver(addr string) *net.UDPConn {
	h.t.Helper()
	return h.WAN.ListenUDP(netip.AddrPortFrom(netip.MustParseAddr(addr), mediaPort).String())
}

// expect fails unless the next datagram at the socket is that one.
func (h *Home) expect(c *net.UDPConn, payload string) netip.AddrPort {
	h.t.Helper()
	buf := make([]byte, 1<<16)
	_ = c.SetReadDeadline(time.Now().Add(wait))
	n, from, err := c.ReadFromUDPAddrPort(buf)
	if err != nil {
		h.t.Fatalf("receive at %s: %v; counters: %+v", c.LocalAddr(), err, h.Duplicator.Counters())
	}
	if got := string(buf[:n]); got != payload {
		h.t.Fatalf("received %.40q (%d bytes), want %.40q (%d bytes)", got, n, payload, len(payload))
	}
	return from
}

// Sender opens a camera's socket with the given IP options.
func (h *Home) Sender(from netip.Addr, options []byte) *net.UDPConn {
	h.t.Helper()
	c := h.Home.Camera.ListenUDP(netip.AddrPortFrom(from, 0).String())
	if options != nil {
		h.control(c, func(fd int) error {
			return unix.SetsockoptString(fd, unix.IPPROTO_IP, unix.IP_OPTIONS, string(options))
		})
	}
	return c
}

func (h *Home) send(c *net.UDPConn, to netip.Addr, payload string) {
	h.t.Helper()
	if _, err := c.WriteToUDPAddrPort([]byte(payload), netip.AddrPortFrom(to, mediaPort)); err != nil {
		h.t.Fatal(err)
	}
}

func (h *Home) control(c syscall.Conn, f func(fd int) error) {
	h.t.Helper()
	raw, err := c.SyscallConn()
	if err != nil {
		h.t.Fatal(err)
	}
	var callErr error
	if err := raw.Control(func(fd uintptr) { callErr = f(int(fd)) }); err != nil || callErr != nil {
		h.t.Fatal(err, callErr)
	}
}

// until waits for a condition.
func (h *Home) until(what string, condition func() bool) {
	h.t.Helper()
	for end := time.Now().Add(wait); !condition(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			if h.relayed != nil {
				h.t.Log(h.relayed)
			}
			h.t.Fatalf("not within %s: %s; counters: %+v", wait, what, h.Duplicator.Counters())
		}
	}
}
