package registrations

import (
	"context"
	"errors"
	"net/netip"
	"time"

	"github.com/groupcast/groupcast/models"
	"github.com/groupcast/groupcast/server/addresspool"
	"github.com/groupcast/groupcast/server/audit"
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
	renew := s.store.Renew
	for range maxRounds {
		renewed, found, err := renew(ctx, m.group, m.registration, m.lease)
		if err != nil {
			return Answer{}, err
		}
		if found {
			return s.answer(m, renewed), nil
		}
		joined, err := s.change(ctx, m)
		if errors.Is(err, errUnchanged) {
			renew = s.store.RenewWaiting // somebody else is at the lease
			continue
		}
		if err != nil {
			return Answer{}, err
		}
		return s.answer(m, joined), nil
	}
	return Answer{}, models.Errorf(models.CodeUnavailable, "Other requests of the same member came at the same moment. Send one at a time.").
		With("retryAfter", 1)
}

func (s *Service) answer(m member, v store.Renewed) Answer {
	consent := standing(v.Consent, m.registration)
	if consent.Policy != "" && consent.Policy != models.PolicyExempt {
		consent.Credential = s.opts.Credentials.Of(v.ID)
	}
	return Answer{
		Consent: consent,
		GroupIP: v.GroupIP, State: v.State, Generation: v.Generation, RegistrationID: v.ID,
		TTL: int(m.lease.TTL / time.Second), RenewAfter: renewAfter(m.lease.TTL),
	}
}

// change makes the caller a member, or moves it.
func (s *Service) change(ctx context.Context, m member) (joined store.Renewed, err error) {
	err = s.store.Write(ctx, func(tx *store.Tx) error {
		var meant store.Meant
		var scarce *models.GatewayPool
		var err error
		if m.isSource() {
			meant, scarce, err = s.groupOfSource(tx, m)
		} else {
			meant, err = s.groupOfDestination(tx, m)
		}
		if err != nil {
			return err
		}
		group, own := meant.Group, meant.Own
		v, did := m.registration, audit.GroupJoin
		v.GroupID, v.AccountID = group.ID, group.AccountID
		happened := whatHappens(group, own, v)
		if v.ID = own.ID; own.ID != "" && store.Unmoved(own, v) {
			return errUnchanged
		}
		if own.ID == "" {
			if err := s.checkQuotas(tx, v, meant.Counts); err != nil {
				return err
			}
			v.ID = models.NewRegistrationID()
		}
		if err := askConsent(tx, meant.Gateway, own, &v); err != nil {
			return err
		}
		if own.ID != "" {
			did = audit.GroupMove
			err = move(tx, own, v)
		} else {
			err = tx.InsertRegistration(v)
		}
		if err != nil {
			return err
		}
		joined = store.Renewed{ID: v.ID, GroupIP: group.IP, Generation: group.Generation}
		if err := tx.PutLease(v, m.lease, &joined.State, &joined.Consent); err != nil {
			return err
		}
		if err := tx.AppendGroupEvents(happened, []models.GroupID{group.ID}); err != nil {
			return err
		}
		entries := []audit.Entry{{Account: v.AccountID, Action: did, Object: audit.OfMember(v)}}
		if happened == models.EventGroupCreated {
			entries = append([]audit.Entry{{Account: v.AccountID, Action: audit.GroupCreate, Object: audit.OfGroup(v.GroupID)}}, entries...)
		}
		if v.Policy == models.PolicyExempt {
			entries = append(entries, audit.Entry{Account: v.AccountID, Action: audit.ConsentExempt, Object: audit.OfMember(v)})
		}
		if err := audit.Note(ctx, tx, entries...); err != nil || scarce == nil {
			return err
		}
		return tx.AppendAccountEvent(group.AccountID,
			models.Event{Type: models.EventPoolNearlyExhausted, PremisesID: group.PremisesID, Pool: scarce})
	})
	if s.store.IsReference(err) {
		err = ownerGone(m)
	}
	return joined, err
}

// whatHappens names what it is for the group that a member, who was own before, becomes v. A group whose rev is 0 came into being for it.
func whatHappens(g models.Group, own, v models.Registration) models.EventType {
	switch {
	case g.Rev == 0:
		return models.EventGroupCreated
	case own.ID == "":
		return models.EventMemberJoined
	case isElsewhere(own, v):
		return models.EventMemberMoved
	default:
		return models.EventGroupChanged
	}
}

// isElsewhere tells whether a member has another address or port than before.
func isElsewhere(own, v models.Registration) bool {
	return own.PrivateIPv4 != v.PrivateIPv4 || own.PublicIPv4 != v.PublicIPv4 || own.IPv6 != v.IPv6 || own.Port != v.Port
}

