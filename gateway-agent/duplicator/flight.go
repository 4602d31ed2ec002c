package duplicator

import (
	"encoding/binary"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// A run is never more segments than one message may have: 64 in a kernel before 6.9 (UDP_MAX_SEGMENTS).
const _ = uint(64 - batchSize)

const (
	maxRunBytes    = 65000 // bytes of payload in one message
	segmentControl = 2     // bytes of a UDP_SEGMENT control message's data
)

// flight is a camera stream's datagrams of one batch, ready to be sent to each destination as they stand. Runs of datagrams of one size,
// the last of which may be shorter, are one message each, which the kernel cuts up again after all but the last layer (UDP_SEGMENT).
type flight struct {
	datagrams int
	buffers   [batchSize]unix.Iovec
	singles   [batchSize]message // a message per datagram

	runs     int
	whole    [batchSize]message // a message per run
	first    [batchSize]int     // the run's first datagram
	bytes    [batchSize]int
	runOf    [batchSize]int // the datagram's run
	segments [batchSize][]byte
	closed   bool // the last run takes no more datagrams

	ring     *ring             // nil if there is none
	together [ringSize]*outlet // those that get the datagram by it
}

// build connects what stays the same for every flight.
func (f *flight) build() {
	for i := range batchSize {
		f.singles[i].Iov = &f.buffers[i]
		f.singles[i].SetIovlen(1)
		f.segments[i] = make([]byte, unix.CmsgSpace(segmentControl))
		header := (*unix.Cmsghdr)(unsafe.Pointer(&f.segments[i][0]))
		header.Level, header.Type = unix.SOL_UDP, unix.UDP_SEGMENT
		header.SetLen(unix.CmsgLen(segmentControl))
	}
}

func (f *flight) reset() { f.datagrams, f.runs, f.closed = 0, 0, true }

// within is how many of the flight's datagrams may leave for a destination now: all but the newest ones.
func (f *flight) within(p *pace, now time.Time, perByte uint64) int {
	if perByte == 0 {
		return f.datagrams
	}
	for i := range f.datagrams {
		if !p.take(now, int(f.buffers[i].Len)+headers, perByte) {
			return i
		}
	}
	return f.datagrams
}

// size is that of the run's datagrams, but for the last one.
func (f *flight) size(run int) int { return int(f.buffers[f.first[run]].Len) }

// add appends a datagram, which stays where it is.
func (f *flight) add(payload *byte, length int) {
	i := f.datagrams
	f.datagrams++
	f.buffers[i].Base = payload
	f.buffers[i].SetLen(length)
	run := f.runs - 1
	if f.closed || !f.fits(run, length) {
		run = f.runs
		f.runs++
		f.first[run], f.bytes[run] = i, 0
		m := &f.whole[run]
		m.Iov, m.Control = &f.buffers[i], nil
		m.SetIovlen(0)
		m.SetControllen(0)
		f.closed = false
	}
	f.runOf[i] = run
	f.bytes[run] += length
	m := &f.whole[run]
	m.SetIovlen(m.parts() + 1)
	size := f.size(run)
	f.closed = f.closed || length < size
	if m.parts() == 2 {
		binary.NativeEndian.PutUint16(f.segments[run][unix.CmsgLen(0):], uint16(size))
		m.Control = &f.segments[run][0]
		m.SetControllen(len(f.segments[run]))
	}
}

// fits tells whether the run takes a datagram of that length; one without bytes would get lost.
func (f *flight) fits(run, length int) bool {
	return length > 0 && length <= f.size(run) && f.bytes[run]+length <= maxRunBytes
}

// from gives the messages to send from a datagram on: whole runs, or if the run's datagrams are larger than what may be segmented, its
// single datagrams.
func (f *flight) from(datagram, segmentable int) []message {
	run := f.runOf[datagram]
	end := run
	if datagram == f.first[run] {
		for end < f.runs && (f.whole[end].parts() == 1 || f.size(end) <= segmentable) {
			end++
		}
	}
	if end > run {
		return f.whole[run:end]
	}
	return f.singles[datagram : f.first[run]+f.whole[run].parts()]
}
