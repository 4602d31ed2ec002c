package ebpf

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/cilium/ebpf"

	"github.com/groupcast/groupcast/gateway-agent/packet"
	"github.com/groupcast/groupcast/gateway-agent/table"
	"github.com/groupcast/groupcast/models"
)

// slot is struct slot of copy.bpf.c. Addresses and ports are in network byte order.
type slot struct {
	Addr    [4]byte
	Port    [2]byte
	MAC     [12]byte // destination, source
	Kind    uint8
	Twin    uint8 // how many destinations before this one have its address; and lastSlot
	Ifindex uint32
	Index   uint32
	MTU     uint32
	Source  [4]byte // zero: all of the group's
}

// lastSlot marks the last destination of a group, which gets the camera's own packet.
const lastSlot = 0x80

// maxTwins is how many destinations of a group may have one address: four bits of the identification tell them apart.
const maxTwins = 16

// header is struct group of copy.bpf.c.
type header struct {
	Destinations uint32
	Index        uint32
	Version      uint32
	Socket       uint32
	_            [2]byte
	Kind         uint8 // kindGroup
	_            [17]byte
}

type sourceKey struct {
	Group, Addr [4]byte
	Version     uint32
}

// Values of enum trigger.
const (
	triggerOption uint32 = iota
	triggerSource
)

// group is what the kernel has of one group.
type group struct {
	index        uint32
	version      uint32
	socket       bool // the socket backend serves some of its destinations
	slots        []slot
	sources      map[netip.Addr]uint32 // triggers and ports
	until        map[uint32]time.Time  // where a consent ends before the snapshot, by index
	kernelServes map[member]bool
}

// member is a destination, for one source or all.
type member struct{ id, source string }

// same tells whether two are the same to the program, but for the version.
func (g *group) same(other *group) bool {
	return g.index == other.index && g.socket == other.socket && slices.Equal(g.slots, other.slots) &&
		equal(g.sources, other.sources)
}

func equal(a, b map[netip.Addr]uint32) bool {
	for k, v := range a {
		if other, ok := b[k]; !ok || other != v {
			return false
		}
	}
	return len(a) == len(b)
}

// build says what the kernel has to know of a group of the plan.
func (b *Backend) build(g *table.Group, hops map[netip.Addr]nextHop) *group {
	built := &group{sources: map[netip.Addr]uint32{}, until: map[uint32]time.Time{}, kernelServes: map[member]bool{}}
	built.index, _ = b.counters.index(groupKey(g.IP)) // keep made it, or there is no room and install says so
	saved := 4
	if b.config.CopyOptions == packet.Strip {
		saved = 8
	}
	addrs := map[string][4]byte{}
	for _, s := range g.Sources {
		addrs[s.ID] = s.Addr.As4()
		port := uint32(s.Port>>8|s.Port<<8) << 16 // as the bytes lie in memory
		built.sources[s.Addr] = triggerOption | port
		if s.Trigger == table.TriggerSource {
			built.sources[s.Addr] = triggerSource | port
			saved = 0 // its datagrams needn't have options that the copies do without
		}
	}
	var seen []table.Destination
	for _, d := range g.Destinations {
		hop, ok := hops[d.Addr]
		index, known := b.counters.index(d.ID)
		twin := twins(seen, d)
		if !ok || !known || twin == maxTwins || hop.mtu < b.lan.MTU-saved {
			built.socket = true
			continue
		}
		built.kernelServes[member{d.ID, d.Source}] = true
		if before, ok := built.until[index]; !d.ValidUntil.IsZero() && (!ok || d.ValidUntil.Before(before)) {
			built.until[index] = d.ValidUntil // the first to end, of one that several cameras send to: the agent renews the others
		}
		built.slots = append(built.slots, slot{
			Addr: d.Addr.As4(), Port: [2]byte{byte(d.Port >> 8), byte(d.Port)}, Kind: hop.kind, Twin: twin,
			Ifindex: uint32(hop.ifindex), Index: index, MTU: uint32(hop.mtu), MAC: hop.mac, Source: addrs[d.Source],
		})
		seen = append(seen, d)
	}
	return built
}

// twins counts those of the destinations that may get a copy of the same datagram at the same address.
func twins(seen []table.Destination, d table.Destination) (n uint8) {
	for _, other := range seen {
		if other.Addr == d.Addr && (other.Source == d.Source || other.Source == "" || d.Source == "") && n < maxTwins {
			n++
		}
	}
	return n
}

