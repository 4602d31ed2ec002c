package camera_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/groupcast/groupcast/cmd/groupcastctl/internal/camera"
	"github.com/groupcast/groupcast/cmd/groupcastctl/internal/datagramlog"
	"github.com/groupcast/groupcast/gateway-agent/packet"
	"github.com/groupcast/groupcast/internal/lease"
	"github.com/groupcast/groupcast/internal/rtp"
	"github.com/groupcast/groupcast/internal/scripted"
	"github.com/groupcast/groupcast/models"
	"github.com/groupcast/groupcast/openapi/api"
)

const (
	private = "127.201.7.5"
	groupA  = "127.201.7.230"
	groupB  = "127.201.7.231"
)

var discard = slog.New(slog.DiscardHandler)

// gateway receives what is sent to a group IP, with the IP options.
type gateway struct {
	t   *testing.T
	udp *net.UDPConn
}

func listen(t *testing.T, at string, port uint16) *gateway {
	t.Helper()
	udp, err := net.ListenUDP("udp4", net.UDPAddrFromAddrPort(netip.AddrPortFrom(netip.MustParseAddr(at), port)))
	require.NoError(t, err)
	t.Cleanup(func() { _ = udp.Close() })
	raw, err := udp.SyscallConn()
	require.NoError(t, err)
	require.NoError(t, raw.Control(func(fd uintptr) {
		assert.NoError(t, unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_RECVOPTS, 1))
	}))
	require.NoError(t, udp.SetReadDeadline(time.Now().Add(time.Minute)))
	return &gateway{t: t, udp: udp}
}

func (g *gateway) port() uint16 { return g.udp.LocalAddr().(*net.UDPAddr).AddrPort().Port() }

// receive gives a datagram, where it came from, and its IP options.
func (g *gateway) receive() (datagram []byte, from netip.Addr, options []byte) {
	g.t.Helper()
	datagram, oob := make([]byte, 1<<16), make([]byte, 256)
	n, nn, _, addr, err := g.udp.ReadMsgUDPAddrPort(datagram, oob)
	require.NoError(g.t, err)
	messages, err := unix.ParseSocketControlMessage(oob[:nn])
	require.NoError(g.t, err)
	for _, m := range messages {
		if m.Header.Level == unix.IPPROTO_IP && m.Header.Type == unix.IP_RECVOPTS {
			options = m.Data
		}
	}
	return datagram[:n], addr.Addr(), options
}

// maySetOption tells whether this user may, as the kernel sees it.
func maySetOption(t *testing.T) bool {
	t.Helper()
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM, 0)
	require.NoError(t, err)
	defer unix.Close(fd)
	return unix.SetsockoptString(fd, unix.IPPROTO_IP, unix.IP_OPTIONS, "\x88\x06\x00\x00\x00\x00") == nil
}

func config(t *testing.T, service *scripted.Service, l *lease.Lease, port uint16) camera.Config {
	t.Helper()
	if len(service.Posts()) > 0 {
		t.Fatal("already registered")
	}
	return camera.Config{
		Lease: l, Private: netip.AddrPortFrom(netip.MustParseAddr(private), 0), MediaPort: port,
		Log: discard, Joined: func(api.RegistrationAnswer) {},
	}
}

func request() api.RegistrationRequest {
	return api.RegistrationRequest{Type: models.MemberDevice, ID: 1, GroupName: "groupcast1"}
}

func TestRelayByteForByte(t *testing.T) {
	service, c := scripted.Start(t)
	service.Say(http.StatusOK, scripted.Answer(groupA, 1))
	group := listen(t, groupA, 0)
	sends := filepath.Join(t.TempDir(), "sends")
	log, err := datagramlog.Create(sends)
	require.NoError(t, err)

	free := listen(t, private, 0)
	relay := netip.AddrPortFrom(netip.MustParseAddr(private), free.port())
	require.NoError(t, free.udp.Close())
	conf := config(t, service, lease.New(c, request(), log.Note, discard), group.port())
	conf.Relay, conf.SendLog, conf.Option = relay, log, maySetOption(t)
	joined := make(chan struct{})
	conf.Joined = func(api.RegistrationAnswer) { close(joined) }

	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error)
	var summary camera.Summary
	go func() {
		var err error
		summary, err = camera.Run(ctx, t.Context(), conf)
		ended <- err
	}()
	<-joined
	source, err := net.DialUDP("udp4", nil, net.UDPAddrFromAddrPort(relay))
	require.NoError(t, err)
	defer source.Close()
	sizes := []int{1, 0, 188, 1328, 1472, 4000, 65_000}
	for _, size := range sizes {
		sent := make([]byte, size)
		_, _ = rand.Read(sent)
		_, err := source.Write(sent)
		require.NoError(t, err)
		got, from, options := group.receive()
		assert.Equal(t, sent, got)
		assert.Equal(t, private, from.String())
		id, err := packet.StreamID(options)
		require.NoError(t, err)
		if conf.Option {
			assert.Equal(t, private, id.String())
		} else {
			assert.Empty(t, options)
		}
	}
	assert.Eventually(t, func() bool { // what the group got is written down a moment later
		return strings.Count(string(read(t, sends)), "\n") == len(sizes)+2
	}, time.Minute, 10*time.Millisecond)
	stop()
	require.NoError(t, <-ended)
	require.NoError(t, log.Close())
	assert.Equal(t, camera.Summary{Sent: uint64(len(sizes))}, summary)
	assert.Equal(t, 1, service.Leaves())
	lines := strings.Split(strings.TrimSpace(string(read(t, sends))), "\n")
	assert.Len(t, lines, len(sizes)+4)
	assert.Contains(t, lines[1], " joined groupIP="+groupA)
	assert.Contains(t, lines[len(lines)-1], " left ")
}

