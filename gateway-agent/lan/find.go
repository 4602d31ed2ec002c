package lan

import (
	"fmt"
	"net"
	"net/netip"
)

// Find gives the name of the LAN interface: the configured one, or if that is "" the one that has the gateway's own LAN address.
func Find(configured string, address netip.Addr) (string, error) {
	if configured != "" {
		return configured, nil
	}
	interfaces, err := net.Interfaces()
	if err != nil {
		return "", fmt.Errorf("lan-interface: %w", err)
	}
	for _, i := range interfaces {
		addrs, err := i.Addrs()
		if err != nil {
			return "", fmt.Errorf("lan-interface: %w", err)
		}
		for _, addr := range addrs {
			// Loopback has every address of its prefix.
			p, err := netip.ParsePrefix(addr.String())
			if err == nil && (p.Addr() == address || i.Flags&net.FlagLoopback != 0 && p.Contains(address)) {
				return i.Name, nil
			}
		}
	}
	return "", fmt.Errorf("lan-interface: no interface has lan-address %s: give the interface that the cameras are on", address)
}
