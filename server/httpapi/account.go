package httpapi

import (
	"context"
	"time"

	"github.com/groupcast/groupcast/models"
	"github.com/groupcast/groupcast/openapi/api"
	"github.com/groupcast/groupcast/openapi/ginserver"
	"github.com/groupcast/groupcast/server/accounts"
	"github.com/groupcast/groupcast/server/enrolment"
)

func (h handlers) ListPremises(ctx context.Context, r ginserver.ListPremisesRequestObject) (ginserver.ListPremisesResponseObject, error) {
	ctx, p := caller(ctx)
	all, next, err := h.Accounts.ListPremises(ctx, p.AccountID, page(r.Params.PageSize, r.Params.PageToken))
	if err != nil {
		return nil, err
	}
	return ginserver.ListPremises200JSONResponse{Premises: convert(all, premises), NextPageToken: orNil(next)}, nil
}

func (h handlers) CreatePremises(ctx context.Context, r ginserver.CreatePremisesRequestObject) (ginserver.CreatePremisesResponseObject, error) {
	ctx, p := caller(ctx)
	v, err := h.Accounts.AddPremises(ctx, p.AccountID, r.Body.Name)
	if err != nil {
		return nil, err
	}
	return ginserver.CreatePremises201JSONResponse(premises(v)), nil
}

func (h handlers) ChangePremises(ctx context.Context, r ginserver.ChangePremisesRequestObject) (ginserver.ChangePremisesResponseObject, error) {
	ctx, p := caller(ctx)
	v, err := h.Accounts.ChangePremises(ctx, p.AccountID, r.PremisesID, accounts.PremisesChange{
		Name: r.Body.Name, Fanout: r.Body.Fanout, OnRelayLoss: r.Body.OnRelayLoss,
	})
	if err != nil {
		return nil, err
	}
	return ginserver.ChangePremises200JSONResponse(premises(v)), nil
}

func (h handlers) DeletePremises(ctx context.Context, r ginserver.DeletePremisesRequestObject) (ginserver.DeletePremisesResponseObject, error) {
	ctx, p := caller(ctx)
	if err := h.Accounts.DeletePremises(ctx, p.AccountID, r.PremisesID); err != nil {
		return nil, err
	}
	return ginserver.DeletePremises204Response{}, nil
}

func premises(p models.Premises) api.Premises {
	return api.Premises{PremisesID: p.ID, Name: p.Name, Fanout: &p.Fanout, OnRelayLoss: &p.OnRelayLoss, CopiedAt: orNil(string(p.CopiedAt))}
}

func (h handlers) CreateTicket(ctx context.Context, r ginserver.CreateTicketRequestObject) (ginserver.CreateTicketResponseObject, error) {
	ctx, p := caller(ctx)
	account, err := own(p)
	if err != nil {
		return nil, err
	}
	ticket, t, err := h.Enrolment.Create(ctx, account, enrolment.NewTicket{
		PremisesID: r.PremisesID, DeviceType: value(r.Body.DeviceType), DeviceID: value(r.Body.DeviceID), Name: value(r.Body.Name),
		NoPoP: r.Body.ProofOfPossession != nil && !*r.Body.ProofOfPossession,
	})
	if err != nil {
		return nil, err
	}
	return ginserver.CreateTicket201JSONResponse{
		Body: api.Ticket{
			Ticket: ticket, PremisesID: t.PremisesID, DeviceType: t.DeviceType, DeviceID: orNil(t.DeviceID), ExpiresIn: int32(enrolment.TicketLife / time.Second),
		},
		Headers: ginserver.CreateTicket201ResponseHeaders{CacheControl: noStore},
	}, nil
}

func (h handlers) ListDevices(ctx context.Context, r ginserver.ListDevicesRequestObject) (ginserver.ListDevicesResponseObject, error) {
	ctx, p := caller(ctx)
	if p.Kind != models.KindUser {
		return ginserver.ListDevices200JSONResponse{Devices: []api.Device{device(p.Device)}}, nil
	}
	all, next, err := h.Accounts.ListDevices(ctx, p.AccountID, page(r.Params.PageSize, r.Params.PageToken))
	if err != nil {
		return nil, err
	}
	return ginserver.ListDevices200JSONResponse{Devices: convert(all, device), NextPageToken: orNil(next)}, nil
}

