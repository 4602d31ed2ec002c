package dataplane

import (
	"bytes"
	"cmp"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
	"github.com/safchain/ethtool"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/groupcast/groupcast/e2e/netlab"
)

// Addresses of the worked example, and of receivers behind the uplink that nobody has: what arrives is counted and dropped.
const (
	camera    = "172.168.0.5"
	group     = "172.168.0.233"
	uplink    = "203.0.113.1"
	nextHop   = "203.0.113.254"
	mediaPort = "5004"
	payload   = 1200
)

func receiver(i int) string { return fmt.Sprintf("198.51.99.%d", i+1) }

// Real-time priorities on the CPU under test, lowest first: what measures idle time (generator.c), the kernel thread that takes packets from the
// wire, and what copies. So packets pile up while something is copied, as they do on a busy host.
const (
	receivePriority = 2
	copyPriority    = 3
)

// lab is the network. CPU 0 is the camera's; all that the gateway does is on CPU 1, including the way to the receiver, where copies are
// counted and dropped.
type lab struct {
	netlab.Home
	t        testing.TB
	realtime bool
	programs string // directory of the C programs
	pins     string
	lan      net.HardwareAddr
	cam      net.HardwareAddr
	wan      net.HardwareAddr
	ext      net.HardwareAddr
	counts   *ebpf.Map
	delays   *ebpf.Map
}

func newLab(t testing.TB, realtime bool) *lab {
	t.Helper()
	l := &lab{Home: netlab.NewHome(t, netlab.New(t, "gateway")), t: t, realtime: realtime, programs: t.TempDir(), pins: netlab.BPFFS(t)}
	for _, program := range []string{"generator", "sendto"} {
		out, err := exec.Command("gcc", "-O2", "-o", filepath.Join(l.programs, program), filepath.Join("testdata", program+".c"), "-lpthread").CombinedOutput()
		require.NoError(t, err, "compile %s.c: install gcc: %s", program, out)
	}
	l.cam, l.lan = l.hardware(l.Camera, "cam0"), l.hardware(l.Gateway, "lan0")
	l.wan, l.ext = l.hardware(l.Gateway, "wan0"), l.hardware(l.WAN, "ext0")
	l.Gateway.Address("lo", group+"/32")
	for _, of := range []string{"all", "lan0"} { // checks of destinations come from the camera's side, whose CPU has time for them
		l.Gateway.Sysctl("net.ipv4.conf."+of+".rp_filter", "0")
	}
	l.Gateway.Offload("wan0")
	l.feature("lan0", "rx-gro", true) // else a veth hands what it receives to the sender's CPU
	l.segmentation(true)
	l.receiveThread()
	l.Gateway.Run("ip", "neigh", "replace", nextHop, "lladdr", l.ext.String(), "dev", "wan0", "nud", "permanent")
	l.counts = l.array(&ebpf.MapSpec{Type: ebpf.Array, KeySize: 4, ValueSize: 8, MaxEntries: 1, Flags: unix.BPF_F_MMAPABLE})
	l.delays = l.array(&ebpf.MapSpec{Type: ebpf.Array, KeySize: 4, ValueSize: 8, MaxEntries: slots + 1})
	return l
}

func (l *lab) hardware(n *netlab.Namespace, iface string) net.HardwareAddr {
	l.t.Helper()
	var i *net.Interface
	var err error
	n.Do(func() { i, err = net.InterfaceByName(iface) })
	require.NoError(l.t, err)
	return i.HardwareAddr
}

// feature sets an offload of one of the gateway's interfaces.
func (l *lab) feature(iface, name string, on bool) {
	l.t.Helper()
	var err error
	l.Gateway.Do(func() {
		e, openErr := ethtool.NewEthtool()
		if err = openErr; err == nil {
			defer e.Close()
			err = e.Change(iface, map[string]bool{name: on})
		}
	})
	require.NoError(l.t, err, "%s of %s", name, iface)
}

// segmentation says whether the uplink takes super-packets; if not, the kernel cuts them up.
func (l *lab) segmentation(on bool) { l.feature("wan0", "tx-udp-segmentation", on) }

// receiveThread has a kernel thread take what arrives at lan0, on the CPU under test and with less priority than what copies.
func (l *lab) receiveThread() {
	l.t.Helper()
	before := napiThreads(l.t)
	var err error
	l.Gateway.Do(func() { err = threadedReceive("lan0") })
	require.NoError(l.t, err, "let a thread receive")
	for _, pid := range napiThreads(l.t) {
		if !slices.Contains(before, pid) {
			l.place(pid, 1, receivePriority)
		}
	}
}

