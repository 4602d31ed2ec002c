package receiver_test

import (
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/groupcast/groupcast/gateway-agent/consent"
	"github.com/groupcast/groupcast/models"
	"github.com/groupcast/groupcast/receiver"
)

var (
	secret = models.ConsentCredential{Ufrag: "Yw5Fh2kPq0Za", Password: "8mNbVcXzLkJhGfDsAqWeRt"}
	camera = consent.Sender{Group: "g", Source: "camera"}
)

func machine(addr string, port uint16) *consent.Machine {
	m := consent.New(func(netip.Addr) bool { return true })
	m.Want(time.Now(), []consent.Wanted{{
		Key: consent.Key{Sender: camera, Destination: "d"}, Credential: secret, Addr: netip.MustParseAddr(addr), Port: port,
	}})
	return m
}

// The two halves over an hour of a clock that goes as fast as they are done, with a loss now and then, and a NAT that changes its mapping.
func TestConsentOfAReceiverIsKept(t *testing.T) {
	sender := netip.MustParseAddrPort("203.0.113.1:40512")
	mapped := netip.MustParseAddrPort("71.230.36.162:61022")
	m, c := machine("71.230.36.162", 0), receiver.New(secret)
	start := time.Now()
	c.Senders([]netip.AddrPort{sender})
	draw := rand.New(rand.NewPCG(1, 2))
	reaches := func() bool { return draw.IntN(10) != 0 }
	var toReceiver func(now time.Time, packets []consent.Packet)
	toAgent := func(now time.Time, data []byte) {
		if reaches() {
			toReceiver(now, m.Receive(now, camera, mapped, data))
		}
	}
	toReceiver = func(now time.Time, packets []consent.Packet) {
		for _, p := range packets {
			if p.To != mapped || !reaches() {
				continue // a NAT that knows nothing of it
			}
			reply, check := c.Take(now, sender, p.Data)
			assert.True(t, check)
			if reply != nil {
				toAgent(now, reply)
			}
		}
	}
	gaps := 0
	for now := start; now.Before(start.Add(time.Hour)); now = now.Add(50 * time.Millisecond) {
		since := now.Sub(start)
		if since%(10*time.Minute) == 5*time.Minute {
			mapped = netip.AddrPortFrom(mapped.Addr(), mapped.Port()+1)
		}
		checks, _ := c.Due(now)
		for _, check := range checks {
			require.Equal(t, sender, check.To)
			toAgent(now, check.Data)
		}
		packets, _ := m.Tick(now)
		toReceiver(now, packets)
		if lease := m.Leases(now)[consent.Key{Sender: camera, Destination: "d"}]; since > 5*time.Second && lease.At != mapped {
			gaps++
		}
	}
	assert.Less(t, time.Duration(gaps)*50*time.Millisecond, 6*10*time.Second, "six new mappings, each found with the next checks")
	answering, all := c.Answered(start.Add(time.Hour))
	assert.Equal(t, [2]int{1, 1}, [2]int{answering, all})
	answering, _ = c.Answered(start.Add(time.Hour + receiver.Quiet + time.Minute))
	assert.Zero(t, answering)
}

func TestConsentOthersHearNothing(t *testing.T) {
	c := receiver.New(secret)
	other := receiver.New(models.ConsentCredential{Ufrag: secret.Ufrag, Password: "another"})
	at := netip.MustParseAddrPort("203.0.113.1:40512")
	other.Senders([]netip.AddrPort{at})
	c.Senders([]netip.AddrPort{at})
	for _, of := range []*receiver.Consent{other, c} { // somebody else's, and its own that come back
		checks, _ := of.Due(time.Now())
		require.Len(t, checks, 1)
		reply, check := c.Take(time.Now(), at, checks[0].Data)
		assert.True(t, check)
		assert.Nil(t, reply)
	}
	_, check := c.Take(time.Now(), at, []byte{0x80, 96, 0, 1, 0x21, 0x12, 0xa4, 0x42, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0})
	assert.False(t, check, "media")
}

