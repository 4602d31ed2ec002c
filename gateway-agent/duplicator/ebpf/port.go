package ebpf

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/groupcast/groupcast/gateway-agent/duplicator"
)

// spare is how many ports wait for streams that are new.
const spare = 32

// answer is what the network says about an earlier copy.
type answer int

const (
	answerRefused answer = iota
	answerUnreachable
	answerTooBig
	answers
)

var answerDrops = [answers]string{duplicator.DropRefused, duplicator.DropUnreachable, duplicator.DropTooBig}

// portPool reserves the source ports of the copies: each belongs to a socket that is bound to it, so that nobody else on this host gets it.
// The kernel hands those sockets also what routers and receivers answer to copies.
type portPool struct {
	uplink  netip.Addr
	queue   *ebpf.Map      // ports for new streams
	streams *ebpf.Map      // those that have one
	sockets map[uint16]int // all of them
}

// streamKey and stream are those of copy.bpf.c.
type streamKey struct {
	Addr, Group     [4]byte
	Port, GroupPort [2]byte
}

type stream struct {
	Used uint64
	Port [2]byte
	_    [6]byte
}

func newPortPool(uplink netip.Addr, queue, streams *ebpf.Map) *portPool {
	return &portPool{uplink: uplink, queue: queue, streams: streams, sockets: map[uint16]int{}}
}

// fill keeps ports waiting, as long as there may be so many streams.
func (p *portPool) fill(limit int) error {
	waiting := len(p.sockets) - len(p.all())
	for ; waiting < spare && len(p.sockets) < limit; waiting++ {
		port, err := p.reserve(0)
		if err != nil {
			return fmt.Errorf("reserve a source port on uplink address %s: %w", p.uplink, err)
		}
		if err := p.queue.Put(nil, uint32(port>>8|port<<8)); err != nil { // as the bytes lie in memory
			return fmt.Errorf("hand out a source port: %w", err)
		}
	}
	return nil
}

// reserve binds a port, or any if it is 0.
func (p *portPool) reserve(port uint16) (uint16, error) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return 0, err
	}
	// What receivers send back is dropped; errors are kept.
	drop := []unix.SockFilter{{Code: unix.BPF_RET}}
	err = errors.Join(
		unix.SetsockoptSockFprog(fd, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, &unix.SockFprog{Len: 1, Filter: &drop[0]}),
		unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_RECVERR, 1),
	)
	if err == nil {
		err = unix.Bind(fd, &unix.SockaddrInet4{Addr: p.uplink.As4(), Port: int(port)})
	}
	var name unix.Sockaddr
	if err == nil {
		name, err = unix.Getsockname(fd)
	}
	at, ok := name.(*unix.SockaddrInet4)
	if err != nil || !ok {
		_ = unix.Close(fd)
		return 0, err
	}
	p.sockets[uint16(at.Port)] = fd
	return uint16(at.Port), nil
}

// all gives the streams that have a port.
func (p *portPool) all() map[streamKey]stream { return entriesOf(p.streams) }

func entriesOf(m *ebpf.Map) map[streamKey]stream {
	all := map[streamKey]stream{}
	var key streamKey
	var value stream
	for i := m.Iterate(); i.Next(&key, &value); {
		all[key] = value
	}
	return all
}

// adopt takes over the streams of an earlier agent whose ports are still free.
func (p *portPool) adopt(old *ebpf.Map) {
	if old.Type() != p.streams.Type() || old.KeySize() != p.streams.KeySize() || old.ValueSize() != p.streams.ValueSize() {
		return
	}
	for key, s := range entriesOf(old) {
		if _, err := p.reserve(binary.BigEndian.Uint16(s.Port[:])); err == nil {
			_ = p.streams.Put(key, s)
		}
	}
}

// prune ends the streams that may not go on, and those without a datagram for so long.
func (p *portPool) prune(keep func(group, camera netip.Addr) bool, idle time.Duration) {
	now := bootTime()
	for key, s := range p.all() {
		if keep(netip.AddrFrom4(key.Group), netip.AddrFrom4(key.Addr)) && now-time.Duration(s.Used) < idle+time.Second {
			continue
		}
		if p.streams.Delete(key) != nil {
			continue
		}
		port := binary.BigEndian.Uint16(s.Port[:])
		if fd, ok := p.sockets[port]; ok {
			_ = unix.Close(fd)
			delete(p.sockets, port)
		}
	}
}

// answers reads what the network answered since the last time: at most so much at a time that nobody on the network can keep us busy.
func (p *portPool) answers(each func(to netip.AddrPort, a answer)) {
	for _, fd := range p.sockets {
		answersAt(fd, each)
	}
}

func answersAt(fd int, each func(to netip.AddrPort, a answer)) {
	oob := make([]byte, 256)
	for range 64 {
		_, n, _, from, err := unix.Recvmsg(fd, nil, oob, unix.MSG_ERRQUEUE|unix.MSG_DONTWAIT)
		if err != nil {
			return
		}
		to, ok := from.(*unix.SockaddrInet4)
		if a := answerIn(oob[:n]); ok && a >= 0 {
			each(netip.AddrPortFrom(netip.AddrFrom4(to.Addr), uint16(to.Port)), a)
		}
	}
}

// answerIn reads the struct sock_extended_err, or gives -1.
func answerIn(oob []byte) answer {
	messages, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return -1
	}
	for _, m := range messages {
		if m.Header.Level != unix.IPPROTO_IP || m.Header.Type != unix.IP_RECVERR || len(m.Data) < 4 {
			continue
		}
		switch unix.Errno(binary.NativeEndian.Uint32(m.Data)) {
		case unix.ECONNREFUSED:
			return answerRefused
		case unix.EMSGSIZE:
			return answerTooBig
		default:
			return answerUnreachable
		}
	}
	return -1
}

func (p *portPool) close() {
	for port, fd := range p.sockets {
		_ = unix.Close(fd)
		delete(p.sockets, port)
	}
}
