package gateways_test

import (
	"context"
	"errors"
	"fmt"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sync/errgroup"

	"github.com/groupcast/groupcast/models"
	"github.com/groupcast/groupcast/server/gateways"
	"github.com/groupcast/groupcast/server/servertest"
	"github.com/groupcast/groupcast/server/store/storetest"
)

var ctx = context.Background()

func TestWhatMayBeDeclared(t *testing.T) {
	storetest.Each(t, func(t *testing.T, db *storetest.DB) {
		s := servertest.On(db, db.Store)
		private, public := s.NewAccount(t, false), s.NewAccount(t, true)
		for _, c := range []struct {
			lan, gateway, uplink, groupRange string
			want                             string // the range, or empty for a refusal
			public                           bool   // the operator allowed public ranges
		}{
			{"192.168.1.0/24", "192.168.1.1", "203.0.113.1", "", "192.168.1.230-192.168.1.254", false},
			{"192.168.1.7/24", "192.168.1.1", "203.0.113.1", "", "192.168.1.230-192.168.1.254", false}, // host bits are ignored
			{"10.0.0.0/16", "10.0.7.1", "203.0.113.1", "", "10.0.7.230-10.0.7.254", false},
			{"192.168.1.128/25", "192.168.1.129", "203.0.113.1", "", "192.168.1.230-192.168.1.254", false},
			{"192.168.1.0/24", "192.168.1.254", "203.0.113.1", "", "192.168.1.230-192.168.1.253", false},
			{"192.168.1.0/24", "192.168.1.230", "203.0.113.1", "", "192.168.1.231-192.168.1.254", false},
			{"192.168.1.0/24", "192.168.1.240", "203.0.113.1", "", "", false}, // the gateway is in the midst of it
			{"192.168.1.0/25", "192.168.1.1", "203.0.113.1", "", "", false},   // the usual range is outside
			{"192.168.1.0/24", "192.168.1.1", "203.0.113.1", "192.168.1.224/28", "192.168.1.224-192.168.1.239", false},
			{"192.168.1.0/24", "192.168.1.1", "203.0.113.1", "192.168.1.230/28", "", false}, // doesn't begin there
			{"192.168.1.0/24", "192.168.1.1", "203.0.113.1", "192.168.1.240/28", "", false}, // holds the broadcast address
			{"192.168.1.0/24", "192.168.1.1", "203.0.113.1", "192.168.1.0-192.168.1.9", "", false},
			{"192.168.1.0/24", "192.168.1.1", "203.0.113.1", "192.168.1.1-192.168.1.9", "", false}, // holds the gateway
			{"192.168.1.0/24", "192.168.1.1", "192.168.1.240", "192.168.1.230-192.168.1.254", "", false},
			{"192.168.1.0/24", "192.168.1.1", "192.168.1.1", "192.168.1.250-192.168.1.250", "192.168.1.250-192.168.1.250", false}, // one-armed
			{"192.168.1.0/24", "192.168.1.1", "203.0.113.1", "192.168.2.230-192.168.2.254", "", false},
			{"192.168.1.0/24", "192.168.1.1", "203.0.113.1", "192.168.1.254-192.168.1.230", "", false},
			{"192.168.1.0/24", "192.168.1.1", "203.0.113.1", "192.168.1.230", "", false},
			{"192.168.1.0/24", "192.168.1.1", "203.0.113.1", "fd00::1-fd00::9", "", false},
			{"10.0.0.0/16", "10.0.0.1", "203.0.113.1", "10.0.1.0-10.0.2.0", "", false}, // more than 254
			{"192.168.1.0/24", "192.168.2.1", "203.0.113.1", "", "", false},
			{"192.168.1.0/24", "192.168.1.255", "203.0.113.1", "", "", false},
			{"192.168.1.0/24", "", "203.0.113.1", "", "", false},
			{"192.168.1.0/24", "192.168.1.1", "", "", "", false},
			{"192.168.1.0/24", "192.168.1.1", "127.0.0.1", "", "", false},
			{"192.168.1.0/24", "192.168.1.1", "224.0.0.1", "", "", false},
			{"192.168.1.0/31", "192.168.1.1", "203.0.113.1", "", "", false},
			{"10.0.0.0/15", "10.0.0.1", "203.0.113.1", "", "", false},
			{"2001:db8::/64", "192.168.1.1", "203.0.113.1", "", "", false},
			{"nonsense", "192.168.1.1", "203.0.113.1", "", "", false},
			{"172.168.0.0/24", "172.168.0.1", "203.0.113.1", "", "", false},
			{"172.168.0.0/24", "172.168.0.1", "203.0.113.1", "", "172.168.0.230-172.168.0.254", true},
			{"100.64.0.0/24", "100.64.0.1", "203.0.113.1", "", "100.64.0.230-100.64.0.254", false},
			{"198.18.0.0/24", "198.18.0.1", "203.0.113.1", "", "198.18.0.230-198.18.0.254", false},
			{"127.0.0.0/24", "127.0.0.1", "203.0.113.1", "", "", true},
			{"0.0.0.0/24", "0.0.0.1", "203.0.113.1", "", "", true},
			{"224.0.0.0/24", "224.0.0.1", "203.0.113.1", "", "", true},
		} {
			h := private
			if c.public {
				h = public
			}
			g, pool, err := s.Gateways.Declare(ctx, h.Gateway, gateways.Declaration{
				GatewayID: h.Gateway.Device.ID, LANPrefix: c.lan, GatewayIPv4: servertest.Addr(c.gateway), UplinkIPv4: servertest.Addr(c.uplink), GroupRange: c.groupRange,
			})
			what := fmt.Sprintf("%+v", c)
			if c.want == "" {
				servertest.Refused(t, models.CodeBadRange, err)
				continue
			}
			require.NoError(t, err, what)
			assert.Equal(t, c.want, g.Range.String(), what)
			assert.Equal(t, models.Pool{Size: g.Range.Size()}, pool, what)
		}
	})
}

