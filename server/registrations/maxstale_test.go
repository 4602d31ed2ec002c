package registrations_test

import (
	"context"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/groupcast/groupcast/models"
	"github.com/groupcast/groupcast/server/addresspool"
	"github.com/groupcast/groupcast/server/servertest"
	"github.com/groupcast/groupcast/server/store/storetest"
)

// TestAShorterMaxStaleCountsLater: a gateway that hasn't heard of it goes on copying for as long as it was told before, so no address comes
// to another group earlier. A longer one counts at once.
func TestAShorterMaxStaleCountsLater(t *testing.T) {
	storetest.Each(t, func(t *testing.T, db *storetest.DB) {
		ctx := context.Background()
		h := servertest.On(db, db.Store).NewAccount(t, true)
		h.Declare(t, "172.168.0.233-172.168.0.233")
		camera := h.Device(t, models.DeviceCamera, "camera")
		join := func(name string) error {
			_, err := h.Registrations.Join(ctx, camera, servertest.Source(camera, "172.168.0.5", name))
			return err
		}
		set := func(d time.Duration, want bool) {
			t.Helper()
			before := h.Information(t)
			changed, err := db.SetMaxStale(ctx, d, addresspool.Cooldown(0))
			require.NoError(t, err)
			require.Equal(t, want, changed)
			after := h.Information(t)
			require.Equal(t, d, after.MaxStale)
			require.Equal(t, want, after.Revision > before.Revision, "who has the old state has to hear of it")
		}
		set(servertest.MaxStale, false)
		a := h.Join(t, camera, servertest.Source(camera, "172.168.0.5", "one"))
		h.Acknowledge(t)
		h.Leave(t, camera, a.RegistrationID)
		set(30*time.Second, true)
		set(30*time.Second, false)
		set(40*time.Second, true) // twice within that time: the longest counts
		passed := time.Duration(0)
		for _, at := range []time.Duration{91 * time.Second, servertest.MaxStale - 2*time.Second, servertest.Cooldown - 2*time.Second} {
			db.Advance(t, at-passed)
			passed = at
			servertest.Refused(t, models.CodePoolExhausted, join("two"))
		}
		db.Advance(t, 3*time.Second)
		b := h.Join(t, camera, servertest.Source(camera, "172.168.0.5", "two"))

		h.Leave(t, camera, b.RegistrationID) // by now the shorter one is in force
		db.Advance(t, 101*time.Second)
		c := h.Join(t, camera, servertest.Source(camera, "172.168.0.5", "three"))
		h.Leave(t, camera, c.RegistrationID)
		set(10*time.Minute, true)
		db.Advance(t, 10*time.Minute)
		servertest.Refused(t, models.CodePoolExhausted, join("four"))
		db.Advance(t, time.Minute)
		require.NoError(t, join("four"))
	})
}
