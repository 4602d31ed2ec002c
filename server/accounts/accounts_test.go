package accounts_test

import (
	"context"
	"fmt"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/groupcast/groupcast/models"
	"github.com/groupcast/groupcast/server/accounts"
	"github.com/groupcast/groupcast/server/servertest"
	"github.com/groupcast/groupcast/server/store/storetest"
)

var ctx = context.Background()

func TestWhatIsCreatedIsListed(t *testing.T) {
	storetest.Each(t, func(t *testing.T, db *storetest.DB) {
		s := servertest.On(db, db.Store)
		var want []models.AccountID
		for i := range 5 {
			h := s.NewAccount(t, i%2 == 0)
			want = append(want, h.Account.ID)
			h.Import(t, accounts.NewDevice{
				ID: models.ID(9223372036854775807 - i), PremisesID: h.Premises.ID, Type: models.DeviceCamera, Name: "camera", Model: "C1",
				NoPoP: true, Trigger: models.TriggerSource,
			})
			h.Service(t, models.ServiceID(fmt.Sprint("svc-", i)), models.ID(1+i))
		}
		var got []models.AccountID
		page := models.Page{Size: 2}
		for {
			all, next, err := s.Accounts.ListAccounts(ctx, page)
			require.NoError(t, err)
			for _, a := range all {
				i := len(got)
				got = append(got, a.ID)
				require.Equal(t, "Example", a.Name)
				require.Len(t, a.Premises, 1)
				require.Equal(t, i%2 == 0, a.Premises[0].AllowPublicRange)
				require.Len(t, a.Devices, 2)
				require.Equal(t, models.DeviceGateway, a.Devices[0].Type)
				require.True(t, a.Devices[0].PoP)
				require.Equal(t, models.TriggerOption, a.Devices[0].Trigger)
				camera := a.Devices[1]
				require.EqualValues(t, 9223372036854775807-i, camera.ID)
				require.False(t, camera.PoP)
				require.Equal(t, models.TriggerSource, camera.Trigger)
				require.Equal(t, "C1", camera.Model)
				require.Len(t, a.Links, 1)
				require.EqualValues(t, 1+i, a.Links[0].ServiceAccountID)
				require.False(t, a.CreatedAt.IsZero())
			}
			if next == "" {
				break
			}
			page.Token = next
		}
		require.Equal(t, want, got)
		statements := db.Statements(func() { _, _, _ = s.Accounts.ListAccounts(ctx, models.Page{}) })
		require.Len(t, statements, 4, "one statement for each noun: %q", statements)
	})
}

func TestRefusals(t *testing.T) {
	storetest.Each(t, func(t *testing.T, db *storetest.DB) {
		s := servertest.On(db, db.Store)
		h := s.NewAccount(t, false)
		_, err := s.Accounts.CreatePremises(ctx, models.NewAccountID(), "x", false)
		servertest.Refused(t, models.CodeNotFound, err)
		_, err = s.Accounts.CreateDevice(ctx, accounts.NewDevice{PremisesID: models.NewPremisesID(), Type: models.DeviceCamera, Name: "x"})
		servertest.Refused(t, models.CodeNotFound, err)
		_, err = s.Accounts.CreateDevice(ctx, accounts.NewDevice{ID: h.Gateway.Device.ID, PremisesID: h.Premises.ID, Type: models.DeviceCamera, Name: "x"})
		servertest.Refused(t, models.CodeAlreadyExists, err)
		_, err = s.Accounts.CreateService(ctx, "svc", "x")
		require.NoError(t, err)
		_, err = s.Accounts.CreateService(ctx, "svc", "x")
		servertest.Refused(t, models.CodeAlreadyExists, err)
		_, err = s.Accounts.CreateLink(ctx, models.Link{ServiceID: "svc-none", AccountID: h.Account.ID, ServiceAccountID: 0})
		servertest.Refused(t, models.CodeNotFound, err)
		_, err = s.Accounts.CreateLink(ctx, models.Link{ServiceID: "svc", AccountID: models.NewAccountID(), ServiceAccountID: 0})
		servertest.Refused(t, models.CodeNotFound, err)
		link, err := s.Accounts.CreateLink(ctx, models.Link{ServiceID: "svc", AccountID: h.Account.ID, ServiceAccountID: 0})
		require.NoError(t, err)
		_, err = s.Accounts.CreateLink(ctx, models.Link{ServiceID: "svc", AccountID: h.Account.ID, ServiceAccountID: 0})
		servertest.Refused(t, models.CodeAlreadyExists, err)
		_, err = s.Accounts.CreateLink(ctx, models.Link{ServiceID: "svc", AccountID: s.NewAccount(t, false).Account.ID, ServiceAccountID: link.ServiceAccountID})
		servertest.Refused(t, models.CodeAlreadyExists, err)
		servertest.Refused(t, models.CodeNotFound, s.Accounts.DeleteLink(ctx, "svc-none", h.Account.ID))
		servertest.Refused(t, models.CodeNotFound, s.Accounts.DeleteDevice(ctx, "", 1))
		_, err = s.Accounts.ChangeDevice(ctx, "", 1, accounts.DeviceChange{})
		servertest.Refused(t, models.CodeNotFound, err)
		_, err = s.Accounts.Device(ctx, "", 1)
		servertest.Refused(t, models.CodeNotFound, err)
		_, err = s.Accounts.Service(ctx, "svc-none")
		servertest.Refused(t, models.CodeNotFound, err)
		_, err = s.Accounts.LinkByServiceAccountID(ctx, "svc", link.ServiceAccountID+1)
		servertest.Refused(t, models.CodeNotFound, err)
	})
}

