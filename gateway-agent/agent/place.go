package agent

import (
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"slices"
	"sync/atomic"
	"time"

	"github.com/groupcast/groupcast/gateway-agent/duplicator"
	"github.com/groupcast/groupcast/gateway-agent/lan"
	"github.com/groupcast/groupcast/gateway-agent/sync"
	"github.com/groupcast/groupcast/gateway-agent/table"
	"github.com/groupcast/groupcast/gateway-agent/tunnel"
	"github.com/groupcast/groupcast/models"
)

// place is where this agent copies: at home, or in the network. It belongs to the goroutine of the forwarder, but for what its status asks.
type place interface {
	// put derives the effective table from what is held and puts it into force. An error that wraps duplicator.ErrNotApplied leaves what was in force
	// before; with any other the rest is in force.
	put(v table.View, in table.Inputs, held *sync.Information) (effective, error)
	// follow is put after a change of who consents, which nothing else hangs on. The inputs lack consents and ports.
	follow(v table.View, k *consents, in table.Inputs, held *sync.Information) (effective, error)
	// stop ends all copying and forwarding.
	stop() error
	// stood is when it was found that this process stood still, last: what was heard before that is in force no more. Zero: never.
	stood() time.Time
	// counts may be asked on any goroutine, and so may status, which is nil without a tunnel.
	counts() counts
	status() *TunnelStatus
}

// effective is a table that is in force; nil: none.
type effective []*table.Snapshot

// home is a gateway: it copies, or it forwards to a relay, and never both.
type home struct {
	duplicator duplicator.Duplicator
	backend    duplicator.Duplicator // behind whatever gate duplicator is
	guard      *lan.Guard
	way        *forwarding
	away       bool // copies aren't made here now
	here       bool // they are; neither, if nothing is in force
}

// drainTime is how long copying at home waits at most for what the backend has not judged yet; what comes meanwhile is lost.
const drainTime = 200 * time.Millisecond

// answerTime is how long copying at home goes on at most while the relay that is to copy hasn't answered in the tunnel: what is forwarded before that may be lost.
const answerTime = time.Second

func (h *home) put(v table.View, in table.Inputs, held *sync.Information) (effective, error) {
	s, err := h.copy(v, in, held)
	if errors.Is(err, duplicator.ErrNotApplied) || s == nil {
		return s, err
	}
	return s, errors.Join(err, h.guard.Apply(s[0]))
}

func (h *home) follow(v table.View, k *consents, in table.Inputs, held *sync.Information) (effective, error) {
	return h.copy(v, k.inputs(time.Now(), in), held)
}

// copy has one of the two stop before the other begins.
func (h *home) copy(v table.View, in table.Inputs, held *sync.Information) (effective, error) {
	s, err := table.Derive(v, in)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", duplicator.ErrNotApplied, err)
	}
	var wayErr error
	if held.Relay != nil {
		wayErr = h.way.open(held)
	}
	copies := s
	if held.Network && wayErr == nil && (held.Relay == nil || held.Relay.Forwarding) {
		copies = withoutDestinations(s)
	}
	if copies == s && h.away {
		// What was forwarded already and still waits for the backend is judged by a table without destinations.
		h.way.stop()
		if d, ok := h.backend.(interface{ Drain(time.Duration) bool }); ok && !d.Drain(drainTime) {
			h.way.log.Warn("a datagram may have been copied twice: what waited before copies were made at home again was not worked off in time")
		}
	}
	if copies != s && held.Relay != nil && h.here && !h.way.answered() {
		if err := h.duplicator.Apply(s); err != nil { // who left gets nothing more meanwhile
			return effective{s}, err
		}
		h.way.await(answerTime)
	}
	h.away = copies != s
	err = h.duplicator.Apply(copies)
	if held.Relay == nil {
		wayErr = h.way.end(held.Network) // which takes a while, so that copying doesn't wait for it
	}
	if err != nil {
		return effective{s}, errors.Join(err, wayErr)
	}
	h.here = copies == s
	if copies != s && held.Relay != nil {
		// Which of the destinations consents is the relay's to know.
		in.Unasked = true
		all, err := table.Derive(v, in)
		if err != nil {
			return effective{s}, errors.Join(wayErr, err)
		}
		wayErr = h.way.ends.Load().forward.Apply(all, held.Relay.TunnelAddress)
	}
	return effective{s}, wayErr
}

func (h *home) stop() error {
	h.here = false
	h.way.stop()
	return errors.Join(h.guard.Apply(nil), h.duplicator.Apply(nil))
}

// stood is never: what a gateway heard holds until maxStaleSeconds are over.
func (*home) stood() time.Time { return time.Time{} }

