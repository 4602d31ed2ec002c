package passwords_test

import (
	"fmt"
	"net/netip"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/groupcast/groupcast/server/passwords"
)

type clock struct{ now time.Time }

func (c *clock) Now() time.Time { return c.now }

func newDelays() (*passwords.Delays, *clock) {
	c := &clock{now: time.Unix(1_700_000_000, 0)}
	return passwords.NewDelays(c.Now), c
}

var (
	home     = netip.MustParseAddr("198.51.100.7")
	stranger = netip.MustParseAddr("203.0.113.9")
)

// from gives an address in a prefix of its own.
func from(i int) netip.Addr {
	return netip.AddrFrom16([16]byte{0x20, 0x01, 0x0d, 0xb8, byte(i >> 16), byte(i >> 8), byte(i), 15: 1})
}

func fail(t *testing.T, d *passwords.Delays, account string, source netip.Addr) time.Duration {
	t.Helper()
	_, wait := d.Begin(account, source, false)
	return wait
}

func TestTheWaitDoublesUpToAQuarterOfAnHour(t *testing.T) {
	d, c := newDelays()
	for i, want := range []int{1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 900, 900, 900} {
		require.Zero(t, fail(t, d, "alice", from(i)), "try %d may be made", i)
		wait := fail(t, d, "alice", from(1000+i))
		require.Equal(t, time.Duration(want)*time.Second, wait, "after try %d", i)
		c.now = c.now.Add(wait - time.Millisecond)
		require.Equal(t, time.Millisecond, fail(t, d, "alice", from(2000+i)), "a refused try doesn't make the wait longer")
		c.now = c.now.Add(time.Millisecond)
	}
}

func TestACountFallsWithTime(t *testing.T) {
	for passed, want := range map[time.Duration]time.Duration{
		0:                                32 * time.Second,
		passwords.MaxDelay - time.Second: 32 * time.Second,
		3 * passwords.MaxDelay:           4 * time.Second,
		5 * passwords.MaxDelay:           time.Second,
		365 * 24 * time.Hour:             time.Second,
	} {
		d, c := newDelays()
		for i := range 5 {
			require.Zero(t, fail(t, d, "alice", from(i)))
			c.now = c.now.Add(time.Second << i) // just as long as it takes
		}
		c.now = c.now.Add(passed)
		require.Zero(t, fail(t, d, "alice", from(9)))
		assert.Equal(t, want, fail(t, d, "alice", from(10)), "%s after five failures", passed)
	}
}

func TestSuccessClearsTheAccount(t *testing.T) {
	d, c := newDelays()
	for range 3 {
		_, wait := d.Begin("alice", home, false)
		require.Zero(t, wait)
		c.now = c.now.Add(time.Minute)
	}
	a, wait := d.Begin("alice", home, false)
	require.Zero(t, wait)
	a.Succeeded()
	require.Zero(t, fail(t, d, "alice", home))
	assert.Equal(t, time.Second, fail(t, d, "alice", home))
}

func TestAHouseholdDoesNotWaitForItself(t *testing.T) {
	d, _ := newDelays()
	for i := range 100 { // a hundred logins, none wrong, from one address
		a, wait := d.Begin(fmt.Sprint("user", i), home, false)
		require.Zero(t, wait, i)
		a.Succeeded()
	}
}

// The figures below are what the doubling allows: 11 tries in the first 17 minutes, then one in 15 minutes.
func TestAttackGuessingOnePassword(t *testing.T) {
	for name, source := range map[string]func(int) netip.Addr{
		"from one address":   func(int) netip.Addr { return stranger },
		"from many prefixes": from,
		"from one IPv6 subnet": func(i int) netip.Addr {
			return netip.AddrFrom16([16]byte{0x20, 1, 0xd, 0xb8, 14: byte(i >> 8), 15: byte(i)})
		},
	} {
		t.Run(name, func(t *testing.T) {
			d, c := newDelays()
			h := newHasher(t, cheap, 0)
			before := h.Hashes()
			for i := range 1000 { // one try a second
				if _, wait := d.Begin("alice", source(i), false); wait == 0 {
					_, err := h.Check(t.Context(), "guess", "")
					require.NoError(t, err)
				}
				c.now = c.now.Add(time.Second)
			}
			assert.LessOrEqual(t, h.Hashes()-before, uint64(10))
			assert.GreaterOrEqual(t, h.Hashes()-before, uint64(9), "nobody is locked out")
		})
	}
}

