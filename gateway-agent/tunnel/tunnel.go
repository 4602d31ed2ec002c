package tunnel

import (
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"sync"
	"time"

	"github.com/groupcast/groupcast/models"
)

// MTU is the tunnel device's, in bytes: what fits a path of 1,500 bytes with WireGuard over IPv4 or IPv6 around it.
const MTU = 1420

// KeepAlive is how often a peer that has an endpoint is told that this host is still there, so that a NAT keeps its mapping.
const KeepAlive = 15 * time.Second

// Peer is the other end of a tunnel.
type Peer struct {
	Key models.TunnelKey
	// Address is the one IPv6 address that the peer may use inside the tunnel.
	Address netip.Addr
	// Endpoint is where the peer is reached; the zero AddrPort: it speaks first. Wherever an authentic datagram of its comes from is its endpoint from then on.
	Endpoint netip.AddrPort
}

// PeerStatus is how things stand with a peer.
type PeerStatus struct {
	Endpoint  netip.AddrPort // zero: it was never heard from
	Handshake time.Time      // the last one; zero: never
	Received  uint64         // bytes
	Sent      uint64         // bytes
}

// Config is this host's end.
type Config struct {
	// Name is that of the interface, at most 15 characters. An interface of that name and of WireGuard's type that an agent before this one left is replaced.
	Name string
	Key  PrivateKey
	// Port is the UDP port that peers reach this host at; 0: any. Then peers can't speak first, and this host does until it is answered.
	Port uint16
	// Address is this host's own inside the tunnel: of the /48 that all tunnel addresses are of.
	Address netip.Addr
	// UserSpace has the kernel's WireGuard left alone, also where there is one.
	UserSpace bool
	Log       *slog.Logger
}

// backend is one of the two WireGuards.
type backend interface {
	// set makes these changes in this order: peers that leave, then peers that come or change.
	set(leave []models.TunnelKey, come []Peer) error
	peers() (map[models.TunnelKey]PeerStatus, error)
	close() error
}

// Tunnel is an interface that is up. Its methods are for one goroutine, but for Status.
type Tunnel struct {
	backend
	config Config
	kernel bool
	link   *link
	held   map[models.TunnelKey]Peer
	quiet  func() // ends the goroutine that knocks
}

// Open brings the interface up, without peers. It needs CAP_NET_ADMIN.
func Open(c Config) (*Tunnel, error) {
	if !c.Address.Is6() || c.Address.Is4In6() {
		return nil, fmt.Errorf("tunnel: %s is not the IPv6 address of a host", c.Address)
	}
	if c.Log == nil {
		c.Log = slog.Default()
	}
	t := &Tunnel{config: c, held: map[models.TunnelKey]Peer{}, quiet: func() {}}
	var err error
	if !c.UserSpace {
		if t.backend, err = openKernel(c); err != nil && !errors.Is(err, errNoKernel) {
			return nil, fmt.Errorf("tunnel: %w", explain(err))
		}
		t.kernel = err == nil
	}
	if t.backend == nil {
		if t.backend, err = openUser(c); err != nil {
			return nil, fmt.Errorf("tunnel: %w", explain(err))
		}
	}
	if t.link, err = raise(c.Name, c.Address); err != nil {
		return nil, fmt.Errorf("tunnel: bring up %s: %w", c.Name, errors.Join(explain(err), t.close()))
	}
	c.Log.Info("the tunnel is up", "interface", c.Name, "kernel", t.kernel, "mtu", MTU)
	return t, nil
}

// Interface is the tunnel device's name.
func (t *Tunnel) Interface() string { return t.config.Name }

// Address is this host's own in the tunnel.
func (t *Tunnel) Address() netip.Addr { return t.config.Address }

// Kernel tells whether it is the kernel's WireGuard.
func (t *Tunnel) Kernel() bool { return t.kernel }

// Apply makes the peers these. Who stays keeps its session, and the endpoint that it was last heard from, unless it is given another. Two peers with the same key or the same
// address are refused, with all the others: a key must not stand for two.
func (t *Tunnel) Apply(peers []Peer) error {
	wanted, addresses := map[models.TunnelKey]Peer{}, map[netip.Addr]bool{t.config.Address: true}
	for _, p := range peers {
		switch _, twice := wanted[p.Key]; {
		case twice:
			return errors.New("tunnel: two peers have the same key")
		case !p.Address.Is6() || p.Address.Is4In6():
			return errors.New("tunnel: a peer's address is not an IPv6 address")
		case addresses[p.Address]:
			return errors.New("tunnel: two peers have the same address")
		}
		wanted[p.Key], addresses[p.Address] = p, true
	}
	var leave []models.TunnelKey
	for key := range t.held {
		if _, stays := wanted[key]; !stays {
			leave = append(leave, key)
		}
	}
	var come []Peer
	for key, p := range wanted {
		if t.held[key] != p {
			come = append(come, p)
		}
	}
	if len(leave)+len(come) == 0 {
		return nil
	}
	t.quiet()
	if err := t.set(leave, come); err != nil {
		return fmt.Errorf("tunnel: set the peers: %w", explain(err))
	}
	t.held = wanted
	if t.config.Port == 0 {
		t.quiet = t.knock(wanted)
	}
	return nil
}

// How long an answer is waited for: each time twice as long as the time before, and then from the beginning. So a peer that takes this host in a moment after it was
// asked is there soon, and one that is far away has the time that it needs.
const (
	firstKnock = 250 * time.Millisecond
	knocks     = 5
)

// knock asks peers again that have not answered yet. WireGuard by itself waits for five seconds, and a relay may hear of this host a little later than this host of it.
func (t *Tunnel) knock(peers map[models.TunnelKey]Peer) (quiet func()) {
	stop := make(chan struct{})
	var done sync.WaitGroup
	done.Go(func() {
		for n := 0; ; n = (n + 1) % knocks {
			select {
			case <-stop:
				return
			case <-time.After(firstKnock << n):
			}
			silent, err := t.silent(peers)
			if err == nil && len(silent) == 0 {
				return
			}
			for _, p := range silent {
				// A peer that comes again is asked at once.
				if err := t.set([]models.TunnelKey{p.Key}, []Peer{p}); err != nil {
					t.config.Log.Debug("the other end of the tunnel could not be asked again", "err", err)
				}
			}
		}
	})
	return sync.OnceFunc(func() { close(stop); done.Wait() })
}

// Answered tells whether all peers have answered that this host asks.
func (t *Tunnel) Answered() bool {
	silent, err := t.silent(t.held)
	return err == nil && len(silent) == 0
}

// silent gives the peers that have an endpoint and have never answered.
func (t *Tunnel) silent(peers map[models.TunnelKey]Peer) (silent []Peer, err error) {
	all, err := t.peers()
	for key, p := range peers {
		if err == nil && p.Endpoint.IsValid() && all[key].Handshake.IsZero() {
			silent = append(silent, p)
		}
	}
	return silent, err
}

// Status is how things stand with each peer. It may be called on any goroutine.
func (t *Tunnel) Status() (map[models.TunnelKey]PeerStatus, error) {
	all, err := t.peers()
	if err != nil {
		return nil, fmt.Errorf("tunnel: ask for the peers: %w", err)
	}
	return all, nil
}

// Close takes the interface down.
func (t *Tunnel) Close() error {
	t.quiet()
	if err := errors.Join(t.link.lower(), t.close()); err != nil {
		return fmt.Errorf("tunnel: %w", err)
	}
	return nil
}