func TestAuthentication(t *testing.T) {
	storetest.Each(t, func(t *testing.T, db *storetest.DB) {
		s := servertest.On(db, db.Store)
		h, other := s.NewAccount(t, false), s.NewAccount(t, false)
		camera := h.Device(t, models.DeviceCamera, "camera")
		require.Equal(t, models.KindDevice, camera.Kind)
		require.Equal(t, h.Account.ID, camera.AccountID)
		require.Equal(t, h.Premises.ID, camera.PremisesID)
		require.Equal(t, models.KindGateway, h.Gateway.Kind)
		_, err := s.Accounts.DevicePrincipal(ctx, other.Account.ID, camera.Device.ID)
		servertest.Refused(t, models.CodeUnauthenticated, err)
		_, err = s.Accounts.ServicePrincipal(ctx, "svc-none")
		servertest.Refused(t, models.CodeUnauthenticated, err)
		upload := h.Service(t, "svc-upload", 0)
		require.Equal(t, models.KindService, upload.Kind)
		l, err := s.Accounts.LinkByServiceAccountID(ctx, "svc-upload", upload.Link.ServiceAccountID)
		require.NoError(t, err)
		require.Equal(t, h.Account.ID, l.AccountID)
		require.NoError(t, s.Accounts.DeleteDevice(ctx, "", camera.Device.ID))
		_, err = s.Accounts.DevicePrincipal(ctx, h.Account.ID, camera.Device.ID)
		servertest.Refused(t, models.CodeUnauthenticated, err)
	})
}

func TestChangedTriggerReachesTheGateway(t *testing.T) {
	storetest.Each(t, func(t *testing.T, db *storetest.DB) {
		h := servertest.On(db, db.Store).NewHome(t)
		camera, idle := h.Device(t, models.DeviceCamera, "camera"), h.Device(t, models.DeviceCamera, "idle")
		h.Join(t, camera, servertest.Source(camera, "172.168.0.5", "g"))
		before := h.Information(t)
		h.Woken.Take()
		bySource, name := models.TriggerSource, "renamed"

		for _, c := range []struct {
			who    models.Principal
			change accounts.DeviceChange
			raised int64
		}{
			{camera, accounts.DeviceChange{Name: &name}, 0},
			{idle, accounts.DeviceChange{Trigger: &bySource}, 0},
			{camera, accounts.DeviceChange{Trigger: &bySource}, 1},
			{camera, accounts.DeviceChange{Trigger: &bySource}, 1}, // the same again changes nothing
		} {
			d, err := h.Accounts.ChangeDevice(ctx, "", c.who.Device.ID, c.change)
			require.NoError(t, err)
			read, err := h.Accounts.Device(ctx, "", c.who.Device.ID)
			require.NoError(t, err)
			require.Equal(t, d, read)
			require.Equal(t, before.Revision+c.raised, h.Information(t).Revision)
		}
		require.Equal(t, models.TriggerSource, h.Information(t).Groups[0].Sources[0].Trigger)
		require.Equal(t, []models.ID{h.Gateway.Device.ID}, h.Woken.Take())
	})
}

