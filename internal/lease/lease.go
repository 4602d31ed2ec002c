// Package lease keeps one member registered: it joins, renews in time whatever happens, says when the group's address
// changed, and leaves. It is the one place where a member renews: cameras of groupcastctl and receivers both use it.
package lease

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"net/netip"
	"sync"
	"time"

	"github.com/groupcast/groupcast/internal/refusal"
	"github.com/groupcast/groupcast/models"
	"github.com/groupcast/groupcast/openapi/api"
	"github.com/groupcast/groupcast/openapi/client"
)

const (
	callTimeout = 10 * time.Second
	firstRetry  = time.Second
	lastRetry   = 30 * time.Second
	// defaultTTL is what the contract grants if it doesn't say.
	defaultTTL = time.Hour
)

// The steps of a member, as Note is told them.
const (
	Joining = "joining" // before the POST
	Joined  = "joined"  // the POST returned 200
	Moved   = "moved"   // a renewal returned 200 with another group IP or generation
	Leaving = "leaving" // before the DELETE
	Left    = "left"    // the DELETE returned 200
)

// Note is told each step of a member as it is taken, with keys and values in turn.
type Note func(step string, keysAndValues ...any)

// Lease is one member's registration. Join comes first; Keep and Leave may then run on different goroutines.
type Lease struct {
	client  *client.ClientWithResponses
	request api.RegistrationRequest
	log     *slog.Logger
	note    Note
	// find tells that the group IP has to be looked up: a service must name it.
	find bool
	soon chan struct{} // holds one

	mu     sync.Mutex // one POST or DELETE at a time, so that a renewal can't follow the leave
	answer api.RegistrationAnswer
	left   bool
}

// New prepares the registration. Nothing is sent. Renewals that fail go into log; note may be nil.
func New(c *client.ClientWithResponses, request api.RegistrationRequest, note Note, log *slog.Logger) *Lease {
	if note == nil {
		note = func(string, ...any) {}
	}
	return &Lease{
		client: c, request: request, note: note, log: log, soon: make(chan struct{}, 1),
		find: request.Type == models.MemberService && (!request.GroupIP.IsSpecified() || request.GroupIP.IsNull()),
	}
}

// Join registers. It tries once: an *refusal.Error says why the service refused.
func (l *Lease) Join(ctx context.Context) (api.RegistrationAnswer, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.note(Joining)
	if err := l.post(ctx); err != nil {
		return api.RegistrationAnswer{}, err
	}
	l.event(Joined)
	return l.answer, nil
}

// Keep renews until ctx is done, and goes on when a renewal fails: the server may be away, or the operator may put another
// token in place. It calls renewed after each renewal, and says whether that brought another group IP or another generation.
func (l *Lease) Keep(ctx context.Context, renewed func(answer api.RegistrationAnswer, moved bool)) {
	retry := firstRetry
	wait := renewAfter(l.current())
	for {
		select {
		case <-ctx.Done():
			return
		case <-time.After(wait):
		case <-l.soon:
		}
		before, now, err := l.renew(ctx)
		switch {
		case ctx.Err() != nil:
			return
		case err != nil:
			wait = max(retry, retryAfter(err))
			retry = min(2*retry, lastRetry)
			l.log.Error("the lease could not be renewed; trying again", "error", err, "in", wait)
		default:
			wait, retry = renewAfter(now), firstRetry
			moved := now.GroupIP != before.GroupIP || generation(now) != generation(before)
			if moved {
				l.event(Moved)
			}
			renewed(now, moved)
		}
	}
}

// Soon has Keep renew at once, for what the answer tells.
func (l *Lease) Soon() {
	select {
	case l.soon <- struct{}{}:
	default:
	}
}

// Leave ends the registration. A lease that has ended already is as good; then the answer is empty. After it Keep does nothing more.
func (l *Lease) Leave(ctx context.Context) (api.LeaveAnswer, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.left = true
	if l.answer.RegistrationID == nil {
		return api.LeaveAnswer{}, errors.New("leave: the service didn't say which registration this is; the lease ends by itself")
	}
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	l.note(Leaving)
	r, err := l.client.LeaveWithResponse(ctx, *l.answer.RegistrationID)
	if err != nil {
		return api.LeaveAnswer{}, fmt.Errorf("leave: %w; the lease ends by itself", err)
	}
	if r.StatusCode() == http.StatusNotFound {
		l.note(Left)
		return api.LeaveAnswer{}, nil
	}
	answer, err := refusal.Value(r.JSON200, r, r.HTTPResponse.Header)
	if err != nil {
		return api.LeaveAnswer{}, fmt.Errorf("leave: %w", err)
	}
	l.note(Left, "state", answer.State)
	return *answer, nil
}

func (l *Lease) event(name string) {
	l.note(name, "groupIP", l.answer.GroupIP, "generation", generation(l.answer), "state", l.answer.State)
}

func (l *Lease) current() api.RegistrationAnswer {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.answer
}

func (l *Lease) renew(ctx context.Context) (before, now api.RegistrationAnswer, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	before = l.answer
	if l.left {
		return before, before, nil
	}
	err = l.post(ctx)
	return before, l.answer, err
}

// post is not broken off by the end of ctx: a request whose fate is unknown may have registered a member that nobody then ends.
func (l *Lease) post(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), callTimeout)
	defer cancel()
	request := l.request
	if l.find {
		// Asked each time: a group that ended and came back may have another address.
		groupIP, err := l.groupIP(ctx)
		if err != nil {
			return err
		}
		request.GroupIP.Set(groupIP)
	}
	r, err := l.client.RegisterWithResponse(ctx, request)
	if err != nil {
		return fmt.Errorf("register: %w", err)
	}
	answer, err := refusal.Value(r.JSON200, r, r.HTTPResponse.Header)
	if err != nil {
		return fmt.Errorf("register: %w", err)
	}
	l.answer = *answer
	return nil
}

func (l *Lease) groupIP(ctx context.Context) (netip.Addr, error) {
	r, err := l.client.ListGroupsWithResponse(ctx, &api.ListGroupsParams{GroupName: &l.request.GroupName, PremisesID: l.request.PremisesID})
	if err != nil {
		return netip.Addr{}, fmt.Errorf("look up the group IP: %w", err)
	}
	page, err := refusal.Value(r.JSON200, r, r.HTTPResponse.Header)
	if err != nil {
		return netip.Addr{}, fmt.Errorf("look up the group IP: %w", err)
	}
	switch len(page.Groups) {
	case 1:
		return page.Groups[0].GroupIP, nil
	case 0:
		return netip.Addr{}, fmt.Errorf("there is no group %s that you may see: it begins when its camera registers, and a service sees those of linked accounts only", l.request.GroupName)
	default:
		return netip.Addr{}, fmt.Errorf("there are %d groups %s: choose one by groupIP, or a premises by premisesId", len(page.Groups), l.request.GroupName)
	}
}

// renewAfter spreads the renewals of many members a little.
func renewAfter(a api.RegistrationAnswer) time.Duration {
	after := defaultTTL / 3
	switch {
	case a.RenewAfter != nil && *a.RenewAfter > 0:
		after = time.Duration(*a.RenewAfter) * time.Second
	case a.TTLs != nil && *a.TTLs > 0:
		after = time.Duration(*a.TTLs) * time.Second / 3
	}
	return after - rand.N(after/10)
}

func retryAfter(err error) time.Duration {
	if refused, ok := errors.AsType[*refusal.Error](err); ok {
		return refused.RetryAfter
	}
	return 0
}

func generation(a api.RegistrationAnswer) int32 {
	if a.Generation == nil {
		return 0
	}
	return *a.Generation
}
