package backendtest

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"os"
	"runtime/debug"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/net/ipv4"
	"golang.org/x/sys/unix"

	"github.com/groupcast/groupcast/e2e/netlab"
	"github.com/groupcast/groupcast/gateway-agent/duplicator"
	"github.com/groupcast/groupcast/gateway-agent/packet"
	"github.com/groupcast/groupcast/gateway-agent/table"
)

// Sizes of the soak, from the environment: "make soak" sets them, and without them it is a short one.
func soakSize(name string, short int) int {
	if n, err := strconv.Atoi(os.Getenv(name)); err == nil && n > 0 {
		return n
	}
	return short
}

const (
	soakRounds  = 100
	soakMembers = 4
	// soakWindow is how many datagrams are on their way at most: what a receive buffer holds of them. Fifteen of sixteen come in super-packets, as from a camera
	// process on the gateway's own host; so it is the duplicator that takes the time, and not the camera and the cable. The others come one by one, and no two
	// of them may leave in one message.
	soakWindow   = 4096
	soakSegments = 64
	soakSegment  = 200 // bytes of payload
	// soakRemembered is how many destinations that left have counters (maxDeparted of package duplicator).
	soakRemembered = 1024
	soakIdle       = time.Second
	// soakShort is how many datagrams the soak has without "make soak". That is too few for a twentieth of memory to tell a leak from the threads and spans that
	// the runtime takes on a busy machine: those may be soakNoise kB, of which each datagram's share is 20 bytes.
	soakShort = 100_000
	soakNoise = 2 << 10
)

// holdings is what a process could lose little by little.
type holdings struct {
	memory int            // resident, in kB, when the collector has given back all that it can
	own    int            // of it what is not the program's file, which comes into memory little by little
	things map[string]int // descriptors, UDP ports, entries of maps
}

// Soak copies many datagrams while the table is swapped and destinations come and go, and fails if the process holds more at the end than after
// a tenth. Nobody answers to the copies.
func Soak(t *testing.T, b Backend) {
	t.Parallel()
	netlab.Isolated(t, func(t *testing.T) {
		datagrams := soakSize("SOAK_DATAGRAMS", soakShort)
		s := &soak{t: t, swaps: soakSize("SOAK_SWAPS", 200), joins: soakSize("SOAK_JOINS", 100), backend: b}
		s.h = newHome(t, b, duplicator.Config{CopyOptions: packet.Strip, StreamIdle: soakIdle})
		s.h.WAN.Neighbour("ext0", Uplink.String(), s.h.Copier.HardwareAddr("wan0"))
		s.h.Home.Camera.Offload("cam0")
		s.h.Copier.Offload("wan0")
		s.warm()
		var before holdings
		began := time.Now()
		for round := range soakRounds {
			var sending sync.WaitGroup
			sending.Go(func() { s.send(part(datagrams, round)) })
			joins := part(s.joins, round)
			for i := range part(s.swaps, round) {
				if i < joins {
					s.join()
				} else {
					s.turn++
				}
				s.apply()
			}
			sending.Wait()
			if t.Failed() {
				return
			}
			if (round+1)%10 == 0 {
				now := s.look()
				if round+1 == soakRounds/10 {
					before = s.holds(before)
					now = before
				}
				netlab.Progress("soak %s: %3d %%, %d datagrams, %d kB (%d kB of its own), %v, %s", t.Name(), round+1, s.sent, now.memory, now.own, now.things, time.Since(began).Round(time.Second))
			}
		}
		s.compare(datagrams, before, s.holds(before))
		s.account(datagrams)
	})
}

// part is what a round does of a whole.
func part(whole, round int) int { return whole*(round+1)/soakRounds - whole*round/soakRounds }

type soak struct {
	t            *testing.T
	backend      Backend
	h            *Home
	swaps, joins int
	turn         int
	first, next  int // the last destination before the soak, and the last one
	members      []table.Destination
	warmed, sent int // datagrams
}

// warm has as many destinations come and go as the backend remembers, and streams as much as it takes at a time: what it keeps of both is bounded, and should
// be there before anything is compared.
func (s *soak) warm() {
	s.t.Helper()
	for s.next < 2*soakRemembered {
		s.members = nil
		for range 64 {
			s.next++
			s.members = append(s.members, To(fmt.Sprintf("r_%d", s.next), fmt.Sprintf("198.51.100.%d", s.next%200+1)))
		}
		s.apply()
	}
	s.members = s.members[:soakMembers]
	for range 20 {
		s.turn++
		s.apply()
		s.send(2 * soakWindow)
	}
	s.first = s.next
	s.warmed, s.sent = s.sent, 0
}

