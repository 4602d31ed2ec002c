package store_test

import (
	"context"
	"errors"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sync/errgroup"

	"github.com/groupcast/groupcast/e2e/pgtest"
	"github.com/groupcast/groupcast/models"
	"github.com/groupcast/groupcast/server/servertest"
	"github.com/groupcast/groupcast/server/store"
	"github.com/groupcast/groupcast/server/store/storetest"
)

func TestWrite(t *testing.T) {
	storetest.Each(t, func(t *testing.T, db *storetest.DB) {
		h := servertest.On(db, db.Store).NewAccount(t, true)
		id := h.Gateway.Device.ID
		revision := func() int64 {
			r, err := db.StandingsOf(ctx, []models.ID{id})
			require.NoError(t, err)
			return r[id].Revision
		}
		raise := func(then error) func(tx *store.Tx) error {
			return func(tx *store.Tx) error {
				_, found, err := tx.LockGateway(id)
				require.NoError(t, err)
				require.True(t, found)
				return then
			}
		}
		require.NoError(t, db.Write(ctx, raise(nil)))
		require.EqualValues(t, 2, revision())
		mine := errors.New("mine")
		require.ErrorIs(t, db.Write(ctx, raise(mine)), mine)
		require.EqualValues(t, 2, revision(), "an error rolls back")
		require.Panics(t, func() {
			_ = db.Write(ctx, func(tx *store.Tx) error { _ = raise(nil)(tx); panic("bug") })
		})
		require.EqualValues(t, 2, revision(), "a panic rolls back and gives the connection back")

		runs := 0
		require.NoError(t, db.Write(ctx, func(*store.Tx) error {
			if runs++; runs < 3 {
				return store.ErrAgain
			}
			return nil
		}))
		require.Equal(t, 3, runs)
		runs = 0
		err := db.Write(ctx, func(*store.Tx) error { runs++; return store.ErrAgain })
		servertest.Refused(t, models.CodeUnavailable, err)
		require.Less(t, runs, 20, "it gives up")

		gone, cancel := context.WithCancel(ctx)
		cancel()
		err = db.Write(gone, raise(nil))
		require.ErrorIs(t, err, context.Canceled)
		var refusal *models.Error
		require.NotErrorAs(t, err, &refusal, "nobody is there to be told that the database is away")
	})
}

// TestTimeIsBounded: a transaction that takes too long is rolled back, and is no fault of ours but an overload.
func TestTimeIsBounded(t *testing.T) {
	const limit = 3 * time.Second // of what makes the world, too, on a machine that is busy with other tests
	for name, db := range map[string]*storetest.DB{
		"sqlite":   storetest.SQLiteWith(t, store.Options{Timeout: limit}),
		"postgres": storetest.PostgresAt(t, pgtest.URL(t), store.Options{Timeout: limit}),
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			h := servertest.On(db, db.Store).NewAccount(t, true)
			raise := func(tx *store.Tx) error { _, _, err := tx.LockGateway(h.Gateway.Device.ID); return err }
			servertest.Refused(t, models.CodeUnavailable, db.Write(ctx, func(tx *store.Tx) error {
				require.NoError(t, raise(tx))
				time.Sleep(limit + 100*time.Millisecond)
				return nil
			}))
			servertest.Refused(t, models.CodeUnavailable, db.Write(ctx, func(tx *store.Tx) error {
				time.Sleep(limit + 100*time.Millisecond)
				return raise(tx)
			}))
			revisions, err := db.StandingsOf(ctx, []models.ID{h.Gateway.Device.ID})
			require.NoError(t, err)
			require.EqualValues(t, 1, revisions[h.Gateway.Device.ID].Revision)
		})
	}
}

// TestReadSeesOneInstant: what another transaction commits in between isn't seen.
func TestReadSeesOneInstant(t *testing.T) {
	storetest.Each(t, func(t *testing.T, db *storetest.DB) {
		h := servertest.On(db, db.Store).NewAccount(t, true)
		require.NoError(t, db.Read(ctx, func(tx *store.Tx) error {
			before, _, err := tx.Gateway(h.Account.ID, h.Gateway.Device.ID)
			require.NoError(t, err)
			require.NoError(t, db.Write(ctx, func(w *store.Tx) error {
				_, _, err := w.LockGateway(h.Gateway.Device.ID)
				return err
			}))
			after, _, err := tx.Gateway(h.Account.ID, h.Gateway.Device.ID)
			require.Equal(t, before, after)
			return err
		}))
	})
}

func TestClock(t *testing.T) {
	storetest.Each(t, func(t *testing.T, db *storetest.DB) {
		now, err := db.Now(ctx)
		require.NoError(t, err)
		require.WithinDuration(t, time.Now(), now, time.Minute)
		db.Advance(t, 36*time.Hour)
		then, err := db.Now(ctx)
		require.NoError(t, err)
		require.WithinDuration(t, now.Add(36*time.Hour), then, time.Minute)
	})
}

// TestDeadlockIsTriedAgain: two transactions that lock in opposite order both succeed.
func TestDeadlockIsTriedAgain(t *testing.T) {
	db := storetest.Postgres(t)
	h := servertest.On(db, db.Store).NewAccount(t, true)
	a, b := h.Gateway.Device.ID, h.Device(t, models.DeviceGateway, "second").Device.ID
	var all errgroup.Group
	var bothHoldOne sync.WaitGroup
	bothHoldOne.Add(2)
	for _, order := range [][]models.ID{{a, b}, {b, a}} {
		var once sync.Once // a second try doesn't wait: the other may be done
		all.Go(func() error {
			return db.Write(ctx, func(tx *store.Tx) error {
				for _, id := range order {
					if _, _, err := tx.LockGateway(id); err != nil {
						return err
					}
					once.Do(func() {
						bothHoldOne.Done()
						bothHoldOne.Wait()
					})
				}
				return nil
			})
		})
	}
	require.NoError(t, all.Wait())
	revisions, err := db.StandingsOf(ctx, []models.ID{a, b})
	require.NoError(t, err)
	require.EqualValues(t, 3, revisions[a].Revision)
	require.EqualValues(t, 3, revisions[b].Revision)
	require.NotZero(t, db.Deadlocks(t), "there must have been one")
}

