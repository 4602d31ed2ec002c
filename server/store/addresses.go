package store

import (
	"net/netip"
	"time"

	"github.com/groupcast/groupcast/models"
)

// Pool is all that decides which group IP may be handed out.
type Pool struct {
	Addresses []models.Address
	// Acked is the newest revision that the gateway said it holds, in the epoch that is current; 0 if none.
	Acked int64
	// PolledAt is when it last asked; zero if never.
	PolledAt time.Time
	// MaxStale is how long a gateway copies without hearing from the service.
	MaxStale time.Duration
	Now      time.Time
}

// Pool reads the addresses of a gateway. Among them may be some outside the range it declares now.
func (tx *Tx) Pool(gatewayID models.ID) (p Pool, err error) {
	p.Addresses, err = list(tx, func(r row) (a models.Address, err error) {
		err = r.Scan(&a.GatewayID, addrColumn{&a.IP}, &a.State, &a.GroupID, &a.LastGroupName, &a.Generation,
			timeColumn{&a.ReleasedAt}, &a.ReleasedRevision, timeColumn{&a.HeldUntil}, &p.Acked, timeColumn{&p.PolledAt}, secsColumn{&p.MaxStale}, timeColumn{&p.Now})
		return a, err
	}, `
		SELECT a.gateway_id, a.ip, a.state, coalesce(a.group_id, ''), a.last_group_name, a.generation, a.released_at, a.released_revision,
			CASE a.state WHEN 'quarantined' THEN `+heldUntil+` ELSE 0 END, CASE WHEN p.epoch = i.epoch THEN p.acked_revision ELSE 0 END, p.polled_at, `+maxStaleInForce+`, {now}
		FROM addresses a JOIN gateway_polls p ON p.gateway_id = a.gateway_id CROSS JOIN installation i WHERE a.gateway_id = ?`, int64(gatewayID))
	return p, err
}

// heldUntil is until when a relay may copy for the group that had an address last: one that served the premises when the address was released, or left it
// before, hasn't acknowledged that, and asked so lately that it may still go by what it had. One that is being left counts as one that has acknowledged
// nothing. The time may be over; 0 is none.
const heldUntil = `coalesce((SELECT max(rp.polled_at) + (` + maxStaleInForce + `) * 1000 FROM relay_polls rp
	WHERE rp.relay_id = a.released_relay AND (rp.epoch <> i.epoch OR rp.acked_revision < a.released_relay_revision)
	OR rp.relay_id = (SELECT w.leaving_id FROM gateways w WHERE w.id = a.gateway_id)
	OR EXISTS (SELECT 1 FROM relay_departures rd JOIN gateways w ON w.premises_id = rd.premises_id
		WHERE w.id = a.gateway_id AND rd.relay_id = rp.relay_id AND (rp.epoch <> i.epoch OR rp.acked_revision < rd.revision))), 0)`

// InsertAddresses adds addresses, at most a few hundred. They are free, unless a backup was restored: then nobody knows who had
// them before, and they begin as those that were there at the time (see [Store.BeginLife]).
func (tx *Tx) InsertAddresses(gatewayID models.ID, ips []netip.Addr) error {
	if len(ips) == 0 {
		return nil
	}
	args := make([]any, 0, 2*len(ips))
	for _, ip := range ips {
		args = append(args, int64(gatewayID), addrText(ip))
	}
	_, err := tx.exec(`
		WITH added (gateway_id, ip) AS (VALUES `+tuples("(CAST(? AS bigint), ?)", len(ips))+`)
		INSERT INTO addresses (gateway_id, ip, state, generation, released_at, released_revision)
		SELECT added.gateway_id, added.ip, CASE i.restored_at WHEN 0 THEN 'free' ELSE 'quarantined' END,
			CASE i.restored_at WHEN 0 THEN 0 ELSE `+generationAt("i.restored_at")+` END, i.restored_at,
			CASE i.restored_at WHEN 0 THEN 0 ELSE (SELECT g.revision FROM gateways g WHERE g.id = added.gateway_id) END
		FROM added CROSS JOIN installation i`, args...)
	return err
}

// DeleteAddresses removes addresses.
func (tx *Tx) DeleteAddresses(gatewayID models.ID, ips []netip.Addr) error {
	if len(ips) == 0 {
		return nil
	}
	all := make([]string, len(ips))
	for i, ip := range ips {
		all[i] = addrText(ip)
	}
	_, err := tx.exec("DELETE FROM addresses WHERE gateway_id = ? AND ip {among texts}", int64(gatewayID), texts(tx, all))
	return err
}

// Allocate gives an address to the group that it names. No generation is ahead of the clock (see [generationAt]), so that a database
// that is restored later begins beyond all that were ever handed out. Only an address that a restored database hands out again and
// again within seconds comes there; that is CodeUnavailable.
func (tx *Tx) Allocate(a models.Address) error {
	n, err := tx.exec("UPDATE addresses SET state = ?, group_id = ?, last_group_name = ?, generation = ? WHERE gateway_id = ? AND ip = ?"+
		" AND CAST(? AS bigint) <= "+generationAt("{now}"),
		string(a.State), string(a.GroupID), a.LastGroupName, a.Generation, int64(a.GatewayID), addrText(a.IP), a.Generation)
	if err == nil && n == 0 {
		err = models.Errorf(models.CodeUnavailable, "The group IP %s was handed out just now. Try again in a second.", a.IP).With("retryAfter", 1)
	}
	return err
}
