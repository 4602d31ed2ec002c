//go:build race

package registrations_test

const raced = true
