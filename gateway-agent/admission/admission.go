// Package admission keeps the copies within the uplink's rate: it measures what each camera streams, and if copies for everybody would be more than
// the uplink takes, it leaves out as many destinations as it must (choose.go), in turn, so that those who are served get whole streams. Without it
// the uplink would drop from everybody's. It stands in front of any backend and never sees a packet.
package admission

import (
	"errors"
	"log/slog"
	"maps"
	"sync"
	"time"

	"github.com/groupcast/groupcast/gateway-agent/duplicator"
	"github.com/groupcast/groupcast/gateway-agent/state"
	"github.com/groupcast/groupcast/gateway-agent/table"
)

// DropUplink counts, for a destination, datagrams of its group while it was left out.
const DropUplink = "uplink-rate"

// What a copy has beside its payload (IPv4 and UDP), and the payload of a stream nobody has had a copy of yet, in bytes.
const (
	headers = 28
	guess   = 1400
)

// Config is how a Gate admits.
type Config struct {
	// Rate is what all copies together may take of the uplink, in bits per second with IP headers.
	Rate uint64
	// Look is how often rates are measured. Default: 1 second.
	Look time.Duration
	// Turn is how long somebody is left out before it's the next one's turn. Default: 10 seconds.
	Turn time.Duration
	// Log gets numbers only. Default: slog.Default.
	Log *slog.Logger
}

// Gate is a Duplicator in front of another one.
type Gate struct {
	config Config
	inner  duplicator.Duplicator

	mu      sync.Mutex
	asked   *table.Snapshot
	applied moment
	shed    map[string]bool
	lost    map[string]uint64 // datagrams that destinations didn't get while they were shed
	streams map[string]*stream
	turn    int
	turned  time.Time

	quit  chan struct{}
	close sync.Once
	done  sync.WaitGroup
}

// stream is what the cameras of one group send.
type stream struct {
	copied         uint64 // datagrams so far
	packets, bytes uint64 // of all its destinations so far
	payload        float64
	rate           float64 // bits per second that one destination's copies take
	looked         time.Time
}

// moment tells by two clocks: only one of them goes on while the host sleeps.
type moment struct {
	at time.Time
	up time.Duration
}

func now() moment { return moment{time.Now(), state.Uptime()} }

var _ duplicator.Duplicator = (*Gate)(nil)

// New stands in front of a backend from now on, and closes it with itself.
func New(inner duplicator.Duplicator, c Config) *Gate {
	if c.Look == 0 {
		c.Look = time.Second
	}
	if c.Turn == 0 {
		c.Turn = 10 * time.Second
	}
	if c.Log == nil {
		c.Log = slog.Default()
	}
	g := &Gate{config: c, inner: inner, lost: map[string]uint64{}, streams: map[string]*stream{}, turned: time.Now(), quit: make(chan struct{})}
	g.done.Go(g.run)
	return g
}

// Apply implements duplicator.Duplicator. A destination that is new is left out from the start if it doesn't fit.
func (g *Gate) Apply(s *table.Snapshot) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if s == nil {
		err := g.inner.Apply(nil)
		if !errors.Is(err, duplicator.ErrNotApplied) {
			g.asked, g.shed = nil, nil
		}
		return err
	}
	shed := g.choose(s)
	err := g.inner.Apply(without(s, shed))
	if !errors.Is(err, duplicator.ErrNotApplied) {
		g.asked, g.applied = s, now()
		g.settle(shed)
	}
	return err
}

func (g *Gate) choose(s *table.Snapshot) map[string]bool {
	return choose(ring(s, func(group *table.Group) float64 {
		if m := g.streams[group.ID]; m != nil {
			return m.rate
		}
		return 0
	}), float64(g.config.Rate), g.turn)
}

// settle takes over who is shed, and says when it begins and ends.
func (g *Gate) settle(shed map[string]bool) {
	switch {
	case len(shed) > 0 && len(g.shed) == 0:
		g.config.Log.Warn("the copies are more than uplink-rate: some destinations are left out, in turn", "leftOut", len(shed), "bitsPerSecond", g.config.Rate)
	case len(shed) == 0 && len(g.shed) > 0:
		g.config.Log.Info("the copies fit into uplink-rate again")
	}
	g.shed = shed
}

