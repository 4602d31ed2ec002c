package store

import (
	"context"
	"net/netip"
	"strconv"
	"time"

	"github.com/groupcast/groupcast/models"
)

// Columns of a group that may be missing because of an outer join.
const groupColumns = `coalesce(g.id, ''), coalesce(g.account_id, ''), coalesce(g.premises_id, ''), coalesce(g.gateway_id, 0),
	coalesce(g.name, ''), coalesce(g.ip, ''), coalesce(g.generation, 0), coalesce(g.rev, 0), coalesce(g.created_at, 0)`

func groupFields(g *models.Group) []any {
	return []any{&g.ID, &g.AccountID, &g.PremisesID, &g.GatewayID, &g.Name, addrColumn{&g.IP}, &g.Generation, &g.Rev, timeColumn{&g.CreatedAt}}
}

func scanGroup(r row) (g models.Group, err error) { err = r.Scan(groupFields(&g)...); return g, err }

// stateOf counts the live destinations of the group that the expression names (SPEC §5).
func stateOf(group string) string {
	return "(SELECT count(*) FROM registrations s WHERE s.group_id = " + group + " AND s.role = 'destination')"
}

// GroupMatch names groups by what a request says.
type GroupMatch struct {
	// AccountID, or the link by which a service knows the account. A link that has ended or doesn't let the service register matches
	// nothing, and premises that it doesn't cover match nothing.
	AccountID        models.AccountID
	ServiceID        models.ServiceID
	ServiceAccountID models.ID
	// PremisesID and IP narrow the match if they are set.
	PremisesID models.PremisesID
	Name       string
	IP         netip.Addr
}

// where is the condition on the groups table under an alias.
func (m GroupMatch) where(alias string) (string, []any) {
	values := map[string]any{
		"account_id": string(m.AccountID), "service_id": string(m.ServiceID), "service_account_id": int64(m.ServiceAccountID),
		"premises_id": string(m.PremisesID), "name": m.Name, "ip": addrText(m.IP),
	}
	var args []any
	where := groupAsked(alias, func(what string) string {
		args = append(args, values[what])
		return "?"
	}, func(what string) presence {
		if values[what] == "" {
			return absent
		}
		return present
	})
	return where, args
}

// presence is what is known of a thing that a request may hold before the statement is written. What is known needn't be asked for: Postgres takes a
// plan for all requests only if it is as good as one for each.
type presence int

const (
	perhaps presence = iota
	present
	absent
)

// groupAsked is the condition that the group under an alias is the one that a request means, wherever that stands: say gives the expression of each
// thing that a GroupMatch holds, and is called in the order of the text; has tells what is known of those that may be empty.
func groupAsked(alias string, say func(what string) string, has func(what string) presence) string {
	link := func() string {
		return "FROM service_links l WHERE l.service_id = " + say("service_id") + " AND l.service_account_id = " + say("service_account_id") + " AND "
	}
	// The first part finds the rows by their index, the second looks at their premises.
	accountOf := func() string { return "(SELECT l.account_id " + link() + linkGranting(models.ScopeRegister) + ")" }
	covered := func() string { return "EXISTS (SELECT 1 " + link() + linkCovers(alias+".premises_id") + ")" }
	var where string
	switch has("service_id") {
	case absent:
		where = alias + ".account_id = " + say("account_id")
	case present:
		where = alias + ".account_id = " + accountOf() + " AND " + covered()
	case perhaps:
		where = alias + ".account_id = CASE " + say("service_id") + " WHEN '' THEN " + say("account_id") + " ELSE " + accountOf() + " END" +
			" AND (" + say("service_id") + " = '' OR " + covered() + ")"
	}
	where += " AND " + alias + ".name = " + say("name")
	for _, narrows := range []string{"premises_id", "ip"} {
		switch has(narrows) {
		case absent:
		case present:
			where += " AND " + alias + "." + narrows + " = " + say(narrows)
		case perhaps:
			where += " AND (" + say(narrows) + " = '' OR " + alias + "." + narrows + " = " + say(narrows) + ")"
		}
	}
	return where
}

