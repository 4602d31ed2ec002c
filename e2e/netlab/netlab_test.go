package netlab_test

import (
	"net"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/groupcast/groupcast/e2e/netlab"
)

func interfaces(t *testing.T) string {
	t.Helper()
	all, err := net.Interfaces()
	if err != nil {
		t.Fatal(err)
	}
	names := make([]string, 0, len(all))
	for _, i := range all {
		names = append(names, i.Name)
	}
	return strings.Join(names, " ")
}

func TestNamespacesAreJoinedToEachOtherAndToNothingElse(t *testing.T) {
	netlab.Require(t)
	before := interfaces(t)
	a, b := netlab.New(t, "a"), netlab.New(t, "b")
	netlab.Connect(a, "a0", b, "b0")
	a.Address("a0", "198.18.0.1/24")
	b.Address("b0", "198.18.0.2/24")
	capture := b.Capture("b0")

	receiver := b.ListenUDP("198.18.0.2:5004")
	sender := a.ListenUDP("198.18.0.1:4000")
	if _, err := sender.WriteToUDPAddrPort([]byte("hello"), netip.MustParseAddrPort("198.18.0.2:5004")); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 100)
	_ = receiver.SetReadDeadline(time.Now().Add(time.Minute))
	n, from, err := receiver.ReadFromUDPAddrPort(buf)
	if err != nil || string(buf[:n]) != "hello" || from.Port() != 4000 {
		t.Fatalf("received %q from %s, %v", buf[:n], from, err)
	}

	isIPv4 := func(f netlab.Frame) bool { return f.IPv4() != nil }
	frames := capture.Wait(time.Minute, func(frames []netlab.Frame) bool { return slices.ContainsFunc(frames, isIPv4) })
	datagram := frames[slices.IndexFunc(frames, isIPv4)]
	if err := netlab.VerifyIPv4(datagram.IPv4()); err != nil {
		t.Errorf("a captured datagram must carry real checksums: %v", err)
	}
	if time.Since(datagram.At).Abs() > time.Minute {
		t.Errorf("captured at %s", datagram.At)
	}
	if got := a.Run("cat", "/proc/net/dev"); !strings.Contains(got, "a0:") || strings.Contains(got, "eth0:") {
		t.Errorf("namespace a has these interfaces:\n%s", got)
	}
	if after := interfaces(t); after != before {
		t.Errorf("interfaces outside the lab: %q, before %q", after, before)
	}
}

func TestDoBringsTheThreadBack(t *testing.T) {
	netlab.Require(t)
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	where := func() string {
		s, err := os.Readlink("/proc/thread-self/ns/net")
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	home, n := where(), netlab.New(t, "a")
	var inside string
	n.Do(func() { inside = where() })
	if inside == home {
		t.Error("Do ran outside the namespace")
	}
	func() {
		defer func() { _ = recover() }()
		n.Do(func() { panic("a test gives up") })
	}()
	if now := where(); now != home {
		t.Errorf("the thread is in %s, not back in %s", now, home)
	}
}

func TestCommandsRunInsideAndDieWithTheTest(t *testing.T) {
	netlab.Require(t)
	cmd := exec.Command("sleep", "600")
	t.Run("test", func(t *testing.T) {
		n := netlab.New(t, "a")
		n.Start(cmd)
		var want string
		n.Do(func() { want, _ = os.Readlink("/proc/thread-self/ns/net") })
		if got := strings.TrimSpace(n.Run("readlink", "/proc/self/ns/net")); got != want {
			t.Errorf("command ran in %s, not in %s", got, want)
		}
	})
	if err := cmd.Wait(); err == nil || cmd.ProcessState.Success() {
		t.Errorf("the command outlived its test: %v", cmd.ProcessState)
	}
}

func TestIsolatedHasANamespaceOfItsOwn(t *testing.T) {
	netlab.Require(t)
	parent := os.Getenv("NETLAB_TEST_PARENT")
	if parent == "" {
		self, err := os.Readlink("/proc/self/ns/net")
		if err != nil {
			t.Fatal(err)
		}
		t.Setenv("NETLAB_TEST_PARENT", self)
	}
	netlab.Isolated(t, func(t *testing.T) {
		if got := interfaces(t); got != "lo" {
			t.Errorf("interfaces: %q", got)
		}
		if self, _ := os.Readlink("/proc/self/ns/net"); self == parent {
			t.Error("runs in the parent's namespace")
		}
		here, other := netlab.Current(t, "here"), netlab.New(t, "other")
		netlab.Connect(here, "x0", other, "y0")
		here.Address("x0", "198.18.0.1/24")
		if _, err := net.Dial("udp", "198.18.0.2:1"); err != nil {
			t.Errorf("a goroutine of the test is outside its namespace: %v", err)
		}
	})
}

func TestRawPacketsPassAsTheyAre(t *testing.T) {
	netlab.Require(t)
	a, b := netlab.New(t, "a"), netlab.New(t, "b")
	netlab.Connect(a, "a0", b, "b0")
	a.Address("a0", "198.18.0.1/24")
	b.Address("b0", "198.18.0.2/24")
	capture := b.Capture("b0")

	packet := []byte{
		0x47, 0, 0, 40, 0x12, 0x34, 0, 0, 9, 17, 0, 0, 198, 18, 0, 1, 198, 18, 0, 2,
		0x88, 6, 198, 18, 0, 1, 0, 0,
		0x0f, 0xa0, 0x13, 0x8c, 0, 12, 0, 0, 'd', 'a', 't', 'a',
	}
	a.InjectIPv4(packet)
	frame := append([]byte{2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 0x88, 0xb5}, "frame"...)
	a.InjectFrame("a0", frame)

	frames := capture.Wait(time.Minute, func(frames []netlab.Frame) bool {
		return find(frames, func(f netlab.Frame) bool { return string(f.Data) == string(frame) }) != nil
	})
	got := find(frames, func(f netlab.Frame) bool { return f.IPv4() != nil })
	if got == nil {
		t.Fatal("the packet did not arrive")
	}
	arrived := got.IPv4()
	if err := netlab.VerifyIPv4(arrived); err != nil {
		t.Error(err)
	}
	copy(arrived[10:12], []byte{0, 0})
	if string(arrived) != string(packet) {
		t.Errorf("sent     %x\nreceived %x", packet, arrived)
	}
}

func find(frames []netlab.Frame, match func(netlab.Frame) bool) *netlab.Frame {
	for i := range frames {
		if match(frames[i]) {
			return &frames[i]
		}
	}
	return nil
}

func TestVerifyIPv4FindsAWrongBit(t *testing.T) {
	good := []byte{
		0x45, 0, 0, 29, 0, 1, 0x40, 0, 0x40, 0x11, 0x3c, 0xcd, 127, 0, 0, 1, 127, 0, 0, 1,
		0x0f, 0xa0, 0x13, 0x8c, 0, 9, 0x91, 0xad, 'M',
	}
	if err := netlab.VerifyIPv4(good); err != nil {
		t.Fatal(err)
	}
	for bit := range len(good) * 8 {
		if bit/8 == 6 || bit/8 == 7 || bit/8 == 9 {
			continue // turns the packet into a fragment or another protocol: the header sum is wrong all the same
		}
		bad := append([]byte(nil), good...)
		bad[bit/8] ^= 1 << (bit % 8)
		if netlab.VerifyIPv4(bad) == nil {
			t.Errorf("bit %d is wrong and nobody noticed", bit)
		}
	}
}
