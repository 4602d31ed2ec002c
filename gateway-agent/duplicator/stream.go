package duplicator

import (
	"errors"
	"log/slog"
	"net/netip"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/groupcast/groupcast/gateway-agent/packet"
	"github.com/groupcast/groupcast/gateway-agent/sender"
	"github.com/groupcast/groupcast/gateway-agent/table"
	"github.com/groupcast/groupcast/receiver/stunfilter"
)

// socketPause is how long an outlet whose socket can't be opened waits before it tries again.
const socketPause = time.Second

// largestCheck is more than what a check has, in bytes.
const largestCheck = 1025

// stream is what one camera sends from one port to one port of a group IP. Its copies leave from one source port, whoever comes
// and goes, so that receivers and their firewalls see one flow: that which is reserved for the source, or one of its own.
type stream struct {
	group   *table.Group
	source  table.Source
	heard   sender.Heard
	options []byte // options area of the copies over IPv4
	uplink  netip.Addr
	v4, v6  *reservation
	outlets []*outlet // those of group.Destinations, in that order
	used    time.Time // of the last datagram
	log     *slog.Logger
}

// outlet is the socket of a stream for one destination.
type outlet struct {
	destination table.Destination
	counters    *destinationCounters
	fd          int       // -1 while there is none
	retry       time.Time // not before then
	ttl         uint8     // of what the socket sends; 0: the host's usual one

	checks       *os.File  // the same socket, for reading what the destination sends; nil if nobody wants to know
	segments     bool      // the kernel knows UDP_SEGMENT
	segmentable  int       // the largest datagrams it segments on the way to this destination, in bytes
	segmentAgain time.Time // when a larger one is tried again
}

// streamOf finds or makes the stream of a datagram, with the outlets of the verdict's group. It gives nil if there are too many.
func (l *listener) streamOf(v packet.Verdict, camera packet.Datagram) *stream {
	from := flowOf(camera)
	s := l.streams[from]
	if s != nil && s.group != v.Group && !s.serves(v.Group, camera.Source.Addr()) {
		l.closeStream(from, s)
		s = nil
	}
	if s == nil {
		if l.owner.streams.Add(1) > int64(l.owner.config.MaxStreams) {
			l.owner.streams.Add(-1)
			return nil
		}
		s = &stream{
			source: v.Source, heard: l.owner.config.Heard, options: l.owner.config.CopyOptions.For(v.Source),
			uplink: l.owner.config.Uplink, log: l.log,
		}
		l.streams[from] = s
	}
	s.follow(v.Group, l.owner.counters)
	return s
}

func (l *listener) closeStream(from flow, s *stream) {
	s.close()
	delete(l.streams, from)
	l.owner.streams.Add(-1)
}

func (l *listener) closeStreams() {
	for from, s := range l.streams {
		l.closeStream(from, s)
	}
}

// serves tells whether the stream may go on under a newer snapshot: the same group, handed out the same time, and the source
// still in it on the same terms.
func (s *stream) serves(g *table.Group, from netip.Addr) bool {
	source, ok := g.Source(from)
	return ok && source.ID == s.source.ID && source.Trigger == s.source.Trigger && source.Port == s.source.Port && g.ID == s.group.ID && g.Generation == s.group.Generation
}

// follow makes the outlets those of the group's destinations. Whoever stays keeps its socket.
func (s *stream) follow(g *table.Group, r *registry) {
	if s.group == g {
		return
	}
	type identity struct {
		id   string
		addr netip.Addr
		port uint16
		from string
	}
	before := map[identity]*outlet{}
	for _, o := range s.outlets {
		before[identity{o.destination.ID, o.destination.Addr, o.destination.Port, o.destination.Source}] = o
	}
	s.group, s.outlets = g, make([]*outlet, 0, len(g.Destinations))
	for _, d := range g.Destinations {
		if d.Source != "" && d.Source != s.source.ID {
			continue
		}
		key := identity{d.ID, d.Addr, d.Port, d.Source}
		o := before[key]
		if o == nil {
			o = &outlet{counters: r.destination(d.ID), fd: -1}
		}
		delete(before, key)
		o.destination = d
		s.outlets = append(s.outlets, o)
	}
	for _, gone := range before {
		gone.close()
	}
}

func (s *stream) close() {
	for _, o := range s.outlets {
		o.close()
	}
	for _, r := range []*reservation{s.v4, s.v6} {
		if r != nil {
			_ = unix.Close(r.fd)
		}
	}
}

func (o *outlet) close() {
	switch {
	case o.checks != nil:
		_ = o.checks.Close() // closes the socket when its reader is gone
	case o.fd >= 0:
		_ = unix.Close(o.fd)
	}
	o.fd, o.checks = -1, nil
}

// ready tells whether the outlet has a socket, and opens one if it is time to.
func (o *outlet) ready(s *stream, camera packet.Datagram, now time.Time) bool {
	if o.fd >= 0 {
		return true
	}
	if now.Before(o.retry) {
		return false
	}
	fd, err := s.open(packet.Target(o.destination, camera))
	if err != nil {
		if o.retry.IsZero() {
			s.log.Warn("no socket for a destination; trying again every second",
				"group", s.group.ID, "destination", o.destination.ID, "error", err)
		}
		o.retry = now.Add(socketPause)
		return false
	}
	o.fd, o.retry, o.ttl = fd, time.Time{}, 0
	if s.source.Port != 0 && s.heard != nil {
		o.listen(s, packet.Target(o.destination, camera))
	}
	// A kernel before 4.18 would ignore the control message and send a run as one datagram.
	_, err = unix.GetsockoptInt(fd, unix.SOL_UDP, unix.UDP_SEGMENT)
	o.segments, o.segmentable = err == nil, 0
	return true
}

