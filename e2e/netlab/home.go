package netlab

import "testing"

// Home is the worked example's network (SPEC §3): a camera on the LAN of a gateway, and behind the gateway's uplink a host that
// stands for the rest of the world. The camera has no static route to a group IP and no static neighbour; the gateway forwards and checks
// sources strictly.
//
//	camera cam0 172.168.0.5/24 — lan0 172.168.0.1/24 gateway wan0 203.0.113.1/24 — ext0 203.0.113.254/24 WAN
type Home struct {
	Camera, Gateway, WAN *Namespace
	// Copier is the host that copies leave from: the gateway, unless a relay copies.
	Copier *Namespace
}

// The destinations of the worked example, and where each is.
const (
	Upload    = "96.114.14.140"
	Thumbnail = "69.252.80.75"
	Phone     = "71.230.36.162"
	Live      = "68.87.41.40" // of groupcast2
)

// NewHome builds the network around the given gateway. The WAN host has the addresses of all four destinations.
func NewHome(t testing.TB, gateway *Namespace) Home {
	t.Helper()
	h := Home{Camera: New(t, "camera"), Gateway: gateway, WAN: New(t, "wan"), Copier: gateway}
	h.connectLAN()
	h.connectWAN()
	h.routes(h.Gateway)
	return h
}

// RelayUplink is where the gateway of NewRelayedHome reaches the relay.
const RelayUplink = "198.18.0.2"

// NewRelayedHome builds the same network with the given relay in the gateway's place on the WAN, and the gateway behind it:
//
//	camera cam0 172.168.0.5/24 — lan0 172.168.0.1/24 gateway up0 198.18.0.1/30 — home0 198.18.0.2/30 relay wan0 203.0.113.1/24 — ext0 203.0.113.254/24 WAN
func NewRelayedHome(t testing.TB, relay *Namespace) Home {
	t.Helper()
	h := Home{Camera: New(t, "camera"), Gateway: New(t, "gateway"), WAN: New(t, "wan"), Copier: relay}
	h.connectLAN()
	h.connectWAN()
	Connect(h.Gateway, "up0", h.Copier, "home0")
	h.Gateway.Address("up0", "198.18.0.1/30")
	h.Copier.Address("home0", RelayUplink+"/30")
	h.Gateway.Route("0.0.0.0/0", RelayUplink)
	h.routes(h.Gateway)
	h.Copier.Sysctl("net.ipv4.conf.all.rp_filter", "1") // a host and no router
	return h
}

func (h Home) connectLAN() {
	Connect(h.Camera, "cam0", h.Gateway, "lan0")
	h.Camera.Address("cam0", "172.168.0.5/24")
	h.Gateway.Address("lan0", "172.168.0.1/24")
	h.Camera.Route("0.0.0.0/0", "172.168.0.1")
}

func (h Home) connectWAN() {
	Connect(h.Copier, "wan0", h.WAN, "ext0")
	h.Copier.Address("wan0", "203.0.113.1/24")
	h.WAN.Address("ext0", "203.0.113.254/24")
	for _, a := range []string{Upload, Thumbnail, Phone, Live} {
		h.WAN.Address("lo", a+"/32")
	}
	h.Copier.Route("0.0.0.0/0", "203.0.113.254")
}

func (h Home) routes(n *Namespace) {
	n.Sysctl("net.ipv4.ip_forward", "1")
	n.Sysctl("net.ipv4.conf.all.rp_filter", "1")
}
