package duplicator_test

import (
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/net/ipv4"
	"golang.org/x/sys/unix"

	"github.com/groupcast/groupcast/e2e/netlab"
	"github.com/groupcast/groupcast/gateway-agent/duplicator"
	"github.com/groupcast/groupcast/gateway-agent/packet"
	"github.com/groupcast/groupcast/gateway-agent/table"
	"github.com/groupcast/groupcast/internal/logtest"
	"github.com/groupcast/groupcast/models"
)

func TestMain(m *testing.M) {
	if os.Getenv(agentEnv) != "" {
		os.Exit(agentProcess())
	}
	if os.Getenv(noRingEnv) != "" {
		if err := forbidRing(); err != nil {
			fmt.Println("forbid io_uring:", err)
			os.Exit(1)
		}
	}
	netlab.WaitTogether()
	goleak.VerifyTestMain(m)
}

const wait = time.Minute

// The tests of one process have a piece of 127/8 to themselves: other processes may test at the same time.
func loopback(last int) netip.Addr {
	pid := os.Getpid()
	return netip.AddrFrom4([4]byte{127, byte(100 + pid>>8%100), byte(pid), byte(last)})
}

var (
	cameraAddr  = loopback(5)
	uplinkAddr  = loopback(1)
	firstGroup  = loopback(233)
	secondGroup = loopback(235)
)

const mediaPort = 5004

func config() duplicator.Config {
	return duplicator.Config{
		GroupRange:    models.AddrRange{First: loopback(230), Last: loopback(254)},
		Uplink:        uplinkAddr,
		AllowLoopback: true,
		Log:           slog.New(slog.DiscardHandler),
	}
}

func open(t *testing.T, c duplicator.Config) *duplicator.Socket {
	t.Helper()
	d, err := duplicator.OpenSocket(c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.Close() })
	return d
}

func apply(t *testing.T, d *duplicator.Socket, s *table.Snapshot) {
	t.Helper()
	if err := d.Apply(s); err != nil {
		t.Fatal(err)
	}
}

// group makes a group whose one source is the camera, which needn't set the option.
func group(ip netip.Addr, destinations ...table.Destination) *table.Group {
	return &table.Group{
		ID: "group " + ip.String(), IP: ip, Generation: 1, Destinations: destinations,
		Sources: []table.Source{{ID: "camera", Addr: cameraAddr, Trigger: table.TriggerSource}},
	}
}

func snapshot(groups ...*table.Group) *table.Snapshot {
	s := &table.Snapshot{ValidUntil: time.Now().Add(time.Minute), Groups: map[netip.Addr]*table.Group{}}
	for _, g := range groups {
		s.Groups[g.IP] = g
	}
	return s
}

func destination(id string, at netip.AddrPort) table.Destination {
	return table.Destination{ID: id, Addr: at.Addr(), Port: at.Port()}
}

// receiver is a destination's socket.
type receiver struct {
	*net.UDPConn
	t *testing.T
}

func listen(t *testing.T, at netip.AddrPort) receiver {
	t.Helper()
	conn, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(at))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	_ = conn.SetReadBuffer(4 << 20)
	return receiver{conn, t}
}

func listenSomewhere(t *testing.T, last int) receiver {
	t.Helper()
	return listen(t, netip.AddrPortFrom(loopback(last), 0))
}

func (r receiver) at() netip.AddrPort { return r.LocalAddr().(*net.UDPAddr).AddrPort() }

func (r receiver) destination(id string) table.Destination { return destination(id, r.at()) }

// next gives the next datagram and where it came from.
func (r receiver) next() (string, netip.AddrPort) {
	r.t.Helper()
	buf := make([]byte, 1<<16)
	_ = r.SetReadDeadline(time.Now().Add(wait))
	n, from, err := r.ReadFromUDPAddrPort(buf)
	if err != nil {
		r.t.Fatalf("receive at %s: %v", r.at(), err)
	}
	return string(buf[:n]), from
}

