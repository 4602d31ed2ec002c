package ebpf_test

import (
	"bufio"
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	ciliumebpf "github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"

	"github.com/groupcast/groupcast/e2e/netlab"
	"github.com/groupcast/groupcast/gateway-agent/duplicator"
	"github.com/groupcast/groupcast/gateway-agent/duplicator/backendtest"
	"github.com/groupcast/groupcast/gateway-agent/duplicator/ebpf"
	"github.com/groupcast/groupcast/gateway-agent/packet"
	"github.com/groupcast/groupcast/gateway-agent/table"
)

const (
	shortLease = 2 * time.Second
	patience   = time.Minute // nothing takes as long unless the test fails
)

// The tests of this file are about what stays in the kernel while agents come and go.

// agentEnv makes this program an agent process that copies the worked example until it is killed. Its value is the BPF file system.
const agentEnv = "GROUPCAST_TEST_EBPF_AGENT"

func agentProcess() int {
	b, err := ebpf.Open(ebpf.Config{
		Config:    duplicator.Config{GroupRange: backendtest.GroupRange, Uplink: backendtest.Uplink},
		Interface: backendtest.LAN, PinDir: os.Getenv(agentEnv), Lease: shortLease,
	})
	if err == nil {
		err = b.Apply(backendtest.WorkedExample())
	}
	if err != nil {
		fmt.Println(err)
		return 1
	}
	fmt.Println("ready")
	select {}
}

// process is such a process as a backend under test.
type process struct{ cmd *exec.Cmd }

func startProcess(t *testing.T, bpf string) process {
	t.Helper()
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), agentEnv+"="+bpf)
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { process{cmd}.kill() })
	if line, err := bufio.NewReader(out).ReadString('\n'); line != "ready\n" {
		t.Fatalf("the agent says %q, %v", line, err)
	}
	return process{cmd}
}

func (p process) Apply(*table.Snapshot) error   { return nil }
func (p process) Counters() duplicator.Counters { return duplicator.Counters{} }
func (p process) Close() error                  { return nil }

// kill ends it with no chance to do anything.
func (p process) kill() {
	_ = p.cmd.Process.Kill()
	_ = p.cmd.Wait()
}

// stream is a camera that sends numbered datagrams, and a receiver that notes them.
type stream struct {
	t        *testing.T
	camera   *net.UDPConn
	receiver *net.UDPConn
	sent     uint32
	passed   atomic.Uint32 // sent, for other goroutines
	from     netip.AddrPort
}

func newStream(t *testing.T, h *backendtest.Home) *stream {
	return &stream{t: t, camera: h.Sender(backendtest.Camera, backendtest.StreamID), receiver: h.Receiver(netlab.Upload)}
}

func (s *stream) send() {
	s.t.Helper()
	s.sent++
	to := netip.AddrPortFrom(backendtest.Groupcast1, 5004)
	if _, err := s.camera.WriteToUDPAddrPort(binary.BigEndian.AppendUint32(nil, s.sent), to); err != nil {
		s.t.Fatal(err)
	}
	s.passed.Store(s.sent)
}

// arrived gives the numbers that the receiver got so far, and checks that they come from one port.
func (s *stream) arrived() []uint32 {
	s.t.Helper()
	return s.await(0)
}

// await is arrived, but waits for n of them.
func (s *stream) await(n int) []uint32 {
	s.t.Helper()
	var all []uint32
	buf := make([]byte, 100)
	for end := time.Now().Add(patience); ; {
		deadline := time.Now().Add(100 * time.Millisecond)
		if len(all) < n {
			deadline = end
		}
		_ = s.receiver.SetReadDeadline(deadline)
		_, from, err := s.receiver.ReadFromUDPAddrPort(buf)
		if err != nil {
			return all
		}
		if s.from.IsValid() && s.from != from {
			s.t.Errorf("the stream comes from %s, before from %s", from, s.from)
		}
		s.from = from
		all = append(all, binary.BigEndian.Uint32(buf))
	}
}

