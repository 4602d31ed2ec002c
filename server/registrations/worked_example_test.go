package registrations_test

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/groupcast/groupcast/models"
	"github.com/groupcast/groupcast/server/accounts"
	"github.com/groupcast/groupcast/server/servertest"
	"github.com/groupcast/groupcast/server/store/storetest"
)

// TestWorkedExample is SPEC §3, steps 1 to 5 and 8, over the domain services.
func TestWorkedExample(t *testing.T) {
	storetest.Each(t, func(t *testing.T, db *storetest.DB) {
		h := servertest.On(db, db.Store).NewHome(t)
		camera := h.Import(t, accounts.NewDevice{
			ID: 664123086043511412, PremisesID: h.Premises.ID, Type: models.DeviceCamera, Name: "camera1", NoPoP: true,
		})
		upload := h.Service(t, "svc-upload", 2908757376510572177)
		thumbnail := h.Service(t, "svc-thumbnail", 0)
		phone := h.Device(t, models.DevicePhone, "phone")
		before := h.Information(t).Revision

		ask := servertest.Source(camera, "172.168.0.5", "groupcast1")
		ask.PublicIPv4 = servertest.Addr("71.230.36.162")
		created := h.Join(t, camera, ask)
		require.Equal(t, "172.168.0.233", created.GroupIP.String())
		require.Zero(t, created.State)
		require.Equal(t, 3600, created.TTL)
		require.InDelta(t, 1200, created.RenewAfter, 120)
		require.EqualValues(t, 1, created.Generation)

		first := h.Join(t, upload.Principal, servertest.ServiceDestination(upload, "96.114.14.140", "groupcast1", created.GroupIP))
		require.Equal(t, 1, first.State)
		require.Equal(t, created.GroupIP, first.GroupIP)
		second := h.Join(t, thumbnail.Principal, servertest.ServiceDestination(thumbnail, "69.252.80.75", "groupcast1", created.GroupIP))
		require.Equal(t, 2, second.State)
		app := servertest.Destination(phone, "71.230.36.162", "groupcast1")
		app.Type, app.GroupIP = models.MemberService, created.GroupIP // the live stream service is an app on the phone
		require.Equal(t, 3, h.Join(t, phone, app).State)

		// The second group, which must get none of it.
		camera2 := h.Device(t, models.DeviceCamera, "camera2")
		ask2 := servertest.Source(camera2, "172.168.0.6", "groupcast2")
		ask2.GroupIP = servertest.Addr("172.168.0.235")
		require.Equal(t, "172.168.0.235", h.Join(t, camera2, ask2).GroupIP.String())
		h.Join(t, upload.Principal, servertest.ServiceDestination(upload, "68.87.41.40", "groupcast2", servertest.Addr("172.168.0.235")))

		info := h.Information(t)
		require.Len(t, info.Groups, 2)
		one, two := info.Groups[0], info.Groups[1]
		require.Equal(t, "groupcast1", one.Name)
		require.Equal(t, 3, one.State)
		require.Equal(t, []models.GatewaySource{{
			RegistrationID: created.RegistrationID, Number: 1, Name: "camera1", IPv4: servertest.Addr("172.168.0.5"), Trigger: models.TriggerOption,
		}}, one.Sources)
		require.Equal(t, []string{"1 svc-upload 96.114.14.140", "2 svc-thumbnail 69.252.80.75", "3 phone 71.230.36.162"}, reached(one))
		require.Equal(t, []string{"1 svc-upload 68.87.41.40"}, reached(two))
		require.Equal(t, before+6, info.Revision, "each change raises the revision by one")
		require.Len(t, h.Woken.Take(), 7, "the declaration and six changes")

		require.Equal(t, 2, h.Leave(t, thumbnail.Principal, second.RegistrationID))
		require.Equal(t, []string{"1 svc-upload 96.114.14.140", "3 phone 71.230.36.162"}, reached(h.Information(t).Groups[0]))
		require.Equal(t, []models.ID{h.Gateway.Device.ID}, h.Woken.Take())
	})
}
