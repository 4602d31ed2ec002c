package sync

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"net/url"
	"sort"
	"strconv"
)

// Service is where the registration service is, as this host's resolver finds it.
type Service struct {
	// Endpoints are the addresses and ports of its API and its STUN port, on all of which it is nobody's receiver.
	Endpoints []netip.AddrPort
	// STUN is where its STUN port is asked over IPv4; the zero AddrPort if there is none.
	STUN netip.AddrPort
}

// locate finds the service and tells who wants to know, unless that was done since it last may have moved. A STUN port that isn't found is looked for
// again with the next poll. An API that isn't found is one that is reached by a proxy.
func (p *Poller) locate(ctx context.Context) {
	if p.located || p.config.Located == nil {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, reserve/2)
	defer cancel()
	api, apiErr := find(ctx, endpoint(p.config.Server))
	var stun []netip.AddrPort
	var stunErr error
	if p.stun != "" {
		stun, stunErr = find(ctx, p.stun)
	}
	s := Service{Endpoints: append(api, stun...)}
	for _, at := range stun {
		if at.Addr().Is4() {
			s.STUN = at
			break
		}
	}
	if err := errors.Join(apiErr, stunErr); err != nil {
		p.config.Log.Debug("not everything could be found out about where the service is", "err", err)
	}
	p.located = stunErr == nil || len(stun) > 0
	if p.located || !p.told { // rather what was found before than nothing
		p.told = true
		p.config.Located(s)
	}
}

// endpoint is the host and port of a URL.
func endpoint(server string) string {
	u, err := url.Parse(server)
	if err != nil {
		return server
	}
	if u.Port() != "" {
		return u.Host
	}
	return net.JoinHostPort(u.Hostname(), map[string]string{"https": "443", "http": "80"}[u.Scheme])
}

func find(ctx context.Context, at string) (all []netip.AddrPort, err error) {
	host, text, err := net.SplitHostPort(at)
	if err != nil {
		return nil, err
	}
	port, err := strconv.ParseUint(text, 10, 16)
	if err != nil {
		return nil, err
	}
	addrs, err := net.DefaultResolver.LookupNetIP(ctx, "ip", host)
	for _, a := range addrs {
		all = append(all, netip.AddrPortFrom(a.Unmap(), uint16(port)))
	}
	// The same one of several each time: some NATs do something else for each. Not by package slices: for each type of that size it has 10 kB more.
	sort.Slice(all, func(i, j int) bool { return all[i].Compare(all[j]) < 0 })
	return all, err
}