// expect fails unless the receiver got all from one number to another, once each.
func (s *stream) expect(first, last uint32) {
	s.t.Helper()
	got := s.await(int(last - first + 1))
	slices.Sort(got)
	for i := range max(len(got), int(last-first+1)) {
		if want := first + uint32(i); i >= len(got) || got[i] != want || want > last {
			s.t.Fatalf("%d datagrams arrived instead of %d to %d; the %dth is wrong", len(got), first, last, i)
		}
	}
}

// untilArrived sends until what was sent last has arrived.
func (s *stream) untilArrived(what string) {
	s.t.Helper()
	for end := time.Now().Add(patience); ; {
		s.send()
		if slices.Contains(s.arrived(), s.sent) {
			return
		}
		if time.Now().After(end) {
			s.t.Fatalf("nothing arrives: %s", what)
		}
	}
}

// goesOn waits for n more datagrams to be sent.
func (s *stream) goesOn(n uint32) {
	for enough := s.passed.Load() + n; s.passed.Load() < enough; {
		time.Sleep(time.Millisecond)
	}
}

func home(t *testing.T, open func(t *testing.T, c duplicator.Config) duplicator.Duplicator) *backendtest.Home {
	t.Helper()
	return backendtest.NewHome(t, backendtest.Backend{PacketByPacket: true, Open: open}, packet.Strip, nil)
}

// A camera's stream goes on, datagram by datagram and from the same port, while the agent ends, while there is none, and
// while the next one starts and takes over. It runs alone, because a stream goes on all the while.
func TestARestartInterruptsNothing(t *testing.T) {
	netlab.Isolated(t, func(t *testing.T) {
		c := ebpf.Config{Interface: backendtest.LAN, PinDir: netlab.BPFFS(t)}
		var first *ebpf.Backend
		h := home(t, func(t *testing.T, base duplicator.Config) duplicator.Duplicator {
			c.Config = base
			first = open(t, c)
			return first
		})
		s := newStream(t, h)
		s.send()
		s.expect(1, 1)
		agent := first
		for range 3 {
			lifted := make(chan *ebpf.Backend)
			go func(agent *ebpf.Backend) { // not t.Fatal on this goroutine
				_ = agent.Close()
				s.goesOn(50)
				next, err := ebpf.Open(c)
				if err == nil {
					s.goesOn(20)
					err = next.Apply(backendtest.WorkedExample())
				}
				if err != nil {
					t.Error(err)
				}
				lifted <- next
			}(agent)
			began := s.sent + 1
			for agent = nil; agent == nil; {
				s.send()
				select {
				case agent = <-lifted:
				case <-time.After(time.Millisecond):
				}
			}
			s.expect(began, s.sent)
		}
		// It is the new one that copies now.
		s.send()
		s.expect(s.sent, s.sent)
		if n := agent.Counters().Destinations["upload"].Packets; n == 0 {
			t.Error("the agent that took over counts nothing")
		}
		if err := agent.Apply(nil); err != nil {
			t.Fatal(err)
		}
		s.send()
		if got := s.arrived(); len(got) != 0 {
			t.Errorf("copied without a group: %v", got)
		}
		_ = agent.Close()
	})
}

// An agent that is killed and doesn't come back leaves a program that goes silent. The next agent finds it and copies again.
func TestADeadAgentsProgramGoesSilent(t *testing.T) {
	t.Parallel()
	netlab.Isolated(t, func(t *testing.T) {
		bpf := netlab.BPFFS(t)
		var agent process
		h := home(t, func(t *testing.T, _ duplicator.Config) duplicator.Duplicator {
			agent = startProcess(t, bpf)
			return agent
		})
		s := newStream(t, h)
		s.send()
		s.expect(1, 1)
		time.Sleep(2 * shortLease)
		s.untilArrived("a living agent pushes the deadline forward") // on a busy machine not always in time, and then again
		for tries := 1; ; tries++ {
			agent.kill()
			s.send()
			if len(s.arrived()) == 1 {
				break
			}
			if tries == 5 { // once, the lease may have ended on a busy machine
				t.Fatal("the program goes silent with the agent")
			}
			agent = startProcess(t, bpf)
			s.untilArrived("the next agent copies")
		}
		time.Sleep(shortLease)
		captured := len(h.Wide.Frames())
		for range 100 {
			s.send()
			time.Sleep(time.Millisecond)
		}
		if got := s.arrived(); len(got) != 0 {
			t.Fatalf("copied by a dead agent's program: %v", got)
		}
		for _, f := range h.Wide.Frames()[captured:] {
			if p := f.IPv4(); p != nil && !f.Outgoing {
				t.Errorf("on the uplink: %x", p)
			}
		}
		startProcess(t, bpf)
		s.send()
		s.expect(s.sent, s.sent)
	})
}

