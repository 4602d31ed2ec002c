package groups

import (
	"cmp"
	"context"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/groupcast/groupcast/models"
	"github.com/groupcast/groupcast/server/store"
)

// keepHomes is for how long what a relay served is kept after it last had news, so that the next change costs what changed. Every premises has one relay at a
// time, so not much more than all premises is kept.
const keepHomes = 10 * time.Minute

// homes keeps the premises of relays as they were when they were read last: their content is read and written down again only when it changed
// (docs/adr/0075).
type homes struct {
	mu  sync.Mutex
	all map[models.ID]served
}

// served is what a relay served at a time.
type served struct {
	epoch string
	at    time.Time
	homes map[models.PremisesID]known
}

type known struct {
	state string
	home  *models.RelayHome
}

// of is what is kept of a relay. It must not be changed.
func (h *homes) of(id models.ID) served {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.all[id]
}

func (h *homes) keep(id models.ID, now served) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.all == nil {
		h.all = map[models.ID]served{}
	}
	h.all[id] = now
	maps.DeleteFunc(h.all, func(_ models.ID, s served) bool { return now.at.Sub(s.at) > keepHomes })
}

// relayInformation is everything that a relay copies by.
func (s *Service) relayInformation(ctx context.Context, id models.ID) (info models.GroupInformation, found bool, err error) {
	before := s.homes.of(id)
	read, found, err := s.store.RelayInformation(ctx, id, func(epoch string, h store.RelayHome) bool {
		return epoch == before.epoch && before.homes[h.PremisesID].state == h.State
	})
	if err != nil || !found {
		return info, found, err
	}
	changed := s.homesOf(read)
	now := served{epoch: read.Epoch, at: time.Now(), homes: make(map[models.PremisesID]known, len(read.Homes))}
	info = models.GroupInformation{
		RelayID: read.Relay.ID, Epoch: read.Epoch, Revision: read.Relay.Revision, MaxStale: read.MaxStale, NotBefore: read.Relay.NotBefore,
		Homes: make([]*models.RelayHome, len(read.Homes)),
	}
	for i, h := range read.Homes {
		home, ok := changed[h.PremisesID]
		if !ok {
			home = before.homes[h.PremisesID].home
		}
		now.homes[h.PremisesID], info.Homes[i] = known{h.State, home}, home
	}
	// The order of texts in the database may be another.
	slices.SortFunc(info.Homes, func(a, b *models.RelayHome) int { return cmp.Compare(a.PremisesID, b.PremisesID) })
	s.homes.keep(id, now)
	return info, true, nil
}

// homesOf puts together the content that was read.
func (s *Service) homesOf(read store.RelayInformation) map[models.PremisesID]*models.RelayHome {
	all := map[models.PremisesID]*models.RelayHome{}
	for _, p := range read.Premises {
		h := all[p.PremisesID]
		if h == nil {
			h = &models.RelayHome{PremisesID: p.PremisesID}
			all[p.PremisesID] = h
		}
		h.Gateways = append(h.Gateways, p)
	}
	for _, row := range read.Rows {
		h := all[row.Group.PremisesID]
		if n := len(h.Groups); n == 0 || h.Groups[n-1].ID != row.Group.ID {
			h.Groups = append(h.Groups, models.GatewayGroup{Group: row.Group})
		}
		if row.Member.OwnerService == "" {
			row.Member.Probes = 0 // which a device has because its gateway is behind a NAT
		}
		s.addMember(&h.Groups[len(h.Groups)-1], reachFromNetwork(row.Member), row)
	}
	for _, h := range all { // addresses as text are in another order
		slices.SortStableFunc(h.Groups, func(a, b models.GatewayGroup) int { return a.IP.Compare(b.IP) })
	}
	return all
}