// ownerGone is what a member hears whose device or link was removed while its request was under way.
func ownerGone(m member) error {
	if m.isService {
		return models.NotFound()
	}
	return models.Errorf(models.CodeUnauthenticated, "The device of this token was removed. Enrol it again.")
}

// groupOfSource locks the gateway of the source's LAN and finds the group of that name in the premises, or creates it. It gives the
// gateway's pool if that made it scarce.
func (s *Service) groupOfSource(tx *store.Tx, m member) (v store.Meant, scarce *models.GatewayPool, err error) {
	byName := m.group
	byName.IP = netip.Addr{} // a group of that name with another IP is a mismatch, not a new group
	v, err = s.lockOfSource(tx, m, byName)
	switch {
	case err != nil:
		return v, nil, err
	case !v.Found:
		v.Group, scarce, err = s.create(tx, m, v.Gateway)
		return v, scarce, err
	case m.group.IP.IsValid() && m.group.IP != v.Group.IP:
		return v, nil, groupIPMismatch(v.Group)
	case v.Group.GatewayID != v.Gateway.ID:
		return v, nil, models.Errorf(models.CodeWrongLAN, "The group %s belongs to another LAN of this premises. Use another group name here.", v.Group.Name)
	}
	return v, nil, nil
}

// lockOfSource locks the gateway whose LAN holds the source, and reads the group.
func (s *Service) lockOfSource(tx *store.Tx, m member, byName store.GroupMatch) (v store.Meant, err error) {
	private := m.registration.PrivateIPv4
	if !private.IsValid() {
		return v, models.Errorf(models.CodeNoUsableAddress,
			"A source needs privateIPv4, the address in the LAN that it sends from.")
	}
	candidates, err := tx.GatewaysOf(m.group.PremisesID)
	if err != nil {
		return v, err
	}
	serving, err := gateways.Serving(candidates, m.registration.OwnerDevice, private)
	if err != nil {
		return v, err
	}
	v, err = tx.LockAt(serving.ID, byName, m.registration, s.opts.upTo())
	if err != nil {
		return v, err
	}
	if !v.Locked || v.Gateway.LANPrefix != serving.LANPrefix { // it declared another LAN, or is gone, while we waited for it
		return v, store.ErrAgain
	}
	return v, checkSource(v.Gateway, m)
}

// create begins a group's life with a group IP of the gateway's pool, and gives the pool if that made it scarce.
func (s *Service) create(tx *store.Tx, m member, gateway models.Gateway) (g models.Group, scarce *models.GatewayPool, err error) {
	pool, err := tx.Pool(gateway.ID)
	if err != nil {
		return g, nil, err
	}
	rows := addresspool.Within(pool.Addresses, gateway.Range)
	policy := addresspool.NewPolicy(pool.MaxStale, pool.Acked, pool.PolledAt, pool.Now)
	address, err := addresspool.Pick(rows, m.group.IP, m.group.Name, pool.Now, policy)
	if err != nil {
		return g, nil, err
	}
	g = models.Group{
		ID: models.NewGroupID(), AccountID: gateway.AccountID, PremisesID: gateway.PremisesID, GatewayID: gateway.ID,
		Name: m.group.Name, IP: address.IP, Generation: address.Generation,
	}
	err = tx.InsertGroup(g)
	if s.store.IsDuplicate(err) { // another gateway of the premises got a group of that name at the same moment
		return g, nil, store.ErrAgain
	}
	if err != nil {
		return g, nil, err
	}
	address.GroupID = g.ID
	if after, crossed := addresspool.BecomesScarce(rows, address, pool.Now, policy); crossed {
		scarce = &models.GatewayPool{GatewayID: gateway.ID, Pool: after}
	}
	if err := tx.Allocate(address); err != nil {
		return g, nil, err
	}
	return g, scarce, s.checkGroups(tx, g)
}

// groupOfDestination locks the gateway of the group that the destination means, and finds the group.
func (s *Service) groupOfDestination(tx *store.Tx, m member) (store.Meant, error) {
	v, err := tx.LockMeant(m.group, m.registration, s.opts.upTo())
	if err != nil {
		return v, err
	}
	if !v.Locked {
		return v, whyNoGroup(tx, m)
	}
	if !v.Found || v.Group.GatewayID != v.Gateway.ID { // it ended, or there is a second one, while we waited for the gateway
		return v, store.ErrAgain
	}
	return v, s.checkDestination(v.Gateway, m)
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
