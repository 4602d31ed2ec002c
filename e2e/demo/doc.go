// Demo shows the main job on one machine's loopback, with the real programs and real video: a camera sends one stream to a group
// IP, three receivers join one after another, one is taken away again, and at the end the books are compared (package ledger).
// It is what "make demo" runs.
//
// It speaks to the service only as anybody can: through groupcastctl, and through the public contract for the live table. The
// addresses are drawn at random from 127.0.0.0/8, so that several demos can run at once. It needs no privilege; as root the
// camera sets the IP option, otherwise the gateway triggers on the registered source.
//
// Everything lies in one temporary directory that is removed at the end. A demo that runs for long writes about 110 MB of
// datagram logs an hour, and records, and so counts frames of, the first three minutes of each receiver only.
package main
