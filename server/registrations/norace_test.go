//go:build !race

package registrations_test

// raced tells whether the race detector is at work.
const raced = false