func (g *Gate) run() {
	look := time.NewTicker(g.config.Look)
	defer look.Stop()
	for {
		select {
		case <-g.quit:
			return
		case <-look.C:
			g.look()
		}
	}
}

// look measures, and changes who is shed if that is due.
func (g *Gate) look() {
	g.mu.Lock()
	defer g.mu.Unlock()
	at := now()
	g.measure(at.at)
	if g.asked == nil {
		return
	}
	// After the host slept the snapshot may be too old, and only who applies it can tell.
	if slept := (at.up - g.applied.up) - at.at.Sub(g.applied.at); slept > time.Second || !at.at.Before(g.asked.ValidUntil) {
		return
	}
	if len(g.shed) > 0 && at.at.Sub(g.turned) >= g.config.Turn {
		g.turn++
		g.turned = at.at
	}
	shed := g.choose(g.asked)
	if maps.Equal(shed, g.shed) {
		return
	}
	if err := g.inner.Apply(without(g.asked, shed)); err != nil {
		g.config.Log.Warn("who is left out could not be changed; trying again", "err", err)
		if errors.Is(err, duplicator.ErrNotApplied) {
			return
		}
	}
	g.settle(shed)
}

// measure learns from the backend's counters what the cameras send, and counts what those who are shed didn't get.
func (g *Gate) measure(at time.Time) {
	if g.asked == nil {
		return
	}
	counters := g.inner.Counters()
	present, destinations := map[string]bool{}, map[string]bool{}
	for ip, group := range g.asked.Groups {
		present[group.ID] = true
		count := counters.Groups[ip]
		seen := stream{copied: count.Received, payload: guess, looked: at}
		for _, n := range count.Drops {
			seen.copied -= min(n, seen.copied)
		}
		for _, d := range group.Destinations {
			destinations[d.ID] = true
			seen.packets += counters.Destinations[d.ID].Packets
			seen.bytes += counters.Destinations[d.ID].Bytes
		}
		before := g.streams[group.ID]
		g.streams[group.ID] = &seen
		if before == nil || seen.copied < before.copied {
			continue
		}
		datagrams := seen.copied - before.copied
		seen.payload = before.payload
		if seen.packets > before.packets && seen.bytes >= before.bytes {
			seen.payload = float64(seen.bytes-before.bytes) / float64(seen.packets-before.packets)
		}
		if took := at.Sub(before.looked).Seconds(); took > 0 {
			// Up at once, down slowly: a scene without movement is soon over.
			seen.rate = float64(datagrams) * (seen.payload + headers) * 8 / took
			seen.rate = max(seen.rate, 0.8*before.rate+0.2*seen.rate)
		}
		for _, d := range group.Destinations {
			if g.shed[d.ID] && datagrams > 0 {
				g.lost[d.ID] += datagrams
			}
		}
	}
	maps.DeleteFunc(g.streams, func(id string, _ *stream) bool { return !present[id] })
	maps.DeleteFunc(g.lost, func(id string, _ uint64) bool {
		_, known := counters.Destinations[id]
		return !known && !destinations[id]
	})
}

// Counters implements duplicator.Duplicator.
func (g *Gate) Counters() duplicator.Counters {
	g.mu.Lock()
	defer g.mu.Unlock()
	c := g.inner.Counters()
	for id, n := range g.lost {
		d := c.Destinations[id]
		d.Drops = maps.Clone(d.Drops)
		if d.Drops == nil {
			d.Drops = map[string]uint64{}
		}
		d.Drops[DropUplink] += n
		c.Destinations[id] = d
	}
	return c
}

// Load is what a Gate does at the moment.
type Load struct {
	// Rate and Wanted are in bits per second: what copies may take, and what copies for everybody would.
	Rate, Wanted uint64
	Shed         map[string]bool // destinations that get nothing for now
}

// Load tells what is going on.
func (g *Gate) Load() Load {
	g.mu.Lock()
	defer g.mu.Unlock()
	l := Load{Rate: g.config.Rate, Shed: maps.Clone(g.shed)}
	if g.asked != nil {
		for _, group := range g.asked.Groups {
			if m := g.streams[group.ID]; m != nil {
				l.Wanted += uint64(m.rate) * uint64(len(group.Destinations))
			}
		}
	}
	return l
}

// Close implements duplicator.Duplicator.
func (g *Gate) Close() error {
	g.close.Do(func() { close(g.quit) })
	g.done.Wait()
	return g.inner.Close()
}
