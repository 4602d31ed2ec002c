package duplicator_test

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
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

// The tests of this file run the duplicator and the LAN guard as the gateway of the worked example (SPEC §3): the test's own
// process is the gateway's network namespace, camera and receivers are behind real interfaces.

var (
	homeCamera = netip.MustParseAddr("172.168.0.5")
	homeUplink = netip.MustParseAddr("203.0.113.1")
	groupcast1 = netip.MustParseAddr("172.168.0.233")
	groupcast2 = netip.MustParseAddr("172.168.0.235")
	streamID   = []byte{0x88, 6, 172, 168, 0, 5}
)

type home struct {
	netlab.Home
	d               *duplicator.Socket
	guard           *lan.Guard
	lanSide, uplink *netlab.Capture
}

func newHome(t *testing.T, mode packet.CopyOptions) home {
	t.Helper()
	h := home{Home: netlab.NewHome(t, netlab.Current(t, "gateway"))}
	groupRange := models.AddrRange{First: netip.MustParseAddr("172.168.0.230"), Last: netip.MustParseAddr("172.168.0.254")}
	h.d = open(t, duplicator.Config{GroupRange: groupRange, Uplink: homeUplink, CopyOptions: mode})
	guard, err := lan.Open("lan0", groupRange)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { guard.Close() })
	h.guard = guard
	h.lanSide, h.uplink = h.Camera.Capture("cam0"), h.WAN.Capture("ext0")
	h.apply(t, workedExample())
	return h
}

func (h home) apply(t *testing.T, s *table.Snapshot) {
	t.Helper()
	apply(t, h.d, s)
	if err := h.guard.Apply(s); err != nil {
		t.Fatal(err)
	}
}

// workedExample is table 600 of the source document: three destinations for groupcast1, one for groupcast2.
func workedExample() *table.Snapshot {
	source := []table.Source{{ID: "camera1", Addr: homeCamera, Trigger: table.TriggerOption}}
	to := func(id, addr string) table.Destination {
		return table.Destination{ID: id, Addr: netip.MustParseAddr(addr)}
	}
	return snapshot(
		&table.Group{ID: "1", Name: "groupcast1", IP: groupcast1, Generation: 1, Sources: source, Destinations: []table.Destination{
			to("phone", netlab.Phone), to("thumbnail", netlab.Thumbnail), to("upload", netlab.Upload),
		}},
		&table.Group{ID: "2", Name: "groupcast2", IP: groupcast2, Generation: 1, Sources: source, Destinations: []table.Destination{
			to("live", netlab.Live),
		}},
	)
}

func (h home) receiver(t *testing.T, addr string) receiver {
	t.Helper()
	return receiver{h.WAN.ListenUDP(netip.AddrPortFrom(netip.MustParseAddr(addr), mediaPort).String()), t}
}

// newCamera opens a camera's socket with the given IP options.
func (h home) newCamera(t *testing.T, options []byte) camera {
	t.Helper()
	c := camera{h.Camera.ListenUDP("172.168.0.5:0"), t}
	if options != nil {
		c.setOptions(options...)
	}
	return c
}

// The worked example, steps 6 and 8: one datagram, exactly three copies, byte for byte; then the thumbnail service leaves, and
// the very next copies are two.
func TestTheWorkedExampleOnTheWire(t *testing.T) {
	for _, mode := range []packet.CopyOptions{packet.Strip, packet.NOP} {
		t.Run(string(mode), func(t *testing.T) {
			netlab.Isolated(t, func(t *testing.T) {
				h := newHome(t, mode)
				upload, thumbnail, phone := h.receiver(t, netlab.Upload), h.receiver(t, netlab.Thumbnail), h.receiver(t, netlab.Phone)
				cam := h.newCamera(t, streamID)
				cam.send(groupcast1, "one frame of video")
				for _, r := range []receiver{upload, thumbnail, phone} {
					r.expect("one frame of video")
				}
				h.checkCopies(t, mode, netlab.Phone, netlab.Thumbnail, netlab.Upload)

				left := workedExample()
				g := left.Groups[groupcast1]
				g.Destinations = []table.Destination{g.Destinations[0], g.Destinations[2]}
				h.apply(t, left)
				cam.send(groupcast1, "the next frame")
				upload.expect("the next frame")
				phone.expect("the next frame")
				h.checkUplink(t, []string{netlab.Phone, netlab.Thumbnail, netlab.Upload, netlab.Phone, netlab.Upload})
			})
		})
	}
}

