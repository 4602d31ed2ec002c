package relays_test

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/groupcast/groupcast/models"
	"github.com/groupcast/groupcast/server/gateways"
	"github.com/groupcast/groupcast/server/httpapi"
	"github.com/groupcast/groupcast/server/servertest"
)

// mobile is a camera in a premises whose gateway, if it has one, has declared nothing.
func (l lab) mobile(h *servertest.Home, private string, n int) models.Principal {
	l.t.Helper()
	camera := h.Device(l.t, models.DeviceCamera, private)
	_, err := l.Gateways.DeclareTunnel(ctx, camera, tunnelOf(camera, private, n))
	require.NoError(l.t, err)
	return camera
}

func tunnelOf(camera models.Principal, private string, n int) gateways.Tunnel {
	return gateways.Tunnel{DeviceID: camera.Device.ID, TunnelKey: key(n), PrivateIPv4: servertest.Addr(private)}
}

// TestCameraEndsItsTunnelItself: a camera without a gateway gets group IPs of its own, hears of its relay and of no member, and the relay hears whose tunnel each group's
// datagrams come through.
func TestCameraEndsItsTunnelItself(t *testing.T) {
	each(t, func(t *testing.T, l lab) {
		a, b := l.relay(1), l.relay(2)
		home := l.NewAccount(t, false)
		h := house{Home: home}
		alone := home.Device(t, models.DeviceCamera, "alone")
		_, err := l.Registrations.Join(ctx, alone, servertest.Source(alone, "192.168.8.5", "door"))
		servertest.Refused(t, models.CodeNoGateway, err)

		first, second := l.mobile(home, "192.168.8.5", 1), l.mobile(home, "192.168.8.6", 2)
		door, yard := l.Join(t, first, servertest.Source(first, "192.168.8.5", "door")), l.Join(t, second, servertest.Source(second, "192.168.8.6", "yard"))
		require.Equal(t, models.CameraRange.First, door.GroupIP)
		require.Equal(t, door.GroupIP, yard.GroupIP, "each camera has a range of its own")
		require.Equal(t, models.CopiedNowhere, h.copiedAt(t))
		require.Equal(t, models.FanoutHome, l.information(first.Device.ID).Fanout)

		h.fanout(t, models.FanoutNetwork, models.OnRelayLossHome)
		require.Equal(t, models.CopiedNowhere, h.copiedAt(t))
		serving := a
		if len(l.of(b)) > 0 {
			serving = b
		}
		of := l.ask(serving)
		require.Len(t, of.Homes, 1)
		require.Len(t, of.Homes[0].Gateways, 2)
		through := map[models.RegistrationID]models.ID{}
		for _, g := range of.Homes[0].Groups {
			through[g.Sources[0].RegistrationID] = g.GatewayID
		}
		require.Equal(t, map[models.RegistrationID]models.ID{door.RegistrationID: first.Device.ID, yard.RegistrationID: second.Device.ID}, through)
		body, err := httpapi.RenderInformation(of)
		require.NoError(t, err)
		require.Contains(t, string(body), `"gatewayId":"`+first.Device.ID.String()+`","generation"`)

		l.look()
		info := l.information(first.Device.ID)
		require.Equal(t, models.FanoutNetwork, info.Fanout)
		require.True(t, info.Relay.Forwarding)
		require.False(t, info.Needed, "nobody wants copies")
		require.Equal(t, models.CopiedNetwork, h.copiedAt(t))
		phone := home.Device(t, models.DevicePhone, "phone")
		l.Join(t, phone, servertest.Destination(phone, "198.51.99.9", "door"))
		info = l.information(first.Device.ID)
		require.True(t, info.Needed)
		require.False(t, l.information(second.Device.ID).Needed)
		body, err = httpapi.RenderInformation(info)
		require.NoError(t, err)
		require.Contains(t, string(body), `"needed":true`)
		require.NotContains(t, string(body), "198.51.99.9", "a source doesn't see where destinations are")

		// The relay dies: the camera hears of the other.
		other := map[models.ID]models.Principal{a.Relay.ID: b, b.Relay.ID: a}[serving.Relay.ID]
		l.DB.Advance(t, models.RelayLiveFor+time.Second)
		l.ask(other)
		l.look()
		l.ask(other)
		l.look()
		info = l.information(first.Device.ID)
		require.Equal(t, other.Relay.ID, info.Relay.Relay.ID)
		require.True(t, info.Relay.Forwarding)
		require.Equal(t, second.Device.ID, l.information(second.Device.ID).GatewayID)

		require.NoError(t, l.Accounts.DeleteDevice(ctx, home.Account.ID, first.Device.ID))
		of = l.information(other.Relay.ID)
		require.Len(t, of.Homes[0].Gateways, 1)
		require.Len(t, of.Homes[0].Groups, 1)
	})
}