// After Close what is in force ends by itself, so a stop that is no restart ends the copies too.
func TestAfterCloseTheProgramGoesSilent(t *testing.T) {
	t.Parallel()
	netlab.Isolated(t, func(t *testing.T) {
		var b *ebpf.Backend
		h := home(t, func(t *testing.T, c duplicator.Config) duplicator.Duplicator {
			b = open(t, ebpf.Config{Config: c, Interface: backendtest.LAN, PinDir: netlab.BPFFS(t)})
			return b
		})
		s := newStream(t, h)
		s.send()
		s.expect(1, 1)
		_ = b.Close()
		time.Sleep(ebpf.Handover)
		s.send()
		if got := s.arrived(); len(got) != 0 {
			t.Errorf("copied after the deadline: %v", got)
		}
		if c := b.Counters(); len(c.Groups) != 0 {
			t.Errorf("%+v", c)
		}
		if err := b.Apply(nil); err == nil {
			t.Error("Apply after Close says nothing")
		}
	})
}

// Row 25 of the threat model: after a destination left, nothing goes there, and nothing of the group range is ever on the uplink.
func TestARemovedReceiverGetsNothing(t *testing.T) {
	t.Parallel()
	netlab.Isolated(t, func(t *testing.T) {
		var b *ebpf.Backend
		h := home(t, func(t *testing.T, c duplicator.Config) duplicator.Duplicator {
			b = open(t, ebpf.Config{Config: c, Interface: backendtest.LAN, PinDir: netlab.BPFFS(t)})
			return b
		})
		s := newStream(t, h)
		s.send()
		s.expect(1, 1)
		left := backendtest.WorkedExample()
		g := left.Groups[backendtest.Groupcast1]
		g.Destinations = slices.DeleteFunc(g.Destinations, func(d table.Destination) bool { return d.ID == "upload" })
		h.Apply(left)
		for range 100 {
			s.send()
		}
		if got := s.arrived(); len(got) != 0 {
			t.Errorf("arrived: %v", got)
		}
		if n := b.Counters().Destinations["phone"].Packets; n != 101 {
			t.Errorf("the phone got %d", n)
		}
		for _, f := range h.Wide.Frames() {
			if p := f.IPv4(); p != nil && !f.Outgoing && backendtest.GroupRange.Contains(netip.AddrFrom4([4]byte(p[16:20]))) {
				t.Errorf("on the uplink: %x", p)
			}
		}
	})
}

// Probing beside a running agent takes nothing from the stream and leaves nothing. It runs alone, because a stream goes on all the while.
func TestAProbeDisturbsNobody(t *testing.T) {
	netlab.Isolated(t, func(t *testing.T) {
		c := ebpf.Config{Interface: backendtest.LAN, PinDir: netlab.BPFFS(t)}
		h := home(t, func(t *testing.T, base duplicator.Config) duplicator.Duplicator {
			c.Config = base
			return open(t, c)
		})
		before := programs(t)
		s := newStream(t, h)
		probed := make(chan error)
		go func() {
			var err error
			for i := 0; i < 5 && err == nil; i++ {
				err = ebpf.Probe(c)
			}
			probed <- err
		}()
		for done := false; !done; {
			s.send()
			select {
			case err := <-probed:
				if err != nil {
					t.Error(err)
				}
				done = true
			case <-time.After(time.Millisecond):
			}
		}
		s.expect(1, s.sent)
		if now := programs(t); now != before || now != 1 {
			t.Errorf("%d programs on the LAN interface, before %d", now, before)
		}
	})
}

