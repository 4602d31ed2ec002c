package httpapi

import (
	"context"
	"net/netip"
	"strconv"

	"github.com/groupcast/groupcast/openapi/api"
	"github.com/groupcast/groupcast/openapi/ginserver"
	"github.com/groupcast/groupcast/server/relays"
)

func (h handlers) DeclareRelay(ctx context.Context, r ginserver.DeclareRelayRequestObject) (ginserver.DeclareRelayResponseObject, error) {
	ctx, p := caller(ctx)
	v, err := h.Relays.Declare(ctx, p, relays.Declaration{
		RelayID: r.RelayID, TunnelKey: r.Body.TunnelKey, Endpoint: netip.AddrPortFrom(r.Body.EndpointIPv4.Unmap(), uint16(r.Body.EndpointPort)),
		Uplink: r.Body.UplinkIPv4.Unmap(),
	})
	if err != nil {
		return nil, err
	}
	return ginserver.DeclareRelay200JSONResponse(api.Relay{
		RelayID: v.ID, Name: v.Name, TunnelKey: v.TunnelKey, EndpointIPv4: v.Endpoint.Addr(), EndpointPort: int32(v.Endpoint.Port()), UplinkIPv4: v.Uplink,
		TunnelAddress: v.TunnelAddress, Revision: strconv.FormatInt(v.Revision, 10),
	}), nil
}

func (h handlers) ReportRelayConsents(ctx context.Context, r ginserver.ReportRelayConsentsRequestObject) (ginserver.ReportRelayConsentsResponseObject, error) {
	ctx, p := caller(ctx)
	report, err := consentReport(r.RelayID, *r.Body)
	if err != nil {
		return nil, err
	}
	a, err := h.Consents.Report(ctx, p, report)
	if err != nil {
		return nil, err
	}
	return ginserver.ReportRelayConsents200JSONResponse(reportAnswer(a)), nil
}
