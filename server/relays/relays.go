// Package relays keeps the operator's relays, which copy in the network for premises whose account holder wants that (SPEC §9, docs/adr/0063): what they
// declare, whom they may serve, and which relay serves which premises.
//
// The assignment is the database's: every replica may change it, each change under the locks of the premises' gateways and of the relay. What nodes hear of it is
// server/groups' business.
package relays

import (
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"time"

	"github.com/groupcast/groupcast/models"
	"github.com/groupcast/groupcast/server/audit"
	"github.com/groupcast/groupcast/server/secrets"
	"github.com/groupcast/groupcast/server/store"
)

// TicketLife is how long a relay's ticket is good.
const TicketLife = 15 * time.Minute

// Options are the operator's settings.
type Options struct {
	// AllowLoopback lets endpoint and uplink lie in 127/8 (SPEC §10).
	AllowLoopback bool
	// Settle is for how long a process looks before it takes a relay for dead: after an outage of the service relays need the time to ask again. Zero is
	// none, for tests.
	Settle time.Duration
	Log    *slog.Logger
}

// Service keeps relays. It is safe for concurrent use, but for Look.
type Service struct {
	store *store.Store
	opts  Options
	// looking is since when Look succeeded without a gap, and looked when it did last.
	looking, looked time.Time
	rounds          int
}

// New makes the service.
func New(st *store.Store, o Options) *Service {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	return &Service{store: st, opts: o}
}

// Ticket lets a relay enrol, once.
type Ticket struct {
	RelayID   models.ID
	Secret    string
	ExpiresAt time.Time
}

// Create makes a relay that serves nobody yet, and its ticket, which is shown once.
func (s *Service) Create(ctx context.Context, name string) (t Ticket, err error) {
	t = Ticket{RelayID: models.NewID(), Secret: secrets.New()}
	err = s.store.Write(ctx, func(tx *store.Tx) error {
		if err := tx.InsertRelay(models.Relay{ID: t.RelayID, Name: name}); err != nil {
			return err
		}
		if t.ExpiresAt, err = tx.PutRelayTicket(secrets.Hash(t.Secret), t.RelayID, TicketLife); err != nil {
			return err
		}
		return audit.Note(ctx, tx, audit.Entry{Action: audit.RelayCreate, Object: audit.OfRelay(t.RelayID)})
	})
	return t, err
}

// NewTicket makes another ticket for a relay; those before it are good no more.
func (s *Service) NewTicket(ctx context.Context, id models.ID) (t Ticket, err error) {
	t = Ticket{RelayID: id, Secret: secrets.New()}
	err = s.store.Write(ctx, func(tx *store.Tx) error {
		if err := exists(tx, id); err != nil {
			return err
		}
		if t.ExpiresAt, err = tx.PutRelayTicket(secrets.Hash(t.Secret), id, TicketLife); err != nil {
			return err
		}
		return audit.Note(ctx, tx, audit.Entry{Action: audit.TicketCreate, Object: audit.OfRelay(id)})
	})
	return t, err
}

func exists(tx *store.Tx, id models.ID) error {
	_, found, err := tx.Relay(id)
	if err == nil && !found {
		err = noRelay(id)
	}
	return err
}

func noRelay(id models.ID) error {
	return models.Errorf(models.CodeNotFound, "There is no relay %s. Check the id, or create it first.", id)
}

// Standing is how a relay stands, for the operator.
type Standing struct {
	store.RelayStanding
	// May are the premises that it may serve, unless it may serve all.
	May []models.PremisesID
}

// List reads a page of relays by id, and the token of the next page, which is empty on the last.
func (s *Service) List(ctx context.Context, page models.Page) (all []Standing, next string, err error) {
	text, err := page.After(models.ListRelays)
	if err != nil {
		return nil, "", err
	}
	var after models.ID
	if text != "" {
		if after, err = models.ParseID(text); err != nil {
			return nil, "", models.Errorf(models.CodeBadRequest, "This pageToken is not one of ours. Leave it out to start with the first page.")
		}
	}
	read, err := s.store.RelaysStanding(ctx, after, page.Limit()+1)
	if err != nil {
		return nil, "", err
	}
	read, next = models.Cut(read, page, models.ListRelays, func(r store.RelayStanding) string { return r.ID.String() })
	all, err = s.withMay(ctx, read)
	return all, next, err
}

func (s *Service) withMay(ctx context.Context, read []store.RelayStanding) ([]Standing, error) {
	var ids []models.ID
	for _, r := range read {
		ids = append(ids, r.ID)
	}
	may, err := s.store.RelayMay(ctx, ids)
	all := []Standing{}
	for _, r := range read {
		if !r.Removed {
			all = append(all, Standing{r, may[r.ID]})
		}
	}
	return all, err
}

// Get reads how a relay stands.
func (s *Service) Get(ctx context.Context, id models.ID) (Standing, error) {
	read, err := s.store.RelaysStanding(ctx, id-1, 1)
	if err != nil {
		return Standing{}, err
	}
	all, err := s.withMay(ctx, read)
	if err == nil && (len(all) == 0 || all[0].ID != id) {
		err = noRelay(id)
	}
	if err != nil {
		return Standing{}, err
	}
	return all[0], nil
}

