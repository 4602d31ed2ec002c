package registrations

import (
	"context"
	"errors"
	"net/netip"
	"time"

	"github.com/groupcast/groupcast/models"
	"github.com/groupcast/groupcast/server/addresspool"
	"github.com/groupcast/groupcast/server/gateways"
	"github.com/groupcast/groupcast/server/store"
)

// errUnchanged rolls back a change that would change nothing, so that it raises no revision.
var errUnchanged = errors.New("nothing about the member changes")

// maxRounds bounds how often Join turns between renewing and changing. More than two need other requests of the same member at
// the same moment.
const maxRounds = 5

// Join registers the caller, renews its lease, or moves its address. It first tries to renew, which is one statement and by far
// the most frequent case; what is left changes the group, under the lock of its gateway.
func (s *Service) Join(ctx context.Context, p models.Principal, r Request) (Answer, error) {
	m, err := s.understand(p, r)
	if err != nil {
		return Answer{}, err
	}
	for range maxRounds {
		renewed, found, err := s.store.Renew(ctx, m.group, m.registration, m.lease)
		if err != nil {
			return Answer{}, err
		}
		if found {
			return m.answer(renewed), nil
		}
		joined, gateway, err := s.change(ctx, m)
		if errors.Is(err, errUnchanged) {
			continue
		}
		if err != nil {
			return Answer{}, err
		}
		s.waker.Wake(gateway)
		return m.answer(joined), nil
	}
	return Answer{}, models.Errorf(models.CodeUnavailable, "Other requests of the same member came at the same moment. Send one at a time.").
		With("retryAfter", 1)
}

func (m member) answer(v store.Renewed) Answer {
	return Answer{
		GroupIP: v.GroupIP, State: v.State, Generation: v.Generation, RegistrationID: v.ID,
		TTL: int(m.lease.TTL / time.Second), RenewAfter: renewAfter(m.lease.TTL),
	}
}

// change makes the caller a member, or moves it, and gives the gateway whose group information changed.
func (s *Service) change(ctx context.Context, m member) (joined store.Renewed, changed models.ID, err error) {
	err = s.store.Write(ctx, func(tx *store.Tx) error {
		var group models.Group
		var own models.Registration
		var err error
		if m.isSource() {
			group, own, err = s.groupOfSource(tx, m)
		} else {
			group, own, err = groupOfDestination(tx, m)
		}
		if err != nil {
			return err
		}
		v := m.registration
		v.GroupID, v.AccountID = group.ID, group.AccountID
		if v.ID = own.ID; own.ID != "" {
			if store.Unmoved(own, v) {
				return errUnchanged
			}
			err = tx.MoveRegistration(v)
		} else {
			v.ID = models.NewRegistrationID()
			err = tx.InsertRegistration(v)
		}
		if err != nil {
			return err
		}
		joined = store.Renewed{ID: v.ID, GroupIP: group.IP, Generation: group.Generation}
		changed = group.GatewayID
		return tx.PutLease(v, m.lease, &joined.State)
	})
	if s.store.IsReference(err) {
		err = ownerGone(m)
	}
	return joined, changed, err
}

// ownerGone is what a member hears whose device or link was removed while its request was under way.
func ownerGone(m member) error {
	if m.isService {
		return models.NotFound()
	}
	return models.Errorf(models.CodeUnauthenticated, "The device of this token was removed. Enrol it again.")
}

// groupOfSource locks the gateway of the source's LAN and finds the group of that name in the premises, or creates it.
func (s *Service) groupOfSource(tx *store.Tx, m member) (g models.Group, own models.Registration, err error) {
	byName := m.group
	byName.IP = netip.Addr{} // a group of that name with another IP is a mismatch, not a new group
	v, err := lockOfSource(tx, m, byName)
	g, own, gateway := v.Group, v.Own, v.Gateway
	switch {
	case err != nil:
		return g, own, err
	case !v.Found:
		g, err = s.create(tx, m, gateway)
		return g, own, err
	case m.group.IP.IsValid() && m.group.IP != g.IP:
		return g, own, groupIPMismatch(g)
	case g.GatewayID != gateway.ID:
		return g, own, models.Errorf(models.CodeWrongLAN, "The group %s belongs to another LAN of this premises. Use another group name here.", g.Name)
	}
	return g, own, nil
}

