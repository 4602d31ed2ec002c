package registrations_test

import (
	"fmt"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/groupcast/groupcast/models"
	"github.com/groupcast/groupcast/server/gateways"
	"github.com/groupcast/groupcast/server/registrations"
	"github.com/groupcast/groupcast/server/servertest"
	"github.com/groupcast/groupcast/server/store/storetest"
)

// limited is a home whose registrations keep to quotas.
func limited(db *storetest.DB, t *testing.T, q models.Quotas) *servertest.Home {
	t.Helper()
	s := servertest.On(db, db.Store)
	s.Registrations = registrations.New(db.Store, registrations.Options{Quotas: q, Credentials: servertest.Credentials})
	return s.NewHome(t)
}

// together runs f for each of n at once and gives how many were done; everybody else hears of the quota.
func together(t *testing.T, n int, quota string, limit int, f func(i int) error) (done int) {
	t.Helper()
	errs := make([]error, n)
	var all sync.WaitGroup
	for i := range n {
		all.Go(func() { errs[i] = f(i) })
	}
	all.Wait()
	for _, err := range errs {
		if err == nil {
			done++
			continue
		}
		r := servertest.Refused(t, models.CodeQuotaExceeded, err)
		require.Equal(t, map[string]any{"quota": quota, "limit": limit, "used": limit}, r.Fields)
	}
	return done
}

// slowCommits makes each transaction that adds to the table wait after it has counted, so that others count meanwhile. SQLite has one writer.
func slowCommits(t *testing.T, db *storetest.DB, table string) {
	t.Helper()
	if db.Dialect() == "postgres" {
		db.Exec(t, "CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM pg_sleep(0.05); RETURN NULL; END $$")
		db.Exec(t, "CREATE CONSTRAINT TRIGGER slow AFTER INSERT ON "+table+" DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION slow()")
	}
}

func TestQuotaOfDestinations(t *testing.T) {
	storetest.Each(t, func(t *testing.T, db *storetest.DB) {
		const limit = 3
		h := limited(db, t, models.Quotas{DestinationsPerGroup: limit})
		for i, group := range []string{"a", "b"} {
			camera := h.Device(t, models.DeviceCamera, group)
			h.Join(t, camera, servertest.Source(camera, fmt.Sprint("172.168.0.", 5+i), group))
		}
		phone := h.Device(t, models.DevicePhone, "phone")
		request := func(i int, group string) registrations.Request {
			r := servertest.Destination(phone, "198.51.99.9", group)
			r.Instance = fmt.Sprint(i)
			return r
		}
		join := func(i int) error {
			_, err := h.Registrations.Join(t.Context(), phone, request(i, "a"))
			return err
		}
		before := h.Information(t).Revision
		require.Equal(t, limit, together(t, 8, models.QuotaDestinations, limit, join))
		require.Equal(t, before+limit, h.Information(t).Revision, "what was refused raised no revision")
		require.Equal(t, limit, h.Information(t).Groups[0].State)
		all, _, err := h.Registrations.List(t.Context(), phone, models.Page{})
		require.NoError(t, err)
		for _, r := range all { // who is in stays in: renews, and moves
			again := servertest.Destination(phone, "198.51.99.9", "a")
			again.Instance = r.Key.Instance
			h.Join(t, phone, again)
			again.PublicIPv4 = servertest.Addr("198.51.99.10")
			h.Join(t, phone, again)
		}
		h.Join(t, phone, request(0, "b"))
		another := h.Device(t, models.DeviceCamera, "another source")
		h.Join(t, another, servertest.Source(another, "172.168.0.9", "a"))
		h.Leave(t, phone, all[0].ID)
		require.NoError(t, join(100))
		servertest.Refused(t, models.CodeQuotaExceeded, join(101))
	})
}

