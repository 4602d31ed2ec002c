package groups_test

import (
	"context"
	"encoding/json"
	"fmt"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/groupcast/groupcast/models"
	"github.com/groupcast/groupcast/server/groups"
	"github.com/groupcast/groupcast/server/servertest"
	"github.com/groupcast/groupcast/server/store/storetest"
)

var ctx = context.Background()

// names lists the groups that a caller sees, over all pages.
func names(t *testing.T, s *servertest.Services, p models.Principal, f groups.Filter, size int) (all []string) {
	t.Helper()
	page := models.Page{Size: size}
	for {
		got, next, err := s.Groups.List(ctx, p, f, page)
		require.NoError(t, err)
		for _, g := range got {
			all = append(all, fmt.Sprint(g.Name, " ", g.State, " ", len(g.Members)))
		}
		if next == "" {
			return all
		}
		page.Token = next
	}
}

func TestWhoSeesWhichGroups(t *testing.T) {
	storetest.Each(t, func(t *testing.T, db *storetest.DB) {
		s := servertest.On(db, db.Store)
		h, other := s.NewHome(t), s.NewHome(t)
		camera, phone := h.Device(t, models.DeviceCamera, "camera"), h.Device(t, models.DevicePhone, "phone")
		upload := h.Service(t, "svc-upload", 0)
		second := h.Device(t, models.DeviceGateway, "second gateway")
		a := h.Join(t, camera, servertest.Source(camera, "172.168.0.5", "a"))
		h.Join(t, camera, servertest.Source(camera, "172.168.0.5", "b"))
		h.Join(t, upload.Principal, servertest.ServiceDestination(upload, "96.114.14.140", "a", a.GroupIP))
		h.Join(t, phone, servertest.Destination(phone, "198.51.99.9", "a"))
		stranger := other.Device(t, models.DeviceCamera, "stranger")
		s.Join(t, stranger, servertest.Source(stranger, "172.168.0.5", "c"))

		for _, size := range []int{1, 2, 100} {
			require.Equal(t, []string{"a 2 3", "b 0 1"}, names(t, s, phone, groups.Filter{}, size))
		}
		require.Equal(t, []string{"a 2 3", "b 0 1"}, names(t, s, h.Gateway, groups.Filter{}, 0))
		require.Empty(t, names(t, s, second, groups.Filter{}, 0), "a gateway sees its own range only")
		require.Equal(t, []string{"a 2 3", "b 0 1"}, names(t, s, upload.Principal, groups.Filter{}, 0))
		require.Equal(t, []string{"c 0 1"}, names(t, s, stranger, groups.Filter{}, 0))
		require.Equal(t, []string{"b 0 1"}, names(t, s, phone, groups.Filter{Name: "b"}, 0))
		require.Empty(t, names(t, s, phone, groups.Filter{Name: "c"}, 0))
		require.Equal(t, []string{"a 2 3", "b 0 1"}, names(t, s, phone, groups.Filter{PremisesID: h.Premises.ID}, 0))
		require.Empty(t, names(t, s, phone, groups.Filter{PremisesID: other.Premises.ID}, 0))

		g := h.Information(t).Groups[0].ID
		got, err := s.Groups.Get(ctx, phone, g)
		require.NoError(t, err)
		require.Equal(t, []models.Member{
			{Type: models.MemberDevice, ID: camera.Device.ID, Role: models.RoleSource, Name: "camera"},
			{Type: models.MemberService, ID: upload.Link.ServiceAccountID, Role: models.RoleDestination, Name: "svc-upload", Consent: models.ConsentPending},
			{Type: models.MemberDevice, ID: phone.Device.ID, Role: models.RoleDestination, Name: "phone", Consent: models.ConsentPending},
		}, got.Members)
		require.Equal(t, a.GroupIP, got.IP)
		require.Equal(t, 2, got.State)
		for _, p := range []models.Principal{stranger, second, {Kind: models.KindService, Service: models.Service{ID: "svc-none"}}} {
			_, err = s.Groups.Get(ctx, p, g)
			servertest.Refused(t, models.CodeNotFound, err)
		}
		require.NoError(t, h.Accounts.DeleteLink(ctx, "svc-upload", h.Account.ID))
		require.Empty(t, names(t, s, upload.Principal, groups.Filter{}, 0), "no link, no groups")

		queries := db.Statements(func() { names(t, s, phone, groups.Filter{}, 100) })
		require.Len(t, queries, 2, "a list takes two statements whatever its length: %q", queries)
	})
}

