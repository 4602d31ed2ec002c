package duplicator

import (
	"errors"
	"fmt"
	"math"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"
)

// ring sends one datagram from many sockets by one system call (io_uring(7)), where one by one each destination would wait for the entries into the kernel of all
// those before it. Nothing in it is asynchronous: with MSG_DONTWAIT the kernel tries each send at once and answers before the call returns. It needs Linux 5.18 and
// no privilege; a host may have it disabled.
//
// Like the arena it belongs to, it is used by one goroutine at a time.
type ring struct {
	fd      int
	queues  []byte // shared with the kernel: heads and tails, and its answers
	entries []byte // shared with the kernel: what is to be done

	head, tail, mask                   *uint32 // of the entries: the kernel moves the head, we the tail
	answerHead, answerTail, answerMask *uint32 // of the answers: the other way round
	answers                            *[2 * ringSize]ringAnswer

	results [ringSize]int32
}

// ringSize is how many sends one call takes. It has to be a power of two; the kernel makes room for twice as many answers.
const ringSize = 64

// What the kernel's io_uring.h names IORING_....
const (
	ringSubmitAll   = 1 << 7 // IORING_SETUP_SUBMIT_ALL, since Linux 5.18: one entry that fails doesn't hold up the next
	ringEntriesAt   = 0x10000000
	ringOpSend      = 26
	ringWaitAnswers = 1 // IORING_ENTER_GETEVENTS
)

// ringEntry is struct io_uring_sqe.
type ringEntry struct {
	operation, flags uint8
	_                uint16
	socket           int32
	_                uint64
	address          uint64
	length           uint32
	sendFlags        uint32
	id               uint64
	_                [3]uint64
}

var _ [64]byte = [unsafe.Sizeof(ringEntry{})]byte{}

// ringAnswer is struct io_uring_cqe.
type ringAnswer struct {
	id     uint64
	result int32 // what the system call gives, an error as a negative number
	_      uint32
}

// ringParameters is struct io_uring_params.
type ringParameters struct {
	entries, answers uint32
	flags            uint32
	_                [7]uint32
	entry            struct{ head, tail, mask, entries, flags, dropped, index, _, _, _ uint32 }
	answer           struct{ head, tail, mask, entries, overflow, answers, flags, _, _, _ uint32 }
}

// notTried is the result of a send that didn't take place.
const notTried = math.MinInt32

// openRing gives an error where the kernel has no such thing or doesn't let this process have it.
func openRing() (*ring, error) {
	p := ringParameters{flags: ringSubmitAll}
	fd, _, errno := unix.Syscall(unix.SYS_IO_URING_SETUP, ringSize, uintptr(unsafe.Pointer(&p)), 0)
	if errno == unix.EINVAL {
		return nil, fmt.Errorf("io_uring: %w: it needs Linux 5.18", errno)
	} else if errno != 0 {
		return nil, fmt.Errorf("io_uring: %w", errno)
	}
	r := &ring{fd: int(fd)}
	size := max(p.entry.index+4*p.entries, p.answer.answers+uint32(unsafe.Sizeof(ringAnswer{}))*p.answers)
	var err, entriesErr error
	r.queues, err = unix.Mmap(r.fd, 0, int(size), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED|unix.MAP_POPULATE)
	r.entries, entriesErr = unix.Mmap(r.fd, ringEntriesAt, int(p.entries)*int(unsafe.Sizeof(ringEntry{})), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED|unix.MAP_POPULATE)
	if err := errors.Join(err, entriesErr); err != nil {
		r.free()
		return nil, fmt.Errorf("io_uring: %w", err)
	}
	at := func(offset uint32) *uint32 { return (*uint32)(unsafe.Pointer(&r.queues[offset])) }
	r.head, r.tail, r.mask = at(p.entry.head), at(p.entry.tail), at(p.entry.mask)
	r.answerHead, r.answerTail, r.answerMask = at(p.answer.head), at(p.answer.tail), at(p.answer.mask)
	r.answers = (*[2 * ringSize]ringAnswer)(unsafe.Pointer(&r.queues[p.answer.answers]))
	for i := range uint32(ringSize) { // the order in which the kernel takes the entries: as they lie
		*at(p.entry.index + 4*i) = i
	}
	return r, nil
}

// send sends the payload from each of at most ringSize connected sockets, and gives for each what the system call send would have given: the bytes, or an
// error as a negative number; or notTried.
func (r *ring) send(outlets []*outlet, payload *unix.Iovec) []int32 {
	results := r.results[:len(outlets)]
	tail := *r.tail
	for i, o := range outlets {
		results[i] = notTried
		at := (tail + uint32(i)) & *r.mask
		*(*ringEntry)(unsafe.Pointer(&r.entries[at*uint32(unsafe.Sizeof(ringEntry{}))])) = ringEntry{
			operation: ringOpSend, socket: int32(o.fd), address: uint64(uintptr(unsafe.Pointer(payload.Base))), length: uint32(payload.Len),
			sendFlags: unix.MSG_DONTWAIT | unix.MSG_NOSIGNAL, id: uint64(i),
		}
	}
	atomic.StoreUint32(r.tail, tail+uint32(len(outlets)))
	_, _, _ = unix.RawSyscall6(unix.SYS_IO_URING_ENTER, uintptr(r.fd), uintptr(len(outlets)), 0, 0, 0, 0) // an error is that of the first entry that wasn't taken
	taken := atomic.LoadUint32(r.head) - tail
	atomic.StoreUint32(r.tail, tail+taken) // the kernel forgets the others
	for left := taken; left > 0; {
		for end := atomic.LoadUint32(r.answerTail); *r.answerHead != end; left-- {
			a := &r.answers[*r.answerHead&*r.answerMask]
			results[a.id] = a.result
			atomic.StoreUint32(r.answerHead, *r.answerHead+1)
		}
		if left > 0 { // never seen; but the payload has to stay until the kernel is done with it
			_, _, _ = unix.Syscall6(unix.SYS_IO_URING_ENTER, uintptr(r.fd), 0, uintptr(left), ringWaitAnswers, 0, 0)
		}
	}
	return results
}

func (r *ring) free() {
	for _, m := range [][]byte{r.queues, r.entries} {
		if m != nil {
			_ = unix.Munmap(m)
		}
	}
	_ = unix.Close(r.fd)
}
