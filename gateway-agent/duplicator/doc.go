// Package duplicator copies the datagrams that cameras send to group IPs: one copy for each registered destination.
//
// It owns the sockets of the packet path and the counters. What is copied is decided by package packet from the snapshot of
// package table; this package decides nothing itself, except that some addresses never get media whatever the snapshot says
// (refuse.go). It never queues: what a destination can't take at once is dropped for that destination and counted.
//
// The way of a datagram through the socket backend: listener.go receives it, ancillary.go reads what the kernel says about it,
// copy.go sends the copies through the sockets of stream.go.
package duplicator