// lockOfSource locks the gateway whose LAN holds the source, and reads the group.
func lockOfSource(tx *store.Tx, m member, byName store.GroupMatch) (v store.Meant, err error) {
	private := m.registration.PrivateIPv4
	if !private.IsValid() {
		return v, models.Errorf(models.CodeNoUsableAddress,
			"A source needs privateIPv4, the address in the LAN that it sends from.")
	}
	candidates, err := tx.GatewaysOf(m.group.PremisesID)
	if err != nil {
		return v, err
	}
	serving, err := gateways.Serving(candidates, private)
	if err != nil {
		return v, err
	}
	v, err = tx.LockAt(serving.ID, byName, m.registration)
	if err != nil {
		return v, err
	}
	if !v.Locked || v.Gateway.LANPrefix != serving.LANPrefix { // it declared another LAN, or is gone, while we waited for it
		return v, store.ErrAgain
	}
	return v, checkSource(v.Gateway, m)
}

// create begins a group's life with a group IP of the gateway's pool.
func (s *Service) create(tx *store.Tx, m member, gateway models.Gateway) (models.Group, error) {
	pool, err := tx.Pool(gateway.ID)
	if err != nil {
		return models.Group{}, err
	}
	address, err := addresspool.Pick(addresspool.Within(pool.Addresses, gateway.Range), m.group.IP, m.group.Name, pool.Now,
		addresspool.NewPolicy(s.opts.MaxStale, pool.Acked, pool.PolledAt, pool.Now))
	if err != nil {
		return models.Group{}, err
	}
	g := models.Group{
		ID: models.NewGroupID(), AccountID: gateway.AccountID, PremisesID: gateway.PremisesID, GatewayID: gateway.ID,
		Name: m.group.Name, IP: address.IP, Generation: address.Generation,
	}
	err = tx.InsertGroup(g)
	if s.store.IsDuplicate(err) { // another gateway of the premises got a group of that name at the same moment
		return models.Group{}, store.ErrAgain
	}
	if err != nil {
		return models.Group{}, err
	}
	address.GroupID = g.ID
	return g, tx.Allocate(address)
}

// groupOfDestination locks the gateway of the group that the destination means, and finds the group.
func groupOfDestination(tx *store.Tx, m member) (g models.Group, own models.Registration, err error) {
	v, err := tx.LockMeant(m.group, m.registration)
	if err != nil {
		return g, own, err
	}
	if !v.Locked {
		return g, own, whyNoGroup(tx, m)
	}
	if !v.Found || v.Group.GatewayID != v.Gateway.ID { // it ended, or there is a second one, while we waited for the gateway
		return g, own, store.ErrAgain
	}
	return v.Group, v.Own, checkDestination(v.Gateway, m)
}

// whyNoGroup explains why not exactly one group matched.
func whyNoGroup(tx *store.Tx, m member) error {
	byName := m.group
	byName.IP = netip.Addr{}
	named, err := tx.GroupsMatching(byName)
	if err != nil {
		return err
	}
	var matching []models.Group
	for _, g := range named {
		if !m.group.IP.IsValid() || g.IP == m.group.IP {
			matching = append(matching, g)
		}
	}
	switch {
	case len(matching) > 1:
		return models.Errorf(models.CodeAmbiguousGroup, "%d premises have a group %s. Send premisesId to say which one.", len(matching), m.group.Name)
	case len(matching) == 1: // it came into being just now
		return store.ErrAgain
	case len(named) == 0 || m.isService:
		return models.NotFound()
	default:
		return groupIPMismatch(named[0])
	}
}

func groupIPMismatch(g models.Group) error {
	return models.Errorf(models.CodeGroupIPMismatch, "The group %s has another group IP. Send groupIP null, or the group IP that it has now.", g.Name)
}
