package store

import (
	"context"
	"crypto/rand"
	"fmt"
	"net/netip"
	"time"

	"github.com/groupcast/groupcast/models"
)

const relayColumns = `relays.id, relays.name, relays.all_premises, relays.not_before, relays.tunnel_key, relays.endpoint_ipv4, relays.endpoint_port,
	relays.uplink, relays.tunnel_address, relays.revision`

// relayFields scans what may be missing because of an outer join.
func relayFields(r *scannedRelay) []any {
	return []any{
		&r.ID, &r.Name, &r.All,
		timeColumn{&r.NotBefore},
		tunnelKeyColumn{&r.TunnelKey},
		addrColumn{&r.endpoint},
		&r.port,
		addrColumn{&r.Uplink},
		addrColumn{&r.TunnelAddress},
		&r.Revision,
	}
}

type scannedRelay struct {
	models.Relay
	endpoint netip.Addr
	port     uint16
}

func (r scannedRelay) relay() models.Relay {
	r.Endpoint = pair(r.endpoint, r.port)
	return r.Relay
}

func scanRelay(r row) (models.Relay, error) {
	var v scannedRelay
	err := r.Scan(relayFields(&v)...)
	return v.relay(), err
}

// Relay reads a relay that wasn't removed.
func (s *Store) Relay(ctx context.Context, id models.ID) (v models.Relay, found bool, err error) {
	err = s.reading(ctx, func(tx *Tx) error {
		v, found, err = tx.Relay(id)
		return err
	})
	return v, found, err
}

// Relay reads a relay that wasn't removed.
func (tx *Tx) Relay(id models.ID) (models.Relay, bool, error) {
	return one(tx, scanRelay, "SELECT "+relayColumns+" FROM relays WHERE id = ? AND NOT removed", int64(id))
}

// RelayByKey reads the relay that has the key with a thumbprint, and the key as JSON.
func (s *Store) RelayByKey(ctx context.Context, thumbprint string) (v models.Relay, jwk string, found bool, err error) {
	err = s.reading(ctx, func(tx *Tx) error {
		v, found, err = one(tx, func(r row) (models.Relay, error) {
			var v scannedRelay
			err := r.Scan(append(relayFields(&v), &jwk)...)
			return v.relay(), err
		}, "SELECT "+relayColumns+", jwk FROM relays WHERE thumbprint = ? AND NOT removed", thumbprint)
		return err
	})
	return v, jwk, found, err
}

// HasRelayKey tells whether a relay has, or had, the key with a thumbprint.
func (tx *Tx) HasRelayKey(thumbprint string) (bool, error) {
	_, found, err := one(tx, scanInto[int64], "SELECT id FROM relays WHERE thumbprint = ?", thumbprint)
	return found, err
}

// InsertRelay adds a relay that has declared nothing yet, at an address of its own. A device may have no such id, because one number names a node.
func (tx *Tx) InsertRelay(r models.Relay) error {
	at, err := tx.DrawTunnelAddress(TunnelsOfRelays)
	if err != nil {
		return err
	}
	if _, err := tx.exec("INSERT INTO relays (id, name, tunnel_address, created_at) VALUES (?, ?, ?, {now})", int64(r.ID), r.Name, addrText(at)); err != nil {
		return err
	}
	_, err = tx.exec("INSERT INTO relay_polls (relay_id) VALUES (?)", int64(r.ID))
	return err
}

// PutRelayTicket gives a relay a ticket that ends after life, in place of any before it, and tells when that is.
func (tx *Tx) PutRelayTicket(hash []byte, id models.ID, life time.Duration) (ends time.Time, err error) {
	if _, err := tx.exec("DELETE FROM relay_tickets WHERE relay_id = ? OR expires_at <= {now}", int64(id)); err != nil {
		return ends, err
	}
	ends, _, err = one(tx, scanTime, "INSERT INTO relay_tickets (hash, relay_id, expires_at) VALUES (?, ?, {now} + CAST(? AS bigint)) RETURNING expires_at",
		blob(hash), int64(id), life.Milliseconds())
	return ends, err
}

// TakeRelayTicket removes a ticket that has not ended, so that it is used once, and gives the relay.
func (tx *Tx) TakeRelayTicket(hash []byte) (models.ID, bool, error) {
	return one(tx, scanInto[models.ID], `DELETE FROM relay_tickets WHERE hash = ? AND expires_at > {now}
		AND EXISTS (SELECT 1 FROM relays WHERE relays.id = relay_tickets.relay_id AND NOT removed) RETURNING relay_id`, blob(hash))
}

