package lan_test

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/groupcast/groupcast/e2e/netlab"
	"github.com/groupcast/groupcast/gateway-agent/lan"
	"github.com/groupcast/groupcast/gateway-agent/table"
	"github.com/groupcast/groupcast/models"
)

const wait = time.Minute

var (
	homeRange = addrRange("172.168.0.230", "172.168.0.254")
	// elsewhere is no network of the gateway: without the guard its datagrams take the default route, to the uplink.
	elsewhere = addrRange("198.18.9.230", "198.18.9.254")
)

func addrRange(first, last string) models.AddrRange {
	return models.AddrRange{First: netip.MustParseAddr(first), Last: netip.MustParseAddr(last)}
}

func snapshot(groupIPs ...string) *table.Snapshot {
	s := &table.Snapshot{Groups: map[netip.Addr]*table.Group{}}
	for _, ip := range groupIPs {
		a := netip.MustParseAddr(ip)
		s.Groups[a] = &table.Group{ID: ip, IP: a}
	}
	return s
}

// home is the worked example's network with the test's own process as the gateway, and captures at both ends.
type home struct {
	netlab.Home
	lanSide, uplink *netlab.Capture // what the camera and the host on the uplink see
}

func newHome(t *testing.T) home {
	h := home{Home: netlab.NewHome(t, netlab.Current(t, "gateway"))}
	h.lanSide, h.uplink = h.Camera.Capture("cam0"), h.WAN.Capture("ext0")
	return h
}

func open(t *testing.T, r models.AddrRange) *lan.Guard {
	t.Helper()
	g, err := lan.Open("lan0", r)
	if err != nil {
		t.Fatal(err)
	}
	return g
}

func apply(t *testing.T, g *lan.Guard, groupIPs ...string) {
	t.Helper()
	if err := g.Apply(snapshot(groupIPs...)); err != nil {
		t.Fatal(err)
	}
}

// answered asks by ARP for each address and tells which were answered. The gateway's own address is asked for last: its
// answer shows that the others had their chance.
func (h home) answered(t *testing.T, addrs ...string) string {
	t.Helper()
	return answeredAt(t, h.Camera, "cam0", h.lanSide, "172.168.0.5", "172.168.0.1", addrs)
}

func answeredAt(t *testing.T, asker *netlab.Namespace, iface string, capture *netlab.Capture, own, gateway string, addrs []string) string {
	t.Helper()
	seen := len(capture.Frames())
	for _, a := range append(addrs, gateway) {
		asker.InjectFrame(iface, arpRequest(asker.HardwareAddr(iface), netip.MustParseAddr(own), netip.MustParseAddr(a)))
	}
	var got []string
	capture.Wait(wait, func(frames []netlab.Frame) bool {
		got = nil
		for _, f := range frames[seen:] {
			if arp := f.ARP(); arp != nil && binary.BigEndian.Uint16(arp[6:]) == 2 {
				got = append(got, netip.AddrFrom4([4]byte(arp[14:18])).String())
			}
		}
		return len(got) > 0 && got[len(got)-1] == gateway
	})
	return strings.Join(got[:len(got)-1], " ")
}

func arpRequest(mac net.HardwareAddr, own, target netip.Addr) []byte {
	return slices.Concat([]byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}, mac, []byte{8, 6, 0, 1, 8, 0, 6, 4, 0, 1},
		mac, own.AsSlice(), []byte{0, 0, 0, 0, 0, 0}, target.AsSlice())
}

// datagram is a UDP datagram from the camera with no checksum.
func datagram(to string, payload string) []byte {
	b := []byte{0x45, 0, 0, byte(28 + len(payload)), 0, 0, 0, 0, 64, 17, 0, 0, 172, 168, 0, 5}
	b = append(b, netip.MustParseAddr(to).AsSlice()...)
	b = append(b, 0x0f, 0xa0, 0x13, 0x8c, 0, byte(8+len(payload)), 0, 0)
	return append(b, payload...)
}

// onUplink sends an ordinary datagram after whatever the test sent, waits until it is on the uplink, and tells to which
// addresses datagrams had left by then.
func (h home) onUplink(t *testing.T) string {
	t.Helper()
	seen := len(h.uplink.Frames())
	h.Camera.InjectIPv4(datagram("192.0.2.9", "ordinary"))
	isLast := func(f netlab.Frame) bool { return strings.HasSuffix(string(f.IPv4()), "ordinary") }
	frames := h.uplink.Wait(wait, func(frames []netlab.Frame) bool {
		return slices.ContainsFunc(frames[seen:], isLast)
	})
	var got []string
	for _, f := range frames {
		if ip := f.IPv4(); ip != nil && !isLast(f) {
			got = append(got, netip.AddrFrom4([4]byte(ip[16:20])).String())
		}
	}
	return strings.Join(got, " ")
}

