package registrations_test

import (
	"context"
	"net/netip"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/groupcast/groupcast/models"
	"github.com/groupcast/groupcast/server/accounts"
	"github.com/groupcast/groupcast/server/gateways"
	"github.com/groupcast/groupcast/server/registrations"
	"github.com/groupcast/groupcast/server/servertest"
	"github.com/groupcast/groupcast/server/store/storetest"
)

// each runs a test in a home of its own on both databases.
func each(t *testing.T, test func(t *testing.T, h *servertest.Home)) {
	t.Helper()
	storetest.Each(t, func(t *testing.T, db *storetest.DB) { test(t, servertest.On(db, db.Store).NewHome(t)) })
}

func join(h *servertest.Home, p models.Principal, r registrations.Request) error {
	_, err := h.Registrations.Join(context.Background(), p, r)
	return err
}

func TestRenewalChangesNothingElse(t *testing.T) {
	each(t, func(t *testing.T, h *servertest.Home) {
		camera, phone := h.Device(t, models.DeviceCamera, "camera"), h.Device(t, models.DevicePhone, "phone")
		source, destination := servertest.Source(camera, "172.168.0.5", "g"), servertest.Destination(phone, "198.51.99.9", "g")
		s := h.Join(t, camera, source)
		d := h.Join(t, phone, destination)
		before := h.Information(t)
		h.Woken.Take()

		h.DB.Advance(t, 10*time.Minute)
		var again registrations.Answer
		statements := h.DB.Statements(func() { again = h.Join(t, phone, destination) })
		require.Len(t, statements, 1, "a renewal is one statement: %q", statements)
		require.Equal(t, d.RegistrationID, again.RegistrationID)
		require.Equal(t, 1, again.State)
		source.GroupIP = s.GroupIP // naming the group IP that it has is the same request
		require.Equal(t, s.RegistrationID, h.Join(t, camera, source).RegistrationID)

		require.Equal(t, before, h.Information(t), "no revision")
		require.Empty(t, h.Woken.Take(), "nobody is woken")
		held, err := h.Registrations.Get(context.Background(), phone, d.RegistrationID)
		require.NoError(t, err)
		require.InDelta(t, 3600, held.ExpiresIn.Seconds(), 300, "the lease counts from the renewal")
	})
}

// Renewals that share a statement pass by a lease that somebody else is at. They are answered all the same, once it is free.
func TestRenewalWaitsForWhoeverIsAtTheLease(t *testing.T) {
	db := storetest.Postgres(t)
	h := servertest.On(db, db.Store).NewHome(t)
	camera, phone := h.Device(t, models.DeviceCamera, "camera"), h.Device(t, models.DevicePhone, "phone")
	h.Join(t, camera, servertest.Source(camera, "172.168.0.5", "g"))
	destination := servertest.Destination(phone, "198.51.99.9", "g")
	h.Join(t, phone, destination)

	released := make(chan struct{})
	go func() {
		defer close(released)
		db.Exec(t, "DO $$ BEGIN UPDATE leases SET ttl_seconds = ttl_seconds; PERFORM pg_sleep(1); END $$")
	}()
	require.Eventually(t, func() bool {
		return db.Ints(t, "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event = 'PgSleep'")[0] == 1
	}, time.Minute, time.Millisecond)
	before := h.Information(t)
	require.NoError(t, join(h, phone, destination))
	require.Equal(t, before, h.Information(t), "no revision")
	<-released
}

