package relay

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/groupcast/groupcast/e2e/netlab"
	"github.com/groupcast/groupcast/gateway-agent/duplicator"
	"github.com/groupcast/groupcast/gateway-agent/duplicator/ebpf"
	"github.com/groupcast/groupcast/gateway-agent/packet"
	"github.com/groupcast/groupcast/gateway-agent/table"
	"github.com/groupcast/groupcast/gateway-agent/tunnel"
)

// reservedPort is the one that copies of a home leave from.
func reservedPort(h *home) uint16 { return uint16(40000 + h.n) }

// backends are those of a relay. What a relay does is the same with each.
var backends = map[string]func(c duplicator.Config, inside duplicator.Inside) (duplicator.Network, error){
	"socket": func(c duplicator.Config, inside duplicator.Inside) (duplicator.Network, error) {
		return duplicator.OpenRelay(c, inside)
	},
	"ebpf": func(c duplicator.Config, inside duplicator.Inside) (duplicator.Network, error) {
		return ebpf.OpenRelay(ebpf.Config{Config: c}, inside)
	},
}

func withEachBackend(t *testing.T, test func(t *testing.T, backend string)) {
	for name := range backends {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			netlab.Isolated(t, func(t *testing.T) { test(t, name) })
		})
	}
}

// copying is a lab whose relay has that backend.
type copying struct {
	*lab
	kernel  bool
	network duplicator.Network
	wire    *netlab.Capture // what leaves the relay
}

func newCopying(t *testing.T, backend string, homes int) *copying {
	t.Helper()
	l := &copying{lab: newNetwork(t, netlab.Current(t, "relay"), homes), kernel: backend == "ebpf"}
	l.relayNS.Do(func() {
		var err error
		l.tunnel, err = tunnel.Open(tunnel.Config{Name: "gcrelay", Key: l.relayKey, Port: tunnelPort, Address: relayInside, Log: l.log()})
		require.NoError(t, err)
		l.network, err = backends[backend](duplicator.Config{Uplink: netip.MustParseAddr(relayAddr), Log: l.log()}, l.tunnel)
		require.NoError(t, err)
	})
	stop := sync.OnceFunc(func() {
		l.relayNS.Do(func() {
			_ = l.network.Close()
			_ = l.tunnel.Close()
		})
	})
	t.Cleanup(stop)
	var peers []tunnel.Peer
	for _, h := range l.homes {
		peers = append(peers, tunnel.Peer{Key: h.key.Public(), Address: h.inside})
	}
	require.NoError(t, l.tunnel.Apply(peers))
	for _, h := range l.homes {
		h.start()
	}
	l.wire = l.internet.Capture("relay0")
	return l
}

// groups is a home's table whose camera has a reserved port, as agents have it.
func (l *copying) groups(h *home, to ...string) *table.Snapshot {
	s := h.groups(to...)
	for _, g := range s.Groups {
		g.Sources[0].Port = reservedPort(h)
	}
	return s
}

func (l *copying) apply(snapshots map[*home]*table.Snapshot) {
	l.t.Helper()
	all := map[netip.Addr]*table.Snapshot{}
	for h, s := range snapshots {
		all[h.inside] = s
		require.NoError(l.t, h.forward.Apply(s, relayInside))
	}
	l.applyRelay(all)
}

// applyRelay leaves the gateways as they are.
func (l *copying) applyRelay(all map[netip.Addr]*table.Snapshot) {
	l.t.Helper()
	var err error
	l.relayNS.Do(func() { err = l.network.Apply(all) })
	require.NoError(l.t, err)
}

// inKernel fails unless the kernel serves so many groups, where there is such a backend.
func (l *copying) inKernel(n int) {
	l.t.Helper()
	if l.kernel {
		require.Equal(l.t, n, l.network.(interface{ Kernel() int }).Kernel(), "groups that the kernel serves")
	}
}