// A receiver that knows nothing of consent has the port; its consent is kept beside it, and only as long as it is there.
func TestConsentBesideAnotherProgram(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("a raw socket needs root")
	}
	for name, test := range map[string]struct{ media, bound, agent string }{
		"IPv4":                       {"127.201.9.1", "127.201.9.1", "127.201.9.2"},
		"IPv6":                       {"::1", "::1", "::1"},
		"a port at all addresses":    {"127.201.9.3", "::", "127.201.9.2"},
		"one that maps IPv4 to IPv6": {"127.201.9.4", "::ffff:127.201.9.4", "127.201.9.2"},
	} {
		t.Run(name, func(t *testing.T) { besideAnotherProgram(t, test.media, test.bound, test.agent) })
	}
}

// listenAs binds an IPv6 socket, or an IPv4 one, to exactly this address and a free port: net would bind one that maps IPv4 as IPv4.
func listenAs(t *testing.T, address string) *net.UDPConn {
	addr := netip.MustParseAddr(address)
	var to unix.Sockaddr = &unix.SockaddrInet6{Addr: addr.As16()}
	family := unix.AF_INET6
	if addr.Is4() {
		to, family = &unix.SockaddrInet4{Addr: addr.As4()}, unix.AF_INET
	}
	fd, err := unix.Socket(family, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	require.NoError(t, err)
	file := os.NewFile(uintptr(fd), "media")
	defer file.Close()
	require.NoError(t, unix.Bind(fd, to))
	conn, err := net.FilePacketConn(file)
	require.NoError(t, err)
	t.Cleanup(func() { _ = conn.Close() })
	return conn.(*net.UDPConn)
}

func besideAnotherProgram(t *testing.T, address, bound, agentAt string) {
	media := listenAs(t, bound)
	at := netip.AddrPortFrom(netip.MustParseAddr(address), media.LocalAddr().(*net.UDPAddr).AddrPort().Port())
	agent := listenAs(t, agentAt)
	defer agent.Close()
	beside, err := receiver.OpenBeside(at)
	require.NoError(t, err)
	defer beside.Close()

	c := receiver.New(secret)
	c.Senders([]netip.AddrPort{agent.LocalAddr().(*net.UDPAddr).AddrPort()})
	go c.Keep(t.Context(), beside)
	go func() {
		b := make([]byte, 1500)
		for {
			n, from, err := beside.ReadFromUDPAddrPort(b)
			if err != nil {
				return
			}
			reply, check := c.Take(time.Now(), from, b[:n])
			if !assert.True(t, check, "only checks are seen: %q", b[:n]) {
				return
			}
			if reply != nil {
				_, _ = beside.WriteToUDPAddrPort(reply, from)
			}
		}
	}()
	m := machine(at.Addr().String(), at.Port())
	b := make([]byte, 1500)
	exchange := func() bool { // a request and what it leads to
		_ = agent.SetReadDeadline(time.Now().Add(soon))
		n, from, err := agent.ReadFromUDPAddrPort(b)
		if err != nil {
			return false
		}
		require.Equal(t, at, from, "it comes from the port of the media")
		for _, p := range m.Receive(time.Now(), camera, from, b[:n]) {
			_, err := agent.WriteToUDPAddrPort(p.Data, p.To)
			require.NoError(t, err)
		}
		return true
	}
	for len(m.Leases(time.Now())) == 0 {
		_, err := agent.WriteToUDPAddrPort([]byte("\x80 media"), at)
		require.NoError(t, err)
		require.True(t, exchange(), "it consents")
	}
	_ = media.SetReadDeadline(time.Now().Add(soon))
	n, _, err := media.ReadFromUDPAddrPort(b)
	require.NoError(t, err)
	assert.NotZero(t, n, "the other program gets what comes")

	require.NoError(t, media.Close())
	_, err = beside.WriteToUDPAddrPort([]byte("x"), agent.LocalAddr().(*net.UDPAddr).AddrPort())
	assert.ErrorContains(t, err, "no program has the port")
}
