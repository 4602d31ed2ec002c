package backup_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/groupcast/groupcast/models"
	"github.com/groupcast/groupcast/server/backup"
	"github.com/groupcast/groupcast/server/expiry"
	"github.com/groupcast/groupcast/server/servertest"
	"github.com/groupcast/groupcast/server/store"
	"github.com/groupcast/groupcast/server/store/storetest"
)

var (
	ctx   = context.Background()
	quiet = slog.New(slog.DiscardHandler)
)

// restored restores a backup into a directory of its own and opens it.
func restored(t *testing.T, file string) *storetest.DB {
	t.Helper()
	dir := t.TempDir()
	require.NoError(t, backup.Restore(ctx, backup.Options{DataDir: dir, File: file, Log: quiet}))
	return storetest.SQLiteAt(t, dir)
}

// again is a home on another database.
func again(h *servertest.Home, db *storetest.DB) *servertest.Home {
	return &servertest.Home{Services: servertest.On(db, db.Store), Account: h.Account, Premises: h.Premises, Gateway: h.Gateway}
}

// look records that leases are looked at, as a running service does.
func look(t *testing.T, h *servertest.Home) {
	t.Helper()
	_, err := expiry.New(h.DB.Store, quiet).Look(ctx)
	require.NoError(t, err)
}

// newest is the newest event of the home's first group.
func newest(t *testing.T, h *servertest.Home) models.Event {
	t.Helper()
	group := h.DB.Texts(t, "SELECT group_id FROM events WHERE group_id <> '' ORDER BY id LIMIT 1")
	all, err := h.DB.EventsAfter(ctx, models.EventStream{AccountID: h.Account.ID, GroupID: models.GroupID(group[0])}, 0, 1000)
	require.NoError(t, err)
	return all[len(all)-1]
}

// TestAStaleCameraNeverFeedsAnotherGroup: what the service did after the backup was made is lost, and yet no address that it handed
// out then comes to another group before the cooldown and the gateway's acknowledgement.
func TestAStaleCameraNeverFeedsAnotherGroup(t *testing.T) {
	db := storetest.SQLite(t)
	h := servertest.On(db, db.Store).NewAccount(t, true)
	h.Declare(t, "172.168.0.233-172.168.0.236")
	one, two, three := h.Device(t, models.DeviceCamera, "one"), h.Device(t, models.DeviceCamera, "two"), h.Device(t, models.DeviceCamera, "three")
	kept := h.Join(t, one, servertest.Source(one, "172.168.0.5", "kept"))
	gone := h.Join(t, two, servertest.Source(two, "172.168.0.6", "gone"))
	h.Leave(t, two, gone.RegistrationID)
	look(t, h)
	old := h.Information(t)
	file := filepath.Join(t.TempDir(), "backup")
	require.NoError(t, backup.Make(ctx, db.Options.DataDir, file))
	// The lost time: a group at an address that the backup calls free, and one beyond the range that the backup knows.
	h.Declare(t, "172.168.0.233-172.168.0.240")
	lost := h.Join(t, three, servertest.Source(three, "172.168.0.7", "lost"))
	for range 3 {
		h.Leave(t, one, h.Join(t, one, servertest.Destination(one, "198.51.99.9", "kept")).RegistrationID)
	}
	heard := newest(t, h)

	h = again(h, restored(t, file))
	now := h.Information(t)
	require.NotEqual(t, old.Epoch, now.Epoch)
	require.Len(t, now.Groups, 1, "a group that the backup knows goes on: no other can have its address since")
	require.Equal(t, kept.GroupIP, now.Groups[0].IP)
	told := newest(t, h)
	require.Equal(t, heard.EventStream, told.EventStream)
	require.Equal(t, models.EventGroupChanged, told.Type, "who heard of the lost life hears how the group is")
	require.Greater(t, told.Rev, heard.Rev, "or nobody would apply it")
	require.Zero(t, told.Group.State)
	h.Declare(t, "172.168.0.233-172.168.0.240")
	refused := func(name string) {
		t.Helper()
		r := servertest.Source(two, "172.168.0.6", name)
		_, err := h.Registrations.Join(ctx, two, r)
		servertest.Refused(t, models.CodePoolExhausted, err)
		r.GroupIP = lost.GroupIP
		_, err = h.Registrations.Join(ctx, two, r)
		servertest.Refused(t, models.CodeGroupIPTaken, err)
	}
	refused("other")
	refused("gone") // nor has a group of that name a claim: another may have had the address since
	h.DB.Advance(t, servertest.Cooldown-time.Second)
	poll := h.Information(t)
	require.NoError(t, h.DB.RecordPolls(ctx, []models.Poll{{GatewayID: poll.GatewayID, Epoch: old.Epoch, Revision: 1000}}))
	h.DB.Advance(t, 2*time.Second)
	refused("other") // an acknowledgement of the lost life is none
	h.Acknowledge(t)
	a := h.Join(t, two, servertest.Source(two, "172.168.0.6", "other"))
	require.Greater(t, a.Generation, lost.Generation, "never two groups at one address in one generation")
	require.Greater(t, a.Generation, gone.Generation)
}

