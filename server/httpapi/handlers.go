package httpapi

import (
	"context"

	"github.com/oapi-codegen/nullable"

	"github.com/groupcast/groupcast/models"
	"github.com/groupcast/groupcast/openapi/ginserver"
	"github.com/groupcast/groupcast/server/accounts"
	"github.com/groupcast/groupcast/server/consents"
	"github.com/groupcast/groupcast/server/enrolment"
	"github.com/groupcast/groupcast/server/eventstreams"
	"github.com/groupcast/groupcast/server/gateways"
	"github.com/groupcast/groupcast/server/groups"
	"github.com/groupcast/groupcast/server/keys"
	"github.com/groupcast/groupcast/server/longpoll"
	"github.com/groupcast/groupcast/server/oauth"
	"github.com/groupcast/groupcast/server/parking"
	"github.com/groupcast/groupcast/server/registrations"
	"github.com/groupcast/groupcast/server/relays"
	"github.com/groupcast/groupcast/server/users"
	"github.com/groupcast/groupcast/server/webhooks"
)

// Services are what the handlers of the public contract translate to.
type Services struct {
	Registrations *registrations.Service
	Accounts      *accounts.Service
	Users         *users.Service
	Enrolment     *enrolment.Service
	Groups        *groups.Service
	Gateways      *gateways.Service
	Relays        *relays.Service
	Consents      *consents.Service
	// STUN is the host and port of the STUN port; empty if there is none.
	STUN     string
	Polls    *longpoll.Hub
	Webhooks *webhooks.Service
	Courier  *webhooks.Courier
	Streams  *eventstreams.Service
	OAuth    *oauth.Service
	Keys     *keys.Ring
	// Parking takes the connections of polls that wait; nil leaves them with net/http.
	Parking *parking.Lot
	// Ready tells whether the service can do its work; its error says why not.
	Ready   func(context.Context) error
	Version string
}

// handlers answers the public contract.
type handlers struct {
	Services
	edge *Edge
}

var _ ginserver.StrictServerInterface = handlers{}

// Mount registers the public contract at an edge.
func Mount(e *Edge, s Services) {
	strict := ginserver.NewStrictHandlerWithOptions(handlers{s, e}, []ginserver.StrictMiddlewareFunc{Once[ginserver.StrictHandlerFunc](e)}, ginserver.StrictGinServerOptions{
		RequestErrorHandlerFunc:  e.RequestError,
		HandlerErrorFunc:         e.HandlerError,
		ResponseErrorHandlerFunc: e.ResponseError,
	})
	ginserver.RegisterHandlersWithOptions(e.Contract(), strict, ginserver.GinServerOptions{ErrorHandler: e.ParameterError})
}

func (h handlers) GetHealth(context.Context, ginserver.GetHealthRequestObject) (ginserver.GetHealthResponseObject, error) {
	return ginserver.GetHealth200JSONResponse{Status: statusOK, Version: &h.Version}, nil
}

func (h handlers) GetReadiness(ctx context.Context, _ ginserver.GetReadinessRequestObject) (ginserver.GetReadinessResponseObject, error) {
	ctx, _ = caller(ctx)
	if err := h.Ready(ctx); err != nil {
		return nil, err
	}
	return ginserver.GetReadiness200JSONResponse{Status: statusOK, Version: &h.Version}, nil
}

const statusOK = "ok"

func page(size *int32, token *string) models.Page {
	var p models.Page
	if size != nil {
		p.Size = int(*size)
	}
	if token != nil {
		p.Token = *token
	}
	return p
}

// orNil gives nil for an empty value: a member of an answer that is left out.
func orNil[T comparable](v T) *T {
	var zero T
	if v == zero {
		return nil
	}
	return &v
}

// orNull gives null for an empty value.
func orNull[T comparable](v T) nullable.Nullable[T] {
	var zero T
	if v == zero {
		return nullable.NewNullNullable[T]()
	}
	return nullable.NewNullableWithValue(v)
}

// given is the value of a member that may be absent or null; the zero value then.
func given[T any](n nullable.Nullable[T]) (v T) {
	if n.IsSpecified() && !n.IsNull() {
		v = n.MustGet()
	}
	return v
}

func value[T any](p *T) (v T) {
	if p != nil {
		v = *p
	}
	return v
}

// convert never gives nil, so that an empty list is [] in JSON.
func convert[A, B any](list []A, f func(A) B) []B {
	out := make([]B, len(list))
	for i, a := range list {
		out[i] = f(a)
	}
	return out
}
