package models

import (
	"net/netip"
	"time"
)

// AuditID identifies a row of the audit log.
type AuditID string

// NewAuditID draws a new row's id; ids sort by when they were drawn.
func NewAuditID() AuditID { return AuditID(newOpaque("e_")) }

// AuditRow is one thing that somebody did, or tried to do. It holds no secret, no token, no code and no destination's address.
type AuditRow struct {
	ID AuditID
	// At is when it was written, by the database's clock, in milliseconds.
	At time.Time
	// Actor is who did it, for example device/664123086043511412.
	Actor string
	// AccountID is the tenant it belongs to; empty for the operator's own.
	AccountID AccountID
	// Action is what was done, for example device.remove, and Object what it was done to.
	Action string
	Object string
	// Result is ok or refused; Reason is the code of the refusal.
	Result string
	Reason string
	// Source is the network of the caller.
	Source    netip.Prefix
	RequestID string
	// Count is how many refusals it stands for; 1 for everything else.
	Count int64
	// Seq is its place in the hash chain, from 1; 0 until it is sealed, which takes about a second. Hash is the chain's hash there, in hex.
	Seq  int64
	Hash string
}

// AuditFilter chooses rows. What is empty chooses all.
type AuditFilter struct {
	AccountID AccountID
	// Actor and Action are as rows have them.
	Actor  string
	Action string
	// Since is the first time and Until the first one too late.
	Since, Until time.Time
}

// AuditHead is a place in the hash chain: its last row and the hash there.
type AuditHead struct {
	Seq  int64
	Hash string
}