// TestAnOldBackupEndsItsGroups: after the cooldown another group may have had the address of a group in the backup.
func TestAnOldBackupEndsItsGroups(t *testing.T) {
	db := storetest.SQLite(t)
	h := servertest.On(db, db.Store).NewHome(t)
	camera := h.Device(t, models.DeviceCamera, "camera")
	was := h.Join(t, camera, servertest.Source(camera, "172.168.0.5", "g"))
	look(t, h)
	db.Outage(t, servertest.Cooldown) // between the backup and its restore
	file := filepath.Join(t.TempDir(), "backup")
	require.NoError(t, backup.Make(ctx, db.Options.DataDir, file))
	h = again(h, restored(t, file))
	require.Empty(t, h.Information(t).Groups)
	require.Zero(t, h.DB.Ints(t, "SELECT count(*) FROM addresses WHERE state <> 'quarantined'")[0])
	_, err := h.Registrations.Join(ctx, camera, servertest.Source(camera, "172.168.0.5", "g"))
	servertest.Refused(t, models.CodePoolExhausted, err)
	h.DB.Advance(t, servertest.Cooldown)
	h.Acknowledge(t)
	require.Greater(t, h.Join(t, camera, servertest.Source(camera, "172.168.0.5", "g")).Generation, was.Generation)
}

// TestRotate is what follows pg_restore, on either database, with the service running and a gateway that polls.
func TestRotate(t *testing.T) {
	storetest.Each(t, func(t *testing.T, db *storetest.DB) {
		h := servertest.On(db, db.Store).NewHome(t)
		camera := h.Device(t, models.DeviceCamera, "camera")
		h.Join(t, camera, servertest.Source(camera, "172.168.0.5", "g"))
		look(t, h)
		h.Acknowledge(t)
		old, heard := h.Information(t), newest(t, h)
		life, err := backup.NewRotator(db.Store, quiet).Rotate(ctx)
		require.NoError(t, err)
		now := h.Information(t)
		require.EqualValues(t, 1, life.Groups)
		require.Equal(t, life.Epoch, now.Epoch)
		require.NotEqual(t, old.Epoch, now.Epoch)
		require.Greater(t, now.Revision, old.Revision)
		require.Empty(t, now.Groups)
		told := newest(t, h)
		require.Equal(t, models.EventGroupEnded, told.Type)
		require.Greater(t, told.Rev, heard.Rev+1)
		require.Empty(t, told.Group.Members)
		_, err = h.Registrations.Join(ctx, camera, servertest.Source(camera, "172.168.0.5", "g"))
		servertest.Refused(t, models.CodePoolExhausted, err)
		db.Advance(t, servertest.MaxStale+59*time.Second)
		h.Acknowledge(t)
		_, err = h.Registrations.Join(ctx, camera, servertest.Source(camera, "172.168.0.5", "g"))
		servertest.Refused(t, models.CodePoolExhausted, err)
		db.Advance(t, time.Second)
		h.Join(t, camera, servertest.Source(camera, "172.168.0.5", "g"))
		again, err := backup.NewRotator(db.Store, quiet).Rotate(ctx)
		require.NoError(t, err)
		require.NotEqual(t, life.Epoch, again.Epoch)
	})
}

// TestNoGenerationIsAheadOfTheClock: a life that is restored later begins at the clock, so it begins beyond this one, however short this
// one was and however often an address changed hands in it.
func TestNoGenerationIsAheadOfTheClock(t *testing.T) {
	storetest.Each(t, func(t *testing.T, db *storetest.DB) {
		h := servertest.On(db, db.Store).NewHome(t)
		camera := h.Device(t, models.DeviceCamera, "camera")
		_, err := backup.NewRotator(db.Store, quiet).Rotate(ctx)
		require.NoError(t, err)
		db.Advance(t, servertest.Cooldown)
		h.Acknowledge(t)
		begun := db.Ints(t, "SELECT max(generation) FROM addresses")[0]
		db.Exec(t, "UPDATE addresses SET generation = generation + 3600") // handed out ever so often
		_, err = h.Registrations.Join(ctx, camera, servertest.Source(camera, "172.168.0.5", "g"))
		servertest.Refused(t, models.CodeUnavailable, err)
		require.Equal(t, 1, mustBe[*models.Error](t, err).Fields["retryAfter"])
		require.Empty(t, h.Information(t).Groups)
		db.Advance(t, time.Hour-servertest.Cooldown-time.Minute)
		_, err = h.Registrations.Join(ctx, camera, servertest.Source(camera, "172.168.0.5", "g"))
		servertest.Refused(t, models.CodeUnavailable, err)
		db.Advance(t, 2*time.Minute)
		h.Acknowledge(t)
		require.Equal(t, begun+3601, h.Join(t, camera, servertest.Source(camera, "172.168.0.5", "g")).Generation)
	})
}

