package camera

import (
	"bytes"
	"context"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/groupcast/groupcast/e2e/netlab"
	"github.com/groupcast/groupcast/gateway-agent/packet"
	"github.com/groupcast/groupcast/gateway-agent/tunnel"
	"github.com/groupcast/groupcast/internal/logtest"
	service "github.com/groupcast/groupcast/internal/scripted"
	"github.com/groupcast/groupcast/models"
	"github.com/groupcast/groupcast/openapi/api"
	"github.com/groupcast/groupcast/openapi/client"
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

// following is a camera whose tunnel follows a scripted service.
type following struct {
	*testing.T
	*Tunnel
	service *service.Service
	log     *logtest.Log
	keys    int
}

func follow(t *testing.T) *following {
	s, c := service.Start(t)
	f := &following{T: t, service: s, log: &logtest.Log{}}
	var err error
	f.Tunnel, err = openTunnel(c, filepath.Join(t.TempDir(), "tunnel.key"), f.log)
	require.NoError(t, err)
	require.NoError(t, f.Declare(t.Context()))
	ctx, stop := context.WithCancel(t.Context())
	var followed sync.WaitGroup
	followed.Go(func() { f.Follow(ctx) })
	t.Cleanup(func() {
		stop()
		followed.Wait()
		require.ErrorIs(t, f.Tunnel.send(nil, aim), errNoWay, "it is over")
		if t.Failed() {
			t.Log(f.log)
		}
	})
	return f
}

var aim = netip.MustParseAddrPort("198.18.0.230:5004")

func openTunnel(c *client.ClientWithResponses, keyFile string, log *logtest.Log) (*Tunnel, error) {
	return OpenTunnel(c, 7, keyFile, netip.MustParseAddrPort("192.168.8.5:40000"), true, slog.New(slog.NewTextHandler(log, nil)))
}

// to is what the service says while a relay copies. Each has another key.
func (f *following) to(epoch, revision string, maxStale int32) *api.TunnelInformation {
	f.Helper()
	f.keys++
	key, err := tunnel.LoadKey(filepath.Join(f.TempDir(), "relay.key"))
	require.NoError(f, err)
	return &api.TunnelInformation{
		DeviceID: 7, Epoch: epoch, Revision: revision, MaxStaleSeconds: maxStale, Fanout: models.FanoutNetwork, Needed: true,
		Relay: &api.GatewayRelay{
			RelayID: models.ID(f.keys), TunnelKey: key.Public(), EndpointIPv4: netip.MustParseAddr("127.0.0.1"), EndpointPort: 51820, Forwarding: true,
			TunnelAddress: netip.MustParseAddr("fd12:3456:789a:1::1"), OwnTunnelAddress: netip.MustParseAddr("fd12:3456:789a::7"),
		},
	}
}

// goes tells whether a datagram goes into the tunnel.
func (f *following) goes() bool {
	f.Helper()
	err := f.send([]byte("video"), aim)
	if err != nil {
		require.ErrorIs(f, err, errNoWay)
	}
	return err == nil
}

func (f *following) until(what string, is func() bool) {
	f.Helper()
	require.Eventually(f, is, time.Minute, 5*time.Millisecond, what)
}

// What the service says decides where datagrams go, and holds for maxStaleSeconds.
func TestTunnelFailsClosed(t *testing.T) {
	t.Parallel()
	netlab.Isolated(t, func(t *testing.T) {
		f := follow(t)
		require.False(t, f.goes(), "before the service has said where")
		f.service.Tunnel(f.to("e", "1", 3))
		f.until("it goes to the relay", f.goes)

		// A service that has nothing new to say is heard from often enough.
		polls := len(f.service.TunnelWaits())
		f.until("polls", func() bool { return len(f.service.TunnelWaits()) >= polls+2 })
		for _, wait := range f.service.TunnelWaits() {
			require.Equal(t, 1, wait, "a third of maxStaleSeconds")
		}

		f.service.Tunnel(nil)
		f.until("nothing goes without the service", func() bool { return !f.goes() })
		f.until("it says why", func() bool { return bytes.Contains([]byte(f.log.String()), []byte("not heard from for too long")) })
		f.service.Tunnel(f.to("e", "1", 900))
		f.until("it goes again", f.goes)

		// Nobody copies, or nobody wants copies.
		for i, change := range []func(*api.TunnelInformation){
			func(i *api.TunnelInformation) { i.Fanout = models.FanoutHome },
			func(i *api.TunnelInformation) { i.Relay = nil },
			func(i *api.TunnelInformation) { i.Relay.Forwarding = false },
			func(i *api.TunnelInformation) { i.Needed = false },
		} {
			info := f.to("e", string(rune('a'+2*i)), 900)
			change(info)
			f.service.Tunnel(info)
			f.until("nothing goes", func() bool { return !f.goes() })
			f.service.Tunnel(f.to("e", string(rune('b'+2*i)), 900))
			f.until("it goes again", f.goes)
		}
	})
}

// Whoever forgot the camera, or was restored from a backup that knows another key of it, is told again.
func TestTunnelIsDeclaredAgain(t *testing.T) {
	t.Parallel()
	netlab.Isolated(t, func(t *testing.T) {
		f := follow(t)
		first := f.to("e", "1", 900)
		f.service.Tunnel(first)
		f.until("it goes to the relay", f.goes)

		f.service.ForgetTunnel(true)
		f.until("nothing goes for a service that doesn't know the camera", func() bool { return !f.goes() })
		require.Len(t, f.service.DeclaredTunnels(), 1)
		f.service.TakeTunnels()
		f.until("it goes again", f.goes)
		all := f.service.DeclaredTunnels()
		require.Len(t, all, 2)
		require.Equal(t, all[0], all[1])

		restored := f.to("e2", "1", 900)
		f.service.Tunnel(restored)
		f.until("another life of the service hears the key", func() bool { return len(f.service.DeclaredTunnels()) == 3 })
		f.until("it goes to the relay of now only", func() bool {
			f.mu.Lock()
			defer f.mu.Unlock()
			peers, err := f.Tunnel.tunnel.Status()
			_, before := peers[first.Relay.TunnelKey]
			_, now := peers[restored.Relay.TunnelKey]
			return err == nil && now && !before
		})
		require.True(t, f.goes())
		next := f.to("e2", "2", 900)
		f.service.Tunnel(next)
		f.until("the relay is changed under it", func() bool {
			f.mu.Lock()
			defer f.mu.Unlock()
			peers, err := f.Tunnel.tunnel.Status()
			_, now := peers[next.Relay.TunnelKey]
			return err == nil && now && len(peers) == 1
		})
		require.True(t, f.goes())
		assert.Len(t, f.service.DeclaredTunnels(), 3, "the same life isn't told again")
	})
}

// A key that can't be read, or that others can, ends the camera before it says anything; and it stays as it is.
func TestTunnelKeyFile(t *testing.T) {
	t.Parallel()
	netlab.Isolated(t, func(t *testing.T) {
		s, c := service.Start(t)
		good := filepath.Join(t.TempDir(), "good")
		_, err := openTunnel(c, good, &logtest.Log{})
		require.NoError(t, err)
		key, err := os.ReadFile(good)
		require.NoError(t, err)
		dir := t.TempDir()
		for name, c := range map[string]struct {
			file []byte
			mode os.FileMode
			says string
			at   string
		}{
			"others can read it": {key, 0o644, "others can read", "open"},
			"it is damaged":      {key[:20], 0o600, "is damaged", "damaged"},
			"it is empty":        {nil, 0o600, "is damaged", "empty"},
		} {
			path := filepath.Join(dir, c.at)
			require.NoError(t, os.WriteFile(path, c.file, c.mode))
			_, err := openTunnel(nil, path, &logtest.Log{})
			require.ErrorContains(t, err, c.says, name)
			require.ErrorContains(t, err, "--tunnel", name)
			after, err := os.ReadFile(path)
			require.NoError(t, err)
			require.Equal(t, string(c.file), string(after), name)
		}
		_, err = openTunnel(c, dir, &logtest.Log{})
		require.ErrorContains(t, err, "is a directory")
		_, err = openTunnel(c, filepath.Join(good, "below"), &logtest.Log{})
		require.ErrorContains(t, err, "not a directory")
		require.Empty(t, s.DeclaredTunnels())
	})
}
