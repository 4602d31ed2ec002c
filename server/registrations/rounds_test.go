package registrations_test

import (
	"context"
	"flag"
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sync/errgroup"

	"github.com/groupcast/groupcast/models"
	"github.com/groupcast/groupcast/server/registrations"
	"github.com/groupcast/groupcast/server/servertest"
	"github.com/groupcast/groupcast/server/store/storetest"
)

var rounds = flag.Int("registrations.rounds", 3, "rounds of 64 clients on 25 addresses")

// TestRoundsOf64Clients lets 64 cameras ask for 25 addresses at the same moment, again and again. Between the rounds all leave, the
// clock passes the cooldown and the polling gateway acknowledges; without the acknowledgement nobody gets an address.
func TestRoundsOf64Clients(t *testing.T) {
	storetest.Each(t, func(t *testing.T, db *storetest.DB) {
		h := servertest.On(db, db.Store).NewAccount(t, true)
		h.Declare(t, "172.168.0.230-172.168.0.254")
		const pool, viewers = 25, 8
		cameras, phones := make([]models.Principal, clients), make([]models.Principal, viewers)
		for i := range cameras {
			cameras[i] = h.Device(t, models.DeviceCamera, fmt.Sprint("camera", i))
		}
		for i := range phones {
			phones[i] = h.Device(t, models.DevicePhone, fmt.Sprint("phone", i))
		}
		type holder struct {
			ip         netip.Addr
			generation int64
		}
		lives := map[holder]bool{}
		for round := range *rounds {
			winners := race(t, h, cameras, round)
			require.Len(t, winners, pool)
			name := ""
			for camera, a := range winners {
				require.False(t, lives[holder{a.GroupIP, a.Generation}], "two groups at %s in generation %d", a.GroupIP, a.Generation)
				lives[holder{a.GroupIP, a.Generation}] = true
				require.Zero(t, a.State)
				name = groupName(round, camera)
			}
			var mu sync.Mutex
			var states []int
			var all errgroup.Group
			for _, phone := range phones {
				all.Go(func() error {
					a, err := h.Registrations.Join(context.Background(), phone, servertest.Destination(phone, "198.51.99.9", name))
					mu.Lock()
					defer mu.Unlock()
					states = append(states, a.State)
					return err
				})
			}
			require.NoError(t, all.Wait())
			slices.Sort(states)
			require.Equal(t, []int{1, 2, 3, 4, 5, 6, 7, 8}, states, "each is told a state of its own")
			h.Acknowledge(t)
			for camera, a := range winners {
				all.Go(func() error {
					_, _, err := h.Registrations.Leave(context.Background(), cameras[camera], a.RegistrationID)
					return err
				})
			}
			require.NoError(t, all.Wait())
			require.Empty(t, h.Information(t).Groups)
			before := h.Information(t)
			db.Advance(t, servertest.Cooldown)
			// It polls, but what it has is from before: it may still copy.
			require.NoError(t, db.RecordPolls(context.Background(), []models.Poll{{GatewayID: before.GatewayID, Epoch: before.Epoch, Revision: before.Revision - pool}}))
			require.Empty(t, race(t, h, cameras[:4], round+*rounds))
			h.Acknowledge(t)
		}
		require.Zero(t, db.Deadlocks(t))
	})
}

func groupName(round, camera int) string { return fmt.Sprintf("r%dc%d", round, camera) }

// race lets cameras ask for a group each at the same moment, and gives the answers of those that got one. Nobody sees any other refusal
// than that the pool is exhausted.
func race(t *testing.T, h *servertest.Home, cameras []models.Principal, round int) map[int]registrations.Answer {
	t.Helper()
	var mu sync.Mutex
	won := map[int]registrations.Answer{}
	var all errgroup.Group
	for i, camera := range cameras {
		all.Go(func() error {
			a, err := h.Registrations.Join(context.Background(), camera, servertest.Source(camera, fmt.Sprintf("172.168.0.%d", 10+i), groupName(round, i)))
			if err == nil {
				mu.Lock()
				defer mu.Unlock()
				won[i] = a
			}
			return unless(models.CodePoolExhausted, err)
		})
	}
	require.NoError(t, all.Wait())
	return won
}
