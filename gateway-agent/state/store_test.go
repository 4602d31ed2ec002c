package state_test

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/groupcast/groupcast/gateway-agent/state"
	"github.com/groupcast/groupcast/models"
)

const (
	gateway models.ID = 812345678901234567
	server            = "https://groupcast.example"
)

var information = json.RawMessage(`{"groups":[{"groupName":"a <b> & c","address":"96.114.14.140"}]}`)

// world is a host whose clocks the test moves.
type world struct {
	wall time.Time
	boot string
	up   time.Duration
}

func newWorld() *world {
	return &world{wall: time.Date(2026, 11, 21, 8, 0, 0, 0, time.UTC), boot: "boot-1", up: time.Hour}
}

func (w *world) pass(d time.Duration) { w.wall, w.up = w.wall.Add(d), w.up+d }

func (w *world) open(t *testing.T, dir string) *state.Store {
	t.Helper()
	s, err := state.Open(dir, gateway)
	require.NoError(t, err)
	s.SetClock(func() time.Time { return w.wall }, w.boot, func() time.Duration { return w.up })
	return s
}

func TestARestartFindsWhatWasKept(t *testing.T) {
	w, dir := newWorld(), filepath.Join(t.TempDir(), "new", "state")
	s := w.open(t, dir)
	_, err := s.Load(server)
	require.ErrorIs(t, err, state.ErrNone)
	require.NoError(t, s.Save(server, "e1.7", information))
	require.NoError(t, s.Save(server, "e1.8", information))
	require.NoError(t, s.Close())

	w.pass(100 * time.Second)
	s = w.open(t, dir)
	defer s.Close()
	got, err := s.Load(server)
	require.NoError(t, err)
	assert.Equal(t, state.Snapshot{Cursor: "e1.8", Information: information, Age: 100 * time.Second}, got)

	entries, err := os.ReadDir(dir)
	require.NoError(t, err)
	for _, e := range entries {
		info, err := e.Info()
		require.NoError(t, err)
		assert.Equal(t, os.FileMode(0o600), info.Mode().Perm(), e.Name())
	}
	info, err := os.Stat(dir)
	require.NoError(t, err)
	assert.Equal(t, os.FileMode(0o700), info.Mode().Perm())
}

func TestHoursOfNothingNewKeepItFresh(t *testing.T) {
	w, dir := newWorld(), t.TempDir()
	s := w.open(t, dir)
	require.NoError(t, s.Save(server, "e1.7", information))
	for range 600 {
		w.pass(30 * time.Second)
		require.NoError(t, s.Confirm("e1.7"))
	}
	// Killed, not closed: what is in the files is all there is.
	copied := t.TempDir()
	require.NoError(t, os.CopyFS(copied, os.DirFS(dir)))
	w.pass(10 * time.Second)
	restarted := w.open(t, copied)
	got, err := restarted.Load(server)
	require.NoError(t, err)
	assert.Equal(t, 10*time.Second, got.Age)
	require.NoError(t, restarted.Close())
	require.NoError(t, s.Close())
}

func TestConfirmationsAreWrittenAtMostEveryFewSeconds(t *testing.T) {
	w, dir := newWorld(), t.TempDir()
	s := w.open(t, dir)
	require.NoError(t, s.Save(server, "e1.7", information))
	contents := map[string]bool{}
	for range 100 {
		w.pass(100 * time.Millisecond)
		require.NoError(t, s.Confirm("e1.7"))
		if b, err := os.ReadFile(filepath.Join(dir, "confirmed.json")); err == nil {
			contents[string(b)] = true
		}
	}
	assert.Len(t, contents, 2, "in ten seconds")
	w.pass(time.Second)
	require.NoError(t, s.Confirm("e1.7"))
	require.NoError(t, s.Close())
	s = w.open(t, dir)
	defer s.Close()
	got, err := s.Load(server)
	require.NoError(t, err)
	assert.Zero(t, got.Age, "a clean stop writes the last one")
}

