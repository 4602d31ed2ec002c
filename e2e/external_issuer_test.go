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
	"strings"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/golang-jwt/jwt/v5"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/groupcast/groupcast/e2e/harness"
	"github.com/groupcast/groupcast/models"
	"github.com/groupcast/groupcast/openapi/adminapi"
)

func TestTokensOfAnExternalIssuer(t *testing.T) {
	t.Parallel()
	public, private, err := ed25519.GenerateKey(rand.Reader)
	require.NoError(t, err)
	provider := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		_ = json.NewEncoder(w).Encode(jose.JSONWebKeySet{Keys: []jose.JSONWebKey{{Key: public, KeyID: "k1", Algorithm: "EdDSA", Use: "sig"}}})
	}))
	t.Cleanup(provider.Close)
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

// TestUsersOfAnExternalIssuer: somebody is a user here if the operator said so for exactly that issuer and that sub, and by nothing else.
func TestUsersOfAnExternalIssuer(t *testing.T) {
	t.Parallel()
	keys := map[string]ed25519.PrivateKey{}
	var issuers []any
	for _, name := range []string{"https://idp.example", "https://other.example"} {
		public, private, err := ed25519.GenerateKey(rand.Reader)
		require.NoError(t, err)
		keys[name] = private
		provider := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			_ = json.NewEncoder(w).Encode(jose.JSONWebKeySet{Keys: []jose.JSONWebKey{{Key: public, KeyID: "k1", Algorithm: "EdDSA", Use: "sig"}}})
		}))
		t.Cleanup(provider.Close)
		issuers = append(issuers, map[string]any{
			"issuer": name, "jwksUri": provider.URL, "audience": "groupcast", "algs": []string{"EdDSA"}, "mayIssue": []string{"user"},
			"scopeClaim": "capabilities", "scopeMap": map[string]any{"all": []string{"gc:account", "gc:links", "gc:register", "gc:notify"}}, "maxLife": "1h",
		})
	}
	text, err := json.Marshal(map[string]any{"issuers": issuers})
	require.NoError(t, err)
	file := filepath.Join(t.TempDir(), "issuers.json")
	require.NoError(t, os.WriteFile(file, text, 0o600))
	harness.Databases(t, func(t *testing.T, databaseURL string) {
		s := harness.StartServer(t, harness.Options{DatabaseURL: databaseURL, Args: []string{"--external-issuers", file}})
		h, other := newIdentityHome(t, s, "Smith"), newIdentityHome(t, s, "Jones")
		for name, account := range map[string]models.AccountID{"anna@example.net": h.account, "bert": other.account} {
			i, err := s.Admin.CreateInvitationWithResponse(t.Context(), nil, adminapi.InvitationRequest{AccountID: &account})
			require.NoError(t, err)
			require.NotNil(t, i.JSON200, "%s", i.Body)
			r, err := s.HTTP.Post(s.URL+"/v1/accounts", "application/json", strings.NewReader(
				`{"userName":"`+name+`","password":"four words are enough","accountName":"x","invitation":"`+i.JSON200.Invitation+`"}`))
			require.NoError(t, err)
			require.NoError(t, r.Body.Close())
			require.Equal(t, 201, r.StatusCode)
		}
		identity := func(account models.AccountID, user, issuer, subject string) (int, string) {
			r, err := s.Admin.CreateIdentityWithResponse(t.Context(), adminapi.IdentityRequest{AccountID: account, UserName: user, Issuer: issuer, Subject: subject})
			require.NoError(t, err)
			if r.JSON200 == nil {
				return r.StatusCode(), ""
			}
			return r.StatusCode(), r.JSON200.IdentityID
		}
		a := newAttacker(t, s)
		call := func(method, path, issuer string, change jwt.MapClaims) (int, string) {
			claims := jwt.MapClaims{
				"iss": issuer, "sub": "9f3c", "aud": "groupcast", "iat": time.Now().Unix(), "exp": time.Now().Add(time.Minute).Unix(),
				"capabilities": []string{"all"}, "email": "anna@example.net", "email_verified": true, "preferred_username": "anna@example.net",
			}
			maps.Copy(claims, change)
			token := jwt.NewWithClaims(jwt.SigningMethodEdDSA, claims)
			token.Header["kid"] = "k1"
			signed, err := token.SignedString(keys[issuer])
			require.NoError(t, err)
			status, _, body := a.resource(t, method, path, "Bearer "+signed, "")
			return status, body
		}
		const idp, foreign = "https://idp.example", "https://other.example"
		status, _ := call("GET", "/v1/account", idp, nil)
		assert.Equal(t, 401, status, "the e-mail address of a user makes nobody that user")

		made, id := identity(h.account, "Anna@example.net", idp, "9f3c")
		require.Equal(t, 200, made)
		made, again := identity(h.account, "anna@example.net", idp, "9f3c")
		require.Equal(t, 200, made)
		assert.Equal(t, id, again)
		made, _ = identity(other.account, "bert", idp, "9f3c")
		assert.Equal(t, 409, made, "nobody takes it from her")
		made, _ = identity(other.account, "anna@example.net", idp, "else")
		assert.Equal(t, 404, made, "she is no user of that account")

		status, body := call("GET", "/v1/account", idp, nil)
		require.Equal(t, 200, status, body)
		assert.Contains(t, body, string(h.account))
		status, body = call("GET", "/v1/premises", idp, nil)
		assert.Equal(t, 200, status)
		assert.NotContains(t, body, string(other.premises))
		for name, c := range map[string]struct {
			issuer string
			change jwt.MapClaims
			want   int
		}{
			"the same sub of another issuer": {foreign, nil, 401},
			"another sub":                    {idp, jwt.MapClaims{"sub": "9F3C"}, 401},
			"the user's name as sub":         {idp, jwt.MapClaims{"sub": "anna@example.net"}, 401},
			"the issuer with a slash":        {idp, jwt.MapClaims{"iss": idp + "/"}, 401},
			"the other issuer's name":        {foreign, jwt.MapClaims{"iss": idp}, 401},
			"our own name":                   {idp, jwt.MapClaims{"iss": s.URL}, 401},
			"as a device":                    {idp, jwt.MapClaims{"gc_kind": "device", "dtype": "camera", "edid": "x", "eacc": "x", "prem": string(h.premises)}, 401},
			"as a gateway":                   {idp, jwt.MapClaims{"gc_kind": "gateway"}, 401},
			"without that scope":             {idp, jwt.MapClaims{"capabilities": []string{"gc:account"}}, 403},
		} {
			status, body := call("GET", "/v1/account", c.issuer, c.change)
			assert.Equal(t, c.want, status, "%s: %s", name, body)
		}
		status, body = call("POST", "/v1/registrations", idp, nil)
		assert.Equal(t, 403, status, "users never register: %s", body)
		status, body = call("PATCH", "/v1/account", idp, nil)
		assert.Equal(t, 403, status)
		assert.Contains(t, body, "confirm-first", "what the issuer asked for isn't a password typed here")

		gone, err := s.Admin.DeleteIdentityWithResponse(t.Context(), id)
		require.NoError(t, err)
		require.Equal(t, 204, gone.StatusCode())
		status, _ = call("GET", "/v1/account", idp, nil)
		assert.Equal(t, 401, status, "at once")
		gone, err = s.Admin.DeleteIdentityWithResponse(t.Context(), id)
		require.NoError(t, err)
		assert.Equal(t, 404, gone.StatusCode())
	})
}