// unavailable runs every kind of access and expects each to say that the database is away, and none to answer something empty.
func unavailable(t *testing.T, h *servertest.Home, camera models.Principal) {
	t.Helper()
	st := h.DB.Store
	accesses := map[string]func() error{
		"ping":   func() error { return st.Ping(ctx) },
		"schema": func() error { return st.CheckSchema(ctx) },
		"join": func() error {
			return errorOf(h.Registrations.Join(ctx, camera, servertest.Source(camera, "172.168.0.5", "g")))
		},
		"authenticate": func() error {
			return errorOf(h.Accounts.DevicePrincipal(ctx, h.Account.ID, camera.Device.ID))
		},
		"information": func() error { return errorOf(h.Groups.Information(ctx, []models.ID{h.Gateway.Device.ID})) },
		"revisions":   func() error { return errorOf(st.StandingsOf(ctx, []models.ID{h.Gateway.Device.ID})) },
		"transaction": func() error { return st.Write(ctx, func(*store.Tx) error { return nil }) },
	}
	type result struct {
		name string
		err  error
	}
	results := make(chan result, len(accesses))
	for name, access := range accesses {
		go func() { results <- result{name, access()} }()
	}
	for range accesses {
		r := <-results
		t.Log(r.name)
		refusal := servertest.Refused(t, models.CodeUnavailable, r.err)
		require.Positive(t, refusal.Fields["retryAfter"])
		require.Error(t, refusal.Cause, "the log shall know why")
	}
}

func errorOf[T any](_ T, err error) error { return err }

// TestPostgresGoesAwayAndComesBack: stopped and killed, everything says so, and recovers by itself.
func TestPostgresGoesAwayAndComesBack(t *testing.T) {
	// The tests' clusters acknowledge before they write, for speed; a kill would then lose what this test looks for.
	cluster := pgtest.New(t, pgtest.Options{Settings: map[string]string{"synchronous_commit": "on"}})
	db := storetest.PostgresAt(t, cluster.URL(t), store.Options{})
	h := servertest.On(db, db.Store).NewHome(t)
	hasty := inHaste(t, h, store.Options{Timeout: 2 * time.Second})
	camera := h.Device(t, models.DeviceCamera, "camera")
	a := h.Join(t, camera, servertest.Source(camera, "172.168.0.5", "g"))
	for name, end := range map[string]func() error{"stopped": cluster.Stop, "killed": cluster.Kill} {
		t.Run(name, func(t *testing.T) {
			require.NoError(t, end())
			unavailable(t, hasty, camera)
			require.NoError(t, cluster.Start())
			require.Eventually(t, func() bool { return db.Ping(ctx) == nil }, time.Minute, 20*time.Millisecond)
			require.Equal(t, a.RegistrationID, h.Join(t, camera, servertest.Source(camera, "172.168.0.5", "g")).RegistrationID)
		})
	}
}

// TestPoolIsExhausted: whoever gets no connection in time is told so.
func TestPoolIsExhausted(t *testing.T) {
	cluster := pgtest.New(t, pgtest.Options{})
	db := storetest.PostgresAt(t, cluster.URL(t), store.Options{})
	h := servertest.On(db, db.Store).NewHome(t)
	hasty := inHaste(t, h, store.Options{Timeout: 500 * time.Millisecond, MaxConns: 1})
	camera := h.Device(t, models.DeviceCamera, "camera")
	release := hasty.DB.Store.TakeConnection(t)
	unavailable(t, hasty, camera)
	release()
	require.Eventually(t, func() bool {
		_, err := hasty.Registrations.Join(ctx, camera, servertest.Source(camera, "172.168.0.5", "g"))
		return err == nil
	}, time.Minute, time.Millisecond)
}

// inHaste is the home at a replica that gives up soon: whatever makes a test's world has all the time it needs.
func inHaste(t *testing.T, h *servertest.Home, o store.Options) *servertest.Home {
	t.Helper()
	o.DatabaseURL = h.DB.Options.DatabaseURL
	db := &storetest.DB{Options: o}
	db.Store = db.Replica(t)
	hasty := *h
	hasty.Services = servertest.On(db, db.Store)
	return &hasty
}

// TestServerHasNoConnectionLeft: the same when Postgres itself refuses.
func TestServerHasNoConnectionLeft(t *testing.T) {
	cluster := pgtest.New(t, pgtest.Options{Settings: map[string]string{"max_connections": "9", "superuser_reserved_connections": "3"}})
	url := cluster.URL(t)
	db := storetest.PostgresAt(t, url, store.Options{Timeout: 4 * time.Second, MaxConns: 2})
	h := servertest.On(db, db.Store).NewHome(t)
	camera := h.Device(t, models.DeviceCamera, "camera")
	db.CloseIdle()
	free := storetest.HoldConnections(t, url)
	unavailable(t, h, camera)
	free()
	require.Eventually(t, func() bool { return db.Ping(ctx) == nil }, time.Minute, 20*time.Millisecond) // the server frees them a little later
	h.Join(t, camera, servertest.Source(camera, "172.168.0.5", "g"))
}