// TestWhoMayEndATunnelItself: only the camera, only with a key of its own, and not beside a gateway.
func TestWhoMayEndATunnelItself(t *testing.T) {
	each(t, func(t *testing.T, l lab) {
		home := l.NewAccount(t, true)
		camera := l.mobile(home, "172.168.0.5", 1)
		declare := func(p models.Principal, of models.Principal, private string, n int) error {
			_, err := l.Gateways.DeclareTunnel(ctx, p, tunnelOf(of, private, n))
			return err
		}
		revision := l.information(camera.Device.ID).Revision
		require.NoError(t, declare(camera, camera, "172.168.0.5", 1))
		require.Equal(t, revision, l.information(camera.Device.ID).Revision, "it says the same again")
		neighbour, phone := home.Device(t, models.DeviceCamera, "neighbour"), home.Device(t, models.DevicePhone, "phone")
		servertest.Refused(t, models.CodeNotFound, declare(neighbour, camera, "172.168.0.5", 2))
		servertest.Refused(t, models.CodeNotFound, declare(home.Gateway, camera, "172.168.0.5", 2))
		servertest.Refused(t, models.CodeForbidden, declare(phone, phone, "172.168.0.7", 2))
		for _, bad := range []string{"0.0.0.0", "224.0.0.1", "127.0.0.1", "198.18.0.240", "2001:db9::1"} {
			servertest.Refused(t, models.CodeBadAddress, declare(neighbour, neighbour, bad, 2))
		}
		servertest.Refused(t, models.CodeRangeConflict, declare(neighbour, neighbour, "172.168.0.6", 1))
		servertest.Refused(t, models.CodeNotFound, l.Gateways.HasTunnel(ctx, neighbour, neighbour.Device.ID))
		servertest.Refused(t, models.CodeNotFound, l.Gateways.HasTunnel(ctx, neighbour, camera.Device.ID))

		// Another camera can't be a source through it: neither in its group nor at its address.
		door := l.Join(t, camera, servertest.Source(camera, "172.168.0.5", "door"))
		_, err := l.Registrations.Join(ctx, neighbour, servertest.Source(neighbour, "172.168.0.5", "door"))
		servertest.Refused(t, models.CodeNoGateway, err)
		require.NoError(t, declare(neighbour, neighbour, "172.168.0.5", 2))
		_, err = l.Registrations.Join(ctx, neighbour, servertest.Source(neighbour, "172.168.0.5", "door"))
		servertest.Refused(t, models.CodeWrongLAN, err)
		_, err = l.Registrations.Join(ctx, camera, servertest.Source(camera, "172.168.0.9", "door"))
		servertest.Refused(t, models.CodeWrongLAN, err)

		// A gateway that comes takes its place once it has no group.
		d := home.Declaration("172.168.0.233-172.168.0.254")
		d.TunnelKey = key(3)
		_, _, err = l.Gateways.Declare(ctx, home.Gateway, d)
		servertest.Refused(t, models.CodeRangeConflict, err)
		l.Leave(t, camera, door.RegistrationID)
		_, _, err = l.Gateways.Declare(ctx, home.Gateway, d)
		require.NoError(t, err)
		servertest.Refused(t, models.CodeNotFound, l.Gateways.HasTunnel(ctx, camera, camera.Device.ID))
		servertest.Refused(t, models.CodeRangeConflict, declare(camera, camera, "172.168.0.5", 1))
		again := l.Join(t, camera, servertest.Source(camera, "172.168.0.5", "door"))
		require.Equal(t, servertest.Addr("172.168.0.233"), again.GroupIP)
		relay := l.relay(1)
		h := house{Home: home}
		h.fanout(t, models.FanoutNetwork, models.OnRelayLossHome)
		require.Len(t, l.information(relay.Relay.ID).Homes[0].Gateways, 1, "the gateway alone")

		// A key is one node's: a relay would take none of a list that has it twice.
		stranger := l.NewAccount(t, true)
		d = stranger.Declaration("172.168.0.233-172.168.0.254")
		d.TunnelKey = key(3)
		_, _, err = l.Gateways.Declare(ctx, stranger.Gateway, d)
		servertest.Refused(t, models.CodeRangeConflict, err)
	})
}
