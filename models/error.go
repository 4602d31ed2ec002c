package models

import "fmt"

// Code names a reason why something was refused. It is the last part of a problem's type URI and never changes its meaning.
type Code string

// The codes. What each means for a caller stands in docs/problems; how it maps to a protocol is the edge's business.
const (
	CodeBadRequest           Code = "bad-request"            // the request can't be read: JSON, parameters, members
	CodeUnauthenticated      Code = "unauthenticated"        // no token, or one that is not valid
	CodeForbidden            Code = "forbidden"              // the caller may not do this at all
	CodeConfirmFirst         Code = "confirm-first"          // the user has to type the password again before this
	CodeCrossSite            Code = "cross-site"             // a page of another site sent this with the user's cookie
	CodeNotEmpty             Code = "not-empty"              // it still holds what has to be removed first
	CodeContradictsToken     Code = "contradicts-token"      // the body names somebody the token does not
	CodeNotFound             Code = "not-found"              // missing, or not the caller's: the two can't be told apart
	CodeUnknownRoute         Code = "unknown-route"          // no operation has this path
	CodeMethodNotAllowed     Code = "method-not-allowed"     // the path has no such method
	CodeTooLarge             Code = "too-large"              // the body is larger than the service reads
	CodeUnsupportedMedia     Code = "unsupported-media"      // the body is not application/json
	CodeNoUsableAddress      Code = "no-usable-address"      // no address that copies could go to or come from
	CodeBadAddress           Code = "bad-address"            // an address that may not be used here
	CodeAmbiguousGroup       Code = "ambiguous-group"        // several premises have a group of that name
	CodeGroupIPMismatch      Code = "group-ip-mismatch"      // the group of that name has another group IP
	CodeGroupIPTaken         Code = "group-ip-taken"         // the group IP asked for is allocated or in quarantine
	CodeWrongLAN             Code = "wrong-lan"              // the source's address is in no gateway's LAN
	CodeNoGateway            Code = "no-gateway"             // the premises has no gateway that declared its LAN
	CodePoolExhausted        Code = "pool-exhausted"         // every group IP of the range is allocated or in quarantine
	CodeRangeConflict        Code = "range-conflict"         // the declared range overlaps another or has groups outside it
	CodeBadRange             Code = "bad-range"              // the declared range is not usable
	CodeBadURL               Code = "bad-url"                // a URL that may not be called
	CodeAlreadyExists        Code = "already-exists"         // an object with that id or name exists
	CodeIdempotencyKeyReused Code = "idempotency-key-reused" // the key came with another request before
	CodeQuotaExceeded        Code = "quota-exceeded"         // one more than the account, premises or group may have
	CodeRateLimited          Code = "rate-limited"           // too many requests of this kind from there
	CodeOverloaded           Code = "overloaded"             // too many callers wait
	CodeUnavailable          Code = "unavailable"            // the database can't be reached, or the service is stopping
	CodeInternal             Code = "internal"               // a fault of ours
)

// The codes of the OAuth endpoints. Each is the error code of its RFC with - for _ (RFC 6749 §5.2, RFC 7591 §3.2.2, RFC 8628 §3.5, RFC 9449
// §5).
const (
	CodeInvalidClient         Code = "invalid-client"          // the client's own credential is wrong, or it is gone
	CodeInvalidGrant          Code = "invalid-grant"           // the ticket, code or refresh token has ended, was used, or is another's
	CodeUnauthorizedClient    Code = "unauthorized-client"     // this client may not use this grant
	CodeUnsupportedGrant      Code = "unsupported-grant-type"  // there is no such grant
	CodeInvalidScope          Code = "invalid-scope"           // more than the client may have
	CodeInvalidClientMetadata Code = "invalid-client-metadata" // what a device says of itself can't be taken, above all its key
	CodeInvalidDPoPProof      Code = "invalid-dpop-proof"      // the proof of possession is missing or wrong
	CodeUseDPoPNonce          Code = "use-dpop-nonce"          // the proof needs the nonce of this answer
	CodeAuthorizationPending  Code = "authorization-pending"   // nobody has decided yet
	CodeSlowDown              Code = "slow-down"               // the client polls too often
	CodeAccessDenied          Code = "access-denied"           // the account holder refused
	CodeExpiredToken          Code = "expired-token"           // the device code was not approved in time
)

// Error is a refusal with its reason. Detail is a sentence for the caller that says what to do; it never carries somebody
// else's data. Fields become members of the problem document.
type Error struct {
	Code   Code
	Detail string
	Fields map[string]any
	// Cause is for the log only.
	Cause error
}

// Errorf makes an Error with a formatted detail.
func Errorf(code Code, format string, args ...any) *Error {
	return &Error{Code: code, Detail: fmt.Sprintf(format, args...)}
}

// With adds a member to the problem document and returns the error.
func (e *Error) With(key string, value any) *Error {
	if e.Fields == nil {
		e.Fields = map[string]any{}
	}
	e.Fields[key] = value
	return e
}

// Because records the cause, for the log, and returns the error.
func (e *Error) Because(err error) *Error {
	e.Cause = err
	return e
}

func (e *Error) Error() string {
	if e.Cause != nil {
		return fmt.Sprintf("%s: %s: %v", e.Code, e.Detail, e.Cause)
	}
	return fmt.Sprintf("%s: %s", e.Code, e.Detail)
}

// Unwrap gives the cause.
func (e *Error) Unwrap() error { return e.Cause }

// NotFound is the one answer for what is missing and for what belongs to somebody else (SPEC §8).
func NotFound() *Error {
	return Errorf(CodeNotFound, "There is no such object, or it is not yours. Check the id, the group name and the group IP.")
}
