package agent

import (
	"context"
	"encoding/json"
	"log/slog"
	"maps"
	"net/netip"
	"os"
	stdsync "sync"
	"time"

	"github.com/groupcast/groupcast/gateway-agent/tunnel"
	"github.com/groupcast/groupcast/models"
)

// tunnelFile has what a relay that starts again needs to know of its tunnels, and keyFile the secret key of a gateway or a relay.
const (
	tunnelFile = "tunnel.json"
	keyFile    = "tunnel.key"
)

// rememberEvery is how often is looked where peers are. A relay that starts again speaks to each at once from where it was, else each would wait for
// WireGuard to find out that its session is gone.
const rememberEvery = 2 * time.Second

// tunnelState is where a relay and its peers were last. It may be asked on any goroutine.
type tunnelState struct {
	file string
	log  *slog.Logger

	mu     stdsync.Mutex
	kept   keptTunnel
	tunnel *tunnel.Tunnel
	served map[models.TunnelKey]bool // whose places are kept while they have no peer; nil: not known yet
}

type keptTunnel struct {
	Address   netip.Addr                          `json:"address"`
	Endpoints map[models.TunnelKey]netip.AddrPort `json:"endpoints"`
}

// openTunnelState reads what the last relay kept. What is damaged is as if it weren't there.
func openTunnelState(file string, log *slog.Logger) *tunnelState {
	s := &tunnelState{file: file, log: log}
	if b, err := os.ReadFile(file); err == nil && json.Unmarshal(b, &s.kept) != nil {
		s.kept = keptTunnel{}
	}
	if s.kept.Endpoints == nil {
		s.kept.Endpoints = map[models.TunnelKey]netip.AddrPort{}
	}
	return s
}

func (s *tunnelState) address() netip.Addr {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.kept.Address
}

func (s *tunnelState) endpoint(key models.TunnelKey) netip.AddrPort {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.kept.Endpoints[key]
}

// setAddress takes what the service says.
func (s *tunnelState) setAddress(a netip.Addr) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.kept.Address != a {
		s.kept.Address = a
		s.save()
	}
}

func (s *tunnelState) follow(t *tunnel.Tunnel) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.tunnel = t
}

// serve says whose places are to be kept, also while they have no peer in the tunnel.
func (s *tunnelState) serve(keys map[models.TunnelKey]bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.served = keys
}

// run notes where peers are, until ctx ends. What the tunnel was given isn't changed by it.
func (s *tunnelState) run(ctx context.Context) {
	for sleep(ctx, rememberEvery) {
		s.look()
	}
}

func (s *tunnelState) look() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.tunnel == nil {
		return
	}
	peers, err := s.tunnel.Status()
	if err != nil {
		return // closed meanwhile
	}
	now := map[models.TunnelKey]netip.AddrPort{}
	for key, at := range s.kept.Endpoints {
		if s.served == nil || s.served[key] {
			now[key] = at
		}
	}
	for key, p := range peers {
		if p.Endpoint.IsValid() {
			now[key] = p.Endpoint
		}
	}
	if !maps.Equal(now, s.kept.Endpoints) {
		s.kept.Endpoints = now
		s.save()
	}
}

func (s *tunnelState) save() {
	b, err := json.Marshal(s.kept)
	if err == nil {
		err = os.WriteFile(s.file+".new", b, 0o600)
	}
	if err == nil {
		err = os.Rename(s.file+".new", s.file)
	}
	if err != nil {
		s.log.Warn("where the tunnels' peers are could not be kept: after a restart they take longer to come back; make room in state-dir", "err", err)
	}
}
