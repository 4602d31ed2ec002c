package receiver_test

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"github.com/vishvananda/netlink"

	"github.com/groupcast/groupcast/e2e/netlab"
	"github.com/groupcast/groupcast/gateway-agent/consent"
	"github.com/groupcast/groupcast/gateway-agent/sender"
	"github.com/groupcast/groupcast/models"
	"github.com/groupcast/groupcast/receiver"
)

// gateway is the agent's half at work: its machine, its reserved port and a camera that never stops.
type gateway struct {
	t     *testing.T
	ports *sender.Ports
	mu    sync.Mutex
	*consent.Machine
}

func newGateway(t *testing.T, ns *netlab.Namespace, uplink string) *gateway {
	t.Helper()
	g := &gateway{t: t, Machine: consent.New(models.PublicHost)}
	type heard struct {
		from     netip.AddrPort
		datagram []byte
	}
	checks := make(chan heard, 100)
	g.ports = sender.Open(netip.MustParseAddr(uplink), filepath.Join(t.TempDir(), "ports"), func(_ uint16, from netip.AddrPort, b []byte) {
		checks <- heard{from, append([]byte{}, b...)}
	}, slog.New(slog.DiscardHandler))
	ns.Do(func() { require.NoError(t, g.ports.Keep([]consent.Sender{camera})) })
	g.Want(time.Now(), []consent.Wanted{{Key: consent.Key{Sender: camera, Destination: "d"}, Credential: secret, Addr: netip.MustParseAddr("71.230.36.1")}})
	ctx, stop := context.WithCancel(context.Background())
	var done sync.WaitGroup
	done.Go(func() {
		media := time.NewTicker(10 * time.Millisecond)
		defer media.Stop()
		for {
			var packets []consent.Packet
			select {
			case <-ctx.Done():
				return
			case c := <-checks:
				g.mu.Lock()
				packets = g.Receive(time.Now(), camera, c.from, c.datagram)
			case <-media.C:
				g.mu.Lock()
				packets, _ = g.Tick(time.Now())
				for _, l := range g.Leases(time.Now()) {
					packets = append(packets, consent.Packet{Sender: camera, To: l.At, Data: []byte("\x80 media")})
				}
			}
			g.mu.Unlock()
			for _, p := range packets {
				g.ports.Send(p)
			}
		}
	})
	t.Cleanup(func() {
		stop()
		done.Wait()
		_ = g.ports.Close()
	})
	return g
}

func (g *gateway) at() netip.AddrPort {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.Leases(time.Now())[consent.Key{Sender: camera, Destination: "d"}].At
}

// watch keeps the consent on a socket and tells when media comes.
func watch(t *testing.T, c *receiver.Consent, conn *net.UDPConn) <-chan struct{} {
	media := make(chan struct{}, 1)
	go c.Keep(t.Context(), conn)
	go func() {
		b := make([]byte, 1500)
		for {
			n, from, err := conn.ReadFromUDPAddrPort(b)
			if errors.Is(err, net.ErrClosed) {
				return
			}
			if err != nil {
				continue // the network's answer to a check
			}
			if reply, check := c.Take(time.Now(), from, b[:n]); check {
				if reply != nil {
					_, _ = conn.WriteToUDPAddrPort(reply, from)
				}
				continue
			}
			select {
			case media <- struct{}{}:
			default:
			}
		}
	}()
	return media
}

func gets(t *testing.T, media <-chan struct{}, what string) {
	t.Helper()
	select { // what came before
	case <-media:
	default:
	}
	select {
	case <-media:
	case <-time.After(soon):
		t.Fatalf("no media %s", what)
	}
}