func TestMoveKeepsTheMember(t *testing.T) {
	each(t, func(t *testing.T, h *servertest.Home) {
		camera, phone := h.Device(t, models.DeviceCamera, "camera"), h.Device(t, models.DevicePhone, "phone")
		h.Join(t, camera, servertest.Source(camera, "172.168.0.5", "g"))
		first := h.Join(t, phone, servertest.Destination(phone, "198.51.99.9", "g"))
		before := h.Information(t).Revision
		h.Woken.Take()

		moved := h.Join(t, phone, servertest.Destination(phone, "198.51.99.10", "g"))
		require.Equal(t, first.RegistrationID, moved.RegistrationID)
		require.Equal(t, 1, moved.State)
		info := h.Information(t)
		require.Equal(t, []string{"1 phone 198.51.99.10"}, reached(info.Groups[0]))
		require.Equal(t, before+1, info.Revision)
		require.Equal(t, []models.ID{h.Gateway.Device.ID}, h.Woken.Take())

		// A second worker is a destination of its own, and the next number isn't one that was used.
		second := servertest.Destination(phone, "198.51.99.10", "g")
		second.Instance = "two"
		require.Equal(t, 2, h.Join(t, phone, second).State)
		require.Equal(t, 1, h.Leave(t, phone, first.RegistrationID))
		require.Equal(t, 2, h.Join(t, phone, servertest.Destination(phone, "198.51.99.9", "g")).State)
		require.Equal(t, []string{"2 phone 198.51.99.10", "3 phone 198.51.99.9"}, reached(h.Information(t).Groups[0]))
	})
}

func TestGroupEndsWithItsLastSource(t *testing.T) {
	each(t, func(t *testing.T, h *servertest.Home) {
		one, two := h.Device(t, models.DeviceCamera, "one"), h.Device(t, models.DeviceCamera, "two")
		phone := h.Device(t, models.DevicePhone, "phone")
		a := h.Join(t, one, servertest.Source(one, "172.168.0.5", "g"))
		b := h.Join(t, two, servertest.Source(two, "172.168.0.6", "g"))
		require.Equal(t, a.GroupIP, b.GroupIP, "a second camera joins the group of that name")
		d := h.Join(t, phone, servertest.Destination(phone, "198.51.99.9", "g"))

		require.Equal(t, 1, h.Leave(t, one, a.RegistrationID), "the group lives on")
		require.Len(t, h.Information(t).Groups, 1)
		require.Equal(t, 0, h.Leave(t, two, b.RegistrationID))
		require.Empty(t, h.Information(t).Groups)
		_, err := h.Registrations.Get(context.Background(), phone, d.RegistrationID)
		servertest.Refused(t, models.CodeNotFound, err)
		servertest.Refused(t, models.CodeNotFound, join(h, phone, servertest.Destination(phone, "198.51.99.9", "g")))
		_, _, err = h.Registrations.Leave(context.Background(), two, b.RegistrationID)
		servertest.Refused(t, models.CodeNotFound, err)

		// Another group doesn't get the address, the old one does, a generation later.
		other := h.Join(t, two, servertest.Source(two, "172.168.0.6", "other"))
		require.NotEqual(t, a.GroupIP, other.GroupIP)
		wants := servertest.Source(two, "172.168.0.6", "third")
		wants.GroupIP = a.GroupIP
		servertest.Refused(t, models.CodeGroupIPTaken, join(h, two, wants))
		back := h.Join(t, one, servertest.Source(one, "172.168.0.5", "g"))
		require.Equal(t, a.GroupIP, back.GroupIP)
		require.EqualValues(t, 2, back.Generation)
		require.Equal(t, 0, back.State, "nobody is in the new life of the group")
	})
}

