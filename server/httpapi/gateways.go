package httpapi

import (
	"context"
	"strconv"

	"github.com/groupcast/groupcast/models"
	"github.com/groupcast/groupcast/openapi/api"
	"github.com/groupcast/groupcast/openapi/ginserver"
	"github.com/groupcast/groupcast/server/gateways"
)

func (h handlers) DeclareGateway(ctx context.Context, r ginserver.DeclareGatewayRequestObject) (ginserver.DeclareGatewayResponseObject, error) {
	ctx, p := caller(ctx)
	g, pool, err := h.Gateways.Declare(ctx, p, gateways.Declaration{
		GatewayID:   r.GatewayID,
		LANPrefix:   r.Body.LanPrefix,
		GatewayIPv4: r.Body.GatewayIPv4,
		UplinkIPv4:  r.Body.UplinkIPv4,
		GroupRange:  value(r.Body.GroupRange),
		BehindNAT:   value(r.Body.BehindNAT),
		TunnelKey:   value(r.Body.TunnelKey),
	})
	if err != nil {
		return nil, err
	}
	return ginserver.DeclareGateway200JSONResponse(h.gateway(g, pool)), nil
}

func (h handlers) DeclareTunnel(ctx context.Context, r ginserver.DeclareTunnelRequestObject) (ginserver.DeclareTunnelResponseObject, error) {
	ctx, p := caller(ctx)
	g, err := h.Gateways.DeclareTunnel(ctx, p, gateways.Tunnel{DeviceID: r.DeviceID, TunnelKey: r.Body.TunnelKey, PrivateIPv4: r.Body.PrivateIPv4})
	if err != nil {
		return nil, err
	}
	return ginserver.DeclareTunnel200JSONResponse(api.Tunnel{
		DeviceID: g.ID, TunnelKey: g.TunnelKey, PrivateIPv4: g.LANPrefix.Addr(), TunnelAddress: g.TunnelAddress, GroupRange: g.Range.String(),
	}), nil
}

func (h handlers) GetGateway(ctx context.Context, r ginserver.GetGatewayRequestObject) (ginserver.GetGatewayResponseObject, error) {
	ctx, p := caller(ctx)
	g, pool, err := h.Gateways.Get(ctx, p, r.GatewayID)
	if err != nil {
		return nil, err
	}
	return ginserver.GetGateway200JSONResponse(h.gateway(g, pool)), nil
}

func (h handlers) gateway(g models.Gateway, p models.Pool) api.Gateway {
	return api.Gateway{
		GatewayID:   g.ID,
		PremisesID:  g.PremisesID,
		LanPrefix:   g.LANPrefix.String(),
		GatewayIPv4: g.LANAddr,
		UplinkIPv4:  g.Uplink,
		GroupRange:  g.Range.String(),
		Pool:        api.Pool{PoolSize: int32(p.Size), Allocated: int32(p.Allocated), Quarantined: int32(p.Quarantined)},
		Revision:    strconv.FormatInt(g.Revision, 10),
		BehindNAT:   &g.BehindNAT,
		Stun:        orNil(h.STUN),
	}
}
