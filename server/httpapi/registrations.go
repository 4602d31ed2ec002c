package httpapi

import (
	"context"
	"time"

	"github.com/groupcast/groupcast/models"
	"github.com/groupcast/groupcast/openapi/api"
	"github.com/groupcast/groupcast/openapi/ginserver"
	"github.com/groupcast/groupcast/server/registrations"
)

func (h handlers) Register(ctx context.Context, r ginserver.RegisterRequestObject) (ginserver.RegisterResponseObject, error) {
	remote := callOf(ctx).remote
	ctx, p := caller(ctx)
	body := r.Body
	req := registrations.Request{
		Type:        body.Type,
		ID:          body.ID,
		Role:        models.RoleSource,
		Instance:    value(body.Instance),
		PremisesID:  value(body.PremisesID),
		PrivateIPv4: given(body.PrivateIPv4),
		PublicIPv4:  given(body.PublicIPv4),
		IPv6:        given(body.IPv6),
		RemoteAddr:  remote,
		Port:        uint16(given(body.Port)),
		GroupName:   body.GroupName,
		GroupIP:     given(body.GroupIP),
		DeviceType:  value(body.DeviceType),
		Model:       value(body.Model),
		Name:        value(body.Name),
	}
	if body.Destination {
		req.Role = models.RoleDestination
	}
	if body.TTLs.IsSpecified() && !body.TTLs.IsNull() {
		ttl := int(body.TTLs.MustGet())
		req.TTL = &ttl
	}
	a, err := h.Registrations.Join(ctx, p, req)
	if err != nil {
		return nil, err
	}
	return ginserver.Register200JSONResponse{
		GroupIP:        a.GroupIP,
		State:          int32(a.State),
		TTLs:           orNil(int32(a.TTL)),
		RenewAfter:     orNil(int32(a.RenewAfter)),
		Generation:     orNil(int32(a.Generation)),
		RegistrationID: orNil(a.RegistrationID),
		Consent:        registrationConsent(a.Consent),
		Senders:        senders(a.Consent),
	}, nil
}

func (h handlers) Leave(ctx context.Context, r ginserver.LeaveRequestObject) (ginserver.LeaveResponseObject, error) {
	ctx, p := caller(ctx)
	groupIP, state, err := h.Registrations.Leave(ctx, p, r.RegistrationID)
	if err != nil {
		return nil, err
	}
	return ginserver.Leave200JSONResponse{GroupIP: groupIP, State: int32(state)}, nil
}

func (h handlers) GetRegistration(ctx context.Context, r ginserver.GetRegistrationRequestObject) (ginserver.GetRegistrationResponseObject, error) {
	ctx, p := caller(ctx)
	found, err := h.Registrations.Get(ctx, p, r.RegistrationID)
	if err != nil {
		return nil, err
	}
	return ginserver.GetRegistration200JSONResponse(registration(found)), nil
}

func (h handlers) ListRegistrations(ctx context.Context, r ginserver.ListRegistrationsRequestObject) (ginserver.ListRegistrationsResponseObject, error) {
	ctx, p := caller(ctx)
	list, next, err := h.Registrations.List(ctx, p, page(r.Params.PageSize, r.Params.PageToken))
	if err != nil {
		return nil, err
	}
	return ginserver.ListRegistrations200JSONResponse{Registrations: convert(list, registration), NextPageToken: orNil(next)}, nil
}

func registration(r registrations.Registration) api.Registration {
	return api.Registration{
		RegistrationID: r.ID,
		Type:           r.Key.Type,
		ID:             r.Key.ID,
		Destination:    r.Key.Role == models.RoleDestination,
		Instance:       r.Key.Instance,
		PremisesID:     r.PremisesID,
		GroupID:        r.GroupID,
		GroupName:      r.Group.Name,
		GroupIP:        r.Group.IP,
		Generation:     int32(r.Group.Generation),
		State:          int32(r.Group.State),
		TTLs:           int32(r.TTL / time.Second),
		ExpiresIn:      int32(r.ExpiresIn / time.Second),
		PrivateIPv4:    orNull(r.PrivateIPv4),
		PublicIPv4:     orNull(r.PublicIPv4),
		IPv6:           orNull(r.IPv6),
		Port:           orNull(int32(r.Port)),
		DeviceType:     orNil(r.DeviceType),
		Model:          orNil(r.Model),
		Name:           orNil(r.Name),
		Consent:        registrationConsent(r.Consent),
		Senders:        senders(r.Consent),
	}
}
