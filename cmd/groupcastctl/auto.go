package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/groupcast/groupcast/internal/follow"
	"github.com/groupcast/groupcast/internal/refusal"
	"github.com/groupcast/groupcast/models"
	"github.com/groupcast/groupcast/openapi/api"
	"github.com/groupcast/groupcast/openapi/client"
	"github.com/groupcast/groupcast/receiver"
)

const (
	firstRejoin = time.Second
	lastRejoin  = 30 * time.Second
	// groupMark stands for the group's name in --to and --log.
	groupMark = "{group}"
)

// automatic joins the groups that the account's join policy wants its device or service in, and leaves each when it ends.
type automatic struct {
	program *program
	client  *client.ClientWithResponses
	options receiveOptions
	device  models.Device // type and model, of a device

	leaveBy context.Context //nolint:containedctx // the end of the program, which is not that of a call
	mu      sync.Mutex
	joined  map[models.GroupID]*joinedGroup
	members sync.WaitGroup
	failed  []error
}

// joinedGroup is one that is received, or about to be.
type joinedGroup struct {
	leave    context.CancelFunc
	receiver *receiver.Receiver // nil until it has registered
	newest   follow.Event       // what it has to hear then
}

func (g *joinedGroup) hear(e follow.Event) {
	if g.newest = e; g.receiver != nil {
		g.receiver.Hear(e.Type, *e.Group)
	}
}

func (p *program) receiveAutomatically(ctx context.Context, c *client.ClientWithResponses, o receiveOptions) error {
	a := &automatic{program: p, client: c, options: o, leaveBy: p.leaveBy, joined: map[models.GroupID]*joinedGroup{}}
	if o.member.kind == models.MemberDevice {
		id, err := models.ParseID(o.member.id)
		if err != nil {
			return fmt.Errorf("--id: %w", err)
		}
		r, err := c.GetDeviceWithResponse(ctx, id)
		if err != nil {
			return fmt.Errorf("read what device this is: %w", err)
		}
		d, err := refusal.Value(r.JSON200, r, r.HTTPResponse.Header)
		if err != nil {
			return fmt.Errorf("read what device this is: %w", err)
		}
		a.device.Type, a.device.Model = d.DeviceType, d.Model
	}
	listening, stop := context.WithCancel(ctx)
	defer stop()
	var present map[models.GroupID]bool
	err := follow.Events(listening, c, "", p.log(), func(h follow.Heard) error {
		if h.Resync && present == nil {
			present = map[models.GroupID]bool{}
		}
		for _, e := range h.Events {
			if e.Group == nil {
				continue
			}
			if h.Resync {
				present[e.Group.GroupID] = true
			}
			a.hear(ctx, e)
		}
		if h.Resync && !h.More {
			a.keepOnly(present)
			present = nil
		}
		return nil
	})
	a.members.Wait()
	return errors.Join(append(a.failed, err)...)
}

// hear acts on an event of a group.
func (a *automatic) hear(ctx context.Context, e follow.Event) {
	g := *e.Group
	a.mu.Lock()
	defer a.mu.Unlock()
	joined := a.joined[g.GroupID]
	switch {
	case strings.HasSuffix(e.Type, string(models.EventGroupEnded)):
		if joined != nil {
			joined.leave()
		}
	case joined != nil:
		joined.hear(e)
	case g.JoinPolicy == nil || !a.admitted(*g.JoinPolicy):
	case a.options.member.group != "" && g.GroupName != a.options.member.group:
	case len(a.joined) > 0 && !a.options.severalAtOnce():
		fmt.Fprintf(a.program.err, "group %s is not joined, because another one is: give --to with %s to receive several\n", g.GroupName, groupMark)
	default:
		groupCtx, cancel := context.WithCancel(ctx)
		joined = &joinedGroup{leave: cancel, newest: e}
		a.joined[g.GroupID] = joined
		a.members.Go(func() {
			defer cancel()
			err := a.member(groupCtx, joined)
			a.mu.Lock()
			defer a.mu.Unlock()
			delete(a.joined, g.GroupID)
			if err != nil {
				a.program.log().Error("a group could not be received", "group", g.GroupName, "error", err)
				if ctx.Err() != nil {
					a.failed = append(a.failed, err)
				}
			}
		})
	}
}

// keepOnly leaves the groups that ended unheard.
func (a *automatic) keepOnly(present map[models.GroupID]bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for id, joined := range a.joined {
		if !present[id] {
			joined.leave()
		}
	}
}

// admitted tells whether the policy wants this member. A service finds only itself in it.
func (a *automatic) admitted(p api.JoinPolicy) bool {
	if a.options.member.kind == models.MemberService {
		return len(p.Services) > 0
	}
	return slices.ContainsFunc(p.Devices, func(r api.JoinRule) bool {
		return r.DeviceType == a.device.Type && (r.Model == nil || *r.Model == a.device.Model)
	})
}

// member receives one group until ctx is done. It tries again what may succeed later.
func (a *automatic) member(ctx context.Context, joined *joinedGroup) error {
	o := a.options
	a.mu.Lock()
	g := *joined.newest.Group
	a.mu.Unlock()
	o.member.group, o.member.premises, o.member.groupIP = g.GroupName, string(g.PremisesID), g.GroupIP
	if g.ServiceAccountID != nil {
		o.member.id = g.ServiceAccountID.String()
	}
	o.to, o.logFile = strings.ReplaceAll(o.to, groupMark, g.GroupName), strings.ReplaceAll(o.logFile, groupMark, g.GroupName)
	a.mu.Lock()
	if len(a.joined) > 1 { // the port is taken
		o.listen = netip.AddrPortFrom(o.listen.Addr(), 0)
	}
	a.mu.Unlock()
	for retry := firstRejoin; ; retry = min(2*retry, lastRejoin) {
		err := a.program.receiveOne(ctx, a.leaveBy, a.client, o, func(r *receiver.Receiver) {
			a.mu.Lock()
			defer a.mu.Unlock()
			joined.receiver = r
			if joined.newest.Group.Rev > g.Rev { // happened meanwhile
				joined.hear(joined.newest)
			}
		})
		refused, _ := errors.AsType[*refusal.Error](err)
		if err == nil || ctx.Err() != nil || refused != nil && refused.Final() {
			return err
		}
		a.program.log().Warn("the group could not be joined; trying again", "group", g.GroupName, "error", err, "in", retry)
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(retry):
		}
	}
}
