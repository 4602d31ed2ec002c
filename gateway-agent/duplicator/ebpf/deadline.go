package ebpf

import (
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

// Handover is how long what is in force stays so after Close: long enough for the next agent to start.
const Handover = 10 * time.Second

// tickBits is TICK_BITS of copy.bpf.c.
const tickBits = 26

// deadlines writes until when each group and destination may be served, into memory that the program reads for every packet. The
// clock is the one that also runs while the host sleeps.
type deadlines struct {
	memory *ebpf.Memory
	lease  time.Duration

	mu      sync.Mutex               // guards everything below: they are renewed while a long change goes on
	limit   time.Duration            // boot time: no longer than the snapshot
	present map[uint32]time.Duration // boot time until when each may be served at most
	holders map[uint32]int           // of a relay: how many groups of the kernel's have it
	// strict ones don't come back by themselves when they have run out: this process stood still, and another relay may copy now.
	strict  bool
	renewed time.Duration // boot time
	stood   time.Time     // when it was found that this process stood still; zero: never
}

func newDeadlines(m *ebpf.Map, lease time.Duration) (*deadlines, error) {
	memory, err := m.Memory()
	if err != nil {
		return nil, fmt.Errorf("map the deadlines: %w", err)
	}
	return &deadlines{memory: memory, lease: lease, present: map[uint32]time.Duration{}, holders: map[uint32]int{}}, nil
}

func bootTime() time.Duration {
	var t unix.Timespec
	// It can't fail: the clock is older than TCX.
	_ = unix.ClockGettime(unix.CLOCK_BOOTTIME, &t)
	return time.Duration(t.Nano())
}

// set says when the snapshot ends.
func (d *deadlines) set(validUntil time.Time) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.limit = bootTime() + time.Until(validUntil)
}

// strictly says whether deadlines that have run out come back only by what was heard afterwards.
func (d *deadlines) strictly(strict bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.strict = strict
}

// value rounds down to a tick, and one more off: the program reads the clock once in a jiffy, and where the kernel's own timer is late, so is that.
func (d *deadlines) value(until time.Duration) uint32 {
	return uint32(max(min(bootTime()+d.lease, d.limit, until)>>tickBits-1, 0))
}

// begin lets an index be served, before it is, no longer than until; the zero time: than the snapshot.
func (d *deadlines) begin(index uint32, until time.Time) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.write(index, d.value(ends(until)))
}

// forever is beyond every boot time.
const forever = time.Duration(1<<63 - 1)

func ends(until time.Time) time.Duration {
	if until.IsZero() {
		return forever
	}
	return bootTime() + time.Until(until)
}

// keep makes these the indices that are served, and ends the others at once.
func (d *deadlines) keep(present map[uint32]time.Time) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for index := range d.present {
		if _, ok := present[index]; !ok {
			_ = d.write(index, 0)
		}
	}
	d.present = map[uint32]time.Duration{}
	for index, until := range present {
		d.present[index] = ends(until)
	}
	_ = d.renewLocked()
}

// look ends everything if this process stood still for so long that all has run out, and gives when it found that it had, last.
func (d *deadlines) look() time.Time {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.lookLocked()
}

func (d *deadlines) lookLocked() time.Time {
	now := bootTime()
	if d.strict && d.renewed != 0 && now-d.renewed >= d.lease {
		d.stood = time.Now()
		for index := range d.present {
			d.present[index] = 0
		}
	}
	d.renewed = now
	return d.stood
}

// served is an index and until when it may be served at most; the zero time: as long as the snapshot.
type served struct {
	index uint32
	until time.Time
}

// change is keep for those that groups of the kernel's have from here on or had until here. A group may be there twice: in two homes.
func (d *deadlines) change(gone, come []served) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, s := range come {
		d.holders[s.index]++
		d.present[s.index] = ends(s.until)
	}
	for _, s := range gone {
		if d.holders[s.index]--; d.holders[s.index] <= 0 {
			delete(d.holders, s.index)
			delete(d.present, s.index)
		}
	}
	var errs []error
	for _, s := range slices.Concat(gone, come) {
		value := uint32(0)
		if until, ok := d.present[s.index]; ok {
			value = d.value(until)
		}
		errs = append(errs, d.write(s.index, value))
	}
	return errors.Join(errs...)
}

// renew pushes all forward.
func (d *deadlines) renew() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.renewLocked()
}

func (d *deadlines) renewLocked() error {
	d.lookLocked()
	for index, until := range d.present {
		if err := d.write(index, d.value(until)); err != nil {
			return err
		}
	}
	return nil
}

// end pushes nothing forward any more, and lets nothing go on for longer than that.
func (d *deadlines) end(within time.Duration) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.limit = min(d.limit, bootTime()+within)
	_ = d.renewLocked()
}

// stop ends an index at once.
func (d *deadlines) stop(index uint32) {
	d.mu.Lock()
	defer d.mu.Unlock()
	_ = d.write(index, 0)
}

// write stores four aligned bytes, which every machine does at once.
func (d *deadlines) write(index, value uint32) error {
	var b [4]byte
	binary.NativeEndian.PutUint32(b[:], value)
	_, err := d.memory.WriteAt(b[:], int64(index)*8) // elements of an array are eight bytes apart
	return err
}
