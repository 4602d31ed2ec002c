// Package clientauth is the client's half of SPEC §8: it holds a device's or service's credential, gets access tokens with it and
// puts them on requests.
//
// There are three kinds of credential, each in a file for its owner's eyes only:
//
//   - a device or gateway: a key of its own, made here, and what the server answered to Enrolment.UseTicket (RFC 7591) or to
//     Enrolment.AskApproval (a code that the account holder approves, RFC 8628). Every request carries a proof of the key (DPoP, RFC 9449);
//   - a service: a secret, or a key whose public half the operator registered (private_key_jwt, RFC 7523);
//   - a bare access token, for a device that can't do either. The file is read at each call, so a new token is in use at once.
//
// Open reads any of them; Transport makes the http.RoundTripper to give to the generated client. Secrets leave this package in requests
// to the credential's own server only: never in a log or an error, never to another host, and over plain HTTP only where the caller
// says so. It is our own code rather than golang.org/x/oauth2 because that has neither DPoP nor private_key_jwt. Nothing of the
// server is imported, so that the programs that use it stay small.
package clientauth
