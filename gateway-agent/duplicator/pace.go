package duplicator

import (
	"sync/atomic"
	"time"
)

// Burst is what a destination may get at once beyond its rate, in bytes: a key frame of a camera. What is more is dropped, the newest first, and
// nothing waits: the agent has no queue.
const Burst = 256 << 10

// pace is the virtual scheduling algorithm of ITU-T I.371 (GCRA): until when a destination's copies take its rate if they leave one after the
// other, in nanoseconds of the monotonic clock since origin. Datagrams of several cameras share it.
type pace struct{ until atomic.Int64 }

var origin = time.Now()

// PerByte gives how long a byte takes at a rate in bits per second, in 1/1024 nanoseconds: what pace and the kernel path count in.
func PerByte(rate uint64) uint64 {
	if rate == 0 {
		return 0
	}
	return 8 * uint64(time.Second) * 1024 / rate
}

// take tells whether so many bytes may leave now, and then counts them.
func (p *pace) take(now time.Time, bytes int, perByte uint64) bool {
	if perByte == 0 {
		return true
	}
	at := int64(now.Sub(origin))
	for {
		before := p.until.Load()
		if before > at+int64(Burst*perByte>>10) {
			return false
		}
		if p.until.CompareAndSwap(before, max(before, at)+int64(uint64(bytes)*perByte>>10)) {
			return true
		}
	}
}
