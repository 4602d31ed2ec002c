package ebpf

import (
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/cilium/ebpf"

	"github.com/groupcast/groupcast/gateway-agent/duplicator"
	"github.com/groupcast/groupcast/gateway-agent/packet"
	"github.com/groupcast/groupcast/gateway-agent/table"
)

// tally is struct counters of copy.bpf.c; what its elements count is in groupDrops and destinationDrops.
type tally [12]uint64

// Elements that are no drops.
const (
	groupReceived      = 0
	groupUnknown       = 3 // of element 0, which no group has
	destinationPackets = 0
	destinationBytes   = 1
)

var groupDrops = map[int]string{
	1: packet.Malformed.String(), 2: packet.Stale.String(), 3: packet.UnknownGroup.String(), 4: packet.Spoof.String(),
	5: packet.Unregistered.String(), 6: packet.Unflagged.String(), 7: packet.TTL.String(), 8: duplicator.DropStreams,
	9: duplicator.DropPort, 10: duplicator.DropError,
	11: duplicator.DropNotUDP,
}

var destinationDrops = map[int]string{
	2: duplicator.DropFull, 3: duplicator.DropUnreachable, 4: duplicator.DropTooBig, 5: duplicator.DropStale, 6: duplicator.DropError,
	7: duplicator.DropRate,
}

// registry gives each group and destination an element of the kernel's counters and deadlines, and never the same to two.
type registry struct {
	counts  *ebpf.Map
	paces   *ebpf.Map
	used    map[string]*entry // by destination id or groupKey
	free    []uint32
	next    uint32 // never used so far; 0 stands for none
	size    uint32
	answers map[string]*[answers]uint64

	departed map[string]time.Time // of a relay: since when nobody holds a key
}

type entry struct {
	index    uint32
	departed time.Time // zero while it is in force
	holders  int       // of a relay: how many homes have it in force
}

func newRegistry(counts, paces *ebpf.Map) *registry {
	return &registry{
		counts: counts, paces: paces, used: map[string]*entry{}, next: 1, size: counts.MaxEntries(), answers: map[string]*[answers]uint64{},
		departed: map[string]time.Time{},
	}
}

// groupKey can't be an id: ids have no slash. A group's name is its group IP at home, and its id at a relay.
func groupKey(name string) string { return groupPrefix + name }

const groupPrefix = "group/"

// index gives the element of a destination or group of the plan, and false if there was no room for it.
func (r *registry) index(key string) (uint32, bool) {
	if e := r.used[key]; e != nil {
		return e.index, true
	}
	return 0, false
}

// keys are those of a group and its destinations.
func keys(name string, g *table.Group) []string {
	all := append(make([]string, 0, 1+len(g.Destinations)), groupKey(name))
	for _, d := range g.Destinations {
		all = append(all, d.ID)
	}
	return all
}

// hasRoom tells whether there is an element for a key more.
func (r *registry) hasRoom() bool { return len(r.free) > 0 || r.next < r.size }

// has tells whether each of them has an element.
func (r *registry) has(keys []string) bool {
	return !slices.ContainsFunc(keys, func(key string) bool { return r.used[key] == nil })
}

// keep gives what is present an element each, and takes it from what left long ago.
func (r *registry) keep(present map[string]bool, now time.Time) {
	departed := map[string]time.Time{}
	for key, e := range r.used {
		switch {
		case present[key]:
			e.departed = time.Time{}
			continue
		case e.departed.IsZero():
			e.departed = now
			continue // what is in force until the swap still counts there
		}
		departed[key] = e.departed
	}
	r.forget(departed, now)
	for key := range present {
		r.take(key)
	}
}

// forget takes their elements from those of what left that needn't be kept.
func (r *registry) forget(departed map[string]time.Time, now time.Time) {
	for _, key := range duplicator.Forgettable(departed, now) {
		e := r.used[key]
		delete(r.used, key)
		delete(r.answers, key)
		delete(departed, key)
		if r.counts.Put(e.index, make([]tally, ebpf.MustPossibleCPU())) == nil && r.paces.Put(e.index, uint64(0)) == nil { // no packet counts there any more
			r.free = append(r.free, e.index)
		}
	}
}

