package sync

import (
	"context"
	"errors"
	"log/slog"
	"math/rand/v2"
	"strings"
	"time"
)

// sameFault is how often a fault that lasts is logged.
const sameFault = 5 * time.Minute

// faults counts failures in a row: it says how long to pause, and keeps the log readable while a server is away for hours.
type faults struct {
	log    *slog.Logger
	inARow int
	since  time.Time
	kind   string
	logged time.Time
}

// happened gives the pause: full jitter below a bound that doubles, after whatever the server asked for. If it is the first call of all
// that failed, many agents may have started at this moment and for the same reason, the power or the provider being back: they
// spread.
func (f *faults) happened(ctx context.Context, err error, atStart bool) time.Duration {
	now := time.Now()
	if f.inARow == 0 {
		f.since = now
	}
	bound := min(firstBackOff<<min(f.inARow, 10), longestBackOff)
	f.inARow++
	pause := rand.N(bound)
	if e, ok := errors.AsType[*ServerError](err); ok {
		pause += min(e.RetryAfter, longestRetry)
	}
	if atStart {
		pause += rand.N(startSpread)
	}
	level := slog.LevelDebug
	if kind := withoutDigits(err.Error()); kind != f.kind || now.Sub(f.logged) >= sameFault {
		level, f.kind, f.logged = slog.LevelWarn, kind, now
	}
	f.log.Log(ctx, level, "the group information is not renewed", "err", err, "failures", f.inARow, "since", f.since, "retryIn", pause)
	return pause
}

func (f *faults) over() {
	if f.inARow > 0 {
		f.log.Info("the group information is renewed again", "failures", f.inARow, "after", time.Since(f.since))
	}
	*f = faults{log: f.log}
}

// withoutDigits makes errors alike that differ in a port or a time.
func withoutDigits(s string) string {
	return strings.Map(func(c rune) rune {
		if c >= '0' && c <= '9' {
			return -1
		}
		return c
	}, s)
}
