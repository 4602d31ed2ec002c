// Package agent ties the parts of the gateway agent together: what sync hears is put into the table, derived, applied to the
// duplicator and to the LAN, and kept by state. It owns the order of start and stop, when the agent stops copying because the
// server was not heard from, and what an operator can see of it.
//
// One goroutine applies (forwarder.go), so nothing here is applied twice or out of order. It never looks at a datagram, and it never
// shows a destination's address: not in the log, not in the status, not in the metrics.
package agent
