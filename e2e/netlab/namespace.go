package netlab

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
)

// Namespace is one host of the lab.
type Namespace struct {
	Name string

	t      testing.TB
	ns     netns.NsHandle
	handle *netlink.Handle
}

// New makes a network namespace with loopback up. It goes away with the test.
func New(t testing.TB, name string) *Namespace {
	t.Helper()
	Require(t)
	ns, err := newNamespace()
	if err != nil {
		t.Fatalf("make namespace %s: %v", name, err)
	}
	return open(t, name, ns)
}

// Current is the namespace of the process itself, inside Isolated only: anywhere else it would be a real network.
func Current(t testing.TB, name string) *Namespace {
	t.Helper()
	if os.Getenv(childEnv) == "" {
		t.Fatalf("netlab.Current(%q) is for tests inside netlab.Isolated", name)
	}
	ns, err := netns.Get()
	if err != nil {
		t.Fatalf("open the process's namespace: %v", err)
	}
	return open(t, name, ns)
}

func open(t testing.TB, name string, ns netns.NsHandle) *Namespace {
	t.Helper()
	handle, err := netlink.NewHandleAt(ns)
	if err != nil {
		t.Fatalf("open netlink in namespace %s: %v", name, err)
	}
	n := &Namespace{Name: name, t: t, ns: ns, handle: handle}
	t.Cleanup(func() {
		handle.Close()
		ns.Close()
	})
	n.up("lo")
	return n
}

// newNamespace leaves the calling thread where it was, or loses the thread.
func newNamespace() (netns.NsHandle, error) {
	type result struct {
		ns  netns.NsHandle
		err error
	}
	made := make(chan result)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine and takes its namespace along
		ns, err := netns.New()
		made <- result{ns, err}
	}()
	r := <-made
	return r.ns, r.err
}

// Do runs f with the calling goroutine inside the namespace. Sockets that f opens stay there. If the way back fails, the thread
// is thrown away together with the goroutine.
func (n *Namespace) Do(f func()) {
	n.t.Helper()
	runtime.LockOSThread()
	home, err := netns.Get()
	if err != nil {
		n.t.Fatalf("open the thread's namespace: %v", err)
	}
	defer home.Close()
	if err := netns.Set(n.ns); err != nil {
		n.t.Fatalf("enter namespace %s: %v", n.Name, err)
	}
	defer func() {
		if err := netns.Set(home); err != nil {
			n.t.Fatalf("leave namespace %s: %v", n.Name, err)
		}
		runtime.UnlockOSThread()
	}()
	f()
}

// Start starts the command inside the namespace and has it killed with the test. The caller may wait for it.
func (n *Namespace) Start(cmd *exec.Cmd) {
	n.t.Helper()
	var err error
	n.Do(func() { err = cmd.Start() }) // a child is born in the namespace of the thread that forks it
	if err != nil {
		n.t.Fatalf("start %s in namespace %s: %v", cmd.Path, n.Name, err)
	}
	n.t.Cleanup(func() { _ = cmd.Process.Kill() })
}

// Run runs a command inside the namespace and gives its output; failure ends the test.
func (n *Namespace) Run(name string, args ...string) string {
	n.t.Helper()
	cmd := exec.CommandContext(context.Background(), name, args...)
	var out []byte
	var err error
	n.Do(func() { out, err = cmd.CombinedOutput() })
	if err != nil {
		n.t.Fatalf("%s: %s %s: %v\n%s", n.Name, name, strings.Join(args, " "), err, out)
	}
	return string(out)
}

// Sysctl sets a kernel setting of the namespace, such as net.ipv4.ip_forward.
func (n *Namespace) Sysctl(key, value string) {
	n.t.Helper()
	path := filepath.Join("/proc/sys", strings.ReplaceAll(key, ".", "/"))
	var err error
	n.Do(func() { err = os.WriteFile(path, []byte(value), 0o644) })
	if err != nil {
		n.t.Fatalf("%s: set %s: %v", n.Name, key, err)
	}
}

// Address gives an interface an address with its prefix length, such as 172.168.0.5/24.
func (n *Namespace) Address(iface, prefix string) {
	n.t.Helper()
	addr, err := netlink.ParseAddr(prefix)
	if err == nil {
		addr.Flags = ifaFlags(addr.IP)
		err = n.handle.AddrAdd(n.link(iface), addr)
	}
	if err != nil {
		n.t.Fatalf("%s: give %s the address %s: %v", n.Name, iface, prefix, err)
	}
}