// GroupsMatching reads the groups that match, sorted by id.
func (tx *Tx) GroupsMatching(m GroupMatch) ([]models.Group, error) {
	where, args := m.where("g")
	return list(tx, scanGroup, "SELECT "+groupColumns+" FROM groups g WHERE "+where+" ORDER BY g.id", args...)
}

// GroupsOfGateway reads the groups of a gateway, sorted by id.
func (tx *Tx) GroupsOfGateway(id models.ID) ([]models.Group, error) {
	return list(tx, scanGroup, "SELECT "+groupColumns+" FROM groups g WHERE g.gateway_id = ? ORDER BY g.id", int64(id))
}

// GroupsWithoutSource reads those of the groups that have no source.
func (tx *Tx) GroupsWithoutSource(ids []models.GroupID) ([]models.Group, error) {
	return list(tx, scanGroup, "SELECT "+groupColumns+` FROM groups g WHERE g.id {among texts}
		AND NOT EXISTS (SELECT 1 FROM registrations r WHERE r.group_id = g.id AND r.role = 'source') ORDER BY g.id`, texts(tx, ids))
}

// GroupOf reads the group that a registration is in.
func (tx *Tx) GroupOf(id models.RegistrationID) (models.Group, bool, error) {
	return one(tx, scanGroup, "SELECT "+groupColumns+" FROM groups g JOIN registrations r ON r.group_id = g.id WHERE r.id = ?", string(id))
}

// State counts the live destinations of a group.
func (tx *Tx) State(id models.GroupID) (int, error) {
	n, _, err := one(tx, scanInto[int], "SELECT "+stateOf("?"), string(id))
	return n, err
}

// InsertGroup adds a group.
func (tx *Tx) InsertGroup(g models.Group) error {
	_, err := tx.exec(`
		INSERT INTO groups (id, account_id, premises_id, gateway_id, name, ip, generation, created_at) VALUES (?, ?, ?, ?, ?, ?, ?, {now})`,
		string(g.ID), string(g.AccountID), string(g.PremisesID), int64(g.GatewayID), g.Name, addrText(g.IP), g.Generation)
	return err
}

// CountGroups counts the groups of a premises.
func (tx *Tx) CountGroups(account models.AccountID, premises models.PremisesID) (int, error) {
	n, _, err := one(tx, scanInto[int], "SELECT count(*) FROM groups g WHERE g.account_id = ? AND g.premises_id = ?", string(account), string(premises))
	return n, err
}

// releasedByRelay notes, in an address that is being released, the relay that serves the premises and its revision that doesn't hold the group any more. The
// gateway's lock raised that one too.
const releasedByRelay = `
	released_relay = (SELECT w.relay_id FROM gateways w WHERE w.id = addresses.gateway_id),
	released_relay_revision = coalesce((SELECT rl.revision FROM gateways w JOIN relays rl ON rl.id = w.relay_id WHERE w.id = addresses.gateway_id), 0)`

// EndGroups removes groups with all their members, puts their addresses in quarantine as of the gateway's revision, and records that
// they ended. It gives the registrations that ended.
func (tx *Tx) EndGroups(ids []models.GroupID, revision int64) ([]models.Registration, error) {
	all := texts(tx, ids)
	if _, err := tx.exec(`
		UPDATE addresses SET state = 'quarantined', group_id = NULL, released_at = {now}, released_revision = ?, `+releasedByRelay+`
		WHERE group_id {among texts}`,
		revision, all); err != nil {
		return nil, err
	}
	ended, err := list(tx, scanRegistration, "DELETE FROM registrations WHERE group_id {among texts} RETURNING "+deletedColumns, all)
	if err != nil {
		return nil, err
	}
	if err := tx.AppendGroupEvents(models.EventGroupEnded, ids); err != nil {
		return nil, err
	}
	_, err = tx.exec("DELETE FROM groups WHERE id {among texts}", all)
	return ended, err
}