// listen hands on the destination's checks: the kernel gives them to the socket that is connected to where they come from, and not to the one
// that holds the port.
func (o *outlet) listen(s *stream, from netip.AddrPort) {
	heard, port, counters := s.heard, s.source.Port, o.counters
	hearEarly(o.fd, port, heard)
	file := os.NewFile(uintptr(o.fd), "destination")
	o.checks = file
	go func() {
		b := make([]byte, largestCheck)
		for {
			n, err := file.Read(b)
			switch {
			case err == nil && n < len(b):
				heard(port, from, b[:n])
			case errors.Is(err, os.ErrClosed):
				return
			case err != nil:
				counters.count(err, 1) // the network's answer to a copy, unless the next send finds it first
			}
		}
	}()
}

// hearEarly hands on what came after the socket shared the port and before it was connected: that may be anybody's.
func hearEarly(fd int, port uint16, heard sender.Heard) {
	b := make([]byte, largestCheck)
	for {
		n, from, err := unix.Recvfrom(fd, b, unix.MSG_DONTWAIT)
		if err != nil {
			return // there is no more
		}
		if n == len(b) {
			continue
		}
		switch a := from.(type) {
		case *unix.SockaddrInet4:
			heard(port, netip.AddrPortFrom(netip.AddrFrom4(a.Addr), uint16(a.Port)), b[:n])
		case *unix.SockaddrInet6:
			heard(port, netip.AddrPortFrom(netip.AddrFrom16(a.Addr), uint16(a.Port)), b[:n])
		}
	}
}

// open gives a socket that sends to one destination from the stream's source port.
func (s *stream) open(to netip.AddrPort) (int, error) {
	if s.source.Port != 0 {
		from, options := netip.AddrPortFrom(s.uplink, s.source.Port), s.options
		if to.Addr().Is6() {
			from, options = netip.AddrPortFrom(netip.IPv6Unspecified(), s.source.Port), nil
		}
		return openConnected(from, to, options)
	}
	if to.Addr().Is6() {
		if s.v6 == nil {
			r, err := reserve(netip.IPv6Unspecified()) // the kernel picks the address that suits the way
			if err != nil {
				return -1, err
			}
			s.v6 = r
		}
		return openConnected(s.v6.at, to, nil)
	}
	if s.v4 == nil {
		r, err := reserve(s.uplink)
		if err != nil {
			return -1, err
		}
		s.v4 = r
	}
	return openConnected(s.v4.at, to, s.options)
}

// reservation is a bound socket that holds a stream's source port while destinations come and go.
type reservation struct {
	fd int
	at netip.AddrPort
}

// reserve takes a free port. It shares the port only afterwards: the kernel may give a port that is shared already to a socket
// that asks for a shared one.
func reserve(addr netip.Addr) (*reservation, error) {
	fd, err := openUDP(addr)
	if err != nil {
		return nil, err
	}
	err = unix.Bind(fd, sockaddr(netip.AddrPortFrom(addr, 0)))
	if err == nil {
		err = sharePort(fd)
	}
	var name unix.Sockaddr
	if err == nil {
		name, err = unix.Getsockname(fd)
	}
	if err != nil {
		_ = unix.Close(fd)
		return nil, err
	}
	return &reservation{fd: fd, at: netip.AddrPortFrom(addr, portOf(name))}, nil
}

func openConnected(from, to netip.AddrPort, options []byte) (int, error) {
	fd, err := openUDP(to.Addr())
	if err != nil {
		return -1, err
	}
	err = sharePort(fd)
	if err == nil {
		err = unix.Bind(fd, sockaddr(from))
	}
	if err == nil && len(options) > 0 {
		err = unix.SetsockoptString(fd, unix.IPPROTO_IP, unix.IP_OPTIONS, string(options))
	}
	if err == nil {
		err = unix.Connect(fd, sockaddr(to))
	}
	if err != nil {
		_ = unix.Close(fd)
		return -1, err
	}
	return fd, nil
}

// openUDP gives a socket for sending: what receivers send back is dropped in a small buffer.
func openUDP(addr netip.Addr) (int, error) {
	family := unix.AF_INET
	if addr.Is6() {
		family = unix.AF_INET6
	}
	fd, err := unix.Socket(family, unix.SOCK_DGRAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, err
	}
	// A few checks; who sends more than they are worth has them dropped.
	err = errors.Join(unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, 0), stunfilter.OnUDP(fd))
	if addr.Is6() {
		err = errors.Join(err, unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_V6ONLY, 1))
	}
	if err != nil {
		_ = unix.Close(fd)
		return -1, err
	}
	return fd, nil
}

// sharePort lets sockets of this user have the same source port. SO_REUSEADDR would let anybody.
func sharePort(fd int) error { return unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEPORT, 1) }

func sockaddr(a netip.AddrPort) unix.Sockaddr {
	if a.Addr().Is6() {
		return &unix.SockaddrInet6{Addr: a.Addr().As16(), Port: int(a.Port())}
	}
	return &unix.SockaddrInet4{Addr: a.Addr().As4(), Port: int(a.Port())}
}

func portOf(a unix.Sockaddr) uint16 {
	switch a := a.(type) {
	case *unix.SockaddrInet4:
		return uint16(a.Port)
	case *unix.SockaddrInet6:
		return uint16(a.Port)
	}
	return 0
}
