package accounts_test

import (
	"errors"
	"fmt"
	"log/slog"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sync/errgroup"

	"github.com/groupcast/groupcast/models"
	"github.com/groupcast/groupcast/server/accounts"
	"github.com/groupcast/groupcast/server/expiry"
	"github.com/groupcast/groupcast/server/groups"
	"github.com/groupcast/groupcast/server/servertest"
	"github.com/groupcast/groupcast/server/store/storetest"
)

// second adds another premises to a home, with the same LAN as the first.
func second(t *testing.T, h *servertest.Home) *servertest.Home {
	t.Helper()
	p, err := h.Accounts.CreatePremises(ctx, h.Account.ID, "Cabin", true)
	require.NoError(t, err)
	cabin := *h
	cabin.Premises = p
	cabin.Gateway = cabin.Device(t, models.DeviceGateway, "cabin gateway")
	cabin.Declare(t, "172.168.0.233-172.168.0.254")
	return &cabin
}

// source begins a group.
func source(t *testing.T, h *servertest.Home, group string) {
	t.Helper()
	camera := h.Device(t, models.DeviceCamera, group)
	h.Join(t, camera, servertest.Source(camera, "172.168.0.5", group))
}

func put(t *testing.T, h *servertest.Home, c models.Consent) models.Link {
	t.Helper()
	l, err := h.Accounts.PutLink(ctx, models.Link{ServiceID: "svc-upload", AccountID: h.Account.ID, GrantedBy: "u_anna", Consent: c})
	require.NoError(t, err)
	return l.Link
}

func seen(t *testing.T, h *servertest.Home, p models.Principal) (names []string) {
	t.Helper()
	all, _, err := h.Groups.List(ctx, p, groups.Filter{}, models.Page{})
	require.NoError(t, err)
	for _, g := range all {
		names = append(names, g.Name)
		_, err := h.Groups.Get(ctx, p, g.ID)
		require.NoError(t, err)
	}
	return names
}

// held counts the registrations of a service.
func held(t *testing.T, h *servertest.Home, p models.Principal) int {
	t.Helper()
	all, _, err := h.Registrations.List(ctx, p, models.Page{})
	require.NoError(t, err)
	return len(all)
}

// TestAttackBeyondTheConsent: a service that knows name and IP of a group of a linked account gets nowhere with them if the account's consent
// doesn't cover the group's premises, what it wants to do, or the moment.
func TestAttackBeyondTheConsent(t *testing.T) {
	storetest.Each(t, func(t *testing.T, db *storetest.DB) {
		home := servertest.On(db, db.Store).NewHome(t)
		cabin := second(t, home)
		source(t, home, "door")
		source(t, cabin, "shed")
		upload := home.Service(t, "svc-upload", 0)
		door, shed := home.Information(t).Groups[0], cabin.Information(t).Groups[0]
		join := func(g models.GatewayGroup) error {
			_, err := home.Registrations.Join(ctx, upload.Principal, servertest.ServiceDestination(upload, "96.114.14.140", g.Name, g.IP))
			return err
		}
		require.Equal(t, []string{"door", "shed"}, seen(t, home, upload.Principal))
		for _, c := range []struct {
			consent    models.Consent
			sees       []string
			door, shed bool
		}{
			{models.Consent{Premises: []models.PremisesID{home.Premises.ID}}, []string{"door"}, true, false},
			{models.Consent{Premises: []models.PremisesID{cabin.Premises.ID}}, []string{"shed"}, false, true},
			{models.Consent{Premises: []models.PremisesID{cabin.Premises.ID, home.Premises.ID}}, []string{"door", "shed"}, true, true},
			{models.Consent{Scopes: []string{models.ScopeNotify}}, []string{"door", "shed"}, false, false},
			{models.Consent{Scopes: []string{models.ScopeRegister}}, nil, true, true},
			{models.Consent{Scopes: []string{models.ScopeEvents}}, nil, false, false},
			{models.Consent{Scopes: []string{models.ScopeRegister}, Premises: []models.PremisesID{home.Premises.ID}}, nil, true, false},
			{models.Consent{}, []string{"door", "shed"}, true, true},
		} {
			l := put(t, home, c.consent)
			require.Equal(t, upload.Link.ServiceAccountID, l.ServiceAccountID, "one consent, one id")
			require.Equal(t, "u_anna", l.GrantedBy)
			require.Equal(t, c.sees, seen(t, home, upload.Principal), "%+v", c.consent)
			for g, may := range map[*models.GatewayGroup]bool{&door: c.door, &shed: c.shed} {
				if may {
					require.NoError(t, join(*g), "%s: %+v", g.Name, c.consent)
					require.NoError(t, join(*g), "renewed: %+v", c.consent)
				} else {
					require.Equal(t, models.NotFound(), refusal(t, join(*g)), "as if it weren't there: %+v", c.consent)
				}
			}
			want := 0
			for _, may := range []bool{c.door, c.shed} {
				if may {
					want++
				}
			}
			require.Equal(t, want, held(t, home, upload.Principal), "what is no longer covered has ended: %+v", c.consent)
		}
		// Each alone: the right name with the wrong IP, and the other way.
		door.IP = servertest.Addr("172.168.0.254")
		require.Equal(t, models.NotFound(), refusal(t, join(door)))
		shed.Name = "door"
		shed.IP = servertest.Addr("172.168.0.253")
		require.Equal(t, models.NotFound(), refusal(t, join(shed)))
	})
}

