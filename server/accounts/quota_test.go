package accounts_test

import (
	"fmt"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/groupcast/groupcast/models"
	"github.com/groupcast/groupcast/server/accounts"
	"github.com/groupcast/groupcast/server/servertest"
	"github.com/groupcast/groupcast/server/store"
	"github.com/groupcast/groupcast/server/store/storetest"
)

// TestQuotasOfAnAccount: exact with many at once; an operator goes beyond.
func TestQuotasOfAnAccount(t *testing.T) {
	storetest.Each(t, func(t *testing.T, db *storetest.DB) {
		s := servertest.On(db, db.Store)
		h, other := s.NewHome(t), s.NewHome(t)
		const limit = 4
		own := accounts.New(db.Store, models.Quotas{PremisesPerAccount: limit, DevicesPerAccount: limit})
		for quota, add := range map[string]func(h *servertest.Home, i int) error{
			models.QuotaPremises: func(h *servertest.Home, i int) error {
				_, err := own.AddPremises(ctx, h.Account.ID, fmt.Sprint("premises", i))
				return err
			},
			models.QuotaDevices: func(h *servertest.Home, i int) error {
				return db.Write(ctx, func(tx *store.Tx) error {
					_, err := own.AddDevice(tx, accounts.NewDevice{PremisesID: h.Premises.ID, Type: models.DevicePhone, Name: fmt.Sprint("phone", i)})
					return err
				})
			},
		} {
			errs := make([]error, 8)
			var all sync.WaitGroup
			for i := range errs {
				all.Go(func() { errs[i] = add(h, i) })
			}
			all.Wait()
			done := 1 // the home begins with one of each
			for _, err := range errs {
				if err == nil {
					done++
					continue
				}
				require.Equal(t, map[string]any{"quota": quota, "limit": limit, "used": limit}, servertest.Refused(t, models.CodeQuotaExceeded, err).Fields)
			}
			require.Equal(t, limit, done, quota)
			require.NoError(t, add(other, 0), "another account has its own")
		}
		_, err := own.CreatePremises(ctx, h.Account.ID, "the operator's", false)
		require.NoError(t, err)
		_, err = own.CreateDevice(ctx, accounts.NewDevice{PremisesID: h.Premises.ID, Type: models.DevicePhone, Name: "the operator's"})
		require.NoError(t, err)
		_, err = own.AddPremises(ctx, models.NewAccountID(), "nobody's")
		servertest.Refused(t, models.CodeNotFound, err)
		require.Zero(t, db.Deadlocks(t))
	})
}
