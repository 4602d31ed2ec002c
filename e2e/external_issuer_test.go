package e2e

import (
	"crypto/ed25519"
	"crypto/rand"
	"encoding/json"
	"maps"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/golang-jwt/jwt/v5"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/groupcast/groupcast/e2e/harness"
)

func TestTokensOfAnExternalIssuer(t *testing.T) {
	public, private, err := ed25519.GenerateKey(rand.Reader)
	require.NoError(t, err)
	provider := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		_ = json.NewEncoder(w).Encode(jose.JSONWebKeySet{Keys: []jose.JSONWebKey{{Key: public, KeyID: "k1", Algorithm: "EdDSA", Use: "sig"}}})
	}))
	defer provider.Close()
	text, err := json.Marshal(map[string]any{"issuers": []any{map[string]any{
		"issuer": "https://idp.example", "jwksUri": provider.URL, "audience": "groupcast", "algs": []string{"EdDSA"}, "mayIssue": []string{"service"},
		"scopeClaim": "capabilities", "scopeMap": map[string]any{"register": []string{"gc:register"}}, "services": map[string]string{"upload": "svc-upload"},
		"maxLife": "1h",
	}}})
	require.NoError(t, err)
	file := filepath.Join(t.TempDir(), "issuers.json")
	require.NoError(t, os.WriteFile(file, text, 0o600))
	harness.Databases(t, func(t *testing.T, databaseURL string) {
		s := harness.StartServer(t, harness.Options{DatabaseURL: databaseURL, Args: []string{"--external-issuers", file}})
		s.Service(t, "svc-upload", "upload")
		a := newAttacker(t, s)
		call := func(path string, change jwt.MapClaims) int {
			claims := jwt.MapClaims{
				"iss": "https://idp.example", "sub": "upload", "aud": "groupcast", "iat": time.Now().Unix(), "exp": time.Now().Add(time.Minute).Unix(),
				"capabilities": []string{"register"},
			}
			maps.Copy(claims, change)
			token := jwt.NewWithClaims(jwt.SigningMethodEdDSA, claims)
			token.Header["kid"] = "k1"
			signed, err := token.SignedString(private)
			require.NoError(t, err)
			status, _, _ := a.resource(t, "GET", path, "Bearer "+signed, "")
			return status
		}
		assert.Equal(t, 200, call("/v1/registrations", nil))
		assert.Equal(t, 403, call("/v1/groups", nil), "the map gave no such scope")
		assert.Equal(t, 401, call("/v1/registrations", jwt.MapClaims{"sub": "somebody"}))
		assert.Equal(t, 401, call("/v1/registrations", jwt.MapClaims{"gc_kind": "device"}))
		assert.Equal(t, 401, call("/v1/registrations", jwt.MapClaims{"iss": s.URL}), "nobody speaks for us")
	})
}
