package adminapi

import (
	"context"

	"github.com/groupcast/groupcast/models"
	"github.com/groupcast/groupcast/openapi/adminapi"
	"github.com/groupcast/groupcast/openapi/adminserver"
)

func none() error { return models.Errorf(models.CodeUnavailable, "This version has no relays yet.") }

// CreateRelay creates a relay.
func (h *Handlers) CreateRelay(context.Context, adminserver.CreateRelayRequestObject) (adminserver.CreateRelayResponseObject, error) {
	return nil, none()
}

// ListRelays lists the relays.
func (h *Handlers) ListRelays(context.Context, adminserver.ListRelaysRequestObject) (adminserver.ListRelaysResponseObject, error) {
	return adminserver.ListRelays200JSONResponse{Relays: []adminapi.Relay{}}, nil
}

// DeleteRelay removes a relay.
func (h *Handlers) DeleteRelay(context.Context, adminserver.DeleteRelayRequestObject) (adminserver.DeleteRelayResponseObject, error) {
	return nil, models.NotFound()
}

// CreateRelayTicket makes another ticket for a relay.
func (h *Handlers) CreateRelayTicket(context.Context, adminserver.CreateRelayTicketRequestObject) (adminserver.CreateRelayTicketResponseObject, error) {
	return nil, models.NotFound()
}

// SetRelayPremises says which premises a relay may serve.
func (h *Handlers) SetRelayPremises(context.Context, adminserver.SetRelayPremisesRequestObject) (adminserver.SetRelayPremisesResponseObject, error) {
	return nil, models.NotFound()
}
