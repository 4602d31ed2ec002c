package expiry_test

import (
	"context"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sync/errgroup"

	"github.com/groupcast/groupcast/internal/logtest"
	"github.com/groupcast/groupcast/models"
	"github.com/groupcast/groupcast/server/expiry"
	"github.com/groupcast/groupcast/server/servertest"
	"github.com/groupcast/groupcast/server/store"
	"github.com/groupcast/groupcast/server/store/storetest"
)

var (
	ctx   = context.Background()
	quiet = slog.New(slog.DiscardHandler)
)

// look ends what is over and tells how many registrations ended.
func look(t *testing.T, h *servertest.Home) int {
	t.Helper()
	n, err := expiry.New(h.DB.Store, quiet).Look(ctx)
	require.NoError(t, err)
	return n
}

// member joins with a time to live in seconds: a camera first, then phones, each group "g".
func member(t *testing.T, h *servertest.Home, kind models.DeviceType, ttl int) (models.Principal, models.RegistrationID) {
	t.Helper()
	d := h.Device(t, kind, string(kind))
	r := servertest.Destination(d, "198.51.99.9", "g")
	if kind == models.DeviceCamera {
		r = servertest.Source(d, "172.168.0.5", "g")
	}
	r.TTL = &ttl
	return d, h.Join(t, d, r).RegistrationID
}

func live(h *servertest.Home, p models.Principal, id models.RegistrationID) bool {
	_, err := h.Registrations.Get(ctx, p, id)
	return err == nil
}

func each(t *testing.T, test func(t *testing.T, h *servertest.Home)) {
	t.Helper()
	storetest.Each(t, func(t *testing.T, db *storetest.DB) {
		h := servertest.On(db, db.Store).NewHome(t)
		look(t, h) // the service runs
		test(t, h)
	})
}

func TestLeaseAndGrace(t *testing.T) {
	each(t, func(t *testing.T, h *servertest.Home) {
		member(t, h, models.DeviceCamera, 86400)
		for ttl, grace := range map[int]int{30: 5, 100: 10, 3600: 60} {
			phone, id := member(t, h, models.DevicePhone, ttl)
			before := h.Information(t)
			h.Woken.Take()
			h.DB.Advance(t, time.Duration(ttl+grace-3)*time.Second)
			require.Zero(t, look(t, h))
			require.True(t, live(h, phone, id))
			held, err := h.Registrations.Get(ctx, phone, id)
			require.NoError(t, err)
			require.Zero(t, held.ExpiresIn, "it is in its grace")
			require.Equal(t, before, h.Information(t), "time alone changes nothing")
			h.DB.Advance(t, 4*time.Second)
			require.Equal(t, before, h.Information(t))
			require.Equal(t, 1, look(t, h))
			require.False(t, live(h, phone, id))
			after := h.Information(t)
			require.Equal(t, before.Revision+1, after.Revision)
			require.Zero(t, after.Groups[0].State)
			require.Equal(t, []models.ID{h.Gateway.Device.ID}, h.Woken.Take())
			require.Zero(t, look(t, h))
			require.Empty(t, h.Woken.Take())
		}
	})
}

func TestLastSourceTakesTheGroup(t *testing.T) {
	each(t, func(t *testing.T, h *servertest.Home) {
		member(t, h, models.DeviceCamera, 30)
		for range 3 {
			member(t, h, models.DevicePhone, 3600)
		}
		h.DB.Advance(t, 36*time.Second)
		require.Equal(t, 4, look(t, h), "the destinations end with the group")
		require.Empty(t, h.Information(t).Groups)
		_, pool, err := h.Gateways.Get(ctx, h.Gateway, h.Gateway.Device.ID)
		require.NoError(t, err)
		require.Equal(t, 1, pool.Quarantined)
	})
}

// crowd adds n destinations of the group "g" with leases of an hour, by the database's own means.
func crowd(t *testing.T, h *servertest.Home, n int) {
	t.Helper()
	member(t, h, models.DeviceCamera, 86400)
	h.DB.Exec(t, fmt.Sprintf(`
		WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < %d)
		INSERT INTO registrations (id, group_id, account_id, member_type, member_id, role, instance, owner_device, number,
			private_ipv4, public_ipv4, ipv6, port, device_type, model, name, created_at)
		SELECT 'r_' || (100000 + i), r.group_id, r.account_id, r.member_type, r.member_id, 'destination', 'w' || i, r.owner_device, i,
			'', '198.51.99.9', '', 0, '', '', 'crowd', 0
		FROM n CROSS JOIN registrations r WHERE r.role = 'source'`, n))
	h.DB.Exec(t, `INSERT INTO leases SELECT r.id, 3600, l.expires_at - 82800000, l.removable_at - 82800000
		FROM registrations r CROSS JOIN leases l WHERE r.role = 'destination'`)
}

// TestTwoReplicasEndACrowd: more than a batch, by two reapers at once; everything ends once.
func TestTwoReplicasEndACrowd(t *testing.T) {
	each(t, func(t *testing.T, h *servertest.Home) {
		crowd(t, h, 450)
		h.DB.Advance(t, 3661*time.Second)
		before := h.Information(t).Revision
		h.Woken.Take()
		var mu sync.Mutex
		total := 0
		var all errgroup.Group
		for range 4 {
			all.Go(func() error {
				for range 6 {
					n, err := expiry.New(h.DB.Store, quiet).Look(ctx)
					if err != nil {
						return err
					}
					mu.Lock()
					total += n
					mu.Unlock()
				}
				return nil
			})
		}
		require.NoError(t, all.Wait())
		require.Equal(t, 450, total)
		require.Equal(t, []int64{1}, h.DB.Ints(t, "SELECT count(*) FROM leases"))
		require.EqualValues(t, len(h.Woken.Take()), h.Information(t).Revision-before, "a revision and a wake-up for each batch, none for nothing")
	})
}

