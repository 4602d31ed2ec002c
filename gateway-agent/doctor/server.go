package doctor

import (
	"context"
	"errors"
	"log/slog"
	"net/http"
	"time"

	"github.com/groupcast/groupcast/gateway-agent/sync"
	"github.com/groupcast/groupcast/openapi/clientauth"
)

// maxSkew is how far this host's clock may be from the server's: a proof of possession is good for about as long.
const maxSkew = 30 * time.Second

func (e *examination) server(ctx context.Context) {
	c := e.config
	if c.Server == nil || c.Credential == "" || !c.Gateway.ID.Valid() {
		return // the configuration's findings say so
	}
	transport, err := sync.NewTransport(c.CA)
	if err != nil {
		e.fail("server", "correct ca", "%v", err)
		return
	}
	credential, err := clientauth.Open(c.Credential, c.Server.String(), clientauth.Options{Base: transport, AllowPlainHTTP: c.AllowPlainHTTP})
	if err != nil {
		e.fail("credential", "enrol the gateway (groupcastctl enrol), and keep the file for the agent's user alone (chmod 600)", "%v", err)
		return
	}
	e.ok("credential", "%s", c.Credential)
	poller, err := sync.New(sync.Config{
		Server: c.Server.String(), Gateway: c.Gateway, Transport: transport, Authorized: credential.Transport(), Log: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		e.fail("server", "correct server", "%v", err)
		return
	}
	asked := time.Now()
	known, err := poller.Look(ctx)
	refusal, answered := errors.AsType[*sync.ServerError](err)
	switch {
	case err == nil:
		e.ok("server", "%s knows this gateway", c.Server.Redacted())
		e.declared(known)
	case answered && refusal.Status == http.StatusNotFound && refusal.Problem.Title != "":
		e.ok("server", "%s answers", c.Server.Redacted())
		e.warn("declaration", "start the agent: it declares the LAN", "the server doesn't know this gateway's LAN yet")
	default:
		e.fail("server", "see that this host reaches "+c.Server.Host+" and that the credential is this gateway's", "%v", err)
	}
	if known.Date.IsZero() {
		return
	}
	// The header has whole seconds.
	if skew := asked.Sub(known.Date); skew.Abs() > maxSkew {
		e.fail("server clock", "run a time service such as chrony or ntpd here", "this host's clock is %s off the server's: it refuses proofs that seem old or of the future", skew.Round(time.Second))
	}
}

// declared compares what the server goes by with the configuration.
func (e *examination) declared(known sync.Known) {
	g := e.config.Gateway
	if g.BehindNAT && known.Gateway.Stun == nil {
		e.warn("nat", "have the operator set stun-listen, or set behind-nat to false if all destinations are on this side",
			"a NAT is in front of uplink-address, and the service has no STUN port that tells what becomes of the ports that copies leave from")
	}
	switch k := known.Gateway; {
	case k.GroupRange != g.Range.String() || k.UplinkIPv4 != g.Uplink || k.LanPrefix != g.LANPrefix.String():
		e.warn("declaration", "restart the agent: it declares what is configured now", "the server goes by other values of lan-prefix, uplink-address or group-range than the configuration has")
	default:
		e.ok("declaration", "the server goes by the configured LAN, uplink and group range")
	}
}
