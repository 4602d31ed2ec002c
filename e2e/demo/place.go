package main

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
)

const (
	usualPort = 5004 // RTP's
	attempts  = 60
)

// place is where one demo happens: a /24 of 127.0.0.0/8 that plays the home, and the next one, which plays the world outside.
// It belongs to this demo as long as the lock is open.
type place struct {
	home, world [3]byte
	mediaPort   uint16
	server      netip.AddrPort
	lock        *net.UDPConn
}

// The hosts of the home.
const (
	hostGateway    = 1
	hostRelay      = 2 // where ffmpeg hands its stream to groupcastctl camera
	hostCamera     = 5
	hostFirstGroup = 230
	hostLastGroup  = 254
)

var uplink = netip.AddrFrom4([4]byte{127, 0, 0, 1})

func findPlace() (*place, error) {
	var last error
	for attempt := range attempts {
		p := &place{mediaPort: usualPort}
		if attempt > attempts/2 { // something on this machine may have the usual port on all addresses
			p.mediaPort = uint16(10_000 + 2*rand.N(10_000))
		}
		// Even, so that two demos never share the pair of prefixes; far from 127.0 and 127.1, which others use.
		p.home = [3]byte{127, byte(16 + rand.N(200)), byte(2 * rand.N(127))}
		p.world = p.home
		p.world[2]++
		if last = p.take(); last == nil {
			return p, nil
		}
	}
	return nil, fmt.Errorf("there is no free place on loopback for the demo's addresses: %w", last)
}

// take locks the place by binding the media port of the gateway's address, which nobody sends to, and sees that the other
// sockets of the demo can be had.
func (p *place) take() (err error) {
	if p.lock, err = net.ListenUDP("udp4", net.UDPAddrFromAddrPort(p.media(p.home, hostGateway))); err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, p.lock.Close())
		}
	}()
	for _, at := range []netip.AddrPort{
		p.relay(), p.media(p.home, hostFirstGroup), p.media(p.home, hostLastGroup),
		p.media(p.world, 1), p.media(p.world, 2), p.media(p.world, 3),
	} {
		conn, err := net.ListenUDP("udp4", net.UDPAddrFromAddrPort(at))
		if err != nil {
			return err
		}
		if err := conn.Close(); err != nil {
			return err
		}
	}
	listener, err := net.ListenTCP("tcp4", net.TCPAddrFromAddrPort(netip.AddrPortFrom(host(p.home, hostGateway), 0)))
	if err != nil {
		return err
	}
	p.server = listener.Addr().(*net.TCPAddr).AddrPort()
	return listener.Close()
}

func (p *place) close() { _ = p.lock.Close() }

func (p *place) media(prefix [3]byte, last byte) netip.AddrPort {
	return netip.AddrPortFrom(host(prefix, last), p.mediaPort)
}

func (p *place) relay() netip.AddrPort { return p.media(p.home, hostRelay) }

func (p *place) lan() netip.Prefix { return netip.PrefixFrom(host(p.home, 0), 24) }

func host(prefix [3]byte, last byte) netip.Addr {
	return netip.AddrFrom4([4]byte{prefix[0], prefix[1], prefix[2], last})
}
