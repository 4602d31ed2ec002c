package duplicator_test

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/groupcast/groupcast/gateway-agent/duplicator"
)

// What left is remembered for ten minutes, and 1024 of them at most: the newest.
func TestWhatLeftIsForgottenTheOldestFirst(t *testing.T) {
	now := time.Now()
	departed := map[string]time.Time{}
	for i := range 1024 {
		departed[fmt.Sprint(i)] = now.Add(-time.Duration(i) * time.Millisecond)
	}
	if keys := duplicator.Forgettable(departed, now); len(keys) != 0 {
		t.Errorf("%v are forgotten of as many as are remembered", keys)
	}
	departed["long ago"] = now.Add(-10*time.Minute - time.Millisecond)
	if keys := duplicator.Forgettable(departed, now); !slices.Equal(keys, []string{"long ago"}) {
		t.Errorf("%v are forgotten, of which one left long ago", keys)
	}
	departed["one more"], departed["another"] = now, now
	keys := duplicator.Forgettable(departed, now)
	slices.Sort(keys)
	if !slices.Equal(keys, []string{"1022", "1023", "long ago"}) {
		t.Errorf("%v are forgotten, of which two are too many", keys)
	}
}
