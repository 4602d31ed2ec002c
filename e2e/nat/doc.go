// Package nat has the tests of consent across NATs: the real service, agent and receiver kit around a small internet of network namespaces, with the kernel's NATs
// in between. They mostly wait, for consents that end by the clock.
package nat
