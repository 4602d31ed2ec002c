package doctor

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"strconv"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/groupcast/groupcast/gateway-agent/lan"
)

// header is what a datagram with option 0x88 has before its payload: IPv4, the option with its padding, UDP.
const header = 20 + 8 + 8

func (e *examination) checkLAN(iface string) {
	i, err := net.InterfaceByName(iface)
	if err != nil {
		e.fail("lan", "set lan-interface to the interface that the cameras are on (ip link lists them)", "there is no interface %q", iface)
		return
	}
	e.iface, e.lanMTU = iface, i.MTU
	has, err := addressesOf(i)
	own := e.config.Gateway.LANAddr
	switch {
	case err != nil:
		e.fail("lan", "tell us", "the addresses of %s can't be read: %v", iface, err)
	case i.Flags&net.FlagUp == 0:
		e.fail("lan", "ip link set "+iface+" up", "%s is down", iface)
	case i.Flags&net.FlagLoopback == 0 && own.IsValid() && !has[own]:
		e.warn("lan", "set lan-address to the gateway's own address on "+iface, "%s doesn't have lan-address %s", iface, own)
	case !carrier(iface):
		e.warn("lan", "look at the cable", "%s has no carrier", iface)
	default:
		e.ok("lan", "%s, MTU %d", iface, i.MTU)
	}
}

// carrier tells whether there is somebody at the other end of the cable.
func carrier(iface string) bool {
	link, err := netlink.LinkByName(iface)
	return err != nil || link.Attrs().RawFlags&unix.IFF_LOWER_UP != 0
}

func addressesOf(i *net.Interface) (map[netip.Addr]bool, error) {
	all, err := i.Addrs()
	if err != nil {
		return nil, err
	}
	has := map[netip.Addr]bool{}
	for _, a := range all {
		if p, err := netip.ParsePrefix(a.String()); err == nil {
			has[p.Addr().Unmap()] = true
		}
	}
	return has, nil
}

// uplink looks for the interface that copies leave by, and compares what fits there with what cameras may send.
func (e *examination) uplink() {
	address := e.config.Gateway.Uplink
	if !address.IsValid() {
		return // the configuration's finding says so
	}
	if address.IsLoopback() {
		e.ok("uplink", "%s, on loopback", address)
		return
	}
	interfaces, err := net.Interfaces()
	if err != nil {
		e.fail("uplink", "tell us", "the interfaces can't be read: %v", err)
		return
	}
	for _, i := range interfaces {
		has, err := addressesOf(&i)
		if err != nil || !has[address] {
			continue
		}
		if i.Flags&net.FlagUp == 0 {
			e.fail("uplink", "ip link set "+i.Name+" up", "%s, which has uplink-address, is down", i.Name)
			return
		}
		e.ok("uplink", "%s on %s, MTU %d", address, i.Name, i.MTU)
		e.mtu(i.Name, i.MTU)
		return
	}
	e.fail("uplink", "set uplink-address to the address that this host has towards the network, and restart the agent when it changes", "no interface has uplink-address %s", address)
}

func (e *examination) mtu(uplink string, mtu int) {
	switch {
	case e.lanMTU == 0:
	case mtu < e.lanMTU:
		e.warn("mtu", fmt.Sprintf("have the cameras send at most %d bytes in a datagram (RTP packet size), or raise the MTU of %s", mtu-header, uplink),
			"%s takes packets of %d bytes, the LAN of %d: larger copies are cut into fragments or, with don't-fragment set, dropped for the destination (too-big)",
			uplink, mtu, e.lanMTU)
	default:
		e.ok("mtu", "a camera's payload of up to %d bytes stays in one packet", e.lanMTU-header)
	}
}

// settings looks at what the kernel does with packets of the LAN.
func (e *examination) settings() {
	if err := lan.CheckARP(e.iface); err != nil {
		e.fail("arp", "set it to 0 (sysctl -w), and in /etc/sysctl.d for good", "%v", err)
	} else {
		e.ok("arp", "nothing hides group IPs from the cameras")
	}
	switch all, own := setting("all", "rp_filter"), setting(e.iface, "rp_filter"); max(all, own) {
	case 1:
		e.ok("rp_filter", "strict: a host on %s can't send as one of another network", e.iface)
	case 2:
		e.warn("rp_filter", fmt.Sprintf("sysctl -w net.ipv4.conf.%s.rp_filter=1 net.ipv4.conf.all.rp_filter=1", e.iface), "loose on %s: the kernel doesn't look which interface a source address belongs to", e.iface)
	default:
		e.warn("rp_filter", fmt.Sprintf("sysctl -w net.ipv4.conf.%s.rp_filter=1", e.iface), "off on %s: the kernel takes any source address from there", e.iface)
	}
	if number("/proc/sys/net/ipv4/ip_forward") == 1 {
		e.ok("ip_forward", "this host forwards")
	} else {
		e.warn("ip_forward", "sysctl -w net.ipv4.ip_forward=1 if this host is the home's gateway", "this host forwards nothing: it copies, but it isn't a gateway")
	}
}

func setting(iface, name string) int { return number("/proc/sys/net/ipv4/conf/" + iface + "/" + name) }

// number gives 0 for what can't be read.
func number(path string) int {
	b, _ := os.ReadFile(path)
	n, _ := strconv.Atoi(strings.TrimSpace(string(b)))
	return n
}

func (e *examination) guard() {
	r := e.config.Gateway.Range
	switch blocked, err := lan.Blocked(r); {
	case err != nil:
		e.fail("guard", "tell us", "%v", err)
	case !blocked:
		e.fail("guard", "run gateway-agent guard --config FILE now and at every start of the host: the package's gateway-agent-guard.service does", "the rules (preference %d) that keep %s from the uplink are missing", lan.BlackholePref, r)
	default:
		e.ok("guard", "%s can't leave by the uplink", r)
	}
}

// neighbours looks for hosts that use a group IP as their own.
func (e *examination) neighbours() {
	link, err := netlink.LinkByName(e.iface)
	if err != nil {
		return // the LAN's finding says so
	}
	entries, err := netlink.NeighList(link.Attrs().Index, netlink.FAMILY_V4)
	if err != nil {
		e.warn("neighbours", "tell us", "the neighbours on %s can't be read: %v", e.iface, err)
		return
	}
	const here = netlink.NUD_REACHABLE | netlink.NUD_STALE | netlink.NUD_DELAY | netlink.NUD_PROBE | netlink.NUD_PERMANENT
	found := false
	for _, n := range entries {
		ip, ok := netip.AddrFromSlice(n.IP)
		if ok && n.State&here != 0 && e.config.Gateway.Range.Contains(ip.Unmap()) {
			found = true
			e.fail("neighbours", "give that host another address, or move group-range", "host %s on %s uses %s, which is in the group range %s", n.HardwareAddr, e.iface, ip.Unmap(), e.config.Gateway.Range)
		}
	}
	if !found {
		e.ok("neighbours", "no host that this one knows uses an address of the group range")
	}
}