// copies are the UDP datagrams that left the relay for a receiver's port.
func (l *copying) copies() (all [][]byte) {
	for _, f := range l.wire.Frames() {
		if p := f.IPv4(); !f.Outgoing && p != nil && p[9] == 17 && binary.BigEndian.Uint16(p[int(p[0]&15)*4+2:]) == mediaPort {
			all = append(all, p)
		}
	}
	return all
}

func TestRelayBackendsCopyAsPackagePacketSays(t *testing.T) {
	withEachBackend(t, func(t *testing.T, backend string) {
		l := newCopying(t, backend, 1)
		h := l.homes[0]
		to := []string{netlab.Upload, netlab.Thumbnail, netlab.Phone}
		var receivers []*receiver
		for _, a := range to {
			receivers = append(receivers, l.receiver(a))
		}
		l.relayNS.Run("ip", "neigh", "flush", "dev", "wan0") // the first copies are for a neighbour that isn't known
		l.apply(map[*home]*table.Snapshot{h: l.groups(h, to...)})
		l.inKernel(1)
		const many = 40
		for i := range many {
			h.send(datagram(uint16(i+1), cameraAddr, payload(i, 100+i)))
			for _, r := range receivers {
				require.Equal(t, string(payload(i, 100+i)), r.next())
			}
		}
		l.until("all copies are on the wire", func() bool { return len(l.copies()) >= 3*many })
		require.Len(t, l.copies(), 3*many)
		for i, p := range l.copies() {
			require.NoError(t, netlab.VerifyIPv4(p))
			assert.EqualValues(t, 0x45, p[0], "the option is taken off")
			assert.EqualValues(t, 63, p[8], "TTL")
			assert.Equal(t, relayAddr, netip.AddrFrom4([4]byte(p[12:])).String())
			assert.Equal(t, reservedPort(h), binary.BigEndian.Uint16(p[20:]))
			if l.kernel {
				assert.EqualValues(t, i/3+1, binary.BigEndian.Uint16(p[4:]), "the kernel keeps the identification: it was the kernel")
			}
		}
		c := l.network.Counters()
		assert.EqualValues(t, many, c.Groups["g_0"].Received)
		assert.EqualValues(t, many, c.Destinations["r_0_1"].Packets)

		t.Run("what does not fit into the tunnel, and fragments", func(t *testing.T) {
			large, fragmented := payload(50, 1440), payload(51, 4000)
			h.send(datagram(100, cameraAddr, large))
			h.send(fragments(datagram(101, cameraAddr, fragmented))...)
			for _, r := range receivers {
				require.Equal(t, string(large), r.next())
				require.Equal(t, string(fragmented), r.next())
				r.tryNext()
			}
			h.send(datagram(102, cameraAddr, payload(52, 70)))
			for _, r := range receivers {
				require.Equal(t, string(payload(52, 70)), r.next(), "and nothing twice")
			}
			l.until("the last copies are on the wire", func() bool {
				last := 0
				for _, p := range l.copies() {
					if bytes.HasSuffix(p, payload(52, 70)) {
						last++
					}
				}
				return last == len(receivers)
			})
			for _, p := range l.copies() {
				if binary.BigEndian.Uint16(p[6:])&0x1fff == 0 {
					assert.Equal(t, reservedPort(h), binary.BigEndian.Uint16(p[20:]), "both paths' copies come from one port")
				}
			}
		})

		t.Run("what is not to be copied is counted", func(t *testing.T) {
			before := len(l.copies())
			other := netip.MustParseAddr("172.16.0.6")
			for _, p := range [][]byte{
				datagram(1, other, payload(1, 90)), // another's stream id
				ofSource(datagram(2, other, payload(2, 90)), other),
				withoutOption(datagram(3, cameraAddr, payload(3, 90))),
				withTTL(datagram(4, cameraAddr, payload(4, 90)), 1),
			} {
				h.sendInside(h.inside, p)
			}
			drops := func() map[string]uint64 { return l.network.Counters().Groups["g_0"].Drops }
			for _, reason := range []packet.Reason{packet.Spoof, packet.Unregistered, packet.Unflagged, packet.TTL} {
				l.until(reason.String(), func() bool { return drops()[reason.String()] == 1 })
			}
			h.send(datagram(5, cameraAddr, payload(5, 90)))
			for _, r := range receivers {
				require.Equal(t, string(payload(5, 90)), r.next())
				r.nothing()
			}
			l.until("three copies more", func() bool { return len(l.copies()) >= before+3 })
			require.Len(t, l.copies(), before+3)
		})
	})
}

