// Package gateways keeps what each gateway declares about its network: the LAN it serves, its uplink, and the range of group
// IPs it keeps out of DHCP (SPEC §5).
//
// It owns the rules for what may be declared, and with them which addresses are in a pool and which gateway serves a camera. It
// never hands out an address: that is server/addresspool, within server/registrations.
package gateways

import (
	"context"
	"errors"
	"net/netip"

	"github.com/groupcast/groupcast/models"
	"github.com/groupcast/groupcast/server/addresspool"
	"github.com/groupcast/groupcast/server/audit"
	"github.com/groupcast/groupcast/server/store"
)

// Options are the operator's settings that the rules of declarations depend on.
type Options struct {
	// AllowLoopback lets LAN, range and uplink lie in 127/8 (SPEC §10).
	AllowLoopback bool
}

// Declaration is what a gateway says, as it was sent.
type Declaration struct {
	GatewayID models.ID
	// LANPrefix is like 192.168.1.0/24.
	LANPrefix string
	// GatewayIPv4 is the gateway's own address in the LAN.
	GatewayIPv4 netip.Addr
	UplinkIPv4  netip.Addr
	// GroupRange is a prefix or first-last; empty means .230 to .254 of the /24 that the gateway is in.
	GroupRange string
	// BehindNAT says that a NAT stands between the uplink and the destinations.
	BehindNAT bool
	// TunnelKey is the zero key if no relay can serve it.
	TunnelKey models.TunnelKey
}

// Service keeps declarations.
type Service struct {
	store *store.Store
	opts  Options
}

// New makes the service.
func New(st *store.Store, opts Options) *Service {
	return &Service{store: st, opts: opts}
}

// Serving chooses, among the gateways of a premises, the one whose LAN holds the address of a source, which is a device. Declare sees to it that there
// is at most one. A camera's own tunnel is for that camera alone. CodeNoGateway and CodeWrongLAN say what is missing.
func Serving(gateways []models.Gateway, device models.ID, source netip.Addr) (models.Gateway, error) {
	declared := 0
	for _, g := range gateways {
		if g.IsCamera() && g.ID != device {
			continue
		}
		if g.Declared() {
			declared++
		}
		if g.LANPrefix.Contains(source) { // false for a gateway that declared nothing
			return g, nil
		}
	}
	if declared == 0 {
		return models.Gateway{}, models.Errorf(models.CodeNoGateway,
			"This premises has no gateway that declared its LAN. Start the gateway agent there, or let the camera declare a tunnel of its own, and register again.")
	}
	return models.Gateway{}, models.Errorf(models.CodeWrongLAN,
		"privateIPv4 %s is in the LAN of no gateway of this premises. Send the camera's address in the LAN that a gateway serves, or the one that it declared its "+
			"own tunnel with.", source)
}

var errUnchanged = errors.New("the declaration is the one that is there")

// Declare records what a gateway says of itself. Saying the same again changes nothing. CodeBadRange is a declaration that isn't
// usable; CodeRangeConflict is one that collides with another gateway or with live groups.
func (s *Service) Declare(ctx context.Context, p models.Principal, d Declaration) (models.Gateway, models.Pool, error) {
	if err := mayUse(p, d.GatewayID); err != nil {
		return models.Gateway{}, models.Pool{}, err
	}
	declared, err := s.understand(d)
	if err != nil {
		return models.Gateway{}, models.Pool{}, err
	}
	declared.AccountID, declared.PremisesID = p.AccountID, p.PremisesID
	err = s.store.Write(ctx, func(tx *store.Tx) error { return s.declare(ctx, tx, declared) })
	if s.store.IsDuplicate(err) {
		err = keyTaken()
	}
	if err != nil && !errors.Is(err, errUnchanged) {
		return models.Gateway{}, models.Pool{}, err
	}
	return s.Get(ctx, p, d.GatewayID)
}

// declare changes the gateway if the declaration is new. The premises is locked first, so that two gateways can't declare
// overlapping LANs at the same moment.
func (s *Service) declare(ctx context.Context, tx *store.Tx, declared models.Gateway) error {
	premises, found, err := tx.LockPremises(declared.PremisesID)
	if err != nil {
		return err
	}
	if !found {
		return models.NotFound()
	}
	if err := s.checkSpace(declared.Range, premises); err != nil {
		return err
	}
	if err := replaceCameras(tx, declared.PremisesID); err != nil {
		return err
	}
	old, found, err := tx.LockGateway(declared.ID)
	if err != nil {
		return err
	}
	switch {
	case !found:
		return models.NotFound()
	case old.LANPrefix == declared.LANPrefix && old.LANAddr == declared.LANAddr && old.Uplink == declared.Uplink && old.Range == declared.Range &&
		old.BehindNAT == declared.BehindNAT && old.TunnelKey == declared.TunnelKey:
		return errUnchanged
	}
	if err := checkNeighbours(tx, declared); err != nil {
		return err
	}
	if err := checkSources(tx, declared); err != nil {
		return err
	}
	if err := changeRange(tx, declared); err != nil {
		return err
	}
	if declared.TunnelAddress = old.TunnelAddress; declared.TunnelKey.Valid() && !old.TunnelAddress.IsValid() {
		if declared.TunnelAddress, err = tx.DrawTunnelAddress(store.TunnelsOfPremises); err != nil {
			return err
		}
	}
	if err := tx.SetDeclaration(declared); err != nil {
		return err
	}
	if old.Uplink != declared.Uplink {
		// The gateway reports what it reserved at the new one.
		if err := tx.ForgetSenders(declared.ID); err != nil {
			return err
		}
	}
	return audit.Note(ctx, tx, audit.Entry{Account: old.AccountID, Action: audit.GatewayDeclare, Object: audit.OfDevice(declared.ID)})
}