// threadedReceive writes to a sysfs of the thread's own namespace, which is mounted nowhere.
func threadedReceive(iface string) error {
	config, err := unix.Fsopen("sysfs", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return err
	}
	defer unix.Close(config)
	if err := unix.FsconfigCreate(config); err != nil {
		return err
	}
	mount, err := unix.Fsmount(config, unix.FSMOUNT_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(mount)
	fd, err := unix.Openat(mount, "class/net/"+iface+"/threaded", unix.O_WRONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	_, err = unix.Write(fd, []byte("1"))
	return err
}

func napiThreads(t testing.TB) []int {
	t.Helper()
	names, err := filepath.Glob("/proc/[0-9]*/comm")
	require.NoError(t, err)
	var pids []int
	for _, name := range names {
		if b, err := os.ReadFile(name); err == nil && bytes.HasPrefix(b, []byte("napi/lan0-")) {
			pid, err := strconv.Atoi(strings.Split(name, "/")[2])
			require.NoError(t, err)
			pids = append(pids, pid)
		}
	}
	return pids
}

// place gives a thread its CPU and priority.
func (l *lab) place(tid, cpu, priority int) {
	l.t.Helper()
	var set unix.CPUSet
	set.Set(cpu)
	require.NoError(l.t, unix.SchedSetaffinity(tid, &set))
	if l.realtime {
		require.NoError(l.t, unix.SchedSetAttr(tid, &unix.SchedAttr{Size: unix.SizeofSchedAttr, Policy: unix.SCHED_FIFO, Priority: uint32(priority)}, 0))
	}
}

// placeProcess puts all threads of a process on a CPU, but for the one that only watches Go's scheduler: its timers would
// interrupt what is measured.
func (l *lab) placeProcess(pid int, golang bool, cpu int) {
	l.t.Helper()
	entries, err := os.ReadDir(fmt.Sprintf("/proc/%d/task", pid))
	require.NoError(l.t, err)
	var tids []int
	for _, e := range entries {
		tid, err := strconv.Atoi(e.Name())
		require.NoError(l.t, err)
		tids = append(tids, tid)
	}
	slices.Sort(tids)
	for i, tid := range tids {
		if golang && i == 1 {
			continue
		}
		l.place(tid, cpu, copyPriority)
	}
}

func (l *lab) array(spec *ebpf.MapSpec) *ebpf.Map {
	l.t.Helper()
	m, err := ebpf.NewMap(spec)
	require.NoError(l.t, err)
	l.t.Cleanup(func() { m.Close() })
	return m
}

// Histogram of delays: slots of so many nanoseconds, and one for what is longer.
const (
	slots     = 20000
	slotWidth = 100
)

// Offsets in struct __sk_buff, which is part of the kernel's stable interface.
const (
	skbLen      = 0
	skbProtocol = 16
	skbSegments = 164
)

// Verdicts of TCX programs.
const (
	tcxNext = -1
	tcxDrop = 2
)

// shortest is the size of the smallest packet that is a copy, in bytes; what is smaller belongs to consent.
const shortest = 400

// sink counts the IPv4 datagrams that come by, a super-packet as what it holds, and drops them. Checks go by.
func (l *lab) sink(delays bool) asm.Instructions {
	sink := asm.Instructions{
		asm.Mov.Reg(asm.R6, asm.R1),
		asm.LoadMem(asm.R2, asm.R6, skbProtocol, asm.Word),
		asm.JNE.Imm(asm.R2, 0x0008, "next"), // ETH_P_IP in network byte order
		asm.LoadMem(asm.R2, asm.R6, skbLen, asm.Word),
		asm.JLT.Imm(asm.R2, shortest, "next"),
	}
	if delays {
		sink = append(sink,
			asm.Mov.Reg(asm.R1, asm.R6),
			asm.LoadMem(asm.R2, asm.R6, skbLen, asm.Word),
			asm.Add.Imm(asm.R2, -8),
			asm.Mov.Reg(asm.R3, asm.RFP),
			asm.Add.Imm(asm.R3, -8),
			asm.Mov.Imm(asm.R4, 8),
			asm.FnSkbLoadBytes.Call(),
			asm.JNE.Imm(asm.R0, 0, "count"),
			asm.FnKtimeGetNs.Call(),
			asm.LoadMem(asm.R1, asm.RFP, -8, asm.DWord),
			asm.Sub.Reg(asm.R0, asm.R1),
			asm.Div.Imm(asm.R0, slotWidth),
			asm.JLE.Imm(asm.R0, slots, "slot"),
			asm.Mov.Imm(asm.R0, slots),
			asm.StoreMem(asm.RFP, -12, asm.R0, asm.Word).WithSymbol("slot"),
			asm.LoadMapPtr(asm.R1, l.delays.FD()),
			asm.Mov.Reg(asm.R2, asm.RFP),
			asm.Add.Imm(asm.R2, -12),
			asm.FnMapLookupElem.Call(),
			asm.JEq.Imm(asm.R0, 0, "count"),
			asm.Mov.Imm(asm.R1, 1),
			asm.AddAtomic.Mem(asm.R0, asm.R1, asm.DWord, 0),
		)
	}
	return append(sink,
		asm.LoadMem(asm.R2, asm.R6, skbSegments, asm.Word).WithSymbol("count"),
		asm.JNE.Imm(asm.R2, 0, "add"),
		asm.Mov.Imm(asm.R2, 1),
		asm.LoadMapValue(asm.R1, l.counts.FD(), 0).WithSymbol("add"),
		asm.AddAtomic.Mem(asm.R1, asm.R2, asm.DWord, 0),
		asm.Mov.Imm(asm.R0, tcxDrop),
		asm.Return(),
		asm.Mov.Imm(asm.R0, tcxNext).WithSymbol("next"),
		asm.Return(),
	)
}

// cloneOnly sends every IPv4 packet to the uplink n times as it stands: no program that copies can be faster.
func (l *lab) cloneOnly(n int) asm.Instructions {
	out := int32(l.index(l.Gateway, "wan0"))
	program := asm.Instructions{
		asm.Mov.Reg(asm.R6, asm.R1),
		asm.LoadMem(asm.R2, asm.R6, skbProtocol, asm.Word),
		asm.JNE.Imm(asm.R2, 0x0008, "next"),
	}
	for range n - 1 {
		program = append(program, asm.Mov.Reg(asm.R1, asm.R6), asm.Mov.Imm(asm.R2, out), asm.Mov.Imm(asm.R3, 0), asm.FnCloneRedirect.Call())
	}
	return append(program,
		asm.Mov.Imm(asm.R1, out), asm.Mov.Imm(asm.R2, 0), asm.FnRedirect.Call(), asm.Return(),
		asm.Mov.Imm(asm.R0, tcxNext).WithSymbol("next"), asm.Return(),
	)
}

func (l *lab) index(n *netlab.Namespace, iface string) (index int) {
	l.t.Helper()
	var i *net.Interface
	var err error
	n.Do(func() { i, err = net.InterfaceByName(iface) })
	require.NoError(l.t, err)
	return i.Index
}

// attach runs a program on an interface until stop.
func (l *lab) attach(n *netlab.Namespace, iface string, at ebpf.AttachType, code asm.Instructions) (stop func()) {
	l.t.Helper()
	program, err := ebpf.NewProgram(&ebpf.ProgramSpec{Type: ebpf.SchedCLS, Instructions: code, License: "Apache-2.0"})
	require.NoError(l.t, err)
	defer program.Close()
	var attached link.Link
	index := l.index(n, iface)
	n.Do(func() {
		attached, err = link.AttachTCX(link.TCXOptions{Interface: index, Program: program, Attach: at})
	})
	require.NoError(l.t, err)
	return func() { attached.Close() }
}

// load is how the generator sends.
type load struct {
	to      string
	copies  int
	window  int
	rate    int // datagrams per second; 0: as many as are copied
	uneven  bool
	plain   bool // without the option
	stamp   bool
	checks  bool // of destinations, between the datagrams
	seconds float64
	tunnel  bool   // in IPv6, as in the tunnel
	iface   string // a device without an Ethernet header; by default cam0, which has one
}

// measurement is what came of it.
type measurement struct {
	copies float64 // per second
	idle   float64 // of the CPU under test
	lost   int     // copies
	all    int     // copies, also those before and after the time that was measured
	delay  float64 // median, in microseconds
}

// cost is the time of the CPU under test per copy, in nanoseconds.
func (m measurement) cost() float64 { return max(1-m.idle, 0) * 1e9 / m.copies }

func (l *lab) generate(w load) measurement {
	l.t.Helper()
	number := func(b bool) string { return map[bool]string{true: "1", false: "0"}[b] }
	counter, err := unix.Dup(l.counts.FD())
	require.NoError(l.t, err)
	file := os.NewFile(uintptr(counter), "counts")
	defer file.Close()
	if w.stamp {
		for i := range uint32(slots + 1) {
			require.NoError(l.t, l.delays.Put(i, uint64(0)))
		}
	}
	form := 0
	for bit, set := range []bool{!w.plain, w.tunnel, w.iface != ""} {
		if set {
			form |= 1 << bit
		}
	}
	cmd := exec.Command(filepath.Join(l.programs, "generator"), cmp.Or(w.iface, "cam0"), l.lan.String(), l.cam.String(), camera, w.to, strconv.Itoa(w.copies),
		strconv.Itoa(w.window), strconv.Itoa(w.rate), fmt.Sprint(w.seconds), number(w.uneven), number(w.stamp), number(l.realtime), strconv.Itoa(form), "0")
	if w.checks {
		cmd.Args[len(cmd.Args)-1] = strconv.Itoa(checksPerSecond)
		cmd.Args = append(cmd.Args, l.checks(w.copies)...)
	}
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr, cmd.ExtraFiles = &out, &out, []*os.File{file}
	l.Camera.Start(cmd)
	require.NoError(l.t, cmd.Wait(), out.String())
	var m measurement
	_, err = fmt.Sscanf(out.String(), "copies=%f idle=%f lost=%d all=%d", &m.copies, &m.idle, &m.lost, &m.all)
	require.NoError(l.t, err, out.String())
	if w.stamp {
		m.delay = l.medianDelay()
	}
	return m
}

func (l *lab) medianDelay() float64 {
	l.t.Helper()
	counts := make([]uint64, slots+1)
	total := uint64(0)
	for i := range counts {
		require.NoError(l.t, l.delays.Lookup(uint32(i), &counts[i]))
		total += counts[i]
	}
	seen := uint64(0)
	for i, n := range counts {
		if seen += n; 2*seen >= total && total > 0 {
			return float64(i) * slotWidth / 1000
		}
	}
	return 0
}
