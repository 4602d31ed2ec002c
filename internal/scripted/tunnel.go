package scripted

import (
	"encoding/json"
	"net/http"
	"slices"
	"strconv"
	"time"

	"github.com/groupcast/groupcast/models"
	"github.com/groupcast/groupcast/openapi/api"
)

// tunnel is what is known of a camera's own one.
type tunnel struct {
	info     *api.TunnelInformation // nil: the service is away
	known    bool                   // it was declared, and not forgotten
	taken    bool                   // a declaration is refused
	declared []api.TunnelDeclaration
	waits    []int // seconds that were asked for, of each poll with an index
	changed  chan struct{}
}

// Tunnel sets where the camera's tunnel goes; nil: every question about it fails.
func (s *Service) Tunnel(info *api.TunnelInformation) { s.change(func(t *tunnel) { t.info = info }) }

// ForgetTunnel forgets the declaration. While taken is true the next ones are refused.
func (s *Service) ForgetTunnel(taken bool) {
	s.change(func(t *tunnel) { t.known, t.taken = false, taken })
}

// TakeTunnels accepts declarations again.
func (s *Service) TakeTunnels() { s.change(func(t *tunnel) { t.taken = false }) }

func (s *Service) change(what func(*tunnel)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	what(&s.tunnel)
	if s.tunnel.changed != nil {
		close(s.tunnel.changed)
	}
	s.tunnel.changed = make(chan struct{})
}

// DeclaredTunnels gives all declarations that were accepted.
func (s *Service) DeclaredTunnels() []api.TunnelDeclaration {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.tunnel.declared)
}

// TunnelWaits gives how many seconds each long poll about the tunnel asked to wait.
func (s *Service) TunnelWaits() []int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.tunnel.waits)
}

func (s *Service) declareTunnel(w http.ResponseWriter, r *http.Request) {
	var d api.TunnelDeclaration
	if err := json.NewDecoder(r.Body).Decode(&d); err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.tunnel.taken {
		write(w, http.StatusConflict, api.Problem{Type: "/problems/range-conflict", Title: "Range conflict", Status: http.StatusConflict})
		return
	}
	id, err := models.ParseID(r.PathValue("id"))
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	s.tunnel.known = true
	s.tunnel.declared = append(s.tunnel.declared, d)
	write(w, http.StatusOK, api.Tunnel{DeviceID: id, TunnelKey: d.TunnelKey, PrivateIPv4: d.PrivateIPv4})
}

// tellTunnel waits as long as it was asked to while the index is the newest.
func (s *Service) tellTunnel(w http.ResponseWriter, r *http.Request) {
	seconds, _ := strconv.Atoi(r.URL.Query().Get("wait")) // 0 if there is none
	index := r.URL.Query().Get("index")
	if index != "" {
		s.mu.Lock()
		s.tunnel.waits = append(s.tunnel.waits, seconds)
		s.mu.Unlock()
	}
	timeout := time.NewTimer(time.Duration(seconds) * time.Second)
	defer timeout.Stop()
	for over := false; ; {
		s.mu.Lock()
		t := s.tunnel
		s.mu.Unlock()
		switch {
		case t.info == nil:
			write(w, http.StatusServiceUnavailable, api.Problem{Type: "/problems/unavailable", Title: "Unavailable", Status: http.StatusServiceUnavailable})
			return
		case !t.known:
			write(w, http.StatusNotFound, api.Problem{Type: "/problems/not-found", Title: "Not found", Status: http.StatusNotFound})
			return
		case over || index != t.info.Epoch+"."+t.info.Revision:
			write(w, http.StatusOK, t.info)
			return
		}
		select {
		case <-t.changed:
		case <-timeout.C:
			over = true
		case <-r.Context().Done():
			return
		}
	}
}
