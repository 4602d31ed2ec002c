package lan

import (
	"errors"
	"fmt"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
	"go4.org/netipx"
	"golang.org/x/sys/unix"

	"github.com/groupcast/groupcast/gateway-agent/table"
	"github.com/groupcast/groupcast/models"
)

// The numbers under which the kernel holds what is ours. No registered routing protocol has 147, and both rules come long
// before those of the main table (32766).
const (
	Table         = 147
	Protocol      = 147
	LookupPref    = 147
	BlackholePref = 148
)

// Guard holds the group range of one LAN interface.
type Guard struct {
	iface      string
	groupRange models.AddrRange
	loopback   int             // index of lo, where local routes point
	handle     *netlink.Handle // nil on loopback: there is nothing to do
}

// Open puts the guard in place with no group IP allocated, whatever an earlier agent left behind. It needs CAP_NET_ADMIN unless
// the interface is loopback.
func Open(iface string, groupRange models.AddrRange) (*Guard, error) {
	g := &Guard{iface: iface, groupRange: groupRange}
	if groupRange.Size() == 0 {
		return nil, fmt.Errorf("lan: group range %s is not a range of IPv4 addresses; give first-last", groupRange)
	}
	link, err := net.InterfaceByName(iface)
	if err != nil {
		return nil, fmt.Errorf("lan: find LAN interface %q: %w; give the name of the interface that cameras are on", iface, err)
	}
	inLoopback := groupRange.First.IsLoopback() && groupRange.Last.IsLoopback()
	if isLoopback := link.Flags&net.FlagLoopback != 0; isLoopback != inLoopback {
		return nil, fmt.Errorf("lan: group range %s doesn't go with interface %s: a range inside 127.0.0.0/8 belongs to lo, and no other does",
			groupRange, iface)
	} else if isLoopback {
		return g, nil
	}
	if err := CheckARP(iface); err != nil {
		return nil, err
	}
	if err := g.install(); err != nil {
		return nil, fmt.Errorf("lan: guard %s on %s: %w", groupRange, iface, explain(err))
	}
	return g, nil
}

func (g *Guard) install() error {
	handle, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return err
	}
	g.handle = handle
	lo, err := handle.LinkByName("lo")
	if err == nil {
		g.loopback = lo.Attrs().Index
		err = g.setRules(g.rules())
	}
	if err == nil {
		err = g.reconcileRoutes(nil)
	}
	if err != nil {
		handle.Close()
	}
	return err
}

// Apply makes the groups of the snapshot, and only those, the ones that ARP is answered for. Nil stands for none. Apply it after the
// duplicator, so that somebody listens before cameras find the address.
func (g *Guard) Apply(s *table.Snapshot) error {
	if g.handle == nil {
		return nil
	}
	wanted := map[netip.Addr]bool{}
	var errs []error
	if s != nil {
		for ip, group := range s.Groups {
			if !g.groupRange.Contains(ip) {
				errs = append(errs, fmt.Errorf("lan: group %s is refused: its group IP %s is outside this gateway's range %s",
					group.ID, ip, g.groupRange))
				continue
			}
			wanted[ip] = true
		}
	}
	if err := g.reconcileRoutes(wanted); err != nil {
		errs = append(errs, fmt.Errorf("lan: allocate group IPs on %s: %w", g.iface, explain(err)))
	}
	return errors.Join(errs...)
}

// Close stops the answering of ARP. The group range stays blackholed; see the package comment.
func (g *Guard) Close() error {
	if g.handle == nil {
		return nil
	}
	err := g.reconcileRoutes(nil)
	g.handle.Close()
	g.handle = nil
	if err != nil {
		return fmt.Errorf("lan: release group IPs on %s: %w", g.iface, explain(err))
	}
	return nil
}

