package tunnel

import (
	"errors"
	"fmt"
	"net/netip"
	"time"

	"github.com/vishvananda/netlink"
	"go4.org/netipx"
	"golang.org/x/sys/unix"
)

// What is ours in the kernel's routing rules: what comes out of the tunnel and isn't for this host goes nowhere. The number is the one of package lan.
const (
	protocol  = 147
	rulePref  = 149
	prefixLen = 48 // of an installation's tunnel addresses

	settleTime = 5 * time.Second
)

// link is the interface as the host sees it.
type link struct {
	name   string
	handle *netlink.Handle
}

// raise gives the interface its address and brings it up.
func raise(name string, address netip.Addr) (*link, error) {
	handle, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return nil, err
	}
	l := &link{name, handle}
	device, err := handle.LinkByName(name)
	if err == nil {
		err = handle.LinkSetMTU(device, MTU)
	}
	if err == nil {
		err = l.blackhole() // before anything can come
	}
	if err == nil {
		// Without duplicate address detection, which would ask a link that has no neighbours.
		err = handle.AddrReplace(device, &netlink.Addr{IPNet: netipx.PrefixIPNet(netip.PrefixFrom(address, prefixLen)), Flags: unix.IFA_F_NODAD})
		if errors.Is(err, unix.EACCES) || errors.Is(err, unix.EAFNOSUPPORT) {
			err = fmt.Errorf("%w: this host has no IPv6, or it is turned off: set net.ipv6.conf.default.disable_ipv6 to 0", err)
		}
	}
	if err == nil {
		err = handle.LinkSetUp(device)
	}
	if err == nil {
		err = l.settle(address)
	}
	if err != nil {
		return nil, errors.Join(err, l.lower())
	}
	return l, nil
}

// settle waits for the kernel to take what comes for the address: it does so a moment after the interface is up, on a queue of its own.
func (l *link) settle(address netip.Addr) error {
	for end := time.Now().Add(settleTime); ; time.Sleep(time.Millisecond) {
		routes, err := l.handle.RouteGet(address.AsSlice())
		switch {
		case err == nil && len(routes) > 0 && routes[0].Type == unix.RTN_LOCAL:
			return nil
		case time.Now().After(end):
			return fmt.Errorf("the interface did not take its address within %s", settleTime)
		}
	}
}

func (l *link) rule() *netlink.Rule {
	r := netlink.NewRule()
	r.Family, r.Protocol, r.Priority = netlink.FAMILY_V6, protocol, rulePref
	r.IifName, r.Type = l.name, unix.RTN_BLACKHOLE
	return r
}

func (l *link) blackhole() error {
	if err := l.handle.RuleAdd(l.rule()); err != nil && !errors.Is(err, unix.EEXIST) {
		return err
	}
	return nil
}

// lower removes what isn't the interface's own.
func (l *link) lower() error {
	defer l.handle.Close()
	if err := l.handle.RuleDel(l.rule()); err != nil && !errors.Is(err, unix.ENOENT) {
		return err
	}
	return nil
}

func explain(err error) error {
	switch {
	case errors.Is(err, unix.EPERM):
		return fmt.Errorf("%w: this needs CAP_NET_ADMIN; run the agent as root or give it that capability", err)
	case errors.Is(err, unix.EADDRINUSE):
		return fmt.Errorf("%w: another program has the UDP port: give another tunnel-port", err)
	}
	return err
}
