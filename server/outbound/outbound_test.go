package outbound

import (
	"context"
	"crypto/x509"
	"encoding/binary"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"strconv"
	"sync/atomic"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/net/dns/dnsmessage"
)

func TestAttackWebhookAddresses(t *testing.T) {
	rules := Rules{Ports: []uint16{443}}
	for _, a := range []string{
		"0.0.0.0", "0.1.2.3", "10.0.0.1", "100.64.0.1", "100.127.255.255", "127.0.0.1", "127.255.255.254", "169.254.169.254", "172.16.0.1", "172.31.255.255",
		"192.0.0.8", "192.0.0.170", "192.0.2.1", "192.88.99.1", "192.168.1.1", "198.18.0.1", "198.19.255.255", "198.51.100.1", "203.0.113.1", "224.0.0.1",
		"239.255.255.250", "240.0.0.1", "255.255.255.255",
		"::", "::1", "::7f00:1", "::ffff:127.0.0.1", "::ffff:10.0.0.1", "::ffff:8.8.8.8", "64:ff9b::7f00:1", "64:ff9b::a9fe:a9fe", "64:ff9b::808:808",
		"64:ff9b:1::1", "100::1", "2001::1", "2001:0:4136:e378::1", "2001:20::1", "2001:db8::1", "2002:7f00:1::1", "2002:a9fe:a9fe::1", "3fff::1",
		"5f00::1", "fc00::1", "fd00:ec2::254", "fe80::1", "fe80::1%lo", "2a00:1450::1%lo", "fec0::1", "ff02::1", "4000::1",
	} {
		assert.ErrorIs(t, rules.Check(netip.AddrPortFrom(netip.MustParseAddr(a), 443)), ErrRefused, a)
	}
	require.ErrorIs(t, rules.Check(netip.AddrPort{}), ErrRefused)
	for _, a := range []string{"1.1.1.1", "9.255.255.255", "11.0.0.0", "100.63.255.255", "100.128.0.0", "172.15.255.255", "172.32.0.0", "223.255.255.255", "2606:4700::1111", "2a00:1450::1"} {
		assert.NoError(t, rules.Check(netip.AddrPortFrom(netip.MustParseAddr(a), 443)), a)
		for _, port := range []uint16{0, 22, 80, 444, 8443, 65535} {
			assert.ErrorIs(t, rules.Check(netip.AddrPortFrom(netip.MustParseAddr(a), port)), ErrRefused, "%s port %d", a, port)
		}
	}
	// What is for demonstrations opens 127/8 and nothing else.
	rules.AllowLoopback = true
	assert.NoError(t, rules.Check(netip.MustParseAddrPort("127.0.0.1:8443")))
	for _, a := range []string{"[::1]:443", "[::ffff:127.0.0.1]:443", "10.0.0.1:443", "169.254.169.254:443", "0.0.0.0:443", "1.1.1.1:80"} {
		assert.ErrorIs(t, rules.Check(netip.MustParseAddrPort(a)), ErrRefused, a)
	}
}

// trap is a server on loopback that must not be reached.
func trap(t *testing.T) (server *httptest.Server, hits *atomic.Int32) {
	t.Helper()
	hits = &atomic.Int32{}
	server = httptest.NewUnstartedServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { hits.Add(1) }))
	server.Config.ConnState = func(_ net.Conn, s http.ConnState) {
		if s == http.StateNew {
			hits.Add(1)
		}
	}
	server.StartTLS()
	t.Cleanup(server.Close)
	return server, hits
}

func port(t *testing.T, s *httptest.Server) uint16 {
	t.Helper()
	n, err := strconv.ParseUint(s.URL[len("https://127.0.0.1:"):], 10, 16)
	require.NoError(t, err)
	return uint16(n)
}

// TestAttackWebhookSpellings: however an address of ours is written, and whatever the system's resolver makes of it, nobody connects.
func TestAttackWebhookSpellings(t *testing.T) {
	server, hits := trap(t)
	p := port(t, server)
	client := NewClient(Rules{Ports: []uint16{p}})
	text := strconv.Itoa(int(p))
	for _, host := range []string{
		"127.0.0.1", "127.1", "2130706433", "0x7f000001", "0x7f.1", "0177.0.0.1", "017700000001", "127.0.0.1.", "localhost", "localhost.", "LOCALHOST", "0", "0.0.0.0",
		"[::1]", "[::]", "[0:0:0:0:0:0:0:1]", "[::ffff:127.0.0.1]", "[::ffff:7f00:1]", "[::127.0.0.1]", "[64:ff9b::127.0.0.1]", "[2002:7f00:1::]", "[::1%25lo]",
		"user:password@127.0.0.1", "1.1.1.1@127.0.0.1", "①②⑦.⓪.⓪.①",
	} {
		r, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "https://"+host+":"+text+"/", nil)
		if err != nil {
			continue // not even a URL
		}
		answer, err := client.Do(r)
		if err == nil {
			_ = answer.Body.Close()
		}
		assert.Error(t, err, host)
	}
	assert.Zero(t, hits.Load())
}