// Viewer is who lists groups: exactly one field is set.
type Viewer struct {
	Account models.AccountID // sees its own groups
	Gateway models.ID        // sees those of its range
	Service models.ServiceID // sees those that its links cover and let it see
}

func (v Viewer) where() (string, []any) {
	switch {
	case v.Account != "":
		return "g.account_id = ?", []any{string(v.Account)}
	case v.Gateway != 0:
		return "g.gateway_id = ?", []any{int64(v.Gateway)}
	default:
		return "EXISTS (SELECT 1 FROM service_links l WHERE l.service_id = ? AND l.account_id = g.account_id AND " + linkGrants + " AND " +
			linkCovers("g.premises_id") + ")", []any{string(v.Service), scopeArg(models.ScopeNotify)}
	}
}

// GroupFilter narrows a list; empty fields don't.
type GroupFilter struct {
	ID         models.GroupID
	Name       string
	PremisesID models.PremisesID
	After      string
	Limit      int
}

// VisibleGroups reads groups that the viewer may see, sorted by id, which is the order of creation.
func (tx *Tx) VisibleGroups(v Viewer, f GroupFilter) ([]models.Group, error) {
	where, args := v.where()
	for _, c := range []struct{ column, value string }{
		{"g.id = ?", string(f.ID)}, {"g.name = ?", f.Name}, {"g.premises_id = ?", string(f.PremisesID)}, {"g.id > ?", f.After},
	} {
		if c.value != "" {
			where += " AND " + c.column
			args = append(args, c.value)
		}
	}
	return list(tx, scanGroup, "SELECT "+groupColumns+" FROM groups g WHERE "+where+" ORDER BY g.id LIMIT ?", append(args, f.Limit)...)
}

// MembersOf reads the members of several groups, each group's sources first and then by number.
func (tx *Tx) MembersOf(ids []models.GroupID) (map[models.GroupID][]models.Member, error) {
	members := map[models.GroupID][]models.Member{}
	type member struct {
		group models.GroupID
		models.Member
	}
	all, err := list(tx, func(r row) (m member, err error) {
		err = r.Scan(&m.group, &m.Type, &m.ID, &m.Role, &m.Name, &m.RegistrationID, &m.Consent)
		return m, err
	}, `
		SELECT m.group_id, m.member_type, m.member_id, m.role, m.name, m.id, `+consentState("m")+` FROM registrations m WHERE m.group_id {among texts}
		ORDER BY m.group_id, m.role DESC, m.number`, texts(tx, ids))
	for _, m := range all {
		members[m.group] = append(members[m.group], m.Member)
	}
	return members, err
}

// InformationRow is one member of one group of a gateway; a group without members or a gateway without groups has a row in
// which the rest is zero.
type InformationRow struct {
	Group   models.Group
	Member  models.Registration
	Trigger models.Trigger
}

// Information is all that a gateway's group information is made of.
type Information struct {
	Gateway models.Gateway
	Epoch   string
	// MaxStale is how long the gateway may go by it.
	MaxStale time.Duration
	// NotBefore withdraws the gateway's tokens that were issued before it; the zero time withdraws none.
	NotBefore time.Time
	// Camera tells that it is no gateway but a camera that ends its tunnel itself.
	Camera bool
	// Network tells that the account holder wants copies to be made in the network and the gateway has a tunnel; Relay is the one that does or is about
	// to, without an id if there is none.
	Network    bool
	Relay      models.Relay
	Forwarding bool
	Halted     bool
	Rows       []InformationRow
}

