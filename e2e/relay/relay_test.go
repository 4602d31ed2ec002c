package relay

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"net/netip"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/groupcast/groupcast/e2e/netlab"
	"github.com/groupcast/groupcast/gateway-agent/table"
)

func (l *lab) apply(snapshots map[*home]*table.Snapshot) {
	l.t.Helper()
	all := map[netip.Addr]*table.Snapshot{}
	for h, s := range snapshots {
		all[h.inside] = s
		require.NoError(l.t, h.forward.Apply(s, relayInside))
	}
	l.relayNS.Do(func() { require.NoError(l.t, l.relay.Apply(all)) })
}

// uplinkData gives WireGuard's data messages that left the home, by their size in bytes of UDP payload.
func (h *home) uplinkData() []int {
	var sizes []int
	for _, f := range h.uplink.Frames() {
		p := f.IPv4()
		if f.Outgoing || p == nil || p[9] != 17 {
			continue
		}
		udp := p[int(p[0]&15)*4:]
		if field := binary.BigEndian.Uint16(p[6:]); field&0x3fff != 0 {
			h.l.t.Errorf("a fragment on the uplink: the outer datagrams were to need none")
			continue
		}
		if binary.BigEndian.Uint16(udp[2:]) == tunnelPort && udp[8] == 4 && len(udp) > 8+32 { // not an empty keep-alive
			sizes = append(sizes, len(udp)-8)
		}
	}
	return sizes
}

func TestRelayCopiesOnceUpAndThreeDown(t *testing.T) {
	t.Parallel()
	netlab.Isolated(t, copiesOnceUpAndThreeDown)
}

func copiesOnceUpAndThreeDown(t *testing.T) {
	l := newLab(t, 1)
	h := l.homes[0]
	to := []string{netlab.Upload, netlab.Thumbnail, netlab.Phone}
	var receivers []*receiver
	for _, a := range to {
		receivers = append(receivers, l.receiver(a))
	}
	l.apply(map[*home]*table.Snapshot{h: h.groups(to...)})

	const many = 50
	var packets [][]byte
	for i := range many {
		packets = append(packets, datagram(uint16(i+1), cameraAddr, payload(i, 1000)))
	}
	h.send(packets...)
	for _, r := range receivers {
		for i := range many {
			require.Equal(t, string(payload(i, 1000)), r.next())
		}
	}
	assert.Len(t, h.uplinkData(), many, "each datagram crosses the uplink once")

	t.Run("a datagram in three fragments", func(t *testing.T) {
		large := payload(77, 4000)
		before := len(h.uplinkData())
		parts := fragments(datagram(999, cameraAddr, large))
		require.Len(t, parts, 3)
		h.send(parts...)
		for _, r := range receivers {
			require.Equal(t, string(large), r.next())
		}
		// Two of the three are as large as the LAN allows, so each is two in the tunnel.
		assert.Len(t, h.uplinkData()[before:], 5)
		parts = fragments(datagram(1000, cameraAddr, large))
		h.send(parts[2], parts[0], parts[1], parts[0])
		for _, r := range receivers {
			require.Equal(t, string(large), r.next(), "in another order, and one twice")
		}
	})

	t.Run("what is not the camera's stays at home", func(t *testing.T) {
		before := len(h.uplinkData())
		damaged := datagram(5, cameraAddr, payload(3, 100))
		damaged[len(damaged)-1] ^= 1
		h.send(
			datagram(1, netip.MustParseAddr("172.16.0.6"), payload(1, 100)), // another's stream id
			damaged, // the relay finds it
			datagram(2, cameraAddr, payload(2, 100)),
		)
		for _, r := range receivers {
			require.Equal(t, string(payload(2, 100)), r.next())
			r.nothing()
		}
		assert.Len(t, h.uplinkData()[before:], 2)
		assert.EqualValues(t, 1, h.forward.Counters().Drops["spoof"])
		assert.EqualValues(t, 1, l.relay.Counters().Groups["g_0"].Drops["malformed"])
	})

	t.Run("nothing without destinations", func(t *testing.T) {
		before := len(h.uplinkData())
		l.apply(map[*home]*table.Snapshot{h: h.groups()})
		h.send(datagram(3, cameraAddr, payload(4, 100)))
		h.until("counted", func() bool { return h.forward.Counters().Drops["no-destination"] == 1 })
		assert.Len(t, h.uplinkData()[before:], 0)
	})
}

func payload(i, size int) []byte {
	b := bytes.Repeat(fmt.Appendf(nil, "%06d ", i), size/7+1)
	return b[:size]
}