func TestDeclaringAgainChangesNothing(t *testing.T) {
	storetest.Each(t, func(t *testing.T, db *storetest.DB) {
		h := servertest.On(db, db.Store).NewHome(t)
		before := h.Information(t)
		require.EqualValues(t, 2, before.Revision, "the declaration itself was a change")
		h.Woken.Take()
		h.Declare(t, "172.168.0.233-172.168.0.254")
		require.Equal(t, before, h.Information(t))
		require.Empty(t, h.Woken.Take())
	})
}

// TestChangedUplink: who is inside the home changes with it, in one revision.
func TestChangedUplink(t *testing.T) {
	storetest.Each(t, func(t *testing.T, db *storetest.DB) {
		h := servertest.On(db, db.Store).NewHome(t)
		camera, phone := h.Device(t, models.DeviceCamera, "camera"), h.Device(t, models.DevicePhone, "phone")
		h.Join(t, camera, servertest.Source(camera, "172.168.0.5", "g"))
		r := servertest.Destination(phone, "203.0.113.1", "g")
		r.PrivateIPv4 = servertest.Addr("172.168.0.20")
		h.Join(t, phone, r)
		before := h.Information(t)
		require.Equal(t, servertest.Addr("172.168.0.20"), before.Groups[0].Destinations[0].IPv4)
		h.Woken.Take()

		d := h.Declaration("172.168.0.233-172.168.0.254")
		d.UplinkIPv4 = servertest.Addr("203.0.113.2")
		_, _, err := h.Gateways.Declare(ctx, h.Gateway, d)
		require.NoError(t, err)
		after := h.Information(t)
		require.Equal(t, servertest.Addr("203.0.113.1"), after.Groups[0].Destinations[0].IPv4)
		require.Equal(t, before.Revision+1, after.Revision)
		require.Equal(t, []models.ID{h.Gateway.Device.ID}, h.Woken.Take())
	})
}

func TestChangedRange(t *testing.T) {
	storetest.Each(t, func(t *testing.T, db *storetest.DB) {
		h := servertest.On(db, db.Store).NewHome(t)
		camera := h.Device(t, models.DeviceCamera, "camera")
		a := h.Join(t, camera, servertest.Source(camera, "172.168.0.5", "g"))
		pool := func() models.Pool {
			_, p, err := h.Gateways.Get(ctx, h.Gateway, h.Gateway.Device.ID)
			require.NoError(t, err)
			p.NextFreeAt = models.Pool{}.NextFreeAt
			return p
		}
		require.Equal(t, models.Pool{Size: 22, Allocated: 1}, pool())

		// A live group can't lose its address, nor a live source its LAN.
		_, _, err := h.Gateways.Declare(ctx, h.Gateway, h.Declaration("172.168.0.234-172.168.0.254"))
		servertest.Refused(t, models.CodeRangeConflict, err)
		_, _, err = h.Gateways.Declare(ctx, h.Gateway, h.Declaration("172.168.0.4-172.168.0.254"))
		servertest.Refused(t, models.CodeRangeConflict, err)
		d := h.Declaration("172.168.0.233-172.168.0.254")
		d.LANPrefix, d.GatewayIPv4 = "172.168.0.128/25", servertest.Addr("172.168.0.129")
		_, _, err = h.Gateways.Declare(ctx, h.Gateway, d)
		servertest.Refused(t, models.CodeRangeConflict, err)
		require.Equal(t, models.Pool{Size: 22, Allocated: 1}, pool(), "what is refused changes nothing")

		h.Declare(t, "172.168.0.233-172.168.0.235")
		require.Equal(t, models.Pool{Size: 3, Allocated: 1}, pool())

		// An address that was used keeps its quarantine and its generation, even if it leaves the range for a while.
		h.Leave(t, camera, a.RegistrationID)
		h.Declare(t, "172.168.0.240-172.168.0.241")
		require.Equal(t, models.Pool{Size: 2}, pool())
		h.Declare(t, "172.168.0.233-172.168.0.233")
		require.Equal(t, models.Pool{Size: 1, Quarantined: 1}, pool())
		_, err = h.Registrations.Join(ctx, camera, servertest.Source(camera, "172.168.0.5", "other"))
		servertest.Refused(t, models.CodePoolExhausted, err)
		require.EqualValues(t, 2, h.Join(t, camera, servertest.Source(camera, "172.168.0.5", "g")).Generation)
	})
}

