package store

import (
	"context"
	"database/sql"
	"strings"

	"github.com/groupcast/groupcast/models"
)

// InsertService adds a service and fills in when.
func (tx *Tx) InsertService(v models.Service) (_ models.Service, err error) {
	v.CreatedAt, _, err = one(tx, scanTime, "INSERT INTO services (id, name, created_at) VALUES (?, ?, {now}) RETURNING created_at",
		string(v.ID), v.Name)
	return v, err
}

// Service reads a service.
func (s *Store) Service(ctx context.Context, id models.ServiceID) (v models.Service, found bool, err error) {
	err = s.reading(ctx, func(tx *Tx) error {
		v, found, err = tx.Service(id)
		return err
	})
	return v, found, err
}

// Service reads a service.
func (tx *Tx) Service(id models.ServiceID) (models.Service, bool, error) {
	return one(tx, func(r row) (v models.Service, err error) {
		err = r.Scan(&v.ID, &v.Name, timeColumn{&v.NotBefore}, timeColumn{&v.CreatedAt})
		return v, err
	}, "SELECT id, name, not_before, created_at FROM services WHERE id = ?", string(id))
}

// ServicesAmong gives which of the ids are services, sorted.
func (tx *Tx) ServicesAmong(ids []models.ServiceID) ([]models.ServiceID, error) {
	return list(tx, scanInto[models.ServiceID], "SELECT id FROM services WHERE id {among texts} ORDER BY id", texts(tx, ids))
}

const linkColumns = `l.service_id, l.account_id, l.service_account_id, l.scopes, l.premises_filter, l.granted_by, l.granted_at, l.expires_at,
	CASE WHEN l.expires_at = 0 OR l.expires_at > {now} THEN 1 ELSE 0 END`

func linkFields(l *models.Link) []any {
	return []any{
		&l.ServiceID, &l.AccountID, &l.ServiceAccountID,
		wordsColumn{&l.Scopes},
		filterColumn{&l.Premises},
		&l.GrantedBy,
		timeColumn{&l.GrantedAt},
		timeColumn{&l.ExpiresAt},
		boolColumn{&l.Live},
	}
}

func scanLink(r row) (l models.Link, err error) { err = r.Scan(linkFields(&l)...); return l, err }

// everywhere is the premises filter that lets all pass.
const everywhere = "*"

// filterText writes a premises filter so that linkCovers can search it.
func filterText(premises []models.PremisesID) string {
	if premises == nil {
		return everywhere
	}
	var text strings.Builder
	text.WriteString(" ")
	for _, p := range premises {
		text.WriteString(string(p) + " ")
	}
	return text.String()
}

type (
	wordsColumn  struct{ to *[]string }
	filterColumn struct{ to *[]models.PremisesID }
	boolColumn   struct{ to *bool } // of an expression, which is a number on both databases
)

func (c boolColumn) Scan(src any) error {
	var n sql.NullInt64
	err := n.Scan(src)
	*c.to = n.Int64 != 0
	return err
}

func (c wordsColumn) Scan(src any) error {
	var s sql.NullString
	err := s.Scan(src)
	*c.to = strings.Fields(s.String)
	return err
}

func (c filterColumn) Scan(src any) error {
	var s sql.NullString
	if err := s.Scan(src); err != nil {
		return err
	}
	*c.to = nil
	if s.String == everywhere {
		return nil
	}
	*c.to = []models.PremisesID{}
	for id := range strings.FieldsSeq(s.String) {
		*c.to = append(*c.to, models.PremisesID(id))
	}
	return nil
}

// linkIsLive is the condition that the link l has not ended by itself.
const linkIsLive = "l.expires_at = 0 OR l.expires_at > {now}"

// linkGrants is the condition that the link l is live and grants the scope of its one parameter, which scopeArg makes.
const linkGrants = "(" + linkIsLive + ") AND ' ' || l.scopes || ' ' LIKE ?"

// linkGranting is linkGrants of a scope that is known.
func linkGranting(scope string) string { return strings.Replace(linkGrants, "?", "'% "+scope+" %'", 1) }

func scopeArg(scope string) any { return "% " + scope + " %" }

