// Package camera is a camera's part of groupcast in software: it registers as a source, sends one stream to the group IP with
// the IP option that asks for copies, follows when the group gets another address, and leaves.
//
// The way of a datagram: it comes from a relayed UDP stream (relay.go) or is packed from a transport stream (file.go), and
// leaves through the one socket of sender.go, which also writes the send log; or, in a premises without a gateway, through a tunnel to a relay (tunnel.go).
package camera
