package duplicator

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/groupcast/groupcast/gateway-agent/packet"
	"github.com/groupcast/groupcast/gateway-agent/table"
)

// Forward sends what cameras send to group IPs to a relay, instead of copies of it: each packet once and unchanged, by the same decision as for a copy. It sees
// packets before the host's IP stack and before the ebpf backend do, fragments as they are.
//
// It is exclusive with a Duplicator by what both are given: while it has groups, the Duplicator's groups have no destinations.
type Forward struct {
	config Config
	file   *os.File // the LAN
	raw    syscall.RawConn
	inner  int // the tunnel
	in     *packets
	to     unix.RawSockaddrInet6
	out    [batchSize]message
	parts  [batchSize]unix.Iovec
	way    atomic.Pointer[way]
	done   chan struct{}

	overflow                                 uint32
	packets, bytes, lost, idle, full, failed atomic.Uint64
	reasons                                  [packet.ReasonCount]atomic.Uint64

	batch sync.Mutex // held while packets are judged and sent on

	mu     sync.Mutex // one Apply or Close at a time
	closed bool
}

// way is what is forwarded and where to.
type way struct {
	*table.Snapshot
	relay netip.Addr
	since time.Time // it began to forward
}

// OpenForward forwards nothing until Apply. It needs CAP_NET_RAW.
func OpenForward(c Config, lan string, inside Inside) (*Forward, error) {
	f, err := openForward(c, lan, inside)
	if err != nil {
		return nil, err
	}
	go f.run()
	return f, nil
}

// openForward opens one that doesn't run yet.
func openForward(c Config, lan string, inside Inside) (*Forward, error) {
	c, err := c.Complete()
	if err != nil {
		return nil, err
	}
	f := &Forward{config: c, done: make(chan struct{})}
	f.way.Store(&way{})
	if f.in, err = newPackets(inFront); err != nil {
		return nil, fmt.Errorf("duplicator: %w", err)
	}
	if f.inner, err = openInner(inside); err != nil {
		f.in.free()
		return nil, fmt.Errorf("duplicator: %w", err)
	}
	if f.file, err = openLAN(lan, c); err == nil {
		f.raw, err = f.file.SyscallConn()
	}
	if err != nil {
		f.in.free()
		return nil, errors.Join(fmt.Errorf("duplicator: take what cameras send on %s: %w", lan, err), unix.Close(f.inner))
	}
	for i := range f.out {
		m := &f.out[i].Msghdr
		m.Name, m.Namelen = (*byte)(unsafe.Pointer(&f.to)), unix.SizeofSockaddrInet6
		m.Iov = &f.parts[i]
		m.SetIovlen(1)
	}
	f.to.Family = unix.AF_INET6
	return f, nil
}

// Apply makes the groups of the snapshot those whose datagrams go to the relay with that tunnel address; nil: none. When it returns, nothing is forwarded by what was in
// force before.
func (f *Forward) Apply(s *table.Snapshot, relay netip.Addr) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.closed {
		return fmt.Errorf("%w: %w", ErrNotApplied, errClosed)
	}
	next := &way{relay: relay, since: time.Now()}
	if before := f.way.Load(); before.Snapshot != nil {
		next.since = before.since
	}
	if s != nil {
		p, err := newPlan(s, time.Now(), f.config, refusals{})
		if err != nil {
			return fmt.Errorf("%w: %w", ErrNotApplied, err)
		}
		next.Snapshot = p.Snapshot
	}
	f.way.Store(next)
	f.batch.Lock() // whoever forwards by the way before is done
	defer f.batch.Unlock()
	return nil
}

// ForwardCounters is what was forwarded and what wasn't. Numbers only rise.
type ForwardCounters struct {
	Packets uint64            `json:"packets"` // fragments count each
	Bytes   uint64            `json:"bytes"`   // of IPv4
	Drops   map[string]uint64 `json:"drops"`   // by packet.Reason or a Drop constant
}

// DropIdle is a datagram of a group without destinations: it stays at home.
const DropIdle = "no-destination"

// Counters gives what was counted since the start.
func (f *Forward) Counters() ForwardCounters {
	c := ForwardCounters{Packets: f.packets.Load(), Bytes: f.bytes.Load()}
	for reason := range f.reasons {
		if r := packet.Reason(reason); r != packet.Copy {
			c.Drops = with(c.Drops, r.String(), f.reasons[reason].Load())
		}
	}
	c.Drops = with(with(c.Drops, DropOverflow, f.lost.Load()), DropIdle, f.idle.Load())
	c.Drops = with(with(c.Drops, DropFull, f.full.Load()), DropError, f.failed.Load())
	return c
}