// MTU sets the largest IP packet that an interface takes, in bytes.
func (n *Namespace) MTU(iface string, bytes int) {
	n.t.Helper()
	if err := n.handle.LinkSetMTU(n.link(iface), bytes); err != nil {
		n.t.Fatalf("%s: set the MTU of %s to %d: %v", n.Name, iface, bytes, err)
	}
}

// Offload leaves checksums and segmentation to the interface again, which Connect turned off. A virtual one does neither, so what its
// peer gets has checksums that nobody computed, and super-packets.
func (n *Namespace) Offload(iface string) {
	n.t.Helper()
	var err error
	n.Do(func() { err = checksumOffload(iface, true) })
	if err != nil {
		n.t.Fatalf("%s: turn on checksum offload: %v", end(n, iface), err)
	}
}

// Route sends what goes to the prefix by way of a neighbour.
func (n *Namespace) Route(prefix, via string) {
	n.t.Helper()
	_, dst, err := net.ParseCIDR(prefix)
	if err == nil {
		err = n.handle.RouteAdd(&netlink.Route{Dst: dst, Gw: net.ParseIP(via)})
	}
	if err != nil {
		n.t.Fatalf("%s: route %s via %s: %v", n.Name, prefix, via, err)
	}
}

// Neighbour tells an interface the hardware address of a neighbour for good, so that it asks nobody.
func (n *Namespace) Neighbour(iface, ip string, at net.HardwareAddr) {
	n.t.Helper()
	err := n.handle.NeighSet(&netlink.Neigh{
		LinkIndex: n.link(iface).Attrs().Index, IP: net.ParseIP(ip), State: netlink.NUD_PERMANENT, HardwareAddr: at,
	})
	if err != nil {
		n.t.Fatalf("%s: neighbour %s on %s: %v", n.Name, ip, iface, err)
	}
}

// HardwareAddr gives an interface's own.
func (n *Namespace) HardwareAddr(iface string) net.HardwareAddr {
	n.t.Helper()
	return n.link(iface).Attrs().HardwareAddr
}

// Index gives an interface's number.
func (n *Namespace) Index(iface string) int {
	n.t.Helper()
	return n.link(iface).Attrs().Index
}

// ListenUDP opens a UDP socket inside the namespace, with a receive buffer that holds a whole test.
func (n *Namespace) ListenUDP(local string) *net.UDPConn {
	n.t.Helper()
	addr := net.UDPAddrFromAddrPort(netip.MustParseAddrPort(local))
	var conn *net.UDPConn
	var err error
	n.Do(func() { conn, err = net.ListenUDP("udp", addr) })
	if err == nil {
		err = forceBuffer(conn)
	}
	if err != nil {
		n.t.Fatalf("%s: listen on %s: %v", n.Name, local, err)
	}
	n.t.Cleanup(func() { conn.Close() })
	return conn
}

func (n *Namespace) link(name string) netlink.Link {
	n.t.Helper()
	link, err := n.handle.LinkByName(name)
	if err != nil {
		n.t.Fatalf("%s: interface %s: %v", n.Name, name, err)
	}
	return link
}

func (n *Namespace) up(name string) {
	n.t.Helper()
	if err := n.handle.LinkSetUp(n.link(name)); err != nil {
		n.t.Fatalf("%s: bring up %s: %v", n.Name, name, err)
	}
}

// Connect joins two namespaces by a cable: a veth pair that is up at both ends. Checksums are computed by the sender, as on a
// wire, so a capture shows what a network card would have sent.
func Connect(a *Namespace, ifaceA string, b *Namespace, ifaceB string) {
	a.t.Helper()
	attrs := netlink.NewLinkAttrs()
	attrs.Name = ifaceA
	veth := &netlink.Veth{LinkAttrs: attrs, PeerName: ifaceB, PeerNamespace: netlink.NsFd(b.ns)}
	if err := a.handle.LinkAdd(veth); err != nil {
		a.t.Fatalf("connect %s to %s: %v", end(a, ifaceA), end(b, ifaceB), err)
	}
	for _, e := range []struct {
		n     *Namespace
		iface string
	}{{a, ifaceA}, {b, ifaceB}} {
		var err error
		e.n.Do(func() { err = checksumOffload(e.iface, false) })
		if err != nil {
			a.t.Fatalf("%s: turn off checksum offload: %v", end(e.n, e.iface), err)
		}
		e.n.up(e.iface)
	}
}

func end(n *Namespace, iface string) string { return fmt.Sprintf("%s:%s", n.Name, iface) }
