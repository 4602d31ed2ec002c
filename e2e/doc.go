// Package e2e holds the tests that use groupcast as its users do: the real programs, over HTTP and on the wire. The worked
// example of SPEC §3 is one test that every part extends.
package e2e
