package store

import (
	"context"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/groupcast/groupcast/models"
)

// Columns of a registration that may be missing because of an outer join.
const registrationColumns = `coalesce(r.id, ''), coalesce(r.group_id, ''), coalesce(r.account_id, ''), coalesce(r.member_type, ''),
	coalesce(r.member_id, 0), coalesce(r.role, ''), coalesce(r.instance, ''), coalesce(r.owner_device, 0), coalesce(r.owner_service, ''),
	coalesce(r.number, 0), coalesce(r.private_ipv4, ''), coalesce(r.public_ipv4, ''), coalesce(r.ipv6, ''), coalesce(r.port, 0),
	coalesce(r.device_type, ''), coalesce(r.model, ''), coalesce(r.name, ''), coalesce(r.created_at, 0), coalesce(r.consent_policy, ''),
	coalesce(r.probes, 0)`

// The same after DELETE, where SQLite knows a table by its name only.
var deletedColumns = strings.ReplaceAll(registrationColumns, "(r.", "(registrations.")

func registrationFields(r *models.Registration) []any {
	return []any{
		&r.ID, &r.GroupID, &r.AccountID, &r.Key.Type, &r.Key.ID, &r.Key.Role, &r.Key.Instance, &r.OwnerDevice, &r.OwnerService,
		&r.Number,
		addrColumn{&r.PrivateIPv4},
		addrColumn{&r.PublicIPv4},
		addrColumn{&r.IPv6},
		&r.Port,
		&r.DeviceType, &r.Model, &r.Name,
		timeColumn{&r.CreatedAt},
		&r.Policy, &r.Probes,
	}
}

func scanRegistration(r row) (v models.Registration, err error) {
	err = r.Scan(registrationFields(&v)...)
	return v, err
}

// memberWhere is the condition that finds a member within a group. Its service is part of it: see the index
// registrations_member.
const memberWhere = "r.member_type = ? AND r.member_id = ? AND r.role = ? AND r.instance = ? AND coalesce(r.owner_service, '') = ?"

func memberArgs(r models.Registration) []any {
	return []any{string(r.Key.Type), int64(r.Key.ID), string(r.Key.Role), r.Key.Instance, string(r.OwnerService)}
}

// The columns that a member may change by posting again.
const (
	movableWhere = `r.private_ipv4 = ? AND r.public_ipv4 = ? AND r.ipv6 = ? AND r.port = ? AND r.device_type = ? AND r.model = ? AND r.name = ?`
	movableSet   = `private_ipv4 = ?, public_ipv4 = ?, ipv6 = ?, port = ?, device_type = ?, model = ?, name = ?`
)

func movableArgs(r models.Registration) []any {
	return []any{addrText(r.PrivateIPv4), addrText(r.PublicIPv4), addrText(r.IPv6), int64(r.Port), string(r.DeviceType), r.Model, r.Name}
}

// Unmoved tells whether a member that posts again says the same as before.
func Unmoved(before, now models.Registration) bool {
	return slices.Equal(movableArgs(before), movableArgs(now))
}

// Lease says how long a member stays.
type Lease struct {
	// TTL is what the member is told, in whole seconds; Grace is what it gets on top before it is removed.
	TTL, Grace time.Duration
}

func (l Lease) args() []any {
	return []any{int64(l.TTL / time.Second), l.TTL.Milliseconds(), (l.TTL + l.Grace).Milliseconds()}
}

// Renewed is what a member is told when its lease was renewed.
type Renewed struct {
	ID         models.RegistrationID
	GroupIP    netip.Addr
	Generation int64
	State      int
	Consent    Consent
}

