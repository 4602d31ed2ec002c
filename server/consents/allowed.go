package consents

import (
	"net/netip"
	"slices"

	"github.com/groupcast/groupcast/models"
)

const maxAllowed = 64

// NormalAllowed checks what an operator wants to allow a service, and sorts it. CodeBadRequest says what is wrong.
func NormalAllowed(all []models.AllowedCIDR) ([]models.AllowedCIDR, error) {
	if len(all) > maxAllowed {
		return nil, models.Errorf(models.CodeBadRequest, "These are %d prefixes; a service can have %d. Write larger ones.", len(all), maxAllowed)
	}
	normal := slices.Clone(all)
	for i, a := range normal {
		switch {
		case !a.Prefix.IsValid() || a.Prefix != a.Prefix.Masked() || a.Prefix.Addr().Is4In6():
			return nil, models.Errorf(models.CodeBadRequest, "cidr must be an IPv4 or IPv6 prefix that begins at its first address, such as 96.114.14.0/24.")
		case slices.ContainsFunc(normal[:i], func(o models.AllowedCIDR) bool { return o.Prefix == a.Prefix }):
			return nil, models.Errorf(models.CodeBadRequest, "The prefix %s is there twice. Name it once.", a.Prefix)
		}
	}
	slices.SortFunc(normal, func(a, b models.AllowedCIDR) int { return a.Prefix.Compare(b.Prefix) })
	return normal, nil
}

// Entry finds what a service may do at an address: the longest prefix that holds it says. Without any prefixes a service may register everywhere, and
// nothing else; ok is false for an address that it may not register.
func Entry(allowed []models.AllowedCIDR, at netip.Addr) (entry models.AllowedCIDR, ok bool) {
	ok = len(allowed) == 0
	for _, a := range allowed {
		if a.Prefix.Contains(at) && (!ok || a.Prefix.Bits() > entry.Prefix.Bits()) {
			entry, ok = a, true
		}
	}
	return entry, ok
}
