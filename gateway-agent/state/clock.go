package state

import (
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// moment is an instant that still means something to a later process: by the wall clock, and by the time since this boot, which
// nobody can set.
type moment struct {
	Wall time.Time     `json:"wall"`
	Boot string        `json:"boot"` // the kernel's random name of this boot
	Up   time.Duration `json:"up"`   // since the boot, in nanoseconds, sleep included
}

// clock is a field of Store for tests only.
type clock struct {
	wall func() time.Time
	boot string
	up   func() time.Duration
}

func systemClock() clock {
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		boot = nil // then only the wall clock counts
	}
	return clock{wall: time.Now, boot: strings.TrimSpace(string(boot)), up: Uptime}
}

// Uptime is the time since this boot. Unlike the monotonic clock it goes on while the host sleeps.
func Uptime() time.Duration {
	var t unix.Timespec
	if unix.ClockGettime(unix.CLOCK_BOOTTIME, &t) != nil {
		return 0
	}
	return time.Duration(t.Nano())
}

func (c clock) now() moment {
	return moment{Wall: c.wall().UTC().Round(0), Boot: c.boot, Up: c.up()}
}

// since gives the larger of what the two clocks say; Unknown if the wall clock says that m has not come yet.
func (c clock) since(m moment) time.Duration {
	now := c.now()
	age := now.Wall.Sub(m.Wall)
	if age < 0 {
		return Unknown
	}
	if m.Boot != "" && m.Boot == now.Boot {
		age = max(age, now.Up-m.Up)
	}
	return age
}