// Renew pushes the lease of a member forward if it is in the only group that matches and nothing about it changed. It is one
// statement that writes one narrow row and takes no other lock; on Postgres renewals that come at the same time share it. There it doesn't
// wait for somebody else who is at the same lease, but finds none, so a caller that gets no answer looks at the member under its
// gateway's lock and then asks RenewWaiting.
func (s *Store) Renew(ctx context.Context, m GroupMatch, r models.Registration, l Lease) (v Renewed, found bool, err error) {
	if s.renewals == nil {
		return s.RenewWaiting(ctx, m, r, l)
	}
	renewed, err := s.renewals.ask(ctx, renewal{m, r, l})
	if err != nil || renewed == nil {
		return v, false, err
	}
	return *renewed, true, nil
}

// RenewWaiting does the same in a statement of its own, which waits for whoever is at the lease.
func (s *Store) RenewWaiting(ctx context.Context, m GroupMatch, r models.Registration, l Lease) (v Renewed, found bool, err error) {
	group, groupArgs := m.where("g")
	other, otherArgs := m.where("o")
	args := append(l.args(), groupArgs...)
	args = append(append(append(args, memberArgs(r)...), movableArgs(r)...), otherArgs...)
	const ofLease = "(SELECT group_id FROM registrations WHERE id = leases.registration_id)"
	err = s.writing(ctx, func(tx *Tx) error {
		v, found, err = one(tx, func(r row) (v Renewed, err error) {
			err = r.Scan(&v.ID, addrColumn{&v.GroupIP}, &v.Generation, &v.State, consentColumn{&v.Consent})
			return v, err
		}, `
			UPDATE leases SET ttl_seconds = ?, expires_at = {now} + ?, removable_at = {now} + ?
			WHERE registration_id = (
				SELECT r.id FROM groups g JOIN registrations r ON r.group_id = g.id
				WHERE `+group+` AND `+memberWhere+` AND `+movableWhere+`
				AND NOT EXISTS (SELECT 1 FROM groups o WHERE `+other+` AND o.id <> g.id))
			RETURNING registration_id,
				(SELECT ip FROM groups WHERE id = `+ofLease+`),
				(SELECT generation FROM groups WHERE id = `+ofLease+`),
				`+stateOf(ofLease)+", "+s.dialect.consent("leases.registration_id"), args...)
		return err
	})
	return v, found, err
}

// Meant is what a member's request is about.
type Meant struct {
	// Gateway is locked, if Locked says that there is one.
	Gateway models.Gateway
	Locked  bool
	// Group is the only one that matches, if Found; Own is the member's registration in it, zero if there is none.
	Group models.Group
	Own   models.Registration
	Found bool
	Counts
}

// Counts say how full a group is, and its account.
type Counts struct {
	// State is the number of live destinations of the group.
	State int
	// Registrations is the number of the account's; no more than were asked for are counted.
	Registrations int
}

// LockAt locks a gateway as LockGateway does, and reads the only group that matches as it is from then on, with the registration of a member
// in it. Up to so many of the account's registrations are counted.
func (tx *Tx) LockAt(gatewayID models.ID, m GroupMatch, r models.Registration, upTo int) (Meant, error) {
	return tx.lockAndRead("= ?", []any{int64(gatewayID)}, m, r, upTo)
}

// LockMeant does the same with the gateway of the only group that matches; none is locked if no group or several match.
func (tx *Tx) LockMeant(m GroupMatch, r models.Registration, upTo int) (Meant, error) {
	where, args := m.where("g")
	return tx.lockAndRead("= (SELECT CASE WHEN count(*) = 1 THEN min(g.gateway_id) END FROM groups g WHERE "+where+")", args, m, r, upTo)
}