// SetRelayKey gives a relay its key. Whatever was issued for it until now ends.
func (tx *Tx) SetRelayKey(id models.ID, thumbprint, jwk string) error {
	tx.changed.raised(id)
	_, err := tx.exec("UPDATE relays SET thumbprint = ?, jwk = ?, not_before = CASE WHEN thumbprint IS NULL THEN not_before ELSE "+nextNotBefore+" END WHERE id = ?",
		thumbprint, jwk, int64(id))
	return err
}

// EndRelayTokens ends everything that was issued for a relay until now.
func (tx *Tx) EndRelayTokens(id models.ID) error {
	tx.changed.raised(id)
	_, err := tx.exec("UPDATE relays SET not_before = "+nextNotBefore+" WHERE id = ?", int64(id))
	return err
}

// LockRelay raises the relay's revision, which locks it until commit, and reads it as it is then. A gateway is locked before.
func (tx *Tx) LockRelay(id models.ID) (models.Relay, bool, error) {
	v, found, err := one(tx, scanRelay, "UPDATE relays SET revision = revision + 1 WHERE id = ? AND NOT removed RETURNING "+relayColumns, int64(id))
	if found {
		tx.changed.raised(id)
	}
	return v, found, err
}

// SetRelayDeclaration records what a relay declared.
func (tx *Tx) SetRelayDeclaration(r models.Relay) error {
	_, err := tx.exec("UPDATE relays SET tunnel_key = ?, endpoint_ipv4 = ?, endpoint_port = ?, uplink = ? WHERE id = ?",
		r.TunnelKey.String(), addrText(r.Endpoint.Addr()), int64(r.Endpoint.Port()), addrText(r.Uplink), int64(r.ID))
	return err
}

// ForgetRelaySenders forgets what a relay reserved at an address that it has no more.
func (tx *Tx) ForgetRelaySenders(id models.ID) error {
	_, err := tx.exec("DELETE FROM senders WHERE relay_id = ?", int64(id))
	return err
}

// RemoveRelay lets nobody be the relay any more, and tells whether there was one. Its row goes once it can't copy any more: see [Store.SweepRelays].
func (tx *Tx) RemoveRelay(id models.ID) (bool, error) {
	tx.changed.raised(id)
	n, err := tx.exec("UPDATE relays SET removed = true, not_before = "+nextNotBefore+", jwk = '' WHERE id = ? AND NOT removed", int64(id))
	return n == 1, err
}

// SweepRelays deletes relays that were removed and have been silent for so long that they stopped copying.
func (s *Store) SweepRelays(ctx context.Context) error {
	return s.writing(ctx, func(tx *Tx) error {
		_, err := tx.exec(`DELETE FROM relays WHERE removed AND NOT EXISTS (SELECT 1 FROM relay_assignments ra WHERE ra.relay_id = relays.id)
			AND NOT EXISTS (SELECT 1 FROM gateways w WHERE w.leaving_id = relays.id AND w.leaving_id <> 0)
			AND (SELECT p.polled_at + (` + maxStaleInForce + `) * 1000 FROM relay_polls p CROSS JOIN installation WHERE p.relay_id = relays.id) < {now}`)
		return err
	})
}

// SetRelayMay says whom a relay may serve; whoever it serves and may not is moved by and by. Premises that there are not are IsReference.
func (tx *Tx) SetRelayMay(id models.ID, all bool, premises []models.PremisesID) error {
	if _, err := tx.exec("UPDATE relays SET all_premises = ?, recheck = true WHERE id = ?", all, int64(id)); err != nil {
		return err
	}
	if _, err := tx.exec("DELETE FROM relay_premises WHERE relay_id = ?", int64(id)); err != nil {
		return err
	}
	const atOnce = 500
	for len(premises) > 0 {
		batch := premises[:min(len(premises), atOnce)]
		premises = premises[len(batch):]
		args := make([]any, 0, 2*len(batch))
		for _, p := range batch {
			args = append(args, int64(id), string(p))
		}
		if _, err := tx.exec("INSERT INTO relay_premises (relay_id, premises_id) VALUES "+tuples("(?, ?)", len(batch)), args...); err != nil {
			return err
		}
	}
	return nil
}

// RelayStanding is how a relay stands.
type RelayStanding struct {
	models.Relay
	// Live tells that it has declared itself and asked lately.
	Live bool
	// Removed is true until its row goes, and Recheck while it may serve premises that it mustn't.
	Removed, Recheck bool
	// Served is how many premises it is assigned to.
	Served int
}

// liveRelay is the condition that the relay under the alias relays, with its poll under rp, is alive.
var liveRelay = fmt.Sprintf("(relays.tunnel_key <> '' AND NOT relays.removed AND rp.polled_at > {now} - %d)", models.RelayLiveFor.Milliseconds())

