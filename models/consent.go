package models

import (
	"net/netip"
	"time"
)

// How often a destination is asked whether it still wants its copies, and for how long its answer counts (RFC 7675, SPEC §10).
const (
	ConsentEvery   = 5 * time.Second
	ConsentExpires = 30 * time.Second
	// MaxProbes is how many checks may be sent to an address from which nothing came yet.
	MaxProbes = 5
)

// ConsentState says whether a destination has proved that it wants the copies where they go (SPEC §10). It never changes a group's state.
type ConsentState string

// The states of consent. Of several senders the worst counts, which is the last in the order of the alphabet.
const (
	ConsentExempt      ConsentState = "exempt" // nobody asks
	ConsentLive        ConsentState = "live"
	ConsentLost        ConsentState = "lost"    // it was live
	ConsentPending     ConsentState = "pending" // not yet
	ConsentUnreachable ConsentState = "unreachable"
)

// ConsentPolicy says where a destination's copies may go.
type ConsentPolicy string

// The policies.
const (
	// PolicyLearned is for devices: where a check came from, once that address has answered one.
	PolicyLearned ConsentPolicy = "learned"
	// PolicyStrict is for services: the same, but only at the registered address.
	PolicyStrict ConsentPolicy = "strict"
	// PolicyExempt is for what the operator exempts: the registered address, unasked.
	PolicyExempt ConsentPolicy = "exempt"
)

// AllowedCIDR is a prefix in which the operator lets a service receive.
type AllowedCIDR struct {
	Prefix netip.Prefix
	// Probe lets a gateway ask first.
	Probe bool
	// Exempt lets copies be sent there unasked.
	Exempt bool
}

// ConsentCredential is what a destination proves its consent with; it lives as long as the registration.
type ConsentCredential struct {
	// Ufrag names the registration in a check.
	Ufrag string
	// Password is the key of MESSAGE-INTEGRITY, 128 bits as text.
	Password string
}

// SenderPorts are what a gateway reserved to send the copies of one source from; addresses are zero where there is none.
type SenderPorts struct {
	// RegistrationID is the source's.
	RegistrationID RegistrationID
	// Port is at the uplink's address.
	Port uint16
	// Mapped is what a NAT makes of that.
	Mapped netip.AddrPort
	IPv6   netip.AddrPort
}

// Places are where the copies of a source come from, as destinations see it.
func (p SenderPorts) Places(source ID, uplink netip.Addr) []Sender {
	at := netip.AddrPortFrom(uplink, p.Port)
	all := []Sender{{SourceID: source, At: at}}
	if p.Mapped.IsValid() && p.Mapped != at {
		all = []Sender{{SourceID: source, At: p.Mapped}, {SourceID: source, At: at, Inside: true}}
	}
	if p.IPv6.IsValid() {
		all = append(all, Sender{SourceID: source, At: p.IPv6})
	}
	return all
}

// SenderConsent is how a destination's consent stands with one sender.
type SenderConsent struct {
	// RegistrationID is the destination's, SenderID the source's.
	RegistrationID, SenderID RegistrationID
	State                    ConsentState
	// Learned is where the copies go; zero unless it is live.
	Learned netip.AddrPort
}

// Sender is where the copies of one source come from.
type Sender struct {
	SourceID ID
	// RelayID is the relay that reserved it; 0 for the gateway.
	RelayID ID
	At      netip.AddrPort
	// Inside is true if only destinations inside the home get copies from there.
	Inside bool
	// Consent and Learned are of the destination that asks: how its consent stands with this sender, and where its copies go; zero for nobody in particular.
	Consent ConsentState
	Learned netip.AddrPort
}