// expect fails unless the next datagram is that one; so nothing else came before it.
func (r receiver) expect(payload string) netip.AddrPort {
	r.t.Helper()
	got, from := r.next()
	if got != payload {
		r.t.Fatalf("received %.40q (%d bytes), want %.40q (%d bytes)", got, len(got), payload, len(payload))
	}
	return from
}

// camera is the camera's socket.
type camera struct {
	*net.UDPConn
	t *testing.T
}

func newCamera(t *testing.T) camera {
	t.Helper()
	return camera{listen(t, netip.AddrPortFrom(cameraAddr, 0)).UDPConn, t}
}

func (c camera) send(group netip.Addr, payload string) {
	c.t.Helper()
	if _, err := c.WriteToUDPAddrPort([]byte(payload), netip.AddrPortFrom(group, mediaPort)); err != nil {
		c.t.Fatal(err)
	}
}

func (c camera) setOptions(options ...byte) {
	c.t.Helper()
	control(c.t, c.UDPConn, func(fd int) error {
		return unix.SetsockoptString(fd, unix.IPPROTO_IP, unix.IP_OPTIONS, string(options))
	})
}

func control(t *testing.T, c syscall.Conn, f func(fd int) error) {
	t.Helper()
	raw, err := c.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	var callErr error
	if err := raw.Control(func(fd uintptr) { callErr = f(int(fd)) }); err != nil {
		t.Fatal(err)
	}
	if callErr != nil {
		t.Fatal(callErr)
	}
}

// until waits for a condition.
func until(t *testing.T, what string, condition func() bool) {
	t.Helper()
	for end := time.Now().Add(wait); !condition(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("not within %s: %s", wait, what)
		}
	}
}

// settle waits until all that was sent to the group IP has been judged: a stranger's datagram is counted after all before it.
func settle(t *testing.T, d *duplicator.Socket, group netip.Addr) {
	t.Helper()
	strangers := func() uint64 { return d.Counters().Groups[group].Drops["unregistered"] }
	before := strangers()
	stranger := camera{listen(t, netip.AddrPortFrom(loopback(99), 0)).UDPConn, t}
	stranger.send(group, "stranger")
	until(t, "judged", func() bool { return strangers() > before })
}

func openFiles(t *testing.T) int {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(entries)
}

func TestEveryDestinationGetsTheSamePayload(t *testing.T) {
	d, cam := open(t, config()), newCamera(t)
	a, b := listenSomewhere(t, 11), listenSomewhere(t, 12)
	atCamerasPort := listen(t, netip.AddrPortFrom(loopback(13), mediaPort))
	noPort := table.Destination{ID: "c", Addr: loopback(13)}
	apply(t, d, snapshot(group(firstGroup, a.destination("a"), b.destination("b"), noPort)))

	sizes := []int{1200, 0, 1, 1472, 9000, 65507}
	for i, size := range sizes {
		payload := make([]byte, size)
		for j := range payload {
			payload[j] = byte(i + j)
		}
		cam.send(firstGroup, string(payload))
		for _, r := range []receiver{a, b, atCamerasPort} {
			if from := r.expect(string(payload)); from.Addr() != uplinkAddr {
				t.Errorf("%d bytes came from %s, want %s", size, from, uplinkAddr)
			}
		}
	}
	until(t, "counted", func() bool { return d.Counters().Destinations["c"].Packets == uint64(len(sizes)) })
	counters := d.Counters()
	for _, id := range []string{"a", "b", "c"} {
		if c := counters.Destinations[id]; c.Packets != 6 || c.Bytes != 1200+0+1+1472+9000+65507 || len(c.Drops) != 0 {
			t.Errorf("destination %s: %+v", id, c)
		}
	}
	if c := counters.Groups[firstGroup]; c.Received != 6 || len(c.Drops) != 0 {
		t.Errorf("group: %+v", c)
	}
}