// Close returns when nothing is forwarded any more.
func (f *Forward) Close() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.closed {
		return nil
	}
	f.closed = true
	err := f.file.Close()
	<-f.done
	f.in.free()
	return errors.Join(err, unix.Close(f.inner))
}

func (f *Forward) run() {
	defer close(f.done)
	for {
		n := 0
		var receiveErr error
		err := f.raw.Read(func(fd uintptr) bool {
			n, receiveErr = f.in.receive(int(fd))
			return !errors.Is(receiveErr, unix.EAGAIN)
		})
		switch {
		case err == nil && receiveErr == nil:
			f.forward(n, time.Now())
		case err != nil: // closed
			return
		case errors.Is(receiveErr, unix.ENETDOWN): // what came before it went down was read; it comes up again
			time.Sleep(errorPause)
		case errors.Is(receiveErr, unix.EINVAL): // a kernel before 6.2 can't describe a super-packet, and dropped it
			f.failed.Add(1)
		default:
			f.config.Log.Error("receiving from cameras failed; trying again", "error", receiveErr)
			time.Sleep(errorPause)
		}
	}
}

// forward judges each packet of a batch by one snapshot, and sends those on that a Duplicator would copy.
func (f *Forward) forward(n int, now time.Time) {
	f.batch.Lock()
	defer f.batch.Unlock()
	w := f.way.Load()
	f.to.Addr = w.relay.As16()
	out := 0
	for i := range n {
		about := f.about(i)
		p, err := packet.Parse(f.in.packet(i))
		if err != nil {
			f.reasons[packet.Malformed].Add(1)
			continue
		}
		if w.Snapshot == nil || about.before(w.since, now) {
			continue // copied at home, or nothing is
		}
		v := packet.Decide(w.Snapshot, now, p.Datagram)
		f.reasons[v.Reason].Add(1)
		switch {
		case v.Reason != packet.Copy, !f.serves(p.Datagram):
			continue
		case len(v.Group.Destinations) == 0:
			f.idle.Add(1)
			continue
		}
		if about.segment > 0 { // from a camera on this host or on a virtual interface of it
			f.send(f.out[:out])
			out = 0
			for _, one := range p.Segments(about.segment) {
				f.parts[0].Base = &one[0]
				f.parts[0].SetLen(len(one))
				f.send(f.out[:1])
			}
			continue
		}
		if about.unsummed {
			p.Complete()
		}
		f.parts[out].Base = &p.Bytes()[0]
		f.parts[out].SetLen(len(p.Bytes()))
		out++
	}
	f.send(f.out[:out])
}

// serves tells whether cameras send to the port. A fragment but the first has none: the relay has no use for it without the first.
func (f *Forward) serves(d packet.Datagram) bool {
	return f.config.AnyPort || d.Destination.Port() == 0 || slices.Contains(f.config.Ports, d.Destination.Port())
}

// send never waits: what the tunnel has no room for is dropped.
func (f *Forward) send(out []message) {
	for len(out) > 0 {
		n, err := manyMessages(unix.SYS_SENDMMSG, f.inner, out, unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL)
		for i := range out[:n] {
			f.packets.Add(1)
			f.bytes.Add(uint64(out[i].length))
		}
		out = out[n:]
		if err == nil {
			continue
		}
		if isFull(err) {
			f.full.Add(uint64(len(out)))
			return
		}
		f.failed.Add(1)
		out = out[1:]
	}
}

// about is what the kernel says about a packet.
type about struct {
	unsummed bool
	segment  int       // bytes of payload of each datagram but the last in a super-packet; 0: it is none
	at       time.Time // when it came
}

// longestQueue is longer than a packet waits to be read. After that the clock, which somebody may set, isn't asked.
const longestQueue = time.Second

// before tells whether a packet came before forwarding began: then it was copied at home.
func (a about) before(since, now time.Time) bool {
	return now.Sub(since) < longestQueue && a.at.Before(since)
}

// What the kernel puts in front of each packet: struct virtio_net_hdr, and the Ethernet header.
const (
	virtioHeader   = 10
	ethernetHeader = 14
	inFront        = virtioHeader + ethernetHeader
)

