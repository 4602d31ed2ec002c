// Package table holds the gateway's group information in memory and derives from it the one table that the packet path
// reads. It knows nothing of HTTP and nothing of sockets: a snapshot goes in, an immutable effective table comes out.
package table
