package store

import (
	"context"

	"github.com/groupcast/groupcast/models"
)

// renewal is what a member says that posts again.
type renewal struct {
	group  GroupMatch
	member models.Registration
	lease  Lease
}

// who names the member. Two renewals of one would be at the same lease.
func (r renewal) who() any {
	type member struct {
		group   GroupMatch
		key     models.MemberKey
		service models.ServiceID
	}
	return member{r.group, r.member.Key, r.member.OwnerService}
}

// renew pushes the leases of several members forward, each if it is where it says, as Renew does for one. A lease that somebody else has
// locked is left out: waiting for it with others in hand could be a deadlock.
func (s *Store) renew(ctx context.Context, all []renewal) (renewed []*Renewed, err error) {
	columns := newColumns(len(all))
	for _, r := range all {
		columns.add(
			string(r.group.AccountID), string(r.group.ServiceID), int64(r.group.ServiceAccountID), string(r.group.PremisesID), r.group.Name,
			addrText(r.group.IP))
		columns.add(memberArgs(r.member)...)
		columns.add(movableArgs(r.member)...)
		columns.add(r.lease.args()...)
		columns.end()
	}
	type numbered struct {
		n int
		Renewed
	}
	err = s.gathered(ctx, func(tx *Tx) error {
		found, err := list(tx, func(r row) (v numbered, err error) {
			err = r.Scan(&v.n, &v.ID, addrColumn{&v.GroupIP}, &v.Generation, &v.State, consentColumn{&v.Consent})
			return v, err
		}, `
			WITH asked AS (SELECT * FROM unnest(`+columns.casts()+`) WITH ORDINALITY AS a (account_id, service_id, service_account_id, premises_id, name, ip,
				member_type, member_id, role, instance, owner_service, private_ipv4, public_ipv4, ipv6, port, device_type, model, member_name,
				ttl_seconds, expires_at, removable_at, n)),
			held AS (
				SELECT a.n, l.registration_id, g.id AS group_id, g.ip, g.generation, a.ttl_seconds, a.expires_at, a.removable_at
				FROM asked a JOIN groups g ON `+askedGroup("g")+`
				JOIN registrations r ON r.group_id = g.id
					AND r.member_type = a.member_type AND r.member_id = a.member_id AND r.role = a.role AND r.instance = a.instance
					AND coalesce(r.owner_service, '') = a.owner_service
					AND r.private_ipv4 = a.private_ipv4 AND r.public_ipv4 = a.public_ipv4 AND r.ipv6 = a.ipv6 AND r.port = a.port
					AND r.device_type = a.device_type AND r.model = a.model AND r.name = a.member_name
				JOIN leases l ON l.registration_id = r.id
				WHERE NOT EXISTS (SELECT 1 FROM groups o WHERE `+askedGroup("o")+` AND o.id <> g.id)
				FOR UPDATE OF l SKIP LOCKED)
			UPDATE leases SET ttl_seconds = held.ttl_seconds, expires_at = {now} + held.expires_at, removable_at = {now} + held.removable_at
			FROM held WHERE leases.registration_id = held.registration_id
			RETURNING held.n, held.registration_id, held.ip, held.generation, `+stateOf("held.group_id")+", "+s.dialect.consent("held.registration_id"), columns.parameters()...)
		renewed = make([]*Renewed, len(all))
		for _, v := range found {
			renewed[v.n-1] = &v.Renewed
		}
		return err
	})
	return renewed, err
}

// askedGroup is GroupMatch.where with what was asked in columns of a.
func askedGroup(alias string) string {
	return groupAsked(alias, func(what string) string { return "a." + what }, func(string) presence { return perhaps })
}
