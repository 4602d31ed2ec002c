package backup_test

import (
	"database/sql"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/groupcast/groupcast/e2e/harness"
	"github.com/groupcast/groupcast/models"
	"github.com/groupcast/groupcast/server/backup"
	"github.com/groupcast/groupcast/server/registrations"
	"github.com/groupcast/groupcast/server/servertest"
	"github.com/groupcast/groupcast/server/store/storetest"
)

// TestNeverTwoGroupsInTheDatabase runs random interleavings of groups beginning and ending, time passing, a gateway that polls or is
// silent, backups and restores, on real databases. However they fall, no address in one generation was ever two groups', and none
// came to another group before both the cooldown and the acknowledgement.
func TestNeverTwoGroupsInTheDatabase(t *testing.T) {
	storetest.Each(t, func(t *testing.T, db *storetest.DB) {
		harness.Check(t, 40, func(rt *rapid.T) { (&life{t: t, db: db}).run(rt) })
	})
}

// life is one interleaving, and all that cameras and the gateway know: that survives every restore.
type life struct {
	t  *testing.T
	db *storetest.DB
	h  *servertest.Home

	camera  models.Principal
	clock   time.Duration
	live    map[string]registrations.Answer
	lives   map[holder]held
	stale   map[netip.Addr]stale
	polled  time.Duration
	has     models.GroupInformation // of the gateway
	acked   models.GroupInformation
	backups []copied
}

// holder is an address in one generation; held is who had it.
type holder struct {
	ip         netip.Addr
	generation int64
}

type held struct {
	name   string
	answer registrations.Answer
}

// stale is a camera that may still send to an address that its group had.
type stale struct {
	name  string
	since time.Duration
	gone  models.GroupInformation // the first that is without the group
}

type copied struct {
	file string
	at   time.Duration
}

func (l *life) run(rt *rapid.T) {
	l.h = servertest.On(l.db, l.db.Store).NewAccount(l.t, true)
	l.h.Declare(l.t, "172.168.0.233-172.168.0.235")
	l.camera = l.h.Device(l.t, models.DeviceCamera, "camera")
	l.live, l.lives, l.stale = map[string]registrations.Answer{}, map[holder]held{}, map[netip.Addr]stale{}
	l.polled = -time.Hour
	actions := map[string]func(*rapid.T){"begin": l.begin, "end": l.end, "poll": l.poll, "wait": l.wait}
	if l.db.Dialect() == "sqlite" {
		actions["back up"], actions["restore"] = l.backUp, l.restore
	} else {
		actions["rotate"] = l.rotate
	}
	rt.Repeat(actions)
	l.closeRestored()
}

func (l *life) begin(rt *rapid.T) {
	name := fmt.Sprint("g", rapid.IntRange(0, 4).Draw(rt, "name"))
	if _, is := l.live[name]; is {
		rt.Skip("it lives")
	}
	day := 86400
	request := servertest.Source(l.camera, "172.168.0.5", name)
	request.TTL = &day
	a, err := l.h.Registrations.Join(ctx, l.camera, request)
	if refusal, ok := errors.AsType[*models.Error](err); ok && (refusal.Code == models.CodePoolExhausted || refusal.Code == models.CodeUnavailable) {
		return // the latter if the address was handed out a moment ago in a life that has just begun
	}
	require.NoError(rt, err)
	for other, b := range l.live {
		require.NotEqual(rt, b.GroupIP, a.GroupIP, "%s and %s live", name, other)
	}
	k := holder{a.GroupIP, a.Generation}
	require.Empty(rt, l.lives[k].name, "%v was another's", k)
	if was, ok := l.stale[a.GroupIP]; ok && was.name != name {
		require.GreaterOrEqual(rt, l.clock-was.since, servertest.Cooldown-time.Second, "%s had %s", was.name, a.GroupIP)
		if l.clock-l.polled < servertest.MaxStale-time.Second {
			now := l.h.Information(l.t)
			require.Equal(rt, now.Epoch, l.acked.Epoch, "the gateway lives and has acknowledged nothing of this life")
			if was.gone.Epoch == now.Epoch {
				require.GreaterOrEqual(rt, l.acked.Revision, was.gone.Revision, "the gateway may still copy %s for %s", a.GroupIP, was.name)
			}
		}
	}
	l.lives[k], l.live[name] = held{name, a}, a
}