// TestReuseWaitsForCooldownAndAcknowledgement: only both together free an address for another group.
func TestReuseWaitsForCooldownAndAcknowledgement(t *testing.T) {
	each(t, func(t *testing.T, h *servertest.Home) {
		camera := h.Device(t, models.DeviceCamera, "camera")
		h.Declare(t, "172.168.0.233-172.168.0.233") // one address only
		h.Acknowledge(t)
		cycle := func(name string) error {
			a, err := h.Registrations.Join(context.Background(), camera, servertest.Source(camera, "172.168.0.5", name))
			if err == nil {
				require.Equal(t, "172.168.0.233", a.GroupIP.String())
				h.Leave(t, camera, a.RegistrationID)
			}
			return err
		}
		require.NoError(t, cycle("first"))
		refusal := servertest.Refused(t, models.CodePoolExhausted, cycle("second"))
		require.Equal(t, 1, refusal.Fields["poolSize"])
		require.Equal(t, 0, refusal.Fields["allocated"])
		require.Equal(t, 1, refusal.Fields["quarantined"])
		nextFree, err := time.Parse(time.RFC3339, refusal.Fields["nextFreeAt"].(string))
		require.NoError(t, err)
		now, err := h.DB.Now(context.Background())
		require.NoError(t, err)
		require.WithinDuration(t, now.Add(servertest.Cooldown), nextFree, 5*time.Second)

		h.Acknowledge(t) // acknowledged, but too early
		servertest.Refused(t, models.CodePoolExhausted, cycle("second"))
		h.DB.Advance(t, servertest.Cooldown-10*time.Second)
		servertest.Refused(t, models.CodePoolExhausted, cycle("second"))
		h.DB.Advance(t, 11*time.Second)
		require.NoError(t, cycle("second"), "late enough and acknowledged")

		// Late enough, but the gateway still polls and says that it holds the old group information.
		i := h.Information(t)
		stale := models.Poll{GatewayID: i.GatewayID, Epoch: i.Epoch, Revision: i.Revision - 1}
		h.DB.Advance(t, servertest.Cooldown+time.Second)
		require.NoError(t, h.DB.RecordPolls(context.Background(), []models.Poll{stale}))
		servertest.Refused(t, models.CodePoolExhausted, cycle("third"))
		// The same number in another epoch acknowledges nothing.
		require.NoError(t, h.DB.RecordPolls(context.Background(), []models.Poll{{GatewayID: i.GatewayID, Epoch: "other", Revision: i.Revision + 9}}))
		servertest.Refused(t, models.CodePoolExhausted, cycle("third"))
		// A gateway that is silent for maxStale doesn't copy any more, so nobody waits for it.
		h.DB.Advance(t, servertest.MaxStale+time.Second)
		require.NoError(t, cycle("third"))
	})
}

func TestExhaustionCountsWhatIsInUse(t *testing.T) {
	each(t, func(t *testing.T, h *servertest.Home) {
		h.Declare(t, "172.168.0.240/30")
		for i, name := range []string{"a", "b", "c", "d"} {
			camera := h.Device(t, models.DeviceCamera, name)
			h.Join(t, camera, servertest.Source(camera, netip.AddrFrom4([4]byte{172, 168, 0, byte(10 + i)}).String(), name))
		}
		camera := h.Device(t, models.DeviceCamera, "e")
		refusal := servertest.Refused(t, models.CodePoolExhausted, join(h, camera, servertest.Source(camera, "172.168.0.20", "e")))
		require.Equal(t, map[string]any{"poolSize": 4, "allocated": 4, "quarantined": 0, "nextFreeAt": nil}, refusal.Fields)
		_, pool, err := h.Gateways.Get(context.Background(), h.Gateway, h.Gateway.Device.ID)
		require.NoError(t, err)
		require.Equal(t, models.Pool{Size: 4, Allocated: 4}, pool)
		// A camera that joins a group which is there needs no address.
		require.Equal(t, "172.168.0.240", h.Join(t, camera, servertest.Source(camera, "172.168.0.20", "a")).GroupIP.String())
	})
}