func refusal(t *testing.T, err error) *models.Error {
	t.Helper()
	var r *models.Error
	require.ErrorAs(t, err, &r)
	return r
}

// TestANarrowerConsentEndsTheRest: at once, in one transaction, with state and revision, and only where something ended.
func TestANarrowerConsentEndsTheRest(t *testing.T) {
	storetest.Each(t, func(t *testing.T, db *storetest.DB) {
		home := servertest.On(db, db.Store).NewHome(t)
		cabin := second(t, home)
		source(t, home, "door")
		source(t, cabin, "shed")
		upload := home.Service(t, "svc-upload", 0)
		for _, h := range []*servertest.Home{home, cabin} {
			g := h.Information(t).Groups[0]
			h.Join(t, upload.Principal, servertest.ServiceDestination(upload, "96.114.14.140", g.Name, g.IP))
		}
		atHome, atCabin := home.Information(t), cabin.Information(t)
		require.Equal(t, 1, atCabin.Groups[0].State)
		home.Woken.Take()

		put(t, home, models.Consent{Premises: []models.PremisesID{home.Premises.ID}})
		require.Equal(t, atHome, home.Information(t), "nothing changes where the consent goes on")
		after := cabin.Information(t)
		require.Equal(t, atCabin.Revision+1, after.Revision)
		require.Zero(t, after.Groups[0].State)
		require.Empty(t, after.Groups[0].Destinations)
		require.Equal(t, []models.ID{cabin.Gateway.Device.ID}, home.Woken.Take())

		put(t, home, models.Consent{Premises: []models.PremisesID{home.Premises.ID}})
		require.Equal(t, after, cabin.Information(t), "the same again changes nothing")
		require.Empty(t, home.Woken.Take())
		put(t, home, models.Consent{Scopes: []string{models.ScopeNotify}})
		require.Zero(t, home.Information(t).Groups[0].State, "who may not register is no member")
		require.Equal(t, []models.ID{home.Gateway.Device.ID}, home.Woken.Take())
		require.Zero(t, db.Deadlocks(t))
	})
}

func TestAConsentEndsByItself(t *testing.T) {
	storetest.Each(t, func(t *testing.T, db *storetest.DB) {
		h := servertest.On(db, db.Store).NewHome(t)
		look := func() {
			_, err := expiry.New(db.Store, slog.New(slog.DiscardHandler)).Look(ctx)
			require.NoError(t, err)
		}
		look()
		source(t, h, "door")
		upload := h.Service(t, "svc-upload", 0)
		g := h.Information(t).Groups[0]
		join := servertest.ServiceDestination(upload, "96.114.14.140", g.Name, g.IP)
		h.Join(t, upload.Principal, join)
		until := time.Now().Add(10 * time.Minute).Truncate(time.Second)
		l := put(t, h, models.Consent{ExpiresAt: until})
		require.True(t, until.Equal(l.ExpiresAt))
		db.Advance(t, 9*time.Minute)
		look()
		h.Join(t, upload.Principal, join)
		put(t, h, models.Consent{ExpiresAt: until.Add(5 * time.Minute)})
		db.Advance(t, 2*time.Minute)
		look()
		before := h.Information(t)
		require.Equal(t, 1, before.Groups[0].State, "it was prolonged")

		db.Advance(t, 5*time.Minute)
		h.Woken.Take()
		// From that moment on, whether somebody has cleared up or not.
		_, err := h.Registrations.Join(ctx, upload.Principal, join)
		require.Equal(t, models.NotFound(), refusal(t, err))
		require.Empty(t, seen(t, h, upload.Principal))
		_, err = h.Accounts.LinkByServiceAccountID(ctx, "svc-upload", upload.Link.ServiceAccountID)
		servertest.Refused(t, models.CodeNotFound, err)
		all, _, err := h.Accounts.ListLinks(ctx, h.Account.ID, models.Page{})
		require.NoError(t, err)
		require.Empty(t, all)
		var reapers errgroup.Group
		for range 2 {
			reapers.Go(func() error {
				_, err := expiry.New(db.Store, slog.New(slog.DiscardHandler)).Look(ctx)
				return err
			})
		}
		require.NoError(t, reapers.Wait())
		after := h.Information(t)
		require.Zero(t, after.Groups[0].State)
		require.Equal(t, before.Revision+1, after.Revision, "once")
		require.Equal(t, []models.ID{h.Gateway.Device.ID}, h.Woken.Take())
		require.Equal(t, []int64{0}, db.Ints(t, "SELECT count(*) FROM service_links"))
		require.Equal(t, []int64{1}, db.Ints(t, "SELECT count(*) FROM audit_rows WHERE action = 'link.end' AND actor = 'system'"))
		again := put(t, h, models.Consent{})
		require.NotEqual(t, upload.Link.ServiceAccountID, again.ServiceAccountID, "a new consent is a new name")

		// Consenting again before anybody has cleared up is a new consent, too.
		put(t, h, models.Consent{ExpiresAt: time.Now().Add(17 * time.Minute)})
		upload.Link = again
		h.Join(t, upload.Principal, servertest.ServiceDestination(upload, "96.114.14.140", g.Name, g.IP))
		db.Advance(t, 5*time.Minute)
		third := put(t, h, models.Consent{})
		require.NotEqual(t, again.ServiceAccountID, third.ServiceAccountID)
		require.Zero(t, h.Information(t).Groups[0].State, "what the old one allowed has ended")
	})
}