func TestEachCopyHasOneHopLess(t *testing.T) {
	d, cam, r := open(t, config()), newCamera(t), listenSomewhere(t, 11)
	p := ipv4.NewPacketConn(r.UDPConn)
	if err := p.SetControlMessage(ipv4.FlagTTL, true); err != nil {
		t.Fatal(err)
	}
	apply(t, d, snapshot(group(firstGroup, r.destination("a"))))
	for _, ttl := range []int{64, 255, 2, 33} {
		control(t, cam, func(fd int) error { return unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_TTL, ttl) })
		cam.send(firstGroup, "video")
		_ = p.SetReadDeadline(time.Now().Add(wait))
		_, message, _, err := p.ReadFrom(make([]byte, 100))
		if err != nil {
			t.Fatal(err)
		}
		if message.TTL != ttl-1 {
			t.Errorf("TTL %d was copied with TTL %d", ttl, message.TTL)
		}
	}
}

// What isn't copied is counted by reason. After each refused datagram a good one shows that nothing of the first arrived.
func TestWhatIsNotCopiedIsCounted(t *testing.T) {
	d, r := open(t, config()), listenSomewhere(t, 11)
	g := group(firstGroup, r.destination("a"))
	flagged := loopback(6)
	g.Sources = append(g.Sources, table.Source{ID: "flagged", Addr: flagged, Trigger: table.TriggerOption})
	apply(t, d, snapshot(g))
	good := newCamera(t)

	id := flagged.As4()
	option := func(kind, length byte, data ...byte) []byte { return append([]byte{kind, length}, data...) }
	for _, test := range []struct {
		name    string
		from    netip.Addr
		options []byte // setting them needs CAP_NET_RAW
		ttl     int
		reason  string
	}{
		{"unregistered source", loopback(7), nil, 64, "unregistered"},
		{"no option", flagged, nil, 64, "unflagged"},
		{"no hop left", cameraAddr, nil, 1, "ttl"},
		{"copied bit 0", flagged, option(0x08, 6, id[:]...), 64, "unflagged"},
		{"option of another source", flagged, option(0x88, 6, 10, 0, 0, 1), 64, "spoof"},
		{"option of another source where none is needed", cameraAddr, option(0x88, 6, id[:]...), 64, "spoof"},
		{"unregistered source with its own option", loopback(7), option(0x88, 6, loopback(7).AsSlice()...), 64, "unregistered"},
		{"option of the wrong length", flagged, option(0x88, 4, 1, 2), 64, "malformed"},
	} {
		t.Run(test.name, func(t *testing.T) {
			if test.options != nil && os.Geteuid() != 0 {
				t.Skip("needs root: sets IP option 136")
			}
			before := d.Counters().Groups[firstGroup].Drops[test.reason]
			cam := camera{listen(t, netip.AddrPortFrom(test.from, 0)).UDPConn, t}
			if test.options != nil {
				cam.setOptions(test.options...)
			}
			control(t, cam, func(fd int) error { return unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_TTL, test.ttl) })
			cam.send(firstGroup, "refused")
			good.send(firstGroup, "good")
			r.expect("good")
			if got := d.Counters().Groups[firstGroup].Drops[test.reason]; got != before+1 {
				t.Errorf("counted %q %d times, want once: %+v", test.reason, got-before, d.Counters().Groups[firstGroup])
			}
		})
	}
}

func TestTheOptionMakesCopies(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: sets IP option 136")
	}
	for _, mode := range []packet.CopyOptions{packet.Strip, packet.NOP} {
		t.Run(string(mode), func(t *testing.T) {
			c := config()
			c.CopyOptions = mode
			d, cam, r := open(t, c), newCamera(t), listenSomewhere(t, 11)
			control(t, r, func(fd int) error { return unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_RECVOPTS, 1) })
			g := group(firstGroup, r.destination("a"))
			g.Sources[0].Trigger = table.TriggerOption
			apply(t, d, snapshot(g))
			cam.setOptions(append([]byte{0x88, 6}, cameraAddr.AsSlice()...)...)
			cam.send(firstGroup, "video")

			buf, oob := make([]byte, 100), make([]byte, 100)
			_ = r.SetReadDeadline(time.Now().Add(wait))
			n, oobn, _, _, err := r.ReadMsgUDPAddrPort(buf, oob)
			if err != nil || string(buf[:n]) != "video" {
				t.Fatalf("received %q, %v", buf[:n], err)
			}
			messages, err := unix.ParseSocketControlMessage(oob[:oobn])
			if err != nil {
				t.Fatal(err)
			}
			options := ""
			for _, m := range messages {
				options += fmt.Sprintf("%x", m.Data)
			}
			if want := map[packet.CopyOptions]string{packet.Strip: "", packet.NOP: "01000000"}[mode]; options != want {
				t.Errorf("options %q, want %q", options, want)
			}
		})
	}
}

