package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"sync/atomic"
	"time"

	"github.com/groupcast/groupcast/gateway-agent/consent"
	"github.com/groupcast/groupcast/gateway-agent/duplicator"
	"github.com/groupcast/groupcast/gateway-agent/state"
	"github.com/groupcast/groupcast/gateway-agent/sync"
	"github.com/groupcast/groupcast/gateway-agent/table"
	"github.com/groupcast/groupcast/models"
)

// longestLook is how often the age is looked at by the clock that also runs while the host sleeps.
const longestLook = 10 * time.Second

// watchEvery is how often others are shown how consents stand, at most, unless somebody came, went or moved.
const watchEvery = 250 * time.Millisecond

// forwarder holds what is in force. Everything but view belongs to the goroutine of run.
type forwarder struct {
	log      *slog.Logger
	server   string
	decode   func(raw []byte) (*sync.Information, error)
	store    *state.Store
	db       *table.DB
	place    place
	consents *consents
	reporter *reporter
	watched  time.Time     // when consents were last shown to others
	watching time.Duration // how long that took
	uptime   func() time.Duration

	answers chan delivered

	held       *sync.Information // what the table holds; nil: nothing
	kept       string            // cursor of what a restart would begin with, as far as this agent knows; "": nothing
	acked      string            // cursor of what is applied and kept, also over a power cut; "": nothing
	heard      hearing
	forwarding bool
	applied    time.Time // when what is held was put into force last
	appliedBy  time.Time // when the service had been asked for that
	fault      string    // what the last application could not do

	view atomic.Pointer[view]
}

// hearing is the last time that the server stood by what is held, by the clock of the packet path and by the one that also runs
// while the host sleeps.
type hearing struct {
	at       time.Time
	up       time.Duration
	maxStale time.Duration
	asked    time.Time // before the answer was given
}

func (h hearing) until() time.Time { return h.at.Add(h.maxStale) }

func (h hearing) inputs() table.Inputs {
	return table.Inputs{ValidUntil: h.until(), Heard: h.asked}
}

func (h hearing) over(now time.Time, up time.Duration) bool {
	return !now.Before(h.until()) || up-h.up >= h.maxStale
}

// view is what others may read of a forwarder.
type view struct {
	tables     effective // nil: nothing is in force
	cursor     string    // of what is in force
	heard      hearing
	forwarding bool
	fault      string
	members    map[string][]member // of each group
	mapped     map[string]netip.AddrPort
	checks     consent.Counters
	kept       string // cursor of what a restart would begin with, as far as this agent knows
}

// member is a destination as the group information names it.
type member struct {
	id, name string
	consent  models.ConsentState
}

type delivered struct {
	answer sync.Answer
	reply  chan<- reply
}

type reply struct {
	held sync.Held
	err  error
}

// deliver hands an answer to the goroutine that applies, and waits for it.
func (f *forwarder) deliver(ctx context.Context, a sync.Answer) (sync.Held, error) {
	replies := make(chan reply, 1)
	select {
	case f.answers <- delivered{a, replies}:
	case <-ctx.Done():
		return sync.Held{}, ctx.Err()
	}
	select {
	case r := <-replies:
		return r.held, r.err
	case <-ctx.Done():
		return sync.Held{}, ctx.Err()
	}
}

// run applies answers and lets what is in force run out, until ctx ends.
func (f *forwarder) run(ctx context.Context) {
	look := time.NewTimer(f.nextLook())
	defer look.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case d := <-f.answers:
			err := f.take(d.answer)
			d.reply <- reply{f.acknowledged(), err}
		case <-look.C:
			f.look()
		case check := <-f.consents.heard:
			if f.consents.take(time.Now(), check) {
				f.watched = time.Time{} // the server is to know at once
			}
			f.follow()
		case <-f.consents.due.C:
			f.consents.tick(time.Now())
			f.follow()
		}
		look.Reset(f.nextLook())
	}
}

func (f *forwarder) nextLook() time.Duration {
	if !f.forwarding {
		return longestLook
	}
	return min(max(time.Until(f.heard.until()), 0), longestLook)
}

