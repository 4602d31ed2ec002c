package store

import (
	"database/sql"
	"encoding/json"
	"fmt"
	"net/netip"
	"time"

	"github.com/groupcast/groupcast/models"
)

// Consent is how a destination's consent stands, with what its senders follow from. The zero value is a source's.
type Consent struct {
	Policy models.ConsentPolicy
	State  models.ConsentState
	// Gateway is the group's: what it declared, and nothing else of it.
	Gateway models.Gateway
	Senders []models.Sender
}

// What the JSON of dialect.consent and of dialect.groupState holds.
type (
	consentPayload struct {
		Policy  models.ConsentPolicy `json:"policy"`
		State   models.ConsentState  `json:"state"`
		LAN     netip.Prefix         `json:"lan"`
		LANAddr netip.Addr           `json:"lanAddr"`
		Uplink  netip.Addr           `json:"uplink"`
		First   netip.Addr           `json:"first"`
		Last    netip.Addr           `json:"last"`
		Senders []senderPayload      `json:"senders"`
	}
	senderPayload struct {
		ID models.ID `json:"id"`
		// Relay and At are missing in events of older versions; the gateway has relay 0 and no address.
		Relay       string              `json:"relay"`
		At          netip.Addr          `json:"at"`
		Port        uint16              `json:"port"`
		Mapped      netip.Addr          `json:"mapped"`
		MappedPort  uint16              `json:"mappedPort"`
		IPv6        netip.Addr          `json:"ipv6"`
		PortIPv6    uint16              `json:"portIPv6"`
		State       models.ConsentState `json:"state"`
		Learned     netip.Addr          `json:"learned"`
		LearnedPort uint16              `json:"learnedPort"`
	}
)

// places are where the copies come from.
func (p senderPayload) places(uplink netip.Addr) []models.Sender {
	if p.At.IsValid() {
		uplink = p.At
	}
	relay, _ := models.ParseID(p.Relay) // 0, of a gateway, isn't one
	ports := models.SenderPorts{Port: p.Port, Mapped: pair(p.Mapped, p.MappedPort), IPv6: pair(p.IPv6, p.PortIPv6)}
	all := ports.Places(p.ID, uplink)
	for i := range all {
		all[i].RelayID = relay
		all[i].Consent, all[i].Learned = p.State, pair(p.Learned, p.LearnedPort)
	}
	return all
}

// pair is the zero value without an address.
func pair(a netip.Addr, port uint16) netip.AddrPort {
	if !a.IsValid() {
		return netip.AddrPort{}
	}
	return netip.AddrPortFrom(a, port)
}

// consentColumn scans what dialect.consent makes.
type consentColumn struct{ to *Consent }

// Scan implements sql.Scanner.
func (c consentColumn) Scan(src any) error {
	var s sql.NullString
	if err := s.Scan(src); err != nil || s.String == "" {
		*c.to = Consent{}
		return err
	}
	var p consentPayload
	if err := json.Unmarshal([]byte(s.String), &p); err != nil {
		return fmt.Errorf("read how a consent stands: %w", err)
	}
	*c.to = Consent{Policy: p.Policy, State: p.State, Gateway: models.Gateway{
		LANPrefix: p.LAN, LANAddr: p.LANAddr, Uplink: p.Uplink, Range: models.AddrRange{First: p.First, Last: p.Last},
	}}
	for _, sender := range p.Senders {
		c.to.Senders = append(c.to.Senders, sender.places(p.Uplink)...)
	}
	return nil
}

// SendersOf reads where the copies of a group come from.
func (tx *Tx) SendersOf(id models.GroupID) ([]models.Sender, error) {
	type reserved struct {
		models.SenderPorts
		source, relay models.ID
		uplink        netip.Addr
	}
	all, err := list(tx, func(r row) (v reserved, err error) {
		var mapped, v6 netip.Addr
		var mappedPort, port6 uint16
		err = r.Scan(&v.source, &v.relay, addrColumn{&v.uplink}, &v.Port, addrColumn{&mapped}, &mappedPort, addrColumn{&v6}, &port6)
		v.Mapped, v.IPv6 = pair(mapped, mappedPort), pair(v6, port6)
		return v, err
	}, `SELECT sm.member_id, sn.relay_id, CASE sn.relay_id WHEN 0 THEN w.uplink ELSE sn.address END, sn.port, sn.mapped_ipv4, sn.mapped_port, sn.ipv6, sn.port_ipv6
		FROM senders sn JOIN registrations sm ON sm.id = sn.registration_id JOIN groups g ON g.id = sm.group_id JOIN gateways w ON w.id = g.gateway_id
		WHERE sm.group_id = ? ORDER BY sm.number, sn.relay_id`, string(id))
	var senders []models.Sender
	for _, v := range all {
		for _, s := range v.Places(v.source, v.uplink) {
			s.RelayID = v.relay
			senders = append(senders, s)
		}
	}
	return senders, err
}