func TestTwoGroupsNeverSeeEachOther(t *testing.T) {
	d, cam := open(t, config()), newCamera(t)
	a, b := listenSomewhere(t, 11), listenSomewhere(t, 12)
	apply(t, d, snapshot(group(firstGroup, a.destination("a")), group(secondGroup, b.destination("b"))))
	for i := range 50 {
		cam.send(firstGroup, fmt.Sprint("first ", i))
		cam.send(secondGroup, fmt.Sprint("second ", i))
	}
	for i := range 50 {
		fromFirst, fromSecond := a.expect(fmt.Sprint("first ", i)), b.expect(fmt.Sprint("second ", i))
		if fromFirst == fromSecond {
			t.Fatalf("both groups' streams leave from %s", fromFirst)
		}
	}
}

func TestNothingIsCopiedByAStaleSnapshot(t *testing.T) {
	c := config()
	c.MaxStale = 200 * time.Millisecond
	d, cam, r := open(t, c), newCamera(t), listenSomewhere(t, 11)
	for name, validUntil := range map[string]time.Time{
		"past":                         time.Now().Add(-time.Second),
		"never":                        {},
		"soon past":                    time.Now().Add(100 * time.Millisecond),
		"next year, by the wall clock": time.Now().AddDate(1, 0, 0).Round(0), // as a host sees it whose clock is a year late
	} {
		t.Run(name, func(t *testing.T) {
			s := snapshot(group(firstGroup, r.destination("a")))
			s.ValidUntil = validUntil
			apply(t, d, s)
			time.Sleep(250 * time.Millisecond)
			stale := d.Counters().Groups[firstGroup].Drops["stale"]
			cam.send(firstGroup, "stale")
			until(t, "counted as stale", func() bool { return d.Counters().Groups[firstGroup].Drops["stale"] == stale+1 })

			if _, err := cam.WriteToUDPAddrPort([]byte("straight from the camera"), r.at()); err != nil {
				t.Fatal(err)
			}
			r.expect("straight from the camera")
		})
	}
}

func TestWithoutASnapshotNobodyListens(t *testing.T) {
	d, cam, r := open(t, config()), newCamera(t), listenSomewhere(t, 11)
	before := openFiles(t)
	apply(t, d, snapshot(group(firstGroup, r.destination("a"))))
	cam.send(firstGroup, "video")
	r.expect("video")
	apply(t, d, nil)
	if got := openFiles(t); got != before {
		t.Errorf("%d files are open, %d before", got, before)
	}
	group := listen(t, netip.AddrPortFrom(firstGroup, mediaPort))
	cam.send(firstGroup, "nobody's")
	group.expect("nobody's")
}

// Receivers see one flow per camera stream, whoever comes and goes; another camera stream is another flow.
func TestAStreamKeepsItsSourcePort(t *testing.T) {
	d, cam := open(t, config()), newCamera(t)
	a, b := listenSomewhere(t, 11), listenSomewhere(t, 12)
	both := []table.Destination{a.destination("a"), b.destination("b")}
	apply(t, d, snapshot(group(firstGroup, both...)))
	cam.send(firstGroup, "1")
	port := a.expect("1")
	if got := b.expect("1"); got != port {
		t.Errorf("a hears %s, b hears %s", port, got)
	}
	for i, destinations := range [][]table.Destination{both[1:], {}, both[:1], both} {
		apply(t, d, snapshot(group(firstGroup, destinations...)))
		payload := fmt.Sprint("swap ", i)
		cam.send(firstGroup, payload)
		for _, to := range destinations {
			r := map[string]receiver{"a": a, "b": b}[to.ID]
			if got := r.expect(payload); got != port {
				t.Errorf("%s: from %s, before from %s", payload, got, port)
			}
		}
		settle(t, d, firstGroup)
	}
	newCamera(t).send(firstGroup, "another stream")
	if got := a.expect("another stream"); got == port {
		t.Errorf("two streams leave from %s", port)
	}
}

