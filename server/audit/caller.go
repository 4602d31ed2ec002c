package audit

import (
	"context"
	"net/netip"

	"github.com/groupcast/groupcast/models"
	"github.com/groupcast/groupcast/server/store"
)

// Caller is on whose behalf something is done, and by which request.
type Caller struct {
	Principal models.Principal
	Source    netip.Addr
	RequestID string
}

type callerKey struct{}

// WithCaller gives a context that Note takes the caller from. The edge makes it for each request.
func WithCaller(ctx context.Context, c Caller) context.Context {
	return context.WithValue(ctx, callerKey{}, c)
}

// CallerOf gives the caller of a context; the zero Caller is groupcast itself.
func CallerOf(ctx context.Context) (c Caller, ok bool) {
	c, ok = ctx.Value(callerKey{}).(Caller)
	return c, ok
}

// Note writes a row about what the context's caller does in the transaction. An account of the caller's own may be left out.
func Note(ctx context.Context, tx *store.Tx, e Entry) error {
	c, ok := CallerOf(ctx)
	switch {
	case e.Actor != (Actor{}):
	case ok:
		e.Actor = By(c.Principal)
	default:
		e.Actor = System
	}
	if e.Account == "" {
		e.Account = c.Principal.AccountID
	}
	e.Source, e.RequestID = c.Source, c.RequestID
	return Record(tx, e)
}