// TestAmnesty: after an outage everybody gets its length back, at most the own TTL, before anyone is removed.
func TestAmnesty(t *testing.T) {
	each(t, func(t *testing.T, h *servertest.Home) {
		camera, source := member(t, h, models.DeviceCamera, 86400)
		long, hour := member(t, h, models.DevicePhone, 3600)
		short, half := member(t, h, models.DeviceTablet, 30)
		h.DB.Outage(t, 2*time.Hour)
		require.Equal(t, 1, look(t, h), "30 s more don't save a lease of 30 s after two hours")
		require.False(t, live(h, short, half))
		// An hour's lease was 60 minutes over and got 60 minutes: it is in its grace of 60 s.
		require.True(t, live(h, long, hour))
		h.DB.Advance(t, 61*time.Second)
		require.Equal(t, 1, look(t, h))
		held, err := h.Registrations.Get(ctx, camera, source)
		require.NoError(t, err)
		require.InDelta(t, (24 * time.Hour).Seconds(), held.ExpiresIn.Seconds(), 300, "a day's lease is as long as it was")
	})
}

func TestAmnestySavesWhoeverWouldHaveRenewed(t *testing.T) {
	each(t, func(t *testing.T, h *servertest.Home) {
		_, _ = member(t, h, models.DeviceCamera, 86400)
		phone, id := member(t, h, models.DevicePhone, 3600)
		h.DB.Advance(t, 50*time.Minute)
		require.Zero(t, look(t, h))
		h.DB.Outage(t, 30*time.Minute)
		require.Zero(t, look(t, h))
		held, err := h.Registrations.Get(ctx, phone, id)
		require.NoError(t, err)
		require.InDelta(t, (10 * time.Minute).Seconds(), held.ExpiresIn.Seconds(), 60, "what it had when the service went away")
		// A short silence is no outage.
		h.DB.Outage(t, expiry.Outage/2)
		require.Zero(t, look(t, h))
		held, err = h.Registrations.Get(ctx, phone, id)
		require.NoError(t, err)
		require.Less(t, held.ExpiresIn, 10*time.Minute-expiry.Outage/2+time.Second)
	})
}

// TestAmnestyOnceAmongReplicas: several at once give it once, in batches, and it survives the end of a process in its midst.
func TestAmnestyOnceAmongReplicas(t *testing.T) {
	each(t, func(t *testing.T, h *servertest.Home) {
		crowd(t, h, 2500)
		before := h.DB.Ints(t, "SELECT expires_at FROM leases ORDER BY registration_id")
		h.DB.Outage(t, 10*time.Minute)
		var all errgroup.Group
		for range 4 {
			all.Go(func() error {
				_, err := expiry.New(h.DB.Store, quiet).Look(ctx)
				return err
			})
		}
		require.NoError(t, all.Wait())
		after := h.DB.Ints(t, "SELECT expires_at FROM leases ORDER BY registration_id")
		require.Len(t, after, 2501)
		for i := range after {
			require.InDelta(t, 600_000, after[i]-before[i], 300_000, "once")
		}
		require.Equal(t, []int64{0}, h.DB.Ints(t, "SELECT amnesty_ms FROM installation"))
	})
}

// TestNobodyIsRemovedBeforeTheAmnesty: not even by a process that was suspended in the midst of removing.
func TestNobodyIsRemovedBeforeTheAmnesty(t *testing.T) {
	each(t, func(t *testing.T, h *servertest.Home) {
		member(t, h, models.DeviceCamera, 86400)
		_, id := member(t, h, models.DevicePhone, 3600)
		end := func() (over []models.RegistrationID) {
			require.NoError(t, h.DB.Write(ctx, func(tx *store.Tx) (err error) {
				over, err = tx.EndDueLeases([]models.RegistrationID{id}, expiry.Outage)
				return err
			}))
			return over
		}
		h.DB.Outage(t, 2*time.Hour)
		require.Empty(t, end(), "there is an amnesty to be given first")
		h.DB.Exec(t, "UPDATE installation SET expiry_ran_at = expiry_ran_at + 7200000, amnesty_ms = 1")
		require.Empty(t, end(), "it is being given")
		h.DB.Exec(t, "UPDATE installation SET amnesty_ms = 0")
		require.Equal(t, []models.RegistrationID{id}, end())
	})
}

// TestRun: it looks until it is told to stop, and reports a database that is away once.
func TestRun(t *testing.T) {
	db := storetest.SQLite(t)
	h := servertest.On(db, db.Store).NewHome(t)
	member(t, h, models.DeviceCamera, 30)
	look(t, h)
	db.Advance(t, 36*time.Second)
	log := &logtest.Log{}
	running, stop := context.WithCancel(ctx)
	done := make(chan struct{})
	go func() {
		defer close(done)
		expiry.New(db.Store, slog.New(slog.NewTextHandler(log, nil))).Run(running)
	}()
	require.Eventually(t, func() bool { return len(h.Information(t).Groups) == 0 }, time.Minute, 10*time.Millisecond)
	db.Exec(t, "ALTER TABLE leases RENAME TO gone")
	require.Eventually(t, func() bool { return strings.Contains(log.String(), "can't be ended") }, time.Minute, 10*time.Millisecond)
	db.Exec(t, "ALTER TABLE gone RENAME TO leases")
	require.Eventually(t, func() bool { return strings.Contains(log.String(), "are being ended again") }, time.Minute, 10*time.Millisecond)
	stop()
	<-done
	require.Equal(t, 1, strings.Count(log.String(), "can't be ended"))
}
