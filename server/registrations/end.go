package registrations

import (
	"maps"
	"slices"

	"github.com/groupcast/groupcast/models"
	"github.com/groupcast/groupcast/server/store"
)

// End removes members of a gateway's groups, and with its last source each group: then its destinations' registrations end too
// and its group IP goes into quarantine (SPEC §5). The gateway is one that the transaction has locked; why is what the groups that
// go on hear. It gives all the registrations that ended, which may be none.
func End(tx *store.Tx, gateway models.Gateway, ids []models.RegistrationID, why models.EventType) ([]models.Registration, error) {
	ended, err := tx.DeleteRegistrations(ids)
	if err != nil {
		return nil, err
	}
	var left, lostSource []models.GroupID
	for _, r := range ended {
		if !slices.Contains(left, r.GroupID) {
			left = append(left, r.GroupID)
		}
		if r.Key.Role == models.RoleSource && !slices.Contains(lostSource, r.GroupID) {
			lostSource = append(lostSource, r.GroupID)
		}
	}
	if len(lostSource) > 0 {
		over, err := tx.GroupsWithoutSource(lostSource)
		if err != nil {
			return nil, err
		}
		if len(over) > 0 {
			rest, err := EndGroups(tx, gateway, over)
			if err != nil {
				return nil, err
			}
			ended = append(ended, rest...)
		}
		left = slices.DeleteFunc(left, func(id models.GroupID) bool {
			return slices.ContainsFunc(over, func(g models.Group) bool { return g.ID == id })
		})
	}
	return ended, tx.AppendGroupEvents(why, left)
}

// EndGroups ends whole groups of a gateway that the transaction has locked, and gives the registrations that ended.
func EndGroups(tx *store.Tx, gateway models.Gateway, groups []models.Group) ([]models.Registration, error) {
	ids := make([]models.GroupID, len(groups))
	for i, g := range groups {
		ids[i] = g.ID
	}
	return tx.EndGroups(ids, gateway.Revision)
}

// EndOwned ends all registrations of an owner. It locks their gateways one after another in the order of their ids.
func EndOwned(tx *store.Tx, owner store.Owner) error {
	places, err := tx.PlacesOf(owner)
	if err != nil {
		return err
	}
	at := store.ByGateway(places)
	for _, id := range slices.Sorted(maps.Keys(at)) {
		gateway, found, err := tx.LockGateway(id)
		if err != nil {
			return err
		}
		if !found { // it is gone since, and its groups with it
			continue
		}
		if _, err := End(tx, gateway, at[id], models.EventMemberLeft); err != nil {
			return err
		}
	}
	return nil
}
