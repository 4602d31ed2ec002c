package receive_test

import (
	"context"
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

	"github.com/groupcast/groupcast/cmd/groupcastctl/internal/datagramlog"
	"github.com/groupcast/groupcast/cmd/groupcastctl/internal/lease"
	"github.com/groupcast/groupcast/cmd/groupcastctl/internal/receive"
	"github.com/groupcast/groupcast/cmd/groupcastctl/internal/rtp"
	"github.com/groupcast/groupcast/cmd/groupcastctl/internal/scripted"
	"github.com/groupcast/groupcast/models"
	"github.com/groupcast/groupcast/openapi/api"
	"github.com/groupcast/groupcast/receiver/consentcheck"
)

// stage is a receiver that runs, and a sender aimed at it.
type stage struct {
	t       *testing.T
	service *scripted.Service
	sender  *net.UDPConn
	log     string
	stop    func()
	abandon func()
	ended   chan struct{}
	summary receive.Summary
	err     error
}

func start(t *testing.T, output receive.Output, linger time.Duration) *stage {
	t.Helper()
	s := &stage{t: t, log: filepath.Join(t.TempDir(), "arrivals"), ended: make(chan struct{})}
	service, c := scripted.Start(t)
	s.service = service
	service.Say(http.StatusOK, scripted.Answer("127.201.8.230", 1))
	log, err := datagramlog.Create(s.log)
	require.NoError(t, err)
	socket, err := receive.Open(netip.MustParseAddrPort("127.201.8.9:0"))
	require.NoError(t, err)
	s.sender, err = net.DialUDP("udp4", nil, net.UDPAddrFromAddrPort(socket.At()))
	require.NoError(t, err)
	t.Cleanup(func() { _ = s.sender.Close() })
	ctx, stop := context.WithCancel(t.Context())
	leaveBy, abandon := context.WithCancel(t.Context())
	s.stop, s.abandon = stop, abandon
	joined := make(chan struct{})
	request := api.RegistrationRequest{Type: models.MemberDevice, ID: 1, GroupName: "groupcast1", Destination: true}
	go func() {
		defer close(s.ended)
		s.summary, s.err = receive.Run(ctx, leaveBy, receive.Config{
			Lease: lease.New(c, request, log, slog.New(slog.DiscardHandler)), Socket: socket, Output: output, Linger: linger,
			Log: log, Joined: func(api.RegistrationAnswer) { close(joined) },
		})
		assert.NoError(t, log.Close())
	}()
	<-joined
	return s
}

func (s *stage) send(datagrams ...[]byte) {
	s.t.Helper()
	for _, d := range datagrams {
		_, err := s.sender.Write(d)
		require.NoError(s.t, err)
	}
}

// logged waits until so many lines contain the text.
func (s *stage) logged(text string, lines int) {
	s.t.Helper()
	require.Eventually(s.t, func() bool {
		b, err := os.ReadFile(s.log)
		return err == nil && strings.Count(string(b), text) == lines
	}, 20*time.Second, 10*time.Millisecond, "%d lines with %q", lines, text)
}

func packed(t *testing.T, n int) (datagrams [][]byte, stream []byte) {
	t.Helper()
	packer := rtp.NewPacker(time.Now())
	for i := range n {
		packets := make([]byte, rtp.PacketSize)
		packets[0], packets[1] = 0x47, byte(i)
		d, err := packer.Pack(packets, time.Now())
		require.NoError(t, err)
		datagrams, stream = append(datagrams, d), append(stream, packets...)
	}
	return datagrams, stream
}

// A file gets the transport stream without RTP, until the receiver has left; the log goes on while it lingers.
func TestReceiveIntoAFile(t *testing.T) {
	file := filepath.Join(t.TempDir(), "stream.ts")
	output, err := receive.OpenOutput(file, 0)
	require.NoError(t, err)
	s := start(t, output, time.Hour)
	datagrams, stream := packed(t, 10)
	s.send(datagrams[:4]...)
	s.send(datagrams[5:8]...)
	s.logged(" 200 ", 7)
	var before []byte
	require.Eventually(t, func() bool {
		before, err = os.ReadFile(file)
		return err == nil && len(before) == 7*rtp.PacketSize
	}, 20*time.Second, 10*time.Millisecond)
	s.stop()
	s.logged(" left ", 1)
	var late uint64 // sent after the leave; what comes soon after it is still handed on
	require.Eventually(t, func() bool {
		late++
		s.send([]byte("late"))
		s.logged(" - 4 ", int(late))
		now, err := os.ReadFile(file)
		return err == nil && len(now) < len(before)+4*int(late-2)
	}, 20*time.Second, 10*time.Millisecond, "still handed on long after the leave")
	s.abandon()
	<-s.ended
	require.NoError(t, s.err)
	require.NoError(t, output.Close())
	assert.Equal(t, 1, s.service.Leaves())
	require.Len(t, s.summary.Streams, 1)
	assert.Equal(t, receive.Summary{Datagrams: 7 + late, Bytes: 7*200 + 4*late, Streams: []rtp.Report{
		{SSRC: s.summary.Streams[0].SSRC, Received: 7, Lost: 1},
	}}, s.summary)
	assert.Equal(t, append(append([]byte{}, stream[:4*rtp.PacketSize]...), stream[5*rtp.PacketSize:8*rtp.PacketSize]...), before)
}

