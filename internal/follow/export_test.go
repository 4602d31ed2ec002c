package follow

import "time"

// SetBeginning has streams given up sooner.
func SetBeginning(d time.Duration) (restore func()) {
	before := beginning
	beginning = d
	return func() { beginning = before }
}