// checkCopies compares what is on the uplink with what the reference makes of the camera's datagram as it was on the LAN. The
// sender's kernel chooses identification and, with it, the header checksum; all else is compared byte for byte.
func (h home) checkCopies(t *testing.T, mode packet.CopyOptions, destinations ...string) {
	t.Helper()
	sent := ipv4Of(h.lanSide.Wait(wait, func(frames []netlab.Frame) bool { return len(ipv4Of(frames, true)) > 0 }), true)
	if len(sent) != 1 {
		t.Fatalf("the camera sent %d packets", len(sent))
	}
	if want := slices.Concat(streamID, []byte{0, 0}); !bytes.Equal(sent[0][20:28], want) {
		t.Fatalf("the camera's options are %x, want %x", sent[0][20:28], want)
	}
	original, err := packet.Parse(sent[0])
	if err != nil {
		t.Fatal(err)
	}
	copies := h.checkUplink(t, destinations)
	for i, got := range copies {
		if err := netlab.VerifyIPv4(got); err != nil {
			t.Errorf("copy for %s: %v", destinations[i], err)
		}
		header := int(got[0]&15) * 4
		want, err := original.AppendCopy(nil, packet.Rewrite{
			Source:      netip.AddrPortFrom(homeUplink, binary.BigEndian.Uint16(got[header:])),
			Destination: netip.AddrPortFrom(netip.MustParseAddr(destinations[i]), 0),
			Options:     mode.For(table.Source{Trigger: table.TriggerOption}),
		})
		if err != nil {
			t.Fatal(err)
		}
		if got, want := withoutID(got), withoutID(want); !bytes.Equal(got, want) {
			t.Errorf("copy for %s:\n%x, want\n%x", destinations[i], got, want)
		}
	}
}

// checkUplink fails unless the IPv4 packets on the uplink so far are from the uplink address to these addresses in this order.
func (h home) checkUplink(t *testing.T, destinations []string) [][]byte {
	t.Helper()
	packets := ipv4Of(h.uplink.Wait(wait, func(frames []netlab.Frame) bool {
		return len(ipv4Of(frames, false)) >= len(destinations)
	}), false)
	var got []string
	for _, p := range packets {
		got = append(got, addrAt(p, 16))
		if from := addrAt(p, 12); from != homeUplink.String() {
			t.Errorf("a packet from %s is on the uplink", from)
		}
	}
	if strings.Join(got, " ") != strings.Join(destinations, " ") {
		t.Fatalf("packets on the uplink go to %v, want %v", got, destinations)
	}
	return packets
}

// ipv4Of gives the IPv4 packets that were sent by, or received by, the namespace of the capture.
func ipv4Of(frames []netlab.Frame, outgoing bool) [][]byte {
	var packets [][]byte
	for _, f := range frames {
		if ip := f.IPv4(); ip != nil && f.Outgoing == outgoing {
			packets = append(packets, ip)
		}
	}
	return packets
}

func addrAt(ip []byte, offset int) string { return netip.AddrFrom4([4]byte(ip[offset:])).String() }

func withoutID(ip []byte) []byte {
	b := bytes.Clone(ip)
	copy(b[4:6], []byte{0, 0})
	copy(b[10:12], []byte{0, 0})
	return b
}

// Step 6, the other half: no option, copied bit 0, somebody else's address or somebody else's option make no copy, and
// nothing of them is on the uplink.
func TestWithoutTheOptionNothingLeaves(t *testing.T) {
	netlab.Isolated(t, func(t *testing.T) {
		h := newHome(t, packet.Strip)
		r := h.receiver(t, netlab.Upload)
		h.Camera.Address("cam0", "172.168.0.6/24")
		neighbour := camera{h.Camera.ListenUDP("172.168.0.6:0"), t}
		neighbour.setOptions(streamID...)
		for _, c := range []camera{
			h.newCamera(t, nil),
			h.newCamera(t, []byte{0x08, 6, 172, 168, 0, 5}),
			h.newCamera(t, []byte{0, 0, 0x88, 6, 172, 168, 0, 5}),
			h.newCamera(t, []byte{0x88, 6, 172, 168, 0, 6}),
			neighbour,
		} {
			c.send(groupcast1, "not for the world")
			_, _ = c.WriteToUDPAddrPort([]byte("not for the world"), netip.MustParseAddrPort("172.168.0.233:6000")) // no media port
			_, _ = c.WriteToUDPAddrPort([]byte("not for the world"), netip.MustParseAddrPort("172.168.0.240:5004")) // no group
		}
		h.newCamera(t, streamID).send(groupcast1, "video")
		r.expect("video")
		h.checkUplink(t, []string{netlab.Phone, netlab.Thumbnail, netlab.Upload})
		if c := h.d.Counters().Groups[groupcast1]; c.Received != 6 || c.Drops["unflagged"] != 3 || c.Drops["spoof"] != 2 {
			t.Errorf("%+v", c)
		}
	})
}

