package stunfilter_test

import (
	"net"
	"net/netip"
	"os"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/groupcast/groupcast/receiver/consentcheck"
	"github.com/groupcast/groupcast/receiver/stunfilter"
)

// A raw socket sees the STUN that comes to its port, and nothing else, over IPv4 and IPv6. What a UDP socket sees is shown where ports are reserved.
func TestOnlySTUNToThePortIsSeen(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("a raw socket needs root")
	}
	for network, host := range map[string]string{"ip4:udp": "127.201.8.1", "ip6:udp": "::1"} {
		t.Run(network, func(t *testing.T) {
			addr := netip.MustParseAddr(host)
			port, other := listen(t, addr), listen(t, addr)
			raw, err := net.ListenIP(network, &net.IPAddr{IP: addr.AsSlice()})
			require.NoError(t, err)
			defer raw.Close()
			control, err := raw.SyscallConn()
			require.NoError(t, err)
			require.NoError(t, control.Control(func(fd uintptr) { err = stunfilter.OnRaw(int(fd), port.Port(), addr.Is4()) }))
			require.NoError(t, err)

			check, _ := consentcheck.NewQuestion()
			media, noCookie := append([]byte{}, check...), append([]byte{}, check...)
			media[0] = 0x80
			noCookie[7]++
			sender, err := net.ListenUDP("udp", &net.UDPAddr{IP: addr.AsSlice()})
			require.NoError(t, err)
			defer sender.Close()
			send := func(b []byte, to netip.AddrPort) {
				_, err := sender.WriteToUDPAddrPort(b, to)
				require.NoError(t, err)
			}
			send(check, other)
			for _, b := range [][]byte{media, noCookie, check[:7], nil, check} {
				send(b, port)
			}
			b := make([]byte, 1500)
			require.NoError(t, raw.SetReadDeadline(time.Now().Add(time.Minute)))
			n, _, err := raw.ReadFromIP(b)
			require.NoError(t, err)
			assert.Equal(t, check, b[8:n], "behind the UDP header")
			require.NoError(t, raw.SetReadDeadline(time.Now().Add(10*time.Millisecond)))
			_, _, err = raw.ReadFromIP(b)
			assert.ErrorIs(t, err, os.ErrDeadlineExceeded, "the one alone")
		})
	}
}

func listen(t *testing.T, addr netip.Addr) netip.AddrPort {
	conn, err := net.ListenUDP("udp", &net.UDPAddr{IP: addr.AsSlice()})
	require.NoError(t, err)
	t.Cleanup(func() { conn.Close() })
	return conn.LocalAddr().(*net.UDPAddr).AddrPort()
}
