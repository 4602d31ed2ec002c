package state_test

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/groupcast/groupcast/gateway-agent/state"
)

// What one agent leaves the next one finds once, with its age, in the same boot only.
func TestWhatIsLeftIsFoundOnceAndInThisBoot(t *testing.T) {
	for name, test := range map[string]struct {
		happens func(*world, string)
		found   bool
		age     time.Duration
	}{
		"time passes":           {func(w *world, _ string) { w.pass(time.Minute) }, true, time.Minute},
		"clock set back a bit":  {func(w *world, _ string) { w.pass(time.Hour); w.wall = w.wall.Add(-time.Minute) }, true, time.Hour},
		"clock before the file": {func(w *world, _ string) { w.wall = w.wall.Add(-time.Minute) }, false, 0},
		"reboot":                {func(w *world, _ string) { w.pass(time.Second); w.boot = "boot-2" }, false, 0},
		"no boot id":            {func(w *world, _ string) { w.boot = "" }, false, 0},
		"damaged":               {func(_ *world, file string) { _ = os.Truncate(file, 20) }, false, 0},
	} {
		t.Run(name, func(t *testing.T) {
			w, dir := newWorld(), t.TempDir()
			s := w.open(t, dir)
			require.NoError(t, s.Leave("leases.json", []string{"a", "b"}))
			require.NoError(t, s.Close())
			test.happens(w, filepath.Join(dir, "leases.json"))
			s = w.open(t, dir)
			defer s.Close()
			var left []string
			age, err := s.Find("leases.json", &left)
			if !test.found {
				require.ErrorIs(t, err, state.ErrNone)
			} else {
				require.NoError(t, err)
				assert.Equal(t, test.age, age)
				assert.Equal(t, []string{"a", "b"}, left)
			}
			_, err = s.Find("leases.json", &left)
			require.ErrorIs(t, err, state.ErrNone, "an agent that is killed leaves nothing, also not what it found")
		})
	}
}
