// Package scripted is a registration service whose answers a test decides: the faults that the real one doesn't have on
// demand, in front of the generated strict server of the contract, so that routes, parameters and answers are those of the
// contract. It serves the two operations of a gateway and no other. Tests of what works use the real groupcastd.
package scripted