// TestQuotaOfGroups: two gateways of one premises, whose locks don't exclude each other.
func TestQuotaOfGroups(t *testing.T) {
	storetest.Each(t, func(t *testing.T, db *storetest.DB) {
		const limit = 3
		h := limited(db, t, models.Quotas{GroupsPerPremises: limit})
		other := h.Device(t, models.DeviceGateway, "garage")
		_, _, err := h.Gateways.Declare(t.Context(), other, gateways.Declaration{
			GatewayID: other.Device.ID, LANPrefix: "172.169.0.0/24", GatewayIPv4: servertest.Addr("172.169.0.1"), UplinkIPv4: servertest.Addr("203.0.113.2"),
			GroupRange: "172.169.0.233-172.169.0.254",
		})
		require.NoError(t, err)
		camera := h.Device(t, models.DeviceCamera, "camera")
		create := func(i int) error {
			_, err := h.Registrations.Join(t.Context(), camera, servertest.Source(camera, fmt.Sprintf("172.%d.0.%d", 168+i%2, 10+i), fmt.Sprint("g", i)))
			return err
		}
		slowCommits(t, db, "groups")
		require.Equal(t, limit, together(t, 8, models.QuotaGroups, limit, create))
		require.Equal(t, []int64{limit}, db.Ints(t, "SELECT count(*) FROM groups"))
		require.Equal(t, []int64{limit}, db.Ints(t, "SELECT count(*) FROM addresses WHERE state = 'allocated'"), "a refusal takes no address")
		all, _, err := h.Registrations.List(t.Context(), camera, models.Page{})
		require.NoError(t, err)
		h.Leave(t, camera, all[0].ID)
		require.NoError(t, create(20))
		require.Zero(t, db.Deadlocks(t))
	})
}

// TestQuotaOfRegistrations: two premises of one account, at once.
func TestQuotaOfRegistrations(t *testing.T) {
	storetest.Each(t, func(t *testing.T, db *storetest.DB) {
		const limit = 5
		h := limited(db, t, models.Quotas{RegistrationsPerAccount: limit})
		stranger := h.NewHome(t)
		homes := []*servertest.Home{h, h}
		second := *h
		var err error
		second.Premises, err = h.Accounts.CreatePremises(t.Context(), h.Account.ID, "Cabin", true)
		require.NoError(t, err)
		second.Gateway = second.Device(t, models.DeviceGateway, "cabin gateway")
		second.Declare(t, "172.168.0.233-172.168.0.254")
		homes[1] = &second
		for i, x := range homes {
			camera := x.Device(t, models.DeviceCamera, "camera")
			x.Join(t, camera, servertest.Source(camera, "172.168.0.5", fmt.Sprint("g", i)))
		}
		phone := h.Device(t, models.DevicePhone, "phone")
		slowCommits(t, db, "registrations")
		require.Equal(t, limit-2, together(t, 8, models.QuotaRegistrations, limit, func(i int) error {
			r := servertest.Destination(phone, "198.51.99.9", fmt.Sprint("g", i%2))
			r.Instance = fmt.Sprint(i)
			_, err := h.Registrations.Join(t.Context(), phone, r)
			return err
		}))
		require.Equal(t, []int64{limit}, db.Ints(t, "SELECT count(*) FROM registrations"))
		camera := stranger.Device(t, models.DeviceCamera, "camera")
		stranger.Join(t, camera, servertest.Source(camera, "172.168.0.5", "g0")) // another account has its own
		require.Zero(t, db.Deadlocks(t))
	})
}

// TestQuotasCostNothing: with room to spare the defaults take no statement more, but for a new group.
func TestQuotasCostNothing(t *testing.T) {
	storetest.Each(t, func(t *testing.T, db *storetest.DB) {
		cost := func(q models.Quotas) (n []int) {
			h := limited(db, t, q)
			camera, phone := h.Device(t, models.DeviceCamera, "camera"), h.Device(t, models.DevicePhone, "phone")
			for _, c := range []struct {
				who models.Principal
				r   registrations.Request
			}{
				{camera, servertest.Source(camera, "172.168.0.5", "g")},
				{phone, servertest.Destination(phone, "198.51.99.9", "g")},
				{phone, servertest.Destination(phone, "198.51.99.9", "g")},
				{phone, servertest.Destination(phone, "198.51.99.10", "g")},
			} {
				n = append(n, len(db.Statements(func() { h.Join(t, c.who, c.r) })))
			}
			return n
		}
		want := cost(models.Quotas{})
		want[0] += 2 // a new group locks the account and counts
		require.Equal(t, want, cost(models.Quotas{RegistrationsPerAccount: 10000, GroupsPerPremises: 16, DestinationsPerGroup: 32}))
	})
}
