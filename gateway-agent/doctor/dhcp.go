package doctor

import (
	"io/fs"
	"net/netip"
	"regexp"
	"strings"

	"github.com/groupcast/groupcast/models"
)

// pool is a range of addresses that a DHCP server on this host hands out.
type pool struct {
	file string
	models.AddrRange
}

// dhcp looks for pools of the DHCP servers that there are on gateways, and for leases, in the group range. A server on another host isn't found.
func (e *examination) dhcp() {
	pools := e.pools()
	r := e.config.Gateway.Range
	overlaps := false
	for _, p := range pools {
		if p.Size() > 0 && !r.Last.Less(p.First) && !p.Last.Less(r.First) {
			overlaps = true
			e.fail("dhcp", "take the group range out of the pool, or set group-range to addresses outside it, and restart both",
				"the pool %s of /%s overlaps the group range %s: a host could get a group IP", p.AddrRange, p.file, r)
		}
	}
	for _, file := range e.leaseFiles() {
		for _, ip := range leasesIn(e.read(file), r) {
			overlaps = true
			e.fail("dhcp", "end that lease, or move group-range", "/%s: %s is leased, and is in the group range %s", file, ip, r)
		}
	}
	switch {
	case overlaps:
	case len(pools) == 0:
		e.warn("dhcp", "see that whoever hands out addresses on this LAN leaves the group range out", "no DHCP server's pool was found on this host, so nobody knows what it hands out")
	default:
		e.ok("dhcp", "%d pools, none with an address of the group range", len(pools))
	}
}

func (e *examination) read(file string) string {
	b, _ := fs.ReadFile(e.root, file)
	return string(b)
}

func (e *examination) glob(patterns ...string) []string {
	var files []string
	for _, p := range patterns {
		found, _ := fs.Glob(e.root, p) // the patterns are right
		files = append(files, found...)
	}
	return files
}

func (e *examination) pools() []pool {
	var all []pool
	collect := func(files []string, parse func(text string) []models.AddrRange) {
		for _, f := range files {
			for _, r := range parse(e.read(f)) {
				all = append(all, pool{f, r})
			}
		}
	}
	collect(e.glob("etc/dnsmasq.conf", "etc/dnsmasq.d/*", "var/etc/dnsmasq.conf*", "tmp/etc/dnsmasq.conf*"), dnsmasqPools)
	collect(e.glob("etc/dhcp/dhcpd.conf", "etc/dhcpd.conf", "etc/dhcp/dhcpd.conf.d/*"), iscPools)
	collect(e.glob("etc/kea/kea-dhcp4.conf"), keaPools)
	collect(e.glob("etc/systemd/network/*.network", "run/systemd/network/*.network"), networkdPools)
	network := e.read("etc/config/network")
	collect(e.glob("etc/config/dhcp"), func(text string) []models.AddrRange { return uciPools(text, network, e.config.Gateway.LANPrefix) })
	return all
}

func (e *examination) leaseFiles() []string {
	return e.glob("var/lib/misc/dnsmasq.leases", "var/lib/dnsmasq/dnsmasq.leases", "tmp/dhcp.leases", "var/lib/dhcp/dhcpd.leases", "var/lib/kea/kea-leases4.csv")
}

var anyAddress = regexp.MustCompile(`\b\d{1,3}\.\d{1,3}\.\d{1,3}\.\d{1,3}\b`)

// leasesIn gives the addresses of the range that a lease file names, each once. Every format names an address only as leased.
func leasesIn(text string, r models.AddrRange) []netip.Addr {
	var found []netip.Addr
	seen := map[netip.Addr]bool{}
	for _, s := range anyAddress.FindAllString(text, -1) {
		if ip, err := netip.ParseAddr(s); err == nil && r.Contains(ip) && !seen[ip] {
			seen[ip] = true
			found = append(found, ip)
		}
	}
	return found
}

// uncommented gives the lines of a file without comments and without blanks around them.
func uncommented(text string) []string {
	var lines []string
	for line := range strings.Lines(text) {
		if i := strings.IndexAny(line, "#"); i >= 0 {
			line = line[:i]
		}
		if line = strings.TrimSpace(line); line != "" && !strings.HasPrefix(line, ";") {
			lines = append(lines, line)
		}
	}
	return lines
}

// span gives a range of two texts, or none.
func span(first, last string) []models.AddrRange {
	f, errF := netip.ParseAddr(first)
	l, errL := netip.ParseAddr(last)
	if errF != nil || errL != nil || !f.Is4() || !l.Is4() {
		return nil
	}
	return []models.AddrRange{{First: f, Last: l}}
}
