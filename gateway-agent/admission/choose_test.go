package admission

import (
	"fmt"
	"testing"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

// Whoever is admitted fits; nobody is shed who would have fitted; and nobody is shed if all fit.
func TestChooseProperties(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		rates := rapid.SliceOfN(rapid.IntRange(0, 1000), 0, 40).Draw(t, "rates")
		limit, turn := rapid.IntRange(1, 20_000).Draw(t, "limit"), rapid.IntRange(0, 100).Draw(t, "turn")
		var all []claim
		total, admitted := 0, 0
		for i, r := range rates {
			all = append(all, claim{fmt.Sprint(i), float64(r)})
			total += r
		}
		shed := choose(all, float64(limit), turn)
		for i, r := range rates {
			if !shed[fmt.Sprint(i)] {
				admitted += r
			}
		}
		require.LessOrEqual(t, admitted, limit)
		for i, r := range rates {
			if shed[fmt.Sprint(i)] {
				require.Greater(t, admitted+r, limit, "there was room for %d", i)
			}
		}
		if total <= limit {
			require.Empty(t, shed)
		}
	})
}

// Those with equal rates are admitted equally often, and from one turn to the next one of them goes and one comes.
func TestTurnsAreFair(t *testing.T) {
	for n := 1; n <= 12; n++ {
		for room := range n + 2 {
			var all []claim
			for i := range n {
				all = append(all, claim{fmt.Sprint(i), 10})
			}
			got := map[string]int{}
			var before map[string]bool
			for turn := range n {
				shed := choose(all, float64(10*room), turn)
				fresh := 0
				for i := range n {
					id := fmt.Sprint(i)
					if !shed[id] {
						got[id]++
					}
					if shed[id] && before != nil && !before[id] {
						fresh++
					}
				}
				require.LessOrEqual(t, fresh, 1)
				before = shed
			}
			for i := range n {
				require.Equal(t, min(room, n), got[fmt.Sprint(i)], "%d of %d fit", room, n)
			}
		}
	}
}
