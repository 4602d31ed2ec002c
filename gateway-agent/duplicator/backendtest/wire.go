package backendtest

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/groupcast/groupcast/e2e/netlab"
	"github.com/groupcast/groupcast/gateway-agent/packet"
	"github.com/groupcast/groupcast/gateway-agent/table"
)

// inject puts packets on the camera's wire as they stand, all at once.
func (h *Home) inject(packets ...[]byte) {
	h.t.Helper()
	var frames [][]byte
	for _, p := range packets {
		frames = append(frames, slices.Concat(h.lanMAC, h.cameraIf, []byte{8, 0}, p))
	}
	h.Home.Camera.InjectFrame("cam0", frames...)
}

// exchange puts packets on the camera's wire, and fails unless exactly those copies are on the uplink that package packet makes of
// them.
func (h *Home) exchange(packets [][]byte) []datagram {
	h.t.Helper()
	return h.compare(packets, h.backend.PacketByPacket)
}

// exchangeDatagrams compares what receivers get but not how it is cut into packets.
func (h *Home) exchangeDatagrams(packets [][]byte) {
	h.t.Helper()
	h.compare(packets, false)
}

func (h *Home) compare(packets [][]byte, exact bool) []datagram {
	h.t.Helper()
	before := len(h.onUplink())
	var crossed uint64
	if h.relayed != nil {
		crossed = h.relayed.crossed()
	}
	h.inject(packets...)
	// Datagrams of one group are copied in order: once the last one is there, nothing that was sent before it is still to come.
	for ip := range h.snapshot.Groups {
		end := raw{to: ip, payload: []byte("the end"), sport: 3000 + uint16(ip.As4()[3]), id: 0xffff, noOptions: !h.anyOption()}.bytes()
		packets = append(slices.Clone(packets), end)
		h.inject(end)
	}
	want := h.wanted(packets)
	ends := 0
	for _, d := range want {
		if d.payload == "the end" {
			ends++
		}
	}
	var got [][]byte
	h.until(fmt.Sprintf("%d last copies", ends), func() bool {
		got = h.onUplink()[before:]
		seen := 0
		for _, d := range assemble(got) {
			if d.payload == "the end" {
				seen++
			}
		}
		return seen >= ends
	})
	ports := h.checkDatagrams(assemble(got), want)
	if h.relayed != nil {
		crossed += h.wantedOnTheWay(packets)
		h.until("counted", func() bool { return h.relayed.crossed() >= crossed })
		if n := h.relayed.crossed(); n != crossed {
			h.t.Errorf("%d packets more went into the tunnel than each once", n-crossed)
		}
	}
	for _, p := range got {
		if err := netlab.VerifyIPv4(p); err != nil {
			h.t.Errorf("%v in %x", err, p[:min(len(p), 40)])
		}
	}
	if exact {
		h.checkPackets(got, slices.Concat(h.reference(packets, ports)...))
	}
	return assemble(got)
}

func (h *Home) anyOption() bool {
	for _, g := range h.snapshot.Groups {
		for _, s := range g.Sources {
			if s.Trigger == table.TriggerOption {
				return true
			}
		}
	}
	return false
}

// onUplink gives the IPv4 packets that left by the uplink, and fails if one doesn't come from the uplink address, is for the group range or
// carries option 0x88.
func (h *Home) onUplink() [][]byte {
	h.t.Helper()
	var packets [][]byte
	for _, f := range h.Wide.Frames() {
		p := f.IPv4()
		if p == nil || f.Outgoing {
			continue
		}
		from, to := netip.AddrFrom4([4]byte(p[12:16])), netip.AddrFrom4([4]byte(p[16:20]))
		header := int(p[0]&15) * 4
		if id, err := packet.StreamID(p[20:header]); from != Uplink || GroupRange.Contains(to) || err != nil || id.IsValid() {
			h.t.Fatalf("on the uplink: %x", p[:header])
		}
		packets = append(packets, p)
	}
	return packets
}

