// Package adminapi answers the operator's contract (openapi/admin.yaml): it translates between the contract's types and the
// services, and holds no rules. Which socket it is served on, and how requests are checked before they get here, is
// server/httpapi's business.
package adminapi

import (
	"context"
	"net/netip"
	"time"

	"github.com/groupcast/groupcast/models"
	"github.com/groupcast/groupcast/openapi/adminapi"
	"github.com/groupcast/groupcast/openapi/adminserver"
	"github.com/groupcast/groupcast/server/accounts"
	"github.com/groupcast/groupcast/server/audit"
	"github.com/groupcast/groupcast/server/backup"
	"github.com/groupcast/groupcast/server/devicegrant"
	"github.com/groupcast/groupcast/server/enrolment"
	"github.com/groupcast/groupcast/server/eventqueue"
	"github.com/groupcast/groupcast/server/keys"
	"github.com/groupcast/groupcast/server/oauth"
	"github.com/groupcast/groupcast/server/relays"
	"github.com/groupcast/groupcast/server/store"
	"github.com/groupcast/groupcast/server/tokens"
	"github.com/groupcast/groupcast/server/users"
)

// tokenLife is what a token lives if the operator doesn't say.
const tokenLife = 24 * time.Hour

// Identity is what issues and takes credentials.
type Identity struct {
	Issuer    *tokens.Issuer
	OAuth     *oauth.Service
	Enrolment *enrolment.Service
	Grants    *devicegrant.Service
	Keys      *keys.Ring
}

// Handlers answers the operator's requests.
type Handlers struct {
	accounts *accounts.Service
	identity Identity
	users    *users.Service
	store    *store.Store
	rotator  *backup.Rotator
	queue    *eventqueue.Keys
	relays   *relays.Service
}

var _ adminserver.StrictServerInterface = (*Handlers)(nil)

// New makes the handlers. The store is for the audit log and the list of services.
func New(a *accounts.Service, i Identity, u *users.Service, st *store.Store, r *backup.Rotator, q *eventqueue.Keys, nodes *relays.Service) *Handlers {
	return &Handlers{accounts: a, identity: i, users: u, store: st, rotator: r, queue: q, relays: nodes}
}

// GetQueueConfiguration says what the servers of a NATS cluster have to know.
func (h *Handlers) GetQueueConfiguration(ctx context.Context, _ adminserver.GetQueueConfigurationRequestObject) (adminserver.GetQueueConfigurationResponseObject, error) {
	services, err := h.store.ServiceIDs(ctx)
	if err != nil {
		return nil, err
	}
	return adminserver.GetQueueConfiguration200JSONResponse{Configuration: h.queue.Configuration(services)}, nil
}

// RotateEpoch begins a new life of the database.
func (h *Handlers) RotateEpoch(ctx context.Context, _ adminserver.RotateEpochRequestObject) (adminserver.RotateEpochResponseObject, error) {
	life, err := h.rotator.Rotate(ctx)
	if err != nil {
		return nil, err
	}
	return adminserver.RotateEpoch200JSONResponse{Epoch: life.Epoch, EndedGroups: int32(life.Groups)}, nil
}

// CreateAccount creates an account.
func (h *Handlers) CreateAccount(ctx context.Context, r adminserver.CreateAccountRequestObject) (adminserver.CreateAccountResponseObject, error) {
	a, err := h.accounts.CreateAccount(ctx, r.Body.Name)
	if err != nil {
		return nil, err
	}
	return adminserver.CreateAccount200JSONResponse(account(accounts.Account{Account: a})), nil
}

// ListAccounts lists accounts with everything that belongs to them.
func (h *Handlers) ListAccounts(ctx context.Context, r adminserver.ListAccountsRequestObject) (adminserver.ListAccountsResponseObject, error) {
	list, next, err := h.accounts.ListAccounts(ctx, page(r.Params.PageSize, r.Params.PageToken))
	if err != nil {
		return nil, err
	}
	return adminserver.ListAccounts200JSONResponse{Accounts: convert(list, account), NextPageToken: orNil(next)}, nil
}

// page is what a list is asked for; what is absent is zero.
func page(size *int32, token *string) models.Page {
	return models.Page{Size: int(value(size)), Token: value(token)}
}

// CreatePremises creates a premises.
func (h *Handlers) CreatePremises(ctx context.Context, r adminserver.CreatePremisesRequestObject) (adminserver.CreatePremisesResponseObject, error) {
	p, err := h.accounts.CreatePremises(ctx, r.Body.AccountID, r.Body.Name, value(r.Body.AllowPublicRange))
	if err != nil {
		return nil, err
	}
	return adminserver.CreatePremises200JSONResponse(premises(p)), nil
}