func TestAttackOnePasswordForManyAccounts(t *testing.T) {
	d, c := newDelays()
	tries := 0
	for i := range 1000 {
		if fail(t, d, fmt.Sprint("user", i), netip.AddrFrom4([4]byte{203, 0, 113, byte(i)})) == 0 {
			tries++
		}
		c.now = c.now.Add(time.Second)
	}
	assert.LessOrEqual(t, tries, 10+10)
}

func TestAttackAThousandTriesAtOnce(t *testing.T) {
	d, _ := newDelays()
	var tries atomic.Int64
	var wg sync.WaitGroup
	for i := range 1000 {
		wg.Go(func() {
			if _, wait := d.Begin("alice", from(i), false); wait == 0 {
				tries.Add(1)
			}
		})
	}
	wg.Wait()
	assert.EqualValues(t, 1, tries.Load())
}

func TestAttackKeepingTheOwnerOut(t *testing.T) {
	d, c := newDelays()
	for i := range 2000 {
		_ = fail(t, d, "alice", from(i))
		c.now = c.now.Add(time.Second)
	}
	assert.Positive(t, fail(t, d, "alice", stranger))
	a, wait := d.Begin("alice", home, true)
	require.Zero(t, wait, "who logged in from here before does not wait for a stranger")
	a.Succeeded()
	assert.Positive(t, fail(t, d, "alice", stranger), "and does not make way for the stranger")
	// The owner's own place is limited like any other.
	_, wait = d.Begin("alice", home, true)
	require.Zero(t, wait)
	_, wait = d.Begin("alice", home, true)
	assert.Equal(t, time.Second, wait)
}

func TestAttackOwnAccountBetweenGuesses(t *testing.T) {
	// An attacker logs in to an account of its own after each guess: that must not clear the prefix.
	d, c := newDelays()
	guesses := 0
	for i := range 1000 {
		if fail(t, d, fmt.Sprint("victim", i), stranger) == 0 {
			guesses++
		}
		if a, wait := d.Begin("mallory", stranger, true); wait == 0 {
			a.Succeeded()
		}
		c.now = c.now.Add(time.Second)
	}
	assert.LessOrEqual(t, guesses, 10+10)
}

func TestHostileFloodOfNamesDoesNotFlushACount(t *testing.T) {
	d, c := newDelays()
	for range 11 {
		c.now = c.now.Add(fail(t, d, "alice", stranger) + 20*time.Minute/100)
		_, _ = d.Begin("alice", from(1), false)
	}
	before := fail(t, d, "alice", from(2))
	require.Positive(t, before)
	for i := range 300_000 { // more names and prefixes than there are places
		_, _ = d.Begin(fmt.Sprint("name", i), from(10+i), false)
	}
	assert.GreaterOrEqual(t, fail(t, d, "alice", from(3)), before)
	// Whoever shares places with the flood waits a second or two, no more.
	worst := time.Duration(0)
	for i := range 1000 {
		worst = max(worst, fail(t, d, fmt.Sprint("honest", i), from(1_000_000+i)))
	}
	assert.LessOrEqual(t, worst, 16*time.Second)
}

func TestAddressesThatAreOneSource(t *testing.T) {
	for _, pair := range [][2]string{{"198.51.100.1", "198.51.100.254"}, {"::ffff:198.51.100.1", "198.51.100.2"}, {"2001:db8::1", "2001:db8::ffff:ffff:ffff:ffff"}, {"fe80::1%eth0", "fe80::2%eth1"}} {
		d, _ := newDelays()
		for i := range 11 {
			require.Zero(t, fail(t, d, fmt.Sprint(i), netip.MustParseAddr(pair[0])))
		}
		assert.Equal(t, time.Second, fail(t, d, "x", netip.MustParseAddr(pair[1])), "%v", pair)
	}
	d, _ := newDelays()
	for i := range 11 {
		require.Zero(t, fail(t, d, fmt.Sprint(i), netip.MustParseAddr("198.51.100.1")))
	}
	assert.Zero(t, fail(t, d, "x", netip.MustParseAddr("198.51.101.1")))
	assert.NotPanics(t, func() { _ = fail(t, d, "x2", netip.Addr{}) })
}