// BeginReport takes the number of a gateway's report if it is above that of the newest that was applied, and holds the gateway until commit without
// raising its revision, so that none of its groups changes. It gives the newest number, and whether there is such a gateway.
func (tx *Tx) BeginReport(id models.ID, sequence int64) (newest int64, applied, found bool, err error) {
	return tx.beginReport("gateways", id, sequence)
}

func (tx *Tx) beginReport(of string, id models.ID, sequence int64) (newest int64, applied, found bool, err error) {
	newest, applied, err = one(tx, scanInto[int64],
		"UPDATE "+of+" SET report_sequence = ? WHERE id = ? AND report_sequence < ? RETURNING report_sequence", sequence, int64(id), sequence)
	if err != nil || applied {
		return newest, applied, applied, err
	}
	newest, found, err = one(tx, scanInto[int64], "SELECT report_sequence FROM "+of+" WHERE id = ?", int64(id))
	return newest, false, found, err
}

// MembersAt reads those of the registrations that are in a gateway's groups.
func (tx *Tx) MembersAt(gateway models.ID, ids []models.RegistrationID) ([]models.Registration, error) {
	return list(tx, scanRegistration, "SELECT "+registrationColumns+`
		FROM registrations r JOIN groups g ON g.id = r.group_id WHERE r.id {among texts} AND g.gateway_id = ?`, texts(tx, ids), int64(gateway))
}

// Reporter is who reports: a gateway has the zero value, a relay its id and the address that its copies leave with. Counts tells that it is the node
// that copies.
type Reporter struct {
	RelayID models.ID
	Uplink  netip.Addr
}

// PutSenders records what is reserved for sources, each of them once, and gives those of which something changed.
func (tx *Tx) PutSenders(by Reporter, all []models.SenderPorts) ([]models.RegistrationID, error) {
	if len(all) == 0 {
		return nil, nil
	}
	var args []any
	for _, v := range all {
		args = append(args, string(v.RegistrationID), int64(by.RelayID), addrText(by.Uplink), int64(v.Port), addrText(v.Mapped.Addr()), int64(v.Mapped.Port()), addrText(v.IPv6.Addr()), int64(v.IPv6.Port()))
	}
	return list(tx, scanInto[models.RegistrationID], `
		INSERT INTO senders (registration_id, relay_id, address, port, mapped_ipv4, mapped_port, ipv6, port_ipv6)
		VALUES `+tuples("(?, ?, ?, ?, ?, ?, ?, ?)", len(all))+`
		ON CONFLICT (registration_id, relay_id) DO UPDATE SET address = excluded.address, port = excluded.port, mapped_ipv4 = excluded.mapped_ipv4, mapped_port = excluded.mapped_port,
			ipv6 = excluded.ipv6, port_ipv6 = excluded.port_ipv6
		WHERE senders.address <> excluded.address OR senders.port <> excluded.port OR senders.mapped_ipv4 <> excluded.mapped_ipv4 OR senders.mapped_port <> excluded.mapped_port
			OR senders.ipv6 <> excluded.ipv6 OR senders.port_ipv6 <> excluded.port_ipv6
		RETURNING registration_id`, args...)
}

// PutConsents records how consents stand, each of them once, and gives the destinations of which something changed. Whoever is live needs no
// unasked checks any more. Those with the node that copies count; which that is can't change meanwhile, because the reporter is locked.
func (tx *Tx) PutConsents(by Reporter, all []models.SenderConsent) ([]models.RegistrationID, error) {
	if len(all) == 0 {
		return nil, nil
	}
	var args []any
	var live []models.RegistrationID
	for _, v := range all {
		args = append(args, string(v.RegistrationID), string(v.SenderID), int64(by.RelayID), string(v.RegistrationID), int64(by.RelayID), string(v.State), addrText(v.Learned.Addr()), int64(v.Learned.Port()))
		if v.State == models.ConsentLive {
			live = append(live, v.RegistrationID)
		}
	}
	if len(live) > 0 {
		if _, err := tx.exec("DELETE FROM probe_slots WHERE registration_id {among texts}", texts(tx, live)); err != nil {
			return nil, err
		}
	}
	return list(tx, scanInto[models.RegistrationID], `
		INSERT INTO consents (registration_id, sender_id, relay_id, counts, state, address, port)
		VALUES `+tuples("(?, ?, ?, "+copier("?")+" = ?, ?, ?, ?)", len(all))+`
		ON CONFLICT (registration_id, sender_id, relay_id) DO UPDATE SET state = excluded.state, address = excluded.address, port = excluded.port
		WHERE consents.state <> excluded.state OR consents.address <> excluded.address OR consents.port <> excluded.port
		RETURNING registration_id`, args...)
}