func TestTwoHomesWithTheSameGroup(t *testing.T) {
	each(t, func(t *testing.T, h *servertest.Home) {
		ctx := context.Background()
		second, err := h.Accounts.CreatePremises(ctx, h.Account.ID, "Cabin", true)
		require.NoError(t, err)
		cabin := &servertest.Home{Services: h.Services, Account: h.Account, Premises: second}
		cabin.Gateway = cabin.Device(t, models.DeviceGateway, "gateway")
		cabin.Declare(t, "172.168.0.233-172.168.0.254")
		here, there := h.Device(t, models.DeviceCamera, "here"), cabin.Device(t, models.DeviceCamera, "there")
		h.Join(t, here, servertest.Source(here, "172.168.0.5", "g"))
		upload := h.Service(t, "svc-upload", 0)
		ip := servertest.Addr("172.168.0.233")
		phone := h.Device(t, models.DevicePhone, "phone")

		require.Equal(t, 1, h.Join(t, phone, servertest.Destination(phone, "198.51.99.9", "g")).State, "one match needs no premises")
		h.Join(t, upload.Principal, servertest.ServiceDestination(upload, "96.114.14.140", "g", ip))
		require.Equal(t, ip, h.Join(t, there, servertest.Source(there, "172.168.0.5", "g")).GroupIP)
		for range 2 { // also for a member that could be renewed
			servertest.Refused(t, models.CodeAmbiguousGroup, join(h, phone, servertest.Destination(phone, "198.51.99.9", "g")))
			servertest.Refused(t, models.CodeAmbiguousGroup, join(h, upload.Principal, servertest.ServiceDestination(upload, "96.114.14.140", "g", ip)))
		}
		for premises, state := range map[models.PremisesID]int{h.Premises.ID: 2, second.ID: 1} {
			r := servertest.Destination(phone, "198.51.99.9", "g")
			r.PremisesID = premises
			require.Equal(t, state, h.Join(t, phone, r).State)
		}
		r := servertest.ServiceDestination(upload, "96.114.14.140", "g", ip)
		r.PremisesID = second.ID
		require.Equal(t, 2, h.Join(t, upload.Principal, r).State)

		// A source can't reach into the other home, and the premises of another account looks like none.
		r = servertest.Source(here, "172.168.0.5", "g")
		r.PremisesID = second.ID
		servertest.Refused(t, models.CodeContradictsToken, join(h, here, r))
		r = servertest.Destination(phone, "198.51.99.9", "g")
		r.PremisesID = h.NewAccount(t, true).Premises.ID
		servertest.Refused(t, models.CodeNotFound, join(h, phone, r))
	})
}

