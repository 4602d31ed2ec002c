// Package sender reserves the UDP ports that copies leave from, one for each source of a group and before its first datagram, so that receivers
// know where their copies will come from and can send their checks there (SPEC §10). What comes to a port and is STUN is handed on; everything
// else is dropped in the kernel.
//
// The ports stay the same over restarts of the agent, if they are still free then.
package sender

import (
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/groupcast/groupcast/gateway-agent/consent"
	"github.com/groupcast/groupcast/models"
	"github.com/groupcast/groupcast/receiver/stunfilter"
)

// Heard takes a datagram that came to a reserved port. It must not keep the datagram, nor wait.
type Heard func(port uint16, from netip.AddrPort, datagram []byte)

// Ports are the reserved ones of one agent. All but Each belongs to one goroutine.
type Ports struct {
	uplink   netip.Addr
	within   Range
	only4    bool
	file     string
	heard    Heard
	log      *slog.Logger
	mu       sync.Mutex // of who changes reserved, or reads it on another goroutine
	reserved map[consent.Sender]*reservation
	owners   map[uint16]consent.Sender // of the reserved
	saved    map[string]uint16         // what the file has, by name
}

// reservation is one port, at the uplink's address and, if the host has IPv6 and it is wanted, at all of those.
type reservation struct {
	port   uint16
	v4, v6 *net.UDPConn
}

// Range has the ports from First to Last; the zero Range is whatever the kernel gives.
type Range struct{ First, Last uint16 }

func (r Range) contains(port uint16) bool { return r == Range{} || r.First <= port && port <= r.Last }

// Within makes the ports to be reserved from here on those of a range.
func (p *Ports) Within(r Range) { p.within = r }

// Only4 says whether ports are to be reserved over IPv4 only: where nothing leaves over IPv6 the other half of the sockets would wait for nobody. Those that are there stay.
func (p *Ports) Only4(only bool) { p.only4 = only }

// Open reads which ports the last agent had; none is reserved before Keep.
func Open(uplink netip.Addr, file string, heard Heard, log *slog.Logger) *Ports {
	p := &Ports{uplink: uplink, file: file, heard: heard, log: log, reserved: map[consent.Sender]*reservation{}, owners: map[uint16]consent.Sender{}, saved: map[string]uint16{}}
	if b, err := os.ReadFile(file); err == nil && json.Unmarshal(b, &p.saved) != nil {
		p.saved = map[string]uint16{} // receivers hear of the new ones
	}
	return p
}

func name(s consent.Sender) string { return s.Group + "/" + s.Source }

// Keep reserves a port for each of these senders and lets the others go. A sender that got none is named in the error, and tried again the next time.
func (p *Ports) Keep(senders []consent.Sender) error {
	wanted := map[consent.Sender]bool{}
	for _, s := range senders {
		wanted[s] = true
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	changed := false
	for s, r := range p.reserved {
		if !wanted[s] {
			p.release(s, r)
			changed = true
		}
	}
	var errs []error
	for s := range wanted {
		if r := p.reserved[s]; r != nil {
			p.open6(r)
			continue
		}
		r, err := p.find(p.saved[name(s)])
		if err != nil {
			errs = append(errs, fmt.Errorf("reserve a port for the copies of source %s: %w", s.Source, err))
			continue
		}
		p.reserved[s], p.owners[r.port] = r, s
		changed = changed || p.saved[name(s)] != r.port
	}
	if changed {
		errs = append(errs, p.save())
	}
	return errors.Join(errs...)
}

func (p *Ports) save() error {
	p.saved = map[string]uint16{}
	for s, r := range p.reserved {
		p.saved[name(s)] = r.port
	}
	b, err := json.Marshal(p.saved)
	if err == nil {
		err = os.WriteFile(p.file+".new", b, 0o600)
	}
	if err == nil {
		err = os.Rename(p.file+".new", p.file)
	}
	if err != nil {
		return fmt.Errorf("keep the reserved ports: %w: make room in state-dir", err)
	}
	return nil
}

// Of gives the ports by the source's registration id.
func (p *Ports) Of() map[string]uint16 {
	all := map[string]uint16{}
	for s, r := range p.reserved {
		all[s.Source] = r.port
	}
	return all
}

// Port gives that of a sender, 0 if it has none.
func (p *Ports) Port(s consent.Sender) uint16 {
	if r := p.reserved[s]; r != nil {
		return r.port
	}
	return 0
}

// At gives whose port it is.
func (p *Ports) At(port uint16) (consent.Sender, bool) {
	s, ok := p.owners[port]
	return s, ok
}

// IPv6 tells whether a sender's port is reserved there, too.
func (p *Ports) IPv6(s consent.Sender) bool { r := p.reserved[s]; return r != nil && r.v6 != nil }

// Send sends from a sender's port. What can't be sent is lost, as on the way.
func (p *Ports) Send(packet consent.Packet) {
	r := p.reserved[packet.Sender]
	if r == nil {
		return
	}
	conn := r.v4
	if packet.To.Addr().Is6() {
		conn = r.v6
	}
	if conn == nil {
		return
	}
	_, err := conn.WriteToUDPAddrPort(packet.Data, packet.To)
	if err != nil { // perhaps the network's answer to an earlier datagram; then this one has not been sent yet
		_, err = conn.WriteToUDPAddrPort(packet.Data, packet.To)
	}
	if err != nil {
		p.log.Debug("a check could not be sent", "source", packet.Sender.Source, "reason", cause(err))
	}
}

// cause is an error without the address that it is about.
func cause(err error) string {
	if errno, ok := errors.AsType[syscall.Errno](err); ok {
		return errno.Error()
	}
	return "error"
}

// Each gives the IPv4 sockets: in their error queues is what the network answers to whatever left from the ports. It may be called on any goroutine.
func (p *Ports) Each(each func(fd int)) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, r := range p.reserved {
		if raw, err := r.v4.SyscallConn(); err == nil {
			_ = raw.Control(func(fd uintptr) { each(int(fd)) })
		}
	}
}