// ForgetConsent makes a destination's consent pending again.
func (tx *Tx) ForgetConsent(id models.RegistrationID) error {
	return tx.later(nil, "DELETE FROM consents WHERE registration_id = ?", string(id))
}

// copier is the relay that copies for the registration that an expression names, also one that is being left; 0 if the gateway does.
func copier(registration string) string {
	return `coalesce((SELECT CASE WHEN cw.forwarding THEN cw.relay_id ELSE cw.leaving_id END FROM registrations cr JOIN groups cg ON cg.id = cr.group_id
		JOIN gateways cw ON cw.id = cg.gateway_id WHERE cr.id = ` + registration + `), 0)`
}

// ForgetSenders forgets what a gateway reserved at addresses that it has no more.
func (tx *Tx) ForgetSenders(gateway models.ID) error {
	return tx.later(nil, `DELETE FROM senders WHERE relay_id = 0 AND registration_id IN (
		SELECT r.id FROM registrations r JOIN groups g ON g.id = r.group_id WHERE g.gateway_id = ?)`, int64(gateway))
}

// TakeProbeSlot takes one of so many slots of an address for a registration and for so long, and tells whether one was free.
func (tx *Tx) TakeProbeSlot(address netip.Addr, id models.RegistrationID, slots int, life time.Duration) (bool, error) {
	for slot := range slots {
		n, err := tx.exec(`
			INSERT INTO probe_slots (address, slot, registration_id, until) VALUES (?, ?, ?, {now} + ?)
			ON CONFLICT (address, slot) DO UPDATE SET registration_id = excluded.registration_id, until = excluded.until WHERE probe_slots.until <= {now}`,
			addrText(address), slot, string(id), life.Milliseconds())
		if err != nil || n == 1 {
			return n == 1, err
		}
	}
	return false, nil
}

// allowedPayload is an element of the column allowed_cidrs.
type allowedPayload struct {
	CIDR   netip.Prefix `json:"cidr"`
	Probe  bool         `json:"probe,omitempty"`
	Exempt bool         `json:"exempt,omitempty"`
}

// AllowedCIDRs reads where the operator lets a service receive.
func (tx *Tx) AllowedCIDRs(id models.ServiceID) ([]models.AllowedCIDR, error) {
	return tx.allowedCIDRs(id, "")
}

// HoldAllowedCIDRs does the same and keeps it so until commit: whoever changes it waits.
func (tx *Tx) HoldAllowedCIDRs(id models.ServiceID) ([]models.AllowedCIDR, error) {
	return tx.allowedCIDRs(id, tx.store.dialect.share)
}

func (tx *Tx) allowedCIDRs(id models.ServiceID, hold string) ([]models.AllowedCIDR, error) {
	text, _, err := one(tx, scanInto[string], "SELECT allowed_cidrs FROM services WHERE id = ?"+hold, string(id))
	if err != nil || text == "" {
		return nil, err
	}
	var all []allowedPayload
	if err := json.Unmarshal([]byte(text), &all); err != nil {
		return nil, fmt.Errorf("read where service %s may receive: %w", id, err)
	}
	allowed := make([]models.AllowedCIDR, len(all))
	for i, v := range all {
		allowed[i] = models.AllowedCIDR{Prefix: v.CIDR, Probe: v.Probe, Exempt: v.Exempt}
	}
	return allowed, nil
}

// SetService changes a service's name and where it may receive, and tells whether there is such a service.
func (tx *Tx) SetService(v models.Service, allowed []models.AllowedCIDR) (bool, error) {
	all := make([]allowedPayload, len(allowed))
	for i, a := range allowed {
		all[i] = allowedPayload{CIDR: a.Prefix, Probe: a.Probe, Exempt: a.Exempt}
	}
	text, err := json.Marshal(all)
	if err != nil {
		return false, fmt.Errorf("write where service %s may receive: %w", v.ID, err)
	}
	n, err := tx.exec("UPDATE services SET name = ?, allowed_cidrs = ? WHERE id = ?", v.Name, string(text), string(v.ID))
	return n == 1, err
}

// SetPolicy changes where copies for a destination may go.
func (tx *Tx) SetPolicy(id models.RegistrationID, p models.ConsentPolicy, probes int) error {
	return tx.later(nil, "UPDATE registrations SET consent_policy = ?, probes = ? WHERE id = ?", string(p), probes, string(id))
}

// RegistrationsAt reads the owner's registrations at a gateway.
func (tx *Tx) RegistrationsAt(gateway models.ID, o Owner) ([]models.Registration, error) {
	where, args := o.where()
	return list(tx, scanRegistration, "SELECT "+registrationColumns+`
		FROM registrations r JOIN groups g ON g.id = r.group_id WHERE `+where+" AND g.gateway_id = ? ORDER BY r.id", append(args, int64(gateway))...)
}