// programs counts what is attached to the LAN's ingress.
func programs(t *testing.T) int {
	t.Helper()
	lan, err := net.InterfaceByName(backendtest.LAN)
	if err != nil {
		t.Fatal(err)
	}
	attached, err := link.QueryPrograms(link.QueryOptions{Target: lan.Index, Attach: ciliumebpf.AttachTCXIngress})
	if err != nil {
		t.Fatal(err)
	}
	return len(attached.Programs)
}

// What an agent of another version left is replaced, whatever its maps look like.
func TestAnotherLayoutIsReplaced(t *testing.T) {
	t.Parallel()
	netlab.Isolated(t, func(t *testing.T) {
		dir := netlab.BPFFS(t)
		h := home(t, func(t *testing.T, c duplicator.Config) duplicator.Duplicator {
			old := open(t, ebpf.Config{Config: c, Interface: backendtest.LAN, PinDir: dir})
			_ = old.Close()
			pins, err := filepath.Glob(filepath.Join(dir, "*", "streams"))
			if err != nil || len(pins) != 1 {
				t.Fatalf("pins %v, %v", pins, err)
			}
			_ = os.Remove(pins[0])
			other, err := ciliumebpf.NewMap(&ciliumebpf.MapSpec{Type: ciliumebpf.Hash, KeySize: 4, ValueSize: 4, MaxEntries: 1})
			if err == nil {
				err = other.Put(uint32(1), uint32(2))
			}
			if err == nil {
				err = other.Pin(pins[0])
			}
			if err != nil {
				t.Fatal(err)
			}
			_ = other.Close()
			return open(t, ebpf.Config{Config: c, Interface: backendtest.LAN, PinDir: dir})
		})
		s := newStream(t, h)
		s.send()
		s.expect(1, 1)
	})
}

// Programs of others on the interface see what passes; ours takes group IPs out before them and leaves everything else alone.
func TestEverythingElsePasses(t *testing.T) {
	t.Parallel()
	netlab.Isolated(t, func(t *testing.T) {
		h := home(t, func(t *testing.T, c duplicator.Config) duplicator.Duplicator {
			return open(t, ebpf.Config{Config: c, Interface: backendtest.LAN, PinDir: netlab.BPFFS(t)})
		})
		gateway, err := net.ListenPacket("udp4", "172.168.0.1:5004")
		if err != nil {
			t.Fatal(err)
		}
		defer gateway.Close()
		upload := h.Receiver(netlab.Upload)
		h.WAN.Route("172.168.0.0/24", "203.0.113.1")
		cam := h.Sender(backendtest.Camera, nil)
		for _, to := range []string{"172.168.0.1:5004", netlab.Upload + ":5004"} {
			if _, err := cam.WriteToUDPAddrPort([]byte("unicast"), netip.MustParseAddrPort(to)); err != nil {
				t.Fatal(err)
			}
		}
		buf := make([]byte, 100)
		for _, c := range []net.PacketConn{gateway, upload} {
			_ = c.SetReadDeadline(time.Now().Add(patience))
			if n, _, err := c.ReadFrom(buf); err != nil || string(buf[:n]) != "unicast" {
				t.Errorf("%s received %q, %v", c.LocalAddr(), buf[:n], err)
			}
		}
	})
}

// Remove makes room for the socket backend.
func TestRemove(t *testing.T) {
	t.Parallel()
	netlab.Isolated(t, func(t *testing.T) {
		dir := netlab.BPFFS(t)
		h := home(t, func(t *testing.T, base duplicator.Config) duplicator.Duplicator {
			c := ebpf.Config{Config: base, Interface: backendtest.LAN, PinDir: dir}
			_ = open(t, c).Close()
			if err := ebpf.Remove(c); err != nil {
				t.Fatal(err)
			}
			if err := ebpf.Remove(c); err != nil {
				t.Error(err)
			}
			lan, err := net.InterfaceByName(backendtest.LAN)
			if err != nil {
				t.Fatal(err)
			}
			left, err := link.QueryPrograms(link.QueryOptions{Target: lan.Index, Attach: ciliumebpf.AttachTCXIngress})
			if err != nil || len(left.Programs) != 0 {
				t.Errorf("still attached: %+v, %v", left, err)
			}
			d, err := duplicator.OpenSocket(base)
			if err != nil {
				t.Fatal(err)
			}
			return d
		})
		s := newStream(t, h)
		s.send()
		s.expect(1, 1)
	})
}