// linkCovers is the condition that the link l covers the premises that the expression names.
func linkCovers(premises string) string { return consentCovers("l", premises) }

func consentCovers(consent, premises string) string {
	return "(" + consent + ".premises_filter = '*' OR " + consent + ".premises_filter LIKE '% ' || " + premises + " || ' %')"
}

// linkHears is the condition that the consent of the link l lets its service hear of the event e now: of the link itself; of a group in premises that
// it covers with gc:events, or with gc:notify while the service is a member. It is the only place that says so.
var linkHears = consentHears("l", "("+linkIsLive+")")

// linkHeard is the condition that a consent of the link l of the time of the event e let its service hear of it: the one of now, or one before.
var linkHeard = "(l.granted_at <= e.created_at OR EXISTS (SELECT 1 FROM past_consents p WHERE p.service_id = l.service_id " +
	"AND p.service_account_id = l.service_account_id AND e.created_at BETWEEN p.granted_at AND p.ended_at AND " + consentHears("p", "1 = 1") + "))"

// consentHears is what both say of a row that holds a consent, which counts under a condition.
func consentHears(consent, live string) string {
	grants := func(scope string) string {
		return live + " AND ' ' || " + consent + ".scopes || ' ' LIKE '% " + scope + " %'"
	}
	return "(e.group_id = '' OR " + consentCovers(consent, "e.premises_id") + " AND (" + grants(models.ScopeEvents) + " OR " + grants(models.ScopeNotify) +
		" AND EXISTS (SELECT 1 FROM registrations r WHERE r.group_id = e.group_id AND r.owner_service = l.service_id AND r.member_id = l.service_account_id)))"
}

// InsertLink adds a link unless the account is linked with the service already, and tells whether it was added. A service or an account that
// doesn't exist is IsReference; a service account id by which the service knows another account is IsDuplicate.
func (tx *Tx) InsertLink(l models.Link) (bool, error) {
	n, err := tx.exec(`
		INSERT INTO service_links (service_id, account_id, service_account_id, scopes, premises_filter, granted_by, expires_at, granted_at)
		VALUES (?, ?, ?, ?, ?, ?, ?, {now}) ON CONFLICT (service_id, account_id) DO NOTHING`,
		string(l.ServiceID), string(l.AccountID), int64(l.ServiceAccountID), strings.Join(l.Scopes, " "), filterText(l.Premises), l.GrantedBy,
		timeArg(l.ExpiresAt))
	return n == 1, err
}

// SetConsent changes what a link grants, and tells whether there is such a link. What it granted before is kept for as long as events are.
func (tx *Tx) SetConsent(l models.Link) (bool, error) {
	key := []any{string(l.ServiceID), int64(l.ServiceAccountID)}
	if _, err := tx.exec("DELETE FROM past_consents WHERE service_id = ? AND service_account_id = ? AND ended_at <= {now} - ?",
		key[0], key[1], EventRetention.Milliseconds()); err != nil {
		return false, err
	}
	if _, err := tx.exec(`
		INSERT INTO past_consents (service_id, service_account_id, scopes, premises_filter, granted_at, ended_at)
		SELECT l.service_id, l.service_account_id, l.scopes, l.premises_filter, l.granted_at, CASE WHEN `+linkIsLive+` THEN {now} ELSE l.expires_at END
		FROM service_links l WHERE l.service_id = ? AND l.service_account_id = ?`, key...); err != nil {
		return false, err
	}
	n, err := tx.exec(`
		UPDATE service_links SET scopes = ?, premises_filter = ?, granted_by = ?, expires_at = ?, granted_at = {now}
		WHERE service_id = ? AND service_account_id = ?`, strings.Join(l.Scopes, " "), filterText(l.Premises), l.GrantedBy, timeArg(l.ExpiresAt),
		string(l.ServiceID), int64(l.ServiceAccountID))
	return n == 1, err
}

