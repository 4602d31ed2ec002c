package doctor

import (
	"net"

	"github.com/groupcast/groupcast/gateway-agent/config"
	"github.com/groupcast/groupcast/gateway-agent/tunnel"
)

// tunnel tells whether copies can be made in the network, which a relay must have and a gateway may.
func (e *examination) tunnel() {
	relay := e.config.Mode == config.ModeRelay
	switch err := tunnel.Possible(); {
	case err == nil:
		e.ok("tunnel", "this host can have one: raw sockets, and WireGuard of the kernel's or on a tun device")
	case relay:
		e.fail("tunnel", "a relay does nothing without it", "%v", err)
	default:
		e.warn("tunnel", "nothing, if copies are only made at home", "no relay can copy for this gateway: %v", err)
	}
	if !relay || !e.config.Relay.Endpoint.IsValid() {
		return
	}
	port := int(e.config.Relay.Endpoint.Port())
	conn, err := net.ListenUDP("udp", &net.UDPAddr{Port: port})
	if err != nil {
		e.warn("tunnel port", "give another port in tunnel-endpoint, unless it is the running agent that has it", "UDP port %d is taken", port)
		return
	}
	_ = conn.Close()
	e.ok("tunnel port", "UDP port %d is free", port)
}