// Copies never mix two snapshots: while two disjoint sets are swapped under load, each datagram reaches all of one set and
// nobody of the other.
func TestADatagramGoesToTheOldSetOrTheNewOne(t *testing.T) {
	const datagrams, perSet = 4000, 4
	d, cam := open(t, config()), newCamera(t)
	var sets [2][]table.Destination
	var got [2][perSet][datagrams]bool
	var readers sync.WaitGroup
	for set := range sets {
		for i := range perSet {
			r := listenSomewhere(t, 20+10*set+i)
			sets[set] = append(sets[set], r.destination(fmt.Sprint(set, i)))
			readers.Go(func() {
				buf := make([]byte, 100)
				for {
					n, err := r.Read(buf)
					if err != nil || string(buf[:n]) == "end" {
						return
					}
					var number int
					if _, err := fmt.Sscan(string(buf[:n]), &number); err == nil {
						got[set][i][number] = true
					}
				}
			})
		}
	}
	apply(t, d, snapshot(group(firstGroup, sets[0]...)))
	stop, swaps := make(chan struct{}), 0
	var swapper sync.WaitGroup
	swapper.Go(func() {
		for {
			select {
			case <-stop:
				return
			case <-time.After(100 * time.Microsecond):
				swaps++
				if err := d.Apply(snapshot(group(firstGroup, sets[swaps%2]...))); err != nil {
					t.Error(err)
				}
			}
		}
	})
	copied := func() uint64 {
		var sum uint64
		for _, c := range d.Counters().Destinations {
			sum += c.Packets
		}
		return sum
	}
	for i := range datagrams {
		cam.send(firstGroup, fmt.Sprint(i))
		if i%64 == 63 { // keeps within the receive buffers, so that none is lost
			until(t, "copied", func() bool { return copied() >= uint64(perSet*(i+1)) })
		}
	}
	until(t, "all copied", func() bool { return copied() >= perSet*datagrams })
	close(stop)
	swapper.Wait()
	for set := range sets {
		for _, to := range sets[set] {
			if _, err := cam.WriteToUDPAddrPort([]byte("end"), netip.AddrPortFrom(to.Addr, to.Port)); err != nil {
				t.Fatal(err)
			}
		}
	}
	readers.Wait()

	var perSetCount [2]int
	for n := range datagrams {
		var by [2]int
		for set := range sets {
			for i := range perSet {
				if got[set][i][n] {
					by[set]++
				}
			}
		}
		if by != [2]int{perSet, 0} && by != [2]int{0, perSet} {
			t.Fatalf("datagram %d reached %d of one set and %d of the other", n, by[0], by[1])
		}
		perSetCount[min(by[1], 1)]++
	}
	if perSetCount[0] == 0 || perSetCount[1] == 0 {
		t.Fatalf("all datagrams went to one set (%v, %d swaps): the test shows nothing", perSetCount, swaps)
	}
	t.Logf("%d swaps, datagrams by set: %v", swaps, perSetCount)
}

