package consents

import (
	"context"
	"maps"
	"slices"

	"github.com/groupcast/groupcast/models"
	"github.com/groupcast/groupcast/server/store"
)

// Report is what a gateway or a relay tells. What it doesn't name stays as it is.
type Report struct {
	// NodeID is the gateway's or the relay's.
	NodeID models.ID
	// Sequence has to be above that of the newest report that was applied.
	Sequence int64
	Senders  []models.SenderPorts
	Consents []models.SenderConsent
}

// Answer tells where the reports of a gateway or a relay stand.
type Answer struct {
	Applied bool
	// Sequence is that of the newest report that was applied.
	Sequence int64
	// Unknown are registrations that are none of the gateway's or the relay's.
	Unknown []models.RegistrationID
}

// Service takes reports.
type Service struct{ store *store.Store }

// New makes the service.
func New(st *store.Store) *Service { return &Service{store: st} }

// node is who reports, with the steps that differ between gateways and relays.
type node struct {
	as      store.Reporter
	begin   func(tx *store.Tx, id models.ID, sequence int64) (newest int64, applied, found bool, err error)
	members func(tx *store.Tx, id models.ID, ids []models.RegistrationID) ([]models.Registration, error)
}

func nodeOf(p models.Principal, id models.ID) (node, error) {
	switch {
	case p.Kind == models.KindGateway && p.Device.ID == id:
		return node{store.Reporter{}, (*store.Tx).BeginReport, (*store.Tx).MembersAt}, nil
	case p.Kind == models.KindRelay && p.Relay.ID == id && p.Relay.Declared():
		return node{store.Reporter{RelayID: id, Uplink: p.Relay.Uplink}, (*store.Tx).BeginRelayReport, (*store.Tx).MembersAtRelay}, nil
	}
	return node{}, models.NotFound()
}

// Report records what a gateway or a relay tells of members of the groups that it serves, and tells the groups in which something changed. An older report
// than the newest changes nothing. Somebody else's node looks like a missing one.
func (s *Service) Report(ctx context.Context, p models.Principal, r Report) (a Answer, err error) {
	n, err := nodeOf(p, r.NodeID)
	if err != nil {
		return a, err
	}
	err = s.store.Write(ctx, func(tx *store.Tx) error {
		var found bool
		a.Unknown = []models.RegistrationID{}
		if a.Sequence, a.Applied, found, err = n.begin(tx, r.NodeID, r.Sequence); err != nil || !a.Applied {
			if err == nil && !found {
				err = models.NotFound()
			}
			return err
		}
		return n.apply(tx, r, &a)
	})
	return a, err
}

// apply writes a report; the node is held.
func (n node) apply(tx *store.Tx, r Report, a *Answer) error {
	var named []models.RegistrationID
	for _, v := range r.Senders {
		named = append(named, v.RegistrationID)
	}
	for _, v := range r.Consents {
		named = append(named, v.RegistrationID, v.SenderID)
	}
	slices.Sort(named)
	named = slices.Compact(named)
	if len(named) == 0 {
		return nil
	}
	members, err := n.members(tx, r.NodeID, named)
	if err != nil {
		return err
	}
	known := make(map[models.RegistrationID]models.Registration, len(members))
	for _, m := range members {
		known[m.ID] = m
	}
	for _, id := range named {
		if _, ok := known[id]; !ok {
			a.Unknown = append(a.Unknown, id)
		}
	}
	senders, consents := meant(r, known)
	changed, err := tx.PutSenders(n.as, senders)
	if err != nil {
		return err
	}
	consenting, err := tx.PutConsents(n.as, consents)
	if err != nil {
		return err
	}
	groups := map[models.GroupID]bool{}
	for _, id := range append(changed, consenting...) {
		groups[known[id].GroupID] = true
	}
	return tx.AppendGroupEvents(models.EventConsentChanged, slices.Sorted(maps.Keys(groups)))
}

// meant is what a report says of members that are what it takes them for, the last word on each: senders are sources, and who consents is a destination of
// the sender's group whom somebody asks.
func meant(r Report, known map[models.RegistrationID]models.Registration) ([]models.SenderPorts, []models.SenderConsent) {
	senders := map[models.RegistrationID]models.SenderPorts{}
	for _, v := range r.Senders {
		if known[v.RegistrationID].Key.Role == models.RoleSource {
			senders[v.RegistrationID] = v
		}
	}
	type pair struct{ destination, sender models.RegistrationID }
	consents := map[pair]models.SenderConsent{}
	for _, v := range r.Consents {
		to, from := known[v.RegistrationID], known[v.SenderID]
		if to.Key.Role != models.RoleDestination || from.Key.Role != models.RoleSource || to.GroupID != from.GroupID || to.Policy == models.PolicyExempt {
			continue
		}
		consents[pair{v.RegistrationID, v.SenderID}] = v
	}
	return slices.Collect(maps.Values(senders)), slices.Collect(maps.Values(consents))
}
