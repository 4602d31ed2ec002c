package ebpf

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"sync/atomic"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Values of enum kind of copy.bpf.c.
const (
	_ uint8 = iota
	kindGroup
	kindResolved
	kindResolve
	kindUnreachable
)

// nextHop is how a destination is reached.
type nextHop struct {
	kind    uint8
	ifindex int
	mtu     int
	mac     [12]byte // destination, source
}

// calm is how long a change of the network has to wait for others that come with it.
const calm = 20 * time.Millisecond

// refresh is how often the kernel is asked to confirm a neighbour that it knows: nothing of what the program sends does.
const refresh = 5 * time.Second

// giveUp is how long a neighbour may stay unknown: what the kernel takes to ask three times. As long as datagrams for it go through the kernel's own code
// they make it ask again at once, so that its own verdict may never be seen.
const giveUp = 3 * time.Second

// maxIfindex is what fits into the mark of a clone.
const maxIfindex = 0xffff

// nextHops follows the kernel's routes and neighbours.
type nextHops struct {
	uplink  net.IP
	handle  *netlink.Handle
	events  *os.File
	changed chan struct{}
	ended   chan struct{}
	stale   atomic.Bool // routes is

	inUse      int                           // routes that the last resolve left
	routes     map[netip.Addr]route          // to those that are in use; the kernel needn't be asked again for each while nothing changes
	neighbours map[neighbour]*neighbourState // those that are in use
}

// route is the way to a destination; none if there is no neighbour.
type route struct {
	neighbour
	mtu int
}

type neighbour struct {
	ifindex int
	ip      netip.Addr
}

type neighbourState struct {
	valid  bool // its address is known
	fresh  bool // and needs no confirmation
	failed bool // it didn't answer, and hasn't since
	asked  time.Time
	since  time.Time // it isn't known; zero if it is
}

// Netlink groups whose messages mean that a next hop may have changed.
const netlinkGroups = 1<<(unix.RTNLGRP_LINK-1) | 1<<(unix.RTNLGRP_NEIGH-1) | 1<<(unix.RTNLGRP_IPV4_IFADDR-1) |
	1<<(unix.RTNLGRP_IPV4_ROUTE-1) | 1<<(unix.RTNLGRP_IPV4_RULE-1)

func followNextHops(uplink netip.Addr) (*nextHops, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("follow routes and neighbours: %w", err)
	}
	if err := unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: netlinkGroups}); err != nil {
		_ = unix.Close(fd)
		return nil, fmt.Errorf("follow routes and neighbours: %w", err)
	}
	handle, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		_ = unix.Close(fd)
		return nil, fmt.Errorf("read routes and neighbours: %w", err)
	}
	h := &nextHops{
		uplink: uplink.AsSlice(), handle: handle, events: os.NewFile(uintptr(fd), "netlink"),
		changed: make(chan struct{}, 1), ended: make(chan struct{}), routes: map[netip.Addr]route{}, neighbours: map[neighbour]*neighbourState{},
	}
	go h.follow()
	return h, nil
}

// follow says that something changed; what it was is read from the kernel's tables, so that no lost message does harm.
func (h *nextHops) follow() {
	defer close(h.ended)
	buf := make([]byte, 1<<16)
	for {
		n, err := h.events.Read(buf)
		if err != nil && !errors.Is(err, unix.ENOBUFS) {
			return // closed
		}
		if err != nil || !onlyNeighbours(buf[:n]) {
			h.stale.Store(true)
		}
		time.Sleep(calm)
		h.again()
	}
}

// onlyNeighbours tells whether messages say nothing of routes: of each neighbour they come every few seconds.
func onlyNeighbours(messages []byte) bool {
	for len(messages) >= unix.SizeofNlMsghdr {
		size, kind := binary.NativeEndian.Uint32(messages), binary.NativeEndian.Uint16(messages[4:])
		if kind != unix.RTM_NEWNEIGH && kind != unix.RTM_DELNEIGH || size < unix.SizeofNlMsghdr {
			return false
		}
		messages = messages[min(int(size+3)&^3, len(messages)):] // each begins at a multiple of four
	}
	return true
}

// forget has the next resolve ask for every route.
func (h *nextHops) forget() { h.stale.Store(true) }

// forgetRoute has the next resolve, which is soon, ask for that route.
func (h *nextHops) forgetRoute(to netip.Addr) {
	delete(h.routes, to)
	h.again()
}

// again has everybody's next hop be looked at anew.
func (h *nextHops) again() {
	select {
	case h.changed <- struct{}{}:
	default:
	}
}

// outdated tells whether resolve is due, because something changed or because more keeps much more than is in use.
func (h *nextHops) outdated() bool { return h.stale.Load() || len(h.routes) > 2*h.inUse+1024 }

// resolve gives the next hops of those destinations that the kernel path can reach: all that are in use.
func (h *nextHops) resolve(destinations []netip.Addr) (map[netip.Addr]nextHop, error) {
	before := h.routes
	if h.stale.Swap(false) {
		before = nil
	}
	h.routes = make(map[netip.Addr]route, len(destinations))
	was := h.neighbours
	h.neighbours = map[neighbour]*neighbourState{}
	hops, err := h.find(destinations, before, was, false)
	if err != nil {
		h.neighbours = was
		h.forget()
	}
	h.inUse = len(h.routes)
	return hops, err
}