// What is pinned for an interface that is gone doesn't stay for ever.
func TestAGoneInterfaceLeavesNothing(t *testing.T) {
	t.Parallel()
	netlab.Isolated(t, func(t *testing.T) {
		netlab.NewHome(t, netlab.Current(t, "gateway"))
		dir := netlab.BPFFS(t)
		c := ebpf.Config{Config: duplicator.Config{GroupRange: backendtest.GroupRange, Uplink: backendtest.Uplink}, PinDir: dir}
		pins := func() int {
			t.Helper()
			all, err := filepath.Glob(filepath.Join(dir, "*", "link"))
			if err != nil {
				t.Fatal(err)
			}
			return len(all)
		}
		for _, iface := range []string{"lan0", "wan0"} {
			c.Interface = iface
			_ = open(t, c).Close()
		}
		if n := pins(); n != 2 {
			t.Fatalf("%d links are pinned for two interfaces", n)
		}
		lan0, err := netlink.LinkByName("lan0")
		if err == nil {
			err = netlink.LinkDel(lan0)
		}
		if err != nil {
			t.Fatal(err)
		}
		_ = open(t, c).Close()
		if n := pins(); n != 1 {
			t.Errorf("%d links are pinned for one interface", n)
		}
	})
}

// The network may change before there is a snapshot.
func TestANetworkThatChangesBeforeTheFirstSnapshot(t *testing.T) {
	t.Parallel()
	netlab.Isolated(t, func(t *testing.T) {
		var b *ebpf.Backend
		h := home(t, func(t *testing.T, c duplicator.Config) duplicator.Duplicator {
			b = open(t, ebpf.Config{Config: c, Interface: backendtest.LAN, PinDir: netlab.BPFFS(t)})
			gateway := netlab.Current(t, "gateway")
			for i := range 3 {
				gateway.Address("lan0", fmt.Sprintf("172.168.0.%d/24", 10+i))
				time.Sleep(50 * time.Millisecond)
			}
			return b
		})
		s := newStream(t, h)
		s.send()
		s.expect(1, 1)
	})
}

// Copies follow the next hop when its address changes, and go on through the kernel's own code while it isn't known.
func TestTheNextHopChanges(t *testing.T) {
	t.Parallel()
	netlab.Isolated(t, func(t *testing.T) {
		h := home(t, func(t *testing.T, c duplicator.Config) duplicator.Duplicator {
			return open(t, ebpf.Config{Config: c, Interface: backendtest.LAN, PinDir: netlab.BPFFS(t)})
		})
		s := newStream(t, h)
		s.send()
		s.expect(1, 1)
		h.Apply(backendtest.WorkedExample()) // by now the next hop is known
		mac := net.HardwareAddr{2, 0, 0, 0, 0, 0x99}
		h.WAN.Do(func() {
			ext0, err := netlink.LinkByName("ext0")
			if err == nil {
				err = netlink.LinkSetHardwareAddr(ext0, mac)
			}
			if err != nil {
				t.Error(err)
			}
		})
		wan0, err := netlink.LinkByName("wan0")
		if err == nil {
			err = netlink.NeighDel(&netlink.Neigh{LinkIndex: wan0.Attrs().Index, IP: net.IPv4(203, 0, 113, 254)})
		}
		if err != nil {
			t.Fatal(err)
		}
		// What is sent before the agent knows goes to the old address.
		s.untilArrived("the new address")
		for range 20 {
			s.send()
			s.expect(s.sent, s.sent)
		}
	})
}
