package relay

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/groupcast/groupcast/e2e/netlab"
	"github.com/groupcast/groupcast/gateway-agent/table"
	"github.com/groupcast/groupcast/gateway-agent/tunnel"
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

// crossed waits until so many data messages have left the home, and fails if there were more.
func (h *home) crossed(n int) {
	h.l.t.Helper()
	h.until(fmt.Sprintf("%d messages on the uplink", n), func() bool { return len(h.uplinkData()) >= n })
	require.Len(h.l.t, h.uplinkData(), n)
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
	crossed := many
	h.crossed(crossed) // each datagram crosses the uplink once

	t.Run("a datagram in three fragments", func(t *testing.T) {
		large := payload(77, 4000)
		parts := fragments(datagram(999, cameraAddr, large))
		require.Len(t, parts, 3)
		h.send(parts...)
		for _, r := range receivers {
			require.Equal(t, string(large), r.next())
		}
		// Two of the three are as large as the LAN allows, so each is two in the tunnel.
		crossed += 5
		h.crossed(crossed)
		parts = fragments(datagram(1000, cameraAddr, large))
		h.send(parts[2], parts[0], parts[1], parts[0])
		for _, r := range receivers {
			require.Equal(t, string(large), r.next(), "in another order, and one twice")
		}
		crossed += 7
		h.crossed(crossed)
	})

	t.Run("what is not the camera's stays at home", func(t *testing.T) {
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
		crossed += 2
		h.crossed(crossed)
		assert.EqualValues(t, 1, h.forward.Counters().Drops["spoof"])
		assert.EqualValues(t, 1, l.relay.Counters().Groups["g_0"].Drops["malformed"])
	})

	t.Run("nothing without destinations", func(t *testing.T) {
		l.apply(map[*home]*table.Snapshot{h: h.groups()})
		h.send(datagram(3, cameraAddr, payload(4, 100)))
		h.until("counted", func() bool { return h.forward.Counters().Drops["no-destination"] == 1 })
		l.apply(map[*home]*table.Snapshot{h: h.groups(to...)})
		h.send(datagram(4, cameraAddr, payload(5, 100)))
		crossed++
		h.crossed(crossed)
		require.Equal(t, string(payload(5, 100)), receivers[0].next())
	})
}

func payload(i, size int) []byte {
	b := bytes.Repeat(fmt.Appendf(nil, "%06d ", i), size/7+1)
	return b[:size]
}

func TestRelayKeepsHomesApart(t *testing.T) {
	t.Parallel()
	netlab.Isolated(t, keepsHomesApart)
}

func keepsHomesApart(t *testing.T) {
	l := newLab(t, 2)
	a, b := l.homes[0], l.homes[1]
	ofA, ofB := l.receiver(netlab.Upload), l.receiver(netlab.Thumbnail)
	l.apply(map[*home]*table.Snapshot{a: a.groups(netlab.Upload), b: b.groups(netlab.Thumbnail)})
	for i := range 20 {
		a.send(datagram(uint16(i), cameraAddr, payload(i, 300)))
		b.send(datagram(uint16(i), cameraAddr, payload(1000+i, 300)))
	}
	for i := range 20 {
		require.Equal(t, string(payload(i, 300)), ofA.next())
		require.Equal(t, string(payload(1000+i, 300)), ofB.next())
	}

	t.Run("fragments with the same addresses and id", func(t *testing.T) {
		fromA, fromB := fragments(datagram(7, cameraAddr, payload(1, 4000))), fragments(datagram(7, cameraAddr, payload(2, 4000)))
		for i := range fromA {
			a.send(fromA[i])
			b.send(fromB[i])
		}
		require.Equal(t, string(payload(1, 4000)), ofA.next())
		require.Equal(t, string(payload(2, 4000)), ofB.next())
	})

	t.Run("a gateway that uses another home's tunnel address", func(t *testing.T) {
		// B writes to the tunnel as if it were A: WireGuard at the relay drops what B's key may not say.
		b.gateway.Run("ip", "-6", "addr", "add", a.inside.String()+"/128", "dev", "gchome", "nodad")
		b.sendInside(a.inside, datagram(8, cameraAddr, payload(3, 300)))
		before := l.relay.Counters()
		b.send(datagram(9, cameraAddr, payload(4, 300))) // behind it in the same tunnel
		require.Equal(t, string(payload(4, 300)), ofB.next())
		ofA.nothing()
		after := l.relay.Counters()
		require.Equal(t, before.Groups["g_0"], after.Groups["g_0"])
		require.Zero(t, after.Strangers)
	})

	t.Run("a key that isn't a peer's", func(t *testing.T) {
		require.NoError(t, l.tunnel.Apply([]tunnel.Peer{{Key: a.key.Public(), Address: a.inside}}))
		b.send(datagram(10, cameraAddr, payload(5, 300)))
		a.send(datagram(10, cameraAddr, payload(6, 300)))
		require.Equal(t, string(payload(6, 300)), ofA.next())
		ofB.nothing()
		require.Error(t, l.tunnel.Apply([]tunnel.Peer{{Key: a.key.Public(), Address: a.inside}, {Key: a.key.Public(), Address: b.inside}}))
		require.Error(t, l.tunnel.Apply([]tunnel.Peer{{Key: a.key.Public(), Address: a.inside}, {Key: b.key.Public(), Address: a.inside}}))
	})

	t.Run("nothing but the tunnel's own protocol comes out of it", func(t *testing.T) {
		server := l.listenTCP6("[" + relayInside.String() + "]:8080")
		var err error
		a.gateway.Do(func() {
			_, err = (&net.Dialer{Timeout: 300 * time.Millisecond}).Dial("tcp6", "["+relayInside.String()+"]:8080")
		})
		require.Error(t, err)
		_ = server.Close()
	})
}

