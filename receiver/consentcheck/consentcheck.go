// Package consentcheck is the consent check on the wire (SPEC §10): STUN Binding requests and answers (RFC 8489) under the secret of one
// registration. The agent, which sends the media, and the receiver, which wants it, check each other with the same two messages; the user
// name says which way a request goes, so that one that is sent back is not one of the other side.
//
// It knows no state and no socket: whom to ask and whom to believe is decided in gateway-agent/consent and receiver.
package consentcheck

import (
	"encoding/binary"
	"net/netip"

	"github.com/pion/stun/v3"

	"github.com/groupcast/groupcast/models"
)

// Credential is what a registration and the node that sends to it share: Ufrag names the registration and has no colon, Password is the key of the
// message integrity as it stands.
type Credential = models.ConsentCredential

// agent is the agent's part of a user name (RFC 8445 §7.2.2: the other side's fragment, a colon, one's own).
const agent = "gw"

// Direction tells who asks whom.
type Direction int

// The two directions of a request.
const (
	ToAgent Direction = iota
	ToReceiver
)

// Username is that of a request in this direction about a registration.
func (d Direction) Username(ufrag string) string {
	if d == ToAgent {
		return agent + ":" + ufrag
	}
	return ufrag + ":" + agent
}

// Ufrag gives the registration that a request's user name is about, if the request goes in this direction.
func (d Direction) Ufrag(username string) (string, bool) {
	if d == ToAgent {
		const prefix = agent + ":"
		return cut(username, len(prefix), len(username), username[:min(len(prefix), len(username))] == prefix)
	}
	const suffix = ":" + agent
	at := max(len(username)-len(suffix), 0)
	return cut(username, 0, at, username[at:] == suffix)
}

func cut(s string, from, to int, ok bool) (string, bool) {
	if !ok || from >= to {
		return "", false
	}
	return s[from:to], true
}

// ID is a transaction's: 96 bits that nobody can guess.
type ID = [stun.TransactionIDSize]byte

// NewID draws one.
func NewID() ID { return stun.NewTransactionID() }

// Kind of a message.
type Kind int

// The kinds that a check has.
const (
	Request Kind = iota
	Answer
)

// Message is a Binding request or a successful answer to one. Nothing in it is proved before Authentic.
type Message struct {
	Kind     Kind
	ID       ID
	Username string         // of a request; "" if there is none
	Mapped   netip.AddrPort // of an answer: where the request came from; the zero AddrPort if it doesn't say
	decoded  *stun.Message
}

const (
	headerSize = 20
	cookie     = 0x2112A442
)

// IsSTUN tells STUN from media on the same port, by the first byte and the magic cookie (RFC 7983, RFC 8489 §5).
func IsSTUN(datagram []byte) bool {
	return len(datagram) >= headerSize && datagram[0] < 4 && binary.BigEndian.Uint32(datagram[4:]) == cookie
}

// Parse reads a datagram. It is false for everything that isn't a complete Binding request or successful answer.
func Parse(datagram []byte) (Message, bool) {
	if !IsSTUN(datagram) || headerSize+int(binary.BigEndian.Uint16(datagram[2:])) != len(datagram) || len(datagram)%4 != 0 {
		return Message{}, false
	}
	decoded := &stun.Message{}
	if stun.Decode(datagram, decoded) != nil {
		return Message{}, false
	}
	m := Message{ID: decoded.TransactionID, decoded: decoded}
	switch decoded.Type {
	case stun.BindingRequest:
		var name stun.Username
		if name.GetFrom(decoded) == nil {
			m.Username = name.String()
		}
	case stun.BindingSuccess:
		m.Kind = Answer
		var mapped stun.XORMappedAddress
		if mapped.GetFrom(decoded) == nil {
			if a, ok := netip.AddrFromSlice(mapped.IP); ok {
				m.Mapped = netip.AddrPortFrom(a.Unmap(), uint16(mapped.Port))
			}
		}
	default:
		return Message{}, false
	}
	return m, true
}

// Authentic tells whether somebody who knows the password made the message as it is: it ends with a right MESSAGE-INTEGRITY and
// a right FINGERPRINT, and so there is nothing that the integrity doesn't cover.
func (m Message) Authentic(password string) bool {
	if m.decoded == nil {
		return false
	}
	all := m.decoded.Attributes
	n := len(all)
	if n < 2 || all[n-1].Type != stun.AttrFingerprint || all[n-2].Type != stun.AttrMessageIntegrity {
		return false
	}
	for _, a := range all[:n-2] {
		if a.Type == stun.AttrFingerprint || a.Type == stun.AttrMessageIntegrity {
			return false
		}
	}
	return stun.Fingerprint.Check(m.decoded) == nil && stun.NewShortTermIntegrity(password).Check(m.decoded) == nil
}

// NewRequest makes a request under a new transaction id, which it also gives.
func NewRequest(c Credential, d Direction) ([]byte, ID) {
	m := stun.MustBuild(stun.TransactionID, stun.BindingRequest, stun.NewUsername(d.Username(c.Ufrag)),
		stun.NewShortTermIntegrity(c.Password), stun.Fingerprint)
	return m.Raw, m.TransactionID
}

// NewAnswer makes the answer to a request that came from an address. It is never longer than room, the size of that request, whoever asks: if
// there is no room for the address, that is left out.
func NewAnswer(c Credential, id ID, from netip.AddrPort, room int) []byte {
	build := func(more ...stun.Setter) []byte {
		setters := append([]stun.Setter{stun.NewTransactionIDSetter(id), stun.BindingSuccess}, more...)
		return stun.MustBuild(append(setters, stun.NewShortTermIntegrity(c.Password), stun.Fingerprint)...).Raw
	}
	raw := build(&stun.XORMappedAddress{IP: from.Addr().Unmap().AsSlice(), Port: int(from.Port())})
	if len(raw) > room {
		raw = build()
	}
	return raw
}

// software is longer than what makes a question as large as any answer to it (32 bytes over IPv4, 44 over IPv6), without which a server that must not be
// made to send more than it gets stays silent.
const software = "groupcast gateway-agent"

// NewQuestion asks a STUN server where it sees the sender, without a credential.
func NewQuestion() ([]byte, ID) {
	m := stun.MustBuild(stun.TransactionID, stun.BindingRequest, stun.NewSoftware(software), stun.Fingerprint)
	return m.Raw, m.TransactionID
}