// Information reads, in one statement and so as of one instant, what the group information of gateways is made of, in the order of their ids.
// A gateway that doesn't exist has no rows.
func (s *Store) Information(ctx context.Context, ids []models.ID) (all []Information, err error) {
	read := s.reading
	if s.dialect == postgresDialect {
		read = s.gathered
	}
	err = read(ctx, func(tx *Tx) error {
		all, err = informationOf(tx, ids)
		return err
	})
	return all, err
}

func informationOf(tx *Tx, ids []models.ID) ([]Information, error) {
	type whole struct {
		gateway            models.Gateway
		epoch              string
		maxStale           time.Duration
		notBefore          time.Time
		camera             bool
		relay              scannedRelay
		network            bool
		forwarding, halted bool
		InformationRow
	}
	rows, err := list(tx, func(r row) (v whole, err error) {
		fields := append(gatewayFields(&v.gateway), &v.epoch, secsColumn{&v.maxStale}, timeColumn{&v.notBefore}, &v.camera, &v.network, &v.forwarding, &v.halted,
			&v.relay.ID, tunnelKeyColumn{&v.relay.TunnelKey}, addrColumn{&v.relay.endpoint}, &v.relay.port, addrColumn{&v.relay.TunnelAddress})
		fields = append(append(append(fields, groupFields(&v.Group)...), registrationFields(&v.Member)...), &v.Trigger)
		err = r.Scan(fields...)
		return v, err
	}, "SELECT "+gatewayColumns+`, i.epoch, i.max_stale_seconds, own.not_before, own.type = 'camera',
		ra.premises_id IS NOT NULL, coalesce(ra.forwarding, false), coalesce(ra.halted, false),
		coalesce(rl.id, 0), rl.tunnel_key, rl.endpoint_ipv4, coalesce(rl.endpoint_port, 0), rl.tunnel_address, `+groupColumns+", "+registrationColumns+`, coalesce(d.trigger, '')
		FROM gateways JOIN devices own ON own.id = gateways.id CROSS JOIN installation i
		LEFT JOIN relay_assignments ra ON ra.premises_id = gateways.premises_id AND gateways.tunnel_key <> ''
		LEFT JOIN relays rl ON rl.id = ra.relay_id
		LEFT JOIN groups g ON g.gateway_id = gateways.id
		LEFT JOIN registrations r ON r.group_id = g.id
		LEFT JOIN devices d ON d.id = r.owner_device
		WHERE gateways.id {among bigints}`, tx.ids(ids))
	if err != nil {
		return nil, err
	}
	known := make(map[models.ID]Information, len(ids))
	for _, v := range rows {
		i := known[v.gateway.ID]
		i.Gateway, i.Epoch, i.MaxStale, i.NotBefore, i.Rows = v.gateway, v.epoch, v.maxStale, v.notBefore, append(i.Rows, v.InformationRow)
		i.Camera, i.Network, i.Forwarding, i.Halted, i.Relay = v.camera, v.network, v.forwarding, v.halted, v.relay.relay()
		known[v.gateway.ID] = i
	}
	all := make([]Information, len(ids))
	for n, id := range ids {
		all[n] = known[id]
	}
	return all, nil
}

// RelayHome names a premises that a relay serves, and in which state its gateways are: the same state has the same content.
type RelayHome struct {
	PremisesID models.PremisesID
	State      string
}

// RelayInformation is all that a relay's group information is made of.
type RelayInformation struct {
	Relay    models.Relay
	Epoch    string
	MaxStale time.Duration
	// Homes are all premises that it serves and that have a tunnel, sorted as text is in the database.
	Homes []RelayHome
	// Premises and Rows are the content of those that the caller didn't know.
	Premises []models.RelayPremises
	Rows     []InformationRow
}