// TestSameRevisionSameContent: whatever order the database gives the rows in.
func TestSameRevisionSameContent(t *testing.T) {
	storetest.Each(t, func(t *testing.T, db *storetest.DB) {
		h := servertest.On(db, db.Store).NewHome(t)
		empty := h.Information(t)
		require.NotNil(t, empty.Groups)
		require.Empty(t, empty.Groups)
		for i := range 12 {
			camera := h.Device(t, models.DeviceCamera, fmt.Sprint("camera", i))
			name := fmt.Sprint("g", 11-i)
			h.Join(t, camera, servertest.Source(camera, fmt.Sprintf("172.168.0.%d", 10+i), name))
			for j := range i {
				phone := h.Device(t, models.DevicePhone, fmt.Sprint("phone", j))
				h.Join(t, phone, servertest.Destination(phone, fmt.Sprintf("198.51.99.%d", 10+j), name))
			}
		}
		info := h.Information(t)
		first, err := json.Marshal(info)
		require.NoError(t, err)
		require.Len(t, info.Groups, 12)
		for i, g := range info.Groups {
			require.Equal(t, i, g.State)
			require.Equal(t, i, len(g.Destinations))
			if i > 0 {
				require.True(t, info.Groups[i-1].IP.Less(g.IP), "sorted by address, not by text")
			}
			for j, d := range g.Destinations {
				require.EqualValues(t, j+1, d.Number)
			}
		}
		db.Exec(t, "UPDATE registrations SET name = name")
		db.Exec(t, "UPDATE groups SET name = name")
		db.Advance(t, 600_000_000_000)
		again, err := json.Marshal(h.Information(t))
		require.NoError(t, err)
		require.JSONEq(t, string(first), string(again))
		require.Equal(t, string(first), string(again))
		epoch, err := db.Epoch(ctx)
		require.NoError(t, err)
		require.Equal(t, epoch, info.Epoch)
	})
}

func TestInformationOfNobody(t *testing.T) {
	storetest.Each(t, func(t *testing.T, db *storetest.DB) {
		h := servertest.On(db, db.Store).NewHome(t)
		camera := h.Device(t, models.DeviceCamera, "camera")
		for _, id := range []models.ID{camera.Device.ID, 1} {
			_, err := h.Groups.Information(ctx, id)
			servertest.Refused(t, models.CodeNotFound, err)
		}
	})
}

// TestReach is the table of who is served where; server/registrations tests the refusals.
func TestReach(t *testing.T) {
	g := models.Gateway{LANAddr: servertest.Addr("192.168.1.1"), Uplink: servertest.Addr("203.0.113.1"), Range: models.AddrRange{First: servertest.Addr("192.168.1.230"), Last: servertest.Addr("192.168.1.254")}}
	require.NoError(t, g.LANPrefix.UnmarshalText([]byte("192.168.1.0/24")))
	for _, c := range []struct{ private, public, v6, want string }{
		{"", "198.51.99.9", "", "198.51.99.9"},
		{"192.168.1.5", "198.51.99.9", "", "198.51.99.9"},
		{"192.168.1.5", "203.0.113.1", "", "192.168.1.5"},
		{"192.168.1.5", "203.0.113.1", "2001:db9::5", "192.168.1.5"},
		{"192.168.1.5", "", "", ""},
		{"192.168.1.5", "", "2001:db9::5", "2001:db9::5"},
		{"192.168.1.240", "203.0.113.1", "", ""},
		{"192.168.1.1", "203.0.113.1", "", ""},
		{"192.168.1.255", "203.0.113.1", "", ""},
		{"192.168.2.5", "203.0.113.1", "2001:db9::5", "2001:db9::5"},
		{"", "203.0.113.1", "", ""},
		{"", "192.168.1.240", "", ""},
		{"", "192.168.1.1", "2001:db9::5", "2001:db9::5"},
		{"", "", "", ""},
	} {
		got := groups.Reach(g, models.Registration{PrivateIPv4: servertest.Addr(c.private), PublicIPv4: servertest.Addr(c.public), IPv6: servertest.Addr(c.v6)})
		require.Equal(t, servertest.Addr(c.want), got, "%+v", c)
	}
}
