package adminapi

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"github.com/groupcast/groupcast/models"
	"github.com/groupcast/groupcast/openapi/adminapi"
	"github.com/groupcast/groupcast/openapi/adminserver"
	"github.com/groupcast/groupcast/server/devicegrant"
	"github.com/groupcast/groupcast/server/enrolment"
	"github.com/groupcast/groupcast/server/keys"
)

// operatorID is who approves on an account holder's behalf; wrong codes of all operators count together.
const operatorID = "operator"

// CreateServiceCredential gives a service a credential.
func (h *Handlers) CreateServiceCredential(ctx context.Context, r adminserver.CreateServiceCredentialRequestObject) (adminserver.CreateServiceCredentialResponseObject, error) {
	jwks := ""
	if r.Body.Jwks != nil {
		b, err := json.Marshal(r.Body.Jwks)
		if err != nil {
			return nil, fmt.Errorf("write a key set: %w", err)
		}
		jwks = string(b)
	}
	c, secret, err := h.identity.OAuth.CreateCredential(ctx, r.ServiceID, value(r.Body.Name), jwks)
	if err != nil {
		return nil, err
	}
	answer := credential(c)
	if secret != "" {
		answer.ClientSecret = &secret
	}
	return adminserver.CreateServiceCredential200JSONResponse(answer), nil
}

// ListServiceCredentials lists the credentials of a service.
func (h *Handlers) ListServiceCredentials(ctx context.Context, r adminserver.ListServiceCredentialsRequestObject) (adminserver.ListServiceCredentialsResponseObject, error) {
	all, next, err := h.identity.OAuth.ListCredentials(ctx, r.ServiceID, page(r.Params.PageSize, r.Params.PageToken))
	if err != nil {
		return nil, err
	}
	return adminserver.ListServiceCredentials200JSONResponse{Credentials: convert(all, credential), NextPageToken: orNil(next)}, nil
}

// DeleteServiceCredential takes a credential from a service.
func (h *Handlers) DeleteServiceCredential(ctx context.Context, r adminserver.DeleteServiceCredentialRequestObject) (adminserver.DeleteServiceCredentialResponseObject, error) {
	if err := h.identity.OAuth.DeleteCredential(ctx, r.ServiceID, r.CredentialID); err != nil {
		return nil, err
	}
	return adminserver.DeleteServiceCredential204Response{}, nil
}

// CreateTicket makes an enrolment ticket.
func (h *Handlers) CreateTicket(ctx context.Context, r adminserver.CreateTicketRequestObject) (adminserver.CreateTicketResponseObject, error) {
	ticket, t, err := h.identity.Enrolment.Create(ctx, "", enrolment.NewTicket{
		PremisesID: r.Body.PremisesID, DeviceType: value(r.Body.DeviceType), DeviceID: value(r.Body.DeviceID), Name: value(r.Body.Name),
		NoPoP: r.Body.Pop != nil && !*r.Body.Pop,
	})
	if err != nil {
		return nil, err
	}
	answer := adminserver.CreateTicket200JSONResponse{
		Ticket: ticket, PremisesID: t.PremisesID, DeviceType: t.DeviceType, ExpiresIn: int32(enrolment.TicketLife / time.Second),
	}
	if t.DeviceID.Valid() {
		answer.DeviceID = &t.DeviceID
	}
	return answer, nil
}

// DecideDeviceGrant approves or refuses a device on an account holder's behalf.
func (h *Handlers) DecideDeviceGrant(ctx context.Context, r adminserver.DecideDeviceGrantRequestObject) (adminserver.DecideDeviceGrantResponseObject, error) {
	p, err := h.accounts.Premises(ctx, r.Body.PremisesID)
	if err != nil {
		return nil, err
	}
	approver := devicegrant.Approver{AccountID: p.AccountID, UserID: operatorID, Fresh: true, Typed: true}
	if r.Body.UserName != nil {
		u, err := h.users.ByName(ctx, p.AccountID, *r.Body.UserName)
		if err != nil {
			return nil, err
		}
		approver.UserID = u.ID
	}
	g, err := h.identity.Grants.Decide(ctx, approver, r.Body.UserCode, devicegrant.Decision{
		Approve: r.Body.Approve, PremisesID: p.ID, Name: value(r.Body.Name),
	})
	if err != nil {
		return nil, err
	}
	answer := adminserver.DecideDeviceGrant200JSONResponse{
		ClientID: g.ClientID, Model: g.Model, Serial: g.Serial, SourcePrefix: g.SourcePrefix, Status: adminapi.DeviceGrantStatus(g.Status),
	}
	if g.DeviceType != "" {
		answer.DeviceType = &g.DeviceType
	}
	return answer, nil
}

// CreateIdentity says whom a user is at an external issuer.
func (h *Handlers) CreateIdentity(ctx context.Context, r adminserver.CreateIdentityRequestObject) (adminserver.CreateIdentityResponseObject, error) {
	i, err := h.users.AddIdentity(ctx, r.Body.AccountID, r.Body.UserName, r.Body.Issuer, r.Body.Subject)
	if err != nil {
		return nil, err
	}
	return adminserver.CreateIdentity200JSONResponse{IdentityID: i.ID, Issuer: i.Issuer, Subject: i.Subject}, nil
}

// DeleteIdentity takes it from them.
func (h *Handlers) DeleteIdentity(ctx context.Context, r adminserver.DeleteIdentityRequestObject) (adminserver.DeleteIdentityResponseObject, error) {
	if err := h.users.RemoveIdentity(ctx, r.IdentityID); err != nil {
		return nil, err
	}
	return adminserver.DeleteIdentity204Response{}, nil
}

// ListSigningKeys lists the keys that sign tokens.
func (h *Handlers) ListSigningKeys(ctx context.Context, _ adminserver.ListSigningKeysRequestObject) (adminserver.ListSigningKeysResponseObject, error) {
	all, err := h.identity.Keys.List(ctx)
	if err != nil {
		return nil, err
	}
	return adminserver.ListSigningKeys200JSONResponse{Keys: convert(all, signingKey)}, nil
}

// RotateSigningKeys publishes the next key.
func (h *Handlers) RotateSigningKeys(ctx context.Context, r adminserver.RotateSigningKeysRequestObject) (adminserver.RotateSigningKeysResponseObject, error) {
	if err := h.identity.Keys.Rotate(ctx, value(r.Body.Force)); err != nil {
		return nil, err
	}
	all, err := h.identity.Keys.List(ctx)
	if err != nil {
		return nil, err
	}
	return adminserver.RotateSigningKeys200JSONResponse{Keys: convert(all, signingKey)}, nil
}

func credential(c models.ServiceCredential) adminapi.ServiceCredential {
	kind := adminapi.Secret
	if c.JWKS != "" {
		kind = adminapi.Keys
	}
	return adminapi.ServiceCredential{CredentialID: c.ID, ServiceID: c.ServiceID, Name: c.Name, Kind: kind}
}

func signingKey(k keys.Info) adminapi.SigningKey {
	return adminapi.SigningKey{Kid: k.KID, Alg: k.Alg, State: adminapi.SigningKeyState(k.State), Since: k.Since, Until: k.Until}
}

// bareToken refuses to mint what the service wouldn't take.
func bareToken(d models.Device) error {
	if d.PoP {
		return models.Errorf(models.CodeBadRequest, "Device %s proves possession of a key, so a token that is not bound to it would be refused. Enrol it with a "+
			"ticket, or create the device with pop off.", d.ID)
	}
	return nil
}
