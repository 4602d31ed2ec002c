package clientauth

import (
	"errors"
	"fmt"
	"strings"
)

// ErrRefused is matched by errors that asking again won't mend: a person has to do what the error says.
var ErrRefused = errors.New("refused")

// Error is a refusal of the server.
type Error struct {
	// Doing is what was asked for.
	Doing string
	// Status is the HTTP status.
	Status int
	// Code is the error code of RFC 6749 §5.2, RFC 7591 §3.2.2, RFC 8628 §3.5 or RFC 9449 §5; empty if the answer had none.
	Code string
	// Description is the server's explanation, cut and free of control characters.
	Description string
}

// advice says what a person can do about a code.
var advice = map[string]string{
	"invalid_client":          "the server does not accept this credential any more: the device was removed, its key was replaced, or the service's secret was changed. Enrol anew, or get a new secret",
	"invalid_grant":           "what was given has ended, was used or was revoked. Enrol anew; a ticket is good once, for 15 minutes",
	"unauthorized_client":     "this client may not do that. Ask the operator which kind of client it is",
	"invalid_scope":           "a scope that was asked for is not granted to this client. Ask for less",
	"access_denied":           "the account holder refused. Begin again if that was a mistake",
	"expired_token":           "the code was not approved in time. Begin again",
	"invalid_dpop_proof":      "the server does not accept the proof of the key. Check that the server's URL is its public URL, letter by letter",
	"use_dpop_nonce":          "the server keeps asking for another nonce. Check the clocks of its replicas",
	"invalid_client_metadata": "the server does not accept what the device says of itself. Check its key, name, model and serial",
	"unsupported_grant_type":  "the server does not know this way of getting a token. Use programs of the same release",
	"invalid_request":         "the server did not understand the request. Use programs of the same release",
	"temporarily_unavailable": "the server is busy. Try again later",
}

func (e *Error) Error() string {
	text, ok := advice[e.Code]
	switch {
	case ok:
	case e.Status/100 == 3:
		text = "the server's URL redirects elsewhere. Use its public URL"
	default:
		text = "the server refused"
	}
	var more strings.Builder
	if e.Code != "" {
		more.WriteString(", " + e.Code)
	}
	if e.Description != "" {
		more.WriteString(": " + e.Description)
	}
	return fmt.Sprintf("%s: %s (status %d%s)", e.Doing, text, e.Status, more.String())
}

// Is makes ErrRefused match what asking again won't mend.
func (e *Error) Is(target error) bool {
	switch e.Code {
	case "use_dpop_nonce", "temporarily_unavailable", "authorization_pending", "slow_down":
		return false
	}
	return target == ErrRefused && e.Status >= 400 && e.Status < 500 && e.Status != 408 && e.Status != 429
}

// clean makes a server's text fit for an error message.
func clean(s string) string {
	s = strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f || r == 0xfffd {
			return -1
		}
		return r
	}, s)
	if r := []rune(s); len(r) > 300 {
		s = string(r[:300]) + "…"
	}
	return s
}