// RelayInformation reads, as of one instant, what the group information of a relay is made of: which premises it serves, and the content of those that the
// caller doesn't know in their state, sorted by premises, gateway, group and number.
func (s *Store) RelayInformation(ctx context.Context, id models.ID, knows func(epoch string, h RelayHome) bool) (v RelayInformation, found bool, err error) {
	err = s.Read(ctx, func(tx *Tx) error {
		v, found, err = one(tx, scanRelayInformation, "SELECT "+relayColumns+", i.epoch, i.max_stale_seconds FROM relays CROSS JOIN installation i WHERE relays.id = ? AND NOT relays.removed",
			int64(id))
		if err != nil || !found {
			return err
		}
		if v.Homes, err = tx.homesOf(id); err != nil {
			return err
		}
		var unknown []models.PremisesID
		for _, h := range v.Homes {
			if !knows(v.Epoch, h) {
				unknown = append(unknown, h.PremisesID)
			}
		}
		if len(unknown) == 0 {
			return nil
		}
		return tx.homesContent(id, unknown, &v)
	})
	return v, found, err
}

func scanRelayInformation(r row) (v RelayInformation, err error) {
	var relay scannedRelay
	err = r.Scan(append(relayFields(&relay), &v.Epoch, secsColumn{&v.MaxStale})...)
	v.Relay = relay.relay()
	return v, err
}

// homesOf reads the premises that a relay serves, or that leave it. The rows of their gateways say so (docs/adr/0074, 0079).
func (tx *Tx) homesOf(relay models.ID) (homes []RelayHome, err error) {
	_, err = list(tx, func(r row) (none struct{}, err error) {
		var premises models.PremisesID
		var gateway, revision int64
		if err := r.Scan(&premises, &gateway, &revision); err != nil {
			return none, err
		}
		state := strconv.AppendInt(append(strconv.AppendInt(make([]byte, 0, 32), gateway, 10), '.'), revision, 10)
		if n := len(homes); n > 0 && homes[n-1].PremisesID == premises {
			homes[n-1].State += "," + string(state)
		} else {
			homes = append(homes, RelayHome{premises, string(state)})
		}
		return none, nil
	}, `SELECT w.premises_id, w.id, w.revision FROM gateways w WHERE w.relay_id = ? AND w.relay_id <> 0 AND w.tunnel_key <> ''
		UNION ALL SELECT w.premises_id, w.id, w.revision FROM gateways w WHERE w.leaving_id = ? AND w.leaving_id <> 0 AND w.tunnel_key <> '' ORDER BY 1, 2`, int64(relay), int64(relay))
	return homes, err
}

// homesContent reads the content that some premises have at a relay: a row for each member.
func (tx *Tx) homesContent(relay models.ID, premises []models.PremisesID, v *RelayInformation) error {
	_, err := list(tx, func(r row) (none struct{}, err error) {
		var at models.RelayPremises
		var line InformationRow
		fields := []any{&at.GatewayID, &at.PremisesID, tunnelKeyColumn{&at.TunnelKey}, addrColumn{&at.TunnelAddress}}
		fields = append(append(append(fields, groupFields(&line.Group)...), registrationFields(&line.Member)...), &line.Trigger)
		if err := r.Scan(fields...); err != nil {
			return none, err
		}
		if n := len(v.Premises); n == 0 || v.Premises[n-1].GatewayID != at.GatewayID {
			v.Premises = append(v.Premises, at)
		}
		if line.Group.ID != "" {
			v.Rows = append(v.Rows, line)
		}
		return none, nil
	}, "SELECT w.id, w.premises_id, w.tunnel_key, w.tunnel_address, "+groupColumns+", "+registrationColumns+`, coalesce(d.trigger, '')
		FROM gateways w
		LEFT JOIN groups g ON g.gateway_id = w.id
		LEFT JOIN registrations r ON r.group_id = g.id
		LEFT JOIN devices d ON d.id = r.owner_device
		WHERE w.premises_id {among texts} AND ? IN (w.relay_id, w.leaving_id) AND w.tunnel_key <> ''
		ORDER BY w.premises_id, w.id, g.id, r.role DESC, r.number`, texts(tx, premises), int64(relay))
	return err
}
