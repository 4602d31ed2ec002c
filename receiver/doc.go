// Package receiver is what a program needs to be a destination of a group: Join registers it, renews its lease, keeps the consent that gateways ask for
// (SPEC §10), follows what happens to the group, hands on each datagram that arrives and counts what is missing. It goes on while the service is away, and
// when the gateway or the group come back. See the example of Join.
//
// A receiver that died and starts again with the same Config takes up the same registration with the same secret, and gets its copies as soon as it has
// registered: nobody has to do anything.
//
// A program that knows nothing of consent and has to have the media port itself gets its copies with Config.Beside. One that registers by itself
// needs Consent only; the two messages on the wire are in package consentcheck.
package receiver
