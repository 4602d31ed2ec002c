package stunport_test

import (
	"context"
	"encoding/hex"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/pion/stun/v3"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"

	"github.com/groupcast/groupcast/server/stunport"
)

func request(t testing.TB, setters ...stun.Setter) []byte {
	t.Helper()
	m, err := stun.Build(append([]stun.Setter{stun.TransactionID, stun.BindingRequest}, setters...)...)
	require.NoError(t, err)
	return m.Raw
}

var (
	v4 = netip.MustParseAddrPort("192.0.2.1:32853")
	v6 = netip.MustParseAddrPort("[2001:db8:1234:5678:11:2233:4455:6677]:32853")
)

// TestAnswer: a plain request learns where it came from; whatever else is silence.
func TestAnswer(t *testing.T) {
	padded := request(t, stun.NewSoftware("gateway-agent 1.0 ..."))
	for _, from := range []netip.AddrPort{v4, v6} {
		answer := stunport.Answer(nil, padded, from)
		require.LessOrEqual(t, len(answer), len(padded))
		m := &stun.Message{Raw: answer}
		require.NoError(t, m.Decode())
		require.Equal(t, stun.BindingSuccess, m.Type)
		require.Equal(t, padded[8:20], m.TransactionID[:])
		var at stun.XORMappedAddress
		require.NoError(t, at.GetFrom(m))
		require.Equal(t, from.String(), at.String())
	}
	require.NotEmpty(t, stunport.Answer(nil, request(t, stun.NewSoftware("1234"), stun.Fingerprint), v4), "with a fingerprint")
	broken := request(t, stun.NewSoftware("1234"), stun.Fingerprint)
	broken[len(broken)-1] ^= 1
	for name, datagram := range map[string][]byte{
		"nothing": {}, "a bare request, smaller than its answer": request(t), "media": append([]byte{0x80, 96}, make([]byte, 1200)...),
		"an answer": stunport.Answer(nil, padded, v4), "an indication": indication(t),
		"credentials": request(t, stun.NewUsername("gw:x"), stun.NewShortTermIntegrity("x"), stun.Fingerprint), "a broken fingerprint": broken,
		"a length that is wrong": append(slices.Clip(padded), 0, 0, 0, 0), "too much": request(t, stun.NewSoftware(strings.Repeat("x", 600))),
		"cut": padded[:len(padded)-4],
	} {
		require.Empty(t, stunport.Answer(nil, datagram, v4), name)
	}
	require.Empty(t, stunport.Answer(nil, request(t, stun.NewSoftware("12345678")), v6), "large enough for IPv4 only")
}

func indication(t testing.TB) []byte {
	m, err := stun.Build(stun.TransactionID, stun.NewType(stun.MethodBinding, stun.ClassIndication), stun.NewSoftware("gateway-agent 1.0 ..."))
	require.NoError(t, err)
	return m.Raw
}

// TestVectors reads the addresses of RFC 5769's sample responses, whose attributes have to be those that we send.
func TestVectors(t *testing.T) {
	for _, c := range []struct{ response, from string }{
		{"0101003c2112a442b7e7a701bc34d686fa87dfae8022000b7465737420766563746f7220002000080001a147e112a643", v4.String()},
		{"010100482112a442b7e7a701bc34d686fa87dfae8022000b7465737420766563746f7220002000140002a1470113a9faa5d3f179bc25f4b5bed2b9d9", v6.String()},
	} {
		vector, err := hex.DecodeString(c.response)
		require.NoError(t, err)
		var id [stun.TransactionIDSize]byte
		copy(id[:], vector[8:20])
		asked := request(t, stun.NewTransactionIDSetter(id), stun.NewSoftware("gateway-agent 1.0 ..."))
		answer := stunport.Answer(nil, asked, netip.MustParseAddrPort(c.from))
		require.Equal(t, hex.EncodeToString(vector[36:]), hex.EncodeToString(answer[20:]), "XOR-MAPPED-ADDRESS")
	}
}

// TestServe asks over a real socket: more often than one network may, it stays silent, and it ends with its context.
func TestServe(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	conn, err := stunport.Listen(ctx, "127.0.0.1:0")
	require.NoError(t, err)
	now := time.Now()
	s, err := stunport.New(func() time.Time { return now }, slog.New(slog.DiscardHandler), prometheus.NewRegistry())
	require.NoError(t, err)
	done := make(chan struct{})
	go func() { defer close(done); s.Serve(ctx, conn) }()
	client, err := net.Dial("udp", conn.LocalAddr().String())
	require.NoError(t, err)
	defer client.Close()
	asked, buffer := request(t, stun.NewSoftware("gateway-agent 1.0 ...")), make([]byte, 100)
	for range 6000 {
		_, err = client.Write([]byte("not STUN"))
		require.NoError(t, err)
		_, err = client.Write(asked)
		require.NoError(t, err)
		n, err := client.Read(buffer)
		require.NoError(t, err)
		m := &stun.Message{Raw: buffer[:n]}
		require.NoError(t, m.Decode())
		var at stun.XORMappedAddress
		require.NoError(t, at.GetFrom(m))
		require.Equal(t, client.LocalAddr().String(), at.String())
	}
	_, err = client.Write(asked)
	require.NoError(t, err)
	require.NoError(t, client.SetReadDeadline(time.Now().Add(100*time.Millisecond)))
	_, err = client.Read(buffer)
	require.ErrorIs(t, err, os.ErrDeadlineExceeded, "one too many")
	cancel()
	<-done
}

// FuzzAnswer: whatever comes, what is sent is a Binding success for it, and never larger.
func FuzzAnswer(f *testing.F) {
	f.Add(request(f, stun.NewSoftware("gateway-agent 1.0 ...")), true)
	f.Add(request(f, stun.NewUsername("gw:x"), stun.NewShortTermIntegrity("x"), stun.Fingerprint), false)
	f.Add(request(f), true)
	f.Fuzz(func(t *testing.T, datagram []byte, four bool) {
		from := v6
		if four {
			from = v4
		}
		before := string(datagram)
		answer := stunport.Answer(nil, datagram, from)
		require.Equal(t, before, string(datagram), "what came is left alone")
		if len(answer) == 0 {
			return
		}
		require.LessOrEqual(t, len(answer), len(datagram))
		m := &stun.Message{Raw: answer}
		require.NoError(t, m.Decode())
		require.Equal(t, stun.BindingSuccess, m.Type)
		require.Equal(t, datagram[4:20], answer[4:20])
		require.Len(t, m.Attributes, 1)
	})
}
