package eventstreams

import (
	"context"
	"slices"

	"github.com/groupcast/groupcast/models"
	"github.com/groupcast/groupcast/server/events"
	"github.com/groupcast/groupcast/server/store"
)

// hearer is what the database is asked with.
func hearer(p models.Principal) store.Hearer {
	switch p.Kind {
	case models.KindService:
		return store.Hearer{Service: p.Service.ID}
	case models.KindDevice:
		return store.Hearer{Account: p.AccountID, Device: p.Device.ID}
	default:
		return store.Hearer{Account: p.AccountID}
	}
}

// mayHear decides about an event as the database knows the listener now, and for whom it is to be written.
func (s *Service) mayHear(ctx context.Context, p models.Principal, e store.HeardEvent) (events.Listener, bool, error) {
	switch {
	case p.Kind == models.KindService && e.Link != 0:
		to := events.Listener{ServiceID: p.Service.ID, ServiceAccountID: e.Link}
		return to, to.Concerns(e.Event), nil
	case p.Kind == models.KindService: // the end of a link is the last that is heard of it
		if e.Event.Link == nil {
			return events.Listener{}, false, nil
		}
		to := events.Listener{ServiceID: p.Service.ID, ServiceAccountID: e.Event.Link.ServiceAccountID}
		return to, to.Concerns(e.Event), nil
	case p.Kind == models.KindUser, e.Member, e.Type == models.EventDeviceAdded:
		return events.Listener{}, true, nil
	case e.Type == models.EventGroupCreated:
		return events.Listener{}, mayJoin(p.Device, value(e.JoinPolicy)), nil
	case e.Type == models.EventGroupEnded:
		was, err := s.wasMember(ctx, p.Device.ID, e.EventPlace)
		return events.Listener{}, was, err
	}
	return events.Listener{}, false, nil
}

// mayJoin tells whether a device hears of new groups: those that people watch with, and those that the policy wants.
func mayJoin(d models.Device, policy models.JoinPolicy) bool {
	return d.Type == models.DevicePhone || d.Type == models.DeviceTablet || policy.AdmitsDevice(d.Type, d.Model)
}

// wasMember tells whether the end of a group ended a device's registration, too.
func (s *Service) wasMember(ctx context.Context, device models.ID, end models.EventPlace) (bool, error) {
	before, err := s.o.Store.EventsAfter(ctx, end.EventStream, end.Rev-2, 1)
	if err != nil || len(before) == 0 || before[0].Group == nil || before[0].Rev != end.Rev-1 {
		return false, err
	}
	return isIn(device, *before[0].Group), nil
}

func isIn(device models.ID, g models.GroupState) bool {
	return slices.ContainsFunc(g.Members, func(m models.Member) bool { return m.Type == models.MemberDevice && m.ID == device })
}

// states writes how groups are now for the listener, without those that it doesn't hear of.
func (s *Service) states(ctx context.Context, p models.Principal, groups []models.GroupState) ([]Event, error) {
	if len(groups) == 0 {
		return nil, nil
	}
	var ids []models.AccountID
	for _, g := range groups {
		if !slices.Contains(ids, g.AccountID) {
			ids = append(ids, g.AccountID)
		}
	}
	accounts, now, err := s.o.Store.HearingAccounts(ctx, p.Service.ID, ids)
	if err != nil {
		return nil, err
	}
	var all []Event
	for _, g := range groups {
		account := accounts[g.AccountID]
		if p.Kind == models.KindDevice && !isIn(p.Device.ID, g) && !mayJoin(p.Device, account.JoinPolicy) ||
			p.Kind == models.KindService && account.Link == 0 { // it ended since the groups were read
			continue
		}
		to := events.Listener{}
		if p.Kind == models.KindService {
			to = events.Listener{ServiceID: p.Service.ID, ServiceAccountID: account.Link}
		}
		text, err := events.JSON(models.Event{
			EventPlace: models.EventPlace{EventStream: models.EventStream{AccountID: g.AccountID, GroupID: g.ID}, Rev: g.Rev},
			PremisesID: g.PremisesID, Type: models.EventGroupState, At: now, Group: &g, JoinPolicy: &account.JoinPolicy,
		}, to)
		if err != nil {
			return nil, err
		}
		all = append(all, Event{OfGroup: true, JSON: text})
	}
	return all, nil
}

func value[T any](p *T) (v T) {
	if p != nil {
		v = *p
	}
	return v
}
