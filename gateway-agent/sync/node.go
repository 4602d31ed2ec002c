package sync

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"net/netip"
	"time"

	"github.com/groupcast/groupcast/models"
	"github.com/groupcast/groupcast/openapi/api"
	"github.com/groupcast/groupcast/openapi/client"
)

// Node is what the agent is to the service: a gateway or a relay.
type Node interface {
	// declare states what the node serves, and takes what the service says to that: where its STUN port is, if it has one.
	declare(context.Context, *client.Client) (stun string, err error)
	groups(ctx context.Context, c *client.Client, wait *int32, etag *string) (*http.Response, error)
	report(context.Context, *client.Client, api.ConsentReport) (*http.Response, error)
	decode(raw []byte) (*Information, error)
	// longest is how long a poll may wait.
	longest() time.Duration
	// largest is how large its group information may be, in bytes.
	largest() atMost
}

type gatewayNode struct {
	models.Gateway
	key models.TunnelKey
}

func (g gatewayNode) declare(ctx context.Context, c *client.Client) (stun string, err error) {
	groupRange := g.Range.String()
	said := api.GatewayDeclaration{LanPrefix: g.LANPrefix.String(), GatewayIPv4: g.LANAddr, UplinkIPv4: g.Uplink, GroupRange: &groupRange}
	if g.key.Valid() {
		said.TunnelKey = &g.key
	}
	if g.BehindNAT { // which an older service doesn't know
		said.BehindNAT = &g.BehindNAT
	}
	a, err := maxBody.read(c.DeclareGateway(ctx, g.ID, said))
	if err != nil {
		return "", err
	}
	if a.status != http.StatusOK {
		return "", a.failure()
	}
	var inForce api.Gateway
	if err := json.Unmarshal(a.body, &inForce); err != nil || inForce.GatewayID != g.ID || inForce.GroupRange != groupRange {
		return "", errNotAsSent
	}
	if inForce.Stun != nil {
		stun = *inForce.Stun
	}
	return stun, nil
}

var errNotAsSent = errors.New("the server has not taken the declaration as it was sent")

func (g gatewayNode) groups(ctx context.Context, c *client.Client, wait *int32, etag *string) (*http.Response, error) {
	return c.GetGroupInformation(ctx, g.ID, &api.GetGroupInformationParams{Wait: wait, IfNoneMatch: etag})
}

func (g gatewayNode) report(ctx context.Context, c *client.Client, r api.ConsentReport) (*http.Response, error) {
	return c.ReportConsents(ctx, g.ID, r)
}

func (g gatewayNode) decode(raw []byte) (*Information, error) { return Decode(raw, g.Gateway) }

func (gatewayNode) longest() time.Duration { return wait }

func (gatewayNode) largest() atMost { return maxBody }

// Relay is what a relay declares.
type Relay struct {
	ID       models.ID
	Key      models.TunnelKey
	Endpoint netip.AddrPort
	Uplink   netip.Addr
	// Address takes the address that the service gives this relay in the tunnels, before the group information that follows it is delivered.
	Address func(netip.Addr)
}

// NewRelay makes the node that a relay is.
func NewRelay(r Relay) Node { return relayNode{r, newRelayDecoder(r.ID)} }

type relayNode struct {
	Relay
	decoder *relayDecoder
}

func (r relayNode) declare(ctx context.Context, c *client.Client) (stun string, err error) {
	a, err := maxBody.read(c.DeclareRelay(ctx, r.ID, api.RelayDeclaration{
		TunnelKey: r.Key, EndpointIPv4: r.Endpoint.Addr(), EndpointPort: int32(r.Endpoint.Port()), UplinkIPv4: r.Uplink,
	}))
	if err != nil {
		return "", err
	}
	if a.status != http.StatusOK {
		return "", a.failure()
	}
	var inForce api.Relay
	if err := json.Unmarshal(a.body, &inForce); err != nil || inForce.RelayID != r.ID || inForce.TunnelKey != r.Key || !inTunnel(inForce.TunnelAddress) {
		return "", errNotAsSent
	}
	r.Address(inForce.TunnelAddress)
	return "", nil
}

func (r relayNode) groups(ctx context.Context, c *client.Client, wait *int32, etag *string) (*http.Response, error) {
	return c.GetRelayInformation(ctx, r.ID, &api.GetRelayInformationParams{Wait: wait, IfNoneMatch: etag})
}

func (r relayNode) report(ctx context.Context, c *client.Client, report api.ConsentReport) (*http.Response, error) {
	return c.ReportRelayConsents(ctx, r.ID, report)
}

func (r relayNode) decode(raw []byte) (*Information, error) { return r.decoder.decode(raw) }

func (relayNode) longest() time.Duration { return models.RelayMaxWait }

func (relayNode) largest() atMost { return maxRelayBody }