// Close lets all ports go.
func (p *Ports) Close() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	for s, r := range p.reserved {
		p.release(s, r)
	}
	return nil
}

func (p *Ports) release(s consent.Sender, r *reservation) {
	r.close()
	delete(p.reserved, s)
	delete(p.owners, r.port)
}

var errAllTaken = errors.New("all of sender-ports are taken: give more")

// find reserves the port that there was before, if it can still be had, or another.
func (p *Ports) find(before uint16) (*reservation, error) {
	if before != 0 && p.within.contains(before) {
		if r, err := p.reserve(before); err == nil {
			return r, nil
		}
	}
	if (p.within == Range{}) {
		return p.reserve(0)
	}
	for port := int(p.within.First); port <= int(p.within.Last); port++ {
		r, err := p.reserve(uint16(port))
		if err == nil || !errors.Is(err, unix.EADDRINUSE) {
			return r, err
		}
	}
	return nil, errAllTaken
}

func (p *Ports) reserve(port uint16) (*reservation, error) {
	v4, err := listen("udp4", netip.AddrPortFrom(p.uplink, port))
	if err != nil {
		return nil, err
	}
	r := &reservation{v4: v4, port: v4.LocalAddr().(*net.UDPAddr).AddrPort().Port()}
	go Listen(r.v4, r.port, p.heard)
	p.open6(r)
	return r, nil
}

// open6 reserves a port over IPv6 too, if it isn't. On a host without IPv6, or if it is somebody else's port, IPv6 destinations can't consent.
func (p *Ports) open6(r *reservation) {
	if p.only4 || r.v6 != nil {
		return
	}
	if c, err := listen("udp6", netip.AddrPortFrom(netip.IPv6Unspecified(), r.port)); err == nil {
		r.v6 = c
		go Listen(c, r.port, p.heard)
	}
}

// listen binds a port for itself, and only then lets the backend's sockets of this user have it, too: the kernel may give a port that is
// shared already to a socket that asks for a shared one.
func listen(network string, at netip.AddrPort) (*net.UDPConn, error) {
	conn, err := net.ListenUDP(network, net.UDPAddrFromAddrPort(at))
	if err != nil {
		return nil, err
	}
	raw, err := conn.SyscallConn()
	if err == nil {
		var set error
		err = raw.Control(func(fd uintptr) {
			set = errors.Join(stunfilter.OnUDP(int(fd)), unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEPORT, 1))
			if network == "udp4" {
				set = errors.Join(set, unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_RECVERR, 1))
			}
		})
		err = errors.Join(err, set)
	}
	if err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	return conn, nil
}

// Listen hands on what comes to a socket until that is closed.
func Listen(c *net.UDPConn, port uint16, heard Heard) {
	b := make([]byte, maxCheck+1)
	for {
		n, from, err := c.ReadFromUDPAddrPort(b)
		switch {
		case errors.Is(err, net.ErrClosed):
			return
		case err == nil && n <= maxCheck:
			heard(port, netip.AddrPortFrom(from.Addr().Unmap().WithZone(""), from.Port()), b[:n])
		}
	}
}

// maxCheck is what a check has at most, in bytes.
const maxCheck = 1024

func (r *reservation) close() {
	_ = r.v4.Close()
	if r.v6 != nil {
		_ = r.v6.Close()
	}
}

// IPv6Address is the public address that this host sends to the IPv6 internet from; the zero Addr if it has none. Nothing is sent.
func IPv6Address() netip.Addr {
	c, err := net.DialUDP("udp6", nil, &net.UDPAddr{IP: net.ParseIP("2000::1"), Port: 9})
	if err != nil {
		return netip.Addr{}
	}
	defer c.Close()
	a := c.LocalAddr().(*net.UDPAddr).AddrPort().Addr()
	if !models.PublicHost(a) {
		return netip.Addr{}
	}
	return a
}
