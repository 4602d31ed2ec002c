package adminapi

import (
	"context"

	"github.com/groupcast/groupcast/models"
	"github.com/groupcast/groupcast/openapi/adminapi"
	"github.com/groupcast/groupcast/openapi/adminserver"
	"github.com/groupcast/groupcast/server/relays"
)

// CreateRelay creates a relay.
func (h *Handlers) CreateRelay(ctx context.Context, r adminserver.CreateRelayRequestObject) (adminserver.CreateRelayResponseObject, error) {
	t, err := h.relays.Create(ctx, r.Body.Name)
	return adminserver.CreateRelay200JSONResponse(relayTicket(t)), err
}

// CreateRelayTicket makes another ticket for a relay.
func (h *Handlers) CreateRelayTicket(ctx context.Context, r adminserver.CreateRelayTicketRequestObject) (adminserver.CreateRelayTicketResponseObject, error) {
	t, err := h.relays.NewTicket(ctx, r.RelayID)
	return adminserver.CreateRelayTicket200JSONResponse(relayTicket(t)), err
}

func relayTicket(t relays.Ticket) adminapi.RelayTicket {
	return adminapi.RelayTicket{RelayID: t.RelayID, Ticket: t.Secret, TicketExpiresAt: t.ExpiresAt}
}

// ListRelays lists the relays.
func (h *Handlers) ListRelays(ctx context.Context, r adminserver.ListRelaysRequestObject) (adminserver.ListRelaysResponseObject, error) {
	all, next, err := h.relays.List(ctx, page(r.Params.PageSize, r.Params.PageToken))
	if err != nil {
		return nil, err
	}
	return adminserver.ListRelays200JSONResponse{Relays: convert(all, relay), NextPageToken: orNil(next)}, nil
}

// DeleteRelay removes a relay.
func (h *Handlers) DeleteRelay(ctx context.Context, r adminserver.DeleteRelayRequestObject) (adminserver.DeleteRelayResponseObject, error) {
	if err := h.relays.Remove(ctx, r.RelayID); err != nil {
		return nil, err
	}
	return adminserver.DeleteRelay204Response{}, nil
}

// SetRelayPremises says which premises a relay may serve.
func (h *Handlers) SetRelayPremises(ctx context.Context, r adminserver.SetRelayPremisesRequestObject) (adminserver.SetRelayPremisesResponseObject, error) {
	if (r.Body.All == nil) == (r.Body.Premises == nil) {
		return nil, models.Errorf(models.CodeBadRequest, "Say either all or premises.")
	}
	if err := h.relays.SetMay(ctx, r.RelayID, value(r.Body.All), value(r.Body.Premises)); err != nil {
		return nil, err
	}
	v, err := h.relays.Get(ctx, r.RelayID)
	return adminserver.SetRelayPremises200JSONResponse(relay(v)), err
}

func relay(r relays.Standing) adminapi.Relay {
	return adminapi.Relay{
		RelayID: r.ID, Name: r.Name, All: r.All, Live: r.Live, Served: int32(r.Served),
		Premises: convert(r.May, func(id models.PremisesID) models.PremisesID { return id }),
	}
}
