package relays

import (
	"cmp"
	"context"
	"errors"
	"maps"
	"slices"
	"time"

	"github.com/groupcast/groupcast/models"
	"github.com/groupcast/groupcast/server/audit"
	"github.com/groupcast/groupcast/server/store"
)

const (
	// interval is how often assignments are looked at. With the time after which a relay counts as dead and what the next one needs to be ready it stays
	// below ten seconds.
	interval = 500 * time.Millisecond
	// batch bounds the premises of one transaction, and rounds the transactions of one look.
	batch  = 200
	rounds = 50
	// maxRelays is how many relays are looked at.
	maxRelays = 1000
	// sweepEvery is how many looks are between two times that what is over is deleted.
	sweepEvery = 120
)

// Settle is for how long a process looks before it takes a relay for dead: longer than a relay lives without asking, so that each of them had the time to ask
// again after an outage of the service.
const Settle = models.RelayLiveFor + time.Second

// Run looks after the assignments until the context is done. Every replica runs it.
func (s *Service) Run(ctx context.Context) {
	tick := time.NewTicker(interval)
	defer tick.Stop()
	failing := false
	for {
		err := s.Look(ctx)
		switch {
		case ctx.Err() != nil:
			return
		case err != nil && !failing:
			s.opts.Log.WarnContext(ctx, "relays can't be looked after now; trying again", "error", err)
		case err == nil && failing:
			s.opts.Log.InfoContext(ctx, "relays are being looked after again")
		}
		failing = err != nil
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// Look does what is to be done about assignments now: premises of dead relays go to others, those that have none get one, relays that are ready copy, and those
// that were left let go.
func (s *Service) Look(ctx context.Context) error {
	now := time.Now()
	if now.Sub(s.looked) > Settle/2 { // the first look, or the service or its database was away: relays couldn't ask
		s.looking = now
	}
	s.rounds++
	if s.rounds%sweepEvery == 1 {
		if err := s.sweep(ctx); err != nil {
			return err
		}
	}
	for range rounds {
		more, err := s.step(ctx, now.Sub(s.looking) >= s.opts.Settle)
		if err != nil {
			return err
		}
		s.looked = time.Now()
		if !more {
			return nil
		}
	}
	return nil
}

func (s *Service) sweep(ctx context.Context) error {
	if err := s.store.SweepDepartures(ctx); err != nil {
		return err
	}
	return s.store.SweepRelays(ctx)
}

// step does one batch of each, and tells whether there may be more.
func (s *Service) step(ctx context.Context, settled bool) (more bool, err error) {
	all, err := s.store.RelaysStanding(ctx, 0, maxRelays)
	if err != nil || len(all) == 0 {
		return false, err
	}
	looked := all
	if !settled { // nobody is dead yet, but for those that were removed
		looked = slices.DeleteFunc(slices.Clone(all), func(r store.RelayStanding) bool { return !r.Live && !r.Removed })
	}
	due, err := s.store.DueAssignments(ctx, looked, batch)
	if err != nil {
		return false, err
	}
	for _, id := range due.Rechecked {
		if err := s.store.Write(ctx, func(tx *store.Tx) error { return tx.EndRecheck(id) }); err != nil {
			return false, err
		}
	}
	if due.Pending {
		if err := s.store.NoteAcknowledged(ctx); err != nil {
			return false, err
		}
	}
	if len(due.Left) > 0 {
		if err := s.leave(ctx, due.Left); err != nil {
			return false, err
		}
	}
	if len(due.Ready) > 0 {
		if err := s.forward(ctx, due.Ready); err != nil {
			return false, err
		}
	}
	for _, premises := range [][]models.PremisesID{due.Lost, due.Unserved} {
		if len(premises) > 0 {
			if err := s.reassign(ctx, premises); err != nil {
				return false, err
			}
		}
	}
	return max(len(due.Lost), len(due.Unserved), len(due.Ready), len(due.Left)) >= batch, nil
}

// forward lets relays copy that are ready.
func (s *Service) forward(ctx context.Context, premises []models.PremisesID) error {
	return unlessNothing(s.store.Write(ctx, func(tx *store.Tx) error {
		if err := tx.HoldGatewaysOf(premises...); err != nil {
			return err
		}
		turned, err := tx.Forward(premises)
		switch {
		case err != nil:
			return err
		case len(turned) == 0:
			return errNothing
		}
		if err := record(tx, turned, audit.RelayForward); err != nil {
			return err
		}
		return tx.AppendPremisesEvents(turned)
	}))
}

// leave takes premises from relays to which no gateway of theirs forwards any more.
func (s *Service) leave(ctx context.Context, premises []models.PremisesID) error {
	return unlessNothing(s.store.Write(ctx, func(tx *store.Tx) error {
		if err := tx.HoldGatewaysOf(premises...); err != nil {
			return err
		}
		left, err := tx.LeaveRelays(premises)
		switch {
		case err != nil:
			return err
		case len(left) == 0:
			return errNothing
		}
		return tx.AppendPremisesEvents(left)
	}))
}

// errNothing rolls back a transaction that would raise revisions for nothing: another replica was first.
var errNothing = errors.New("there is nothing to do any more")

// unlessNothing is the error of such a transaction.
func unlessNothing(err error) error {
	if errors.Is(err, errNothing) {
		return nil
	}
	return err
}

// record notes who serves premises now in the audit log of their accounts.
func record(tx *store.Tx, premises []models.PremisesID, action audit.Action) error {
	all, err := tx.Assignments(premises)
	if err != nil {
		return err
	}
	entries := make([]audit.Entry, len(all))
	for i, a := range all {
		entries[i] = audit.Entry{Actor: audit.System, Account: a.AccountID, Action: action, Object: audit.OfPremises(a.PremisesID)}
	}
	return audit.Record(tx, entries...)
}

// reassign gives premises to the relays that may serve them and have the fewest; those whose relay still lives and may serve them keep it.
func (s *Service) reassign(ctx context.Context, premises []models.PremisesID) error {
	return unlessNothing(s.store.Write(ctx, func(tx *store.Tx) error {
		changed, err := assign(tx, premises)
		switch {
		case err != nil:
			return err
		case len(changed) == 0:
			return errNothing
		}
		return tx.AppendPremisesEvents(changed)
	}))
}

// assign locks the gateways of premises and gives each premises the relay that it is to have. It is a step of a transaction, and
// gives those whose relay changed.
func assign(tx *store.Tx, premises []models.PremisesID) (changed []models.PremisesID, err error) {
	if err := tx.LockGatewaysOf(premises); err != nil {
		return nil, err
	}
	standing, err := tx.RelaysStanding(0, maxRelays)
	if err != nil {
		return nil, err
	}
	now, err := tx.Assignments(premises)
	if err != nil {
		return nil, err
	}
	servable, err := tx.ServableBy(premises)
	if err != nil {
		return nil, err
	}
	moves := choose(standing, now, servable)
	for _, to := range slices.Sorted(maps.Keys(moves)) {
		if err := tx.MoveAssignments(moves[to], to); err != nil {
			return nil, err
		}
		changed = append(changed, moves[to]...)
	}
	if len(changed) == 0 {
		return nil, nil
	}
	return changed, record(tx, changed, audit.RelayAssign)
}

// choose says which premises go to which relay, or with 0 to none. It is pure: the relay that lives, may serve the premises and has the fewest; of several the
// one with the lowest id. Whoever has a relay that lives and may serve it keeps that.
func choose(standing []store.RelayStanding, now []store.Assignment, servable map[models.PremisesID][]models.ID) map[models.ID][]models.PremisesID {
	load := map[models.ID]int{}
	var live []store.RelayStanding
	for _, r := range standing {
		if r.Live {
			live = append(live, r)
			load[r.ID] = r.Served
		}
	}
	moves := map[models.ID][]models.PremisesID{}
	for _, a := range now {
		by, ok := servable[a.PremisesID]
		may := slices.DeleteFunc(slices.Clone(live), func(r store.RelayStanding) bool { return !ok || !r.All && !slices.Contains(by, r.ID) })
		if slices.ContainsFunc(may, func(r store.RelayStanding) bool { return r.ID == a.RelayID }) {
			continue
		}
		var to models.ID
		if len(may) > 0 {
			to = slices.MinFunc(may, func(x, y store.RelayStanding) int {
				return cmp.Or(cmp.Compare(load[x.ID], load[y.ID]), cmp.Compare(x.ID, y.ID))
			}).ID
			load[to]++
		}
		if to != a.RelayID {
			moves[to] = append(moves[to], a.PremisesID)
		}
	}
	return moves
}

// Change makes the assignment follow what an account holder wants. It is a step of the transaction that changes the premises, which is locked.
func Change(tx *store.Tx, before, after models.Premises) error {
	id := []models.PremisesID{after.ID}
	switch {
	case before.Fanout != models.FanoutNetwork && after.Fanout == models.FanoutNetwork:
		if err := tx.InsertAssignment(after.ID); err != nil {
			return err
		}
		_, err := assign(tx, id)
		return err
	case before.Fanout == models.FanoutNetwork && after.Fanout != models.FanoutNetwork:
		if err := tx.LockGatewaysOf(id); err != nil {
			return err
		}
		if err := tx.MoveAssignments(id, 0); err != nil {
			return err
		}
		return tx.DeleteAssignment(after.ID)
	case after.Fanout == models.FanoutNetwork && before.OnRelayLoss != after.OnRelayLoss:
		if err := tx.LockGatewaysOf(id); err != nil {
			return err
		}
		return tx.SetHalted(after.ID, after.OnRelayLoss == models.OnRelayLossStop)
	}
	return nil
}
