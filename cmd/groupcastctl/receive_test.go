package main

import (
	"context"
	"encoding/json"
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

	"github.com/groupcast/groupcast/internal/logtest"
	"github.com/groupcast/groupcast/internal/rtp"
	"github.com/groupcast/groupcast/internal/scripted"
	"github.com/groupcast/groupcast/models"
	"github.com/groupcast/groupcast/receiver"
)

// stage is "receive" that runs, and a sender aimed at it.
type stage struct {
	t       *testing.T
	service *scripted.Service
	sender  *net.UDPConn
	log     string
	screen  logtest.Log // standard error
	stop    func()
	abandon func()
	ended   chan struct{}
	err     error
}

func start(t *testing.T, o receiveOptions) *stage {
	t.Helper()
	s := &stage{t: t, log: filepath.Join(t.TempDir(), "arrivals"), ended: make(chan struct{})}
	service, c := scripted.Start(t)
	s.service = service
	service.Say(http.StatusOK, scripted.Answer("127.201.8.230", 1))
	o.listen, o.logFile = netip.MustParseAddrPort("127.201.8.9:0"), s.log
	o.member.kind, o.member.id, o.member.group = models.MemberDevice, "1", "groupcast1"
	ctx, stop := context.WithCancel(t.Context())
	leaveBy, abandon := context.WithCancel(t.Context())
	s.stop, s.abandon = stop, abandon
	joined := make(chan *receiver.Receiver, 1)
	p := &program{err: &s.screen, json: true}
	go func() {
		defer close(s.ended)
		s.err = p.receiveOne(ctx, leaveBy, c, o, func(r *receiver.Receiver) { joined <- r })
	}()
	select {
	case r := <-joined:
		var err error
		s.sender, err = net.DialUDP("udp4", nil, net.UDPAddrFromAddrPort(r.Addr()))
		require.NoError(t, err)
		t.Cleanup(func() { _ = s.sender.Close() })
		post := service.Posts()[0]
		assert.Equal(t, r.Addr().Addr(), post.PublicIPv4.MustGet())
		assert.EqualValues(t, r.Addr().Port(), post.Port.MustGet())
	case <-s.ended:
		require.NoError(t, s.err)
	}
	return s
}

// summary is the last line on the screen.
func (s *stage) summary() (summary receiver.Summary) {
	lines := strings.Split(strings.TrimSpace(s.screen.String()), "\n")
	require.NoError(s.t, json.Unmarshal([]byte(lines[len(lines)-1]), &summary), s.screen.String())
	return summary
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
	}, time.Minute, 10*time.Millisecond, "%d lines with %q", lines, text)
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
	s := start(t, receiveOptions{to: file, linger: time.Hour})
	datagrams, stream := packed(t, 10)
	s.send(datagrams[:4]...)
	s.send(datagrams[5:8]...)
	s.logged(" 200 ", 7)
	var before []byte
	var err error
	require.Eventually(t, func() bool {
		before, err = os.ReadFile(file)
		return err == nil && len(before) == 7*rtp.PacketSize
	}, time.Minute, 10*time.Millisecond)
	s.stop()
	s.logged(" left ", 1)
	var late uint64 // sent after the leave; what comes soon after it is still handed on
	require.Eventually(t, func() bool {
		late++
		s.send([]byte("late"))
		s.logged(" - 4 ", int(late))
		now, err := os.ReadFile(file)
		return err == nil && len(now) < len(before)+4*int(late-2)
	}, time.Minute, 10*time.Millisecond, "still handed on long after the leave")
	s.abandon()
	<-s.ended
	require.NoError(t, s.err)
	assert.Equal(t, 1, s.service.Leaves())
	summary := s.summary()
	require.Len(t, summary.Streams, 1)
	assert.Equal(t, receiver.Summary{Datagrams: 7 + late, Bytes: 7*200 + 4*late, Streams: []receiver.Loss{
		{SSRC: summary.Streams[0].SSRC, Received: 7, Lost: 1},
	}}, summary)
	assert.Equal(t, append(append([]byte{}, stream[:4*rtp.PacketSize]...), stream[5*rtp.PacketSize:8*rtp.PacketSize]...), before)
}

func TestReceiveIntoAFileWithALimit(t *testing.T) {
	file := filepath.Join(t.TempDir(), "stream.ts")
	s := start(t, receiveOptions{to: file, limit: 3*rtp.PacketSize + 1})
	datagrams, stream := packed(t, 10)
	s.send(datagrams...)
	s.logged(" 200 ", 10)
	s.stop()
	<-s.ended
	require.NoError(t, s.err)
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
	s := start(t, receiveOptions{to: "udp:" + at.String()})
	datagrams, _ := packed(t, 3)
	s.send(datagrams[0], []byte("not RTP"))
	s.logged(" - 7 ", 1)
	player, err = net.ListenUDP("udp4", at)
	require.NoError(t, err)
	defer player.Close()
	s.send(datagrams[1], []byte("not RTP"), datagrams[2])
	buffer := make([]byte, 2000)
	require.NoError(t, player.SetReadDeadline(time.Now().Add(time.Minute)))
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
	s := start(t, receiveOptions{to: "/dev/full"})
	s.send([]byte("anything"))
	<-s.ended
	require.ErrorContains(t, s.err, "hand on the stream")
	assert.Equal(t, 1, s.service.Leaves())
}