// wanted gives what the destinations have to receive. Each puts its own fragments together: two may be at one address.
func (h *Home) wanted(packets [][]byte) []datagram {
	h.t.Helper()
	var all []datagram
	for _, copies := range h.reference(packets, nil) {
		all = append(all, assemble(copies)...)
	}
	return all
}

// reference makes the copies of the packets by package packet, those of each destination on their own. ports gives the source port
// of the copies for that of the camera; nil keeps it.
func (h *Home) reference(packets [][]byte, ports map[netip.AddrPort]uint16) [][][]byte {
	h.t.Helper()
	byDestination := map[string][][]byte{}
	for _, b := range packets {
		p, err := packet.Parse(b)
		if err != nil {
			continue
		}
		v := packet.Decide(h.snapshot, time.Now(), p.Datagram)
		if v.Reason != packet.Copy {
			continue
		}
		for _, d := range v.Group.Destinations {
			if !d.Serves(v.Source, time.Now()) {
				continue
			}
			if d.Addr.Is6() {
				continue
			}
			c, err := p.AppendCopy(nil, packet.Rewrite{
				Source: netip.AddrPortFrom(Uplink, ports[p.Source]), Destination: packet.Target(d, p.Datagram),
				Options: h.config.CopyOptions.For(v.Source),
			})
			if err != nil {
				h.t.Fatal(err)
			}
			byDestination[d.ID] = append(byDestination[d.ID], c)
		}
	}
	return slices.Collect(maps.Values(byDestination))
}

// checkDatagrams compares who got what, and gives the source port that each camera stream got: one each, and never the same.
func (h *Home) checkDatagrams(got, want []datagram) map[netip.AddrPort]uint16 {
	h.t.Helper()
	type receipt struct {
		to      netip.AddrPort
		ttl     byte
		payload string
	}
	count := map[receipt]int{}
	streams := map[receipt]uint16{}
	for _, d := range want {
		r := receipt{d.to, d.ttl, d.payload}
		count[r]++
		streams[r] = d.from.Port()
	}
	ports, taken := map[netip.AddrPort]uint16{}, map[uint16]uint16{}
	for _, d := range got {
		r := receipt{d.to, d.ttl, d.payload}
		count[r]--
		camera, ok := streams[r]
		if !ok {
			continue
		}
		for _, from := range []netip.Addr{Camera, Neighbour} {
			at := netip.AddrPortFrom(from, camera)
			if before, ok := ports[at]; ok && before != d.from.Port() {
				h.t.Errorf("copies of one stream leave from ports %d and %d", before, d.from.Port())
			}
			ports[at] = d.from.Port()
		}
		if other, ok := taken[d.from.Port()]; ok && other != camera && !h.backend.Reserved {
			h.t.Errorf("copies of two streams leave from port %d", d.from.Port())
		}
		taken[d.from.Port()] = camera
	}
	for r, n := range count {
		switch {
		case n > 0:
			h.t.Errorf("%d copies to %s with TTL %d and %d bytes (%.30q) are missing", n, r.to, r.ttl, len(r.payload), r.payload)
		case n < 0:
			h.t.Errorf("%d copies to %s with TTL %d and %d bytes (%.30q) are too many", -n, r.to, r.ttl, len(r.payload), r.payload)
		}
	}
	return ports
}

// checkPackets compares bit by bit, in any order: a device may send in another one.
func (h *Home) checkPackets(got, want [][]byte) {
	h.t.Helper()
	left := map[string]int{}
	for _, p := range want {
		left[string(p)]++
	}
	for _, p := range got {
		left[string(p)]--
	}
	for _, p := range slices.Sorted(maps.Keys(left)) {
		if n := left[p]; n != 0 {
			h.t.Errorf("%s: %x", map[bool]string{true: "missing", false: "unexpected"}[n > 0], p[:min(len(p), 48)])
		}
	}
}

// drops gives what was counted for groupcast1.
func (h *Home) drops(reason string) uint64 {
	return h.Duplicator.Counters().Groups[Groupcast1].Drops[reason]
}

func text(i, size int) []byte {
	s := fmt.Sprintf("%06d ", i)
	return []byte(s + strings.Repeat("x", max(size-len(s), 0)))
}