func TestReceiveIntoAFileWithALimit(t *testing.T) {
	file := filepath.Join(t.TempDir(), "stream.ts")
	output, err := receive.OpenOutput(file, 3*rtp.PacketSize+1)
	require.NoError(t, err)
	s := start(t, output, 0)
	datagrams, stream := packed(t, 10)
	s.send(datagrams...)
	s.logged(" 200 ", 10)
	s.stop()
	<-s.ended
	require.NoError(t, s.err)
	require.NoError(t, output.Close())
	got, err := os.ReadFile(file)
	require.NoError(t, err)
	assert.Equal(t, stream[:3*rtp.PacketSize], got)
}

// A port gets each datagram as it is, and nobody has to listen at first.
func TestReceiveIntoAPort(t *testing.T) {
	player, err := net.ListenUDP("udp4", net.UDPAddrFromAddrPort(netip.MustParseAddrPort("127.201.8.10:0")))
	require.NoError(t, err)
	at := player.LocalAddr().(*net.UDPAddr)
	require.NoError(t, player.Close())
	output, err := receive.OpenOutput("udp:"+at.String(), 0)
	require.NoError(t, err)
	s := start(t, output, 0)
	datagrams, _ := packed(t, 3)
	s.send(datagrams[0], []byte("not RTP"))
	s.logged(" - 7 ", 1)
	player, err = net.ListenUDP("udp4", at)
	require.NoError(t, err)
	defer player.Close()
	s.send(datagrams[1], []byte("not RTP"), datagrams[2])
	buffer := make([]byte, 2000)
	require.NoError(t, player.SetReadDeadline(time.Now().Add(20*time.Second)))
	for _, want := range [][]byte{datagrams[1], []byte("not RTP"), datagrams[2]} {
		n, err := player.Read(buffer)
		require.NoError(t, err)
		assert.Equal(t, want, buffer[:n])
	}
	s.stop()
	<-s.ended
	require.NoError(t, s.err)
}

// A receiver that can't hand on any more leaves: nobody needs its copies.
func TestReceiveLeavesWhenTheOutputIsFull(t *testing.T) {
	output, err := receive.OpenOutput("/dev/full", 0)
	require.NoError(t, err)
	s := start(t, output, 0)
	s.send([]byte("anything"))
	<-s.ended
	require.ErrorContains(t, s.err, "hand on the stream")
	assert.Equal(t, 1, s.service.Leaves())
}

// Where the service asks for consent it is kept on the socket of the media; the output gets media and nothing else. The place to ask is known only from
// a later answer.
func TestConsentIsKeptWhileReceiving(t *testing.T) {
	secret := models.ConsentCredential{Ufrag: "Yw5Fh2kPq0Za", Password: "8mNbVcXzLkJhGfDsAqWeRt"}
	agent, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 201, 8, 1)})
	require.NoError(t, err)
	defer agent.Close()
	first := scripted.Answer("127.201.8.230", 1)
	hour := int32(3600)
	first.RenewAfter = &hour
	first.Consent = &api.RegistrationConsent{State: models.ConsentPending, Policy: models.PolicyLearned, Ufrag: &secret.Ufrag, Pwd: &secret.Password}
	second := first
	at := agent.LocalAddr().(*net.UDPAddr).AddrPort()
	second.Senders = &[]api.Sender{{SourceID: 1, Address: at.Addr().Unmap().String(), Port: int32(at.Port())}}
	service, c := scripted.Start(t)
	service.Say(http.StatusOK, first)
	service.Say(http.StatusOK, second)

	file := filepath.Join(t.TempDir(), "stream")
	output, err := receive.OpenOutput(file, 0)
	require.NoError(t, err)
	socket, err := receive.Open(netip.MustParseAddrPort("127.201.8.9:0"))
	require.NoError(t, err)
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan receive.Summary)
	go func() {
		request := api.RegistrationRequest{Type: models.MemberDevice, ID: 1, GroupName: "groupcast1", Destination: true}
		summary, err := receive.Run(ctx, t.Context(), receive.Config{
			Lease: lease.New(c, request, nil, slog.New(slog.DiscardHandler)), Socket: socket, Output: output, Joined: func(api.RegistrationAnswer) {},
		})
		assert.NoError(t, err)
		ended <- summary
	}()
	b := make([]byte, 1500)
	require.NoError(t, agent.SetReadDeadline(time.Now().Add(20*time.Second)))
	n, from, err := agent.ReadFromUDPAddrPort(b)
	require.NoError(t, err)
	m, ok := consentcheck.Parse(b[:n])
	require.True(t, ok && m.Authentic(secret.Password))
	ufrag, ok := consentcheck.ToAgent.Ufrag(m.Username)
	require.True(t, ok)
	assert.Equal(t, secret.Ufrag, ufrag)
	question, id := consentcheck.NewRequest(secret, consentcheck.ToReceiver)
	_, err = agent.WriteToUDPAddrPort(question, from)
	require.NoError(t, err)
	for {
		n, _, err := agent.ReadFromUDPAddrPort(b)
		require.NoError(t, err)
		if m, ok := consentcheck.Parse(b[:n]); ok && m.Kind == consentcheck.Answer {
			assert.True(t, m.ID == id && m.Authentic(secret.Password))
			break
		}
	}
	_, err = agent.WriteToUDPAddrPort([]byte("media"), from)
	require.NoError(t, err)
	require.Eventually(t, func() bool {
		got, err := os.ReadFile(file)
		return err == nil && string(got) == "media"
	}, 20*time.Second, 10*time.Millisecond)
	stop()
	assert.Equal(t, uint64(1), (<-ended).Datagrams)
}