func TestWhoMayRegisterWhat(t *testing.T) {
	each(t, func(t *testing.T, h *servertest.Home) {
		camera, phone := h.Device(t, models.DeviceCamera, "camera"), h.Device(t, models.DevicePhone, "phone")
		receiver := h.Device(t, models.DeviceReceiver, "receiver")
		upload := h.Service(t, "svc-upload", 0)
		ip := h.Join(t, camera, servertest.Source(camera, "172.168.0.5", "g")).GroupIP
		source, destination := servertest.Source(camera, "172.168.0.5", "g"), servertest.Destination(phone, "198.51.99.9", "g")
		service := servertest.ServiceDestination(upload, "96.114.14.140", "g", ip)
		type change = func(r *registrations.Request)
		for name, c := range map[string]struct {
			who    models.Principal
			what   registrations.Request
			change change
			code   models.Code
		}{
			"a device under another's id":           {phone, destination, func(r *registrations.Request) { r.ID = camera.Device.ID }, models.CodeContradictsToken},
			"a camera as an app":                    {camera, destination, func(r *registrations.Request) { r.ID, r.Type = camera.Device.ID, models.MemberService }, models.CodeContradictsToken},
			"a device as another kind of device":    {phone, destination, func(r *registrations.Request) { r.DeviceType = models.DeviceTablet }, models.CodeContradictsToken},
			"a phone as a source":                   {phone, destination, func(r *registrations.Request) { r.Role = models.RoleSource }, models.CodeForbidden},
			"a receiver as a source":                {receiver, source, func(r *registrations.Request) { r.ID = receiver.Device.ID }, models.CodeForbidden},
			"an app as a source":                    {phone, destination, func(r *registrations.Request) { r.Type, r.Role = models.MemberService, models.RoleSource }, models.CodeForbidden},
			"a gateway":                             {h.Gateway, destination, func(r *registrations.Request) { r.ID = h.Gateway.Device.ID }, models.CodeForbidden},
			"a service as a device":                 {upload.Principal, service, func(r *registrations.Request) { r.Type = models.MemberDevice }, models.CodeContradictsToken},
			"a service as a source":                 {upload.Principal, service, func(r *registrations.Request) { r.Role = models.RoleSource }, models.CodeForbidden},
			"a service with a guessed account id":   {upload.Principal, service, func(r *registrations.Request) { r.ID++ }, models.CodeNotFound},
			"a service without the group IP":        {upload.Principal, service, func(r *registrations.Request) { r.GroupIP = netip.Addr{} }, models.CodeNotFound},
			"a service with another group IP":       {upload.Principal, service, func(r *registrations.Request) { r.GroupIP = r.GroupIP.Next() }, models.CodeNotFound},
			"a service with another group name":     {upload.Principal, service, func(r *registrations.Request) { r.GroupName = "h" }, models.CodeNotFound},
			"a destination of an unknown group":     {phone, destination, func(r *registrations.Request) { r.GroupName = "h" }, models.CodeNotFound},
			"a destination with another group IP":   {phone, destination, func(r *registrations.Request) { r.GroupIP = ip.Next() }, models.CodeGroupIPMismatch},
			"a source with another group IP":        {camera, source, func(r *registrations.Request) { r.GroupIP = ip.Next() }, models.CodeGroupIPMismatch},
			"a source with an IP outside the range": {camera, source, func(r *registrations.Request) { r.GroupName, r.GroupIP = "h", servertest.Addr("172.168.0.100") }, models.CodeNotFound},
			"a source with an IP that is taken":     {camera, source, func(r *registrations.Request) { r.GroupName, r.GroupIP = "h", ip }, models.CodeGroupIPTaken},
			"a source in another LAN":               {camera, source, func(r *registrations.Request) { r.PrivateIPv4 = servertest.Addr("192.168.7.5") }, models.CodeWrongLAN},
			"a source without a private address":    {camera, source, func(r *registrations.Request) { r.PrivateIPv4 = netip.Addr{} }, models.CodeNoUsableAddress},
		} {
			c.change(&c.what)
			before := h.Information(t)
			servertest.Refused(t, c.code, join(h, c.who, c.what))
			assert.Equal(t, before, h.Information(t), "%s changes nothing", name)
			if t.Failed() {
				t.Fatalf("case: %s", name)
			}
		}
		require.Equal(t, 1, h.Join(t, upload.Principal, service).State)
		require.NoError(t, h.Accounts.DeleteLink(context.Background(), "svc-upload", h.Account.ID))
		servertest.Refused(t, models.CodeNotFound, join(h, upload.Principal, service))
		require.NoError(t, h.Accounts.DeleteDevice(context.Background(), "", camera.Device.ID))
		servertest.Refused(t, models.CodeUnauthenticated, join(h, camera, source))

		// The same name in another account is another group.
		elsewhere := h.NewAccount(t, true)
		stranger := elsewhere.Device(t, models.DeviceCamera, "stranger")
		servertest.Refused(t, models.CodeNoGateway, join(h, stranger, servertest.Source(stranger, "172.168.0.5", "g")))
		elsewhere.Declare(t, "172.168.0.233-172.168.0.254")
		require.Equal(t, ip, h.Join(t, stranger, servertest.Source(stranger, "172.168.0.5", "g")).GroupIP)
	})
}

// TestTwoServicesWithOneID: an operator may import the same service account id for two services; neither can touch the other.
func TestTwoServicesWithOneID(t *testing.T) {
	each(t, func(t *testing.T, h *servertest.Home) {
		camera := h.Device(t, models.DeviceCamera, "camera")
		ip := h.Join(t, camera, servertest.Source(camera, "172.168.0.5", "g")).GroupIP
		upload, thumbnail := h.Service(t, "svc-upload", 42), h.Service(t, "svc-thumbnail", 42)
		a := h.Join(t, upload.Principal, servertest.ServiceDestination(upload, "96.114.14.140", "g", ip))
		b := h.Join(t, thumbnail.Principal, servertest.ServiceDestination(thumbnail, "69.252.80.75", "g", ip))
		require.NotEqual(t, a.RegistrationID, b.RegistrationID)
		require.Equal(t, 2, b.State)
		_, _, err := h.Registrations.Leave(context.Background(), thumbnail.Principal, a.RegistrationID)
		servertest.Refused(t, models.CodeNotFound, err)
	})
}