func rewritten(p []byte, change func(p []byte)) []byte {
	change(p)
	header := int(p[0]&15) * 4
	p[10], p[11] = 0, 0
	binary.BigEndian.PutUint16(p[10:], ^sum(p[:header]))
	return p
}

func ofSource(p []byte, from netip.Addr) []byte {
	return rewritten(p, func(p []byte) { copy(p[12:16], from.AsSlice()); copy(p[34:36], []byte{0, 0}) })
}

func withoutOption(p []byte) []byte {
	return rewritten(p, func(p []byte) { copy(p[20:28], []byte{1, 1, 1, 1, 1, 1, 1, 0}) })
}

func withTTL(p []byte, ttl byte) []byte { return rewritten(p, func(p []byte) { p[8] = ttl }) }

// Whoever isn't admitted never gets one packet: each receiver has a home, and each payload says whose it is.
func TestRelayBackendsKeepHomesApart(t *testing.T) {
	withEachBackend(t, func(t *testing.T, backend string) {
		l := newCopying(t, backend, 3)
		a, b, stranger := l.homes[0], l.homes[1], l.homes[2] // the stranger has a tunnel and no table
		ofA, ofB := l.receiver(netlab.Upload), l.receiver(netlab.Thumbnail)
		only := func() {
			t.Helper()
			l.apply(map[*home]*table.Snapshot{a: l.groups(a, netlab.Upload), b: l.groups(b, netlab.Thumbnail)})
		}
		only()
		require.NoError(t, stranger.forward.Apply(l.groups(stranger, netlab.Upload), relayInside))
		l.inKernel(2)
		stranger.gateway.Run("ip", "addr", "add", b.inside.String()+"/128", "dev", "gchome", "nodad")
		for i := range 20 {
			a.send(datagram(uint16(i), cameraAddr, fmt.Appendf(nil, "a %04d", i)))
			b.send(datagram(uint16(i), cameraAddr, fmt.Appendf(nil, "b %04d", i)))
			stranger.send(datagram(uint16(i), cameraAddr, fmt.Appendf(nil, "stranger %04d", i)))
			// Another home's address around it is not the key's.
			stranger.sendInside(b.inside, datagram(uint16(i), cameraAddr, fmt.Appendf(nil, "stranger as b %04d", i)))
		}
		for i := range 20 {
			require.Equal(t, fmt.Sprintf("a %04d", i), ofA.next())
			require.Equal(t, fmt.Sprintf("b %04d", i), ofB.next())
		}
		l.until("the stranger is counted", func() bool { return l.network.Counters().Strangers >= 20 })

		// From when Apply returns, nothing goes by the table before: also not what comes a moment later.
		for i := range 30 {
			to := [2]string{netlab.Upload, netlab.Thumbnail}
			want, other := ofA, ofB
			if i%2 == 1 {
				to[0], to[1], want, other = to[1], to[0], ofB, ofA
			}
			l.apply(map[*home]*table.Snapshot{a: l.groups(a, to[0])})
			a.send(datagram(uint16(i), cameraAddr, fmt.Appendf(nil, "swap %04d", i)))
			b.send(datagram(uint16(i), cameraAddr, fmt.Appendf(nil, "b has left %04d", i)))
			require.Equal(t, fmt.Sprintf("swap %04d", i), want.next())
			other.nothing()
		}
		l.applyRelay(nil)
		l.inKernel(0)
		a.send(datagram(77, cameraAddr, []byte("nobody's")))
		strangers := l.network.Counters().Strangers
		a.send(datagram(78, cameraAddr, []byte("nobody's either")))
		l.until("counted", func() bool { return l.network.Counters().Strangers > strangers })
		only()
		a.send(datagram(79, cameraAddr, []byte("again")))
		require.Equal(t, "again", ofA.next())
		ofB.nothing()

		// One home at two addresses is copied from both, and what leaves takes nothing from what stays.
		same := l.groups(a, netlab.Upload)
		require.NoError(t, b.forward.Apply(same, relayInside))
		l.applyRelay(map[netip.Addr]*table.Snapshot{a.inside: same, b.inside: same})
		l.inKernel(2)
		for i, h := range []*home{a, b} {
			h.send(datagram(80, cameraAddr, fmt.Appendf(nil, "twice %d", i)))
			require.Equal(t, fmt.Sprintf("twice %d", i), ofA.next())
		}
		l.applyRelay(map[netip.Addr]*table.Snapshot{b.inside: same})
		l.inKernel(1)
		a.send(datagram(81, cameraAddr, []byte("nobody's any more")))
		b.send(datagram(82, cameraAddr, []byte("the other's")))
		require.Equal(t, "the other's", ofA.next())
		ofA.nothing()
		for _, p := range l.copies() {
			assert.NotContains(t, string(p[28:]), "nobody's")
			assert.NotContains(t, string(p[28:]), "stranger")
			assert.NotContains(t, string(p[28:]), "b has left")
			assert.False(t, strings.HasPrefix(string(p[28:]), "b") && [4]byte(p[16:20]) == netip.MustParseAddr(netlab.Upload).As4(), "another home's")
		}
	})
}

