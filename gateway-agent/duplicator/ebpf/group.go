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
	_            [4]byte // in_pieces: of the program alone
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
	ends         time.Time            // of the group; zero: the snapshot's
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

// served are the deadlines of the group and of its destinations, each once.
func (g *group) served() []served {
	all := []served{{g.index, g.ends}}
	for _, s := range g.slots {
		if i := uint32(s.Index); !slices.ContainsFunc(all, func(other served) bool { return other.index == i }) {
			all = append(all, served{i, g.until[i]})
		}
	}
	return all
}

// build says what the kernel has to know of a group of the plan. The zero time: it may be served as long as the snapshot.
func (b *path) build(at place, g *table.Group, ends time.Time, hops map[netip.Addr]nextHop) *group {
	built := &group{ends: ends, until: map[uint32]time.Time{}, kernelServes: map[member]bool{}}
	built.index, _ = b.counters.index(groupKey(at.name(g))) // keep made it, or there is no room and install says so
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
		if !ok || !known || twin == maxTwins || hop.mtu < b.mtu-saved {
			built.socket = true
			continue
		}
		built.kernelServes[member{d.ID, d.Source}] = true
		until := d.ValidUntil
		if until.IsZero() || !ends.IsZero() && ends.Before(until) {
			until = ends
		}
		if before, ok := built.until[index]; !until.IsZero() && (!ok || until.Before(before)) {
			built.until[index] = until // the first to end, of one that several cameras send to: the agent renews the others
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
func (b *path) install(at place, g *group) error {
	if g.index == 0 {
		return errors.Join(fmt.Errorf("there is no room for more than %d groups and destinations", b.counters.size-1), b.remove(at))
	}
	if b.keep(at, g) {
		return nil
	}
	first, err := b.prepare(at, g)
	if err != nil {
		return errors.Join(err, b.remove(at))
	}
	defer first.Close()
	return b.put(at, g, first)
}

// keep tells whether the kernel has the group already as it is to be.
func (b *path) keep(at place, g *group) bool {
	old := b.groups[at]
	if old == nil || !old.same(g) {
		return false
	}
	old.kernelServes, old.until, old.ends = g.kernelServes, g.until, g.ends
	return true
}

// put replaces what the kernel has by the inner map of a group that is prepared.
func (b *path) put(at place, g *group, first *ebpf.Map) error {
	// Returns when no packet is copied by the map before any more.
	if err := b.kernel.maps.Groups.Put(b.key(at), first); err != nil {
		b.forget(at, g)
		return errors.Join(fmt.Errorf("put a group into the kernel: %w", err), b.remove(at))
	}
	b.settle(at, g)
	return nil
}

// settle notes that a group is in force.
func (b *path) settle(at place, g *group) {
	old := b.groups[at]
	b.groups[at] = g
	b.forget(at, old)
}

// prepare gives the inner map of a group that is ready to be put into force.
func (b *path) prepare(at place, g *group) (*ebpf.Map, error) {
	b.version++
	g.version = b.version
	first, err := b.fill(at, g)
	if err != nil {
		b.forget(at, g)
		return nil, err
	}
	return first, nil
}

func (b *path) fill(at place, g *group) (*ebpf.Map, error) {
	for _, s := range g.moreSources() {
		if err := b.kernel.maps.Sources.Put(sourceKey{at.group.As4(), s.Addr, g.version}, s); err != nil {
			return nil, fmt.Errorf("put a source into the kernel: %w", err)
		}
	}
	blocks := g.blocks()
	if len(blocks) > 1 {
		more, err := mapOf(blocks[1:], innerMap)
		if err != nil {
			return nil, err
		}
		defer more.Close()
		if err := b.kernel.maps.Rests.Put(g.version, more); err != nil {
			return nil, fmt.Errorf("put the rest of a group into the kernel: %w", err)
		}
	}
	errs := []error{b.until.begin(g.index, g.ends)}
	for i := range g.slots {
		index := uint32(g.slots[i].Index)
		errs = append(errs, b.until.begin(index, g.until[index]))
	}
	if err := errors.Join(errs...); err != nil {
		return nil, fmt.Errorf("let a group be served: %w", err)
	}
	return mapOf(blocks[:1], 0)
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

// key is that of a group in the map of groups: the place of the group IP in the range, or struct home_key of copy.bpf.c.
func (b *path) key(at place) any {
	group := at.group.As4()
	if at.premises.IsValid() {
		premises := at.premises.As16()
		return [20]byte(append(premises[:], group[:]...))
	}
	first := b.config.GroupRange.First.As4()
	return binary.BigEndian.Uint32(group[:]) - binary.BigEndian.Uint32(first[:])
}

// innerMap is BPF_F_INNER_MAP: inner maps may differ in size.
const innerMap = 1 << 12

// remove takes a group out of force.
func (b *path) remove(at place) error {
	old := b.groups[at]
	if old == nil {
		return nil
	}
	b.until.stop(old.index) // whatever comes next
	if err := b.kernel.maps.Groups.Delete(b.key(at)); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
		return fmt.Errorf("take group IP %s out of the kernel: %w", at.group, err)
	}
	delete(b.groups, at)
	b.forget(at, old)
	return nil
}

// forget removes what is kept under a version that no packet asks for any more.
func (b *path) forget(at place, g *group) {
	if g == nil {
		return
	}
	for _, s := range g.moreSources() {
		_ = b.kernel.maps.Sources.Delete(sourceKey{at.group.As4(), s.Addr, g.version})
	}
	if len(g.slots) >= blockSlots {
		_ = b.kernel.maps.Rests.Delete(g.version)
	}
}
