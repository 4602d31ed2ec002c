package possession_test

import (
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/groupcast/groupcast/openapi/clientauth"
	"github.com/groupcast/groupcast/server/dpop"
	"github.com/groupcast/groupcast/server/replay"
)

type clock struct{ now time.Time }

func (c *clock) Now() time.Time { return c.now }

func verifierAt(t *testing.T, url string, c *clock) *dpop.Verifier {
	t.Helper()
	nonces, err := dpop.NewNonces(make([]byte, 32), c.Now)
	if err != nil {
		t.Fatal(err)
	}
	memory, err := replay.NewMemory(1000, c.Now)
	if err != nil {
		t.Fatal(err)
	}
	v, err := dpop.NewVerifier(url, nonces, memory, c.Now)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

// TestOurClientPasses lets the client's half of RFC 9449 talk to this half, over a socket, with a right clock and without one.
func TestOurClientPasses(t *testing.T) {
	for name, wrong := range map[string]time.Duration{"right clock": 0, "no clock": -50 * 365 * 24 * time.Hour} {
		t.Run(name, func(t *testing.T) {
			clientClock := &clock{now: time.Now().Add(wrong)}
			serverClock := &clock{now: time.Now()}
			var v *dpop.Verifier
			var bound string
			var refused atomic.Int64
			srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				w.Header()["Date"] = nil // the client has to do with the nonce
				req := dpop.Request{Proofs: r.Header.Values("DPoP"), Method: r.Method, Path: r.URL.EscapedPath()}
				if r.URL.Path != "/oauth/token" {
					req.Token, req.BoundTo = strings.TrimPrefix(r.Header.Get("Authorization"), "DPoP "), bound
				}
				res, err := v.Verify(r.Context(), req)
				if e, refusal := errors.AsType[*dpop.Error](err); refusal {
					refused.Add(1)
					w.Header().Set("DPoP-Nonce", e.Nonce)
					w.Header().Set("WWW-Authenticate", `DPoP error="`+string(e.Code)+`"`)
					w.WriteHeader(map[bool]int{true: 400, false: 401}[req.Token == ""])
					_ = json.NewEncoder(w).Encode(map[string]string{"error": string(e.Code), "error_description": e.Detail})
					return
				}
				if err != nil {
					t.Error(err)
				}
				if res.Nonce != "" {
					w.Header().Set("DPoP-Nonce", res.Nonce)
				}
				if req.Token == "" {
					bound = res.Thumbprint
				}
				_ = json.NewEncoder(w).Encode(map[string]any{"access_token": "a.b.c", "token_type": "DPoP", "expires_in": 3600})
			}))
			defer srv.Close()
			v = verifierAt(t, srv.URL, serverClock)
			client, err := clientauth.CreateService(filepath.Join(t.TempDir(), "credential"),
				clientauth.Service{Server: srv.URL, ClientID: "svc", DPoP: true}, clientauth.Options{Now: clientClock.Now})
			if err != nil {
				t.Fatal(err)
			}
			http1 := &http.Client{Transport: client.Transport()}
			for i := range 10 {
				// The nonce is replaced on the way, without a refusal.
				serverClock.now = serverClock.now.Add(time.Duration(i%2) * 100 * time.Second)
				clientClock.now = clientClock.now.Add(time.Duration(i%2) * 100 * time.Second)
				resp, err := http1.Post(srv.URL+"/v1/caf%c3%a9/~x?query=1", "application/json", strings.NewReader(`{}`))
				if err != nil {
					t.Fatal(err)
				}
				_, _ = io.Copy(io.Discard, resp.Body)
				_ = resp.Body.Close()
				if resp.StatusCode != http.StatusOK {
					t.Fatalf("request %d: status %d", i, resp.StatusCode)
				}
			}
			want := int64(0)
			if wrong != 0 {
				want = 1 // to learn the first nonce
			}
			if n := refused.Load(); n != want {
				t.Fatalf("%d refusals, want %d", n, want)
			}
		})
	}
}