// CreateDevice creates or imports a device.
func (h *Handlers) CreateDevice(ctx context.Context, r adminserver.CreateDeviceRequestObject) (adminserver.CreateDeviceResponseObject, error) {
	d, err := h.accounts.CreateDevice(ctx, accounts.NewDevice{
		ID:         value(r.Body.DeviceID),
		PremisesID: r.Body.PremisesID,
		Type:       r.Body.Type,
		Name:       r.Body.Name,
		Model:      value(r.Body.Model),
		NoPoP:      r.Body.Pop != nil && !*r.Body.Pop,
		Trigger:    value(r.Body.Trigger),
	})
	if err != nil {
		return nil, err
	}
	return adminserver.CreateDevice200JSONResponse(device(d)), nil
}

// ChangeDevice renames a device or changes its trigger.
func (h *Handlers) ChangeDevice(ctx context.Context, r adminserver.ChangeDeviceRequestObject) (adminserver.ChangeDeviceResponseObject, error) {
	d, err := h.accounts.ChangeDevice(ctx, "", r.DeviceID, accounts.DeviceChange{Name: r.Body.Name, Trigger: r.Body.Trigger})
	if err != nil {
		return nil, err
	}
	return adminserver.ChangeDevice200JSONResponse(device(d)), nil
}

// DeleteDevice removes a device.
func (h *Handlers) DeleteDevice(ctx context.Context, r adminserver.DeleteDeviceRequestObject) (adminserver.DeleteDeviceResponseObject, error) {
	if err := h.accounts.DeleteDevice(ctx, "", r.DeviceID); err != nil {
		return nil, err
	}
	return adminserver.DeleteDevice204Response{}, nil
}

// CreateService creates a service.
func (h *Handlers) CreateService(ctx context.Context, r adminserver.CreateServiceRequestObject) (adminserver.CreateServiceResponseObject, error) {
	allowed, err := allowedCIDRs(value(r.Body.AllowedCIDRs))
	if err != nil {
		return nil, err
	}
	s, err := h.accounts.CreateService(ctx, r.Body.ServiceID, r.Body.Name, allowed...)
	if err != nil {
		return nil, err
	}
	return adminserver.CreateService200JSONResponse{ServiceID: s.ID, Name: s.Name}, nil
}

// CreateLink records an account's consent for a service.
func (h *Handlers) CreateLink(ctx context.Context, r adminserver.CreateLinkRequestObject) (adminserver.CreateLinkResponseObject, error) {
	l, err := h.accounts.CreateLink(ctx, models.Link{
		ServiceID: r.Body.ServiceID, AccountID: r.Body.AccountID, ServiceAccountID: value(r.Body.ServiceAccountID),
		Consent: models.Consent{Scopes: scopes(r.Body.Scopes), Premises: value(r.Body.Premises), ExpiresAt: value(r.Body.ExpiresAt)},
	})
	if err != nil {
		return nil, err
	}
	return adminserver.CreateLink200JSONResponse(link(l)), nil
}

// DeleteLink ends the consent.
func (h *Handlers) DeleteLink(ctx context.Context, r adminserver.DeleteLinkRequestObject) (adminserver.DeleteLinkResponseObject, error) {
	if err := h.accounts.DeleteLink(ctx, r.ServiceID, r.AccountID); err != nil {
		return nil, err
	}
	return adminserver.DeleteLink204Response{}, nil
}

// CreateToken mints a token for exactly one of a device and a service.
func (h *Handlers) CreateToken(ctx context.Context, r adminserver.CreateTokenRequestObject) (adminserver.CreateTokenResponseObject, error) {
	life := tokenLife
	if r.Body.LifetimeSeconds != nil {
		life = time.Duration(*r.Body.LifetimeSeconds) * time.Second
	}
	token, err := h.mint(ctx, *r.Body, life)
	if err != nil {
		return nil, err
	}
	return adminserver.CreateToken200JSONResponse{
		AccessToken: token, TokenType: adminapi.Bearer, ExpiresIn: int32(life / time.Second),
	}, nil
}

func (h *Handlers) mint(ctx context.Context, r adminapi.TokenRequest, life time.Duration) (string, error) {
	if (r.DeviceID == nil) == (r.ServiceID == nil) {
		return "", models.Errorf(models.CodeBadRequest, "Name exactly one of deviceId and serviceId: whom shall the token stand for?")
	}
	if r.ServiceID != nil {
		s, err := h.accounts.Service(ctx, *r.ServiceID)
		if err != nil {
			return "", err
		}
		return h.issued(ctx, "", audit.OfService(s.ID), func() (string, error) { return h.identity.Issuer.Service(s, tokens.Grant{Life: life}) })
	}
	d, err := h.accounts.Device(ctx, "", *r.DeviceID)
	if err != nil {
		return "", err
	}
	if err := bareToken(d); err != nil {
		return "", err
	}
	return h.issued(ctx, d.AccountID, audit.OfDevice(d.ID), func() (string, error) { return h.identity.Issuer.Device(d, tokens.Grant{Life: life}) })
}

