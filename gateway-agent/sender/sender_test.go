package sender

import (
	"log/slog"
	"net"
	"net/netip"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/groupcast/groupcast/gateway-agent/consent"
	"github.com/groupcast/groupcast/receiver/consentcheck"
)

var (
	uplink = netip.MustParseAddr("127.0.0.1")
	one    = consent.Sender{Group: "g", Source: "one"}
	two    = consent.Sender{Group: "g", Source: "two"}
)

func TestConsentPortsStayOverRestarts(t *testing.T) {
	file := filepath.Join(t.TempDir(), "ports")
	first := Open(uplink, file, nil, slog.Default())
	require.NoError(t, first.Keep([]consent.Sender{one, two}))
	ports := first.Of()
	require.Len(t, ports, 2)
	assert.NotEqual(t, ports["one"], ports["two"])

	// As long as it has them nobody else gets them by asking for a shared one without being told.
	_, err := net.ListenUDP("udp4", net.UDPAddrFromAddrPort(netip.AddrPortFrom(uplink, ports["one"])))
	require.Error(t, err)
	require.NoError(t, first.Close())

	second := Open(uplink, file, nil, slog.Default())
	defer second.Close()
	require.NoError(t, second.Keep([]consent.Sender{two, one}))
	assert.Equal(t, ports, second.Of())
	require.NoError(t, second.Keep([]consent.Sender{two}))
	assert.Equal(t, map[string]uint16{"two": ports["two"]}, second.Of())
	require.NoError(t, second.Keep([]consent.Sender{two}), "nothing changes")
}

// Where nothing leaves over IPv6 there is no socket for it, until something does.
func TestConsentPortsOverIPv4Only(t *testing.T) {
	p := Open(uplink, filepath.Join(t.TempDir(), "ports"), func(uint16, netip.AddrPort, []byte) {}, slog.Default())
	defer p.Close()
	p.Only4(true)
	require.NoError(t, p.Keep([]consent.Sender{one}))
	assert.False(t, p.IPv6(one))
	port := p.Port(one)
	p.Only4(false)
	require.NoError(t, p.Keep([]consent.Sender{one}))
	assert.Equal(t, port, p.Port(one))
	if !p.IPv6(one) {
		_, err := net.ListenUDP("udp6", &net.UDPAddr{Port: int(port)})
		assert.Error(t, err, "it isn't there though nothing keeps it from being there")
	}
}

func TestConsentATakenPortIsReplaced(t *testing.T) {
	file := filepath.Join(t.TempDir(), "ports")
	first := Open(uplink, file, nil, slog.Default())
	require.NoError(t, first.Keep([]consent.Sender{one}))
	port := first.Of()["one"]
	require.NoError(t, first.Close())
	taken, err := net.ListenUDP("udp4", net.UDPAddrFromAddrPort(netip.AddrPortFrom(uplink, port)))
	require.NoError(t, err)
	defer taken.Close()
	second := Open(uplink, file, nil, slog.Default())
	defer second.Close()
	require.NoError(t, second.Keep([]consent.Sender{one}))
	assert.NotZero(t, second.Of()["one"])
	assert.NotEqual(t, port, second.Of()["one"])
}

// A firewall or a NAT that forwards can name the ports beforehand.
func TestConsentPortsWithinARange(t *testing.T) {
	file := filepath.Join(t.TempDir(), "ports")
	first := Open(uplink, file, nil, slog.Default())
	require.NoError(t, first.Keep([]consent.Sender{one}))
	before := first.Of()["one"]
	require.NoError(t, first.Close())

	// Three neighbours of which somebody has the first.
	var taken *net.UDPConn
	var within Range
	for port := uint16(20000); taken == nil; port += 3 {
		conn, err := net.ListenUDP("udp4", net.UDPAddrFromAddrPort(netip.AddrPortFrom(uplink, port)))
		if err == nil {
			taken, within = conn, Range{port, port + 2}
		}
	}
	defer taken.Close()
	p := Open(uplink, file, nil, slog.Default())
	defer p.Close()
	p.Within(within)
	require.NoError(t, p.Keep([]consent.Sender{one, two}))
	ports := p.Of()
	assert.NotEqual(t, before, ports["one"], "not the old one outside")
	for _, port := range ports {
		assert.True(t, within.First < port && port <= within.Last, "%d", port)
	}
	err := p.Keep([]consent.Sender{one, two, {Group: "g", Source: "three"}})
	assert.ErrorContains(t, err, "source three")
	assert.ErrorContains(t, err, "sender-ports")
	assert.Equal(t, ports, p.Of(), "the others have theirs")
}

func TestConsentOnlySTUNIsHeard(t *testing.T) {
	type heard struct {
		port uint16
		from netip.AddrPort
		size int
	}
	all := make(chan heard, 10)
	p := Open(uplink, filepath.Join(t.TempDir(), "ports"), func(port uint16, from netip.AddrPort, b []byte) { all <- heard{port, from, len(b)} }, slog.Default())
	defer p.Close()
	require.NoError(t, p.Keep([]consent.Sender{one}))
	port := p.Of()["one"]
	c, err := net.ListenUDP("udp4", net.UDPAddrFromAddrPort(netip.AddrPortFrom(uplink, 0)))
	require.NoError(t, err)
	defer c.Close()
	to, from := netip.AddrPortFrom(uplink, port), c.LocalAddr().(*net.UDPAddr).AddrPort()
	check, _ := consentcheck.NewQuestion()
	rtp := append([]byte{}, check...)
	rtp[0] = 0x80
	noCookie := append([]byte{}, check...)
	noCookie[4]++
	for _, b := range [][]byte{rtp, noCookie, nil, check[:7], make([]byte, 1500), append(append([]byte{}, check...), make([]byte, maxCheck)...), check} {
		_, err := c.WriteToUDPAddrPort(b, to)
		require.NoError(t, err)
	}
	select {
	case h := <-all:
		assert.Equal(t, heard{port, from, len(check)}, h)
	case <-time.After(time.Minute):
		t.Fatal("a check was not heard")
	}
	assert.Empty(t, all)

	p.Send(consent.Packet{Sender: one, To: from, Data: check})
	b := make([]byte, 100)
	require.NoError(t, c.SetReadDeadline(time.Now().Add(time.Minute)))
	n, source, err := c.ReadFromUDPAddrPort(b)
	require.NoError(t, err)
	assert.Equal(t, check, b[:n])
	assert.Equal(t, to, source)
}
