// Package dpop verifies proofs of possession (DPoP, RFC 9449): that whoever sends a request holds the private key to which an
// access token is bound, or to which one is about to be bound. It also makes and checks the server's nonces, which carry the
// time for cameras without a clock, and reads the public keys that clients present.
//
// It never looks at access tokens beyond their hash, reads no HTTP request by itself, and keeps no keys of clients. It is our own
// code because no kept library fits (design/identity.md §7): this is the whole of RFC 9449 §4.3 on top of golang-jwt's signature
// methods and go-jose's strict JSON and thumbprints.
package dpop