// Step 7: 4,000 bytes at MTU 1500 are three fragments with the option in each. Three receivers put their copies together.
func TestADatagramInThreeFragments(t *testing.T) {
	netlab.Isolated(t, func(t *testing.T) {
		h := newHome(t, packet.NOP)
		receivers := []receiver{h.receiver(t, netlab.Upload), h.receiver(t, netlab.Thumbnail), h.receiver(t, netlab.Phone)}
		cam := h.newCamera(t, streamID)
		payload := make([]byte, 4000)
		for i := range payload {
			payload[i] = byte(i * 7)
		}
		// Asks for the address first: the kernel queues only the last fragments of a datagram for a neighbour it doesn't know.
		cam.send(groupcast1, "hello")
		for _, r := range receivers {
			r.expect("hello")
		}
		cam.send(groupcast1, string(payload))
		for _, r := range receivers {
			r.expect(string(payload))
		}
		all := ipv4Of(h.lanSide.Wait(wait, func(frames []netlab.Frame) bool { return len(ipv4Of(frames, true)) >= 4 }), true)
		if len(all) != 4 {
			t.Fatalf("the camera sent %d packets, want one and three fragments", len(all))
		}
		for i, f := range all[1:] {
			if !bytes.Equal(f[20:26], streamID) || binary.BigEndian.Uint16(f[6:])&0x3fff == 0 {
				t.Errorf("fragment %d: header %x", i, f[:28])
			}
		}
	})
}

func TestTwoGroupsOnTheWireNeverSeeEachOther(t *testing.T) {
	netlab.Isolated(t, func(t *testing.T) {
		h := newHome(t, packet.Strip)
		live, upload := h.receiver(t, netlab.Live), h.receiver(t, netlab.Upload)
		cam := h.newCamera(t, streamID)
		var want []string
		for i := range 20 {
			cam.send(groupcast1, fmt.Sprint("first ", i))
			upload.expect(fmt.Sprint("first ", i))
			cam.send(groupcast2, fmt.Sprint("second ", i))
			live.expect(fmt.Sprint("second ", i))
			want = append(want, netlab.Phone, netlab.Thumbnail, netlab.Upload, netlab.Live)
		}
		for i, p := range h.checkUplink(t, want) {
			second := strings.Contains(string(p), "second")
			if toLive := addrAt(p, 16) == netlab.Live; second != toLive {
				t.Errorf("packet %d to %s carries %q", i, addrAt(p, 16), p[28:])
			}
		}
	})
}

// A destination that answers no ARP fills its own queue and nobody else's.
func TestADeadDestinationCostsTheLiveOnesNothing(t *testing.T) {
	netlab.Isolated(t, func(t *testing.T) {
		const datagrams = 5000
		h := newHome(t, packet.Strip)
		// What waits for ARP fills the socket's buffer before the kernel's queue for the neighbour is full.
		h.Gateway.Sysctl("net.ipv4.neigh.wan0.unres_qlen_bytes", "8000000")
		s := workedExample()
		g := s.Groups[groupcast1]
		for _, last := range []string{"77", "78"} {
			dead := table.Destination{ID: "dead " + last, Addr: netip.MustParseAddr("203.0.113." + last)}
			g.Destinations = append([]table.Destination{dead}, g.Destinations...)
		}
		h.apply(t, s)
		live := map[string]receiver{
			"upload": h.receiver(t, netlab.Upload), "thumbnail": h.receiver(t, netlab.Thumbnail), "phone": h.receiver(t, netlab.Phone),
		}
		cam := h.newCamera(t, streamID)
		payload := strings.Repeat("x", 1190)
		for i := range datagrams {
			cam.send(groupcast1, fmt.Sprintf("%06d%s", i, payload))
			if i%100 == 99 { // keeps within the receive buffers
				until(t, "judged", func() bool { return h.d.Counters().Groups[groupcast1].Received == uint64(i+1) })
			}
		}
		for _, r := range live {
			for i := range datagrams {
				r.expect(fmt.Sprintf("%06d%s", i, payload))
			}
		}
		counters := h.d.Counters()
		for id := range live {
			if c := counters.Destinations[id]; c.Packets != datagrams || len(c.Drops) != 0 {
				t.Errorf("%s: %+v", id, c)
			}
		}
		for _, id := range []string{"dead 77", "dead 78"} {
			if c := counters.Destinations[id]; c.Drops[duplicator.DropFull] == 0 {
				t.Errorf("%s dropped nothing (%+v): the test shows nothing", id, c)
			}
		}
	})
}