func TestTwoGatewaysOfOnePremises(t *testing.T) {
	storetest.Each(t, func(t *testing.T, db *storetest.DB) {
		h := servertest.On(db, db.Store).NewHome(t)
		second := h.Device(t, models.DeviceGateway, "second")
		declare := func(lan, gateway, groupRange string) error {
			_, _, err := h.Gateways.Declare(ctx, second, gateways.Declaration{
				GatewayID: second.Device.ID, LANPrefix: lan, GatewayIPv4: servertest.Addr(gateway), UplinkIPv4: servertest.Addr("203.0.113.9"), GroupRange: groupRange,
			})
			return err
		}
		servertest.Refused(t, models.CodeRangeConflict, declare("172.168.0.0/24", "172.168.0.2", "172.168.0.200-172.168.0.210"))
		servertest.Refused(t, models.CodeRangeConflict, declare("172.168.0.0/16", "172.168.9.1", ""))
		require.NoError(t, declare("172.168.9.0/24", "172.168.9.1", ""))

		one, two := h.Device(t, models.DeviceCamera, "one"), h.Device(t, models.DeviceCamera, "two")
		require.Equal(t, "172.168.0.233", h.Join(t, one, servertest.Source(one, "172.168.0.5", "g")).GroupIP.String())
		require.Equal(t, "172.168.9.230", h.Join(t, two, servertest.Source(two, "172.168.9.5", "h")).GroupIP.String())
		_, err := h.Registrations.Join(ctx, two, servertest.Source(two, "172.168.9.5", "g"))
		servertest.Refused(t, models.CodeWrongLAN, err) // g lives in the other LAN
		require.Len(t, h.Information(t).Groups, 1)
		all, err := h.Groups.Information(ctx, []models.ID{second.Device.ID, h.Gateway.Device.ID})
		require.NoError(t, err)
		require.Equal(t, h.Information(t), all[h.Gateway.Device.ID], "each has its own")
		require.Len(t, all[second.Device.ID].Groups, 1)
		require.Equal(t, "h", all[second.Device.ID].Groups[0].Name)
	})
}

// TestOverlappingAtTheSameMoment: of gateways that declare overlapping LANs at once one wins.
func TestOverlappingAtTheSameMoment(t *testing.T) {
	storetest.Each(t, func(t *testing.T, db *storetest.DB) {
		h := servertest.On(db, db.Store).NewAccount(t, true)
		var all errgroup.Group
		results := make([]error, 8)
		for i := range results {
			g := h.Device(t, models.DeviceGateway, fmt.Sprint(i))
			all.Go(func() error {
				_, _, results[i] = h.Gateways.Declare(ctx, g, gateways.Declaration{
					GatewayID: g.Device.ID, LANPrefix: "10.0.0.0/24", GatewayIPv4: servertest.Addr("10.0.0.1"), UplinkIPv4: servertest.Addr("203.0.113.1"),
				})
				return nil
			})
		}
		require.NoError(t, all.Wait())
		won := 0
		for _, err := range results {
			var refusal *models.Error
			if err == nil {
				won++
			} else if !errors.As(err, &refusal) || refusal.Code != models.CodeRangeConflict {
				t.Errorf("%v", err)
			}
		}
		require.Equal(t, 1, won)
	})
}

func TestOnlyTheGatewayItself(t *testing.T) {
	storetest.Each(t, func(t *testing.T, db *storetest.DB) {
		h := servertest.On(db, db.Store).NewAccount(t, true)
		_, _, err := h.Gateways.Get(ctx, h.Gateway, h.Gateway.Device.ID)
		servertest.Refused(t, models.CodeNotFound, err) // it has declared nothing yet
		h.Declare(t, "")
		other := h.Device(t, models.DeviceGateway, "other")
		camera := h.Device(t, models.DeviceCamera, "camera")
		for _, p := range []models.Principal{other, camera} {
			_, _, err = h.Gateways.Get(ctx, p, h.Gateway.Device.ID)
			servertest.Refused(t, models.CodeNotFound, err)
			_, _, err = h.Gateways.Declare(ctx, p, h.Declaration(""))
			servertest.Refused(t, models.CodeNotFound, err)
		}
	})
}