// acknowledged is what may be acknowledged to the server.
func (f *forwarder) acknowledged() sync.Held {
	return sync.Held{Cursor: f.acked, MaxStale: f.heard.maxStale}
}

// look ends what has run out. The packet path goes by its own clock; this one also sees that the host slept.
func (f *forwarder) look() {
	if f.forwarding && f.heard.over(time.Now(), f.uptime()) {
		f.failClosed()
	}
}

// restore puts into force what the last agent kept, if it is fresh enough.
func (f *forwarder) restore() error {
	kept, err := f.store.Load(f.server)
	if errors.Is(err, state.ErrNone) {
		f.log.Info("no group information is kept: nothing is copied until the server answers")
		return nil
	}
	var info *sync.Information
	if err == nil {
		info, err = f.decode(kept.Information)
	}
	switch {
	case err != nil:
		f.log.Warn("the kept group information is not used: nothing is copied until the server answers", "err", err)
		return nil
	case kept.Age == state.Unknown:
		f.log.Warn("the kept group information comes from the future, so the clock was set back: nothing is copied until the server answers")
		return nil
	case kept.Age >= info.MaxStale:
		f.log.Warn("the kept group information is too old: nothing is copied until the server answers", "maxStale", info.MaxStale)
		return nil
	}
	if err := f.db.Replace(info.GroupInformation); err != nil {
		return err
	}
	f.held = info
	f.heard = hearing{time.Now().Add(-kept.Age), f.uptime() - kept.Age, info.MaxStale, time.Now().Add(-kept.Age)}
	f.kept = info.Cursor()
	if err := f.apply(); err != nil {
		return err
	}
	f.acked = f.kept
	f.log.Info("copying by the kept group information", "cursor", f.acked, "age", kept.Age, "groups", len(info.Groups))
	return nil
}

// take applies an answer. What is in force is replaced only by another epoch or a greater revision, as long as it is in force: a server
// that fell back would bring back destinations that left.
func (f *forwarder) take(a sync.Answer) error {
	info := a.Information
	switch {
	case info == nil && (f.held == nil || f.held.Cursor() != f.acked):
		// It is about a snapshot that is not the one in force, so it says nothing about this one.
		f.acked = ""
		return errors.New("the server says that nothing changed since an older snapshot")
	case info == nil:
		info = f.held
	case f.forwarding && info.Epoch == f.held.Epoch && info.Revision < f.held.Revision:
		return fmt.Errorf("the server sent revision %d, older than %d which it sent before: if its database was restored, its epoch has to change",
			info.Revision, f.held.Revision)
	}
	if f.held != nil && info.Epoch != f.held.Epoch {
		f.reporter.forget() // another life of the server's database may not know what was reported
	}
	if f.held == nil || info.Cursor() != f.held.Cursor() {
		if err := f.db.Replace(info.GroupInformation); err != nil {
			return err
		}
		f.held = info
		f.log.Info("group information received", "cursor", info.Cursor(), "groups", len(info.Groups))
	}
	f.heard = hearing{time.Now(), f.uptime(), info.MaxStale, a.Asked}
	if f.acked == info.Cursor() {
		if f.mayWait() {
			seen := *f.view.Load()
			seen.heard = f.heard
			f.view.Store(&seen)
		} else if err := f.apply(); err != nil {
			return err
		}
		if err := f.store.Confirm(f.acked); err != nil {
			f.log.Warn("a restart will take the group information for older than it is", "err", err)
		}
		return nil
	}
	// Kept before it is applied, so that an agent that is killed never comes back with an older table than it copied by. Waiting for the disk would
	// keep the change from destinations that come and go; only a power cut makes a difference, so that comes afterwards.
	f.kept = ""
	keepErr := f.store.Save(f.server, info.Cursor(), info.Raw)
	if keepErr == nil {
		f.kept = info.Cursor()
	}
	if err := f.apply(); err != nil {
		return errors.Join(err, keepErr)
	}
	if keepErr == nil {
		keepErr = f.store.Flush()
	}
	if keepErr != nil {
		return keepErr
	}
	// Only what a restart would find again may be acknowledged: an older snapshot on disk could bring a group back to an address
	// that the server has given to another since.
	f.acked = info.Cursor()
	return nil
}

