package passwords

import (
	"hash/maphash"
	"net/netip"
	"sync"
	"time"

	"github.com/groupcast/groupcast/models"
)

const (
	firstDelay = time.Second
	// MaxDelay is the longest wait, however many tries failed. Nobody is ever locked out.
	MaxDelay = 15 * time.Minute
	// prefixFree is how many tries from one prefix may fail before it has to wait: several people share a home's address.
	prefixFree = 10
	// doublings is how often the first delay doubles until it is past MaxDelay.
	doublings = 10
	// slots is the size of each table.
	slots = 1 << 16
)

// Delays says how long to wait before a password may be tried: 1 s after the first failure for an account, then 2 s, 4 s … up to 15 min, and the
// same for a source prefix (/24, or /64 for IPv6) after ten free failures. A count falls by one each MaxDelay without a try.
//
// It takes 4 MiB whatever happens. Counts stand in two tables of fixed size under two keyed hashes, and the smaller one counts, so
// two accounts share a delay only if both their places collide. Nothing is ever evicted: an attacker can't flush a victim's count out by
// trying many names. It is safe for concurrent use, forgets everything at a restart, and each replica counts by itself.
type Delays struct {
	now func() time.Time

	mu     sync.Mutex
	seeds  [2]maphash.Seed
	tables [2][]count
}

// count is how many tries failed, and until when to wait; a zero time is long ago.
type count struct {
	failures int64
	until    time.Time
}

// lane is what failures are counted for: an account, a prefix, or an account from a prefix that it has logged in from.
type lane struct {
	account string
	prefix  netip.Prefix
}

// free is how many failures of the lane cost nothing.
func (l lane) free() int64 {
	if l.account == "" {
		return prefixFree
	}
	return 0
}

// NewDelays makes an empty one with the given clock.
func NewDelays(now func() time.Time) *Delays {
	d := &Delays{now: now}
	for i := range d.tables {
		d.seeds[i] = maphash.MakeSeed()
		d.tables[i] = make([]count, slots)
	}
	return d
}

// Attempt is a try that may be made now.
type Attempt struct {
	delays *Delays
	lanes  [2]lane
}

// Begin asks for a try to log in to an account, by the name in its one spelling whether or not there is such an account, from an address. If wait is positive the try must not be made, not even
// looked at, and the caller is told to come back then. Otherwise it counts as failed until Succeeded is called, so that many tries at
// once get no further than one after the other. known says that this account has logged in from this prefix before: then a
// stranger's failures elsewhere don't make its owner wait.
func (d *Delays) Begin(account string, source netip.Addr, known bool) (a Attempt, wait time.Duration) {
	prefix := models.SourcePrefix(source)
	a = Attempt{delays: d, lanes: [2]lane{{account: account}, {prefix: prefix}}}
	if known {
		a.lanes[0].prefix = prefix
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	now := d.now()
	for _, l := range a.lanes {
		wait = max(wait, d.read(l, now).until.Sub(now))
	}
	if wait > 0 {
		return Attempt{}, wait
	}
	for _, l := range a.lanes {
		c := d.read(l, now)
		c.failures = min(c.failures+1, l.free()+doublings+1)
		if n := c.failures - l.free(); n > 0 {
			c.until = now.Add(min(firstDelay<<(n-1), MaxDelay))
		} else {
			c.until = now
		}
		d.raise(l, c, now)
	}
	return a, 0
}

// Succeeded tells that the password was right. The account's count is cleared; the prefix only gets its own try back, since the account may be the
// attacker's own.
func (a Attempt) Succeeded() {
	d := a.delays
	d.mu.Lock()
	defer d.mu.Unlock()
	now := d.now()
	d.lower(a.lanes[0], count{})
	c := d.read(a.lanes[1], now)
	d.lower(a.lanes[1], count{failures: max(c.failures-1, 0), until: now})
}

// read gives the smaller of a lane's two counts, as it has fallen by now. The lock is held.
func (d *Delays) read(l lane, now time.Time) count {
	a, b := d.at(0, l).fallen(now), d.at(1, l).fallen(now)
	if b.less(a) {
		return b
	}
	return a
}

// raise and lower set a lane's counts where they are smaller, or larger. The lock is held.
func (d *Delays) raise(l lane, c count, now time.Time) {
	for i := range d.tables {
		if at := d.at(i, l); at.fallen(now).less(c) {
			*at = c
		}
	}
}

func (d *Delays) lower(l lane, c count) {
	for i := range d.tables {
		if at := d.at(i, l); c.less(*at) {
			*at = c
		}
	}
}

func (d *Delays) at(table int, l lane) *count {
	return &d.tables[table][maphash.Comparable(d.seeds[table], l)%slots]
}

func (c count) less(o count) bool {
	if c.failures != o.failures {
		return c.failures < o.failures
	}
	return c.until.Before(o.until)
}

// fallen lowers the count by one for each MaxDelay that passed without a try.
func (c count) fallen(now time.Time) count {
	if passed := int64(now.Sub(c.until) / MaxDelay); passed > 0 {
		c.failures = max(c.failures-passed, 0)
		c.until = c.until.Add(time.Duration(passed) * MaxDelay)
	}
	return c
}