func TestWhatWasNotKeptIsNotConfirmed(t *testing.T) {
	w, dir := newWorld(), t.TempDir()
	s := w.open(t, dir)
	require.NoError(t, s.Save(server, "e1.7", information))
	w.pass(time.Minute)
	require.NoError(t, s.Confirm("e1.8")) // applied, but the disk was full
	require.NoError(t, s.Close())
	s = w.open(t, dir)
	defer s.Close()
	got, err := s.Load(server)
	require.NoError(t, err)
	assert.Equal(t, time.Minute, got.Age)
}

func TestTheAgeIsNeverTooLow(t *testing.T) {
	for name, test := range map[string]struct {
		happens func(*world)
		want    time.Duration
	}{
		"time passes":                  {func(w *world) { w.pass(time.Minute) }, time.Minute},
		"clock set back, same boot":    {func(w *world) { w.pass(time.Hour); w.wall = w.wall.Add(-50 * time.Minute) }, time.Hour},
		"clock set forward, same boot": {func(w *world) { w.pass(time.Minute); w.wall = w.wall.Add(time.Hour) }, time.Hour + time.Minute},
		"clock before the file":        {func(w *world) { w.pass(time.Minute); w.wall = w.wall.Add(-time.Hour) }, state.Unknown},
		"reboot":                       {func(w *world) { w.pass(time.Hour); w.boot, w.up = "boot-2", time.Minute }, time.Hour},
		"reboot without a clock":       {func(w *world) { w.boot, w.up, w.wall = "boot-2", time.Minute, time.Unix(60, 0) }, state.Unknown},
		"no boot id":                   {func(w *world) { w.pass(time.Hour); w.boot = "" }, time.Hour},
	} {
		t.Run(name, func(t *testing.T) {
			w, dir := newWorld(), t.TempDir()
			s := w.open(t, dir)
			require.NoError(t, s.Save(server, "e1.7", information))
			require.NoError(t, s.Close())
			test.happens(w)
			s = w.open(t, dir)
			defer s.Close()
			got, err := s.Load(server)
			require.NoError(t, err)
			assert.Equal(t, test.want, got.Age)
		})
	}
}

func TestWhatIsDamagedOrSomebodyElsesIsNotUsed(t *testing.T) {
	edit := func(old, replacement string) func(*testing.T, string) {
		return func(t *testing.T, file string) {
			b, err := os.ReadFile(file)
			require.NoError(t, err)
			require.Contains(t, string(b), old)
			require.NoError(t, os.WriteFile(file, []byte(strings.Replace(string(b), old, replacement, 1)), 0o600))
		}
	}
	for name, test := range map[string]struct {
		spoil func(*testing.T, string)
		want  string
	}{
		"one digit of an address": {edit("96.114.14.140", "96.114.14.141"), "checksum"},
		"cut off":                 {func(t *testing.T, f string) { require.NoError(t, os.Truncate(f, 100)) }, "damaged"},
		"empty":                   {func(t *testing.T, f string) { require.NoError(t, os.Truncate(f, 0)) }, "damaged"},
		"another gateway":         {edit("812345678901234567", "812345678901234568"), "belongs to gateway"},
		"another server":          {edit("groupcast.example", "elsewhere.example"), "another server"},
		"another format":          {edit(`"format":1`, `"format":2`), "format 2"},
		"no content":              {edit(`"information"`, `"x"`), "checksum"},
	} {
		t.Run(name, func(t *testing.T) {
			w, dir := newWorld(), t.TempDir()
			s := w.open(t, dir)
			require.NoError(t, s.Save(server, "e1.7", information))
			test.spoil(t, filepath.Join(dir, "snapshot.json"))
			_, err := s.Load(server)
			require.ErrorContains(t, err, test.want)
			assert.NotErrorIs(t, err, state.ErrNone)
			assert.NotContains(t, err.Error(), "96.114")

			require.NoError(t, s.Save(server, "e1.8", information), "the next one takes its place")
			got, err := s.Load(server)
			require.NoError(t, err)
			assert.Equal(t, "e1.8", got.Cursor)
			require.NoError(t, s.Close())
		})
	}
}

