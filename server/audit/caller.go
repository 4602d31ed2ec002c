package audit

import (
	"context"
	"net/netip"
	"sync/atomic"

	"github.com/groupcast/groupcast/models"
	"github.com/groupcast/groupcast/server/store"
)

// Caller is on whose behalf something is done, and by which request.
type Caller struct {
	Principal models.Principal
	Source    netip.Addr
	RequestID string
	noted     *atomic.Bool // a refusal of the request has a row
}

type callerKey struct{}

// WithCaller gives a context that Note takes the caller from. The edge makes it for each request.
func WithCaller(ctx context.Context, c Caller) context.Context {
	c.noted = new(atomic.Bool)
	return context.WithValue(ctx, callerKey{}, c)
}

// CallerOf gives the caller of a context; the zero Caller is groupcast itself.
func CallerOf(ctx context.Context) (c Caller, ok bool) {
	c, ok = ctx.Value(callerKey{}).(Caller)
	return c, ok
}

// Note writes rows, with one statement, about what the context's caller does in the transaction. An account of the caller's own may be left
// out.
func Note(ctx context.Context, tx *store.Tx, entries ...Entry) error {
	c, ok := CallerOf(ctx)
	rows := make([]Entry, len(entries))
	for i, e := range entries {
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
		if e.Refused != "" && c.noted != nil {
			c.noted.Store(true)
		}
		rows[i] = e
	}
	return Record(tx, rows...)
}

// Noted tells whether a refusal of the context's request has a row already.
func Noted(ctx context.Context) bool {
	c, _ := CallerOf(ctx)
	return c.noted != nil && c.noted.Load()
}