func (tx *Tx) lockAndRead(where string, args []any, m GroupMatch, r models.Registration, upTo int) (v Meant, err error) {
	err = tx.later(func(r row) (err error) {
		v.Locked = true
		v.Gateway, err = tx.scanLocked(r)
		return err
	}, lockGateway(where), args...)
	if err != nil {
		return v, err
	}
	type found struct {
		models.Group
		own    models.Registration
		counts Counts
	}
	where, args = m.where("g")
	all, err := list(tx, func(r row) (f found, err error) {
		err = r.Scan(append(append(groupFields(&f.Group), registrationFields(&f.own)...), &f.counts.State, &f.counts.Registrations)...)
		return f, err
	}, "SELECT "+groupColumns+", "+registrationColumns+", "+stateOf("g.id")+", "+registrationsUpTo("g.account_id")+`
		FROM groups g LEFT JOIN registrations r ON r.group_id = g.id AND `+memberWhere+` WHERE `+where,
		slices.Concat([]any{upTo}, memberArgs(r), args)...)
	if err != nil || len(all) != 1 {
		return v, err
	}
	v.Group, v.Own, v.Counts, v.Found = all[0].Group, all[0].own, all[0].counts, true
	return v, nil
}

// InsertRegistration adds a member with the next number of its role; PutLease has to follow. An owner that is gone is IsReference, which
// the transaction as a whole may be the first to say.
func (tx *Tx) InsertRegistration(r models.Registration) error {
	next := "next_destination"
	if r.Key.Role == models.RoleSource {
		next = "next_source"
	}
	if err := tx.later(nil, "UPDATE groups SET "+next+" = "+next+" + 1 WHERE id = ?", string(r.GroupID)); err != nil {
		return err
	}
	return tx.later(nil, `
		INSERT INTO registrations (id, group_id, account_id, member_type, member_id, role, instance, owner_device, owner_service, number,
			consent_policy, probes, private_ipv4, public_ipv4, ipv6, port, device_type, model, name, created_at)
		VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, (SELECT `+next+` - 1 FROM groups WHERE id = ?), ?, ?, ?, ?, ?, ?, ?, ?, ?, {now})`,
		append([]any{
			string(r.ID), string(r.GroupID), string(r.AccountID), string(r.Key.Type), int64(r.Key.ID), string(r.Key.Role), r.Key.Instance,
			orNull(int64(r.OwnerDevice)), orNull(string(r.OwnerService)), string(r.GroupID),
			string(r.Policy), r.Probes,
		}, movableArgs(r)...)...)
}

// MoveRegistration changes a member's addresses and what it says of itself; PutLease has to follow.
func (tx *Tx) MoveRegistration(r models.Registration) error {
	return tx.later(nil, "UPDATE registrations SET "+movableSet+", consent_policy = ?, probes = ? WHERE id = ?",
		append(movableArgs(r), string(r.Policy), r.Probes, string(r.ID))...)
}

// PutLease gives a member its lease, counts the live destinations of its group into state and tells how its consent stands; both are there once
// the transaction has committed.
func (tx *Tx) PutLease(r models.Registration, l Lease, state *int, consent *Consent) error {
	return tx.later(func(r row) error { return r.Scan(state, consentColumn{consent}) }, `
		INSERT INTO leases (registration_id, ttl_seconds, expires_at, removable_at) VALUES (?, ?, {now} + ?, {now} + ?)
		ON CONFLICT (registration_id) DO UPDATE SET ttl_seconds = excluded.ttl_seconds, expires_at = excluded.expires_at,
			removable_at = excluded.removable_at
		RETURNING `+stateOf("?")+", "+tx.store.dialect.consent("leases.registration_id"), append(append([]any{string(r.ID)}, l.args()...), string(r.GroupID))...)
}

// registrationsUpTo counts the registrations of the account that the expression names by the indexes that are there, and no more than a limit.
func registrationsUpTo(account string) string {
	return "(SELECT count(*) FROM (SELECT 1 FROM groups a JOIN registrations b ON b.group_id = a.id WHERE a.account_id = " + account + " LIMIT ?) AS added)"
}

// CountRegistrations counts up to so many registrations of an account.
func (tx *Tx) CountRegistrations(account models.AccountID, upTo int) (int, error) {
	n, _, err := one(tx, scanInto[int], "SELECT "+registrationsUpTo("?"), string(account), upTo)
	return n, err
}

