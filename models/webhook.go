package models

import "time"

// WebhookID identifies a webhook.
type WebhookID string

// NewWebhookID draws a new webhook id.
func NewWebhookID() WebhookID { return WebhookID(newOpaque("w_")) }

// WebhookDisabled says why nothing is sent to a webhook; empty if it is.
type WebhookDisabled string

// The reasons.
const (
	WebhookPaused  WebhookDisabled = "paused"  // the service asked for it
	WebhookGone    WebhookDisabled = "gone"    // it answered 410
	WebhookFailing WebhookDisabled = "failing" // it failed for days
)

// Webhook is where a service wants its events sent.
type Webhook struct {
	ID        WebhookID
	ServiceID ServiceID
	URL       string
	// Types are those that are sent; all if it is empty.
	Types    []EventType
	Disabled WebhookDisabled
	// Secret signs, and OldSecret as well until OldSecretUntil, which Overlap says is still to come. Both are sealed.
	Secret, OldSecret []byte
	OldSecretUntil    time.Time
	Overlap           bool
	CreatedAt         time.Time
	WebhookStatus
}

// WebhookStatus is how the deliveries go.
type WebhookStatus struct {
	// Failures since the last success; FailingSince is the first of them.
	Failures     int
	FailingSince time.Time
	LastSuccess  time.Time
	LastFailure  time.Time
	// LastError says what the last failure was, without anybody's address.
	LastError string
	// Pending counts the groups and links of which something waits to be delivered.
	Pending int
}

// WebhookStream is what one webhook has yet to acknowledge of one stream: what comes after Rev, up to NewestRev.
type WebhookStream struct {
	WebhookID WebhookID
	EventStream
	ServiceAccountID ID
	Rev, NewestRev   int64
	// Attempts that failed since the last success.
	Attempts int
	// Claim names the right to try now, which ends by itself.
	Claim int64
}