func (f *Forward) about(i int) (a about) {
	const (
		statusNotSummed = 1 << 3 // TP_STATUS_CSUMNOTREADY
		segmentsOfUDP   = 5      // VIRTIO_NET_HDR_GSO_UDP_L4
	)
	if header := f.in.slots[i*slotSize:][:virtioHeader]; header[1] == segmentsOfUDP {
		a.segment = int(binary.NativeEndian.Uint16(header[4:]))
	}
	for oob := f.in.control[i][:f.in.in[i].Controllen]; len(oob) >= unix.CmsgLen(4); {
		header, data, rest, err := unix.ParseOneSocketControlMessage(oob)
		if err != nil {
			return a
		}
		oob = rest
		switch {
		case header.Level == unix.SOL_PACKET && header.Type == unix.PACKET_AUXDATA && len(data) >= 4:
			a.unsummed = binary.NativeEndian.Uint32(data)&statusNotSummed != 0
		case header.Level == unix.SOL_SOCKET && header.Type == unix.SCM_TIMESTAMPNS && len(data) >= 16:
			a.at = time.Unix(int64(binary.NativeEndian.Uint64(data)), int64(binary.NativeEndian.Uint64(data[8:])))
		case header.Level == unix.SOL_SOCKET && header.Type == unix.SO_RXQ_OVFL && len(data) >= 4:
			total := binary.NativeEndian.Uint32(data)
			f.lost.Add(uint64(total - f.overflow))
			f.overflow = total
		}
	}
	return a
}

// openLAN opens a socket that gets every UDP packet that comes to this host on an interface for an address of the group range.
func openLAN(name string, c Config) (*os.File, error) {
	iface, err := net.InterfaceByName(name)
	if err != nil {
		return nil, err
	}
	// Without a protocol it gets nothing before it is bound, and so nothing that the filter hasn't seen.
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		if errors.Is(err, unix.EPERM) {
			err = fmt.Errorf("%w: this needs CAP_NET_RAW; run the agent as root or give it that capability", err)
		}
		return nil, err
	}
	largeBuffer(fd)
	first, last := c.GroupRange.First.As4(), c.GroupRange.Last.As4()
	program := onlyGroups(binary.BigEndian.Uint32(first[:]), binary.BigEndian.Uint32(last[:]))
	err = errors.Join(
		unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RXQ_OVFL, 1),
		unix.SetsockoptInt(fd, unix.SOL_PACKET, unix.PACKET_AUXDATA, 1),
		unix.SetsockoptInt(fd, unix.SOL_PACKET, unix.PACKET_VNET_HDR, 1), // tells super-packets
		unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_TIMESTAMPNS, 1),
		unix.SetsockoptSockFprog(fd, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, &unix.SockFprog{Len: uint16(len(program)), Filter: &program[0]}),
		// All protocols: those sockets come before the programs of tc, which may take the datagrams.
		unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: networkOrder(unix.ETH_P_ALL), Ifindex: iface.Index}),
	)
	if err != nil {
		_ = unix.Close(fd)
		return nil, err
	}
	return os.NewFile(uintptr(fd), "lan"), nil
}

// onlyGroups takes UDP over IPv4 to this host's hardware address, to addresses from first to last, of no VLAN.
func onlyGroups(first, last uint32) []unix.SockFilter {
	const (
		load, loadHalf, loadByte = unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, unix.BPF_LD | unix.BPF_H | unix.BPF_ABS, unix.BPF_LD | unix.BPF_B | unix.BPF_ABS
		equal, greater, atLeast  = unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, unix.BPF_JMP | unix.BPF_JGT | unix.BPF_K, unix.BPF_JMP | unix.BPF_JGE | unix.BPF_K
		done                     = unix.BPF_RET | unix.BPF_K
		extension                = 0xfffff000 // SKF_AD_OFF
		network                  = 0xfff00000 // SKF_NET_OFF
		protocol, packetType     = extension, extension + 4
		vlan                     = extension + 48
		everything               = 0x40000
	)
	return []unix.SockFilter{
		{Code: loadHalf, K: protocol},
		{Code: equal, Jf: 10, K: unix.ETH_P_IP},
		{Code: loadByte, K: packetType},
		{Code: equal, Jf: 8, K: unix.PACKET_HOST},
		{Code: loadByte, K: vlan},
		{Code: equal, Jf: 6, K: 0},
		{Code: loadByte, K: network + 9},
		{Code: equal, Jf: 4, K: unix.IPPROTO_UDP},
		{Code: load, K: network + 16},
		{Code: atLeast, Jf: 2, K: first},
		{Code: greater, Jt: 1, K: last},
		{Code: done, K: everything},
		{Code: done, K: 0},
	}
}

func networkOrder(v uint16) uint16 { return v<<8 | v>>8 }