// RelaysStanding reads how relays stand, sorted by id: up to limit of them after an id.
func (s *Store) RelaysStanding(ctx context.Context, after models.ID, limit int) (all []RelayStanding, err error) {
	err = s.reading(ctx, func(tx *Tx) error {
		all, err = tx.RelaysStanding(after, limit)
		return err
	})
	return all, err
}

// RelaysStanding does the same within a transaction.
func (tx *Tx) RelaysStanding(after models.ID, limit int) ([]RelayStanding, error) {
	return list(tx, func(r row) (v RelayStanding, err error) {
		var relay scannedRelay
		err = r.Scan(append(relayFields(&relay), &v.Live, &v.Removed, &v.Recheck, &v.Served)...)
		v.Relay = relay.relay()
		return v, err
	}, "SELECT "+relayColumns+", "+liveRelay+`, relays.removed, relays.recheck,
			(SELECT count(*) FROM relay_assignments ra WHERE ra.relay_id = relays.id)
		FROM relays JOIN relay_polls rp ON rp.relay_id = relays.id WHERE relays.id > ? ORDER BY relays.id LIMIT ?`, int64(after), limit)
}

// RelayMay reads the premises that relays may serve, sorted, besides those that may serve all.
func (s *Store) RelayMay(ctx context.Context, ids []models.ID) (map[models.ID][]models.PremisesID, error) {
	may := map[models.ID][]models.PremisesID{}
	type pair struct {
		relay    models.ID
		premises models.PremisesID
	}
	err := s.reading(ctx, func(tx *Tx) error {
		all, err := list(tx, func(r row) (v pair, err error) { err = r.Scan(&v.relay, &v.premises); return v, err },
			"SELECT relay_id, premises_id FROM relay_premises WHERE relay_id {among bigints} ORDER BY relay_id, premises_id", tx.ids(ids))
		for _, v := range all {
			may[v.relay] = append(may[v.relay], v.premises)
		}
		return err
	})
	return may, err
}

// The kinds of addresses within the tunnels: the fourth group of 16 bits.
const (
	TunnelsOfPremises uint16 = 0
	TunnelsOfRelays   uint16 = 1
)

// DrawTunnelAddress draws an address within the tunnels: the installation's /48 (RFC 4193 §3.2, drawn once), the kind, and 64 random bits. That nobody
// has it already the tables see to.
func (tx *Tx) DrawTunnelAddress(kind uint16) (netip.Addr, error) {
	text, _, err := one(tx, scanInto[string], "SELECT tunnel_prefix FROM installation")
	if err != nil {
		return netip.Addr{}, err
	}
	var b [16]byte
	_, _ = rand.Read(b[:]) // never fails: it ends the process instead
	if text == "" {
		drawn := b
		drawn[0] = 0xfd
		prefix := netip.PrefixFrom(netip.AddrFrom16(drawn), 48).Masked()
		if _, err := tx.exec("UPDATE installation SET tunnel_prefix = ? WHERE tunnel_prefix = ''", prefix.String()); err != nil {
			return netip.Addr{}, err
		}
		if text, _, err = one(tx, scanInto[string], "SELECT tunnel_prefix FROM installation"); err != nil {
			return netip.Addr{}, err
		}
	}
	prefix, err := netip.ParsePrefix(text)
	if err != nil {
		return netip.Addr{}, fmt.Errorf("read the tunnels' prefix: %w", err)
	}
	p := prefix.Addr().As16()
	copy(b[:6], p[:6])
	b[6], b[7] = byte(kind>>8), byte(kind)
	return netip.AddrFrom16(b), nil
}

// BeginRelayReport is BeginReport for a relay.
func (tx *Tx) BeginRelayReport(id models.ID, sequence int64) (newest int64, applied, found bool, err error) {
	return tx.beginReport("relays", id, sequence)
}

// MembersAtRelay reads those of the registrations that are in groups of the premises that a relay serves, or that leave it.
func (tx *Tx) MembersAtRelay(relay models.ID, ids []models.RegistrationID) ([]models.Registration, error) {
	return list(tx, scanRegistration, "SELECT "+registrationColumns+`
		FROM registrations r JOIN groups g ON g.id = r.group_id JOIN gateways w ON w.id = g.gateway_id
		WHERE r.id {among texts} AND ? IN (w.relay_id, w.leaving_id) AND w.tunnel_key <> ''`, texts(tx, ids), int64(relay))
}

// ServedBy reads the premises that a relay serves, sorted.
func (tx *Tx) ServedBy(id models.ID) ([]models.PremisesID, error) {
	return list(tx, scanInto[models.PremisesID], "SELECT premises_id FROM relay_assignments WHERE relay_id = ? ORDER BY premises_id", int64(id))
}