func TestAddresses(t *testing.T) {
	each(t, func(t *testing.T, h *servertest.Home) {
		camera, phone := h.Device(t, models.DeviceCamera, "camera"), h.Device(t, models.DevicePhone, "phone")
		upload := h.Service(t, "svc-upload", 0)
		ip := h.Join(t, camera, servertest.Source(camera, "172.168.0.5", "g")).GroupIP
		for _, private := range []string{"172.168.0.1", "172.168.0.0", "172.168.0.255", "172.168.0.240", "0.1.2.3", "127.0.0.1", "224.0.0.5", "255.255.255.255"} {
			servertest.Refused(t, models.CodeBadAddress, join(h, camera, servertest.Source(camera, private, "g")))
		}
		mapped := servertest.Source(camera, "::ffff:172.168.0.7", "g")
		mapped.PublicIPv4 = servertest.Addr("::ffff:71.230.36.162")
		h.Join(t, camera, mapped)
		require.Equal(t, servertest.Addr("172.168.0.7"), h.Information(t).Groups[0].Sources[0].IPv4, "a mapped address is the IPv4 address it hides")

		for _, c := range []struct {
			private, public, v6, remote string
			want                        string // the address, or the code of the refusal
		}{
			{"", "198.51.99.9", "", "198.51.99.7", "198.51.99.9"},
			{"", "", "", "198.51.99.7", "198.51.99.7"},
			{"", "", "", "::ffff:198.51.99.7", "198.51.99.7"},
			{"", "", "", "2001:db9::7", "2001:db9::7"},
			{"", "", "2001:db9::5", "198.51.99.7", "198.51.99.7"}, // IPv4 first
			{"", "", "2001:db9::5", "127.0.0.1", "2001:db9::5"},
			{"", "", "", "127.0.0.1", "no-usable-address"},
			{"", "", "", "", "no-usable-address"},
			// Inside the home: only with the home's own public address, declared by the gateway.
			{"172.168.0.20", "203.0.113.1", "", "198.51.99.7", "172.168.0.20"},
			{"172.168.0.20", "", "", "203.0.113.1", "172.168.0.20"},
			{"172.168.0.20", "198.51.99.9", "", "198.51.99.7", "198.51.99.9"},
			{"192.168.7.20", "203.0.113.1", "", "198.51.99.7", "no-usable-address"},
			{"", "203.0.113.1", "", "198.51.99.7", "no-usable-address"},
			{"", "203.0.113.1", "2001:db9::5", "198.51.99.7", "2001:db9::5"},
			{"172.168.0.233", "203.0.113.1", "", "198.51.99.7", "bad-address"},
			{"172.168.0.1", "203.0.113.1", "", "198.51.99.7", "bad-address"},
			{"172.168.0.255", "203.0.113.1", "", "198.51.99.7", "bad-address"},
			{"172.168.0.235", "198.51.99.9", "", "198.51.99.7", "198.51.99.9"}, // another home's LAN may look the same
			// Nobody is inside the home because he says so.
			{"", "172.168.0.20", "", "198.51.99.7", "bad-address"},
			{"", "172.168.0.20", "", "172.168.0.20", "172.168.0.20"},
			{"", "172.168.0.233", "", "172.168.0.233", "bad-address"},
			{"", "172.168.0.1", "", "172.168.0.1", "bad-address"},
			{"", "0.0.0.0", "", "198.51.99.7", "bad-address"},
			{"", "0.1.2.3", "", "198.51.99.7", "bad-address"},
			{"", "127.0.0.1", "", "198.51.99.7", "bad-address"},
			{"", "169.254.169.254", "", "198.51.99.7", "bad-address"},
			{"", "224.0.0.1", "", "198.51.99.7", "bad-address"},
			{"", "255.255.255.255", "", "198.51.99.7", "bad-address"},
			// Whatever is set aside for another purpose, in whatever form.
			{"", "10.1.2.3", "", "198.51.99.7", "bad-address"},
			{"", "100.64.1.2", "", "198.51.99.7", "bad-address"},
			{"10.1.2.3", "10.1.2.3", "", "198.51.99.7", "bad-address"},
			{"10.1.2.3", "10.1.2.3", "", "10.1.2.3", "no-usable-address"},
			{"", "192.0.2.1", "", "198.51.99.7", "bad-address"},
			{"", "198.18.0.1", "", "198.51.99.7", "bad-address"},
			{"", "203.0.113.9", "", "198.51.99.7", "bad-address"},
			{"", "::ffff:10.1.2.3", "", "198.51.99.7", "bad-address"},
			{"", "", "", "100.64.1.2", "no-usable-address"},
			{"", "", "2001:db8::5", "127.0.0.1", "bad-address"},
			{"", "", "64:ff9b::10.1.2.3", "127.0.0.1", "bad-address"},
			{"", "", "2002:a01:203::1", "127.0.0.1", "bad-address"},
			{"", "", "2001::1", "127.0.0.1", "bad-address"},
			{"", "", "fd00::1", "127.0.0.1", "bad-address"},
			{"", "2001:db9::5", "", "198.51.99.7", "bad-address"},
			{"", "", "::ffff:127.0.0.1", "198.51.99.7", "bad-address"},
			{"", "", "::ffff:198.51.99.9", "198.51.99.7", "bad-address"},
			{"", "", "::", "198.51.99.7", "bad-address"},
			{"", "", "::1", "198.51.99.7", "bad-address"},
			{"", "", "ff02::1", "198.51.99.7", "bad-address"},
			{"", "", "fe80::1", "198.51.99.7", "bad-address"},
			{"127.0.0.1", "198.51.99.9", "", "198.51.99.7", "bad-address"},
		} {
			r := registrations.Request{
				Type: models.MemberDevice, ID: phone.Device.ID, Role: models.RoleDestination, GroupName: "g",
				PrivateIPv4: servertest.Addr(c.private), PublicIPv4: servertest.Addr(c.public), IPv6: servertest.Addr(c.v6), RemoteAddr: servertest.Addr(c.remote),
			}
			if _, err := netip.ParseAddr(c.want); err != nil {
				servertest.Refused(t, models.Code(c.want), join(h, phone, r))
				continue
			}
			h.Join(t, phone, r)
			require.Equal(t, []string{"1 phone " + c.want}, reached(h.Information(t).Groups[0]), "%+v", c)
		}

		// A service's null isn't filled in: its request comes from somewhere in its data centre.
		servertest.Refused(t, models.CodeNoUsableAddress, join(h, upload.Principal, servertest.ServiceDestination(upload, "", "g", ip)))
	})
}