// self refuses a device or a gateway that names another than itself.
func self(p models.Principal, id models.ID) error {
	if p.Kind != models.KindUser && p.Device.ID != id {
		return models.NotFound()
	}
	return nil
}

func (h handlers) GetDevice(ctx context.Context, r ginserver.GetDeviceRequestObject) (ginserver.GetDeviceResponseObject, error) {
	ctx, p := caller(ctx)
	account, err := own(p)
	if err == nil {
		err = self(p, r.DeviceID)
	}
	if err != nil {
		return nil, err
	}
	d, err := h.Accounts.Device(ctx, account, r.DeviceID)
	if err != nil {
		return nil, err
	}
	return ginserver.GetDevice200JSONResponse(device(d)), nil
}

func (h handlers) ChangeDevice(ctx context.Context, r ginserver.ChangeDeviceRequestObject) (ginserver.ChangeDeviceResponseObject, error) {
	ctx, p := caller(ctx)
	account, err := own(p)
	if err != nil {
		return nil, err
	}
	d, err := h.Accounts.ChangeDevice(ctx, account, r.DeviceID, accounts.DeviceChange{Name: r.Body.Name, Trigger: r.Body.Trigger})
	if err != nil {
		return nil, err
	}
	return ginserver.ChangeDevice200JSONResponse(device(d)), nil
}

func (h handlers) RemoveDevice(ctx context.Context, r ginserver.RemoveDeviceRequestObject) (ginserver.RemoveDeviceResponseObject, error) {
	ctx, p := caller(ctx)
	account, err := own(p)
	if err == nil {
		err = self(p, r.DeviceID)
	}
	if err != nil {
		return nil, err
	}
	if err := h.Accounts.DeleteDevice(ctx, account, r.DeviceID); err != nil {
		return nil, err
	}
	return ginserver.RemoveDevice204Response{}, nil
}

func device(d models.Device) api.Device {
	return api.Device{
		DeviceID: d.ID, PremisesID: d.PremisesID, DeviceType: d.Type, Name: d.Name, Model: d.Model, Trigger: d.Trigger, ProofOfPossession: d.PoP,
	}
}

func (h handlers) ListLinks(ctx context.Context, r ginserver.ListLinksRequestObject) (ginserver.ListLinksResponseObject, error) {
	ctx, p := caller(ctx)
	all, next, err := h.Accounts.ListLinks(ctx, p.AccountID, page(r.Params.PageSize, r.Params.PageToken))
	if err != nil {
		return nil, err
	}
	return ginserver.ListLinks200JSONResponse{Links: convert(all, link), NextPageToken: orNil(next)}, nil
}

func (h handlers) LinkService(ctx context.Context, r ginserver.LinkServiceRequestObject) (ginserver.LinkServiceResponseObject, error) {
	ctx, p := caller(ctx)
	account, err := own(p)
	if err != nil {
		return nil, err
	}
	want := models.Link{ServiceID: r.ServiceID, AccountID: account, GrantedBy: p.UserID}
	if b := r.Body; b != nil {
		want.Premises, want.ExpiresAt = value(b.Premises), value(b.ExpiresAt)
		if b.Scopes != nil {
			want.Scopes = convert(*b.Scopes, func(s api.ServiceScope) string { return string(s) })
		}
	}
	l, err := h.Accounts.PutLink(ctx, want)
	if err != nil {
		return nil, err
	}
	return ginserver.LinkService200JSONResponse(link(l)), nil
}

func (h handlers) UnlinkService(ctx context.Context, r ginserver.UnlinkServiceRequestObject) (ginserver.UnlinkServiceResponseObject, error) {
	ctx, p := caller(ctx)
	if err := h.Accounts.DeleteLink(ctx, r.ServiceID, p.AccountID); err != nil {
		return nil, err
	}
	return ginserver.UnlinkService204Response{}, nil
}

func link(l models.NamedLink) api.Link {
	answer := api.Link{
		ServiceID: l.ServiceID, Name: l.ServiceName, ServiceAccountID: l.ServiceAccountID, GrantedBy: l.GrantedBy, GrantedAt: l.GrantedAt,
		Scopes: convert(l.Scopes, func(s string) api.ServiceScope { return api.ServiceScope(s) }),
	}
	if l.Premises != nil {
		answer.Premises = &l.Premises
	}
	if !l.ExpiresAt.IsZero() {
		answer.ExpiresAt = &l.ExpiresAt
	}
	return answer
}
