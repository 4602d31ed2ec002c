package e2e

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/groupcast/groupcast/e2e/netlab"
	"github.com/groupcast/groupcast/gateway-agent/packet"
	"github.com/groupcast/groupcast/models"
	"github.com/groupcast/groupcast/receiver/consentcheck"
)

// Payloads of a randomised run: what the datagram is, then its number among all.
const (
	mediaOfCamera  = "media"
	mustNotBeThere = "never"
)

// heardLate is how much later than the capture an agent on a busy machine may hear an answer, from which it counts the 30 seconds of a consent.
const heardLate = 10 * time.Second

// watcher judges every packet on the uplink as it comes. A number tells when the camera sent: so whether somebody was in the table at that
// moment needs no clock. Whether somebody consented is read from the checks on the wire, whose secrets it knows.
type watcher struct {
	sent atomic.Uint64 // number of the camera's last datagram

	mu       sync.Mutex
	member   map[netip.Addr]*membership
	ufrags   map[string]*membership
	asked    map[consentcheck.ID]question // by the gateway
	asking   map[consentcheck.ID]question // it, by a member or somebody who knows its secret
	owed     map[path]int                 // right requests from where nobody has consented: each may lead to one packet
	unknown  []netlab.Frame               // checks of a registration whose secret isn't known yet
	packets  int
	newest   time.Time // of those
	checks   int
	proofs   int
	unasked  int // requests to an address that had proved nothing
	longest  int // bytes of a check of the gateway's
	outlived int // consents that ended by silence and were given again
	faults   []string
}

// membership is when a member may get copies: from the datagram with the first number on, and from the last one on no more.
type membership struct {
	addr        netip.Addr // the newest
	first, last uint64     // last 0: still
	left        time.Time
	seen        map[netip.AddrPort]uint64 // greatest number on the uplink

	asks       bool // it gets copies only where it consents
	strict     bool // only its own address can
	port       uint16
	mayProbe   bool
	probed     int
	before     netip.AddrPort // where it was, and may be asked until the gateway goes by where it is
	credential models.ConsentCredential
	places     map[path]*spot
	at         *spot // where the last copy went
}

// path is from a port of the gateway to an address and port: consent is for that.
type path struct {
	port uint16
	to   netip.AddrPort
}

// spot is where a member consented.
type spot struct {
	proved time.Time // last
	closed uint64    // since another one gets the copies: from which datagram on this one doesn't; 0: it does
}

func (p *spot) live(now time.Time, late time.Duration) bool {
	return p != nil && now.Sub(p.proved) <= models.ConsentExpires+late
}

// question is a request on the wire.
type question struct {
	of   *membership
	by   netip.AddrPort
	path path // from where and to where the gateway sends because of it
	size int
}

func newWatcher() *watcher {
	return &watcher{
		member: map[netip.Addr]*membership{}, ufrags: map[string]*membership{}, asked: map[consentcheck.ID]question{},
		asking: map[consentcheck.ID]question{}, owed: map[path]int{},
	}
}

func (w *watcher) fault(format string, args ...any) {
	if len(w.faults) < 20 {
		w.faults = append(w.faults, fmt.Sprintf(format, args...))
	}
}