// withoutDestinations keeps the groups: what comes for them is counted and refused as ever, and no camera is told that nobody is there.
func withoutDestinations(s *table.Snapshot) *table.Snapshot {
	out := &table.Snapshot{Version: s.Version, ValidUntil: s.ValidUntil, Heard: s.Heard, Groups: make(map[netip.Addr]*table.Group, len(s.Groups))}
	for ip, g := range s.Groups {
		quiet := *g
		quiet.Destinations = nil
		out.Groups[ip] = &quiet
	}
	return out
}

// homeTunnel and relayTunnel name the interfaces: a gateway and a relay may run on one host.
const (
	homeTunnel  = "gchome"
	relayTunnel = "gcrelay"
)

// forwarding is a gateway's end of the tunnel. Nothing of it is there unless the service names a relay.
type forwarding struct {
	config  duplicator.Config
	iface   string
	key     tunnel.PrivateKey
	enabled bool
	log     *slog.Logger

	ends atomic.Pointer[forwardEnds]
}

// forwardEnds are replaced as a whole: the status reads them.
type forwardEnds struct {
	tunnel  *tunnel.Tunnel
	forward *duplicator.Forward
}

var errNoTunnel = errors.New("the account holder has copies made in the network, but this gateway has no tunnel: copying at home")

// open has the tunnel be that to the relay, which there is.
func (w *forwarding) open(held *sync.Information) error {
	r := held.Relay
	if !w.enabled {
		return errNoTunnel
	}
	if e := w.ends.Load(); e != nil && e.tunnel.Address() != r.OwnTunnelAddress {
		if err := w.close(); err != nil {
			return err
		}
	}
	if w.ends.Load() == nil {
		t, err := tunnel.Open(tunnel.Config{Name: homeTunnel, Key: w.key, Address: r.OwnTunnelAddress, Log: w.log})
		if err != nil {
			return err
		}
		f, err := duplicator.OpenForward(w.config, w.iface, t)
		if err != nil {
			return errors.Join(err, t.Close())
		}
		w.ends.Store(&forwardEnds{t, f})
	}
	var peers []tunnel.Peer
	if len(needed(held)) > 0 { // else the relay wouldn't know this gateway either
		peers = append(peers, tunnel.Peer{
			Key: r.TunnelKey, Address: r.TunnelAddress, Endpoint: netip.AddrPortFrom(r.EndpointIPv4, uint16(r.EndpointPort)),
		})
	}
	return w.ends.Load().tunnel.Apply(peers)
}

// answered tells whether the relay has, if there is anything to ask it for; the tunnel is open.
func (w *forwarding) answered() bool { return w.ends.Load().tunnel.Answered() }

func (w *forwarding) await(wait time.Duration) {
	for end := time.Now().Add(wait); !w.answered() && time.Now().Before(end); {
		time.Sleep(10 * time.Millisecond)
	}
}

// needed are the premises from which something may have to be copied: those with a group that has a destination, consenting or not. At a gateway it is at most
// one. Only for these there is a peer in the tunnel: it takes tens of kilobytes (ADR 77). Both ends go by the same words of the service.
func needed(held *sync.Information) map[models.PremisesID]bool {
	all := map[models.PremisesID]bool{}
	for _, g := range held.Groups {
		if len(g.Destinations) > 0 {
			all[g.PremisesID] = true
		}
	}
	return all
}

// stop forwards nothing more, and leaves the tunnel up.
func (w *forwarding) stop() {
	if e := w.ends.Load(); e != nil {
		_ = e.forward.Apply(nil, netip.Addr{}) // it fails only when it is closed
	}
}

// end has no relay. If copies are to be made in the network all the same, the tunnel waits for the next one: to open another takes its time.
func (w *forwarding) end(network bool) error {
	e := w.ends.Load()
	if e == nil || !network {
		return w.close()
	}
	w.stop()
	return e.tunnel.Apply(nil)
}

func (w *forwarding) close() error {
	e := w.ends.Swap(nil)
	if e == nil {
		return nil
	}
	return errors.Join(e.forward.Close(), e.tunnel.Close())
}

// network is a relay: it copies what comes out of the tunnels.
type network struct {
	copier   func(duplicator.Inside) (duplicator.Network, error) // opens what copies behind a tunnel
	key      tunnel.PrivateKey
	port     uint16
	remember *tunnelState
	peers    map[models.TunnelKey]tunnel.Peer // in the tunnel
	homes    map[netip.Addr]*table.Snapshot   // in force
	of       map[string][]netip.Addr          // which of them a group is in, by its id
	tables   effective                        // each once
	log      *slog.Logger

	ends atomic.Pointer[relayEnds]
}

type relayEnds struct {
	tunnel *tunnel.Tunnel
	relay  duplicator.Network
}

var errNoAddress = errors.New("the server has not said yet what this relay's address in the tunnels is")

