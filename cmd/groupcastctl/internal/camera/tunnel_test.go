package camera

import (
	"bytes"
	"net/netip"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/groupcast/groupcast/gateway-agent/packet"
)

// TestTunnelledDatagram: what the camera makes itself is what packet understands, and a checker of checksums (RFC 1071 §1) agrees.
func TestTunnelledDatagram(t *testing.T) {
	from, to := netip.MustParseAddrPort("192.168.8.5:40000"), netip.MustParseAddrPort("198.18.0.230:5004")
	for _, size := range []int{0, 1, 1316, 4001, 1<<16 - 1 - 36} {
		for _, option := range []bool{true, false} {
			payload := bytes.Repeat([]byte{0xa7}, size)
			whole, err := datagram(from, to, 7, option, payload)
			require.NoError(t, err)
			p, err := packet.Parse(whole)
			require.NoError(t, err)
			want := packet.Datagram{Source: from, Destination: to, TTL: 64}
			header := 20
			if option {
				want.StreamID, header = from.Addr(), 28
			}
			require.Equal(t, want, p.Datagram)
			require.Equal(t, payload, append([]byte{}, whole[header+8:]...))
			require.Zero(t, ^fold(sum(whole[:header], 0)))
			require.Zero(t, ^fold(sum(whole[header:], sum(whole[12:20], 17+uint32(8+size)))))
		}
	}
	_, err := datagram(from, to, 7, true, make([]byte, 1<<16-36))
	require.Error(t, err)
}
