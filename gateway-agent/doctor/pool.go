package doctor

import (
	"encoding/binary"
	"math"
	"net/netip"
	"regexp"
	"strconv"
	"strings"

	"go4.org/netipx"

	"github.com/groupcast/groupcast/models"
)

// dnsmasqPools reads dhcp-range=[tags,]first,last[,…] and dhcp-range=[tags,]first,static.
func dnsmasqPools(text string) []models.AddrRange {
	var pools []models.AddrRange
	for _, line := range uncommented(text) {
		value, ok := strings.CutPrefix(line, "dhcp-range")
		if !ok {
			continue
		}
		var addrs []string
		for field := range strings.SplitSeq(strings.TrimLeft(value, " =\t"), ",") {
			if a, err := netip.ParseAddr(strings.TrimSpace(field)); err == nil && a.Is4() {
				addrs = append(addrs, a.String())
			}
		}
		if len(addrs) >= 2 && !strings.HasPrefix(addrs[1], "255.") {
			pools = append(pools, span(addrs[0], addrs[1])...)
		}
	}
	return pools
}

var iscRange = regexp.MustCompile(`\brange\s+(?:dynamic-bootp\s+)?([\d.]+)(?:\s+([\d.]+))?\s*;`)

// iscPools reads range [dynamic-bootp] first [last];
func iscPools(text string) []models.AddrRange {
	var pools []models.AddrRange
	for _, m := range iscRange.FindAllStringSubmatch(strings.Join(uncommented(text), "\n"), -1) {
		if m[2] == "" {
			m[2] = m[1]
		}
		pools = append(pools, span(m[1], m[2])...)
	}
	return pools
}

var keaPool = regexp.MustCompile(`"pool"\s*:\s*"\s*([\d.]+)\s*(?:-\s*([\d.]+)|/\s*(\d+))\s*"`)

// keaPools reads "pool": "first - last" and "pool": "prefix". The file has comments, so it isn't JSON.
func keaPools(text string) []models.AddrRange {
	var pools []models.AddrRange
	for _, m := range keaPool.FindAllStringSubmatch(text, -1) {
		if m[3] == "" {
			pools = append(pools, span(m[1], m[2])...)
		} else if p, err := netip.ParsePrefix(m[1] + "/" + m[3]); err == nil {
			pools = append(pools, models.AddrRange{First: p.Masked().Addr(), Last: netipx.PrefixLastIP(p)})
		}
	}
	return pools
}

// networkdPools reads what systemd.network(5) says: the server hands out all of the address's network but for PoolOffset and PoolSize.
func networkdPools(text string) []models.AddrRange {
	section, serves := "", false
	var offset, size uint64
	var networks []netip.Prefix
	for _, line := range uncommented(text) {
		if strings.HasPrefix(line, "[") {
			section = strings.Trim(line, "[]")
			continue
		}
		key, value, _ := strings.Cut(line, "=")
		key, value = strings.TrimSpace(key), strings.TrimSpace(value)
		switch section + "." + key {
		case "Network.DHCPServer":
			serves = value == "yes" || value == "true" || value == "1" || value == "on"
		case "Network.Address", "Address.Address":
			if p, err := netip.ParsePrefix(value); err == nil && p.Addr().Is4() {
				networks = append(networks, p)
			}
		case "DHCPServer.PoolOffset":
			offset, _ = strconv.ParseUint(value, 10, 32)
		case "DHCPServer.PoolSize":
			size, _ = strconv.ParseUint(value, 10, 32)
		}
	}
	var pools []models.AddrRange
	for _, n := range networks {
		if serves {
			pools = append(pools, part(n, max(offset, 1), size)...)
		}
	}
	return pools
}

// part gives so many addresses of a network from an offset on, without its broadcast address; 0 stands for all.
func part(network netip.Prefix, offset, size uint64) []models.AddrRange {
	first, last := plus(network.Masked().Addr(), offset), netipx.PrefixLastIP(network).Prev()
	if size > 0 && plus(first, size-1).Less(last) {
		last = plus(first, size-1)
	}
	if last.Less(first) {
		return nil
	}
	return []models.AddrRange{{First: first, Last: last}}
}

func plus(a netip.Addr, n uint64) netip.Addr {
	b := a.As4()
	binary.BigEndian.PutUint32(b[:], uint32(min(uint64(binary.BigEndian.Uint32(b[:]))+n, math.MaxUint32)))
	return netip.AddrFrom4(b)
}

// uciSection is one "config TYPE 'NAME'" of OpenWrt with its options.
type uciSection struct {
	kind, name string
	options    map[string]string
}

var uciLine = regexp.MustCompile(`^(config|option)\s+(\S+)(?:\s+['"]?([^'"]*)['"]?)?$`)

func uci(text string) []uciSection {
	var all []uciSection
	for _, line := range uncommented(text) {
		m := uciLine.FindStringSubmatch(line)
		switch {
		case m == nil:
		case m[1] == "config":
			all = append(all, uciSection{m[2], m[3], map[string]string{}})
		case len(all) > 0:
			all[len(all)-1].options[strings.Trim(m[2], `'"`)] = m[3]
		}
	}
	return all
}

// uciPools reads start and limit of each interface of OpenWrt's DHCP; its defaults are 100 and 150. An interface that the network's
// configuration gives no address has that of the LAN.
func uciPools(dhcp, network string, lan netip.Prefix) []models.AddrRange {
	prefixes := map[string]netip.Prefix{}
	for _, s := range uci(network) {
		if p, err := netip.ParsePrefix(s.options["ipaddr"]); err == nil {
			prefixes[s.name] = p
		} else if ip, err := netip.ParseAddr(s.options["ipaddr"]); err == nil {
			if mask, err := netip.ParseAddr(s.options["netmask"]); err == nil && mask.Is4() {
				bits := 0
				for m := mask.As4(); bits < 32 && m[bits/8]&(0x80>>(bits%8)) != 0; bits++ {
				}
				prefixes[s.name] = netip.PrefixFrom(ip, bits)
			}
		}
	}
	var pools []models.AddrRange
	for _, s := range uci(dhcp) {
		if s.kind != "dhcp" || s.options["ignore"] == "1" || s.options["dhcpv4"] == "disabled" {
			continue
		}
		p, ok := prefixes[s.options["interface"]]
		if !ok {
			p = lan
		}
		if p.IsValid() {
			pools = append(pools, part(p, orDefault(s.options["start"], 100), orDefault(s.options["limit"], 150))...)
		}
	}
	return pools
}

func orDefault(text string, def uint64) uint64 {
	n, err := strconv.ParseUint(text, 10, 32)
	if err != nil {
		return def
	}
	return n
}