func TestARPIsAnsweredForAllocatedGroupIPsOnly(t *testing.T) {
	t.Parallel()
	netlab.Isolated(t, func(t *testing.T) {
		h := newHome(t)
		ask := []string{"172.168.0.233", "172.168.0.235", "172.168.0.240", "172.168.0.254", "172.168.0.7"}
		check := func(when, want string) {
			t.Helper()
			if got := h.answered(t, ask...); got != want {
				t.Errorf("%s: answered for %q, want %q", when, got, want)
			}
		}
		check("without a guard", "")
		g := open(t, homeRange)
		check("before any group information", "")
		apply(t, g, "172.168.0.233", "172.168.0.235")
		check("two groups", "172.168.0.233 172.168.0.235")
		if got := answeredAt(t, h.WAN, "ext0", h.uplink, "203.0.113.254", "203.0.113.1", ask); got != "" {
			t.Errorf("answered on the uplink: %q", got)
		}
		apply(t, g, "172.168.0.235", "172.168.0.254")
		check("one left, one came", "172.168.0.235 172.168.0.254")
		if err := g.Apply(nil); err != nil {
			t.Error(err)
		}
		check("no groups", "")
		apply(t, g, "172.168.0.233")
		if err := g.Close(); err != nil {
			t.Error(err)
		}
		check("after a clean stop", "")
	})
}

// The camera has no static route and no static neighbour: it asks, gets the gateway's answer, and its datagram arrives.
func TestDatagramsToAGroupIPArrive(t *testing.T) {
	t.Parallel()
	netlab.Isolated(t, func(t *testing.T) {
		h := newHome(t)
		g := open(t, homeRange)
		apply(t, g, "172.168.0.233")
		receiver := listenAt(t, "172.168.0.233:5004")
		camera := h.Camera.ListenUDP("172.168.0.5:40000")
		if _, err := camera.WriteToUDPAddrPort([]byte("video"), netip.MustParseAddrPort("172.168.0.233:5004")); err != nil {
			t.Fatal(err)
		}
		buf := make([]byte, 100)
		_ = receiver.SetReadDeadline(time.Now().Add(wait))
		n, from, err := receiver.ReadFrom(buf)
		if err != nil || string(buf[:n]) != "video" || from.String() != "172.168.0.5:40000" {
			t.Fatalf("received %q from %v, %v", buf[:n], from, err)
		}
		if got := h.onUplink(t); got != "" {
			t.Errorf("on the uplink: %s", got)
		}
	})
}

// listenAt binds an address that no interface has.
func listenAt(t *testing.T, at string) net.PacketConn {
	t.Helper()
	config := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error {
		var err error
		return errors.Join(c.Control(func(fd uintptr) {
			err = unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_FREEBIND, 1)
		}), err)
	}}
	conn, err := config.ListenPacket(context.Background(), "udp4", at)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return conn
}

// Whatever is sent to the range, by whomever, stays inside: allocated or not, with an agent or after one.
func TestTheGroupRangeNeverLeavesTheUplink(t *testing.T) {
	t.Parallel()
	netlab.Isolated(t, func(t *testing.T) {
		h := newHome(t)
		sendAll := func() {
			t.Helper()
			for last := 229; last <= 255; last++ {
				h.Camera.InjectIPv4(datagram(fmt.Sprintf("198.18.9.%d", last), "to the range"))
			}
			own, err := net.ListenPacket("udp4", "203.0.113.1:0")
			if err != nil {
				t.Fatal(err)
			}
			defer own.Close()
			for last := 230; last <= 254; last++ {
				_, _ = own.WriteTo([]byte("from the gateway"), &net.UDPAddr{IP: net.IPv4(198, 18, 9, byte(last)), Port: 5004})
			}
		}
		// Its neighbours outside the range are the default route's business, and show that the datagrams were sent.
		want := "198.18.9.229 198.18.9.255"
		check := func(when string) {
			t.Helper()
			before := h.onUplink(t)
			sendAll()
			if got := strings.TrimSpace(strings.TrimPrefix(h.onUplink(t), before)); got != want {
				t.Errorf("%s: on the uplink: %s, want %s", when, got, want)
			}
		}
		for range 2 {
			if err := lan.Block(elsewhere); err != nil {
				t.Fatal(err)
			}
		}
		check("before an agent ran")
		g := open(t, elsewhere)
		check("nothing allocated")
		if err := lan.Block(elsewhere); err != nil {
			t.Fatal(err)
		}
		apply(t, g, "198.18.9.233")
		check("one allocated")
		if err := g.Close(); err != nil {
			t.Error(err)
		}
		check("after a clean stop")
		apply(t, open(t, elsewhere), "198.18.9.233")
		check("after a crash") // the second guard is never closed; its agent is as good as dead
	})
}

