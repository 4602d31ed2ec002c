package store_test

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sync/errgroup"

	"github.com/groupcast/groupcast/e2e/pgtest"
	"github.com/groupcast/groupcast/models"
	"github.com/groupcast/groupcast/server/registrations"
	"github.com/groupcast/groupcast/server/servertest"
	"github.com/groupcast/groupcast/server/store"
	"github.com/groupcast/groupcast/server/store/storetest"
)

// TestRenewalsShareAStatement: renewals that come at the same time are few statements, each is answered for itself, and one whose caller goes
// away harms nobody. They come while the only connection is taken, so that all of them wait.
func TestRenewalsShareAStatement(t *testing.T) {
	db := storetest.PostgresAt(t, pgtest.URL(t), store.Options{MaxConns: 1})
	h := servertest.On(db, db.Store).NewHome(t)
	camera := h.Device(t, models.DeviceCamera, "camera")
	h.Join(t, camera, servertest.Source(camera, "172.168.0.5", "g"))
	const members = 40
	var phones [members]models.Principal
	var first [members]registrations.Answer
	for i := range phones {
		phones[i] = h.Device(t, models.DevicePhone, fmt.Sprint(i))
		first[i] = h.Join(t, phones[i], request(phones[i], i))
	}
	renew := func(i, ttl int) func() error {
		return func() error {
			r := request(phones[i], i)
			r.TTL = &ttl
			a, err := h.Registrations.Join(ctx, phones[i], r)
			if err == nil && (a.RegistrationID != first[i].RegistrationID || a.State != members || a.TTL != ttl || a.GroupIP != first[i].GroupIP) {
				err = fmt.Errorf("%d was answered %+v", i, a)
			}
			return err
		}
	}
	statements := db.Statements(func() {
		release := db.TakeConnection(t)
		gone, leave := context.WithCancel(ctx)
		left := make(chan error, 1)
		var all errgroup.Group
		all.Go(renew(0, 100))
		for i := 1; i < members; i++ {
			all.Go(renew(i, 100+i))
		}
		all.Go(renew(members-1, 100+members-1)) // the same member once more
		go func() {
			r, ttl := request(phones[0], 0), 100 // it may have been done before its caller left
			r.TTL = &ttl
			_, err := h.Registrations.Join(gone, phones[0], r)
			left <- err
		}()
		require.Eventually(t, func() bool { return db.Renewing() == members+2 }, time.Minute, time.Millisecond)
		leave()
		require.ErrorIs(t, <-left, context.Canceled)
		release()
		require.NoError(t, all.Wait())
	})
	require.LessOrEqual(t, len(statements), 5, "%q", statements)
	for i := range phones {
		ttl := db.Ints(t, fmt.Sprintf("SELECT ttl_seconds FROM leases WHERE registration_id = '%s'", first[i].RegistrationID))
		require.Equal(t, []int64{int64(100 + i)}, ttl)
	}
}

func request(phone models.Principal, i int) registrations.Request {
	return servertest.Destination(phone, fmt.Sprintf("198.51.99.%d", 1+i), "g")
}

// TestCallersShareAStatement is the same for the reads that every request of a device begins with; a device of another account isn't found.
func TestCallersShareAStatement(t *testing.T) {
	db := storetest.PostgresAt(t, pgtest.URL(t), store.Options{MaxConns: 1})
	s := servertest.On(db, db.Store)
	h, other := s.NewAccount(t, true), s.NewAccount(t, true)
	phone := h.Device(t, models.DevicePhone, "phone")
	statements := db.Statements(func() {
		release := db.TakeConnection(t)
		var all errgroup.Group
		for i := range 40 {
			all.Go(func() error {
				account, mine := h.Account.ID, true
				if i%2 == 1 {
					account, mine = other.Account.ID, false
				}
				d, found, err := db.DeviceOf(ctx, account, phone.Device.ID)
				if err == nil && (found != mine || mine && d != phone.Device) {
					err = fmt.Errorf("%d found %v %+v", i, found, d)
				}
				return err
			})
		}
		require.Eventually(t, func() bool { return db.Reading() == 40 }, time.Minute, time.Millisecond)
		release()
		require.NoError(t, all.Wait())
	})
	require.LessOrEqual(t, len(statements), 3, "%q", statements)
}
