package ebpf

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
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
	Kind    uint8
	Twin    uint8    // how many destinations before this one have its address; and lastSlot
	MAC     [12]byte // destination, source
	Port    [2]byte
	Addr    [4]byte
	Source  [4]byte // zero: all of the group's
	Ifindex uint32
	Index   uint16
	MTU     uint16
}

const _ = uint(math.MaxUint16 - entries) // an index fits

// lastSlot marks the last destination of a group, which gets the camera's own packet.
const lastSlot = 0x80

// maxTwins is how many destinations of a group may have one address: four bits of the identification tell them apart.
const maxTwins = 16

// header is struct group of copy.bpf.c.
type header struct {
	Kind         uint8 // kindGroup
	Flags        uint8
	Index        uint16
	Version      uint32
	Destinations uint32
	Sources      [inlineSources]source
	_            [4]byte
}

// Flags of a header.
const (
	flagSocket      = 1 << iota // the socket backend has destinations of its own
	flagMoreSources             // the others are in the map of sources
)

// inlineSources is SOURCES of copy.bpf.c.
const inlineSources = 2

// source is struct source of copy.bpf.c.
type source struct {
	Addr    [4]byte
	Port    [2]byte // 0: each of its streams has one
	Trigger uint16
}

type sourceKey struct {
	Group, Addr [4]byte
	Version     uint32
}

// Values of enum trigger.
const (
	triggerOption uint16 = iota + 1
	triggerSource
)

// group is what the kernel has of one group.
type group struct {
	index        uint32
	version      uint32
	socket       bool // the socket backend serves some of its destinations
	slots        []slot
	sources      []source
	until        map[uint32]time.Time // where a consent ends before the snapshot, by index
	kernelServes map[member]bool
}

// member is a destination, for one source or all.
type member struct{ id, source string }

// same tells whether two are the same to the program, but for the version.
func (g *group) same(other *group) bool {
	return g.index == other.index && g.socket == other.socket && slices.Equal(g.slots, other.slots) &&
		slices.Equal(g.sources, other.sources)
}

// moreSources are those that the header has no room for.
func (g *group) moreSources() []source { return g.sources[min(inlineSources, len(g.sources)):] }

// build says what the kernel has to know of a group of the plan.
func (b *Backend) build(g *table.Group, hops map[netip.Addr]nextHop) *group {
	built := &group{until: map[uint32]time.Time{}, kernelServes: map[member]bool{}}
	built.index, _ = b.counters.index(groupKey(g.IP)) // keep made it, or there is no room and install says so
	saved := 4
	if b.config.CopyOptions == packet.Strip {
		saved = 8
	}
	addrs := map[string][4]byte{}
	for _, s := range g.Sources {
		addrs[s.ID] = s.Addr.As4()
		trigger := triggerOption
		if s.Trigger == table.TriggerSource {
			trigger = triggerSource
			saved = 0 // its datagrams needn't have options that the copies do without
		}
		built.sources = append(built.sources, source{Addr: s.Addr.As4(), Port: [2]byte{byte(s.Port >> 8), byte(s.Port)}, Trigger: trigger})
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
			Ifindex: uint32(hop.ifindex), Index: uint16(index), MTU: uint16(min(hop.mtu, math.MaxUint16)), MAC: hop.mac, Source: addrs[d.Source],
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

// install puts a group into force at once: what is kept under a version that no packet asks for yet, then the inner map that names it.
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
		b.forget(ip, g)
		return errors.Join(err, b.remove(ip))
	}
	b.groups[ip] = g
	b.forget(ip, old)
	return nil
}

func (b *Backend) put(ip netip.Addr, g *group) error {
	key := ip.As4()
	for _, s := range g.moreSources() {
		if err := b.kernel.maps.Sources.Put(sourceKey{key, s.Addr, g.version}, s); err != nil {
			return fmt.Errorf("put a source into the kernel: %w", err)
		}
	}
	blocks := g.blocks()
	first, err := mapOf(blocks[:1], 0)
	if err != nil {
		return err
	}
	defer first.Close()
	if len(blocks) > 1 {
		more, err := mapOf(blocks[1:], innerMap)
		if err != nil {
			return err
		}
		defer more.Close()
		if err := b.kernel.maps.Rests.Put(g.version, more); err != nil {
			return fmt.Errorf("put the rest of a group into the kernel: %w", err)
		}
	}
	errs := []error{b.until.begin(g.index, time.Time{})}
	for i := range g.slots {
		index := uint32(g.slots[i].Index)
		errs = append(errs, b.until.begin(index, g.until[index]))
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("let a group be served: %w", err)
	}
	// Returns when no packet is copied by the map before any more.
	if err := b.kernel.maps.Groups.Put(place(b.config.GroupRange, ip), first); err != nil {
		return fmt.Errorf("put a group into the kernel: %w", err)
	}
	return nil
}

func mapOf(blocks []block, flags uint32) (*ebpf.Map, error) {
	m, err := ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.Array, KeySize: 4, ValueSize: blockSlots * slotSize, MaxEntries: uint32(len(blocks)), Flags: flags})
	if err != nil {
		return nil, fmt.Errorf("make the map of a group: %w", err)
	}
	for i := range blocks {
		if err := m.Put(uint32(i), blocks[i][:]); err != nil {
			return nil, errors.Join(fmt.Errorf("fill the map of a group: %w", err), m.Close())
		}
	}
	return m, nil
}

const (
	slotSize   = 32
	blockSlots = 16 // BLOCK of copy.bpf.c
)

// block is struct block of copy.bpf.c.
type block [blockSlots * slotSize]byte

// blocks gives the elements of the group's inner maps: slot 0 is the group, the others are its destinations.
func (g *group) blocks() []block {
	h := header{Kind: kindGroup, Index: uint16(g.index), Version: g.version, Destinations: uint32(len(g.slots))}
	if g.socket {
		h.Flags |= flagSocket
	}
	if copy(h.Sources[:], g.sources) < len(g.sources) {
		h.Flags |= flagMoreSources
	}
	blocks := make([]block, len(g.slots)/blockSlots+1)
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
	b.forget(ip, old)
	return nil
}

// forget removes what is kept under a version that no packet asks for any more.
func (b *Backend) forget(ip netip.Addr, g *group) {
	if g == nil {
		return
	}
	for _, s := range g.moreSources() {
		_ = b.kernel.maps.Sources.Delete(sourceKey{ip.As4(), s.Addr, g.version})
	}
	if len(g.slots) >= blockSlots {
		_ = b.kernel.maps.Rests.Delete(g.version)
	}
}
