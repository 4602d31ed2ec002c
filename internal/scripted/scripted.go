// Package scripted is a registration service for tests that answers what the test says: refusals, outages and moves that the
// real one shows only after minutes or not at all. The real one is what e2e tests.
package scripted

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"

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
	held     *api.Registration // nil: there is none
	events   []string
	told     chan struct{} // closed when there are more
	deaf     bool
	asked    []string // how events were asked for
	tunnel   tunnel
}

// Start serves until the test ends.
func Start(t testing.TB) (*Service, *client.ClientWithResponses) {
	t.Helper()
	s, url, stop := Open()
	t.Cleanup(stop)
	c, err := client.NewClientWithResponses(url)
	require.NoError(t, err)
	return s, c
}

// Open serves until stop is called.
func Open() (s *Service, url string, stop func()) {
	s = &Service{told: make(chan struct{})}
	mux := http.NewServeMux()
	mux.HandleFunc("POST /v1/registrations", s.post)
	mux.HandleFunc("DELETE /v1/registrations/{id}", s.leave)
	mux.HandleFunc("GET /v1/registrations/{id}", s.read)
	mux.HandleFunc("GET /v1/groups", s.list)
	mux.HandleFunc("GET /v1/groups/{id}/events", s.stream)
	mux.HandleFunc("PUT /v1/devices/{id}/tunnel", s.declareTunnel)
	mux.HandleFunc("GET /v1/devices/{id}/tunnel", s.tellTunnel)
	server := httptest.NewServer(mux)
	return s, server.URL, func() {
		server.CloseClientConnections()
		server.Close()
	}
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

// Hold sets what the registration is read as.
func (s *Service) Hold(r *api.Registration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.held = r
}

// Tell adds an event of the group.
func (s *Service) Tell(kind models.EventType, data api.GroupEventData) {
	event, err := json.Marshal(map[string]any{"type": "groupcast." + string(kind), "data": data})
	if err != nil {
		panic(err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.events = append(s.events, string(event))
	close(s.told)
	s.told = make(chan struct{})
}

// KeepStreamsSilent is a proxy on the way that holds back what is no whole answer.
func (s *Service) KeepStreamsSilent() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.deaf = true
}

// Asked tells how events were asked for: "stream", or "poll" and the id that went on.
func (s *Service) Asked() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]string(nil), s.asked...)
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

func (s *Service) read(w http.ResponseWriter, _ *http.Request) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.held == nil {
		write(w, http.StatusNotFound, api.Problem{Type: "/problems/not-found", Title: "Not found", Status: http.StatusNotFound})
		return
	}
	write(w, http.StatusOK, s.held)
}

// stream tells events as Server-Sent Events or by long poll. Their ids are how many there were.
func (s *Service) stream(w http.ResponseWriter, r *http.Request) {
	at, _ := strconv.Atoi(r.Header.Get("Last-Event-ID"))
	poll := r.Header.Get("Accept") == "application/json"
	s.mu.Lock()
	how := "stream"
	if poll {
		how = "poll " + r.Header.Get("Last-Event-ID")
	}
	s.asked = append(s.asked, how)
	deaf := s.deaf
	s.mu.Unlock()
	if !poll {
		w.Header().Set("Content-Type", "text/event-stream")
		w.WriteHeader(http.StatusOK)
		w.(http.Flusher).Flush()
	}
	for {
		s.mu.Lock()
		events, told := s.events[min(at, len(s.events)):], s.told
		s.mu.Unlock()
		switch {
		case poll && len(events) > 0:
			at += len(events)
			fmt.Fprintf(w, `{"lastEventId":"%d","events":[%s]}`, at, strings.Join(events, ","))
			return
		case !poll && !deaf:
			for _, e := range events {
				at++
				fmt.Fprintf(w, "event: group\nid: %d\ndata: %s\n\n", at, e)
			}
			w.(http.Flusher).Flush()
		}
		select {
		case <-r.Context().Done():
			return
		case <-told:
		}
	}
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