func (n *network) put(v table.View, in table.Inputs, held *sync.Information) (effective, error) {
	if err := n.open(); err != nil {
		return nil, fmt.Errorf("%w: %w", duplicator.ErrNotApplied, err)
	}
	busy := needed(held)
	homes, err := table.DeriveRelay(v, in, slices.DeleteFunc(slices.Clone(held.Premises), func(p models.RelayPremises) bool { return !busy[p.PremisesID] }))
	if err != nil {
		return nil, fmt.Errorf("%w: %w", duplicator.ErrNotApplied, err)
	}
	tables, of := effective{}, map[string][]netip.Addr{}
	seen := map[*table.Snapshot]bool{}
	for at, h := range homes {
		for _, g := range h.Groups {
			of[g.ID] = append(of[g.ID], at)
		}
		if !seen[h] {
			seen[h] = true
			tables = append(tables, h)
		}
	}
	// Who comes can't send before the table has it.
	if err = n.ends.Load().relay.Apply(homes); errors.Is(err, duplicator.ErrNotApplied) {
		return nil, err
	}
	n.homes, n.of, n.tables = homes, of, tables
	return tables, errors.Join(err, n.connect(held, busy))
}

// follow derives the groups only whose consents have changed.
func (n *network) follow(v table.View, k *consents, in table.Inputs, held *sync.Information) (effective, error) {
	groups, some := k.moved(time.Now(), in)
	if groups == nil {
		return n.put(v, k.inputs(time.Now(), in), held)
	}
	in = some
	next := map[*table.Snapshot]*table.Snapshot{}
	for id := range groups {
		g, ok, err := table.DeriveGroup(v, in, id)
		if err != nil {
			return nil, fmt.Errorf("%w: %w", duplicator.ErrNotApplied, err)
		}
		if !ok {
			continue // the server ended it, and that is not in force yet
		}
		for _, at := range n.of[id] {
			before := n.homes[at]
			if next[before] == nil {
				next[before] = &table.Snapshot{Version: before.Version, ValidUntil: before.ValidUntil, Heard: before.Heard, Groups: maps.Clone(before.Groups)}
			}
			next[before].Groups[g.IP] = g
		}
	}
	for at, h := range n.homes {
		if s := next[h]; s != nil {
			n.homes[at] = s
		}
	}
	n.tables = slices.Clone(n.tables) // others read the one of before
	for i, h := range n.tables {
		if s := next[h]; s != nil {
			n.tables[i] = s
		}
	}
	return n.tables, n.ends.Load().relay.Apply(n.homes)
}

func (n *network) stood() time.Time {
	if e := n.ends.Load(); e != nil {
		return e.relay.Stood()
	}
	return time.Time{}
}

// connect has a peer for each home that is needed. Of the others it keeps where they were last, and speaks to them at once when they are needed again: their gateways
// may not have heard that they were not.
func (n *network) connect(held *sync.Information, busy map[models.PremisesID]bool) error {
	next := map[models.TunnelKey]tunnel.Peer{}
	keys := make(map[models.TunnelKey]bool, len(held.Premises))
	for _, p := range held.Premises {
		keys[p.TunnelKey] = true
		if !busy[p.PremisesID] {
			continue
		}
		peer := tunnel.Peer{Key: p.TunnelKey, Address: p.TunnelAddress}
		if before, stays := n.peers[p.TunnelKey]; stays && before.Address == peer.Address {
			peer = before // where it is WireGuard knows better
		} else {
			peer.Endpoint = n.remember.endpoint(p.TunnelKey)
		}
		next[p.TunnelKey] = peer
	}
	for key := range n.peers {
		if _, stays := next[key]; !stays {
			n.remember.look()
			break
		}
	}
	if err := n.ends.Load().tunnel.Apply(slices.Collect(maps.Values(next))); err != nil {
		return err
	}
	n.peers = next
	n.remember.serve(keys)
	return nil
}

func (n *network) stop() error {
	n.homes, n.of, n.tables = nil, nil, nil
	if e := n.ends.Load(); e != nil {
		return e.relay.Apply(nil)
	}
	return nil
}

// open has the tunnel be at the address that the service gave this relay.
func (n *network) open() error {
	address := n.remember.address()
	switch {
	case !address.IsValid():
		return errNoAddress
	case n.ends.Load() != nil && n.ends.Load().tunnel.Address() == address:
		return nil
	}
	if err := n.close(); err != nil {
		return err
	}
	t, err := tunnel.Open(tunnel.Config{Name: relayTunnel, Key: n.key, Port: n.port, Address: address, Log: n.log})
	if err != nil {
		return err
	}
	r, err := n.copier(t)
	if err != nil {
		return errors.Join(err, t.Close())
	}
	n.remember.follow(t)
	n.ends.Store(&relayEnds{t, r})
	return nil
}

func (n *network) close() error {
	e := n.ends.Swap(nil)
	if e == nil {
		return nil
	}
	n.remember.follow(nil)
	n.peers = nil
	return errors.Join(e.relay.Close(), e.tunnel.Close())
}