// An IPv6 destination gets the same payload over IPv6, with one hop less, from one port that stays.
func TestIPv6Destination(t *testing.T) {
	netlab.Isolated(t, func(t *testing.T) {
		h := newHome(t, packet.NOP)
		h.Gateway.Address("wan0", "2001:db8:1::1/64")
		h.WAN.Address("ext0", "2001:db8:1::2/64")
		s := workedExample()
		g := s.Groups[groupcast1]
		g.Destinations = append(g.Destinations, table.Destination{ID: "six", Addr: netip.MustParseAddr("2001:db8:1::2"), Port: 6000})
		h.apply(t, s)
		four := h.receiver(t, netlab.Upload)
		six := receiver{h.WAN.ListenUDP("[2001:db8:1::2]:6000"), t}
		control(t, six, func(fd int) error { return unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_RECVHOPLIMIT, 1) })
		cam := h.newCamera(t, streamID)

		var port uint16
		for i, payload := range []string{"video", "", strings.Repeat("more than a packet ", 100)} {
			cam.send(groupcast1, payload)
			four.expect(payload)
			buf, oob := make([]byte, 4000), make([]byte, 100)
			_ = six.SetReadDeadline(time.Now().Add(wait))
			n, oobn, _, from, err := six.ReadMsgUDPAddrPort(buf, oob)
			if err != nil || string(buf[:n]) != payload {
				t.Fatalf("received %q, %v, want %q", buf[:n], err, payload)
			}
			if from.Addr() != netip.MustParseAddr("2001:db8:1::1") || i > 0 && from.Port() != port {
				t.Errorf("from %s, port before %d", from, port)
			}
			port = from.Port()
			messages, err := unix.ParseSocketControlMessage(oob[:oobn])
			if err != nil || len(messages) != 1 || messages[0].Data[0] != 63 {
				t.Errorf("hop limit in %v, %v; want 63", messages, err)
			}
		}
	})
}

// Receivers in the home get their copies on the LAN, from the uplink address like everybody.
func TestAReceiverOnTheLAN(t *testing.T) {
	netlab.Isolated(t, func(t *testing.T) {
		h := newHome(t, packet.Strip)
		h.Camera.Address("cam0", "172.168.0.9/24")
		s := workedExample()
		s.Groups[groupcast1].Destinations = []table.Destination{{ID: "tablet", Addr: netip.MustParseAddr("172.168.0.9")}}
		h.apply(t, s)
		tablet := receiver{h.Camera.ListenUDP("172.168.0.9:5004"), t}
		h.newCamera(t, streamID).send(groupcast1, "video")
		if from := tablet.expect("video"); from.Addr() != homeUplink {
			t.Errorf("from %s", from)
		}
		h.checkUplink(t, nil)
	})
}

// The gateway's own addresses and the broadcast addresses of its networks are known from its interfaces.
func TestTheGatewayItselfGetsNothing(t *testing.T) {
	netlab.Isolated(t, func(t *testing.T) {
		h := newHome(t, packet.Strip)
		s := workedExample()
		g := s.Groups[groupcast1]
		for _, a := range []string{"172.168.0.1", "203.0.113.1", "172.168.0.255", "203.0.113.255", "172.168.0.235", "127.0.0.1"} {
			g.Destinations = append(g.Destinations, table.Destination{ID: a, Addr: netip.MustParseAddr(a)})
		}
		own, err := net.ListenPacket("udp4", "172.168.0.1:5004")
		if err != nil {
			t.Fatal(err)
		}
		defer own.Close()
		h.apply(t, s)
		upload := h.receiver(t, netlab.Upload)
		h.newCamera(t, streamID).send(groupcast1, "video")
		upload.expect("video")
		h.checkUplink(t, []string{netlab.Phone, netlab.Thumbnail, netlab.Upload})
		if c := h.d.Counters(); c.Refused != 6 || c.Groups[groupcast2].Received != 0 {
			t.Errorf("%+v", c)
		}
	})
}
