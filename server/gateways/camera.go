package gateways

import (
	"context"
	"errors"
	"net/netip"

	"github.com/groupcast/groupcast/models"
	"github.com/groupcast/groupcast/server/audit"
	"github.com/groupcast/groupcast/server/store"
)

// Tunnel is what a camera says that ends its tunnel itself (docs/adr/0076).
type Tunnel struct {
	DeviceID  models.ID
	TunnelKey models.TunnelKey
	// PrivateIPv4 is what its datagrams come from.
	PrivateIPv4 netip.Addr
}

// DeclareTunnel lets a camera be a gateway for itself alone. Saying the same again changes nothing. CodeBadAddress is an address that no host has,
// CodeRangeConflict a premises with a gateway, or a key that another node has.
func (s *Service) DeclareTunnel(ctx context.Context, p models.Principal, t Tunnel) (g models.Gateway, err error) {
	if err := mayTunnel(p, t.DeviceID); err != nil {
		return g, err
	}
	private := t.PrivateIPv4.Unmap()
	if !private.Is4() || private.IsUnspecified() || private.IsMulticast() || private.As4()[0] >= 240 || models.CameraRange.Contains(private) ||
		private.IsLoopback() && !s.opts.AllowLoopback {
		return g, models.Errorf(models.CodeBadAddress, "privateIPv4 must be the address that the camera sends from, and none of %s, which its group IPs are of.", models.CameraRange)
	}
	declared := models.Gateway{
		ID: t.DeviceID, AccountID: p.AccountID, PremisesID: p.PremisesID,
		LANPrefix: netip.PrefixFrom(private, 32), Range: models.CameraRange, TunnelKey: t.TunnelKey,
	}
	err = s.store.Write(ctx, func(tx *store.Tx) error {
		g, err = declareTunnel(ctx, tx, declared)
		return err
	})
	switch {
	case errors.Is(err, errUnchanged):
		err = nil
	case s.store.IsDuplicate(err):
		err = keyTaken()
	case s.store.IsReference(err):
		err = models.NotFound() // it was removed meanwhile
	}
	return g, err
}

func declareTunnel(ctx context.Context, tx *store.Tx, declared models.Gateway) (models.Gateway, error) {
	switch _, found, err := tx.LockPremises(declared.PremisesID); {
	case err != nil:
		return declared, err
	case !found:
		return declared, models.NotFound()
	}
	neighbours, err := tx.GatewaysOf(declared.PremisesID)
	if err != nil {
		return declared, err
	}
	known := false
	for _, g := range neighbours {
		known = known || g.ID == declared.ID
		if g.Declared() && !g.IsCamera() {
			return declared, models.Errorf(models.CodeRangeConflict,
				"The gateway %s serves this premises, and forwards for its cameras. Register without a tunnel of the camera's own.", g.ID)
		}
	}
	if !known {
		if err := tx.InsertGateway(declared); err != nil {
			return declared, err
		}
	}
	old, found, err := tx.LockGateway(declared.ID)
	switch {
	case err != nil:
		return declared, err
	case !found:
		return declared, store.ErrAgain
	case old.LANPrefix == declared.LANPrefix && old.TunnelKey == declared.TunnelKey:
		return old, errUnchanged
	}
	if err := changeRange(tx, declared); err != nil {
		return declared, err
	}
	if declared.TunnelAddress = old.TunnelAddress; !old.TunnelAddress.IsValid() {
		if declared.TunnelAddress, err = tx.DrawTunnelAddress(store.TunnelsOfPremises); err != nil {
			return declared, err
		}
	}
	if err := tx.SetDeclaration(declared); err != nil {
		return declared, err
	}
	return declared, audit.Note(ctx, tx, audit.Entry{Account: declared.AccountID, Action: audit.GatewayDeclare, Object: audit.OfDevice(declared.ID)})
}

// HasTunnel refuses whoever has declared no tunnel, or has lost it to a gateway.
func (s *Service) HasTunnel(ctx context.Context, p models.Principal, id models.ID) error {
	if err := mayTunnel(p, id); err != nil {
		return err
	}
	return s.store.Read(ctx, func(tx *store.Tx) error {
		g, found, err := tx.Gateway(p.AccountID, id)
		if err == nil && (!found || !g.IsCamera()) {
			err = models.Errorf(models.CodeNotFound, "This camera has no tunnel of its own. PUT its declaration first.")
		}
		return err
	})
}

// mayTunnel: only the camera itself; anybody else's looks like a missing one.
func mayTunnel(p models.Principal, id models.ID) error {
	switch {
	case p.Kind != models.KindDevice || p.Device.ID != id:
		return models.NotFound()
	case p.Device.Type != models.DeviceCamera:
		return models.Errorf(models.CodeForbidden, "Only a camera has a tunnel of its own. Enrol this device as a camera, or put a gateway into the premises.")
	}
	return nil
}

// replaceCameras ends the tunnels of cameras in a premises where a gateway declares itself, which is to serve them from now on. While one of them has a
// group the gateway is refused.
func replaceCameras(tx *store.Tx, premises models.PremisesID) error {
	all, err := tx.GatewaysOf(premises)
	if err != nil {
		return err
	}
	for _, g := range all {
		if !g.IsCamera() {
			continue
		}
		if _, _, err := tx.LockGateway(g.ID); err != nil {
			return err
		}
		groups, err := tx.GroupsOfGateway(g.ID)
		if err != nil {
			return err
		}
		if len(groups) > 0 {
			return models.Errorf(models.CodeRangeConflict, "The camera %s of this premises sends through a tunnel of its own. Stop it, or wait until its lease ends, and "+
				"declare again; then it can register with this gateway.", g.ID)
		}
		if err := tx.EndTunnel(g.ID); err != nil {
			return err
		}
	}
	return nil
}

func keyTaken() error {
	return models.Errorf(models.CodeRangeConflict, "Another gateway or camera has this tunnelKey. Make a new key: a copy of a host's files must not take its place.")
}
