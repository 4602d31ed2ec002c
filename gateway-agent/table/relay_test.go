package table_test

import (
	"net/netip"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/groupcast/groupcast/gateway-agent/table"
	"github.com/groupcast/groupcast/models"
)

// TestRelayKeepsTunnelsOfAPremisesApart: two cameras of one premises, each with a tunnel of its own, have equal group IPs and addresses. What comes through a
// tunnel meets that camera's groups only.
func TestRelayKeepsTunnelsOfAPremisesApart(t *testing.T) {
	homes := []models.RelayPremises{
		{PremisesID: "p_1", GatewayID: 3641321331591802661, TunnelKey: models.TunnelKey{1}, TunnelAddress: netip.MustParseAddr("fd12::1")},
		{PremisesID: "p_1", GatewayID: 7233513782861694611, TunnelKey: models.TunnelKey{2}, TunnelAddress: netip.MustParseAddr("fd12::2")},
		{PremisesID: "p_2", GatewayID: 13, TunnelKey: models.TunnelKey{3}, TunnelAddress: netip.MustParseAddr("fd12::3")},
	}
	ip := netip.MustParseAddr("198.18.0.230")
	group := func(id, name string, gateway models.ID) models.GatewayGroup {
		return models.GatewayGroup{
			Group: models.Group{ID: models.GroupID(id), PremisesID: "p_1", GatewayID: gateway, Name: name, IP: ip, Generation: 1, State: 1},
			Sources: []models.GatewaySource{
				{RegistrationID: models.RegistrationID("r_" + id), Name: name, IPv4: netip.MustParseAddr("192.168.8.5"), Trigger: models.TriggerOption},
			},
			Destinations: []models.GatewayDestination{{RegistrationID: models.RegistrationID("d_" + id), IPv4: netip.MustParseAddr("96.114.14.140"), Policy: models.PolicyExempt}},
		}
	}
	info := models.GroupInformation{GatewayID: 7, Epoch: "e", Revision: 1, Groups: []models.GatewayGroup{group("g_1", "door", 7233513782861694611), group("g_2", "yard", 3641321331591802661)}}
	require.NoError(t, table.CheckRelay(info, 7, homes))
	db, err := table.Open()
	require.NoError(t, err)
	require.NoError(t, db.Replace(info))
	all, err := table.DeriveRelay(db.Read(), table.Inputs{ValidUntil: time.Now().Add(time.Hour)}, homes)
	require.NoError(t, err)
	require.Len(t, all, 3)
	for i, want := range []string{"g_2", "g_1"} {
		s := all[homes[i].TunnelAddress]
		require.Len(t, s.Groups, 1)
		require.Equal(t, want, s.Groups[ip].ID)
		require.Len(t, s.Groups[ip].Destinations, 1)
	}
	require.Empty(t, all[homes[2].TunnelAddress].Groups)

	info.Groups[1].GatewayID = 7233513782861694611
	require.ErrorContains(t, table.CheckRelay(info, 7, homes), "groupIP stands twice")
}