// A receiver that is away answers with "port unreachable". That costs neither the others nor itself once it is back.
func TestARefusedPortCostsNothing(t *testing.T) {
	for _, lives := range []int{1, worthRing - 1} { // one send after the other, and all together
		t.Run(fmt.Sprint(lives), func(t *testing.T) {
			d, cam := open(t, config()), newCamera(t)
			away := listenSomewhere(t, 12)
			gone := away.at()
			away.Close()
			destinations := []table.Destination{destination("away", gone)}
			var live []receiver
			for i := range lives {
				live = append(live, listenSomewhere(t, 11))
				destinations = append(destinations, live[i].destination(fmt.Sprint("live ", i)))
			}
			apply(t, d, snapshot(group(firstGroup, destinations...)))
			send := func(payload string, to []receiver) {
				cam.send(firstGroup, payload)
				for _, r := range to {
					r.expect(payload)
				}
			}
			for i := range 100 {
				send(fmt.Sprint(i), live)
			}
			settle(t, d, firstGroup)
			// A refusal is heard by a later copy, which leaves nevertheless.
			if c := d.Counters().Destinations["away"]; c.Packets != 100 || c.Drops[duplicator.DropRefused] == 0 || len(c.Drops) != 1 {
				t.Errorf("100 copies, some refusals: %+v", c)
			}
			live = append(live, listen(t, gone))
			for i := range 10 {
				send(fmt.Sprint("again ", i), live)
			}
		})
	}
}

// worthRing is the number of destinations from which on a datagram alone leaves for all of them together.
const worthRing = 3

func TestAnUplinkAddressThatIsMissingIsCountedAndTriedAgain(t *testing.T) {
	c := config()
	c.Uplink = netip.MustParseAddr("192.0.2.77") // of documentation: no interface has it
	d, cam, r := open(t, c), newCamera(t), listenSomewhere(t, 11)
	apply(t, d, snapshot(group(firstGroup, r.destination("a"))))
	cam.send(firstGroup, "1")
	cam.send(firstGroup, "2")
	until(t, "counted", func() bool { return d.Counters().Destinations["a"].Drops[duplicator.DropNoSocket] == 2 })
}

func TestSpecialAddressesGetNothing(t *testing.T) {
	own := ownAddress(t)
	for name, addr := range map[string]string{
		"group IP of another group": secondGroup.String(),
		"free address of the range": loopback(254).String(),
		"0/8":                       "0.1.2.3",
		"unspecified":               "0.0.0.0",
		"multicast":                 "239.1.2.3",
		"limited broadcast":         "255.255.255.255",
		"reserved":                  "241.0.0.1",
		"link-local":                "169.254.1.1",
		"unspecified, IPv6":         "::",
		"loopback, IPv6":            "::1",
		"multicast, IPv6":           "ff0e::1",
		"link-local, IPv6":          "fe80::1",
		"mapped multicast":          "::ffff:239.1.2.3",
		"an own address":            own,
	} {
		t.Run(name, func(t *testing.T) {
			if addr == "" {
				t.Skip("this host has no address but loopback")
			}
			d, cam, r := open(t, config()), newCamera(t), listenSomewhere(t, 11)
			refused := table.Destination{ID: "refused", Addr: netip.MustParseAddr(addr), Port: 9}
			apply(t, d, snapshot(group(firstGroup, refused, r.destination("a")), group(secondGroup)))
			cam.send(firstGroup, "video")
			r.expect("video")
			counters := d.Counters()
			if counters.Refused != 1 || counters.Destinations["refused"].Packets != 0 {
				t.Errorf("counters %+v", counters)
			}
		})
	}
	t.Run("loopback that isn't allowed", func(t *testing.T) {
		c := config()
		c.AllowLoopback = false
		d, r := open(t, c), listenSomewhere(t, 11)
		apply(t, d, snapshot(group(firstGroup, r.destination("a"))))
		if got := d.Counters().Refused; got != 1 {
			t.Errorf("%d refused", got)
		}
	})
}

func ownAddress(t *testing.T) string {
	t.Helper()
	addrs, err := net.InterfaceAddrs()
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range addrs {
		if p, err := netip.ParsePrefix(a.String()); err == nil && p.Addr().IsGlobalUnicast() {
			return p.Addr().String()
		}
	}
	return ""
}

