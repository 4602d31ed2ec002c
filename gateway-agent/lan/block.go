package lan

import (
	"errors"
	"fmt"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/groupcast/groupcast/models"
)

// Block puts the blackholes for the group range in place, and nothing else: what a camera sends there is dropped from now on, also before
// an agent ran. It is for the time between a host's start and the agent's. It may be repeated, and leaves a running agent
// alone. It needs CAP_NET_ADMIN. A range in 127.0.0.0/8 needs no guard.
func Block(groupRange models.AddrRange) error {
	if groupRange.Size() == 0 {
		return fmt.Errorf("lan: group range %s is not a range of IPv4 addresses; give first-last", groupRange)
	}
	if groupRange.First.IsLoopback() && groupRange.Last.IsLoopback() {
		return nil
	}
	handle, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return fmt.Errorf("lan: guard %s: %w", groupRange, err)
	}
	defer handle.Close()
	for _, r := range blackholes(groupRange) {
		if err := ignore(handle.RuleAdd(&r), unix.EEXIST); err != nil {
			return fmt.Errorf("lan: guard %s: %w", groupRange, explain(err))
		}
	}
	return nil
}

// Blocked tells whether every blackhole for the group range is in place. It changes nothing and needs no privilege.
func Blocked(groupRange models.AddrRange) (bool, error) {
	if groupRange.First.IsLoopback() && groupRange.Last.IsLoopback() {
		return true, nil
	}
	present, err := netlink.RuleList(netlink.FAMILY_V4)
	if err != nil {
		return false, fmt.Errorf("lan: read the routing rules: %w", err)
	}
	have := map[string]bool{}
	for _, r := range present {
		if r.Protocol == Protocol && r.Priority == BlackholePref {
			have[ruleKey(r)] = true
		}
	}
	for _, r := range blackholes(groupRange) {
		if !have[ruleKey(r)] {
			return false, nil
		}
	}
	return true, nil
}

// Unblock removes every rule and route that this package installs, for whoever uninstalls the agent. It needs CAP_NET_ADMIN.
// From then on nothing keeps group IPs from the uplink.
func Unblock() error {
	handle, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return fmt.Errorf("lan: remove the guard: %w", err)
	}
	defer handle.Close()
	g := Guard{handle: handle}
	if err := errors.Join(g.reconcileRoutes(nil), g.setRules(nil)); err != nil {
		return fmt.Errorf("lan: remove the guard: %w", explain(err))
	}
	return nil
}