// checkNeighbours refuses a LAN that overlaps that of another gateway of the premises: a camera's gateway must be unambiguous.
// The group ranges lie within the LANs, so they can't overlap either.
func checkNeighbours(tx *store.Tx, declared models.Gateway) error {
	all, err := tx.GatewaysOf(declared.PremisesID)
	if err != nil {
		return err
	}
	for _, g := range all {
		if g.ID != declared.ID && g.Declared() && g.LANPrefix.Overlaps(declared.LANPrefix) {
			return models.Errorf(models.CodeRangeConflict, "lanPrefix %s overlaps %s of gateway %s in the same premises. Each gateway needs a LAN of "+
				"its own; move this one to another premises if it is one.", declared.LANPrefix, g.LANPrefix, g.ID)
		}
	}
	return nil
}

// checkSources refuses a declaration in which a live source would no longer be a host of the LAN.
func checkSources(tx *store.Tx, declared models.Gateway) error {
	sources, err := tx.SourcesOf(declared.ID)
	if err != nil {
		return err
	}
	lost := 0
	for _, r := range sources {
		if !declared.IsHost(r.PrivateIPv4) {
			lost++
		}
	}
	if lost > 0 {
		return models.Errorf(models.CodeRangeConflict, "%d live sources would be outside the LAN, or at an address of the gateway or of the group range. "+
			"Let them leave, or wait until their leases end, and declare again.", lost)
	}
	return nil
}

// changeRange makes the rows of the pool those of the declared range. A row that was handed out once stays even if its address
// leaves the range, because its generation must never start again.
func changeRange(tx *store.Tx, declared models.Gateway) error {
	pool, err := tx.Pool(declared.ID)
	if err != nil {
		return err
	}
	have := map[netip.Addr]bool{}
	var drop, add []netip.Addr
	for _, a := range pool.Addresses {
		have[a.IP] = true
		switch {
		case declared.Range.Contains(a.IP):
		case a.State == models.AddressAllocated:
			return models.Errorf(models.CodeRangeConflict, "The group %s has the group IP %s, which is not in %s. Let its sources leave, or wait until "+
				"their leases end, and declare again.", a.LastGroupName, a.IP, declared.Range)
		case a.Generation == 0:
			drop = append(drop, a.IP)
		}
	}
	for ip := declared.Range.First; declared.Range.Contains(ip); ip = ip.Next() {
		if !have[ip] {
			add = append(add, ip)
		}
	}
	if err := tx.DeleteAddresses(declared.ID, drop); err != nil {
		return err
	}
	return tx.InsertAddresses(declared.ID, add)
}

// Get reads a gateway's declaration and how its pool stands. A gateway that has declared nothing yet is not found.
func (s *Service) Get(ctx context.Context, p models.Principal, id models.ID) (g models.Gateway, pool models.Pool, err error) {
	if err := mayUse(p, id); err != nil {
		return g, pool, err
	}
	err = s.store.Read(ctx, func(tx *store.Tx) error {
		var found bool
		if g, found, err = tx.Gateway(p.AccountID, id); err != nil {
			return err
		}
		if !found || !g.Declared() {
			return models.Errorf(models.CodeNotFound, "This gateway has not declared its LAN yet. PUT its declaration first.")
		}
		rows, err := tx.Pool(id)
		if err != nil {
			return err
		}
		g.AckedRevision, g.PolledAt = rows.Acked, rows.PolledAt
		pool = addresspool.Count(addresspool.Within(rows.Addresses, g.Range), rows.Now,
			addresspool.NewPolicy(rows.MaxStale, rows.Acked, rows.PolledAt, rows.Now))
		return nil
	})
	return g, pool, err
}

// mayUse: only the gateway itself; anybody else's looks like a missing one.
func mayUse(p models.Principal, id models.ID) error {
	if p.Kind != models.KindGateway || p.Device.ID != id {
		return models.NotFound()
	}
	return nil
}