// more gives those of some more destinations.
func (h *nextHops) more(destinations []netip.Addr) (map[netip.Addr]nextHop, error) {
	if len(destinations) == 0 {
		return nil, nil
	}
	return h.find(destinations, nil, nil, true)
}

// find keeps in routes and neighbours what it finds, which it takes from those of before if it isn't there. Some: there are others in use beside these.
func (h *nextHops) find(destinations []netip.Addr, routes map[netip.Addr]route, neighbours map[neighbour]*neighbourState, some bool) (map[netip.Addr]nextHop, error) {
	links, macs, err := h.tables()
	if err != nil {
		return nil, fmt.Errorf("read routes and neighbours: %w", err)
	}
	now := time.Now()
	hops := map[netip.Addr]nextHop{}
	for _, to := range destinations {
		if _, done := hops[to]; done {
			continue
		}
		way, ok := h.routes[to]
		if !ok {
			way, ok = routes[to]
		}
		if !ok {
			way = h.route(to, links)
		}
		h.routes[to] = way
		if way.neighbour == (neighbour{}) || links[way.ifindex] == nil {
			continue
		}
		n, mtu := way.neighbour, way.mtu
		state := h.neighbours[n]
		if state == nil {
			if state = neighbours[n]; state == nil {
				state = &neighbourState{}
			}
			h.neighbours[n] = state
		}
		valid0, failed0 := state.valid, state.failed
		hop := nextHop{ifindex: n.ifindex, mtu: mtu, kind: kindResolve}
		entry := macs[n]
		state.valid, state.fresh = entry.State&valid != 0 && len(entry.HardwareAddr) == 6, entry.State&fresh != 0
		if state.since.IsZero() {
			state.since = now
		}
		switch {
		case state.valid:
			hop.kind, state.failed, state.since = kindResolved, false, time.Time{}
			copy(hop.mac[:6], entry.HardwareAddr)
			copy(hop.mac[6:], links[n.ifindex].HardwareAddr)
		case entry.State&netlink.NUD_FAILED != 0, now.Sub(state.since) >= giveUp, state.failed: // until it answers, however often it is asked
			hop.kind, state.failed = kindUnreachable, true
		}
		if some && (state.valid != valid0 || state.failed != failed0) {
			h.again() // others have it, too
		}
		hops[to] = hop
	}
	return hops, nil
}

const (
	fresh = netlink.NUD_PERMANENT | netlink.NUD_NOARP | netlink.NUD_REACHABLE
	valid = fresh | netlink.NUD_PROBE | netlink.NUD_STALE | netlink.NUD_DELAY
)

// tables reads the interfaces that can be copied to, and all neighbours.
func (h *nextHops) tables() (map[int]*netlink.LinkAttrs, map[neighbour]netlink.Neigh, error) {
	all, err := h.handle.LinkList()
	if err != nil {
		return nil, nil, err
	}
	links := map[int]*netlink.LinkAttrs{}
	for _, l := range all {
		if a := l.Attrs(); a.EncapType == "ether" && len(a.HardwareAddr) == 6 && a.Index <= maxIfindex && a.Flags&net.FlagUp != 0 {
			links[a.Index] = a
		}
	}
	entries, err := h.handle.NeighList(0, netlink.FAMILY_V4)
	if err != nil {
		return nil, nil, err
	}
	macs := map[neighbour]netlink.Neigh{}
	for _, e := range entries {
		if ip, ok := netip.AddrFromSlice(e.IP); ok {
			macs[neighbour{e.LinkIndex, ip.Unmap()}] = e
		}
	}
	return links, macs, nil
}

// route asks the kernel for the way from the uplink address to a destination, and the largest packet that it takes.
func (h *nextHops) route(to netip.Addr, links map[int]*netlink.LinkAttrs) route {
	routes, err := h.handle.RouteGetWithOptions(to.AsSlice(), &netlink.RouteGetOptions{SrcAddr: h.uplink})
	if err != nil || len(routes) == 0 {
		return route{}
	}
	r := routes[0]
	link := links[r.LinkIndex]
	if link == nil || r.Type != unix.RTN_UNICAST || r.Via != nil || r.Encap != nil {
		return route{}
	}
	mtu := link.MTU
	if r.MTU > 0 {
		mtu = min(mtu, r.MTU)
	}
	n := neighbour{r.LinkIndex, to}
	if gateway, ok := netip.AddrFromSlice(r.Gw); ok {
		n.ip = gateway.Unmap()
	}
	return route{n, mtu}
}

// ask has the kernel find neighbours that it doesn't know, and confirm those that it hasn't heard from for some time.
func (h *nextHops) ask() error {
	var errs []error
	now := time.Now()
	for n, state := range h.neighbours {
		if !state.valid && !state.failed && now.Sub(state.since) >= giveUp {
			h.again()
		}
		pause := refresh
		if !state.valid {
			pause = time.Second
		}
		if state.fresh || now.Sub(state.asked) < pause {
			continue
		}
		state.asked = now
		err := h.handle.NeighSet(&netlink.Neigh{
			LinkIndex: n.ifindex, IP: n.ip.AsSlice(), Family: netlink.FAMILY_V4, State: netlink.NUD_NONE, Flags: netlink.NTF_USE,
		})
		if err != nil {
			errs = append(errs, fmt.Errorf("ask for a neighbour: %w", err))
		}
	}
	return errors.Join(errs...)
}

func (h *nextHops) close() error {
	err := h.events.Close()
	<-h.ended
	h.handle.Close()
	return err
}
