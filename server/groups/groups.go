// Package groups reads groups: for those who may see them, and as the group information that a gateway forwards by (SPEC §6).
//
// It never changes anything, and never shows one member's address to another; only the gateway that sends the copies
// gets addresses.
package groups

import (
	"context"
	"net/netip"
	"slices"

	"github.com/groupcast/groupcast/models"
	"github.com/groupcast/groupcast/server/consents"
	"github.com/groupcast/groupcast/server/store"
)

// Filter narrows a list; empty fields don't.
type Filter struct {
	Name       string
	PremisesID models.PremisesID
}

// Service reads groups.
type Service struct {
	store       *store.Store
	credentials *consents.Credentials
	homes       homes
}

// New makes the service. Gateways are told the credentials of destinations.
func New(st *store.Store, c *consents.Credentials) *Service {
	return &Service{store: st, credentials: c}
}

// List reads a page of the groups that the caller may see, oldest first, and the token of the next page, which is empty on the
// last.
func (s *Service) List(ctx context.Context, p models.Principal, f Filter, page models.Page) ([]models.GroupState, string, error) {
	after, err := page.After(models.ListGroups)
	if err != nil {
		return nil, "", err
	}
	all, err := s.read(ctx, p, store.GroupFilter{Name: f.Name, PremisesID: f.PremisesID, After: after, Limit: page.Limit() + 1})
	if err != nil {
		return nil, "", err
	}
	all, next := models.Cut(all, page, models.ListGroups, func(g models.GroupState) string { return string(g.ID) })
	return all, next, nil
}

// Get reads one group that the caller may see.
func (s *Service) Get(ctx context.Context, p models.Principal, id models.GroupID) (models.GroupState, error) {
	all, err := s.read(ctx, p, store.GroupFilter{ID: id, Limit: 1})
	if err != nil {
		return models.GroupState{}, err
	}
	if len(all) == 0 {
		return models.GroupState{}, models.NotFound()
	}
	return all[0], nil
}

// read gives groups with their members as of one instant.
func (s *Service) read(ctx context.Context, p models.Principal, f store.GroupFilter) (all []models.GroupState, err error) {
	viewer, err := viewerOf(p)
	if err != nil {
		return nil, err
	}
	err = s.store.Read(ctx, func(tx *store.Tx) error {
		groups, err := tx.VisibleGroups(viewer, f)
		if err != nil || len(groups) == 0 {
			return err
		}
		ids := make([]models.GroupID, len(groups))
		for i, g := range groups {
			ids[i] = g.ID
		}
		members, err := tx.MembersOf(ids)
		if err != nil {
			return err
		}
		all = make([]models.GroupState, len(groups))
		for i, g := range groups {
			for n, m := range members[g.ID] {
				if p.Kind != models.KindUser { // only the account holder ends what belongs to others
					members[g.ID][n].RegistrationID = ""
				}
				if m.Role == models.RoleDestination {
					g.State++
				}
			}
			all[i] = models.GroupState{Group: g, Members: members[g.ID]}
		}
		return nil
	})
	return all, err
}

// viewerOf is which groups the caller may see.
func viewerOf(p models.Principal) (store.Viewer, error) {
	switch p.Kind {
	case models.KindDevice, models.KindUser:
		return store.Viewer{Account: p.AccountID}, nil
	case models.KindGateway:
		return store.Viewer{Gateway: p.Device.ID}, nil
	case models.KindService:
		return store.Viewer{Service: p.Service.ID}, nil
	default:
		return store.Viewer{}, models.Errorf(models.CodeForbidden, "A %s sees no groups. Use the token of a device, a gateway or a service.", p.Kind)
	}
}

// Information reads, as of one instant, everything that gateways forward by, of those of them that exist. The same revision has the same
// content: groups are sorted by IP, members by number. A failure is never an empty answer.
func (s *Service) Information(ctx context.Context, ids []models.ID) (map[models.ID]models.GroupInformation, error) {
	read, err := s.store.Information(ctx, ids)
	if err != nil {
		return nil, err
	}
	all := make(map[models.ID]models.GroupInformation, len(ids))
	for i, id := range ids {
		if len(read[i].Rows) > 0 {
			all[id] = s.informationOf(read[i])
			continue
		}
		v, found, err := s.relayInformation(ctx, id)
		if err != nil {
			return nil, err
		}
		if found {
			all[id] = v
		}
	}
	return all, nil
}

// fanout tells a gateway who copies.
func fanout(read store.Information, info *models.GroupInformation) {
	info.Fanout = models.FanoutHome
	served := read.Relay.ID != 0
	if !read.Network || !served && !read.Halted && !read.Camera { // for a camera nobody copies at home
		return
	}
	info.Fanout, info.TunnelAddress = models.FanoutNetwork, read.Gateway.TunnelAddress
	if served && !read.Halted {
		info.Relay = &models.RelayAssignment{Relay: read.Relay, Forwarding: read.Forwarding}
	}
}

func (s *Service) informationOf(read store.Information) models.GroupInformation {
	info := models.GroupInformation{
		GatewayID: read.Gateway.ID, Epoch: read.Epoch, Revision: read.Gateway.Revision, MaxStale: read.MaxStale, NotBefore: read.NotBefore,
		Groups: []models.GatewayGroup{},
	}
	if fanout(read, &info); read.Camera {
		info.Camera = true // the members of its groups are none of its business
		info.Needed = slices.ContainsFunc(read.Rows, func(r store.InformationRow) bool { return r.Member.Key.Role == models.RoleDestination })
		return info
	}
	slices.SortFunc(read.Rows, func(a, b store.InformationRow) int {
		if c := a.Group.IP.Compare(b.Group.IP); c != 0 {
			return c
		}
		return int(a.Member.Number - b.Member.Number)
	})
	for _, row := range read.Rows {
		if row.Group.ID == "" { // the gateway has no groups
			continue
		}
		if n := len(info.Groups); n == 0 || info.Groups[n-1].ID != row.Group.ID {
			info.Groups = append(info.Groups, models.GatewayGroup{Group: row.Group})
		}
		s.addMember(&info.Groups[len(info.Groups)-1], Reach(read.Gateway, row.Member), row)
	}
	return info
}

// addMember adds a member as the node that copies reaches it. A destination that it can't reach, such as one in a network that the gateway declared no
// more, counts in the state but gets no copies.
func (s *Service) addMember(g *models.GatewayGroup, reach netip.Addr, row store.InformationRow) {
	m := row.Member
	if m.Key.Role == models.RoleSource {
		g.Sources = append(g.Sources, models.GatewaySource{
			RegistrationID: m.ID, Number: m.Number, Name: m.Name, IPv4: m.PrivateIPv4, IPv6: m.IPv6, Trigger: row.Trigger,
		})
		return
	}
	g.State++
	if !reach.IsValid() {
		return
	}
	d := models.GatewayDestination{RegistrationID: m.ID, Number: m.Number, Name: m.Name, Port: m.Port, Policy: m.Policy, Probes: m.Probes}
	if m.Policy != models.PolicyExempt {
		d.Credential = s.credentials.Of(m.ID)
	}
	if reach.Is4() {
		d.IPv4 = reach
	} else {
		d.IPv6 = reach
	}
	g.Destinations = append(g.Destinations, d)
}