func TestAllowLoopbackLiftsOnlyTheLoopbackRules(t *testing.T) {
	storetest.Each(t, func(t *testing.T, db *storetest.DB) {
		s := servertest.On(db, db.Store)
		s.Registrations = registrations.New(db.Store, registrations.Options{AllowLoopback: true, Credentials: servertest.Credentials})
		s.Gateways = gateways.New(db.Store, gateways.Options{AllowLoopback: true})
		h := s.NewAccount(t, false)
		d := h.Declaration("127.77.0.230-127.77.0.254")
		d.LANPrefix, d.GatewayIPv4, d.UplinkIPv4 = "127.77.0.0/24", servertest.Addr("127.77.0.1"), servertest.Addr("127.0.0.1")
		_, _, err := h.Gateways.Declare(context.Background(), h.Gateway, d)
		require.NoError(t, err)
		camera, phone := h.Device(t, models.DeviceCamera, "camera"), h.Device(t, models.DevicePhone, "phone")
		require.Equal(t, "127.77.0.230", h.Join(t, camera, servertest.Source(camera, "127.77.0.5", "g")).GroupIP.String())
		r := servertest.Destination(phone, "127.77.0.11", "g")
		r.RemoteAddr, r.Port = servertest.Addr("127.0.0.1"), 5004
		h.Join(t, phone, r)
		require.Equal(t, []string{"1 phone 127.77.0.11"}, reached(h.Information(t).Groups[0]))
		require.EqualValues(t, 5004, h.Information(t).Groups[0].Destinations[0].Port)
		for _, public := range []string{"127.77.0.235", "127.77.0.1", "0.0.0.0", "224.0.0.1", "10.1.2.3", "192.0.2.1"} {
			r.PublicIPv4 = servertest.Addr(public)
			servertest.Refused(t, models.CodeBadAddress, join(h, phone, r))
		}
		r.PublicIPv4, r.IPv6 = netip.Addr{}, servertest.Addr("::1")
		servertest.Refused(t, models.CodeBadAddress, join(h, phone, r))
	})
}