func TestASecondAgentStartsFromWhatIsWantedNow(t *testing.T) {
	t.Parallel()
	netlab.Isolated(t, func(t *testing.T) {
		h := newHome(t)
		rules := func() string { return h.Gateway.Run("ip", "-4", "rule", "show") }
		untouched := rules()
		apply(t, open(t, elsewhere), "198.18.9.233") // killed: never closed
		h.Gateway.Run("ip", "route", "add", "local", "172.168.0.240/32", "dev", "lo", "table", "147", "proto", "static")

		g := open(t, homeRange)
		if got := rules(); strings.Contains(got, "198.18.9") || strings.Count(got, "lookup 147") != 1 {
			t.Errorf("rules of the dead agent are left:\n%s", got)
		}
		if got := h.Gateway.Run("ip", "route", "show", "table", "147"); strings.Contains(got, "198.18.9") {
			t.Errorf("routes of the dead agent are left:\n%s", got)
		}
		apply(t, g, "172.168.0.233")
		if got := h.Gateway.Run("ip", "route", "show", "table", "147"); !strings.Contains(got, "172.168.0.240") {
			t.Errorf("a route of somebody else is gone:\n%s", got)
		}
		once := rules()
		if err := g.Close(); err != nil {
			t.Error(err)
		}
		g = open(t, homeRange)
		defer g.Close()
		if got := rules(); got != once {
			t.Errorf("opened twice:\n%s, opened once:\n%s", got, once)
		}
		h.Gateway.Run("ip", "rule", "add", "pref", "148", "to", "192.0.2.0/24", "unreachable") // somebody else's
		if err := lan.Unblock(); err != nil {
			t.Error(err)
		}
		h.Gateway.Run("ip", "rule", "del", "pref", "148") // fails if it's gone, and takes one of ours if that is left
		if got := rules(); got != untouched {
			t.Errorf("after uninstalling:\n%s, before:\n%s", got, untouched)
		}
	})
}

// Under these settings the kernel answers no ARP for a group IP. Open says so instead of leaving a silent LAN.
func TestSettingsThatHideGroupIPsAreRefused(t *testing.T) {
	t.Parallel()
	netlab.Isolated(t, func(t *testing.T) {
		h := newHome(t)
		g := open(t, homeRange)
		defer g.Close()
		apply(t, g, "172.168.0.233")
		for _, key := range []string{"all.arp_ignore", "lan0.arp_ignore", "all.arp_filter", "lan0.arp_filter"} {
			h.Gateway.Sysctl("net.ipv4.conf."+key, "1")
			if got := h.answered(t, "172.168.0.233"); got != "" {
				t.Errorf("%s: the kernel answers after all; the check is wrong", key)
			}
			_, err := lan.Open("lan0", homeRange)
			if path := strings.ReplaceAll(key, ".", "/"); err == nil || !strings.Contains(err.Error(), path+" is 1; set it to 0") {
				t.Errorf("%s: %v", key, err)
			}
			h.Gateway.Sysctl("net.ipv4.conf."+key, "0")
		}
		if got := h.answered(t, "172.168.0.233"); got != "172.168.0.233" {
			t.Errorf("answered for %q", got)
		}
	})
}

func TestAGroupOutsideTheRangeIsRefusedAndTheOthersServed(t *testing.T) {
	t.Parallel()
	netlab.Isolated(t, func(t *testing.T) {
		h := newHome(t)
		g := open(t, homeRange)
		defer g.Close()
		err := g.Apply(snapshot("172.168.0.233", "172.168.0.7"))
		if err == nil || !strings.Contains(err.Error(), "172.168.0.7 is outside this gateway's range 172.168.0.230-172.168.0.254") {
			t.Error(err)
		}
		if got := h.answered(t, "172.168.0.233", "172.168.0.7"); got != "172.168.0.233" {
			t.Errorf("answered for %q", got)
		}
	})
}

func TestLoopbackNeedsNothing(t *testing.T) {
	g, err := lan.Open("lo", addrRange("127.168.0.230", "127.168.0.254"))
	if err != nil {
		t.Fatal(err)
	}
	if err := g.Apply(snapshot("127.168.0.233")); err != nil {
		t.Error(err)
	}
	if err := g.Close(); err != nil {
		t.Error(err)
	}
}

func TestOpenRefuses(t *testing.T) {
	for name, test := range map[string]struct {
		iface string
		r     models.AddrRange
		want  string
	}{
		"no range":                  {"lo", models.AddrRange{}, "give first-last"},
		"no such interface":         {"none0", homeRange, "give the name of the interface that cameras are on"},
		"a LAN range on loopback":   {"lo", homeRange, "doesn't go with interface lo"},
		"half a range on loopback":  {"lo", addrRange("126.255.255.255", "127.0.0.5"), "doesn't go with interface lo"},
		"a range that is backwards": {"lo", addrRange("127.168.0.254", "127.168.0.230"), "give first-last"},
	} {
		t.Run(name, func(t *testing.T) {
			if _, err := lan.Open(test.iface, test.r); err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("error %v, want one with %q", err, test.want)
			}
		})
	}
}
