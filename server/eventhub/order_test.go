package eventhub_test

import (
	"testing"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/groupcast/groupcast/server/eventhub"
)

// TestDrillHintsInAnyOrder: hints come twice, late, out of order or not at all. A listener that applies what is newer only ever goes forward, is
// woken by every hint of something newer than it has, by no other, and has the newest of which any hint came.
func TestDrillHintsInAnyOrder(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		h := eventhub.New()
		w := h.Watch(group)
		defer w.Close()
		var truth, newest, seen int64
		next := w.Next(seen)
		for _, hinted := range rapid.SliceOfN(rapid.Int64Range(1, 20), 0, 60).Draw(t, "hints") {
			truth = max(truth, hinted) // a hint follows its commit
			woken := closed(next)
			h.Wake(at(group, hinted))
			require.Equal(t, woken || hinted > newest, closed(next), "the hint of %d, when %d was heard of", hinted, newest)
			newest = max(newest, hinted)
			if !closed(next) || rapid.Bool().Draw(t, "is slow") {
				continue
			}
			require.GreaterOrEqual(t, truth, seen, "never back")
			seen = truth
			next = w.Next(seen)
			require.False(t, closed(next), "nothing is newer than the truth")
		}
		if newest > seen {
			require.True(t, closed(w.Next(seen)), "whoever is behind needs not wait")
		}
	})
}