func (w *watcher) frame(f netlab.Frame) {
	p := f.IPv4()
	if p == nil {
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.judge(f, p)
}

func (w *watcher) judge(f netlab.Frame, p []byte) {
	header := int(p[0]&15) * 4
	from, to := netip.AddrFrom4([4]byte(p[12:16])), netip.AddrFrom4([4]byte(p[16:20]))
	if f.Outgoing {
		w.packets++
		w.newest = f.At
		home := netip.MustParsePrefix("172.168.0.0/24")
		switch id, err := packet.StreamID(p[20:header]); {
		case home.Contains(to):
			w.fault("for the LAN's address %s: %x", to, p)
		case home.Contains(from) || from != netip.MustParseAddr(uplinkAddr):
			w.fault("from %s: %x", from, p)
		case err != nil || id.IsValid():
			w.fault("with option 0x88: %x", p)
		}
	}
	if p[9] != syscall.IPPROTO_UDP || len(p) < header+8 {
		return
	}
	source := netip.AddrPortFrom(from, binary.BigEndian.Uint16(p[header:]))
	target := netip.AddrPortFrom(to, binary.BigEndian.Uint16(p[header+2:]))
	payload := p[header+8:]
	switch {
	case consentcheck.IsSTUN(payload):
		w.check(f, source, target, payload)
	case f.Outgoing:
		w.media(f.At, path{source.Port(), target}, payload)
	}
}

func (w *watcher) media(at time.Time, on path, payload []byte) {
	to := on.to
	if len(payload) < len(mediaOfCamera)+8 || string(payload[:len(mediaOfCamera)]) != mediaOfCamera {
		w.fault("not what the camera may stream: %.20q to %s", payload, to)
		return
	}
	n := binary.BigEndian.Uint64(payload[len(mediaOfCamera):])
	m := w.member[to.Addr()]
	switch {
	case m == nil:
		w.fault("datagram %d to %s, who was never a member", n, to)
		return
	case n < m.first || m.last != 0 && n >= m.last:
		w.fault("datagram %d to %s, who was a member from %d on and no more from %d on", n, to, m.first, m.last)
		return
	case !m.asks && to.Port() != mediaPort:
		w.fault("datagram %d to %s, whose port is %d", n, to, mediaPort)
		return
	}
	m.seen[to] = max(m.seen[to], n)
	if !m.asks {
		return
	}
	p := m.places[on]
	switch {
	case p == nil:
		w.fault("datagram %d to %s, from where nobody ever consented", n, to)
		return
	case !p.live(at, heardLate):
		w.fault("datagram %d to %s, whose consent was %s old", n, to, at.Sub(p.proved))
	case p.closed != 0 && n >= p.closed:
		w.fault("datagram %d to %s, where the member was until %d", n, to, p.closed)
	}
	if m.at != p && p.closed == 0 {
		if m.at != nil {
			m.at.closed = w.sent.Load() + 1
		}
		m.at = p
	}
}

// check judges a check of the gateway's, and takes what is proved to it.
func (w *watcher) check(f netlab.Frame, from, to netip.AddrPort, payload []byte) {
	c, ok := consentcheck.Parse(payload)
	if !ok {
		if f.Outgoing {
			w.fault("STUN that is no check to %s: %x", to, payload)
		}
		return
	}
	w.checks++
	switch {
	case !f.Outgoing && c.Kind == consentcheck.Request:
		name, _ := consentcheck.ToAgent.Ufrag(c.Username)
		m := w.ufrags[name]
		if m == nil || !c.Authentic(m.credential.Password) || m.strict && from.Addr() != m.addr {
			return
		}
		target := from
		if m.port != 0 {
			target = netip.AddrPortFrom(from.Addr(), m.port)
		}
		on := path{to.Port(), target}
		w.asking[c.ID] = question{m, from, on, len(payload)}
		if !m.places[on].live(f.At, 0) {
			w.owed[on]++
		}
	case !f.Outgoing:
		q, ok := w.asked[c.ID]
		if !ok || q.path != (path{to.Port(), from}) || !c.Authentic(q.of.credential.Password) {
			return
		}
		delete(w.asked, c.ID)
		p := q.of.places[q.path]
		if p == nil {
			p = &spot{}
			q.of.places[q.path] = p
		} else if !p.live(f.At, heardLate) {
			w.outlived++
		}
		p.proved, p.closed, q.of.probed = f.At, 0, 0
		w.proofs++
	case c.Kind == consentcheck.Request:
		name, _ := consentcheck.ToReceiver.Ufrag(c.Username)
		m := w.ufrags[name]
		if m == nil {
			w.unknown = append(w.unknown, f)
			return
		}
		w.longest = max(w.longest, len(payload))
		w.request(f.At, c, m, question{m, from, path{from.Port(), to}, len(payload)})
	default:
		q, ok := w.asking[c.ID]
		delete(w.asking, c.ID)
		switch {
		case !ok || q.by != to || q.path.port != from.Port():
			w.fault("an answer to %s, who didn't ask", to)
		case !c.Authentic(q.of.credential.Password) || len(payload) > q.size:
			w.fault("an answer of %d bytes to a request of %d from %s", len(payload), q.size, to)
		case !q.of.places[q.path].live(f.At, heardLate):
			w.fault("an answer to %s, before anybody consented at %s", to, q.path.to)
		case !q.of.left.IsZero() && f.At.After(q.of.left):
			w.fault("an answer to %s, who left", to)
		}
	}
}

// request judges a request of the gateway's. An address that has proved nothing is sent one for each that came from there, or a few first if it may be.
func (w *watcher) request(at time.Time, c consentcheck.Message, m *membership, q question) {
	w.asked[c.ID] = q
	switch {
	case !c.Authentic(m.credential.Password):
		w.fault("a request to %s without the secret", q.path.to)
	case !m.left.IsZero() && at.After(m.left):
		w.fault("a request to %s on behalf of who left", q.path.to)
	case m.places[q.path].live(at, heardLate):
	case w.owed[q.path] > 0:
		w.owed[q.path]--
		w.unasked++
	case m.mayProbe && (q.path.to == netip.AddrPortFrom(m.addr, m.port) || q.path.to == m.before) && m.probed < models.MaxProbes:
		m.probed++
		w.unasked++
	default:
		w.fault("a request to %s, who has proved nothing and didn't ask; %d probes before", q.path.to, m.probed)
	}
}

// joins says that whatever is sent from now on may go to the member there.
func (w *watcher) joins(m *membership, addr string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	m.first, m.seen, m.places = w.sent.Load()+1, map[netip.AddrPort]uint64{}, map[path]*spot{}
	m.addr = netip.MustParseAddr(addr)
	w.member[m.addr] = m
}

// moves says that the member may get its copies there, too; from which copy there on it gets none elsewhere, it finds out.
func (w *watcher) moves(m *membership, addr string, port uint16) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if to := netip.MustParseAddr(addr); to != m.addr || port != m.port {
		m.before, m.addr, m.port, m.probed = netip.AddrPortFrom(m.addr, m.port), to, port, 0
	}
	w.member[m.addr] = m
}

// knows takes a member's secret, and judges what was there before it.
func (w *watcher) knows(m *membership, c models.ConsentCredential) {
	w.mu.Lock()
	defer w.mu.Unlock()
	m.credential = c
	w.ufrags[c.Ufrag] = m
	unknown := w.unknown
	w.unknown = nil
	for _, f := range unknown {
		w.judge(f, f.IPv4())
		w.packets--
		w.checks--
	}
}

// restarts says that the agent has forgotten how often it asked.
func (w *watcher) restarts() {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, m := range w.ufrags {
		m.probed = 0
	}
}

// leaves says that nothing that is sent from now on may go to the member.
func (w *watcher) leaves(m *membership) {
	w.mu.Lock()
	defer w.mu.Unlock()
	m.last, m.left = w.sent.Load()+1, time.Now()
}

// got tells whether something that was sent after now comes to the member there.
func (w *watcher) got(m *membership, at netip.AddrPort, after uint64) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return m.seen[at] > after
}