// DeleteRegistrations removes members with their leases and gives what they were.
func (tx *Tx) DeleteRegistrations(ids []models.RegistrationID) ([]models.Registration, error) {
	return list(tx, scanRegistration, "DELETE FROM registrations WHERE id {among texts} RETURNING "+deletedColumns, texts(tx, ids))
}

// Owner is whose a registration is: a device or a service; or, for the account holder, any of the account.
type Owner struct {
	Account models.AccountID
	Device  models.ID
	Service models.ServiceID
	// ServiceAccountID narrows a service to one account, and Role either to one role, if they are set.
	ServiceAccountID models.ID
	Role             models.Role
}

func (o Owner) where() (where string, args []any) {
	switch {
	case o.Account != "":
		where, args = "r.account_id = ?", []any{string(o.Account)}
	case o.Device != 0:
		where, args = "r.owner_device = ?", []any{int64(o.Device)}
	default:
		where, args = "r.owner_service = ?", []any{string(o.Service)}
	}
	if o.ServiceAccountID != 0 {
		where += " AND r.member_id = ?"
		args = append(args, int64(o.ServiceAccountID))
	}
	if o.Role != "" {
		where += " AND r.role = ?"
		args = append(args, string(o.Role))
	}
	return where, args
}

// Held is a registration with its group and what is left of its lease.
type Held struct {
	models.Registration
	Group     models.Group
	ExpiresIn time.Duration
	Consent   Consent
}

// Registrations reads the owner's registrations after an id, or the one with an id, sorted by id, which is the order of creation.
func (s *Store) Registrations(ctx context.Context, o Owner, id models.RegistrationID, after string, limit int) (all []Held, err error) {
	where, args := o.where()
	if id != "" {
		where += " AND r.id = ?"
		args = append(args, string(id))
	}
	err = s.reading(ctx, func(tx *Tx) error {
		all, err = list(tx, func(r row) (h Held, err error) {
			var left int64
			err = r.Scan(append(append(registrationFields(&h.Registration), groupFields(&h.Group)...),
				&h.Group.State, secsColumn{&h.TTL}, timeColumn{&h.ExpiresAt}, &left, consentColumn{&h.Consent})...)
			h.PremisesID = h.Group.PremisesID
			h.ExpiresIn = time.Duration(left) * time.Millisecond
			return h, err
		}, "SELECT "+registrationColumns+", "+groupColumns+", "+stateOf("g.id")+`, l.ttl_seconds, l.expires_at, l.expires_at - {now}, `+s.dialect.consent("r.id")+`
			FROM registrations r JOIN groups g ON g.id = r.group_id JOIN leases l ON l.registration_id = r.id
			WHERE `+where+" AND r.id > ? ORDER BY r.id LIMIT ?", append(args, after, limit)...)
		return err
	})
	return all, err
}

// Place is a registration and the gateway whose group it is in.
type Place struct {
	Registration models.RegistrationID
	Gateway      models.ID
}

// ByGateway sorts registrations by the gateway they are at.
func ByGateway(places []Place) map[models.ID][]models.RegistrationID {
	at := map[models.ID][]models.RegistrationID{}
	for _, p := range places {
		at[p.Gateway] = append(at[p.Gateway], p.Registration)
	}
	return at
}

func scanPlace(r row) (p Place, err error) { err = r.Scan(&p.Registration, &p.Gateway); return p, err }

// PlacesOf reads where the owner is registered.
func (tx *Tx) PlacesOf(o Owner) ([]Place, error) {
	where, args := o.where()
	return list(tx, scanPlace, "SELECT r.id, g.gateway_id FROM registrations r JOIN groups g ON g.id = r.group_id WHERE "+where, args...)
}

// SourcesOf reads the sources of a gateway's groups.
func (tx *Tx) SourcesOf(gatewayID models.ID) ([]models.Registration, error) {
	return list(tx, scanRegistration, "SELECT "+registrationColumns+`
		FROM groups g JOIN registrations r ON r.group_id = g.id WHERE g.gateway_id = ? AND r.role = 'source'`, int64(gatewayID))
}