// SetMay says which premises a relay may serve: all, or those that are named.
func (s *Service) SetMay(ctx context.Context, id models.ID, all bool, premises []models.PremisesID) error {
	err := s.store.Write(ctx, func(tx *store.Tx) error {
		if err := exists(tx, id); err != nil {
			return err
		}
		if err := tx.SetRelayMay(id, all, premises); err != nil {
			return err
		}
		return audit.Note(ctx, tx, audit.Entry{Action: audit.RelayChange, Object: audit.OfRelay(id)})
	})
	switch {
	case s.store.IsReference(err):
		return models.Errorf(models.CodeNotFound, "One of the premises doesn't exist. Check the ids.")
	case s.store.IsDuplicate(err):
		return models.Errorf(models.CodeBadRequest, "One of the premises is named twice. Name each once.")
	}
	return err
}

// Remove ends a relay: its tokens at once, and Look gives its premises to others.
func (s *Service) Remove(ctx context.Context, id models.ID) error {
	return s.store.Write(ctx, func(tx *store.Tx) error {
		found, err := tx.RemoveRelay(id)
		if err != nil {
			return err
		}
		if !found {
			return noRelay(id)
		}
		return audit.Note(ctx, tx, audit.Entry{Action: audit.RelayRemove, Object: audit.OfRelay(id)})
	})
}

// Enrol uses a ticket up and gives the relay its key, in place of any before; ok is false if the ticket is none of a relay that can be used. It is a step of a
// transaction. A key that another relay has is CodeAlreadyExists.
func (s *Service) Enrol(ctx context.Context, tx *store.Tx, ticket, thumbprint, jwk string) (id models.ID, ok bool, err error) {
	id, ok, err = tx.TakeRelayTicket(secrets.Hash(ticket))
	if err != nil || !ok {
		return 0, false, err
	}
	err = tx.SetRelayKey(id, thumbprint, jwk)
	if s.store.IsDuplicate(err) {
		return 0, false, models.Errorf(models.CodeAlreadyExists, "This key belongs to another relay. Make a new key.")
	}
	if err != nil {
		return 0, false, err
	}
	return id, true, audit.Note(ctx, tx, audit.Entry{Action: audit.RelayEnrol, Object: audit.OfRelay(id)})
}

// Principal reads the relay that a token names, as a caller without scopes. One that was removed is CodeUnauthenticated.
func (s *Service) Principal(ctx context.Context, id models.ID) (models.Principal, error) {
	r, found, err := s.store.Relay(ctx, id)
	if err != nil {
		return models.Principal{}, err
	}
	if !found {
		return models.Principal{}, models.Errorf(models.CodeUnauthenticated, "The relay of this token was removed. Ask the operator for another.")
	}
	return models.Principal{Kind: models.KindRelay, Relay: r}, nil
}

// Declaration is what a relay says of itself.
type Declaration struct {
	RelayID   models.ID
	TunnelKey models.TunnelKey
	// Endpoint is where its tunnels end, Uplink the address that its copies leave with.
	Endpoint netip.AddrPort
	Uplink   netip.Addr
}

var errUnchanged = errors.New("the declaration is the one that is there")

// Declare records what a relay says of itself; its premises' gateways hear of it. Saying the same again changes nothing.
func (s *Service) Declare(ctx context.Context, p models.Principal, d Declaration) (models.Relay, error) {
	if p.Kind != models.KindRelay || p.Relay.ID != d.RelayID {
		return models.Relay{}, models.NotFound()
	}
	if !d.TunnelKey.Valid() {
		return models.Relay{}, models.Errorf(models.CodeBadRequest, "tunnelKey is no key. Send the public key of the relay's WireGuard interface, as `wg pubkey` prints it.")
	}
	for _, a := range []netip.Addr{d.Endpoint.Addr(), d.Uplink} {
		if !a.Is4() || a.IsUnspecified() || a.IsMulticast() || a.IsLinkLocalUnicast() || a.IsLoopback() && !s.opts.AllowLoopback ||
			netip.MustParsePrefix("240.0.0.0/4").Contains(a) {
			return models.Relay{}, models.Errorf(models.CodeBadAddress, "endpointIPv4 and uplinkIPv4 must be the relay's own IPv4 addresses, which gateways and destinations reach.")
		}
	}
	err := s.store.Write(ctx, func(tx *store.Tx) error {
		old, found, err := tx.Relay(d.RelayID)
		switch {
		case err != nil:
			return err
		case !found:
			return models.NotFound()
		case old.TunnelKey == d.TunnelKey && old.Endpoint == d.Endpoint && old.Uplink == d.Uplink:
			return errUnchanged
		}
		served, err := tx.ServedBy(d.RelayID)
		if err != nil {
			return err
		}
		// The gateways' information holds what is declared; and a gateway is locked before a relay.
		if err := tx.LockGatewaysOf(served); err != nil {
			return err
		}
		if _, found, err = tx.LockRelay(d.RelayID); err != nil {
			return err
		}
		if !found {
			return models.NotFound()
		}
		now := old
		now.TunnelKey, now.Endpoint, now.Uplink = d.TunnelKey, d.Endpoint, d.Uplink
		if err := tx.SetRelayDeclaration(now); err != nil {
			return err
		}
		if old.Uplink != d.Uplink {
			if err := tx.ForgetRelaySenders(d.RelayID); err != nil {
				return err
			}
		}
		return audit.Note(ctx, tx, audit.Entry{Action: audit.RelayDeclare, Object: audit.OfRelay(d.RelayID)})
	})
	if err != nil && !errors.Is(err, errUnchanged) {
		return models.Relay{}, err
	}
	r, found, err := s.store.Relay(ctx, d.RelayID)
	if err == nil && !found {
		err = models.NotFound()
	}
	return r, err
}