// reconcileRoutes makes our table hold the wanted group IPs and nothing else of ours.
func (g *Guard) reconcileRoutes(wanted map[netip.Addr]bool) error {
	present, err := g.handle.RouteListFiltered(netlink.FAMILY_V4, &netlink.Route{Table: Table, Protocol: Protocol},
		netlink.RT_FILTER_TABLE|netlink.RT_FILTER_PROTOCOL)
	if err != nil {
		return err
	}
	var errs []error
	have := map[netip.Addr]bool{}
	for _, r := range present {
		ip, ok := hostOf(r)
		if ok && wanted[ip] {
			have[ip] = true
			continue
		}
		errs = append(errs, ignore(g.handle.RouteDel(&r), unix.ESRCH))
	}
	for ip := range wanted {
		if !have[ip] {
			errs = append(errs, g.handle.RouteReplace(g.localRoute(ip)))
		}
	}
	return errors.Join(errs...)
}

func (g *Guard) localRoute(ip netip.Addr) *netlink.Route {
	return &netlink.Route{
		Table: Table, Protocol: Protocol, Type: unix.RTN_LOCAL, Scope: netlink.SCOPE_HOST, LinkIndex: g.loopback,
		Dst: netipx.PrefixIPNet(netip.PrefixFrom(ip, 32)),
	}
}

// hostOf gives the group IP of a route that localRoute made.
func hostOf(r netlink.Route) (netip.Addr, bool) {
	if r.Dst == nil {
		return netip.Addr{}, false
	}
	prefix, ok := netipx.FromStdIPNet(r.Dst)
	return prefix.Addr(), ok && prefix.IsSingleIP() && r.Type == unix.RTN_LOCAL
}

// setRules puts the rules in place before it removes the others that are ours, left by an agent with another interface or range.
func (g *Guard) setRules(wanted []netlink.Rule) error {
	present, err := g.handle.RuleList(netlink.FAMILY_V4)
	if err != nil {
		return err
	}
	left := map[string]netlink.Rule{}
	for _, r := range present {
		if r.Protocol == Protocol && (r.Priority == LookupPref || r.Priority == BlackholePref) {
			left[ruleKey(r)] = r
		}
	}
	for _, r := range wanted {
		if _, ok := left[ruleKey(r)]; ok {
			delete(left, ruleKey(r))
			continue
		}
		if err := ignore(g.handle.RuleAdd(&r), unix.EEXIST); err != nil {
			return err
		}
	}
	var errs []error
	for _, r := range left {
		errs = append(errs, ignore(g.handle.RuleDel(&r), unix.ENOENT))
	}
	return errors.Join(errs...)
}

// rules gives the rules of this guard, the blackholes first.
func (g *Guard) rules() []netlink.Rule {
	r := netlink.NewRule()
	r.Family, r.Protocol, r.Priority = netlink.FAMILY_V4, Protocol, LookupPref
	r.IifName, r.Table = g.iface, Table
	return append(blackholes(g.groupRange), *r)
}

func blackholes(groupRange models.AddrRange) []netlink.Rule {
	var rules []netlink.Rule
	for _, prefix := range netipx.IPRangeFrom(groupRange.First, groupRange.Last).Prefixes() {
		r := netlink.NewRule()
		r.Family, r.Protocol, r.Priority = netlink.FAMILY_V4, Protocol, BlackholePref
		r.Dst, r.Type = netipx.PrefixIPNet(prefix), unix.RTN_BLACKHOLE
		rules = append(rules, *r)
	}
	return rules
}

func ruleKey(r netlink.Rule) string {
	return fmt.Sprintf("%d %s %s", r.Priority, r.IifName, r.Dst)
}

func ignore(err, harmless error) error {
	if errors.Is(err, harmless) {
		return nil
	}
	return err
}

func explain(err error) error {
	if errors.Is(err, unix.EPERM) {
		return fmt.Errorf("%w: this needs CAP_NET_ADMIN; run the agent as root or give it that capability", err)
	}
	return err
}