// A receiver, the gateway or both are behind a NAT of one of two kinds. The NATs are the kernel's, and so is their forgetting.
func TestConsentThroughNATs(t *testing.T) {
	const (
		private = "10.1.0.2"
		outside = "71.230.36.162"
		public  = "96.114.14.1"
	)
	fixed := "table ip nat { chain post { type nat hook postrouting priority srcnat; oifname wan0 udp sport 5004 snat to %OUT%:6000; }; " +
		"chain pre { type nat hook prerouting priority dstnat; iifname wan0 udp dport 6000 dnat to %IN%:5004; }; }"
	for name, test := range map[string]struct {
		receiver string // the rules of its NAT; "": it has none
		gateway  bool   // is behind a NAT that forwards the sender's port
	}{
		"the receiver's doesn't depend on where it sends": {receiver: fixed},
		"the receiver's draws a port for each":            {receiver: "table ip nat { chain post { type nat hook postrouting priority srcnat; oifname wan0 masquerade fully-random; }; }"},
		"the gateway's":                                   {gateway: true},
		"both":                                            {receiver: "table ip nat { chain post { type nat hook postrouting priority srcnat; oifname wan0 masquerade fully-random; }; }", gateway: true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			phone, nat, home, gw := netlab.New(t, "phone"), netlab.New(t, "nat"), netlab.New(t, "home"), netlab.New(t, "gateway")
			netlab.Connect(phone, "lan0", nat, "lan0")
			netlab.Connect(nat, "wan0", home, "wan0")
			netlab.Connect(home, "lan0", gw, "lan0")
			inside, phoneNet := "71.230.37.2", "71.230.37.1"
			if test.receiver != "" {
				inside, phoneNet = private, "10.1.0.1"
			}
			phone.Address("lan0", inside+"/24")
			nat.Address("lan0", phoneNet+"/24")
			nat.Address("wan0", outside+"/24")
			home.Address("wan0", "71.230.36.1/24")
			uplink, place := public, public
			if test.gateway {
				uplink, place = "192.168.5.2", "71.230.36.1"
				home.Address("lan0", "192.168.5.1/24")
				gw.Address("lan0", "192.168.5.2/24")
				gw.Route("0.0.0.0/0", "192.168.5.1")
			} else {
				home.Address("lan0", "96.114.14.2/24")
				gw.Address("lan0", public+"/24")
				gw.Route("0.0.0.0/0", "96.114.14.2")
			}
			phone.Route("0.0.0.0/0", phoneNet)
			nat.Route("0.0.0.0/0", "71.230.36.1")
			home.Route("71.230.37.0/24", outside)
			nat.Sysctl("net.ipv4.ip_forward", "1")
			home.Sysctl("net.ipv4.ip_forward", "1")
			if test.receiver != "" {
				nat.Run("nft", rules(test.receiver, outside, private))
			}
			g := newGateway(t, gw, uplink)
			port := g.ports.Of()["camera"]
			if test.gateway {
				home.Run("nft", rules("table ip nat { chain post { type nat hook postrouting priority srcnat; oifname wan0 masquerade; }; "+
					"chain pre { type nat hook prerouting priority dstnat; iifname wan0 meta l4proto udp dnat to %IN%; }; }", "", uplink))
			}

			conn := phone.ListenUDP(inside + ":5004")
			c := receiver.New(secret)
			media := watch(t, c, conn)
			assert.False(t, g.at().IsValid())
			c.Senders([]netip.AddrPort{netip.AddrPortFrom(netip.MustParseAddr(place), port)})
			gets(t, media, "after consent")
			first := g.at()
			switch {
			case test.receiver == "":
				assert.Equal(t, netip.MustParseAddrPort(inside+":5004"), first)
			case test.receiver == fixed:
				assert.Equal(t, netip.MustParseAddrPort(outside+":6000"), first)
			default:
				assert.Equal(t, outside, first.Addr().String())
			}
			if test.receiver == "" || test.receiver == fixed {
				return
			}
			// The NAT forgets, as one that starts again: the next check gets another port, and that the media.
			nat.Do(func() { require.NoError(t, netlink.ConntrackTableFlush(netlink.ConntrackTable)) })
			require.Eventually(t, func() bool { return g.at() != first }, time.Minute, 10*time.Millisecond, "the gateway finds the new mapping")
			gets(t, media, "after the mapping changed")
		})
	}
}

func rules(text, out, in string) string {
	return strings.NewReplacer("%OUT%", out, "%IN%", in).Replace(text)
}
