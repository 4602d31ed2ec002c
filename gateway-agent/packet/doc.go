// Package packet is the pure reference of what happens to one datagram of a camera (SPEC §9): parse and validate it, find the
// option, decide, and write a copy. It opens no socket, keeps no state and reads no clock. Every backend of the duplicator uses
// it or is held against it.
package packet
