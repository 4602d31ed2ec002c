package events

import (
	"encoding/json"
	"fmt"
	"slices"

	"github.com/groupcast/groupcast/models"
	"github.com/groupcast/groupcast/openapi/api"
)

// ContentType is that of a single event (CloudEvents 1.0, JSON format §3).
const ContentType = "application/cloudevents+json"

// TypePrefix stands before the types in an envelope.
const TypePrefix = "groupcast."

// Listener is for whom an event is written. The zero value is the account itself.
type Listener struct {
	// ServiceID and ServiceAccountID are the link's if it is a service.
	ServiceID        models.ServiceID
	ServiceAccountID models.ID
}

// Concerns tells whether a listener may hear of an event of its account at all: a service hears of groups and of its own link.
func (l Listener) Concerns(e models.Event) bool {
	return l.ServiceID == "" || e.Group != nil || e.Link != nil && e.Link.ServiceID == l.ServiceID && e.Link.ServiceAccountID == l.ServiceAccountID
}

// EventID is the id that the envelope of an event has for a listener that it concerns.
func (l Listener) EventID(e models.Event) string {
	if e.Group != nil {
		return fmt.Sprintf("%s/%d", e.GroupID, e.Rev)
	}
	if l.ServiceID == "" {
		return fmt.Sprintf("%s/%d", e.AccountID, e.Rev)
	}
	return fmt.Sprintf("%s/%d", l.ServiceAccountID, LinkPlace(e))
}

// JSON writes an event for a listener that it concerns. The same event gives the same bytes for the same listener.
//
// A service knows the account by its service account id only. So it gets neither the account's id nor its numbers of events, and of the
// join policy only whether it is named itself.
func JSON(e models.Event, to Listener) ([]byte, error) {
	if !to.Concerns(e) {
		return nil, fmt.Errorf("an event %s isn't for service %s", e.Type, to.ServiceID)
	}
	if e.Group != nil {
		return json.Marshal(groupEvent(e, to))
	}
	return json.Marshal(accountEvent(e, to))
}

func groupEvent(e models.Event, to Listener) api.GroupEvent {
	g := e.Group
	data := api.GroupEventData{
		GroupID: g.ID, PremisesID: g.PremisesID, GroupName: g.Name, GroupIP: g.IP, Generation: int32(g.Generation), Rev: int32(e.Rev),
		State: int32(g.State), Members: make([]api.Member, len(g.Members)),
	}
	for i, m := range g.Members {
		data.Members[i] = api.Member{Type: m.Type, ID: m.ID, Role: api.MemberRole(m.Role), Name: m.Name}
		if m.Consent != "" {
			data.Members[i].Consent = &m.Consent
		}
	}
	if senders := sendersFor(g, to); len(senders) > 0 {
		data.Senders = &senders
	}
	if to.ServiceID != "" {
		data.ServiceAccountID = &to.ServiceAccountID
	}
	if e.JoinPolicy != nil {
		data.JoinPolicy = joinPolicy(*e.JoinPolicy, to)
	}
	return api.GroupEvent{
		Specversion: api.GroupEventSpecversionN10, ID: to.EventID(e), Source: "/v1/groups/" + string(g.ID),
		Type: TypePrefix + string(e.Type), Time: e.At, Datacontenttype: api.GroupEventDatacontenttypeApplicationJSON, Sequence: sequence(e.Rev), Data: data,
	}
}

// sendersFor are where the group's copies come from. That is the home's address, so a service learns it only of groups that it is a destination of.
func sendersFor(g *models.GroupState, to Listener) (senders []api.Sender) {
	if to.ServiceID != "" && !slices.ContainsFunc(g.Members, func(m models.Member) bool {
		return m.Type == models.MemberService && m.ID == to.ServiceAccountID && m.Role == models.RoleDestination
	}) {
		return nil
	}
	for _, s := range g.Senders {
		sender := api.Sender{SourceID: s.SourceID, Address: s.At.Addr().String(), Port: int32(s.At.Port())}
		if s.RelayID != 0 {
			sender.RelayID = &s.RelayID
		}
		if s.Inside {
			sender.Inside = &s.Inside
		}
		senders = append(senders, sender)
	}
	return senders
}

func joinPolicy(p models.JoinPolicy, to Listener) *api.JoinPolicy {
	policy := &api.JoinPolicy{Devices: []api.JoinRule{}, Services: []models.ServiceID{}}
	if to.ServiceID != "" {
		if p.AdmitsService(to.ServiceID) {
			policy.Services = append(policy.Services, to.ServiceID)
		}
		return policy
	}
	policy.Services = append(policy.Services, p.Services...)
	for _, r := range p.Devices {
		rule := api.JoinRule{DeviceType: r.Type}
		if r.Model != "" {
			rule.Model = &r.Model
		}
		policy.Devices = append(policy.Devices, rule)
	}
	return policy
}

func accountEvent(e models.Event, to Listener) api.AccountEvent {
	var data api.AccountEventData
	switch {
	case e.Device != nil:
		d := e.Device
		data.Device = &api.AddedDevice{DeviceID: d.ID, PremisesID: d.PremisesID, DeviceType: d.Type, Name: d.Name, Model: d.Model}
	case e.Link != nil:
		data.Link = eventLink(*e.Link)
	case e.Pool != nil:
		p := e.Pool
		data.Pool = &api.ScarcePool{GatewayID: p.GatewayID, PremisesID: e.PremisesID, Pool: api.Pool{
			PoolSize: int32(p.Size), Allocated: int32(p.Allocated), Quarantined: int32(p.Quarantined),
		}}
	case e.Premises != nil:
		p, copiedAt := e.Premises, string(e.Premises.CopiedAt)
		data.Premises = &api.Premises{PremisesID: p.ID, Name: p.Name, Fanout: &p.Fanout, OnRelayLoss: &p.OnRelayLoss, CopiedAt: &copiedAt}
	}
	place := LinkPlace(e)
	if to.ServiceID == "" {
		rev := int32(e.Rev)
		place, data.AccountRev = e.Rev, &rev
	}
	return api.AccountEvent{
		Specversion: api.AccountEventSpecversionN10, ID: to.EventID(e), Source: "/v1/account",
		Type: TypePrefix + string(e.Type), Time: e.At, Datacontenttype: api.AccountEventDatacontenttypeApplicationJSON, Sequence: sequence(place), Data: data,
	}
}

// LinkPlace is the number of an event among those of a link, as its service counts them: its time, because the account's numbers would tell
// how much else happens there.
func LinkPlace(e models.Event) int64 { return e.At.UnixMilli() }

func eventLink(l models.NamedLink) *api.EventLink {
	link := &api.EventLink{ServiceID: l.ServiceID, Name: l.ServiceName, ServiceAccountID: l.ServiceAccountID, Scopes: make([]api.ServiceScope, len(l.Scopes))}
	for i, scope := range l.Scopes {
		link.Scopes[i] = api.ServiceScope(scope)
	}
	if l.Premises != nil {
		link.Premises = &l.Premises
	}
	if !l.ExpiresAt.IsZero() {
		link.ExpiresAt = &l.ExpiresAt
	}
	return link
}

// sequence is a number as a text that sorts like it (CloudEvents extension "sequence").
func sequence(n int64) string { return fmt.Sprintf("%010d", n) }
