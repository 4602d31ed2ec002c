package store_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/groupcast/groupcast/e2e/pgtest"
	"github.com/groupcast/groupcast/models"
	"github.com/groupcast/groupcast/server/servertest"
	"github.com/groupcast/groupcast/server/store"
	"github.com/groupcast/groupcast/server/store/storetest"
)

// TestStatementsArePlannedOnce: what a registration, a renewal, a poll and a request's caller take is planned for its parameters five times
// at most, which is what Postgres needs to see that the generic plan will do.
func TestStatementsArePlannedOnce(t *testing.T) {
	db := storetest.PostgresAt(t, pgtest.URL(t), store.Options{MaxConns: 1})
	h := servertest.On(db, db.Store).NewHome(t)
	camera := h.Device(t, models.DeviceCamera, "camera")
	h.Join(t, camera, servertest.Source(camera, "172.168.0.5", "g"))
	const runs = 16
	for i := range runs {
		phone := h.Device(t, models.DevicePhone, fmt.Sprint(i))
		_, found, err := db.DeviceOf(ctx, phone.AccountID, phone.Device.ID)
		require.NoError(t, err)
		require.True(t, found)
		r := request(phone, i)
		first := h.Join(t, phone, r)
		require.Equal(t, first.RegistrationID, h.Join(t, phone, r).RegistrationID, "it renewed")
		_, err = db.StandingsOf(ctx, []models.ID{h.Gateway.Device.ID})
		require.NoError(t, err)
		_, err = db.Information(ctx, []models.ID{h.Gateway.Device.ID})
		require.NoError(t, err)
		require.NoError(t, db.RecordPolls(ctx, []models.Poll{{GatewayID: h.Gateway.Device.ID, Epoch: "e", Revision: int64(i)}}))
	}
	often := 0
	for _, p := range db.Prepared(t) {
		if p.CustomPlans+p.OtherRuns >= runs {
			often++
			assert.LessOrEqual(t, p.CustomPlans, int64(5), "%s", p.Text)
		}
	}
	assert.Greater(t, often, 9, "the statements of a registration and of what goes with it")
}

// TestWhoHasNoRelayPaysForNone: a change of a group runs the trigger that raises a relay's revision only where a relay serves the premises.
func TestWhoHasNoRelayPaysForNone(t *testing.T) {
	db := storetest.Postgres(t)
	h := servertest.On(db, db.Store).NewHome(t)
	explain := func() string {
		return strings.Join(db.Texts(t, fmt.Sprintf("EXPLAIN (ANALYZE) UPDATE gateways SET revision = revision + 1 WHERE id = %d", h.Gateway.Device.ID)), "\n")
	}
	require.NotContains(t, explain(), "gateways_raise_relay")
	db.Exec(t, "INSERT INTO relays (id, name, tunnel_address, created_at) VALUES (7, 'r', 'fd00::7', 1)")
	db.Exec(t, "UPDATE gateways SET relay_id = 7")
	require.Regexp(t, "gateways_raise_relay.* calls=1", explain())
}
