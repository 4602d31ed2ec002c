// Package duplicator copies the datagrams that cameras send to group IPs: one copy for each registered destination.
//
// It owns the sockets of the packet path and the counters. What is copied is decided by package packet from the snapshot of
// package table; this package decides nothing itself, except that some addresses never get media whatever the snapshot says
// (refuse.go). It never queues: what a destination can't take at once is dropped for that destination and counted.
//
// The way of datagrams through the socket backend: listener.go receives a batch into an arena (arena.go) and has package packet judge each
// one by what the kernel says about it (ancillary.go); flight.go puts those of one stream together, so that equal-sized ones pass the
// host's IP stack once per destination; copy.go sends them through the sockets of stream.go.
package duplicator