// take gives the entry of a key, a new one if there is none and there is room, and else nil.
func (r *registry) take(key string) *entry {
	switch {
	case r.used[key] != nil:
	case len(r.free) > 0:
		r.used[key] = &entry{index: r.free[0]}
		r.free = r.free[1:]
	case r.next < r.size:
		r.used[key] = &entry{index: r.next}
		r.next++
	}
	return r.used[key]
}

// hold is keep for those keys that one home more has in force; it gives those for which there was room.
func (r *registry) hold(keys []string) (held []string) {
	for _, key := range keys {
		if e := r.take(key); e != nil {
			e.holders, e.departed = e.holders+1, time.Time{}
			delete(r.departed, key)
			held = append(held, key)
		}
	}
	return held
}

// release is what hold began.
func (r *registry) release(held []string, now time.Time) {
	for _, key := range held {
		if e := r.used[key]; e.holders > 1 {
			e.holders--
		} else {
			e.holders, e.departed, r.departed[key] = 0, now, now
		}
	}
}

func (r *registry) answered(id string, a answer) {
	if r.answers[id] == nil {
		r.answers[id] = new([answers]uint64)
	}
	r.answers[id][a]++
}

// read adds up what the CPUs counted, and what the socket backend did for the rest.
func (r *registry) read(rest duplicator.Counters) duplicator.Counters {
	c := duplicator.Counters{
		Destinations: map[string]duplicator.DestinationCounters{}, Groups: map[netip.Addr]duplicator.GroupCounters{}, Refused: rest.Refused,
	}
	if n, err := r.sum(0); err == nil {
		c.UnknownGroup = n[groupUnknown]
	}
	for key, e := range r.used {
		n, err := r.sum(e.index)
		if err != nil {
			continue
		}
		if name, ok := strings.CutPrefix(key, groupPrefix); ok {
			ip, err := netip.ParseAddr(name)
			if err != nil {
				continue
			}
			g := duplicator.GroupCounters{Received: n[groupReceived], Drops: named(n, groupDrops)}
			for _, reason := range []string{duplicator.DropOverflow, duplicator.DropStreams} {
				add(g.Drops, reason, rest.Groups[ip].Drops[reason])
			}
			c.Groups[ip] = g
			continue
		}
		c.Destinations[key] = r.destination(key, n, rest.Destinations[key])
	}
	return c
}

// destination adds to what the kernel counted what the socket backend did, and the network's answers.
func (r *registry) destination(id string, n tally, other duplicator.DestinationCounters) duplicator.DestinationCounters {
	d := duplicator.DestinationCounters{Packets: n[destinationPackets], Bytes: n[destinationBytes], Drops: named(n, destinationDrops)}
	d.Packets += other.Packets
	d.Bytes += other.Bytes
	for reason, v := range other.Drops {
		add(d.Drops, reason, v)
	}
	if got := r.answers[id]; got != nil {
		for a, v := range got {
			add(d.Drops, answerDrops[a], v)
		}
	}
	return d
}

// addTo adds what the kernel did of a relay's work to what its socket backend did.
func (r *registry) addTo(c *duplicator.RelayCounters) {
	for key, e := range r.used {
		n, err := r.sum(e.index)
		if err != nil {
			continue
		}
		id, isGroup := strings.CutPrefix(key, groupPrefix)
		if !isGroup {
			c.Destinations[key] = r.destination(key, n, c.Destinations[key])
			continue
		}
		if g, ok := c.Groups[id]; ok {
			drops := named(n, groupDrops)
			for reason, v := range g.Drops {
				add(drops, reason, v)
			}
			c.Groups[id] = duplicator.GroupCounters{Received: g.Received + n[groupReceived], Drops: drops}
		}
	}
}

// sum adds up what the CPUs counted.
func (r *registry) sum(index uint32) (n tally, err error) {
	var perCPU []tally
	err = r.counts.Lookup(index, &perCPU)
	for _, cpu := range perCPU {
		for i, v := range cpu {
			n[i] += v
		}
	}
	return n, err
}

func named(n tally, names map[int]string) map[string]uint64 {
	drops := map[string]uint64{}
	for i, name := range names {
		add(drops, name, n[i])
	}
	return drops
}

func add(drops map[string]uint64, reason string, n uint64) {
	if n > 0 {
		drops[reason] += n
	}
}