// resolver answers every question about a name with the next address of a list; the last goes on.
func resolver(t *testing.T, addrs ...string) *net.Resolver {
	t.Helper()
	conn, err := (&net.ListenConfig{}).ListenPacket(t.Context(), "udp4", "127.0.0.1:0")
	require.NoError(t, err)
	t.Cleanup(func() { _ = conn.Close() })
	go func() {
		buffer, asked := make([]byte, 4096), 0
		for {
			n, from, err := conn.ReadFrom(buffer)
			if err != nil {
				return
			}
			var m dnsmessage.Message
			if m.Unpack(buffer[:n]) != nil || len(m.Questions) != 1 {
				continue
			}
			q := m.Questions[0]
			answer := dnsmessage.Message{Header: dnsmessage.Header{ID: m.ID, Response: true, Authoritative: true}, Questions: m.Questions}
			if q.Type == dnsmessage.TypeA {
				a := netip.MustParseAddr(addrs[min(asked, len(addrs)-1)])
				asked++
				answer.Answers = append(answer.Answers, dnsmessage.Resource{
					Header: dnsmessage.ResourceHeader{Name: q.Name, Type: q.Type, Class: q.Class}, Body: &dnsmessage.AResource{A: a.As4()},
				})
			}
			if packed, err := answer.Pack(); err == nil {
				_, _ = conn.WriteTo(packed, from)
			}
		}
	}()
	return &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "udp4", conn.LocalAddr().String())
	}}
}

// TestAttackWebhookRebinding: a name that resolved to a public address when somebody looked resolves to ours when it is called.
func TestAttackWebhookRebinding(t *testing.T) {
	server, hits := trap(t)
	p := port(t, server)
	names := resolver(t, "93.184.215.14", "127.0.0.1")
	looked, err := names.LookupNetIP(t.Context(), "ip4", "rebind.example.com")
	require.NoError(t, err)
	require.NoError(t, Rules{Ports: []uint16{p}}.Check(netip.AddrPortFrom(looked[0], p)), "whoever looks sees a public address")

	client := NewClient(Rules{Ports: []uint16{p}, Resolver: names})
	r, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "https://rebind.example.com:"+strconv.Itoa(int(p))+"/", nil)
	require.NoError(t, err)
	answer, err := client.Do(r)
	if err == nil {
		_ = answer.Body.Close()
	}
	require.ErrorIs(t, err, ErrRefused)
	assert.Zero(t, hits.Load())

	// The same resolver and server, where loopback is allowed: what kept it away was the rule.
	client = NewClient(Rules{AllowLoopback: true, Resolver: names})
	r, err = http.NewRequestWithContext(t.Context(), http.MethodPost, "https://rebind.example.com:"+strconv.Itoa(int(p))+"/", nil)
	require.NoError(t, err)
	answer, err = client.Do(r)
	if err == nil {
		_ = answer.Body.Close()
	}
	require.NotErrorIs(t, err, ErrRefused)
	assert.Positive(t, hits.Load())
}

// TestAttackWebhookRedirect: the answer of a partner that points elsewhere, above all to a cloud's metadata, is the end of it.
func TestAttackWebhookRedirect(t *testing.T) {
	inner, hits := trap(t)
	for _, to := range []string{"https://169.254.169.254/latest/meta-data/", "http://169.254.169.254/", inner.URL, "file:///etc/passwd", "/again"} {
		asked := 0
		outer := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			asked++
			w.Header().Set("Location", to)
			w.WriteHeader(http.StatusTemporaryRedirect)
		}))
		t.Cleanup(outer.Close)
		pool := x509.NewCertPool()
		pool.AddCert(outer.Certificate())
		r, err := http.NewRequestWithContext(t.Context(), http.MethodPost, outer.URL, nil)
		require.NoError(t, err)
		answer, err := NewClient(Rules{AllowLoopback: true, RootCAs: pool}).Do(r)
		require.NoError(t, err)
		_ = answer.Body.Close()
		assert.Equal(t, http.StatusTemporaryRedirect, answer.StatusCode)
		assert.Equal(t, 1, asked)
	}
	assert.Zero(t, hits.Load())
}

// TestAttackWebhookProxy: no variable of the environment sends deliveries elsewhere.
func TestAttackWebhookProxy(t *testing.T) {
	proxy, hits := trap(t)
	for _, name := range []string{"HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"} {
		t.Setenv(name, proxy.URL)
	}
	transport, ok := NewClient(Rules{Ports: []uint16{443}}).Transport.(*http.Transport)
	require.True(t, ok)
	assert.Nil(t, transport.Proxy)
	r, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "https://10.255.255.1/", nil)
	require.NoError(t, err)
	answer, err := NewClient(Rules{Ports: []uint16{443}}).Do(r)
	if err == nil {
		_ = answer.Body.Close()
	}
	require.ErrorIs(t, err, ErrRefused)
	var u *url.Error
	require.ErrorAs(t, err, &u)
	assert.Zero(t, hits.Load())
}

// FuzzAddress: whatever is allowed is neither special by the standard library's account nor hides an IPv4 address that is.
func FuzzAddress(f *testing.F) {
	f.Add([]byte{127, 0, 0, 1})
	f.Add(netip.MustParseAddr("64:ff9b::7f00:1").AsSlice())
	f.Fuzz(func(t *testing.T, b []byte) {
		a, ok := netip.AddrFromSlice(b)
		if !ok || (Rules{Ports: []uint16{443}}).Check(netip.AddrPortFrom(a, 443)) != nil {
			return
		}
		require.False(t, a.IsPrivate() || a.IsLoopback() || a.IsLinkLocalUnicast() || a.IsMulticast() || a.IsUnspecified() || a.IsInterfaceLocalMulticast(), a)
		require.False(t, a.Is4In6(), a)
		if a.Is6() {
			require.NotEqual(t, uint16(0x2002), binary.BigEndian.Uint16(b))
		}
	})
}
