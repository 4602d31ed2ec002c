package registrations

import (
	"context"
	"maps"
	"slices"

	"github.com/groupcast/groupcast/models"
	"github.com/groupcast/groupcast/server/audit"
	"github.com/groupcast/groupcast/server/store"
)

// End removes members of a gateway's groups, and with its last source each group: then its destinations' registrations end too
// and its group IP goes into quarantine (SPEC §5). The gateway is one that the transaction has locked; why, EventMemberLeft or
// EventMemberExpired, is what the groups that go on hear. It gives all the registrations that ended, which may be none. The audit log names those
// that were given; of a group that ends it says so once, for all its members.
func End(ctx context.Context, tx *store.Tx, gateway models.Gateway, ids []models.RegistrationID, why models.EventType) ([]models.Registration, error) {
	ended, err := tx.DeleteRegistrations(ids)
	if err != nil || len(ended) == 0 {
		return nil, err
	}
	did := audit.GroupLeave
	if why == models.EventMemberExpired {
		did = audit.GroupExpire
	}
	entries, left := make([]audit.Entry, 0, len(ended)), []models.GroupID{}
	for _, r := range ended {
		entries = append(entries, audit.Entry{Account: r.AccountID, Action: did, Object: audit.OfMember(r)})
		if !slices.Contains(left, r.GroupID) {
			left = append(left, r.GroupID)
		}
	}
	ended, over, err := endWithout(tx, gateway, ended)
	if err != nil {
		return nil, err
	}
	left = slices.DeleteFunc(left, func(id models.GroupID) bool {
		return slices.ContainsFunc(over, func(g models.Group) bool { return g.ID == id })
	})
	if err := tx.AppendGroupEvents(why, left); err != nil {
		return nil, err
	}
	return ended, audit.Note(ctx, tx, append(entries, endings(over)...)...)
}

// endWithout ends the groups that have no source any more after some registrations ended, and gives all that ended.
func endWithout(tx *store.Tx, gateway models.Gateway, ended []models.Registration) (all []models.Registration, over []models.Group, err error) {
	var lostSource []models.GroupID
	for _, r := range ended {
		if r.Key.Role == models.RoleSource && !slices.Contains(lostSource, r.GroupID) {
			lostSource = append(lostSource, r.GroupID)
		}
	}
	if len(lostSource) == 0 {
		return ended, nil, nil
	}
	over, err = tx.GroupsWithoutSource(lostSource)
	if err != nil || len(over) == 0 {
		return ended, nil, err
	}
	rest, err := endGroups(tx, gateway, over)
	return append(ended, rest...), over, err
}

// EndGroups ends whole groups of a gateway that the transaction has locked.
func EndGroups(ctx context.Context, tx *store.Tx, gateway models.Gateway, groups []models.Group) error {
	if _, err := endGroups(tx, gateway, groups); err != nil {
		return err
	}
	return audit.Note(ctx, tx, endings(groups)...)
}

// endings are what the audit log says of groups that end.
func endings(groups []models.Group) []audit.Entry {
	entries := make([]audit.Entry, len(groups))
	for i, g := range groups {
		entries[i] = audit.Entry{Account: g.AccountID, Action: audit.GroupEnd, Object: audit.OfGroup(g.ID)}
	}
	return entries
}

func endGroups(tx *store.Tx, gateway models.Gateway, groups []models.Group) ([]models.Registration, error) {
	ids := make([]models.GroupID, len(groups))
	for i, g := range groups {
		ids[i] = g.ID
	}
	return tx.EndGroups(ids, gateway.Revision)
}

// EndOwned ends all registrations of an owner. It locks their gateways one after another in the order of their ids.
func EndOwned(ctx context.Context, tx *store.Tx, owner store.Owner) error {
	places, err := tx.PlacesOf(owner)
	if err != nil {
		return err
	}
	return EndPlaces(ctx, tx, places)
}

// EndPlaces is EndOwned for registrations that were read already.
func EndPlaces(ctx context.Context, tx *store.Tx, places []store.Place) error {
	at := store.ByGateway(places)
	for _, id := range slices.Sorted(maps.Keys(at)) {
		gateway, found, err := tx.LockGateway(id)
		if err != nil {
			return err
		}
		if !found { // it is gone since, and its groups with it
			continue
		}
		if _, err := End(ctx, tx, gateway, at[id], models.EventMemberLeft); err != nil {
			return err
		}
	}
	return nil
}
