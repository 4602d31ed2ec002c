package table

import (
	"fmt"
	"net/netip"
	"strings"

	"github.com/groupcast/groupcast/models"
)

// Version is the cursor of a gateway's group information, "<epoch>.<revision>" (SPEC §6).
func Version(epoch string, revision int64) string { return fmt.Sprintf("%s.%d", epoch, revision) }

// Check tells why this gateway must not use the group information at all. What it refuses no healthy server says, so nothing
// of it is used rather than the rest of it. An address that is a host's somewhere, but may not get media from this host,
// is not among the reasons: one member could stop a whole home with it. The duplicator refuses such a destination alone.
//
// The error names the place by its position and never a destination's address.
func Check(info models.GroupInformation, gateway models.Gateway) error {
	switch {
	case info.GatewayID != gateway.ID:
		return fmt.Errorf("it is for gateway %s, this is %s", info.GatewayID, gateway.ID)
	case !identifier(info.Epoch):
		return fmt.Errorf("its epoch %q is not an identifier", clip(info.Epoch))
	case info.Revision < 1:
		return fmt.Errorf("its revision %d is not positive", info.Revision)
	}
	seen := unique{}
	for i, g := range info.Groups {
		g.PremisesID = ""
		if err := checkGroup(g, gateway.Range.Contains, seen); err != nil {
			return fmt.Errorf("groups[%d]: %w", i, err)
		}
	}
	return nil
}

// CheckRelay is Check for a relay. Two homes with the same key or the same address in the tunnel are refused with all the others: one would get
// what is the other's.
func CheckRelay(info models.GroupInformation, relay models.ID, homes []models.RelayPremises) error {
	switch {
	case info.GatewayID != relay:
		return fmt.Errorf("it is for relay %s, this is %s", info.GatewayID, relay)
	case !identifier(info.Epoch):
		return fmt.Errorf("its epoch %q is not an identifier", clip(info.Epoch))
	case info.Revision < 1:
		return fmt.Errorf("its revision %d is not positive", info.Revision)
	}
	seen := unique{}
	for i, h := range homes {
		switch {
		case !identifier(string(h.PremisesID)):
			return fmt.Errorf("premises[%d]: premisesId is not an identifier", i)
		case !h.TunnelAddress.Is6() || h.TunnelAddress.Is4In6() || !h.TunnelAddress.IsPrivate():
			return fmt.Errorf("premises[%d]: tunnelAddress is not one of a tunnel", i)
		case !h.TunnelKey.Valid(), !seen.add("key", h.TunnelKey.String()), !seen.add("address", h.TunnelAddress.String()):
			return fmt.Errorf("premises[%d]: tunnelKey or tunnelAddress stands twice, or there is none", i)
		}
	}
	for i, g := range info.Groups {
		if g.GatewayID == 0 {
			return fmt.Errorf("groups[%d] has no gatewayId: nobody knows which tunnel its datagrams come through", i)
		}
		if err := checkGroup(g, host, seen); err != nil {
			return fmt.Errorf("groups[%d]: %w", i, err)
		}
	}
	return nil
}

func checkGroup(g models.GatewayGroup, inRange func(netip.Addr) bool, seen unique) error {
	of := string(g.PremisesID) + "/"
	switch {
	case !identifier(string(g.ID)):
		return fmt.Errorf("groupId %q is not an identifier", clip(string(g.ID)))
	case !identifier(strings.ReplaceAll(g.Name, ".", "-")):
		return fmt.Errorf("groupName %q is not a group name", clip(g.Name))
	case !g.IP.Is4() || !inRange(g.IP):
		return fmt.Errorf("groupIP %s is outside the declared range", g.IP)
	case g.Generation < 1:
		return fmt.Errorf("generation %d is not positive", g.Generation)
	case !seen.add("group", string(g.ID)), !seen.add("name", of+g.Name), !seen.add("IP", of+g.GatewayID.String()+"/"+g.IP.String()):
		return fmt.Errorf("groupId, groupName or groupIP stands twice")
	}
	for i, s := range g.Sources {
		switch {
		case !identifier(string(s.RegistrationID)):
			return fmt.Errorf("groupSources[%d]: registrationId %q is not an identifier", i, clip(string(s.RegistrationID)))
		case !s.IPv4.Is4() || !host(s.IPv4):
			return fmt.Errorf("groupSources[%d]: sourceIPv4 is not the IPv4 address of a host", i)
		case s.Trigger != models.TriggerOption && s.Trigger != models.TriggerSource:
			return fmt.Errorf("groupSources[%d]: trigger %q is not known", i, clip(string(s.Trigger)))
		case !seen.add("registration", string(s.RegistrationID)):
			return fmt.Errorf("groupSources[%d]: the registrationId stands twice", i)
		}
	}
	for i, d := range g.Destinations {
		switch {
		case !identifier(string(d.RegistrationID)):
			return fmt.Errorf("groupDestinations[%d]: registrationId %q is not an identifier", i, clip(string(d.RegistrationID)))
		case !d.IPv4.IsValid() && !d.IPv6.IsValid():
			return fmt.Errorf("groupDestinations[%d]: there is no address", i)
		case d.IPv4.IsValid() && (!d.IPv4.Is4() || !host(d.IPv4)):
			return fmt.Errorf("groupDestinations[%d]: destinationIPv4 is not the IPv4 address of a host", i)
		case d.IPv6.IsValid() && (!d.IPv6.Is6() || d.IPv6.Is4In6() || d.IPv6.Zone() != "" || !host(d.IPv6)):
			return fmt.Errorf("groupDestinations[%d]: destinationIPv6 is not the IPv6 address of a host", i)
		case !seen.add("registration", string(d.RegistrationID)):
			return fmt.Errorf("groupDestinations[%d]: the registrationId stands twice", i)
		}
	}
	return nil
}

// host tells whether a host can have the address at all.
func host(a netip.Addr) bool {
	return !a.IsUnspecified() && !a.IsMulticast() && (!a.Is4() || a.As4()[0] != 0 && a.As4()[0] < 240)
}

// identifier tells whether s can stand in a header, a metric and a log line as it is.
func identifier(s string) bool {
	return s != "" && len(s) <= 64 && !strings.ContainsFunc(s, func(c rune) bool {
		return (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') && (c < '0' || c > '9') && c != '_' && c != '-'
	})
}

func clip(s string) string { return s[:min(len(s), 64)] }

type unique map[[2]string]bool

func (u unique) add(kind, value string) bool {
	k := [2]string{kind, value}
	if u[k] {
		return false
	}
	u[k] = true
	return true
}
