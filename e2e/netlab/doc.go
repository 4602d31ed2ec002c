// Package netlab gives tests small networks of their own: network namespaces joined by veth pairs, and never joined to the
// namespace the test was started in, so that nothing a test sends can reach a real network.
//
// Namespaces are anonymous. They exist as long as the test process holds them, so even kill -9 leaves none behind.
// Methods report failures to the test they belong to and are called from the test's own goroutine.
//
// Everything here needs root. Begin a test with Require, and use Isolated when the code under test opens its sockets on
// goroutines of its own: a process has one network namespace per thread, and goroutines move between threads.
package netlab