func TestRefusalsAreLoggedOnceAndWithoutTheAddress(t *testing.T) {
	var log logtest.Log
	c := config()
	c.Log = slog.New(slog.NewTextHandler(&log, nil))
	d := open(t, c)
	s := snapshot(group(firstGroup, table.Destination{ID: "r-17", Addr: netip.MustParseAddr("239.1.2.3")}))
	apply(t, d, s)
	apply(t, d, s)
	want := `destination refused: it gets no copies" group="group ` + firstGroup.String() + `" destination=r-17 why=multicast`
	if got := log.String(); strings.Count(got, want) != 1 || strings.Count(got, "239.1.2.3") != 0 {
		t.Errorf("log:\n%s", got)
	}
}

func TestAGroupOutsideTheRangeIsRefusedAndTheOthersServed(t *testing.T) {
	d, cam, r := open(t, config()), newCamera(t), listenSomewhere(t, 11)
	err := d.Apply(snapshot(group(loopback(9)), group(firstGroup, r.destination("a"))))
	if err == nil || strings.Count(err.Error(), "is outside this gateway's range") != 1 {
		t.Errorf("error %v", err)
	}
	cam.send(firstGroup, "video")
	r.expect("video")
}

func TestAPortThatIsTakenIsReportedAndTakenOverLater(t *testing.T) {
	taken := listen(t, netip.AddrPortFrom(firstGroup, mediaPort))
	d, cam, r := open(t, config()), newCamera(t), listenSomewhere(t, 11)
	s := snapshot(group(firstGroup, r.destination("a")))
	if err := d.Apply(s); err == nil || strings.Count(err.Error(), "address already in use") != 1 {
		t.Errorf("error %v", err)
	}
	taken.Close()
	apply(t, d, s)
	cam.send(firstGroup, "video")
	r.expect("video")
}

func TestSocketsOfStreamsThatEndedAreClosed(t *testing.T) {
	c := config()
	c.StreamIdle = 100 * time.Millisecond
	d, r := open(t, c), listenSomewhere(t, 11)
	apply(t, d, snapshot(group(firstGroup, r.destination("a"))))
	cam := newCamera(t)
	before := openFiles(t)
	cam.send(firstGroup, "video")
	r.expect("video")
	if openFiles(t) == before {
		t.Fatal("a stream holds no socket: the test shows nothing")
	}
	until(t, "closed", func() bool { return openFiles(t) == before })
	cam.send(firstGroup, "again")
	r.expect("again")
}

func TestSocketsOfDestinationsThatLeftAreClosed(t *testing.T) {
	d, cam := open(t, config()), newCamera(t)
	a, b := listenSomewhere(t, 11), listenSomewhere(t, 12)
	one := snapshot(group(firstGroup, a.destination("a")))
	apply(t, d, one)
	cam.send(firstGroup, "1")
	a.expect("1")
	before := openFiles(t)
	apply(t, d, snapshot(group(firstGroup, a.destination("a"), b.destination("b"))))
	cam.send(firstGroup, "2")
	b.expect("2")
	if openFiles(t) == before {
		t.Fatal("a destination has no socket: the test shows nothing")
	}
	apply(t, d, one) // no datagram follows
	until(t, "closed", func() bool { return openFiles(t) == before })
}

func TestThereAreSoManyStreamsAndNoMore(t *testing.T) {
	c := config()
	c.MaxStreams = 3
	d, r := open(t, c), listenSomewhere(t, 11)
	apply(t, d, snapshot(group(firstGroup, r.destination("a")), group(secondGroup, r.destination("b"))))
	first := newCamera(t)
	for i, ip := range []netip.Addr{firstGroup, secondGroup, firstGroup} {
		cam := first
		if i > 0 {
			cam = newCamera(t)
		}
		cam.send(ip, fmt.Sprint(i))
		r.expect(fmt.Sprint(i))
	}
	newCamera(t).send(secondGroup, "one too many")
	until(t, "counted", func() bool {
		return d.Counters().Groups[secondGroup].Drops[duplicator.DropStreams] == 1
	})
	first.send(firstGroup, "who was there goes on")
	r.expect("who was there goes on")
}

