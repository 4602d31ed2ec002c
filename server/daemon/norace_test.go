//go:build !race

package daemon_test

// raced tells whether the race detector is at work.
const raced = false