// waits is the part of maxStale that what is in force may end too early at a relay.
const waits = 60

// mayWait tells whether an answer that says nothing new has to be put into force: at a relay that is the time of all homes, after two seconds
// again, and its table ends later by so much. Whatever could not be put into force is tried with each answer, and so is what this process forgot when it stood still.
func (f *forwarder) mayWait() bool {
	return f.consents.relay && f.forwarding && f.fault == "" && time.Since(f.applied) < f.heard.maxStale/waits &&
		!f.appliedBy.Before(f.place.stood())
}

// apply puts the table into force until the server is not heard from for too long. A group that can't be served doesn't keep the others
// from it and is tried again with the next answer.
func (f *forwarder) apply() error {
	portErr := f.consents.want(time.Now(), f.held.GroupInformation)
	tables, err := f.place.put(f.db.Read(), f.inputs(), f.held)
	if errors.Is(err, duplicator.ErrNotApplied) {
		return err
	}
	f.forwarding, f.applied, f.appliedBy = true, time.Now(), f.heard.asked
	f.watched = time.Time{}
	f.settle(tables, errors.Join(portErr, err))
	return nil
}

func (f *forwarder) inputs() table.Inputs {
	return f.consents.inputs(time.Now(), f.heard.inputs())
}

// follow puts into force what consents have changed. It leaves alone what they don't concern.
func (f *forwarder) follow() {
	now := time.Now()
	changed := f.forwarding && f.consents.changed(now)
	if pause := max(watchEvery, atMostOneIn*f.watching); now.Sub(f.watched) >= pause || changed && pause == watchEvery {
		defer f.watch(now)
	}
	if !changed {
		return
	}
	tables, err := f.place.follow(f.db.Read(), f.consents, f.heard.inputs(), f.held)
	switch {
	case errors.Is(err, duplicator.ErrNotApplied), tables == nil:
		f.log.Warn("a change of who consents could not be put into force; trying again with the next one", "err", err)
	default:
		seen := *f.view.Load()
		seen.tables = tables
		f.view.Store(&seen)
	}
}

// watch lets others read how consents stand.
func (f *forwarder) watch(now time.Time) {
	f.watched = now
	f.reporter.is(f.consents.report(now))
	seen := *f.view.Load()
	seen.members, seen.mapped, seen.checks = f.members(), f.consents.mapped(now), f.consents.machine.Counters()
	f.view.Store(&seen)
	f.watching = time.Since(now)
}

// members are the destinations of the group information and how each stands: as with the service, of several senders the worst counts.
func (f *forwarder) members() map[string][]member {
	if f.held == nil {
		return nil
	}
	worst := map[string]models.ConsentState{}
	for key, state := range f.consents.machine.States(time.Now()) {
		worst[key.Destination] = max(worst[key.Destination], state) // they are in the order of the alphabet
	}
	all := map[string][]member{}
	for _, g := range f.held.Groups {
		for _, d := range g.Destinations {
			state := worst[string(d.RegistrationID)]
			switch {
			case d.Policy == models.PolicyExempt || f.consents.unasked:
				state = models.ConsentExempt
			case state == "":
				state = models.ConsentPending
			}
			all[string(g.ID)] = append(all[string(g.ID)], member{string(d.RegistrationID), d.Name, state})
		}
	}
	return all
}

// failClosed ends all copying: from here on nobody knows whether the destinations still want it.
func (f *forwarder) failClosed() {
	f.log.Error("the server was not heard from for too long: nothing is copied until it answers", "maxStale", f.heard.maxStale)
	f.forwarding = false
	f.settle(nil, f.place.stop())
}

func (f *forwarder) settle(tables effective, err error) {
	fault := ""
	if err != nil {
		fault = err.Error()
		if fault != f.fault {
			f.log.Error("not everything could be put into force: it is tried again with the next answer", "err", err)
		}
	} else if f.fault != "" {
		f.log.Info("everything is in force again")
	}
	f.fault = fault
	cursor := ""
	if tables != nil {
		cursor = f.held.Cursor()
	}
	f.view.Store(&view{tables, cursor, f.heard, f.forwarding, fault, f.members(), f.consents.mapped(time.Now()), f.consents.machine.Counters(), f.kept})
}