// The kernel's losses are counted to the datagram.
func TestOverflowIsCounted(t *testing.T) {
	const destinations, sent = 64, 20000
	d, cam, r := open(t, config()), newCamera(t), listenSomewhere(t, 11)
	g := group(firstGroup)
	for i := range destinations {
		g.Destinations = append(g.Destinations, r.destination(fmt.Sprint(i)))
	}
	apply(t, d, snapshot(g))
	payload := string(make([]byte, 8000))
	for range sent {
		cam.send(firstGroup, payload)
	}
	total := func(extra uint64) bool {
		c := d.Counters().Groups[firstGroup]
		return c.Received+c.Drops[duplicator.DropOverflow] == sent+extra
	}
	// The kernel tells about losses with the next datagram only.
	extra := uint64(0)
	until(t, "every datagram received or counted as lost", func() bool {
		if total(extra) {
			return true
		}
		time.Sleep(50 * time.Millisecond)
		cam.send(firstGroup, "next")
		extra++
		time.Sleep(50 * time.Millisecond)
		return total(extra)
	})
	if c := d.Counters().Groups[firstGroup]; c.Drops[duplicator.DropOverflow] == 0 {
		t.Fatal("nothing was lost: the test shows nothing")
	}
}

func TestCountersSurviveSwapsAndMoves(t *testing.T) {
	d, cam := open(t, config()), newCamera(t)
	here, there := listenSomewhere(t, 11), listenSomewhere(t, 12)
	apply(t, d, snapshot(group(firstGroup, here.destination("a"))))
	cam.send(firstGroup, "1")
	here.expect("1")
	apply(t, d, snapshot(group(firstGroup, there.destination("a"))))
	cam.send(firstGroup, "2")
	there.expect("2")
	apply(t, d, snapshot(group(firstGroup)))
	settle(t, d, firstGroup)
	if c := d.Counters().Destinations["a"]; c.Packets != 2 || c.Bytes != 2 {
		t.Errorf("%+v", c)
	}
}

func TestCloseFreesEverything(t *testing.T) {
	before := openFiles(t)
	r, cam := listenSomewhere(t, 11), newCamera(t)
	d := open(t, config())
	apply(t, d, snapshot(group(firstGroup, r.destination("a")), group(secondGroup, r.destination("b"))))
	cam.send(firstGroup, "video")
	r.expect("video")
	if err := d.Close(); err != nil {
		t.Error(err)
	}
	r.Close()
	cam.Close()
	if got := openFiles(t); got != before {
		t.Errorf("%d files are open, %d before", got, before)
	}
	if err := d.Apply(snapshot()); err == nil {
		t.Error("Apply works after Close")
	}
	if err := d.Close(); err != nil {
		t.Errorf("second Close: %v", err)
	}
}

func TestOpenSocketRefuses(t *testing.T) {
	for name, test := range map[string]struct {
		change func(*duplicator.Config)
		want   string
	}{
		"no range":        {func(c *duplicator.Config) { c.GroupRange = models.AddrRange{} }, "give first-last"},
		"no uplink":       {func(c *duplicator.Config) { c.Uplink = netip.Addr{} }, "give the address that copies are sent from"},
		"IPv6 uplink":     {func(c *duplicator.Config) { c.Uplink = netip.MustParseAddr("2001:db8::1") }, "give the address that copies are sent from"},
		"port 0":          {func(c *duplicator.Config) { c.Ports = []uint16{5004, 0} }, "give 1 to 65535"},
		"unknown options": {func(c *duplicator.Config) { c.CopyOptions = "keep" }, `give "strip" or "nop"`},
		"negative limit":  {func(c *duplicator.Config) { c.MaxStreams = -1 }, "can't be negative"},
	} {
		t.Run(name, func(t *testing.T) {
			c := config()
			test.change(&c)
			if _, err := duplicator.OpenSocket(c); err == nil || strings.Count(err.Error(), test.want) != 1 {
				t.Errorf("error %v, want one with %q", err, test.want)
			}
		})
	}
}