// From when Apply returns nothing goes by the table before, however much is on its way.
func TestRelayBackendsSwapUnderLoad(t *testing.T) {
	withEachBackend(t, func(t *testing.T, backend string) {
		l := newCopying(t, backend, 1)
		h := l.homes[0]
		l.receiver(netlab.Upload)
		l.receiver(netlab.Thumbnail)
		tables := []*table.Snapshot{l.groups(h, netlab.Upload), l.groups(h, netlab.Thumbnail)}
		tables[1].Groups[groupIP].Destinations[0].ID = "r_other"
		packets := func(id string) uint64 { return l.network.Counters().Destinations[id].Packets }
		l.apply(map[*home]*table.Snapshot{h: tables[1]})

		quit, done := make(chan struct{}), make(chan struct{})
		go func() {
			defer close(done)
			var some [][]byte
			for i := range 32 {
				some = append(some, datagram(uint16(i), cameraAddr, payload(i, 200)))
			}
			for {
				select {
				case <-quit:
					return
				default:
					h.send(some...)
				}
			}
		}()
		stop := sync.OnceFunc(func() { close(quit); <-done })
		defer stop()
		for i := range 30 {
			gone, here := "r_other", "r_0_0"
			if i%2 == 1 {
				gone, here = here, gone
			}
			l.applyRelay(map[netip.Addr]*table.Snapshot{h.inside: tables[i%2]})
			left, before := packets(gone), packets(here)
			l.until("copies go to the new one", func() bool { return packets(here) > before })
			require.Equal(t, left, packets(gone), "%s got a copy after Apply %d had returned", gone, i)
		}
		stop()
	})
}

