// Package eventstreams lets members, users and services hear events over a connection that they keep open: Server-Sent Events and long polls
// both are a [Stream] (SPEC §7, ADR 28). It decides who hears what, and asks that of the database at each delivery.
//
// A stream pulls: it is woken by a hint, reads what comes after its place, and is asked for more only when its client has taken that. So a
// client that stalls holds one batch and delays nobody. The package reads no request and writes no answer.
package eventstreams