func TestGrantedTimes(t *testing.T) {
	each(t, func(t *testing.T, h *servertest.Home) {
		camera := h.Device(t, models.DeviceCamera, "camera")
		for asked, granted := range map[int]int{0: 30, 29: 30, 30: 30, 100: 100, 86400: 86400, 86401: 86400, 2147483647: 86400} {
			r := servertest.Source(camera, "172.168.0.5", "g")
			r.TTL = &asked
			a := h.Join(t, camera, r)
			require.Equal(t, granted, a.TTL)
			require.InDelta(t, granted/3, a.RenewAfter, float64(granted)/30+1)
			held, err := h.Registrations.Get(context.Background(), camera, a.RegistrationID)
			require.NoError(t, err)
			require.Equal(t, time.Duration(granted)*time.Second, held.TTL)
			require.InDelta(t, granted, held.ExpiresIn.Seconds(), 20)
		}
	})
}

func TestNames(t *testing.T) {
	each(t, func(t *testing.T, h *servertest.Home) {
		camera := h.Import(t, accounts.NewDevice{PremisesID: h.Premises.ID, Type: models.DeviceCamera, Name: "camera1", Model: "C1"})
		a := h.Join(t, camera, servertest.Source(camera, "172.168.0.5", "g"))
		held, err := h.Registrations.Get(context.Background(), camera, a.RegistrationID)
		require.NoError(t, err)
		require.Equal(t, "camera1", held.Name)
		require.Equal(t, "C1", held.Model)
		require.Equal(t, models.DeviceCamera, held.DeviceType)
		require.Equal(t, "g", held.Group.Name)
		require.Equal(t, h.Premises.ID, held.PremisesID)
		r := servertest.Source(camera, "172.168.0.5", "g")
		r.Name, r.Model = "front door", "C2"
		h.Join(t, camera, r)
		require.Equal(t, "front door", h.Information(t).Groups[0].Sources[0].Name)
	})
}

func TestListsOnlyOnesOwn(t *testing.T) {
	each(t, func(t *testing.T, h *servertest.Home) {
		ctx := context.Background()
		camera, phone := h.Device(t, models.DeviceCamera, "camera"), h.Device(t, models.DevicePhone, "phone")
		upload := h.Service(t, "svc-upload", 0)
		var mine []models.RegistrationID
		for i := range 5 {
			name := string(rune('a' + i))
			ip := h.Join(t, camera, servertest.Source(camera, "172.168.0.5", name)).GroupIP
			mine = append(mine, h.Join(t, phone, servertest.Destination(phone, "198.51.99.9", name)).RegistrationID)
			h.Join(t, upload.Principal, servertest.ServiceDestination(upload, "96.114.14.140", name, ip))
		}
		for _, size := range []int{1, 2, 5, 6} {
			var got []models.RegistrationID
			page := models.Page{Size: size}
			for {
				all, next, err := h.Registrations.List(ctx, phone, page)
				require.NoError(t, err)
				require.LessOrEqual(t, len(all), size)
				for _, r := range all {
					got = append(got, r.ID)
					require.Equal(t, 2, r.Group.State)
				}
				if next == "" {
					break
				}
				page.Token = next
			}
			require.Equal(t, mine, got, "page size %d", size)
		}
		all, _, err := h.Registrations.List(ctx, upload.Principal, models.Page{})
		require.NoError(t, err)
		require.Len(t, all, 5)
		_, err = h.Registrations.Get(ctx, upload.Principal, mine[0])
		servertest.Refused(t, models.CodeNotFound, err)
		_, _, err = h.Registrations.Leave(ctx, camera, mine[0])
		servertest.Refused(t, models.CodeNotFound, err)
		_, _, err = h.Registrations.List(ctx, phone, models.Page{Token: "AAAA"})
		servertest.Refused(t, models.CodeBadRequest, err)
	})
}
