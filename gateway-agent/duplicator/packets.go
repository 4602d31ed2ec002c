package duplicator

import (
	"errors"
	"fmt"
	"unsafe"

	"golang.org/x/sys/unix"
)

// packets is where whole IP packets lie that came at once, from the tunnel or from the LAN. Like an arena's, its memory is outside Go's heap.
type packets struct {
	slots   []byte
	before  int // bytes in front of each packet
	names   [batchSize]unix.RawSockaddrInet6
	control [batchSize][controlSize]byte
	buffers [batchSize]unix.Iovec
	in      [batchSize]message
	used    int
}

func newPackets(before int) (*packets, error) {
	slots, err := unix.Mmap(-1, 0, batchSize*slotSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		return nil, fmt.Errorf("get memory for packets: %w", err)
	}
	p := &packets{slots: slots, before: before, used: batchSize}
	for i := range p.in {
		p.buffers[i].Base = &slots[i*slotSize]
		p.buffers[i].SetLen(before + datagramSize)
		m := &p.in[i].Msghdr
		m.Name = (*byte)(unsafe.Pointer(&p.names[i]))
		m.Control = &p.control[i][0]
		m.Iov = &p.buffers[i]
		m.SetIovlen(1)
	}
	return p, nil
}

// receive takes what waits at a socket, and EAGAIN if nothing does.
func (p *packets) receive(fd int) (int, error) {
	for i := range p.in[:p.used] {
		m := &p.in[i].Msghdr
		m.Namelen, m.Flags = unix.SizeofSockaddrInet6, 0
		m.SetControllen(controlSize)
	}
	n, err := manyMessages(unix.SYS_RECVMMSG, fd, p.in[:], unix.MSG_DONTWAIT)
	p.used = n
	return n, err
}

// packet is one that was received; nil if it didn't fit, which no IP packet does.
func (p *packets) packet(i int) []byte {
	if p.in[i].Flags&unix.MSG_TRUNC != 0 {
		return nil
	}
	return p.slots[i*slotSize+p.before : i*slotSize+max(int(p.in[i].length), p.before)]
}

func (p *packets) free() { _ = unix.Munmap(p.slots) }

// largeBuffer asks for room for a burst of key frames. Without the privilege the system's limit applies.
func largeBuffer(fd int) {
	if unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, receiveBuffer) != nil {
		_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, receiveBuffer)
	}
}

// openInner opens a socket for IPv4 in IPv6 (RFC 2473) that sends and receives on the tunnel device only.
func openInner(t Inside) (int, error) {
	fd, err := unix.Socket(unix.AF_INET6, unix.SOCK_RAW|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, unix.IPPROTO_IPIP)
	if err != nil {
		if errors.Is(err, unix.EPERM) {
			err = fmt.Errorf("%w: this needs CAP_NET_RAW; run the agent as root or give it that capability", err)
		}
		return -1, fmt.Errorf("open a raw socket in the tunnel: %w", err)
	}
	largeBuffer(fd)
	// What waits for WireGuard counts for the socket: by default that is less than a hundred datagrams, and a burst of key frames has more.
	if unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_SNDBUFFORCE, receiveBuffer) != nil {
		_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_SNDBUF, receiveBuffer)
	}
	err = errors.Join(
		unix.BindToDevice(fd, t.Interface()),
		unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RXQ_OVFL, 1),
		unix.Bind(fd, &unix.SockaddrInet6{Addr: t.Address().As16()}),
	)
	if err != nil {
		_ = unix.Close(fd)
		return -1, fmt.Errorf("open a raw socket in the tunnel: %w", err)
	}
	return fd, nil
}
