package httpapi

import (
	"context"
	"net/netip"

	"github.com/gin-gonic/gin"

	"github.com/groupcast/groupcast/models"
	"github.com/groupcast/groupcast/server/audit"
)

// call is what the edge knows of one request. It travels in the request's context.
type call struct {
	// id names the request in its answer and in the log.
	id string
	// operation is the operationId; empty if no operation of the contract was meant.
	operation string
	// principal is nil until the caller is authenticated.
	principal *models.Principal
	// remote is where the request came from, with trusted proxies applied; the zero Addr if it can't be told.
	remote netip.Addr
	// nonce is for the header DPoP-Nonce of the answer; empty if the client needs none.
	nonce string
	// limited tells that the answer has the headers of a limit, and remaining what they say.
	limited   bool
	remaining int
	// parked tells that the answer is given after the handler has returned, and that what is observed of it is then.
	parked bool
	// page and visit are nil if no page was meant.
	page  *servedPage
	visit *Visit
}

type callKey struct{}

func withCall(ctx context.Context, c *call) context.Context {
	return context.WithValue(ctx, callKey{}, c)
}

// callOf gives the call of a request's context, or of the gin.Context that generated code hands to handlers.
func callOf(ctx context.Context) *call {
	if c, ok := ctx.Value(callKey{}).(*call); ok {
		return c
	}
	return &call{}
}

// callerOf is whom the audit log names.
func callerOf(ctx context.Context) audit.Caller {
	c := callOf(ctx)
	by := audit.Caller{Source: c.remote, RequestID: c.id}
	if c.principal != nil {
		by.Principal = *c.principal
	}
	return by
}

// caller gives what a handler needs: a context that may outlive the handler (a gin.Context is used again for another request), and
// who is calling. An operation that lets anyone in has the zero Principal.
func caller(ctx context.Context) (context.Context, models.Principal) {
	c := callOf(ctx)
	if g, ok := ctx.(*gin.Context); ok {
		ctx = g.Request.Context()
	}
	if c.principal == nil {
		return ctx, models.Principal{}
	}
	return ctx, *c.principal
}
