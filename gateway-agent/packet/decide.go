package packet

import (
	"net/netip"
	"time"

	"github.com/groupcast/groupcast/gateway-agent/table"
)

// Reason is why a datagram is copied or isn't. The zero Reason is no verdict, so a forgotten one copies nothing.
type Reason uint8

// The reasons. Only Copy leads to copies; every other one is a counter.
const (
	_            Reason = iota
	Copy                // one copy for each destination of the group
	Malformed           // the datagram can't be read
	Stale               // there is no group information, or it is older than it may be
	UnknownGroup        // the destination is no group IP
	Spoof               // option 0x88 doesn't carry the datagram's own source
	Unregistered        // the source isn't a source of the group
	Unflagged           // the source has to set option 0x88 and didn't
	TTL                 // the datagram has no hop left
	reasonCount
)

var reasonNames = [reasonCount]string{
	Copy: "copy", Malformed: "malformed", Stale: "stale", UnknownGroup: "unknown-group", Spoof: "spoof",
	Unregistered: "unregistered", Unflagged: "unflagged", TTL: "ttl",
}

// ReasonCount is one more than the highest Reason, for arrays of counters.
const ReasonCount = int(reasonCount)

// String is the name of the reason in metrics.
func (r Reason) String() string {
	if r < reasonCount {
		return reasonNames[r]
	}
	return ""
}

// Verdict is the decision about one datagram. Group and Source are set if the reason is Copy.
type Verdict struct {
	Reason Reason
	Group  *table.Group
	Source table.Source
}

// Decide says whether a datagram is copied by this snapshot at this instant (SPEC §9). It is a pure function; now and ValidUntil
// are compared by the monotonic clock if both have it.
func Decide(s *table.Snapshot, now time.Time, d Datagram) Verdict {
	if s == nil || !now.Before(s.ValidUntil) {
		return Verdict{Reason: Stale}
	}
	group, ok := s.Group(d.Destination.Addr())
	if !ok {
		return Verdict{Reason: UnknownGroup}
	}
	if d.StreamID.IsValid() && d.StreamID != d.Source.Addr() {
		return Verdict{Reason: Spoof}
	}
	source, ok := group.Source(d.Source.Addr())
	if !ok {
		return Verdict{Reason: Unregistered}
	}
	if !d.StreamID.IsValid() && source.Trigger != table.TriggerSource {
		return Verdict{Reason: Unflagged}
	}
	if d.TTL <= 1 {
		return Verdict{Reason: TTL}
	}
	return Verdict{Reason: Copy, Group: group, Source: source}
}

// Target is where the copy for a destination goes: to its own port if it registered one, else to the camera's.
func Target(to table.Destination, camera Datagram) netip.AddrPort {
	if to.Port != 0 {
		return netip.AddrPortFrom(to.Addr, to.Port)
	}
	return netip.AddrPortFrom(to.Addr, camera.Destination.Port())
}
