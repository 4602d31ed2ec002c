package events

import (
	"context"
	"slices"

	"github.com/groupcast/groupcast/models"
	"github.com/groupcast/groupcast/server/store"
)

// State is a group as of its newest event.
type State struct {
	// Event is the newest; its Group is never nil. If it was swept, it is a group.changed with the time of the reading.
	models.Event
	// hearers are the members; of a group that ended, those it had until then.
	hearers []models.Member
}

// Hears tells whether a device may hear of the state: it is a source or a destination, or was one until the group ended. Who left before
// that, by itself or not, isn't.
func (s State) Hears(device models.ID) bool {
	return slices.ContainsFunc(s.hearers, func(m models.Member) bool { return m.Type == models.MemberDevice && m.ID == device })
}

// State reads a group of an account as of now, with who may hear of it, in one reading. A group that there is not, or that is another
// account's, is not found.
func (s *Service) State(ctx context.Context, of models.EventStream) (State, bool, error) {
	last, err := s.store.LastEvents(ctx, of, 2)
	if err != nil || of.GroupID == "" {
		return State{}, false, err
	}
	if len(last) == 0 {
		return s.quiet(ctx, of)
	}
	state := State{Event: last[0], hearers: last[0].Group.Members}
	if state.Type == models.EventGroupEnded && len(last) == 2 {
		state.hearers = last[1].Group.Members
	}
	return state, true, nil
}

// quiet reads a group whose events were all swept, because nothing happened for so long.
func (s *Service) quiet(ctx context.Context, of models.EventStream) (state State, found bool, err error) {
	now, err := s.store.Now(ctx)
	if err != nil {
		return State{}, false, err
	}
	err = s.store.Read(ctx, func(tx *store.Tx) error {
		groups, err := tx.VisibleGroups(store.Viewer{Account: of.AccountID}, store.GroupFilter{ID: of.GroupID, Limit: 1})
		if err != nil || len(groups) == 0 {
			return err
		}
		members, err := tx.MembersOf([]models.GroupID{of.GroupID})
		if err != nil {
			return err
		}
		senders, err := tx.SendersOf(of.GroupID)
		if err != nil {
			return err
		}
		g := models.GroupState{Group: groups[0], Members: members[of.GroupID], Senders: senders}
		for _, m := range g.Members {
			if m.Role == models.RoleDestination {
				g.State++
			}
		}
		found = true
		state = State{Event: models.Event{
			EventPlace: models.EventPlace{EventStream: of, Rev: g.Rev}, PremisesID: g.PremisesID, Type: models.EventGroupChanged, At: now, Group: &g,
		}, hearers: g.Members}
		return nil
	})
	return state, found, err
}

// NewState makes the state of an event and of those who may hear of it.
func NewState(e models.Event, hearers []models.Member) State {
	return State{Event: e, hearers: hearers}
}
