//go:build !mipsle

package tunnel

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/groupcast/groupcast/e2e/netlab"
)

const (
	here  = "fd12:3456:789a:1::1"
	also  = "2001:db9::1" // another address of this host
	there = "fd12:3456:789a::1"
)

// The kernel's WireGuard needs it; where the kernel has none it is tried on another interface, which filters alike.
func TestOnlyWhatBelongsIntoTheTunnelGetsOutOfIt(t *testing.T) {
	t.Parallel()
	netlab.Isolated(t, func(t *testing.T) {
		host, peer := netlab.Current(t, "host"), netlab.New(t, "peer")
		netlab.Connect(host, "tunnel0", peer, "peer0")
		host.Address("tunnel0", here+"/48")
		host.Address("lo", also+"/128")
		peer.Address("peer0", there+"/48")
		hosts, err := netlink.LinkByName("tunnel0")
		require.NoError(t, err)
		peer.Do(func() {
			l, err := netlink.LinkByName("peer0")
			require.NoError(t, err)
			for _, a := range []string{here, also} {
				if a == also {
					_, all, _ := net.ParseCIDR(also + "/128")
					require.NoError(t, netlink.RouteAdd(&netlink.Route{LinkIndex: l.Attrs().Index, Dst: all}))
				}
				require.NoError(t, netlink.NeighSet(&netlink.Neigh{
					LinkIndex: l.Attrs().Index, Family: unix.AF_INET6, IP: net.ParseIP(a), State: netlink.NUD_PERMANENT, HardwareAddr: hosts.Attrs().HardwareAddr,
				}))
			}
		})
		// Something that listens at all of the host's addresses, and the datagrams in the tunnel.
		listening, err := net.ListenPacket("udp6", "[::]:7000")
		require.NoError(t, err)
		t.Cleanup(func() { _ = listening.Close() })
		inside := rawSocket(t)
		send := func(to, text string, large int) {
			t.Helper()
			peer.Do(func() {
				c, err := net.Dial("udp6", fmt.Sprintf("[%s]:7000", to))
				require.NoError(t, err)
				_, err = c.Write([]byte(text))
				require.NoError(t, err)
				require.NoError(t, c.Close())
				fd, err := unix.Socket(unix.AF_INET6, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_IPIP)
				require.NoError(t, err)
				payload := append([]byte(text), make([]byte, large)...)
				require.NoError(t, unix.Sendto(fd, payload, 0, &unix.SockaddrInet6{Addr: netip.MustParseAddr(to).As16()}))
				require.NoError(t, unix.Close(fd))
			})
		}
		// heard tells whether it comes soon, whatever came before.
		heard := func(want string) bool {
			b := make([]byte, 1<<16)
			_ = listening.SetReadDeadline(time.Now().Add(200 * time.Millisecond))
			for {
				n, _, err := listening.ReadFrom(b)
				if err != nil || string(b[:n]) == want {
					return err == nil
				}
			}
		}
		// gets sends until it is heard: the kernel takes what comes for an address a moment after the interface is up.
		gets := func(to, text string) {
			t.Helper()
			for end := time.Now().Add(time.Minute); ; {
				send(to, text, 0)
				if heard(text) {
					return
				}
				require.True(t, time.Now().Before(end), "%s is not reached before anything is dropped", to)
			}
		}
		received := func(want string) {
			t.Helper()
			b := make([]byte, 1<<16)
			for {
				n, err := inside.Read(b)
				require.NoError(t, err, want)
				if n >= len(want) && string(b[:len(want)]) == want {
					return
				}
			}
		}

		gets(here, "before")
		received("before")
		gets(also, "elsewhere")
		received("elsewhere")

		require.NoError(t, inward("tunnel0", netip.MustParseAddr(here)))
		send(also, "to another address", 0)
		send(here, "to the tunnel's", 0)
		received("to the tunnel's")
		send(here, "in fragments", 4000)
		received("in fragments")
		assert.False(t, heard("to another address"))
		assert.False(t, heard("to the tunnel's"), "a peer has reached what listens on this host")

		require.NoError(t, inward("tunnel0", netip.MustParseAddr(here)), "what an agent before this one left is replaced")
		require.NoError(t, outward("tunnel0"))
		gets(also, "after")
	})
}

// rawSocket gets IPv4 in IPv6, as the relay's does.
func rawSocket(t *testing.T) *os.File {
	t.Helper()
	fd, err := unix.Socket(unix.AF_INET6, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.IPPROTO_IPIP)
	require.NoError(t, err)
	f := os.NewFile(uintptr(fd), "tunnel")
	t.Cleanup(func() { _ = f.Close() })
	require.NoError(t, f.SetReadDeadline(time.Now().Add(time.Minute)))
	return f
}