func TestWhatCanBeConsentedTo(t *testing.T) {
	storetest.Each(t, func(t *testing.T, db *storetest.DB) {
		s := servertest.On(db, db.Store)
		h, other := s.NewHome(t), s.NewHome(t)
		upload := h.Service(t, "svc-upload", 0)
		for name, c := range map[string]struct {
			consent models.Consent
			want    models.Code
		}{
			"another's premises": {models.Consent{Premises: []models.PremisesID{h.Premises.ID, other.Premises.ID}}, models.CodeNotFound},
			"nobody's premises":  {models.Consent{Premises: []models.PremisesID{models.NewPremisesID()}}, models.CodeNotFound},
			"no premises":        {models.Consent{Premises: []models.PremisesID{}}, models.CodeBadRequest},
			"a gateway's scope":  {models.Consent{Scopes: []string{"gc:groups.read"}}, models.CodeBadRequest},
			"no scope":           {models.Consent{Scopes: []string{}}, models.CodeBadRequest},
			"a past":             {models.Consent{ExpiresAt: time.Now().Add(-time.Minute)}, models.CodeBadRequest},
			"1970":               {models.Consent{ExpiresAt: time.Unix(0, 0)}, models.CodeBadRequest},
		} {
			_, err := h.Accounts.PutLink(ctx, models.Link{ServiceID: "svc-upload", AccountID: h.Account.ID, Consent: c.consent})
			require.Equal(t, c.want, refusal(t, err).Code, name)
			_, err = h.Accounts.CreateLink(ctx, models.Link{ServiceID: "svc-upload", AccountID: other.Account.ID, Consent: c.consent})
			if name != "another's premises" {
				require.Equal(t, c.want, refusal(t, err).Code, name)
			}
		}
		all, _, err := h.Accounts.ListLinks(ctx, h.Account.ID, models.Page{})
		require.NoError(t, err)
		require.Equal(t, upload.Link, all[0].Link, "what was refused changed nothing")
		require.Equal(t, accounts.ByOperator, upload.Link.GrantedBy)
	})
}

// TestJoiningWhileTheConsentShrinks: whatever the order, nobody is registered in the end where the consent doesn't reach.
func TestJoiningWhileTheConsentShrinks(t *testing.T) {
	storetest.Each(t, func(t *testing.T, db *storetest.DB) {
		home := servertest.On(db, db.Store).NewHome(t)
		cabin := second(t, home)
		source(t, cabin, "shed")
		g := cabin.Information(t).Groups[0]
		upload := home.Service(t, "svc-upload", 0)
		for round := range 15 {
			put(t, home, models.Consent{})
			var all errgroup.Group
			for i := range 4 {
				r := servertest.ServiceDestination(upload, "96.114.14.140", g.Name, g.IP)
				r.Instance = fmt.Sprint(round, i)
				all.Go(func() error {
					_, err := home.Registrations.Join(ctx, upload.Principal, r)
					var refusal *models.Error
					if errors.As(err, &refusal) && refusal.Code == models.CodeNotFound {
						return nil
					}
					return err
				})
			}
			all.Go(func() error {
				_, err := home.Accounts.PutLink(ctx, models.Link{
					ServiceID: "svc-upload", AccountID: home.Account.ID, Consent: models.Consent{Premises: []models.PremisesID{home.Premises.ID}},
				})
				return err
			})
			require.NoError(t, all.Wait())
			require.Zero(t, held(t, home, upload.Principal))
			require.Zero(t, cabin.Information(t).Groups[0].State)
		}
		require.Zero(t, db.Deadlocks(t))
	})
}