func TestADamagedConfirmationOnlyMakesItOlder(t *testing.T) {
	w, dir := newWorld(), t.TempDir()
	s := w.open(t, dir)
	require.NoError(t, s.Save(server, "e1.7", information))
	w.pass(time.Minute)
	require.NoError(t, s.Confirm("e1.7"))
	require.NoError(t, os.WriteFile(filepath.Join(dir, "confirmed.json"), nil, 0o600))
	got, err := s.Load(server)
	require.NoError(t, err)
	assert.Equal(t, time.Minute, got.Age)
	require.NoError(t, s.Close())
}

func TestACrashWhileWritingLeavesTheOldOne(t *testing.T) {
	w, dir := newWorld(), t.TempDir()
	s := w.open(t, dir)
	require.NoError(t, s.Save(server, "e1.7", information))
	require.NoError(t, os.WriteFile(filepath.Join(dir, "snapshot.json.new"), []byte(`{"format":1,"gate`), 0o600))
	got, err := s.Load(server)
	require.NoError(t, err)
	assert.Equal(t, "e1.7", got.Cursor)
	require.NoError(t, s.Save(server, "e1.8", information))
	require.NoError(t, s.Close())
}

func TestWhatCannotBeWrittenIsAnError(t *testing.T) {
	w, dir := newWorld(), filepath.Join(t.TempDir(), "state")
	s := w.open(t, dir)
	require.NoError(t, s.Save(server, "e1.7", information))
	require.NoError(t, os.RemoveAll(dir))
	assert.ErrorContains(t, s.Save(server, "e1.8", information), "keep the group information")
	assert.Error(t, s.Save(server, "e1.8", json.RawMessage(`{`)))
	_ = s.Close()
}

// Nothing is kept rather than something older.
func TestWhatIsOlderIsGoneWhenANewerOneCannotBeWritten(t *testing.T) {
	w, dir := newWorld(), t.TempDir()
	s := w.open(t, dir)
	require.NoError(t, s.Save(server, "e1.7", information))
	require.NoError(t, s.Flush())
	obstacle := filepath.Join(dir, "snapshot.json.new")
	require.NoError(t, os.Mkdir(obstacle, 0o700))
	require.Error(t, s.Save(server, "e1.8", information))
	require.Error(t, s.Save(server, "e1.8", information))
	require.NoError(t, s.Confirm("e1.7"))
	_, err := s.Load(server)
	require.ErrorIs(t, err, state.ErrNone)
	require.Error(t, s.Flush())
	require.NoError(t, os.Remove(obstacle))
	require.NoError(t, s.Save(server, "e1.8", information))
	got, err := s.Load(server)
	require.NoError(t, err)
	assert.Equal(t, "e1.8", got.Cursor)
	require.NoError(t, s.Close())
}

func TestOneAgentPerDirectory(t *testing.T) {
	dir := t.TempDir()
	first, err := state.Open(dir, gateway)
	require.NoError(t, err)
	_, err = state.Open(dir, gateway)
	require.ErrorContains(t, err, "another gateway-agent (process ")
	assert.ErrorContains(t, err, dir)
	require.NoError(t, first.Close())
	second, err := state.Open(dir, gateway)
	require.NoError(t, err)
	require.NoError(t, second.Close())
}

func TestADirectoryForEverybodyIsRefused(t *testing.T) {
	dir := t.TempDir()
	require.NoError(t, os.Chmod(dir, 0o777))
	_, err := state.Open(dir, gateway)
	require.ErrorContains(t, err, "state-dir: everybody can write")
	_, err = state.Open(filepath.Join(os.DevNull, "x"), gateway)
	assert.ErrorContains(t, err, "state-dir: ")
}
