// Package scripted is a registration service for tests that answers what the test says: refusals, outages and moves that the
// real one shows only after minutes or not at all. The real one is what e2e tests.
package scripted

import (
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/groupcast/groupcast/cmd/groupcastctl/internal/connect"
	"github.com/groupcast/groupcast/models"
	"github.com/groupcast/groupcast/openapi/api"
	"github.com/groupcast/groupcast/openapi/client"
)

// RegistrationID is that of every answer of Answer.
const RegistrationID = models.RegistrationID("r_01j9zq3v6t7n8m2k4h5g6f7d8s")

// Service is a service with one group.
type Service struct {
	mu       sync.Mutex
	register []func(http.ResponseWriter)
	posts    []api.RegistrationRequest
	leaves   int
	groups   []api.Group
}

// Start serves until the test ends.
func Start(t testing.TB) (*Service, *client.ClientWithResponses) {
	t.Helper()
	s := &Service{}
	mux := http.NewServeMux()
	mux.HandleFunc("POST /v1/registrations", s.post)
	mux.HandleFunc("DELETE /v1/registrations/{id}", s.leave)
	mux.HandleFunc("GET /v1/groups", s.list)
	server := httptest.NewServer(mux)
	t.Cleanup(server.Close)
	token := filepath.Join(t.TempDir(), "token")
	require.NoError(t, os.WriteFile(token, []byte("token"), 0o600))
	c, err := connect.Public{Server: server.URL, TokenFile: token}.Open()
	require.NoError(t, err)
	return s, c
}

// Answer makes an answer that is to be renewed a second later.
func Answer(groupIP string, generation int32) api.RegistrationAnswer {
	id, ttl, after := RegistrationID, int32(3), int32(1)
	return api.RegistrationAnswer{
		GroupIP: netip.MustParseAddr(groupIP), Generation: &generation, TTLs: &ttl, RenewAfter: &after, RegistrationID: &id,
	}
}

// Say adds what the next POST is answered with. The last one said stays.
func (s *Service) Say(status int, document any) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.register = append(s.register, func(w http.ResponseWriter) { write(w, status, document) })
}

// Groups sets what is listed.
func (s *Service) Groups(groups ...api.Group) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.groups = groups
}

// Posts gives the bodies of all POSTs.
func (s *Service) Posts() []api.RegistrationRequest {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]api.RegistrationRequest(nil), s.posts...)
}

// Leaves counts the DELETEs.
func (s *Service) Leaves() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.leaves
}

func (s *Service) post(w http.ResponseWriter, r *http.Request) {
	var request api.RegistrationRequest
	if err := json.NewDecoder(r.Body).Decode(&request); err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.posts = append(s.posts, request)
	answer := s.register[0]
	if len(s.register) > 1 {
		s.register = s.register[1:]
	}
	answer(w)
}

func (s *Service) leave(w http.ResponseWriter, _ *http.Request) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.leaves++
	write(w, http.StatusOK, api.LeaveAnswer{GroupIP: netip.MustParseAddr("127.0.0.1")})
}

func (s *Service) list(w http.ResponseWriter, _ *http.Request) {
	s.mu.Lock()
	defer s.mu.Unlock()
	write(w, http.StatusOK, api.GroupPage{Groups: s.groups})
}

func write(w http.ResponseWriter, status int, document any) {
	kind := "application/json"
	if status >= 400 {
		kind = "application/problem+json"
	}
	w.Header().Set("Content-Type", kind)
	w.WriteHeader(status)
	if err := json.NewEncoder(w).Encode(document); err != nil {
		panic(err) // the client is gone, and with it the test
	}
}