func TestDeletedDeviceLeaves(t *testing.T) {
	storetest.Each(t, func(t *testing.T, db *storetest.DB) {
		h := servertest.On(db, db.Store).NewHome(t)
		camera, phone := h.Device(t, models.DeviceCamera, "camera"), h.Device(t, models.DevicePhone, "phone")
		h.Join(t, camera, servertest.Source(camera, "172.168.0.5", "g"))
		h.Join(t, phone, servertest.Destination(phone, "198.51.99.9", "g"))
		before := h.Information(t).Revision
		h.Woken.Take()
		require.NoError(t, h.Accounts.DeleteDevice(ctx, "", phone.Device.ID))
		info := h.Information(t)
		require.Zero(t, info.Groups[0].State)
		require.Empty(t, info.Groups[0].Destinations)
		require.Equal(t, before+1, info.Revision)
		require.NoError(t, h.Accounts.DeleteDevice(ctx, "", camera.Device.ID))
		info = h.Information(t)
		require.Empty(t, info.Groups)
		require.Equal(t, before+2, info.Revision)
		require.Equal(t, []models.ID{h.Gateway.Device.ID, h.Gateway.Device.ID}, h.Woken.Take())
		_, pool, err := h.Gateways.Get(ctx, h.Gateway, h.Gateway.Device.ID)
		require.NoError(t, err)
		require.Equal(t, 1, pool.Quarantined)
	})
}

func TestDeletedGatewayEndsItsGroups(t *testing.T) {
	storetest.Each(t, func(t *testing.T, db *storetest.DB) {
		h := servertest.On(db, db.Store).NewHome(t)
		camera, phone := h.Device(t, models.DeviceCamera, "camera"), h.Device(t, models.DevicePhone, "phone")
		h.Join(t, camera, servertest.Source(camera, "172.168.0.5", "g"))
		d := h.Join(t, phone, servertest.Destination(phone, "198.51.99.9", "g"))
		h.Woken.Take()
		require.NoError(t, h.Accounts.DeleteDevice(ctx, "", h.Gateway.Device.ID))
		require.Equal(t, []models.ID{h.Gateway.Device.ID}, h.Woken.Take())
		_, err := h.Groups.Information(ctx, h.Gateway.Device.ID)
		servertest.Refused(t, models.CodeNotFound, err)
		_, err = h.Registrations.Get(ctx, phone, d.RegistrationID)
		servertest.Refused(t, models.CodeNotFound, err)
		_, err = h.Registrations.Join(ctx, camera, servertest.Source(camera, "172.168.0.5", "g"))
		servertest.Refused(t, models.CodeNoGateway, err)
		require.Equal(t, []int64{0}, db.Ints(t, "SELECT count(*) FROM addresses"))
	})
}

func TestEndedLinkEndsItsRegistrationsOnly(t *testing.T) {
	storetest.Each(t, func(t *testing.T, db *storetest.DB) {
		s := servertest.On(db, db.Store)
		h, other := s.NewHome(t), s.NewHome(t)
		var ids []models.RegistrationID
		var who []servertest.Linked
		for _, home := range []*servertest.Home{h, other} {
			camera := home.Device(t, models.DeviceCamera, "camera")
			ip := home.Join(t, camera, servertest.Source(camera, "172.168.0.5", "g")).GroupIP
			upload := home.Service(t, "svc-upload", 0)
			who = append(who, upload)
			ids = append(ids, home.Join(t, upload.Principal, servertest.ServiceDestination(upload, "96.114.14.140", "g", ip)).RegistrationID)
		}
		s.Woken.Take()
		require.NoError(t, s.Accounts.DeleteLink(ctx, "svc-upload", h.Account.ID))
		require.Equal(t, []models.ID{h.Gateway.Device.ID}, s.Woken.Take())
		require.Zero(t, h.Information(t).Groups[0].State)
		require.Equal(t, 1, other.Information(t).Groups[0].State)
		_, err := s.Registrations.Get(ctx, who[0].Principal, ids[0])
		servertest.Refused(t, models.CodeNotFound, err)
		_, err = s.Registrations.Get(ctx, who[0].Principal, ids[1])
		require.NoError(t, err)
		again := h.Service(t, "svc-upload", 0)
		require.NotEqual(t, who[0].Link.ServiceAccountID, again.Link.ServiceAccountID, "a new consent is a new name")
	})
}
