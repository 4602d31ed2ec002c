// Package servertest sets up the domain services on a fresh database, with the home of the worked example (SPEC §3): an account
// with a premises, its gateway, cameras, receivers, a phone, and services linked with it. It is for tests of the domain only; the
// HTTP edge has e2e/harness.
package servertest

import (
	"context"
	"net/netip"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/groupcast/groupcast/models"
	"github.com/groupcast/groupcast/server/accounts"
	"github.com/groupcast/groupcast/server/consents"
	"github.com/groupcast/groupcast/server/gateways"
	"github.com/groupcast/groupcast/server/groups"
	"github.com/groupcast/groupcast/server/registrations"
	"github.com/groupcast/groupcast/server/store"
	"github.com/groupcast/groupcast/server/store/storetest"
)

// MaxStale is the setting of a new database, and Cooldown what follows from it.
const (
	MaxStale = 900 * time.Second
	Cooldown = MaxStale + 60*time.Second
)

// Services are the domain services on one database.
type Services struct {
	DB            *storetest.DB
	Accounts      *accounts.Service
	Gateways      *gateways.Service
	Registrations *registrations.Service
	Groups        *groups.Service
	Consents      *consents.Service
	Woken         *Woken
}

// Credentials are those of all tests' installations.
var Credentials = consents.NewCredentials([]byte("the key of tests"))

// On makes the services on a store, which may be another replica than the database's own.
func On(db *storetest.DB, st *store.Store) *Services {
	woken := &Woken{}
	st.OnCommit(woken.note)
	return &Services{
		DB:            db,
		Accounts:      accounts.New(st, models.Quotas{}),
		Gateways:      gateways.New(st, gateways.Options{}),
		Registrations: registrations.New(st, registrations.Options{Credentials: Credentials}),
		Groups:        groups.New(st, Credentials),
		Consents:      consents.New(st),
		Woken:         woken,
	}
}

// Woken remembers which gateways had something to be woken for.
type Woken struct {
	mu  sync.Mutex
	ids []models.ID
}

func (w *Woken) note(c store.Changed) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.ids = append(w.ids, c.Gateways...)
}

// Take gives the gateways woken since the last call.
func (w *Woken) Take() []models.ID {
	w.mu.Lock()
	defer w.mu.Unlock()
	ids := w.ids
	w.ids = nil
	return ids
}

// Home is an account with one premises and its gateway.
type Home struct {
	*Services
	Account  models.Account
	Premises models.Premises
	Gateway  models.Principal
}

// NewHome makes the home of the worked example: LAN 172.168.0.0/24, gateway .1, uplink 203.0.113.1, group range .233 to .254.
func (s *Services) NewHome(t testing.TB) *Home {
	t.Helper()
	h := s.NewAccount(t, true)
	h.Declare(t, "172.168.0.233-172.168.0.254")
	return h
}

// NewAccount makes an account with a premises and a gateway that has declared nothing.
func (s *Services) NewAccount(t testing.TB, allowPublicRange bool) *Home {
	t.Helper()
	ctx := context.Background()
	a, err := s.Accounts.CreateAccount(ctx, "Example")
	require.NoError(t, err)
	p, err := s.Accounts.CreatePremises(ctx, a.ID, "Home", allowPublicRange)
	require.NoError(t, err)
	h := &Home{Services: s, Account: a, Premises: p}
	h.Gateway = h.Device(t, models.DeviceGateway, "gateway")
	return h
}

// Declaration is the home's, with a group range.
func (h *Home) Declaration(groupRange string) gateways.Declaration {
	return gateways.Declaration{
		GatewayID: h.Gateway.Device.ID, LANPrefix: "172.168.0.0/24", GatewayIPv4: Addr("172.168.0.1"), UplinkIPv4: Addr("203.0.113.1"),
		GroupRange: groupRange,
	}
}

// Declare declares the home's network with a group range.
func (h *Home) Declare(t testing.TB, groupRange string) {
	t.Helper()
	_, _, err := h.Gateways.Declare(context.Background(), h.Gateway, h.Declaration(groupRange))
	require.NoError(t, err)
}

// Device adds a device and authenticates it.
func (h *Home) Device(t testing.TB, kind models.DeviceType, name string) models.Principal {
	t.Helper()
	return h.Import(t, accounts.NewDevice{PremisesID: h.Premises.ID, Type: kind, Name: name})
}