// copies gives how many were sent or dropped for all that are remembered.
func (s *soak) copies() (n uint64) {
	for _, d := range s.h.Duplicator.Counters().Destinations {
		n += d.Packets + total(d.Drops)
	}
	return n
}

// join lets the oldest destination go and another come, which nobody has seen before.
func (s *soak) join() {
	s.next++
	s.members = append(s.members, To(fmt.Sprintf("r_%d", s.next), fmt.Sprintf("198.51.100.%d", s.next%200+1)))
	if len(s.members) > soakMembers {
		s.members = s.members[1:]
	}
}

// apply puts the members into force; every other time one of them has a port of its own, so that something changes.
func (s *soak) apply() {
	d := append([]table.Destination{}, s.members...)
	d[0].Port = uint16(6000 + s.turn%2)
	snapshot := Snapshot(d)
	snapshot.ValidUntil = time.Now().Add(10 * time.Minute)
	if err := s.h.Duplicator.Apply(snapshot); err != nil {
		s.t.Fatal(err)
	}
	if s.h.snapshot == nil {
		if err := s.h.guard.Apply(snapshot); err != nil {
			s.t.Fatal(err)
		}
		s.h.snapshot = snapshot
	}
}

// send sends from a socket that is new each time, and never more than the receive buffers hold.
func (s *soak) send(n int) {
	c, err := s.socket()
	if err != nil {
		s.t.Errorf("open a camera's socket: %v", err)
		return
	}
	defer c.Close()
	to := &net.UDPAddr{IP: Groupcast1.AsSlice(), Port: mediaPort}
	payload := make([]byte, soakSegments*soakSegment)
	segments := make([]byte, unix.CmsgSpace(2))
	header := (*unix.Cmsghdr)(unsafe.Pointer(&segments[0]))
	header.Level, header.Type = unix.SOL_UDP, unix.UDP_SEGMENT
	header.SetLen(unix.CmsgLen(2))
	binary.NativeEndian.PutUint16(segments[unix.CmsgLen(0):], soakSegment)
	super, single := make([]ipv4.Message, soakWindow/soakSegments), make([]ipv4.Message, soakWindow)
	for i := range super {
		super[i] = ipv4.Message{Buffers: [][]byte{payload}, OOB: segments, Addr: to}
	}
	for i := range single {
		single[i] = ipv4.Message{Buffers: [][]byte{payload[:1+i%1300]}, Addr: to} // one that is longer begins another run
	}
	for sent := 0; sent < n; {
		window := min(n-sent, soakWindow)
		whole := window * 15 / 16 / soakSegments
		if err := errors.Join(write(c, super[:whole]), write(c, single[:window-whole*soakSegments])); err != nil {
			s.t.Errorf("send: %v", err)
			return
		}
		sent += window
		s.sent += window
		for end := time.Now().Add(wait); s.waiting(); time.Sleep(time.Millisecond) {
			if time.Now().After(end) {
				s.t.Errorf("what was received is still waiting")
				return
			}
		}
	}
	for end := time.Now().Add(wait); s.seen() < uint64(s.warmed+s.sent); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			s.t.Errorf("%d of %d datagrams were received", s.seen(), s.warmed+s.sent)
			return
		}
	}
}

// waiting tells whether something waits in a receive buffer. The kernel tells it sooner than the counters of all who ever were a destination.
func (s *soak) waiting() bool {
	b, err := os.ReadFile("/proc/thread-self/net/udp")
	if err != nil {
		s.t.Errorf("look for what waits: %v", err)
		return false
	}
	for line := range strings.Lines(string(b)) {
		if fields := strings.Fields(line); len(fields) > 4 && strings.Contains(fields[4], ":") && !strings.HasSuffix(fields[4], ":00000000") {
			return true
		}
	}
	return false
}

func write(c *net.UDPConn, batch []ipv4.Message) error {
	for p := ipv4.NewPacketConn(c); len(batch) > 0; {
		n, err := p.WriteBatch(batch, 0)
		if err != nil {
			return err
		}
		batch = batch[n:]
	}
	return nil
}

