// Package relay has the tests of copying in the network (SPEC §9): homes, the tunnel and the relay that copies, on wires of their own.
package relay