// Import adds a device as described and authenticates it.
func (h *Home) Import(t testing.TB, n accounts.NewDevice) models.Principal {
	t.Helper()
	d, err := h.Accounts.CreateDevice(context.Background(), n)
	require.NoError(t, err)
	p, err := h.Accounts.DevicePrincipal(context.Background(), h.Account.ID, d.ID)
	require.NoError(t, err)
	return p
}

// Linked is a service with its link to the home's account.
type Linked struct {
	models.Principal
	Link models.Link
}

// Service adds a service if it is new, links it with the account and authenticates it. The service account id is drawn if it is 0.
func (h *Home) Service(t testing.TB, id models.ServiceID, serviceAccountID models.ID) Linked {
	t.Helper()
	ctx := context.Background()
	if _, err := h.Accounts.Service(ctx, id); err != nil {
		_, err = h.Accounts.CreateService(ctx, id, string(id))
		require.NoError(t, err)
	}
	l, err := h.Accounts.CreateLink(ctx, models.Link{ServiceID: id, AccountID: h.Account.ID, ServiceAccountID: serviceAccountID})
	require.NoError(t, err)
	p, err := h.Accounts.ServicePrincipal(ctx, id)
	require.NoError(t, err)
	return Linked{Principal: p, Link: l}
}

// Source is a camera's request for a group in the home's LAN.
func Source(camera models.Principal, private, groupName string) registrations.Request {
	return registrations.Request{
		Type: models.MemberDevice, ID: camera.Device.ID, Role: models.RoleSource, PrivateIPv4: Addr(private),
		RemoteAddr: Addr("203.0.113.1"), GroupName: groupName,
	}
}

// Destination is a device's request to receive at a public address.
func Destination(device models.Principal, public, groupName string) registrations.Request {
	return registrations.Request{
		Type: models.MemberDevice, ID: device.Device.ID, Role: models.RoleDestination, PublicIPv4: Addr(public),
		RemoteAddr: Addr("198.51.99.7"), GroupName: groupName,
	}
}

// ServiceDestination is a service's request to receive at a public address.
func ServiceDestination(service Linked, public, groupName string, groupIP netip.Addr) registrations.Request {
	return registrations.Request{
		Type: models.MemberService, ID: service.Link.ServiceAccountID, Role: models.RoleDestination, PublicIPv4: Addr(public),
		RemoteAddr: Addr("198.51.99.8"), GroupName: groupName, GroupIP: groupIP,
	}
}

// Join joins and fails the test if that is refused.
func (s *Services) Join(t testing.TB, p models.Principal, r registrations.Request) registrations.Answer {
	t.Helper()
	a, err := s.Registrations.Join(context.Background(), p, r)
	require.NoError(t, err)
	return a
}

// Leave leaves and fails the test if that is refused.
func (s *Services) Leave(t testing.TB, p models.Principal, id models.RegistrationID) int {
	t.Helper()
	_, state, err := s.Registrations.Leave(context.Background(), p, id)
	require.NoError(t, err)
	return state
}

// Information reads the gateway's group information.
func (h *Home) Information(t testing.TB) models.GroupInformation {
	t.Helper()
	i, err := h.Groups.Information(context.Background(), h.Gateway.Device.ID)
	require.NoError(t, err)
	return i
}

// Acknowledge polls as the gateway would, with the group information it has now.
func (h *Home) Acknowledge(t testing.TB) {
	t.Helper()
	i := h.Information(t)
	require.NoError(t, h.DB.RecordPolls(context.Background(), []models.Poll{{GatewayID: i.GatewayID, Epoch: i.Epoch, Revision: i.Revision}}))
}

// Refused fails the test unless the error is a refusal with the code, and gives it.
func Refused(t testing.TB, code models.Code, err error) *models.Error {
	t.Helper()
	var refusal *models.Error
	require.ErrorAs(t, err, &refusal)
	require.Equal(t, code, refusal.Code, "%v", err)
	require.NotEmpty(t, refusal.Detail)
	return refusal
}

// Addr parses an address; empty is the zero one.
func Addr(s string) netip.Addr {
	if s == "" {
		return netip.Addr{}
	}
	return netip.MustParseAddr(s)
}