// rest is the group as the socket backend has to serve it, including what it has to refuse; nil if nothing is left.
func (g *group) rest(asked *table.Group) *table.Group {
	if asked == nil {
		return nil
	}
	left := *asked
	left.Destinations = nil
	for _, d := range asked.Destinations {
		if !g.kernelServes[member{d.ID, d.Source}] {
			left.Destinations = append(left.Destinations, d)
		}
	}
	if len(left.Destinations) == 0 {
		return nil
	}
	return &left
}

// install puts a group into force at once: sources under a version that no packet asks for yet, then the inner map that names it.
func (b *Backend) install(ip netip.Addr, g *group) error {
	if g.index == 0 {
		return errors.Join(fmt.Errorf("there is no room for more than %d groups and destinations", entries-1), b.remove(ip))
	}
	old := b.groups[ip]
	if old != nil && old.same(g) {
		old.kernelServes, old.until = g.kernelServes, g.until
		return nil
	}
	b.version++
	g.version = b.version
	if err := b.put(ip, g); err != nil {
		b.forgetSources(ip, g)
		return errors.Join(err, b.remove(ip))
	}
	b.groups[ip] = g
	b.forgetSources(ip, old)
	return nil
}

func (b *Backend) put(ip netip.Addr, g *group) error {
	key := ip.As4()
	for addr, trigger := range g.sources {
		if err := b.kernel.maps.Sources.Put(sourceKey{key, addr.As4(), g.version}, trigger); err != nil {
			return fmt.Errorf("put a source into the kernel: %w", err)
		}
	}
	blocks := g.blocks()
	inner, err := ebpf.NewMap(&ebpf.MapSpec{
		Type: ebpf.Array, KeySize: 4, ValueSize: blockSlots * slotSize, MaxEntries: uint32(len(blocks)), Flags: innerMap,
	})
	if err != nil {
		return fmt.Errorf("make the map of a group: %w", err)
	}
	defer inner.Close()
	errs := []error{b.until.begin(g.index, time.Time{})}
	for i := range blocks {
		errs = append(errs, inner.Put(uint32(i), blocks[i][:]))
	}
	for i := range g.slots {
		errs = append(errs, b.until.begin(g.slots[i].Index, g.until[g.slots[i].Index]))
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("fill the map of a group: %w", err)
	}
	// Returns when no packet is copied by the map before any more.
	if err := b.kernel.maps.Groups.Put(place(b.config.GroupRange, ip), inner); err != nil {
		return fmt.Errorf("put a group into the kernel: %w", err)
	}
	return nil
}

const (
	slotSize   = 36
	blockSlots = 16 // BLOCK of copy.bpf.c
)

// blocks gives the elements of the group's inner map: slot 0 is the group, the others are its destinations.
func (g *group) blocks() [][blockSlots * slotSize]byte {
	h := header{Destinations: uint32(len(g.slots)), Index: g.index, Version: g.version, Kind: kindGroup}
	if g.socket {
		h.Socket = 1
	}
	blocks := make([][blockSlots * slotSize]byte, len(g.slots)/blockSlots+1)
	put := func(slot int, value any) {
		at := slot % blockSlots * slotSize
		if _, err := binary.Encode(blocks[slot/blockSlots][at:at+slotSize], binary.NativeEndian, value); err != nil {
			panic(err) // the types are of that size
		}
	}
	put(0, &h)
	for i, s := range g.slots {
		if i == len(g.slots)-1 {
			s.Twin |= lastSlot
		}
		put(i+1, &s)
	}
	return blocks
}

// place is that of a group IP in the group range.
func place(r models.AddrRange, ip netip.Addr) uint32 {
	first, at := r.First.As4(), ip.As4()
	return binary.BigEndian.Uint32(at[:]) - binary.BigEndian.Uint32(first[:])
}

// innerMap is BPF_F_INNER_MAP: inner maps may differ in size.
const innerMap = 1 << 12

// remove takes a group out of force.
func (b *Backend) remove(ip netip.Addr) error {
	old := b.groups[ip]
	if old == nil {
		return nil
	}
	_ = b.until.write(old.index, 0) // whatever comes next
	if err := b.kernel.maps.Groups.Delete(place(b.config.GroupRange, ip)); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
		return fmt.Errorf("take group IP %s out of the kernel: %w", ip, err)
	}
	delete(b.groups, ip)
	b.forgetSources(ip, old)
	return nil
}

func (b *Backend) forgetSources(ip netip.Addr, g *group) {
	if g == nil {
		return
	}
	for addr := range g.sources {
		_ = b.kernel.maps.Sources.Delete(sourceKey{ip.As4(), addr.As4(), g.version})
	}
}
