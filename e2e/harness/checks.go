package harness

import (
	"flag"
	"strconv"
	"sync"
	"testing"

	"pgregory.net/rapid"
)

// checks is the flag of rapid, which has one number for all tests of a process.
var checks = struct {
	sync.Mutex
	flag.Value
}{Value: flag.Lookup("rapid.checks").Value}

// Check has rapid try the property n times, or as often as -rapid.checks on the command line says, whatever its number. Tests may do
// so at the same time.
func Check(t *testing.T, n int, property func(*rapid.T)) {
	t.Helper()
	given := false
	flag.Visit(func(f *flag.Flag) { given = given || f.Name == "rapid.checks" })
	if given {
		rapid.Check(t, property)
		return
	}
	checks.Lock()
	before := checks.String()
	_ = checks.Set(strconv.Itoa(n)) // a number
	// Once it draws, rapid has read its flag.
	read := sync.OnceFunc(func() {
		_ = checks.Set(before)
		checks.Unlock()
	})
	defer read()
	rapid.Check(t, func(rt *rapid.T) { read(); property(rt) })
}
