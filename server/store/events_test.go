package store_test

import (
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sync/errgroup"

	"github.com/groupcast/groupcast/models"
	"github.com/groupcast/groupcast/server/servertest"
	"github.com/groupcast/groupcast/server/store"
	"github.com/groupcast/groupcast/server/store/storetest"
)

// TestEventsAreNumberedWithoutAGap: whatever many clients do at once, and whatever is rolled back, each stream is 1, 2, 3, …, in the order of
// the commits, and the newest event is how the group is.
func TestEventsAreNumberedWithoutAGap(t *testing.T) {
	storetest.Each(t, func(t *testing.T, db *storetest.DB) {
		var mu sync.Mutex
		told := map[models.EventStream][]int64{}
		db.OnCommit(func(c store.Changed) {
			mu.Lock()
			defer mu.Unlock()
			for _, p := range c.Events {
				told[p.EventStream] = append(told[p.EventStream], p.Rev)
			}
		})
		s := servertest.On(db, db.Store)
		h := s.NewHome(t)
		const groups, phones = 3, 4
		for g := range groups {
			camera := h.Device(t, models.DeviceCamera, "camera")
			h.Join(t, camera, servertest.Source(camera, fmt.Sprint("172.168.0.", 5+g), fmt.Sprint("g", g)))
		}
		var all errgroup.Group
		for range phones {
			phone := h.Device(t, models.DevicePhone, "phone")
			all.Go(func() error {
				for n := range 12 {
					r := servertest.Destination(phone, "198.51.99.9", fmt.Sprint("g", n%groups))
					a, err := s.Registrations.Join(ctx, phone, r)
					if err != nil {
						return err
					}
					failed := db.Write(ctx, func(tx *store.Tx) error { // takes numbers, and gives them back
						g, _, err := tx.GroupOf(a.RegistrationID)
						return errors.Join(err, tx.AppendGroupEvents(models.EventGroupChanged, []models.GroupID{g.ID}), errors.New("no"))
					})
					if failed == nil {
						return errors.New("the transaction has to fail")
					}
					if n%2 == 0 {
						if _, _, err := s.Registrations.Leave(ctx, phone, a.RegistrationID); err != nil {
							return err
						}
					}
				}
				return nil
			})
		}
		require.NoError(t, all.Wait())
		for of, revs := range told {
			seen := map[int64]bool{}
			for _, rev := range revs {
				require.False(t, seen[rev])
				seen[rev] = true
			}
			events, err := db.EventsAfter(ctx, of, 0, 1000)
			require.NoError(t, err)
			require.Len(t, events, len(revs), "a hint for each event that was committed, and none for the others")
			for i, e := range events {
				require.EqualValues(t, i+1, e.Rev)
			}
			if of.GroupID != "" {
				state := db.Ints(t, "SELECT count(*) FROM registrations WHERE role = 'destination' AND group_id = '"+string(of.GroupID)+"'")
				require.EqualValues(t, state[0], events[len(events)-1].Group.State)
			}
		}
		require.Len(t, told, groups+1)
		watched := []models.EventStream{{AccountID: h.Account.ID}, {AccountID: h.Account.ID, GroupID: "g_none"}, {AccountID: "a_other"}}
		for of := range told {
			if of.GroupID != "" {
				watched = append(watched, of)
				break
			}
		}
		newest, err := db.NewestEvents(ctx, watched)
		require.NoError(t, err)
		require.ElementsMatch(t, []models.EventPlace{
			{EventStream: watched[0], Rev: int64(len(told[watched[0]]))}, {EventStream: watched[3], Rev: int64(len(told[watched[3]]))},
		}, newest)
		require.Empty(t, db.Ints(t, "SELECT e.id FROM events e JOIN events o ON o.account_id = e.account_id AND o.group_id = e.group_id WHERE e.rev < o.rev AND e.id > o.id"),
			"within a stream the relay's order is the stream's")
	})
}

func TestPublishedEventsAreSweptAfterADay(t *testing.T) {
	storetest.Each(t, func(t *testing.T, db *storetest.DB) {
		s := servertest.On(db, db.Store)
		h := s.NewHome(t)
		for range 4 {
			h.Device(t, models.DevicePhone, "phone")
		}
		waiting, err := db.UnpublishedEvents(ctx, 100)
		require.NoError(t, err)
		require.Len(t, waiting, 5)
		for i, e := range waiting {
			require.EqualValues(t, i+1, e.Rev)
			require.Equal(t, models.EventDeviceAdded, e.Type)
		}
		require.NoError(t, db.MarkPublished(ctx, []int64{waiting[0].ID, waiting[1].ID, waiting[3].ID}))
		require.NoError(t, db.MarkPublished(ctx, nil))
		db.Advance(t, store.EventRetention-time.Minute)
		b, err := db.EventBacklog(ctx)
		require.NoError(t, err)
		require.Equal(t, 2, b.Count)
		require.InDelta(t, (store.EventRetention - time.Minute).Seconds(), b.Oldest.Seconds(), 30)
		n, err := db.SweepEvents(ctx, 100)
		require.NoError(t, err)
		require.Zero(t, n, "too young")

		db.Advance(t, 2*time.Minute)
		n, err = db.SweepEvents(ctx, 1)
		require.NoError(t, err)
		require.EqualValues(t, 1, n, "no more than a batch")
		n, err = db.SweepEvents(ctx, 100)
		require.NoError(t, err)
		require.EqualValues(t, 2, n)
		waiting, err = db.UnpublishedEvents(ctx, 100)
		require.NoError(t, err)
		require.Len(t, waiting, 2, "what was never published is never swept")
		require.NoError(t, db.MarkPublished(ctx, []int64{waiting[0].ID, waiting[1].ID}))
		b, err = db.EventBacklog(ctx)
		require.NoError(t, err)
		require.Equal(t, store.EventBacklog{}, b)
		newest := models.EventStream{AccountID: h.Account.ID}
		_, last, err := db.EventBounds(ctx, newest)
		require.NoError(t, err)
		require.EqualValues(t, 5, last)
	})
}