func mustBe[E error](t *testing.T, err error) E {
	t.Helper()
	e, ok := errors.AsType[E](err)
	require.True(t, ok, "%v", err)
	return e
}

func TestBackupsAreWholeAndPrivate(t *testing.T) {
	db := storetest.SQLite(t)
	h := servertest.On(db, db.Store).NewHome(t)
	stop := make(chan struct{})
	done := make(chan error, 1)
	go func() { // somebody writes all the time
		for i := 0; ; i++ {
			select {
			case <-stop:
				done <- nil
				return
			default:
			}
			if _, err := h.Accounts.CreateAccount(ctx, fmt.Sprint("busy ", i)); err != nil {
				done <- err
				return
			}
		}
	}()
	dir := t.TempDir()
	for i := range 5 {
		file := filepath.Join(dir, fmt.Sprint(i))
		require.NoError(t, backup.Make(ctx, db.Options.DataDir, file))
		info, err := os.Stat(file)
		require.NoError(t, err)
		require.EqualValues(t, 0o600, info.Mode().Perm())
		restored(t, file)
	}
	close(stop)
	require.NoError(t, <-done)
	require.ErrorContains(t, backup.Make(ctx, db.Options.DataDir, filepath.Join(dir, "0")), "exists; name a new file")
	require.ErrorContains(t, backup.Make(ctx, t.TempDir(), filepath.Join(dir, "new")), "no database to back up")
	left, err := os.ReadDir(dir)
	require.NoError(t, err)
	require.Len(t, left, 5, "nothing is left behind")
}

func TestWhatIsNotRestored(t *testing.T) {
	db := storetest.SQLite(t)
	servertest.On(db, db.Store).NewHome(t)
	good := filepath.Join(t.TempDir(), "good")
	require.NoError(t, backup.Make(ctx, db.Options.DataDir, good))
	bytes, err := os.ReadFile(good)
	require.NoError(t, err)
	damaged := append([]byte{}, bytes...)
	for i := 4096 * 3; i < len(damaged); i++ {
		damaged[i] ^= 0x5a
	}
	write := func(name string, b []byte) string {
		file := filepath.Join(t.TempDir(), name)
		require.NoError(t, os.WriteFile(file, b, 0o600))
		return file
	}
	for _, c := range []struct{ file, want string }{
		{filepath.Join(t.TempDir(), "missing"), "no such file"},
		{write("text", []byte(strings.Repeat("this is not a database\n", 500))), "damaged or no backup"},
		{write("empty", nil), "not one of groupcastd"},
		{write("damaged", damaged), "damaged"},
		{write("half", bytes[:len(bytes)/2]), "damaged"},
	} {
		dir := t.TempDir()
		err := backup.Restore(ctx, backup.Options{DataDir: dir, File: c.file, Log: quiet})
		require.ErrorContains(t, err, c.want, c.file)
		_, err = os.Stat(filepath.Join(dir, "groupcast.db"))
		require.ErrorIs(t, err, os.ErrNotExist, c.file)
	}
	newer := storetest.SQLite(t)
	newer.Exec(t, "INSERT INTO goose_db_version (version_id, is_applied) VALUES (999, true)")
	file := filepath.Join(t.TempDir(), "newer")
	require.NoError(t, backup.Make(ctx, newer.Options.DataDir, file))
	require.ErrorContains(t, backup.Restore(ctx, backup.Options{DataDir: t.TempDir(), File: file, Log: quiet}), "made by a newer groupcastd")

	o := backup.Options{DataDir: db.Options.DataDir, File: good, Log: quiet, Force: true}
	require.ErrorContains(t, backup.Restore(ctx, o), "in use by another groupcastd", "not under a running service, even with force")
	require.NoError(t, db.Close())
	o.Force = false
	require.ErrorContains(t, backup.Restore(ctx, o), "--force replaces it")
	o.Force = true
	require.NoError(t, backup.Restore(ctx, o))
	st, err := store.Open(ctx, store.Options{DataDir: db.Options.DataDir})
	require.NoError(t, err)
	require.NoError(t, st.CheckSchema(ctx))
	require.NoError(t, st.Close())
}
