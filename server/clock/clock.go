// Package clock tells the time that tokens are dated by and compared with: the database's, which all replicas share (SPEC §5). A replica on a
// host whose own clock is wrong neither issues tokens that others refuse, nor takes one that has ended, nor ends one that hasn't
// (docs/adr/0056).
//
// Leases, events and deliveries don't need it: their times are compared within the database.
package clock

import (
	"context"
	"fmt"
	"log/slog"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

const (
	// readEvery is how often the database is asked, which is how long a clock that was set is not followed.
	readEvery = 5 * time.Second
	// maxTrip is how long an answer may have taken that is believed: half of it is what is not known. One that took longer says less than the
	// last one that didn't.
	maxTrip = time.Second
	// apart is from what difference on the operator is told that the host's clock is wrong.
	apart = 5 * time.Second
)

// Clock tells the time. It is safe for concurrent use.
type Clock struct {
	ask    func(context.Context) (time.Time, error)
	local  func() time.Time
	log    *slog.Logger
	ahead  prometheus.Gauge
	wrong  bool // the operator was told so
	newest atomic.Pointer[reading]
}

// reading is what the database said, and when.
type reading struct{ said, at time.Time }

// New asks the database for the first time. local is the host's clock, which tells only how long ago that was: time.Now, whose differences don't
// depend on how the host's clock is set. Run has to run for as long as the clock is used.
func New(ctx context.Context, ask func(context.Context) (time.Time, error), local func() time.Time, log *slog.Logger, registry prometheus.Registerer) (*Clock, error) {
	c := &Clock{ask: ask, local: local, log: log, ahead: prometheus.NewGauge(prometheus.GaugeOpts{
		Name: "groupcast_clock_ahead_seconds", Help: "How far the host's clock is ahead of the database's, which counts.",
	})}
	registry.MustRegister(c.ahead)
	return c, c.Look(ctx)
}

// Now is the database's time. While the database is away it goes on.
func (c *Clock) Now() time.Time {
	r := c.newest.Load()
	return r.said.Add(c.local().Sub(r.at))
}

// Run asks the database again and again until the context is done.
func (c *Clock) Run(ctx context.Context) {
	tick := time.NewTicker(readEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		if err := c.Look(ctx); err != nil && ctx.Err() == nil {
			c.log.DebugContext(ctx, "the database's clock can't be read; it is counted on", "error", err)
		}
	}
}

// Look asks the database.
func (c *Clock) Look(ctx context.Context) error {
	asked := c.local()
	said, err := c.ask(ctx)
	if err != nil {
		return fmt.Errorf("read the database's clock: %w", err)
	}
	trip := c.local().Sub(asked)
	if c.newest.Load() != nil && trip > maxTrip {
		return nil
	}
	at := asked.Add(trip / 2)
	c.newest.Store(&reading{said, at})
	ahead := at.Round(0).Sub(said) // of what the host's clock shows
	c.ahead.Set(ahead.Seconds())
	if wrong := ahead.Abs() >= apart; wrong != c.wrong {
		c.wrong = wrong
		if wrong {
			c.log.WarnContext(ctx, "This host's clock and the database's differ. Tokens go by the database's; certificates and a NATS server on this host don't. Keep both right by NTP.",
				"ahead", ahead.Round(time.Millisecond))
		} else {
			c.log.InfoContext(ctx, "this host's clock and the database's agree again")
		}
	}
	return nil
}