// A table that is over copies nothing, though nobody takes it away; nor does a consent that is.
func TestRelayBackendsGoSilentAlone(t *testing.T) {
	withEachBackend(t, func(t *testing.T, backend string) {
		l := newCopying(t, backend, 2)
		short, long := l.homes[0], l.homes[1]
		ofShort, ofLong, asked := l.receiver(netlab.Upload), l.receiver(netlab.Thumbnail), l.receiver(netlab.Phone)
		n := 0
		send := func() {
			n++
			short.send(datagram(uint16(n), cameraAddr, fmt.Appendf(nil, "%04d", n)))
			long.send(datagram(uint16(n), cameraAddr, fmt.Appendf(nil, "%04d", n)))
		}
		tables := func() (ends, consent *table.Snapshot) {
			return l.groups(short, netlab.Upload), l.groups(long, netlab.Thumbnail, netlab.Phone)
		}
		ends, consent := tables()
		l.apply(map[*home]*table.Snapshot{short: ends, long: consent})
		l.inKernel(2)
		send()
		require.Equal(t, "0001", ofShort.next())
		require.Equal(t, "0001", asked.next())
		ends, consent = tables()
		ends.ValidUntil = time.Now().Add(time.Second)
		consent.Groups[groupIP].Destinations[1].ValidUntil = ends.ValidUntil
		l.applyRelay(map[netip.Addr]*table.Snapshot{short.inside: ends, long.inside: consent})
		l.inKernel(2)
		l.until("both are over", func() bool {
			send()
			c := l.network.Counters()
			return c.Groups["g_0"].Drops[packet.Stale.String()] > 0 && c.Destinations["r_1_1"].Drops[duplicator.DropStale] > 0
		})
		ofShort.tryNext()
		asked.tryNext()
		send()
		l.until("who may get it does", func() bool { return ofLong.tryNext() == fmt.Sprintf("%04d", n) })
		ofShort.nothing()
		asked.nothing()
	})
}

// A group of which the kernel can't reach one destination is the sockets', and comes back.
func TestRelayKernelLeavesGroupsToSockets(t *testing.T) {
	t.Parallel()
	netlab.Isolated(t, func(t *testing.T) {
		l := newCopying(t, "ebpf", 1)
		h := l.homes[0]
		r, six := l.receiver(netlab.Upload), l.receiver6("2001:db9::1")
		for i, c := range []struct {
			what   string
			change func(s *table.Snapshot)
			kernel int
			six    bool
		}{
			{what: "all over IPv4", kernel: 1},
			{what: "a destination over IPv6", six: true, change: func(s *table.Snapshot) {
				g := s.Groups[groupIP]
				g.Destinations = append(g.Destinations, table.Destination{ID: "r_six", Addr: netip.MustParseAddr("2001:db9::1")})
			}},
			{what: "no reserved port", change: func(s *table.Snapshot) { s.Groups[groupIP].Sources[0].Port = 0 }},
			{what: "all over IPv4 again", kernel: 1},
			{what: "forty destinations", kernel: 1, change: func(s *table.Snapshot) {
				g := s.Groups[groupIP]
				for i := range 39 {
					g.Destinations = append(g.Destinations, table.Destination{ID: fmt.Sprintf("r_more%d", i), Addr: g.Destinations[0].Addr, Port: uint16(6000 + i)})
				}
				for i := range 39 {
					g.Destinations[i+1].Addr = netip.AddrFrom4([4]byte{198, 51, 99, byte(i + 1)})
				}
			}},
		} {
			s := l.groups(h, netlab.Upload)
			if c.change != nil {
				c.change(s)
			}
			l.apply(map[*home]*table.Snapshot{h: s})
			l.inKernel(c.kernel)
			text := fmt.Sprintf("%d %s", i, c.what)
			h.send(datagram(uint16(i+1), cameraAddr, []byte(text)))
			require.Equal(t, text, r.next(), c.what)
			r.nothing()
			if c.six {
				require.Equal(t, text, six.next(), c.what)
			} else {
				six.nothing()
			}
		}
		l.until("forty destinations got one", func() bool {
			return l.network.Counters().Destinations["r_more38"].Packets == 1
		})
	})
}

// receiver6 is a destination at an IPv6 address of its own.
func (l *lab) receiver6(address string) *receiver {
	l.t.Helper()
	l.internet.Run("ip", "addr", "add", address+"/128", "dev", "lo", "nodad")
	l.internet.Run("ip", "addr", "add", "2001:db9:1::2/64", "dev", "relay0", "nodad")
	l.relayNS.Run("ip", "addr", "add", "2001:db9:1::1/64", "dev", "wan0", "nodad")
	l.relayNS.Run("ip", "-6", "route", "add", "default", "via", "2001:db9:1::2")
	return &receiver{t: l.t, conn: l.internet.ListenUDP(fmt.Sprintf("[%s]:%d", address, mediaPort))}
}