// issued mints a token that stands in the audit log.
func (h *Handlers) issued(ctx context.Context, account models.AccountID, whose audit.Object, mint func() (string, error)) (token string, err error) {
	err = h.store.Write(ctx, func(tx *store.Tx) error {
		if token, err = mint(); err != nil {
			return err
		}
		return audit.Note(ctx, tx, audit.Entry{Account: account, Action: audit.TokenIssue, Object: whose})
	})
	if err != nil {
		return "", err
	}
	return token, nil
}

func account(a accounts.Account) adminapi.Account {
	return adminapi.Account{
		AccountID: a.ID,
		Name:      a.Name,
		Premises:  convert(a.Premises, premises),
		Devices:   convert(a.Devices, device),
		Links:     convert(a.Links, link),
	}
}

func premises(p models.Premises) adminapi.Premises {
	return adminapi.Premises{PremisesID: p.ID, AccountID: p.AccountID, Name: p.Name, AllowPublicRange: p.AllowPublicRange}
}

func device(d models.Device) adminapi.Device {
	answer := adminapi.Device{
		DeviceID: d.ID, AccountID: d.AccountID, PremisesID: d.PremisesID,
		Type: d.Type, Name: d.Name, Pop: d.PoP, Trigger: d.Trigger,
	}
	if d.Model != "" {
		answer.Model = &d.Model
	}
	return answer
}

func link(l models.Link) adminapi.Link {
	answer := adminapi.Link{
		ServiceID: l.ServiceID, AccountID: l.AccountID, ServiceAccountID: l.ServiceAccountID, GrantedBy: l.GrantedBy, GrantedAt: l.GrantedAt,
		Scopes: convert(l.Scopes, func(s string) adminapi.ServiceScope { return adminapi.ServiceScope(s) }),
	}
	if l.Premises != nil {
		answer.Premises = &l.Premises
	}
	if !l.ExpiresAt.IsZero() {
		answer.ExpiresAt = &l.ExpiresAt
	}
	return answer
}

// scopes gives nil for a list that was left out, which is all.
func scopes(list *[]adminapi.ServiceScope) []string {
	if list == nil {
		return nil
	}
	return convert(*list, func(s adminapi.ServiceScope) string { return string(s) })
}

// convert never gives nil, so that an empty list is [] in JSON.
func convert[A, B any](list []A, f func(A) B) []B {
	out := make([]B, len(list))
	for i, a := range list {
		out[i] = f(a)
	}
	return out
}

func value[T any](p *T) (v T) {
	if p != nil {
		v = *p
	}
	return v
}

// GetService reads a service.
func (h *Handlers) GetService(ctx context.Context, r adminserver.GetServiceRequestObject) (adminserver.GetServiceResponseObject, error) {
	s, err := h.service(ctx, r.ServiceID)
	return adminserver.GetService200JSONResponse(s), err
}

// ChangeService names a service and says where it may receive.
func (h *Handlers) ChangeService(ctx context.Context, r adminserver.ChangeServiceRequestObject) (adminserver.ChangeServiceResponseObject, error) {
	allowed, err := allowedCIDRs(r.Body.AllowedCIDRs)
	if err != nil {
		return nil, err
	}
	if err := h.accounts.ChangeService(ctx, models.Service{ID: r.ServiceID, Name: r.Body.Name}, allowed); err != nil {
		return nil, err
	}
	s, err := h.service(ctx, r.ServiceID)
	return adminserver.ChangeService200JSONResponse(s), err
}

func (h *Handlers) service(ctx context.Context, id models.ServiceID) (adminapi.Service, error) {
	s, err := h.accounts.Service(ctx, id)
	if err != nil {
		return adminapi.Service{}, err
	}
	allowed, err := h.accounts.AllowedCIDRs(ctx, id)
	list := convert(allowed, func(a models.AllowedCIDR) adminapi.AllowedCIDR {
		consent := adminapi.Required
		if a.Exempt {
			consent = adminapi.Exempt
		}
		return adminapi.AllowedCIDR{Cidr: a.Prefix.String(), Probe: &a.Probe, Consent: &consent}
	})
	return adminapi.Service{ServiceID: s.ID, Name: s.Name, AllowedCIDRs: &list}, err
}

func allowedCIDRs(all []adminapi.AllowedCIDR) ([]models.AllowedCIDR, error) {
	allowed := make([]models.AllowedCIDR, len(all))
	for i, a := range all {
		p, err := netip.ParsePrefix(a.Cidr)
		if err != nil {
			return nil, models.Errorf(models.CodeBadRequest, "%q is no prefix. Write one like 96.114.14.0/24.", a.Cidr)
		}
		allowed[i] = models.AllowedCIDR{Prefix: p, Probe: value(a.Probe), Exempt: value(a.Consent) == adminapi.Exempt}
	}
	return allowed, nil
}
