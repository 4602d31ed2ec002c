package duplicator

import (
	"fmt"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

const (
	batchSize    = 64                  // datagrams per system call
	datagramSize = 1 << 16             // bytes that fit any datagram
	slotSize     = datagramSize + 2048 // bytes from one datagram to the next: a round number would crowd a few sets of the CPU's cache
	controlSize  = 256                 // bytes: 40 of options and four small messages fit
	maxArenas    = 4
)

// message is struct mmsghdr of the kernel, for recvmmsg and sendmmsg.
type message struct {
	unix.Msghdr
	length uint32 // what was received or sent, in bytes
}

// parts is how many datagrams a message to be sent stands for: one buffer each.
func (m *message) parts() int { return int(m.Iovlen) }

// arena is where a batch of datagrams lies while it is copied. Its arrays point to each other and are built once; the datagrams lie outside
// Go's heap, where only the pages that were ever written take memory.
type arena struct {
	slots   []byte
	names   [batchSize]unix.RawSockaddrInet4
	control [batchSize][controlSize]byte
	buffers [batchSize]unix.Iovec
	in      [batchSize]message
	used    int // of in: what the kernel wrote is still there
	judged  [batchSize]judged
	flight  flight
}

func newArena() (*arena, error) {
	slots, err := unix.Mmap(-1, 0, batchSize*slotSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		return nil, fmt.Errorf("get memory for datagrams: %w", err)
	}
	a := &arena{slots: slots, used: batchSize}
	for i := range a.in {
		a.buffers[i].Base = &slots[i*slotSize]
		a.buffers[i].SetLen(datagramSize)
		m := &a.in[i].Msghdr
		m.Name = (*byte)(unsafe.Pointer(&a.names[i]))
		m.Control = &a.control[i][0]
		m.Iov = &a.buffers[i]
		m.SetIovlen(1)
	}
	a.flight.build()
	a.flight.ring, _ = openRing()
	return a, nil
}

// receive takes what waits at a socket but no more than most datagrams, and gives EAGAIN if nothing does.
func (a *arena) receive(fd, most int) (int, error) {
	for i := range a.in[:a.used] {
		m := &a.in[i].Msghdr
		m.Namelen, m.Flags = unix.SizeofSockaddrInet4, 0
		m.SetControllen(controlSize)
	}
	n, err := receiveMessages(fd, a.in[:most])
	a.used = n
	return n, err
}

func (a *arena) ancillary(i int) []byte { return a.control[i][:a.in[i].Controllen] }

func (a *arena) free() {
	_ = unix.Munmap(a.slots)
	if a.flight.ring != nil {
		a.flight.ring.free()
	}
}

// manyMessages calls recvmmsg or sendmmsg, neither of which waits: so it needn't tell Go's scheduler.
func manyMessages(call uintptr, fd int, m []message, flags uintptr) (int, error) {
	for {
		n, _, errno := unix.RawSyscall6(call, uintptr(fd), uintptr(unsafe.Pointer(&m[0])), uintptr(len(m)), flags, 0, 0)
		switch errno {
		case 0:
			return int(n), nil
		case unix.EINTR:
		default:
			return 0, errno
		}
	}
}

// receiveMessages receives what it can at once.
func receiveMessages(fd int, m []message) (int, error) {
	if len(m) > 1 {
		return manyMessages(unix.SYS_RECVMMSG, fd, m, unix.MSG_DONTWAIT)
	}
	for {
		n, _, errno := unix.RawSyscall(unix.SYS_RECVMSG, uintptr(fd), uintptr(unsafe.Pointer(&m[0].Msghdr)), unix.MSG_DONTWAIT)
		switch errno {
		case 0:
			m[0].length = uint32(n)
			return 1, nil
		case unix.EINTR:
		default:
			return 0, errno
		}
	}
}

// sendMessages sends what it can at once. A datagram alone needs no description of a message, which the kernel would have to read.
func sendMessages(fd int, m []message) (int, error) {
	const flags = unix.MSG_DONTWAIT | unix.MSG_NOSIGNAL
	if len(m) > 1 || m[0].parts() > 1 {
		return manyMessages(unix.SYS_SENDMMSG, fd, m, flags)
	}
	for {
		payload := m[0].Iov
		n, _, errno := unix.RawSyscall6(unix.SYS_SENDTO, uintptr(fd), uintptr(unsafe.Pointer(payload.Base)), uintptr(payload.Len), flags, 0, 0)
		switch errno {
		case 0:
			m[0].length = uint32(n)
			return 1, nil
		case unix.EINTR:
		default:
			return 0, errno
		}
	}
}

// arenas are shared by the listeners: there are as many as can be at work at a time.
type arenas chan *arena

func newArenas() (arenas, error) {
	p := make(arenas, min(runtime.GOMAXPROCS(0), maxArenas))
	for range cap(p) {
		a, err := newArena()
		if err != nil {
			p.free()
			return nil, err
		}
		p <- a
	}
	return p, nil
}

// free may be called when no listener is left.
func (p arenas) free() {
	for len(p) > 0 {
		(<-p).free()
	}
}
