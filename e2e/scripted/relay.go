package scripted

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/netip"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/groupcast/groupcast/models"
	"github.com/groupcast/groupcast/openapi/api"
)

// Relay is what the service is to one relay: its declaration, its group information and its reports.
type Relay struct {
	mu           sync.Mutex
	info         api.RelayInformation
	address      netip.Addr
	token        string
	changed      chan struct{}
	cursor       string // that was acknowledged last
	declarations []api.RelayDeclaration
}

// NewRelay makes a service that has the given group information, gives the relay that address in the tunnels and accepts that token.
func NewRelay(info api.RelayInformation, address netip.Addr, token string) *Relay {
	return &Relay{info: info, address: address, token: token, changed: make(chan struct{})}
}

// Set changes the group information and answers who waits for that.
func (s *Relay) Set(info api.RelayInformation) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.info = info
	close(s.changed)
	s.changed = make(chan struct{})
}

// Cursor is what the relay acknowledged last.
func (s *Relay) Cursor() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.cursor
}

// Handler is the HTTP side of the service.
func (s *Relay) Handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("PUT /v1/relays/{id}", func(w http.ResponseWriter, r *http.Request) {
		var d api.RelayDeclaration
		if err := json.NewDecoder(r.Body).Decode(&d); err != nil {
			Problem(w, http.StatusBadRequest, "bad-request", "It can't be read.")
			return
		}
		s.mu.Lock()
		defer s.mu.Unlock()
		s.declarations = append(s.declarations, d)
		answer(w, api.Relay{
			RelayID: s.info.RelayID, Name: "relay", TunnelKey: d.TunnelKey, EndpointIPv4: d.EndpointIPv4, EndpointPort: d.EndpointPort, UplinkIPv4: d.UplinkIPv4,
			TunnelAddress: s.address, Revision: s.info.Revision,
		})
	})
	mux.HandleFunc("GET /v1/relays/{id}/groups", s.groups)
	sequence := int32(0)
	mux.HandleFunc("POST /v1/relays/{id}/consents", func(w http.ResponseWriter, r *http.Request) {
		var report api.ConsentReport
		_ = json.NewDecoder(r.Body).Decode(&report)
		s.mu.Lock()
		defer s.mu.Unlock()
		applied := report.Sequence > sequence
		sequence = max(sequence, report.Sequence)
		answer(w, api.ConsentReportAnswer{Applied: applied, Sequence: sequence, Unknown: []models.RegistrationID{}})
	})
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Authorization") != "Bearer "+s.token {
			Problem(w, http.StatusUnauthorized, "unauthenticated", "The token is not valid.")
			return
		}
		mux.ServeHTTP(w, r)
	})
}

func (s *Relay) groups(w http.ResponseWriter, r *http.Request) {
	cursor := strings.Trim(r.Header.Get("If-None-Match"), `"`)
	wait, _ := strconv.Atoi(r.URL.Query().Get("wait")) // 0 if there is none
	if wait > 2 {
		Problem(w, http.StatusBadRequest, "bad-request", "A relay may wait for two seconds.")
		return
	}
	timeout := time.NewTimer(time.Duration(wait) * time.Second)
	defer timeout.Stop()
	for {
		s.mu.Lock()
		info, changed := s.info, s.changed
		s.cursor = cursor
		s.mu.Unlock()
		etag := info.Epoch + "." + info.Revision
		w.Header().Set("ETag", fmt.Sprintf("%q", etag))
		if cursor != etag {
			answer(w, info)
			return
		}
		select {
		case <-changed:
		case <-timeout.C:
			w.WriteHeader(http.StatusNotModified)
			return
		case <-r.Context().Done():
			return
		}
	}
}

func answer(w http.ResponseWriter, body any) {
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(body) //nolint:errchkjson // the types of the contract have a form
}