func read(t *testing.T, file string) []byte {
	t.Helper()
	b, err := os.ReadFile(file)
	require.NoError(t, err)
	return b
}

// A camera whose group got another address sends there.
func TestFollowsTheGroupIP(t *testing.T) {
	service, c := scripted.Start(t)
	service.Say(http.StatusOK, scripted.Answer(groupA, 1))
	service.Say(http.StatusOK, scripted.Answer(groupB, 2))
	a := listen(t, groupA, 0)
	b := listen(t, groupB, a.port())
	conf := config(t, service, lease.New(c, request(), nil, discard), a.port())
	in, out := io.Pipe()
	conf.Stream = in
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error)
	go func() {
		_, err := camera.Run(ctx, t.Context(), conf)
		ended <- err
	}()
	go func() {
		for ctx.Err() == nil {
			_, _ = out.Write(transportStream(7))
			time.Sleep(20 * time.Millisecond)
		}
	}()
	got, _, _ := a.receive()
	assert.Equal(t, transportStream(7), got)
	got, _, _ = b.receive()
	assert.Equal(t, transportStream(7), got)
	stop()
	require.NoError(t, <-ended)
	_ = in.Close()
}

func transportStream(packets int) []byte {
	b := make([]byte, packets*rtp.PacketSize)
	for i := 0; i < len(b); i += rtp.PacketSize {
		b[i] = 0x47
		b[i+1] = byte(i / rtp.PacketSize)
	}
	return b
}

// The whole file goes out in order, seven packets to a datagram, and then the camera leaves.
func TestSendsAFile(t *testing.T) {
	content := transportStream(20)
	for name, inRTP := range map[string]bool{"bare": false, "in RTP": true} {
		t.Run(name, func(t *testing.T) {
			service, c := scripted.Start(t)
			service.Say(http.StatusOK, scripted.Answer(groupA, 1))
			group := listen(t, groupA, 0)
			conf := config(t, service, lease.New(c, request(), nil, discard), group.port())
			conf.Stream = bytes.NewReader(append(content, 0x47, 1, 2)) // cut off in a packet
			conf.Pace = camera.Pace{Bitrate: 10_000_000, RTP: inRTP}
			summary, err := camera.Run(t.Context(), t.Context(), conf)
			require.NoError(t, err)
			assert.Equal(t, camera.Summary{Sent: 3}, summary)
			assert.Equal(t, 1, service.Leaves())
			var got []byte
			for i := range 3 {
				datagram, _, _ := group.receive()
				packets := rtp.TransportStream(datagram)
				assert.Len(t, packets, min(7, 20-7*i)*rtp.PacketSize)
				assert.Equal(t, inRTP, len(datagram) == len(packets)+12)
				got = append(got, packets...)
			}
			assert.Equal(t, content, got)
		})
	}
}

func TestRefusesWhatIsNoTransportStream(t *testing.T) {
	for name, content := range map[string][]byte{"text": bytes.Repeat([]byte("text"), 1000), "a few bytes": []byte("text")} {
		t.Run(name, func(t *testing.T) {
			service, c := scripted.Start(t)
			service.Say(http.StatusOK, scripted.Answer(groupA, 1))
			conf := config(t, service, lease.New(c, request(), nil, discard), 5004)
			conf.Stream = bytes.NewReader(content)
			_, err := camera.Run(t.Context(), t.Context(), conf)
			require.ErrorContains(t, err, "not an MPEG transport stream")
			assert.Equal(t, 1, service.Leaves())
		})
	}
}

func TestWithoutThePrivilegeSaysWhatToDo(t *testing.T) {
	if maySetOption(t) {
		t.Skip("needs an ordinary user: this one may set IP options")
	}
	service, c := scripted.Start(t)
	conf := config(t, service, lease.New(c, request(), nil, discard), 5004)
	conf.Option = true
	_, err := camera.Run(t.Context(), t.Context(), conf)
	require.ErrorIs(t, err, camera.ErrNoOption)
	assert.ErrorContains(t, err, "--no-option")
	assert.Empty(t, service.Posts(), "it finds out before it registers")
}