// listenTCP6 listens in the relay's namespace, which is the test's own.
func (l *lab) listenTCP6(at string) net.Listener {
	l.t.Helper()
	server, err := net.Listen("tcp6", at)
	require.NoError(l.t, err)
	l.t.Cleanup(func() { server.Close() })
	return server
}

// sendInside writes an IPv4 packet to the tunnel from a source address of one's choice.
func (h *home) sendInside(from netip.Addr, packet []byte) {
	h.l.t.Helper()
	var err error
	h.gateway.Do(func() {
		var fd int
		if fd, err = unix.Socket(unix.AF_INET6, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_IPIP); err != nil {
			return
		}
		defer unix.Close(fd)
		err = errors.Join(unix.BindToDevice(fd, "gchome"), unix.Bind(fd, &unix.SockaddrInet6{Addr: from.As16()}),
			unix.Sendto(fd, packet, 0, &unix.SockaddrInet6{Addr: relayInside.As16()}))
	})
	require.NoError(h.l.t, err)
}

func TestRelayResumes(t *testing.T) {
	t.Parallel()
	netlab.Isolated(t, resumes)
}

func resumes(t *testing.T) {
	l := newLab(t, 1)
	h := l.homes[0]
	r := l.receiver(netlab.Upload)
	groups := map[*home]*table.Snapshot{h: h.groups(netlab.Upload)}
	l.apply(groups)
	n := 0
	arrives := func(what string) {
		t.Helper()
		h.until(what, func() bool {
			n++
			h.send(datagram(uint16(n), cameraAddr, payload(n, 200)))
			return r.tryNext() == string(payload(n, 200))
		})
	}
	arrives("the first datagram")

	t.Run("when a NAT gives the gateway another address", func(t *testing.T) {
		h.gateway.Run("ip", "addr", "add", "198.18.1.5/30", "dev", "wan0")
		l.internet.Address("home0", "198.18.1.6/30")
		h.gateway.Run("ip", "addr", "del", "198.18.1.1/30", "dev", "wan0")
		h.gateway.Run("ip", "route", "replace", "default", "via", "198.18.1.6")
		arrives("a datagram from the new address")
		l.until("the relay knows it", func() bool {
			all, err := l.tunnel.Status()
			require.NoError(t, err)
			return all[h.key.Public()].Endpoint.Addr() == netip.MustParseAddr("198.18.1.5")
		})
	})

	t.Run("when the relay starts again and knows where its peers were", func(t *testing.T) {
		status, err := l.tunnel.Status()
		require.NoError(t, err)
		require.NoError(t, l.relay.Close())
		require.NoError(t, l.tunnel.Close())
		closed := time.Now()
		l.startRelay()
		require.NoError(t, l.tunnel.Apply([]tunnel.Peer{{Key: h.key.Public(), Address: h.inside, Endpoint: status[h.key.Public()].Endpoint}}))
		l.apply(groups)
		arrives("a datagram through the new relay")
		require.True(t, l.spokeFirst(closed), "the relay waited for the gateway to notice")
	})
}
