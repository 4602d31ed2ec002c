package registrations

import (
	"maps"
	"slices"

	"github.com/groupcast/groupcast/models"
	"github.com/groupcast/groupcast/server/store"
)

// End removes members of a gateway's groups, and with its last source each group: then its destinations' registrations end too
// and its group IP goes into quarantine (SPEC §5). The gateway is one that the transaction has locked. It gives all the
// registrations that ended, which may be none.
func End(tx *store.Tx, gateway models.Gateway, ids []models.RegistrationID) ([]models.Registration, error) {
	ended, err := tx.DeleteRegistrations(ids)
	if err != nil {
		return nil, err
	}
	var lostSource []models.GroupID
	for _, r := range ended {
		if r.Key.Role == models.RoleSource && !slices.Contains(lostSource, r.GroupID) {
			lostSource = append(lostSource, r.GroupID)
		}
	}
	if len(lostSource) == 0 {
		return ended, nil
	}
	over, err := tx.GroupsWithoutSource(lostSource)
	if err != nil || len(over) == 0 {
		return ended, err
	}
	rest, err := EndGroups(tx, gateway, over)
	return append(ended, rest...), err
}

// EndGroups ends whole groups of a gateway that the transaction has locked, and gives the registrations that ended.
func EndGroups(tx *store.Tx, gateway models.Gateway, groups []models.Group) ([]models.Registration, error) {
	ids := make([]models.GroupID, len(groups))
	for i, g := range groups {
		ids[i] = g.ID
	}
	return tx.EndGroups(ids, gateway.Revision)
}

// EndOwned ends all registrations of an owner and gives the gateways whose group information changed. It locks them one after
// another in the order of their ids.
func EndOwned(tx *store.Tx, owner store.Owner) ([]models.ID, error) {
	places, err := tx.PlacesOf(owner)
	if err != nil {
		return nil, err
	}
	return EndPlaces(tx, places)
}

// EndPlaces is EndOwned for registrations that were read already.
func EndPlaces(tx *store.Tx, places []store.Place) ([]models.ID, error) {
	at := store.ByGateway(places)
	gateways := slices.Sorted(maps.Keys(at))
	for _, id := range gateways {
		gateway, found, err := tx.LockGateway(id)
		if err != nil {
			return nil, err
		}
		if !found { // it is gone since, and its groups with it
			continue
		}
		if _, err := End(tx, gateway, at[id]); err != nil {
			return nil, err
		}
	}
	return gateways, nil
}
