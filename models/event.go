package models

import "time"

// EventType says what happened. The events' state is whole, so a reader that doesn't know a type may still apply it.
type EventType string

// The types of a group's events. One transaction gives one event of a group, however many members it touched: a group that ends
// says only that, and the source that created a group joined it by that.
const (
	EventGroupCreated  EventType = "group.created"
	EventGroupChanged  EventType = "group.changed" // a member says something else of itself, such as its name
	EventGroupEnded    EventType = "group.ended"
	EventMemberJoined  EventType = "member.joined"
	EventMemberLeft    EventType = "member.left" // by itself, or because its device, its link or its registration was ended
	EventMemberExpired EventType = "member.expired"
	EventMemberMoved   EventType = "member.moved" // its address changed, which no event shows
	// EventConsentChanged: a destination's consent, or where the group's copies come from.
	EventConsentChanged EventType = "consent.changed"
)

// EventGroupState is how a group is now. Nothing happened, and it is never recorded: a listener who has nothing begins with it.
const EventGroupState EventType = "group.state"

// The types of an account's events that belong to no group.
const (
	EventDeviceAdded         EventType = "device.added"
	EventLinkGranted         EventType = "link.granted"
	EventLinkRevoked         EventType = "link.revoked"
	EventPoolNearlyExhausted EventType = "pool.nearly-exhausted"
	// EventPremisesChanged: what the account holder wants of a premises, or which node copies there.
	EventPremisesChanged EventType = "premises.changed"
)

// EventStream is a sequence of events that is numbered 1, 2, 3, … without a gap: that of a group or, with an empty GroupID, that
// of an account for what belongs to no group.
type EventStream struct {
	AccountID AccountID
	GroupID   GroupID
}

// EventPlace names one event.
type EventPlace struct {
	EventStream
	// Rev is the event's number in its stream: SPEC §7's rev, or accountRev.
	Rev int64
}

// Event is what happened, with the state it led to. A receiver applies it only if Rev is newer than what it has. Of Group, Device, Link,
// Pool and Premises exactly one is set.
type Event struct {
	EventPlace
	PremisesID PremisesID // empty if it is of none
	Type       EventType
	At         time.Time

	Group  *GroupState
	Device *Device // its id, premises, type, name and model
	Link   *NamedLink
	Pool   *GatewayPool
	// Premises has its id, its name, and where copies are made.
	Premises *Premises

	// JoinPolicy is that of the account when the group was created; nil in any other event.
	JoinPolicy *JoinPolicy
}

// GroupState is a group with its members, sources first, each in the order of joining.
type GroupState struct {
	Group
	Members []Member
	// Senders are where the group's copies come from; only events have them.
	Senders []Sender
}

// NamedLink is a link with the name of its service.
type NamedLink struct {
	Link
	ServiceName string
}

// GatewayPool is how the pool of a gateway stands.
type GatewayPool struct {
	GatewayID ID
	Pool
}
