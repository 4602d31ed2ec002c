package store_test

import (
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sync/errgroup"

	"github.com/groupcast/groupcast/models"
	"github.com/groupcast/groupcast/server/servertest"
	"github.com/groupcast/groupcast/server/store"
	"github.com/groupcast/groupcast/server/store/storetest"
)

// TestFirstKeyWins: replicas that start together end up with one key.
func TestFirstKeyWins(t *testing.T) {
	storetest.Each(t, func(t *testing.T, db *storetest.DB) {
		var sealing atomic.Int32
		var all errgroup.Group
		for i := range 8 {
			all.Go(func() error {
				added, err := db.AddSealingKey(ctx, store.SealingKey{Version: i + 1, KeySealed: []byte{byte(i)}})
				if added {
					sealing.Add(1)
				}
				return err
			})
		}
		require.NoError(t, all.Wait())
		require.EqualValues(t, 1, sealing.Load())
		sealed, err := db.SealingKeys(ctx)
		require.NoError(t, err)
		require.Len(t, sealed, 1)
		require.Equal(t, []byte{byte(sealed[0].Version - 1)}, sealed[0].KeySealed)
	})
}

func TestPolls(t *testing.T) {
	storetest.Each(t, func(t *testing.T, db *storetest.DB) {
		h := servertest.On(db, db.Store).NewHome(t)
		id := h.Gateway.Device.ID
		epoch, err := db.Epoch(ctx)
		require.NoError(t, err)
		require.Len(t, epoch, 16)
		record := func(polls ...models.Poll) (acked int64, ago time.Duration) {
			t.Helper()
			require.NoError(t, db.RecordPolls(ctx, polls))
			require.NoError(t, db.Read(ctx, func(tx *store.Tx) error {
				p, err := tx.Pool(id)
				acked, ago = p.Acked, p.Now.Sub(p.PolledAt)
				return err
			}))
			return acked, ago
		}
		acked, ago := record(models.Poll{GatewayID: id, Epoch: epoch, Revision: 5, Ago: 10 * time.Second})
		require.EqualValues(t, 5, acked)
		require.InDelta(t, 10, ago.Seconds(), 8)
		// Another replica's older batch comes later.
		acked, ago = record(models.Poll{GatewayID: id, Epoch: epoch, Revision: 4, Ago: 20 * time.Second})
		require.EqualValues(t, 5, acked)
		require.InDelta(t, 10, ago.Seconds(), 8)
		acked, ago = record(models.Poll{GatewayID: id, Epoch: epoch, Revision: 7})
		require.EqualValues(t, 7, acked)
		require.InDelta(t, 0, ago.Seconds(), 8)
		// A gateway that is gone doesn't spoil the batch, and a batch may be large.
		many := []models.Poll{{GatewayID: 1, Epoch: epoch, Revision: 1}}
		for i := range 2500 {
			many = append(many, models.Poll{GatewayID: models.ID(1000 + i), Epoch: epoch, Revision: 1})
		}
		acked, _ = record(append(many, models.Poll{GatewayID: id, Epoch: epoch, Revision: 8})...)
		require.EqualValues(t, 8, acked)
		db.Exec(t, "UPDATE installation SET epoch = 'restored'")
		acked, _ = record()
		require.Zero(t, acked, "what was acknowledged in another life of the database says nothing")
	})
}

func TestStandingsOfMany(t *testing.T) {
	storetest.Each(t, func(t *testing.T, db *storetest.DB) {
		h := servertest.On(db, db.Store).NewHome(t)
		ids := []models.ID{h.Gateway.Device.ID}
		for i := range 10_000 {
			ids = append(ids, models.ID(1+i))
		}
		var got map[models.ID]models.Standing
		statements := db.Statements(func() {
			var err error
			got, err = db.StandingsOf(ctx, ids)
			require.NoError(t, err)
		})
		require.Len(t, statements, 1)
		require.Equal(t, map[models.ID]models.Standing{h.Gateway.Device.ID: {Revision: 2}}, got)
		none, err := db.StandingsOf(ctx, nil)
		require.NoError(t, err)
		require.Empty(t, none)
	})
}
