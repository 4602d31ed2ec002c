package duplicator

import (
	"errors"
	"fmt"
	"testing"

	"golang.org/x/sys/unix"
)

// What a ring answers is what send would have answered: bytes, the network's answer to an earlier copy, too big, no room, no socket. And what the kernel doesn't
// take is said to be not tried.
func TestARingAnswersAsSendDoes(t *testing.T) {
	r, err := openRing()
	if errors.Is(err, unix.EPERM) || errors.Is(err, unix.ENOSYS) {
		t.Skip(err)
	} else if err != nil {
		t.Fatal(err)
	}
	defer r.free()
	byRing, bySend := outletsOfAllKinds(t), outletsOfAllKinds(t)
	payload := make([]byte, 1<<16)
	seen := map[unix.Errno]bool{}
	for round, size := range []int{1200, 1200, 0, 65507, 65508, 1} {
		m := message{Msghdr: unix.Msghdr{Iov: &unix.Iovec{Base: &payload[0]}}}
		m.Iov.SetLen(size)
		m.SetIovlen(1)
		for i, got := range r.send(byRing, m.Iov) {
			want := int32(size)
			var errno unix.Errno
			if _, err := sendMessages(bySend[i].fd, []message{m}); errors.As(err, &errno) {
				want, seen[errno] = -int32(errno), true
			}
			if i == toNobody && want >= 0 { // what answers is on its way
				for _, o := range []*outlet{byRing[i], bySend[i]} {
					waitForAnswer(t, o.fd)
				}
			}
			if got != want {
				t.Errorf("round %d, %d bytes, socket %d: %d, want %d", round, size, i, got, want)
			}
		}
	}
	for _, errno := range []unix.Errno{unix.ECONNREFUSED, unix.EMSGSIZE, unix.EAGAIN, unix.EBADF} {
		if !seen[errno] {
			t.Errorf("no send gave %v", errno)
		}
	}
	fd := r.fd
	r.fd = -1
	buffer := unix.Iovec{Base: &payload[0]}
	buffer.SetLen(1)
	for i, got := range r.send(byRing, &buffer) {
		if got != notTried {
			t.Errorf("socket %d: %d from a ring that isn't there", i, got)
		}
	}
	r.fd = fd
	if got := r.send(byRing[4:5], &buffer); got[0] != -int32(unix.EBADF) { // and not what the first of those that weren't tried gives
		t.Errorf("%d after a call that failed, want %d", got[0], -int32(unix.EBADF))
	}
}

const toNobody = 1 // of outletsOfAllKinds

// outletsOfAllKinds are connected to somebody, to nobody, to somebody behind a full buffer, and not open.
func outletsOfAllKinds(t *testing.T) []*outlet {
	t.Helper()
	socket := func(kind int) int {
		fd, err := unix.Socket(unix.AF_INET, kind, 0)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { unix.Close(fd) })
		return fd
	}
	connected := func(open bool) int {
		to := socket(unix.SOCK_DGRAM)
		err := unix.Bind(to, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}})
		at, nameErr := unix.Getsockname(to)
		fd := socket(unix.SOCK_DGRAM)
		if err = errors.Join(err, nameErr, unix.Connect(fd, at)); err != nil {
			t.Fatal(err)
		}
		if !open { // nobody is there any more
			if err := unix.Connect(to, at); err != nil {
				t.Fatal(err)
			}
		}
		return fd
	}
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_DGRAM, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _, _ = unix.Close(pair[0]), unix.Close(pair[1]) })
	for err == nil {
		err = unix.Sendto(pair[0], []byte("x"), unix.MSG_DONTWAIT, nil)
	}
	if !errors.Is(err, unix.EAGAIN) {
		t.Fatal(fmt.Errorf("fill a socket: %w", err))
	}
	return []*outlet{{fd: connected(true)}, {fd: connected(false)}, {fd: pair[0]}, {fd: connected(true)}, {fd: 1 << 20}, {fd: connected(true)}}
}

// waitForAnswer waits until a socket has an error to give.
func waitForAnswer(t *testing.T, fd int) {
	t.Helper()
	for {
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd)}}, 10_000)
		if n == 1 {
			return
		}
		if !errors.Is(err, unix.EINTR) {
			t.Fatalf("no answer within 10 s: %v", err)
		}
	}
}
