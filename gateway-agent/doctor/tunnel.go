package doctor

import (
	"fmt"
	"net"
	"net/netip"

	"github.com/groupcast/groupcast/gateway-agent/config"
	"github.com/groupcast/groupcast/gateway-agent/duplicator"
	"github.com/groupcast/groupcast/gateway-agent/tunnel"
)

// tunnel tells whether copies can be made in the network, which a relay must have and a gateway may.
func (e *examination) tunnel() {
	relay := e.config.Mode == config.ModeRelay
	lacks := tunnel.Lacks(!relay)
	for _, l := range lacks {
		if relay {
			e.fail("tunnel", l.Do, "%s is missing: %v", l.What, l.Why)
		} else {
			e.warn("tunnel", l.Do+"; or set tunnel to false: copies are made at home", "no relay can copy for this gateway, %s is missing: %v", l.What, l.Why)
		}
	}
	if len(lacks) == 0 {
		e.ok("tunnel", "this host can have one: raw sockets, and WireGuard of the kernel's or on a tun device")
	}
	if !relay {
		return
	}
	if e.config.Relay.Endpoint.IsValid() {
		e.endpoint(e.config.Relay.Endpoint)
	}
	if have, err := effective(); err == nil {
		e.kernelCapabilities(func(n int) bool { return have&(1<<n) != 0 }, false)
	}
	if len(lacks) == 0 {
		e.relay()
	}
}

// endpoint looks at where gateways are to reach a relay's tunnel.
func (e *examination) endpoint(at netip.AddrPort) {
	conn, err := net.ListenUDP("udp", &net.UDPAddr{Port: int(at.Port())})
	if err != nil {
		e.warn("tunnel port", "give another port in tunnel-endpoint, unless it is the running agent that has it", "UDP port %d is taken: %v", at.Port(), err)
	} else {
		_ = conn.Close()
		e.ok("tunnel port", "UDP port %d is free", at.Port())
	}
	own, err := duplicator.OwnAddresses()
	switch {
	case err != nil:
		e.warn("tunnel-endpoint", "tell us", "%v", err)
	case !own[at.Addr()]:
		e.warn("tunnel-endpoint", fmt.Sprintf("have the NAT in front of this host forward UDP port %d of %s to it, or give an address of this host", at.Port(), at.Addr()),
			"%s is no address of this host: gateways reach it only if something forwards them", at.Addr())
	default:
		e.ok("tunnel-endpoint", "%s is an address of this host", at.Addr())
	}
}
