package receiver

import (
	"context"
	"errors"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/groupcast/groupcast/internal/follow"
	"github.com/groupcast/groupcast/internal/refusal"
	"github.com/groupcast/groupcast/models"
	"github.com/groupcast/groupcast/openapi/api"
)

const (
	// How soon the registration is posted again, for what the answer tells, while not all senders are known to answer.
	firstSeek = 250 * time.Millisecond
	lastSeek  = Quiet
	// The same while events are heard, which tell of new senders by themselves.
	firstSure = Quiet
	lastSure  = time.Minute
	// How soon events are asked for again.
	firstFollow = time.Second
	lastFollow  = 30 * time.Second

	lookTime = 10 * time.Second
)

// hearing is what was heard of the group.
type hearing struct {
	id     models.GroupID
	rev    int32
	heard  bool // events get through
	look   bool // other senders were told: the registration has to be read for those of this receiver
	member bool // the newest event has this receiver
}

// Hear takes an event of a group, of a stream that the program has for several groups: the CloudEvent's type and data. An event that is older than what was heard
// before, or of another group, changes nothing. It doesn't wait.
func (r *Receiver) Hear(eventType string, g api.GroupEventData) {
	r.mu.Lock()
	h := &r.group
	ours := h.id == g.GroupID && g.Rev > h.rev || h.id == "" && g.GroupName == r.config.Member.GroupName && g.GroupIP == r.answer.GroupIP
	if r.gone || !ours {
		r.mu.Unlock()
		return
	}
	h.id, h.rev, h.heard = g.GroupID, g.Rev, true
	ended := strings.HasSuffix(eventType, string(models.EventGroupEnded))
	absent := ended || !slices.ContainsFunc(g.Members, func(m api.Member) bool {
		return m.Role == api.Destination && m.Type == r.config.Member.Type && m.ID == r.config.Member.ID
	})
	rejoin := absent && (ended || h.member) // else it is an event of before the registration
	h.member = !absent
	switch {
	case r.consent == nil:
	case rejoin:
		r.consent.Senders(nil) // whoever asks now has an old table
	case !absent && !r.consent.knows(deref(g.Senders)):
		h.look = true
	}
	r.mu.Unlock()
	if rejoin {
		why := "the registration has ended"
		if ended {
			why = "the group has ended"
		}
		r.log.Warn("copies end; registering again as soon as that is possible", "why", why)
		r.lease.Soon()
	}
	r.wake()
}

// follow hears what happens to the group, whichever it is.
func (r *Receiver) follow() {
	for pause := firstFollow; ; pause = min(2*pause, lastFollow) {
		held, err := r.look(r.renewing)
		if err == nil {
			r.mu.Lock()
			r.group = hearing{id: held.GroupID}
			r.mu.Unlock()
			err = follow.Events(r.renewing, r.config.Client, held.GroupID, r.log, func(h follow.Heard) error {
				pause = firstFollow
				for _, e := range h.Events {
					if e.Group != nil {
						r.Hear(e.Type, *e.Group)
					}
				}
				return nil
			})
		}
		r.mu.Lock()
		r.group.heard = false
		r.mu.Unlock()
		if r.renewing.Err() != nil {
			return
		}
		if refused, ok := errors.AsType[*refusal.Error](err); ok && refused.Status == http.StatusNotFound {
			r.lease.Soon() // the registration or the group is no more
		} else {
			r.log.Debug("events can't be heard; trying again", "why", err, "in", pause)
		}
		select {
		case <-r.renewing.Done():
			return
		case <-time.After(pause):
		}
	}
}

// look reads the registration, and with it which senders are this receiver's: events tell those of all.
func (r *Receiver) look(ctx context.Context) (*api.Registration, error) {
	ctx, cancel := context.WithTimeout(ctx, lookTime)
	defer cancel()
	r.mu.Lock()
	id := r.answer.RegistrationID
	r.mu.Unlock()
	if id == nil {
		return nil, errors.New("the service didn't say which registration this is")
	}
	a, err := r.config.Client.GetRegistrationWithResponse(ctx, *id)
	if err != nil {
		return nil, err
	}
	held, err := refusal.Value(a.JSON200, a, a.HTTPResponse.Header)
	if err != nil {
		return nil, err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if now := r.answer.RegistrationID; now != nil && *now == *id {
		r.sendersAre(deref(held.Senders))
	}
	return held, nil
}

// attend tells how the consent stands, and has the service asked where copies come from as long as no sender is known, or one doesn't answer.
func (r *Receiver) attend() {
	var wait time.Duration
	var again time.Time // zero: all answer
	for {
		now := time.Now()
		r.mu.Lock()
		state := r.standing(now)
		changed := state != r.state
		look, sure, silent := r.group.look, r.group.heard, false
		r.state = state
		r.group.look = false
		if r.consent != nil {
			answering, all := r.consent.Answered(now)
			silent = all == 0 || answering < all
		}
		r.mu.Unlock()
		if changed && r.config.Consent != nil {
			r.config.Consent(state)
		}
		if look {
			if _, err := r.look(r.renewing); err != nil {
				r.lease.Soon()
			}
		}
		switch {
		case !silent:
			again = time.Time{}
		case again.IsZero():
			wait = firstSeek
			if sure {
				wait = firstSure
			}
			again = now.Add(wait)
		case !now.Before(again):
			r.lease.Soon()
			last := lastSeek
			if sure {
				last, wait = lastSure, max(wait, firstSure)
			}
			wait = min(2*wait, last)
			again = now.Add(wait)
		}
		next := time.Second
		if !again.IsZero() {
			next = min(next, max(time.Until(again), 0))
		}
		select {
		case <-r.renewing.Done():
			return
		case <-r.nudge:
		case <-time.After(next):
		}
	}
}

// knows tells whether the senders of an event are those that are known: one of each source's places.
func (c *Consent) knows(told []api.Sender) bool {
	sources, places := map[models.ID]bool{}, map[netip.AddrPort]bool{}
	for _, s := range told {
		sources[s.SourceID] = true
		if addr, err := netip.ParseAddr(s.Address); err == nil {
			places[netip.AddrPortFrom(addr.Unmap(), uint16(s.Port))] = true
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for at := range c.senders {
		if !places[at] {
			return false
		}
	}
	return len(c.senders) == len(sources)
}