func (l *life) end(rt *rapid.T) {
	if len(l.live) == 0 {
		rt.Skip("no group lives")
	}
	name := rapid.SampledFrom(slices.Sorted(maps.Keys(l.live))).Draw(rt, "name")
	a := l.live[name]
	l.h.Leave(l.t, l.camera, a.RegistrationID)
	delete(l.live, name)
	l.stale[a.GroupIP] = stale{name, l.clock, l.h.Information(l.t)}
}

func (l *life) poll(rt *rapid.T) {
	now := l.h.Information(l.t)
	poll := models.Poll{GatewayID: now.GatewayID, Epoch: now.Epoch}
	if l.has.Epoch == now.Epoch {
		poll.Revision, l.acked = l.has.Revision, l.has
	}
	l.polled = l.clock
	require.NoError(rt, l.h.DB.RecordPolls(ctx, []models.Poll{poll}))
	if rapid.Bool().Draw(rt, "the answer arrives") {
		l.has = now
	}
}

func (l *life) wait(rt *rapid.T) {
	d := time.Duration(rapid.SampledFrom([]int{1, 300, 961}).Draw(rt, "seconds")) * time.Second
	l.clock += d
	l.h.DB.Advance(l.t, d)
}

func (l *life) backUp(*rapid.T) {
	look(l.t, l.h)
	file := filepath.Join(l.t.TempDir(), "backup")
	require.NoError(l.t, backup.Make(ctx, l.h.DB.Options.DataDir, file))
	l.backups = append(l.backups, copied{file, l.clock})
}

func (l *life) restore(rt *rapid.T) {
	if len(l.backups) == 0 {
		rt.Skip("no backup")
	}
	b := rapid.SampledFrom(l.backups).Draw(rt, "backup")
	// A real clock goes on by itself; that of tests is in the database.
	file := filepath.Join(l.t.TempDir(), "moved")
	content, err := os.ReadFile(b.file)
	require.NoError(rt, err)
	require.NoError(rt, os.WriteFile(file, content, 0o600))
	raw, err := sql.Open("sqlite3", file)
	require.NoError(rt, err)
	_, err = raw.Exec("UPDATE installation SET clock_offset_ms = clock_offset_ms + ?", (l.clock - b.at).Milliseconds())
	require.NoError(rt, errors.Join(err, raw.Close()))
	dir := l.t.TempDir()
	require.NoError(rt, backup.Restore(ctx, backup.Options{DataDir: dir, File: file, Log: quiet}))
	l.closeRestored()
	l.h = again(l.h, storetest.SQLiteAt(l.t, dir))
	l.reborn(rt, b.at)
}

func (l *life) rotate(rt *rapid.T) {
	_, err := backup.NewRotator(l.h.DB.Store, quiet).Rotate(ctx)
	require.NoError(rt, err)
	l.reborn(rt, l.clock)
}

// reborn takes over what a new life knows: whoever isn't in it is a stale camera. No group of it may have the address of one.
func (l *life) reborn(rt *rapid.T, known time.Duration) {
	now := l.h.Information(l.t)
	before := l.live
	l.live = map[string]registrations.Answer{}
	for _, g := range now.Groups {
		was := l.lives[holder{g.IP, g.Generation}]
		require.Equal(rt, g.Name, was.name)
		if s, ok := l.stale[g.IP]; ok && s.since > known {
			require.Equal(rt, g.Name, s.name, "%s was another's since the backup", g.IP)
		}
		for other, a := range before {
			require.False(rt, a.GroupIP == g.IP && other != g.Name, "%s is %s's since the backup", g.IP, other)
		}
		l.live[g.Name] = was.answer
	}
	for name, a := range before {
		if l.live[name].GroupIP != a.GroupIP {
			l.stale[a.GroupIP] = stale{name, l.clock, now}
		}
	}
}

// closeRestored closes the database if it is one that was restored.
func (l *life) closeRestored() {
	if l.h.DB != l.db {
		require.NoError(l.t, l.h.DB.Close())
	}
}
