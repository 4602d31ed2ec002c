package registrations_test

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sync/errgroup"

	"github.com/groupcast/groupcast/models"
	"github.com/groupcast/groupcast/server/registrations"
	"github.com/groupcast/groupcast/server/servertest"
	"github.com/groupcast/groupcast/server/store/storetest"
)

// TestTenThousandRenewalsWakeNobody: 10,000 leases are renewed, all of which are asked about afterwards. No revision rises, no gateway is woken,
// nothing is audited, and each takes one statement.
func TestTenThousandRenewalsWakeNobody(t *testing.T) {
	storetest.Each(t, func(t *testing.T, db *storetest.DB) {
		const phones = 20
		leases := 10_000
		if raced { // what they do at the same moment is the same
			leases = 1_000
		}
		h := servertest.On(db, db.Store).NewHome(t)
		camera := h.Device(t, models.DeviceCamera, "camera")
		request := func(phone models.Principal, i int) registrations.Request {
			r := servertest.Destination(phone, "198.51.99.9", phone.Device.Name) // each in a group of its own
			r.Instance = fmt.Sprint("w", i)
			return r
		}
		people := make([]models.Principal, phones)
		for i := range people {
			people[i] = h.Device(t, models.DevicePhone, fmt.Sprint("g", i))
			h.Join(t, camera, servertest.Source(camera, "172.168.0.5", fmt.Sprint("g", i)))
			h.Join(t, people[i], request(people[i], 0))
		}
		// The other leases are made as the first was, but by the database alone: joining one after the other would take minutes.
		db.Exec(t, fmt.Sprintf(`INSERT INTO registrations (id, group_id, account_id, member_type, member_id, role, instance, owner_device, owner_service, number,
				private_ipv4, public_ipv4, ipv6, port, device_type, model, name, created_at)
			WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < %d)
			SELECT r.id || 'x' || n.i, group_id, account_id, member_type, member_id, role, 'w' || n.i, owner_device, owner_service, number + 1000 * n.i,
				private_ipv4, public_ipv4, ipv6, port, device_type, model, name, created_at
			FROM registrations r CROSS JOIN n WHERE r.role = 'destination'`, leases/phones-1))
		db.Exec(t, `INSERT INTO leases (registration_id, ttl_seconds, expires_at, removable_at)
			SELECT r.id, l.ttl_seconds, l.expires_at, l.removable_at FROM registrations r
			JOIN leases l ON l.registration_id = (SELECT min(registration_id) FROM leases)
			WHERE r.id NOT IN (SELECT registration_id FROM leases)`)
		require.EqualValues(t, leases, db.Ints(t, "SELECT count(*) FROM leases JOIN registrations ON id = registration_id WHERE role = 'destination'")[0])

		h.Woken.Take()
		before := h.Information(t)
		audited := db.Ints(t, "SELECT count(*) FROM audit_rows")[0]
		var again atomic.Int64 // on a machine so busy that the database was given up on, as the answer asks for
		statements := db.Statements(func() {
			var all errgroup.Group
			for _, phone := range people {
				all.Go(func() error {
					for i := range leases / phones {
						a, err := h.Registrations.Join(context.Background(), phone, request(phone, i))
						for unavailable(err) && again.Add(1) < int64(leases) {
							a, err = h.Registrations.Join(context.Background(), phone, request(phone, i))
						}
						if err != nil {
							return err
						}
						if a.State != leases/phones {
							return fmt.Errorf("state %d", a.State)
						}
					}
					return nil
				})
			}
			require.NoError(t, all.Wait())
		})
		require.LessOrEqual(t, len(statements), leases+int(again.Load()), "at most one statement each; on Postgres those at the same time share one")
		require.Empty(t, h.Woken.Take())
		require.Equal(t, before.Revision, h.Information(t).Revision)
		require.Equal(t, audited, db.Ints(t, "SELECT count(*) FROM audit_rows")[0])
		require.EqualValues(t, leases+phones, db.Ints(t, "SELECT count(*) FROM leases")[0])
	})
}

func unavailable(err error) bool {
	refusal, ok := errors.AsType[*models.Error](err)
	return ok && refusal.Code == models.CodeUnavailable
}