// socket opens a camera's socket that nothing but its user holds: what would be closed with the test would count as a leak.
func (s *soak) socket() (*net.UDPConn, error) {
	var c net.PacketConn
	var err error
	options := net.ListenConfig{Control: func(_, _ string, raw syscall.RawConn) error {
		var err error
		return errors.Join(raw.Control(func(fd uintptr) {
			err = unix.SetsockoptString(int(fd), unix.IPPROTO_IP, unix.IP_OPTIONS, string(StreamID))
		}), err)
	}}
	s.h.Home.Camera.Do(func() {
		c, err = options.ListenPacket(context.Background(), "udp4", netip.AddrPortFrom(Camera, 0).String())
	})
	if err != nil {
		return nil, err
	}
	return c.(*net.UDPConn), nil
}

// seen is how many datagrams came to the group IP, those that the receive buffer had no room for included.
func (s *soak) seen() uint64 {
	g := s.h.Duplicator.Counters().Groups[Groupcast1]
	return g.Received + g.Drops[duplicator.DropOverflow]
}

// holds waits until the streams of the last round have ended, and until the process holds what it held before, or for a while. Of its memory it takes the least of a
// few looks: what the collector has given back it takes again for a moment.
func (s *soak) holds(before holdings) holdings {
	s.t.Helper()
	var now holdings
	for began := time.Now(); ; time.Sleep(soakIdle / 4) {
		last := now.things
		now = s.look()
		settled := last != nil && maps.Equal(last, now.things) && time.Since(began) > 3*soakIdle
		if before.things != nil {
			settled = maps.Equal(before.things, now.things)
		}
		if settled || time.Since(began) > wait {
			break
		}
	}
	for range 5 {
		time.Sleep(soakIdle / 20)
		if again := s.look(); again.memory < now.memory {
			now.memory, now.own = again.memory, again.own
		}
	}
	return now
}

func (s *soak) look() holdings {
	s.t.Helper()
	debug.FreeOSMemory()
	now := holdings{things: map[string]int{}}
	fds, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		s.t.Fatal(err)
	}
	now.things["descriptors"] = len(fds)
	for _, file := range []string{"/proc/thread-self/net/udp", "/proc/thread-self/net/udp6"} {
		b, err := os.ReadFile(file)
		if err != nil {
			s.t.Fatal(err)
		}
		now.things["ports"] += strings.Count(string(b), "\n") - 1
	}
	if s.backend.Entries != nil {
		maps.Copy(now.things, s.backend.Entries(s.h.Duplicator))
	}
	b, err := os.ReadFile("/proc/self/status")
	if err != nil {
		s.t.Fatal(err)
	}
	for line := range strings.Lines(string(b)) {
		for name, kB := range map[string]*int{"VmRSS:": &now.memory, "RssAnon:": &now.own} {
			if text, ok := strings.CutPrefix(line, name); ok {
				*kB, _ = strconv.Atoi(strings.Fields(text)[0])
			}
		}
	}
	return now
}

// compare allows a twentieth more memory, and a short soak the noise.
func (s *soak) compare(datagrams int, before, after holdings) {
	s.t.Helper()
	limit := before.memory + before.memory/20
	if datagrams <= soakShort {
		limit = max(limit, before.memory+soakNoise)
	}
	if !raceDetector && after.memory > limit || before.memory == 0 {
		s.t.Errorf("%d kB at the end, %d kB after a tenth", after.memory, before.memory)
	}
	if !maps.Equal(before.things, after.things) {
		s.t.Errorf("held at the end: %v; after a tenth: %v", after.things, before.things)
	}
	s.t.Logf("%d datagrams, %d swaps, %d joins and leaves: %d kB (%d kB of its own) after a tenth, %d kB (%d kB) at the end, %v",
		s.sent, s.swaps, s.joins, before.memory, before.own, after.memory, after.own, after.things)
}

// account sees that it was copying all the time.
func (s *soak) account(datagrams int) {
	s.t.Helper()
	c := s.h.Duplicator.Counters()
	g := c.Groups[Groupcast1]
	if n := g.Received + g.Drops[duplicator.DropOverflow]; n != uint64(s.warmed+datagrams) {
		s.t.Errorf("%d datagrams of %d came", n, s.warmed+datagrams)
	}
	if total(g.Drops) > g.Drops[duplicator.DropOverflow] {
		s.t.Errorf("dropped: %v", g.Drops)
	}
	if copies := s.copies(); s.next-s.first <= soakRemembered-soakMembers && copies != soakMembers*g.Received {
		s.t.Errorf("%d copies of %d datagrams for %d destinations each", copies, g.Received, soakMembers)
	}
}