// PlacesBeyond reads where a service is registered although its link doesn't allow it any more.
func (tx *Tx) PlacesBeyond(l models.Link) ([]Place, error) {
	return list(tx, scanPlace, `
		SELECT r.id, g.gateway_id FROM registrations r JOIN groups g ON g.id = r.group_id
		JOIN service_links l ON l.service_id = r.owner_service AND l.service_account_id = r.member_id
		WHERE r.owner_service = ? AND r.member_id = ? AND NOT (`+linkGrants+" AND "+linkCovers("g.premises_id")+")",
		string(l.ServiceID), int64(l.ServiceAccountID), scopeArg(models.ScopeRegister))
}

// ServiceIDs reads the names of all services, sorted.
func (s *Store) ServiceIDs(ctx context.Context) (all []models.ServiceID, err error) {
	err = s.reading(ctx, func(tx *Tx) error {
		all, err = list(tx, scanInto[models.ServiceID], "SELECT id FROM services ORDER BY id")
		return err
	})
	return all, err
}

// LinkPage reads up to limit live links of an account after a service's id, sorted by that.
func (s *Store) LinkPage(ctx context.Context, account models.AccountID, after string, limit int) (all []models.NamedLink, err error) {
	err = s.reading(ctx, func(tx *Tx) error {
		all, err = list(tx, func(r row) (l models.NamedLink, err error) {
			err = r.Scan(append(linkFields(&l.Link), &l.ServiceName)...)
			return l, err
		}, "SELECT "+linkColumns+`, s.name FROM service_links l JOIN services s ON s.id = l.service_id
			WHERE l.account_id = ? AND l.service_id > ? AND (l.expires_at = 0 OR l.expires_at > {now}) ORDER BY l.service_id LIMIT ?`,
			string(account), after, limit)
		return err
	})
	return all, err
}

// LinkByServiceAccountID reads the live link that a service means.
func (s *Store) LinkByServiceAccountID(ctx context.Context, service models.ServiceID, id models.ID) (l models.Link, found bool, err error) {
	err = s.reading(ctx, func(tx *Tx) error {
		l, found, err = one(tx, scanLink, "SELECT "+linkColumns+" FROM service_links l WHERE l.service_id = ? AND l.service_account_id = ?",
			string(service), int64(id))
		return err
	})
	return l, found && l.Live, err
}

// Link reads the link of an account with a service, live or not.
func (tx *Tx) Link(service models.ServiceID, account models.AccountID) (models.Link, bool, error) {
	return one(tx, scanLink, "SELECT "+linkColumns+" FROM service_links l WHERE l.service_id = ? AND l.account_id = ?",
		string(service), string(account))
}

// LinksOf reads the links of several accounts, oldest first.
func (tx *Tx) LinksOf(accounts []models.AccountID) ([]models.Link, error) {
	return list(tx, scanLink, "SELECT "+linkColumns+" FROM service_links l WHERE l.account_id {among texts} ORDER BY l.granted_at, l.service_id",
		texts(tx, accounts))
}

// DueLinks reads up to limit links whose time is over, the longest overdue first.
func (s *Store) DueLinks(ctx context.Context, limit int) (due []models.Link, err error) {
	err = s.reading(ctx, func(tx *Tx) error {
		due, err = list(tx, scanLink, "SELECT "+linkColumns+` FROM service_links l
			WHERE l.expires_at > 0 AND l.expires_at <= {now} ORDER BY l.expires_at LIMIT ?`, limit)
		return err
	})
	return due, err
}

// DeleteLink removes a link and what its service's webhooks have not got of the account. One whose service still has registrations in the
// account is IsReference.
func (tx *Tx) DeleteLink(l models.Link) error {
	if err := tx.forgetLink(l); err != nil {
		return err
	}
	_, err := tx.exec("DELETE FROM service_links WHERE service_id = ? AND service_account_id = ?",
		string(l.ServiceID), int64(l.ServiceAccountID))
	return err
}

// DeleteDueLink does the same if the link's time is over still, and tells whether it was.
func (tx *Tx) DeleteDueLink(l models.Link) (bool, error) {
	if err := tx.forgetLink(l); err != nil {
		return false, err
	}
	n, err := tx.exec("DELETE FROM service_links WHERE service_id = ? AND service_account_id = ? AND expires_at > 0 AND expires_at <= {now}",
		string(l.ServiceID), int64(l.ServiceAccountID))
	return n == 1, err
}
