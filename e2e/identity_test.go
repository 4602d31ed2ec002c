package e2e

import (
	"crypto"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
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
	"github.com/groupcast/groupcast/openapi/clientauth"
)

// identityHome is an account with a premises on a running service.
type identityHome struct {
	*harness.Server
	account  models.AccountID
	premises models.PremisesID
}

func newIdentityHome(t *testing.T, s *harness.Server, name string) identityHome {
	t.Helper()
	account := s.Account(t, name)
	return identityHome{Server: s, account: account, premises: s.Premises(t, account, "home", false)}
}

func (h identityHome) ticket(t *testing.T, r adminapi.TicketRequest) string {
	t.Helper()
	r.PremisesID = h.premises
	answer, err := h.Admin.CreateTicketWithResponse(t.Context(), nil, r)
	require.NoError(t, err)
	require.NotNil(t, answer.JSON200, "%s", answer.Body)
	return answer.JSON200.Ticket
}

func (h identityHome) ticketFor(t *testing.T, kind models.DeviceType) string {
	t.Helper()
	return h.ticket(t, adminapi.TicketRequest{DeviceType: &kind})
}

// enrol lets a device of our own client in.
func (h identityHome) enrol(t *testing.T, kind models.DeviceType) *clientauth.Client {
	t.Helper()
	c, _ := h.enrolAt(t, kind)
	return c
}

// enrolAt tells where the credential lies, too.
func (h identityHome) enrolAt(t *testing.T, kind models.DeviceType) (*clientauth.Client, string) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "credential")
	c, err := clientauth.Enrolment{Path: path, Server: h.URL, Device: clientauth.Device{Name: "porch", Model: "M1"}}.
		UseTicket(t.Context(), h.ticketFor(t, kind))
	require.NoError(t, err)
	return c, path
}

func get(t *testing.T, c *clientauth.Client, path string) (int, http.Header, string) {
	t.Helper()
	r, err := (&http.Client{Transport: c.Transport()}).Get(c.Server() + path)
	require.NoError(t, err)
	return taken(t, r)
}

func taken(t *testing.T, r *http.Response) (int, http.Header, string) {
	t.Helper()
	defer r.Body.Close()
	b, err := io.ReadAll(r.Body)
	require.NoError(t, err)
	return r.StatusCode, r.Header, string(b)
}

// attacker speaks OAuth by hand, so that it can do everything wrong.
type attacker struct {
	s   *harness.Server
	key ed25519.PrivateKey

	nonce string
}

func newAttacker(t *testing.T, s *harness.Server) *attacker {
	t.Helper()
	_, key, err := ed25519.GenerateKey(rand.Reader)
	require.NoError(t, err)
	return &attacker{s: s, key: key}
}

func (a *attacker) jwk() map[string]any {
	return map[string]any{"kty": "OKP", "crv": "Ed25519", "x": base64.RawURLEncoding.EncodeToString(a.key.Public().(ed25519.PublicKey))}
}

func (a *attacker) thumbprint(t *testing.T) string {
	t.Helper()
	sum, err := (&jose.JSONWebKey{Key: a.key.Public()}).Thumbprint(crypto.SHA256)
	require.NoError(t, err)
	return base64.RawURLEncoding.EncodeToString(sum)
}

func (a *attacker) proof(t *testing.T, method, target, token string) string {
	t.Helper()
	claims := jwt.MapClaims{"jti": rand.Text(), "htm": method, "htu": target, "iat": time.Now().Unix()}
	if a.nonce != "" {
		claims["nonce"] = a.nonce
	}
	if token != "" {
		sum := sha256.Sum256([]byte(token))
		claims["ath"] = base64.RawURLEncoding.EncodeToString(sum[:])
	}
	p := jwt.NewWithClaims(jwt.SigningMethodEdDSA, claims)
	p.Header["typ"], p.Header["jwk"] = "dpop+jwt", a.jwk()
	text, err := p.SignedString(a.key)
	require.NoError(t, err)
	return text
}

func (a *attacker) assertion(t *testing.T, change func(jwt.MapClaims)) string {
	t.Helper()
	id := "dk_" + a.thumbprint(t)
	claims := jwt.MapClaims{"iss": id, "sub": id, "aud": a.s.URL, "jti": rand.Text(), "iat": time.Now().Unix(), "exp": time.Now().Add(time.Minute).Unix()}
	if change != nil {
		change(claims)
	}
	text, err := jwt.NewWithClaims(jwt.SigningMethodEdDSA, claims).SignedString(a.key)
	require.NoError(t, err)
	return text
}

type oauthAnswer struct {
	status int
	header http.Header
	body   map[string]any
}

func (o oauthAnswer) code() string { return fmt.Sprint(o.body["error"]) }

// form posts a form with a proof of the key, once more if another nonce is wanted.
func (a *attacker) form(t *testing.T, path string, fields url.Values, header ...string) oauthAnswer {
	t.Helper()
	return a.send(t, path, "application/x-www-form-urlencoded", fields.Encode(), header...)
}

func (a *attacker) send(t *testing.T, path, media, body string, header ...string) oauthAnswer {
	t.Helper()
	for attempt := 0; ; attempt++ {
		r, err := http.NewRequest(http.MethodPost, a.s.URL+path, strings.NewReader(body))
		require.NoError(t, err)
		r.Header.Set("Content-Type", media)
		r.Header.Set("DPoP", a.proof(t, http.MethodPost, a.s.URL+strings.SplitN(path, "?", 2)[0], ""))
		for i := 0; i+1 < len(header); i += 2 {
			if header[i+1] == "" {
				r.Header.Del(header[i])
			} else {
				r.Header.Set(header[i], header[i+1])
			}
		}
		resp, err := a.s.HTTP.Do(r)
		require.NoError(t, err)
		status, h, text := taken(t, resp)
		answer := oauthAnswer{status: status, header: h}
		_ = json.Unmarshal([]byte(text), &answer.body)
		if answer.code() == "use_dpop_nonce" && attempt == 0 {
			a.nonce = h.Get("DPoP-Nonce")
			continue
		}
		return answer
	}
}

func (a *attacker) enrol(t *testing.T, ticket string, header ...string) oauthAnswer {
	t.Helper()
	body, err := json.Marshal(map[string]any{"ticket": ticket, "jwks": map[string]any{"keys": []any{a.jwk()}}})
	require.NoError(t, err)
	return a.send(t, "/oauth/register", "application/json", string(body), header...)
}

func (a *attacker) clientCredentials(t *testing.T, assertion string, header ...string) oauthAnswer {
	t.Helper()
	return a.form(t, "/oauth/token", url.Values{
		"grant_type": {"client_credentials"}, "client_assertion": {assertion},
		"client_assertion_type": {"urn:ietf:params:oauth:client-assertion-type:jwt-bearer"},
	}, header...)
}

// resource calls an operation with a token, and a proof if one is given.
func (a *attacker) resource(t *testing.T, method, path, authorization, proof string) (int, http.Header, string) {
	t.Helper()
	r, err := http.NewRequest(method, a.s.URL+path, nil)
	require.NoError(t, err)
	r.Header.Set("Authorization", authorization)
	if proof != "" {
		r.Header.Set("DPoP", proof)
	}
	resp, err := a.s.HTTP.Do(r)
	require.NoError(t, err)
	return taken(t, resp)
}

func TestDevicesEnrolWithTicketsAndSpeakWithProofs(t *testing.T) {
	harness.Databases(t, func(t *testing.T, databaseURL string) {
		s := harness.StartServer(t, harness.Options{DatabaseURL: databaseURL})
		h := newIdentityHome(t, s, "Smith")
		c, path := h.enrolAt(t, models.DeviceCamera)
		status, _, body := get(t, c, "/v1/groups")
		assert.Equal(t, 200, status, body)
		again, err := clientauth.Open(path, s.URL, clientauth.Options{})
		require.NoError(t, err)
		status, _, body = get(t, again, "/v1/registrations")
		assert.Equal(t, 200, status, body)

		gateway := h.enrol(t, models.DeviceGateway)
		status, _, body = get(t, gateway, "/v1/gateways/"+gateway.DeviceID()+"/groups")
		assert.Equal(t, 200, status, body)
		// A gateway reads its own information only (§9 row 20).
		other := newIdentityHome(t, s, "Jones").enrol(t, models.DeviceGateway)
		status, _, foreign := get(t, other, "/v1/gateways/"+gateway.DeviceID()+"/groups")
		assert.Equal(t, 404, status, foreign)
		status, _, missing := get(t, other, "/v1/gateways/1/groups")
		assert.Equal(t, 404, status, missing)
		assert.Equal(t, withoutInstance(t, missing), withoutInstance(t, foreign))
	})
}

func withoutInstance(t *testing.T, body string) map[string]any {
	t.Helper()
	var m map[string]any
	require.NoError(t, json.Unmarshal([]byte(body), &m))
	delete(m, "instance")
	return m
}

func TestAttackTicketsAndKeys(t *testing.T) {
	harness.Databases(t, func(t *testing.T, databaseURL string) {
		s := harness.StartServer(t, harness.Options{DatabaseURL: databaseURL})
		h, other := newIdentityHome(t, s, "Smith"), newIdentityHome(t, s, "Jones")
		a := newAttacker(t, s)
		ticket := h.ticketFor(t, models.DeviceCamera)

		// Without a proof, or with one of another key, nobody takes a key from its owner.
		unproven := a.enrol(t, ticket, "DPoP", "")
		assert.Equal(t, "invalid_dpop_proof", unproven.code())
		thief := newAttacker(t, s)
		thief.nonce = unproven.header.Get("DPoP-Nonce")
		assert.Equal(t, "invalid_dpop_proof", a.enrol(t, ticket, "DPoP", thief.proof(t, "POST", s.URL+"/oauth/register", "")).code())

		first := a.enrol(t, ticket)
		require.Equal(t, 201, first.status, "%v", first.body)
		assert.Equal(t, "no-store", first.header.Get("Cache-Control"))
		assert.Equal(t, "invalid_grant", a.enrol(t, ticket).code(), "a ticket is used once")
		assert.Equal(t, "invalid_grant", thief.enrol(t, "no-such-ticket").code())

		// A device that was sold: the new owner can't claim it while the old account holds it (§5.3).
		second := other.ticketFor(t, models.DeviceCamera)
		claimed := a.enrol(t, second)
		assert.Equal(t, 409, claimed.status)
		assert.Equal(t, "invalid_client_metadata", claimed.code())
		id, err := models.ParseID(fmt.Sprint(first.body["deviceId"]))
		require.NoError(t, err)
		r, err := s.Admin.DeleteDeviceWithResponse(t.Context(), id)
		require.NoError(t, err)
		require.Equal(t, 204, r.StatusCode())
		assert.Equal(t, 201, a.enrol(t, second).status, "the ticket is still good once the key is released")
		for _, hidden := range []string{ticket, second, a.assertion(t, nil)[:40]} {
			assert.NotContains(t, s.Log(), hidden)
		}
	})
}

func TestALostKeyIsReplacedWithoutLosingTheDevice(t *testing.T) {
	harness.Databases(t, func(t *testing.T, databaseURL string) {
		s := harness.StartServer(t, harness.Options{DatabaseURL: databaseURL})
		h := newIdentityHome(t, s, "Smith")
		gateway := h.enrol(t, models.DeviceGateway)
		status, body := putJSON(t, gateway, "/v1/gateways/"+gateway.DeviceID(),
			`{"lanPrefix":"192.168.1.0/24","gatewayIPv4":"192.168.1.1","uplinkIPv4":"203.0.113.1"}`)
		require.Equal(t, 200, status, body)
		old := newAttacker(t, s)
		enrolled := old.enrol(t, h.ticketFor(t, models.DeviceCamera))
		require.Equal(t, 201, enrolled.status, "%v", enrolled.body)
		token := old.clientCredentials(t, old.assertion(t, nil))
		require.Equal(t, 200, token.status, "%v", token.body)
		access := fmt.Sprint(token.body["access_token"])
		id, err := models.ParseID(fmt.Sprint(enrolled.body["deviceId"]))
		require.NoError(t, err)

		register := func(who *attacker, token string) (int, map[string]any) {
			r, err := http.NewRequestWithContext(t.Context(), http.MethodPost, s.URL+"/v1/registrations", strings.NewReader(fmt.Sprintf(
				`{"type":"Device","id":"%s","destination":false,"privateIPv4":"192.168.1.5","publicIPv4":"203.0.113.1","groupName":"door"}`, id)))
			require.NoError(t, err)
			r.Header.Set("Content-Type", "application/json")
			r.Header.Set("Authorization", "DPoP "+token)
			r.Header.Set("DPoP", who.proof(t, "POST", s.URL+"/v1/registrations", token))
			resp, err := s.HTTP.Do(r)
			require.NoError(t, err)
			status, _, text := taken(t, resp)
			var m map[string]any
			require.NoError(t, json.Unmarshal([]byte(text), &m), text)
			return status, m
		}
		status, registered := register(old, access)
		require.Equal(t, 200, status, "%v", registered)
		_, _, before := get(t, gateway, "/v1/gateways/"+gateway.DeviceID()+"/groups")
		require.Contains(t, before, `"door"`)

		fresh := newAttacker(t, s)
		replaced := fresh.enrol(t, h.ticket(t, adminapi.TicketRequest{DeviceID: &id}))
		require.Equal(t, 201, replaced.status, "%v", replaced.body)
		assert.Equal(t, enrolled.body["deviceId"], replaced.body["deviceId"])

		// What the old key had is over at once.
		status, _, text := old.resource(t, "GET", "/v1/groups", "DPoP "+access, old.proof(t, "GET", s.URL+"/v1/groups", access))
		assert.Equal(t, 401, status, text)
		assert.Equal(t, "invalid_client", old.clientCredentials(t, old.assertion(t, nil)).code())
		token = fresh.clientCredentials(t, fresh.assertion(t, nil))
		require.Equal(t, 200, token.status, "%v", token.body)
		access = fmt.Sprint(token.body["access_token"])
		status, _, text = fresh.resource(t, "GET", "/v1/groups", "DPoP "+access, fresh.proof(t, "GET", s.URL+"/v1/groups", access))
		assert.Equal(t, 200, status, text)

		// The registration has lived on: the gateway's information is what it was, and the new key renews it.
		_, _, after := get(t, gateway, "/v1/gateways/"+gateway.DeviceID()+"/groups")
		assert.Equal(t, before, after)
		status, renewed := register(fresh, access)
		require.Equal(t, 200, status, "%v", renewed)
		for _, same := range []string{"registrationId", "groupIP", "generation"} {
			assert.Equal(t, registered[same], renewed[same], same)
		}
		status, _ = register(old, access)
		assert.Equal(t, 401, status, "the old key can't use the new key's token")
	})
}

func putJSON(t *testing.T, c *clientauth.Client, path, body string) (int, string) {
	t.Helper()
	return sendJSON(t, c, http.MethodPut, path, body)
}

func sendJSON(t *testing.T, c *clientauth.Client, method, path, body string) (int, string) {
	t.Helper()
	r, err := http.NewRequest(method, c.Server()+path, strings.NewReader(body))
	require.NoError(t, err)
	r.Header.Set("Content-Type", "application/json")
	resp, err := (&http.Client{Transport: c.Transport()}).Do(r)
	require.NoError(t, err)
	status, _, text := taken(t, resp)
	return status, text
}

func TestAttackStolenTokens(t *testing.T) {
	harness.Databases(t, func(t *testing.T, databaseURL string) {
		s := harness.StartServer(t, harness.Options{DatabaseURL: databaseURL})
		h := newIdentityHome(t, s, "Smith")
		a := newAttacker(t, s)
		enrolled := a.enrol(t, h.ticketFor(t, models.DeviceCamera))
		require.Equal(t, 201, enrolled.status, "%v", enrolled.body)
		answer := a.clientCredentials(t, a.assertion(t, nil))
		require.Equal(t, 200, answer.status, "%v", answer.body)
		assert.Equal(t, "DPoP", answer.body["token_type"])
		token := fmt.Sprint(answer.body["access_token"])
		thief := newAttacker(t, s)
		thief.nonce = a.nonce
		const path = "/v1/groups"
		target := s.URL + path

		good := a.proof(t, "GET", target, token)
		status, _, body := a.resource(t, "GET", path, "DPoP "+token, good)
		require.Equal(t, 200, status, body)
		// The bare form of the source document, with a proof.
		status, _, body = a.resource(t, "GET", path, token, a.proof(t, "GET", target, token))
		require.Equal(t, 200, status, body)

		for name, c := range map[string]struct{ authorization, proof, code string }{
			"a proof that was used":       {"DPoP " + token, good, "invalid_dpop_proof"},
			"no proof":                    {"DPoP " + token, "", "invalid_dpop_proof"},
			"bare without proof":          {token, "", "invalid_dpop_proof"},
			"as a bearer token":           {"Bearer " + token, "", "invalid_token"},
			"as a bearer token, proved":   {"Bearer " + token, a.proof(t, "GET", target, token), "invalid_token"},
			"another's key":               {"DPoP " + token, thief.proof(t, "GET", target, token), "invalid_token"},
			"a proof for another method":  {"DPoP " + token, a.proof(t, "POST", target, token), "invalid_dpop_proof"},
			"a proof for another URL":     {"DPoP " + token, a.proof(t, "GET", s.URL+"/v1/registrations", token), "invalid_dpop_proof"},
			"a proof for another host":    {"DPoP " + token, a.proof(t, "GET", "https://evil.example"+path, token), "invalid_dpop_proof"},
			"a proof for another token":   {"DPoP " + token, a.proof(t, "GET", target, token+"x"), "invalid_dpop_proof"},
			"a proof without the token":   {"DPoP " + token, a.proof(t, "GET", target, ""), "invalid_dpop_proof"},
			"the proof in place of token": {"DPoP " + good, a.proof(t, "GET", target, good), "invalid_token"},
		} {
			status, header, body := a.resource(t, "GET", path, c.authorization, c.proof)
			assert.Equal(t, 401, status, "%s: %s", name, body)
			assert.Contains(t, header.Get("WWW-Authenticate"), `error="`+c.code+`"`, name)
			assert.Equal(t, "application/problem+json", header.Get("Content-Type"), name)
		}

		// An old proof, as a camera without a clock sends, is asked for a nonce and then taken.
		a.nonce = ""
		slow := jwt.NewWithClaims(jwt.SigningMethodEdDSA, jwt.MapClaims{"jti": rand.Text(), "htm": "GET", "htu": target, "iat": 1, "ath": hashOf(token)})
		slow.Header["typ"], slow.Header["jwk"] = "dpop+jwt", a.jwk()
		text, err := slow.SignedString(a.key)
		require.NoError(t, err)
		status, header, _ := a.resource(t, "GET", path, "DPoP "+token, text)
		assert.Equal(t, 401, status)
		assert.Contains(t, header.Get("WWW-Authenticate"), `error="use_dpop_nonce"`)
		slow = jwt.NewWithClaims(jwt.SigningMethodEdDSA, jwt.MapClaims{
			"jti": rand.Text(), "htm": "GET", "htu": target, "iat": 1, "ath": hashOf(token), "nonce": header.Get("DPoP-Nonce"),
		})
		slow.Header["typ"], slow.Header["jwk"] = "dpop+jwt", a.jwk()
		text, err = slow.SignedString(a.key)
		require.NoError(t, err)
		status, _, body = a.resource(t, "GET", path, "DPoP "+token, text)
		assert.Equal(t, 200, status, body)

		// A device that has to prove possession gets no bearer token, neither from the issuer nor from the operator.
		assert.Equal(t, "invalid_dpop_proof", a.clientCredentials(t, a.assertion(t, nil), "DPoP", "").code())
		id, err := models.ParseID(fmt.Sprint(enrolled.body["deviceId"]))
		require.NoError(t, err)
		minted, err := s.Admin.CreateTokenWithResponse(t.Context(), adminapi.TokenRequest{DeviceID: &id})
		require.NoError(t, err)
		assert.Equal(t, 400, minted.StatusCode())

		// A removed device is refused with its next request.
		removed, err := s.Admin.DeleteDeviceWithResponse(t.Context(), id)
		require.NoError(t, err)
		require.Equal(t, 204, removed.StatusCode())
		status, _, _ = a.resource(t, "GET", path, "DPoP "+token, text)
		assert.Equal(t, 401, status)
		assert.Equal(t, "invalid_client", a.clientCredentials(t, a.assertion(t, nil)).code())
	})
}

func hashOf(token string) string {
	sum := sha256.Sum256([]byte(token))
	return base64.RawURLEncoding.EncodeToString(sum[:])
}

func TestAttackClientAssertions(t *testing.T) {
	harness.Databases(t, func(t *testing.T, databaseURL string) {
		s := harness.StartServer(t, harness.Options{DatabaseURL: databaseURL})
		h := newIdentityHome(t, s, "Smith")
		a := newAttacker(t, s)
		require.Equal(t, 201, a.enrol(t, h.ticketFor(t, models.DeviceCamera)).status)
		good := a.assertion(t, nil)
		require.Equal(t, 200, a.clientCredentials(t, good).status)
		assert.Equal(t, "invalid_client", a.clientCredentials(t, good).code(), "an assertion is good once")

		for name, change := range map[string]func(jwt.MapClaims){
			"aud is the endpoint":     func(c jwt.MapClaims) { c["aud"] = s.URL + "/oauth/token" },
			"aud has a slash":         func(c jwt.MapClaims) { c["aud"] = s.URL + "/" },
			"aud has another beside":  func(c jwt.MapClaims) { c["aud"] = []string{s.URL, "https://evil.example"} },
			"no aud":                  func(c jwt.MapClaims) { delete(c, "aud") },
			"no jti":                  func(c jwt.MapClaims) { delete(c, "jti") },
			"no exp":                  func(c jwt.MapClaims) { delete(c, "exp") },
			"expired":                 func(c jwt.MapClaims) { c["exp"] = time.Now().Add(-time.Minute).Unix() },
			"lives too long":          func(c jwt.MapClaims) { c["exp"] = time.Now().Add(time.Hour).Unix() },
			"issued in the future":    func(c jwt.MapClaims) { c["iat"] = time.Now().Add(time.Hour).Unix() },
			"iss is another's":        func(c jwt.MapClaims) { c["iss"] = "svc-upload" },
			"sub and iss are unknown": func(c jwt.MapClaims) { c["iss"], c["sub"] = "svc-nobody", "svc-nobody" },
		} {
			answer := a.clientCredentials(t, a.assertion(t, change))
			assert.Equal(t, "invalid_client", answer.code(), name)
			assert.Equal(t, 401, answer.status, name)
			assert.Equal(t, "application/json", answer.header.Get("Content-Type"), name)
			assert.Equal(t, "/problems/invalid-client", answer.body["type"], name)
		}
		thief := newAttacker(t, s)
		text, err := jwt.NewWithClaims(jwt.SigningMethodEdDSA, jwt.MapClaims{
			"iss": "dk_" + a.thumbprint(t), "sub": "dk_" + a.thumbprint(t), "aud": s.URL, "jti": "x", "exp": time.Now().Add(time.Minute).Unix(),
		}).SignedString(thief.key)
		require.NoError(t, err)
		assert.Equal(t, "invalid_client", a.clientCredentials(t, text).code(), "signed by another key")
		// The thief has not used up the jti.
		assert.Equal(t, 200, a.clientCredentials(t, a.assertion(t, func(c jwt.MapClaims) { c["jti"] = "x" })).status)
		for _, kind := range []string{"at+jwt", "dpop+jwt"} {
			token := jwt.NewWithClaims(jwt.SigningMethodEdDSA, jwt.MapClaims{
				"iss": "dk_" + a.thumbprint(t), "sub": "dk_" + a.thumbprint(t), "aud": s.URL, "jti": rand.Text(), "exp": time.Now().Add(time.Minute).Unix(),
			})
			token.Header["typ"] = kind
			text, err := token.SignedString(a.key)
			require.NoError(t, err)
			assert.Equal(t, "invalid_client", a.clientCredentials(t, text).code(), kind)
		}
	})
}

func TestAttackForms(t *testing.T) {
	s := harness.StartServer(t, harness.Options{})
	a := newAttacker(t, s)
	const form = "application/x-www-form-urlencoded"
	for name, c := range map[string]struct {
		path, media, body string
		status            int
		code              string
	}{
		"a field twice":           {"/oauth/token", form, "grant_type=client_credentials&grant_type=refresh_token", 400, "invalid_request"},
		"an unknown field":        {"/oauth/token", form, "grant_type=client_credentials&resource=x", 400, "invalid_request"},
		"another case":            {"/oauth/token", form, "Grant_type=client_credentials", 400, "invalid_request"},
		"fields in the query":     {"/oauth/token?client_id=gc-device", form, "grant_type=client_credentials", 400, "invalid_request"},
		"everything in the query": {"/oauth/token?grant_type=client_credentials", form, "", 400, "invalid_request"},
		"JSON":                    {"/oauth/token", "application/json", `{"grant_type":"client_credentials"}`, 415, "invalid_request"},
		"a semicolon":             {"/oauth/token", form, "grant_type=client_credentials;client_id=x", 400, "invalid_request"},
		"broken escapes":          {"/oauth/token", form, "grant_type=%zz", 400, "invalid_request"},
		"no UTF-8":                {"/oauth/token", form, "grant_type=%ff", 400, "invalid_request"},
		"a control character":     {"/oauth/token", form, "grant_type=client_credentials%00", 400, "invalid_request"},
		"too long":                {"/oauth/token", form, "grant_type=client_credentials&scope=" + strings.Repeat("x", 300), 400, "invalid_request"},
		"much too long":           {"/oauth/token", form, "grant_type=client_credentials&scope=" + strings.Repeat("x", 30000), 413, "invalid_request"},
		"password grant":          {"/oauth/token", form, "grant_type=password&client_id=gc-device", 400, "unsupported_grant_type"},
		"no credential":           {"/oauth/token", form, "grant_type=client_credentials", 401, "invalid_client"},
		"unknown public client":   {"/oauth/token", form, "grant_type=refresh_token&client_id=gc-evil&refresh_token=x", 400, "unauthorized_client"},
		"a foreign scope":         {"/oauth/device_authorization", form, "client_id=gc-device&scope=gc:account", 400, "invalid_scope"},
		"camera as gateway":       {"/oauth/device_authorization", form, "client_id=gc-device&device_type=gateway", 400, "invalid_request"},
		"a member twice":          {"/oauth/register", "application/json", `{"ticket":"x","ticket":"y","jwks":{"keys":[{"kty":"OKP"}]}}`, 400, "invalid_request"},
		"a private key":           {"/oauth/register", "application/json", `{"ticket":"x","jwks":{"keys":[{"kty":"OKP","d":"AA"}]}}`, 400, "invalid_request"},
		"an RSA key":              {"/oauth/register", "application/json", `{"ticket":"x","jwks":{"keys":[{"kty":"RSA","n":"AQAB","e":"AQAB"}]}}`, 400, "invalid_client_metadata"},
	} {
		answer := a.send(t, c.path, c.media, c.body)
		assert.Equal(t, c.status, answer.status, "%s: %v", name, answer.body)
		assert.Equal(t, c.code, answer.code(), name)
		assert.Equal(t, "application/json", answer.header.Get("Content-Type"), name)
		assert.NotEmpty(t, answer.body["error_description"], name)
	}
}

func TestTheDeviceGrant(t *testing.T) {
	harness.Databases(t, func(t *testing.T, databaseURL string) {
		s := harness.StartServer(t, harness.Options{DatabaseURL: databaseURL})
		h := newIdentityHome(t, s, "Smith")
		e := clientauth.Enrolment{
			Path: filepath.Join(t.TempDir(), "credential"), Server: s.URL, Device: clientauth.Device{Model: "M1", Serial: "0042", Type: "camera"},
		}
		grant, err := e.AskApproval(t.Context(), clientauth.ClientDevice, "")
		require.NoError(t, err)
		assert.Equal(t, s.URL+"/device", grant.VerificationURI)
		assert.Regexp(t, `^[BCDFGHJKLMNPQRSTVWXZ]{4}-[BCDFGHJKLMNPQRSTVWXZ]{4}$`, grant.UserCode)
		decided, err := s.Admin.DecideDeviceGrantWithResponse(t.Context(), adminapi.DeviceGrantDecision{
			UserCode: strings.ToLower(strings.ReplaceAll(grant.UserCode, "-", " ")), Approve: true, PremisesID: h.premises,
		})
		require.NoError(t, err)
		require.NotNil(t, decided.JSON200, "%s", decided.Body)
		assert.Equal(t, "M1", decided.JSON200.Model)
		assert.Equal(t, "0042", decided.JSON200.Serial)
		assert.Equal(t, "127.0.0.0/24", decided.JSON200.SourcePrefix)
		c, err := grant.Wait(t.Context())
		require.NoError(t, err)
		status, _, body := get(t, c, "/v1/groups")
		assert.Equal(t, 200, status, body)
		// The refresh token gives further access tokens and stays the same.
		before, err := os.ReadFile(e.Path)
		require.NoError(t, err)
		for range 2 {
			again, err := clientauth.Open(e.Path, s.URL, clientauth.Options{})
			require.NoError(t, err)
			status, _, body = get(t, again, "/v1/groups")
			assert.Equal(t, 200, status, body)
		}
		after, err := os.ReadFile(e.Path)
		require.NoError(t, err)
		assert.Equal(t, before, after)
	})
}

func TestAttackDeviceCodes(t *testing.T) {
	harness.Databases(t, func(t *testing.T, databaseURL string) {
		s := harness.StartServer(t, harness.Options{DatabaseURL: databaseURL})
		h := newIdentityHome(t, s, "Smith")
		a, thief := newAttacker(t, s), newAttacker(t, s)
		begin := func(who *attacker, header ...string) (device, user string) {
			answer := who.form(t, "/oauth/device_authorization", url.Values{"client_id": {"gc-device"}, "device_type": {"camera"}}, header...)
			require.Equal(t, 200, answer.status, "%v", answer.body)
			assert.Equal(t, "no-store", answer.header.Get("Cache-Control"))
			return fmt.Sprint(answer.body["device_code"]), fmt.Sprint(answer.body["user_code"])
		}
		redeem := func(who *attacker, code, client string, header ...string) oauthAnswer {
			return who.form(t, "/oauth/token", url.Values{
				"grant_type": {"urn:ietf:params:oauth:grant-type:device_code"}, "device_code": {code}, "client_id": {client},
			}, header...)
		}
		decide := func(code string, approve bool) int {
			r, err := s.Admin.DecideDeviceGrantWithResponse(t.Context(), adminapi.DeviceGrantDecision{UserCode: code, Approve: approve, PremisesID: h.premises})
			require.NoError(t, err)
			return r.StatusCode()
		}
		device, user := begin(a)
		assert.Equal(t, "authorization_pending", redeem(a, device, "gc-device").code())
		assert.Equal(t, "slow_down", redeem(a, device, "gc-device").code())
		require.Equal(t, 200, decide(user, true))
		assert.Equal(t, 404, decide(user, true), "a code is decided once")
		// A stolen device code is worthless: it is pinned to the key that began (§9 row 3).
		assert.Equal(t, "invalid_grant", redeem(thief, device, "gc-device").code())
		assert.Equal(t, "invalid_dpop_proof", redeem(a, device, "gc-device", "DPoP", "").code())
		assert.Equal(t, "invalid_grant", redeem(a, device, "gc-gateway").code())
		done := redeem(a, device, "gc-device")
		require.Equal(t, 200, done.status, "%v", done.body)
		assert.Equal(t, "invalid_grant", redeem(a, device, "gc-device").code(), "a code is redeemed once")

		refresh := fmt.Sprint(done.body["refresh_token"])
		use := func(who *attacker, client string) oauthAnswer {
			return who.form(t, "/oauth/token", url.Values{"grant_type": {"refresh_token"}, "refresh_token": {refresh}, "client_id": {client}})
		}
		renewed := use(a, "gc-device")
		require.Equal(t, 200, renewed.status, "%v", renewed.body)
		assert.Nil(t, renewed.body["refresh_token"], "it is not rotated")
		assert.Equal(t, "invalid_grant", use(thief, "gc-device").code(), "bound to the key")
		assert.Equal(t, "invalid_grant", use(a, "gc-gateway").code(), "bound to the client")
		// Revoking is for the holder of the key only, and answers 200 always.
		revoke := func(who *attacker) int {
			return who.form(t, "/oauth/revoke", url.Values{"client_id": {"gc-device"}, "token": {refresh}}).status
		}
		assert.Equal(t, 200, revoke(thief))
		assert.Equal(t, 200, use(a, "gc-device").status)
		assert.Equal(t, 200, revoke(a))
		assert.Equal(t, "invalid_grant", use(a, "gc-device").code())

		for _, hidden := range []string{device, user, refresh, fmt.Sprint(done.body["access_token"])} {
			assert.NotContains(t, s.Log(), hidden)
		}
		refused, user := begin(thief)
		require.Equal(t, 200, decide(user, false))
		assert.Equal(t, "access_denied", redeem(thief, refused, "gc-device").code())
		// Begun without a proof, as a client without DPoP for that request does; the token is bound all the same.
		unpinned, user := begin(thief, "DPoP", "")
		require.Equal(t, 200, decide(user, true))
		assert.Equal(t, 200, redeem(thief, unpinned, "gc-device").status)
	})
}

func TestHostileGuessingOfUserCodes(t *testing.T) {
	harness.Databases(t, func(t *testing.T, databaseURL string) {
		s := harness.StartServer(t, harness.Options{DatabaseURL: databaseURL})
		h := newIdentityHome(t, s, "Smith")
		a := newAttacker(t, s)
		answer := a.form(t, "/oauth/device_authorization", url.Values{"client_id": {"gc-device"}})
		require.Equal(t, 200, answer.status, "%v", answer.body)
		statuses := map[int]int{}
		for i := range 200 {
			r, err := s.Admin.DecideDeviceGrantWithResponse(t.Context(), adminapi.DeviceGrantDecision{
				UserCode: fmt.Sprintf("BBBB-%04d", i), Approve: true, PremisesID: h.premises,
			})
			require.NoError(t, err)
			statuses[r.StatusCode()]++
		}
		assert.Equal(t, map[int]int{404: 5, 429: 195}, statuses, "five wrong codes are answered, then none")
		// Not even the right one, for a while.
		r, err := s.Admin.DecideDeviceGrantWithResponse(t.Context(), adminapi.DeviceGrantDecision{
			UserCode: fmt.Sprint(answer.body["user_code"]), Approve: true, PremisesID: h.premises,
		})
		require.NoError(t, err)
		assert.Equal(t, 429, r.StatusCode())
		// Nor may one network let any number of devices wait.
		for range 25 {
			answer = a.form(t, "/oauth/device_authorization", url.Values{"client_id": {"gc-device"}})
		}
		assert.Equal(t, 429, answer.status)
		assert.NotEmpty(t, answer.header.Get("Retry-After"))
	})
}

func TestServicesGetTheirTokens(t *testing.T) {
	harness.Databases(t, func(t *testing.T, databaseURL string) {
		s := harness.StartServer(t, harness.Options{DatabaseURL: databaseURL})
		s.Service(t, "svc-upload", "upload")
		s.Service(t, "svc-other", "other")
		made, err := s.Admin.CreateServiceCredentialWithResponse(t.Context(), "svc-upload", nil, adminapi.ServiceCredentialRequest{})
		require.NoError(t, err)
		require.NotNil(t, made.JSON200, "%s", made.Body)
		secret := *made.JSON200.ClientSecret
		bySecret, err := clientauth.CreateService(filepath.Join(t.TempDir(), "secret"), clientauth.Service{Server: s.URL, ClientID: "svc-upload", Secret: secret}, clientauth.Options{})
		require.NoError(t, err)
		status, _, body := get(t, bySecret, "/v1/registrations")
		assert.Equal(t, 200, status, body)

		byKey, err := clientauth.CreateService(filepath.Join(t.TempDir(), "key"), clientauth.Service{Server: s.URL, ClientID: "svc-upload", DPoP: true}, clientauth.Options{})
		require.NoError(t, err)
		var jwk adminapi.PublicKey
		require.NoError(t, json.Unmarshal(byKey.PublicKey(), &jwk))
		keyed, err := s.Admin.CreateServiceCredentialWithResponse(t.Context(), "svc-upload", nil, adminapi.ServiceCredentialRequest{Jwks: &adminapi.KeySet{Keys: []adminapi.PublicKey{jwk}}})
		require.NoError(t, err)
		require.NotNil(t, keyed.JSON200, "%s", keyed.Body)
		assert.Nil(t, keyed.JSON200.ClientSecret)
		status, _, body = get(t, byKey, "/v1/registrations")
		assert.Equal(t, 200, status, body)

		a := newAttacker(t, s)
		basic := func(id, secret string) oauthAnswer {
			return a.form(t, "/oauth/token", url.Values{"grant_type": {"client_credentials"}}, "DPoP", "", "Authorization",
				"Basic "+base64.StdEncoding.EncodeToString([]byte(url.QueryEscape(id)+":"+url.QueryEscape(secret))))
		}
		sat := basic("svc-upload", secret)
		require.Equal(t, 200, sat.status, "%v", sat.body)
		assert.EqualValues(t, 600, sat.body["expires_in"])
		for name, answer := range map[string]oauthAnswer{
			"wrong secret": basic("svc-upload", secret+"x"), "another service": basic("svc-other", secret), "no secret": basic("svc-upload", ""),
			"unknown service": basic("svc-nobody", secret),
		} {
			assert.Equal(t, 401, answer.status, name)
			assert.Equal(t, "invalid_client", answer.code(), name)
			assert.Contains(t, answer.header.Get("WWW-Authenticate"), "Basic", name)
		}
		// A service's token is none of a gateway's (§5.3), and names no account.
		token := fmt.Sprint(sat.body["access_token"])
		status, _, body = a.resource(t, "GET", "/v1/gateways/1/groups", "Bearer "+token, "")
		assert.Equal(t, 403, status, body)
		payload, err := base64.RawURLEncoding.DecodeString(strings.Split(token, ".")[1])
		require.NoError(t, err)
		assert.NotContains(t, string(payload), "eacc")

		// A credential that is taken away ends what it gave at once; the other goes on.
		gone, err := s.Admin.DeleteServiceCredentialWithResponse(t.Context(), "svc-upload", made.JSON200.CredentialID)
		require.NoError(t, err)
		require.Equal(t, 204, gone.StatusCode())
		status, _, _ = a.resource(t, "GET", "/v1/registrations", "Bearer "+token, "")
		assert.Equal(t, 401, status)
		assert.Equal(t, "invalid_client", basic("svc-upload", secret).code())
		for _, hidden := range []string{secret, token} {
			assert.NotContains(t, s.Log(), hidden)
		}
		status, _, body = get(t, byKey, "/v1/registrations")
		assert.Equal(t, 200, status, body)
	})
}

func TestKeysRotateWithOverlap(t *testing.T) {
	harness.Databases(t, func(t *testing.T, databaseURL string) {
		s := harness.StartServer(t, harness.Options{DatabaseURL: databaseURL, Args: []string{"--signing-alg", "ES256"}})
		h := newIdentityHome(t, s, "Smith")
		c := h.enrol(t, models.DeviceCamera)
		_, before, err := c.Token(t.Context())
		require.NoError(t, err)
		keySet := func() jose.JSONWebKeySet {
			r, err := s.HTTP.Get(s.URL + "/.well-known/jwks.json")
			require.NoError(t, err)
			_, header, body := taken(t, r)
			assert.Equal(t, "public, max-age=3600", header.Get("Cache-Control"))
			var set jose.JSONWebKeySet
			require.NoError(t, json.Unmarshal([]byte(body), &set))
			return set
		}
		require.Len(t, keySet().Keys, 1)
		rotate := func(force bool) []adminapi.SigningKey {
			r, err := s.Admin.RotateSigningKeysWithResponse(t.Context(), adminapi.KeyRotation{Force: &force})
			require.NoError(t, err)
			require.NotNil(t, r.JSON200, "%s", r.Body)
			return r.JSON200.Keys
		}
		keys := rotate(false)
		require.Len(t, keys, 2)
		assert.EqualValues(t, "active", keys[0].State)
		assert.EqualValues(t, "next", keys[1].State)
		assert.Equal(t, 24*time.Hour, keys[1].Until.Sub(keys[1].Since))
		assert.Len(t, rotate(false), 2, "asking again changes nothing")
		assert.Len(t, keySet().Keys, 2, "the next one is published before it signs")
		keys = rotate(true)
		assert.EqualValues(t, "retiring", keys[0].State)
		assert.EqualValues(t, "active", keys[1].State)
		set := keySet()
		require.Len(t, set.Keys, 2)

		// Tokens of both are good here and verify with the published keys.
		status, _, body := get(t, c, "/v1/groups")
		assert.Equal(t, 200, status, body)
		fresh := h.enrol(t, models.DeviceCamera)
		_, after, err := fresh.Token(t.Context())
		require.NoError(t, err)
		for i, text := range []string{before, after} {
			token, err := jwt.Parse(text, func(token *jwt.Token) (any, error) {
				return set.Key(fmt.Sprint(token.Header["kid"]))[0].Key, nil
			}, jwt.WithValidMethods([]string{"ES256"}), jwt.WithIssuer(s.URL), jwt.WithAudience("groupcast"))
			require.NoError(t, err)
			assert.Equal(t, keys[i].Kid, token.Header["kid"])
		}
	})
}

func TestTheIssuerDescribesItself(t *testing.T) {
	s := harness.StartServer(t, harness.Options{})
	r, err := s.HTTP.Get(s.URL + "/.well-known/oauth-authorization-server")
	require.NoError(t, err)
	_, _, body := taken(t, r)
	var m map[string]any
	require.NoError(t, json.Unmarshal([]byte(body), &m))
	assert.Equal(t, s.URL, m["issuer"])
	for _, endpoint := range []string{"token_endpoint", "device_authorization_endpoint", "registration_endpoint", "revocation_endpoint", "jwks_uri"} {
		assert.True(t, strings.HasPrefix(fmt.Sprint(m[endpoint]), s.URL+"/"), endpoint)
	}
}

// TestAnAppActsForAUser is the device grant of an app (gc-app): bound to its key, refreshed, ended by the user; it never registers.
func TestAnAppActsForAUser(t *testing.T) {
	harness.Databases(t, func(t *testing.T, databaseURL string) {
		s := harness.StartServer(t, harness.Options{DatabaseURL: databaseURL})
		h, other := newIdentityHome(t, s, "Smith"), newIdentityHome(t, s, "Jones")
		i, err := s.Admin.CreateInvitationWithResponse(t.Context(), nil, adminapi.InvitationRequest{AccountID: &h.account})
		require.NoError(t, err)
		require.NotNil(t, i.JSON200, "%s", i.Body)
		const password = "four words are enough"
		post := func(path, body, cookie string) *http.Response {
			r, err := http.NewRequestWithContext(t.Context(), http.MethodPost, s.URL+path, strings.NewReader(body))
			require.NoError(t, err)
			r.Header.Set("Content-Type", "application/json")
			if cookie != "" {
				r.Header.Set("Cookie", cookie)
			}
			answer, err := s.HTTP.Do(r)
			require.NoError(t, err)
			t.Cleanup(func() { answer.Body.Close() })
			return answer
		}
		require.Equal(t, 201, post("/v1/accounts", fmt.Sprintf(`{"userName":"anna","password":%q,"accountName":"x","invitation":%q}`, password, i.JSON200.Invitation), "").StatusCode)
		login := post("/v1/login", fmt.Sprintf(`{"userName":"anna","password":%q}`, password), "")
		require.Equal(t, 200, login.StatusCode)
		cookie := login.Cookies()[0].Name + "=" + login.Cookies()[0].Value

		path := filepath.Join(t.TempDir(), "app")
		grant, err := clientauth.Enrolment{Path: path, Server: s.URL}.AskApproval(t.Context(), clientauth.ClientApp, "")
		require.NoError(t, err)
		decide := func(premises models.PremisesID, user *string) int {
			r, err := s.Admin.DecideDeviceGrantWithResponse(t.Context(), adminapi.DeviceGrantDecision{
				UserCode: grant.UserCode, Approve: true, PremisesID: premises, UserName: user,
			})
			require.NoError(t, err)
			return r.StatusCode()
		}
		anna := "Anna"
		assert.Equal(t, 400, decide(h.premises, nil), "an operator is no user")
		assert.Equal(t, 404, decide(other.premises, &anna), "nor is another account's user")
		require.Equal(t, 200, decide(h.premises, &anna))
		app, err := grant.Wait(t.Context())
		require.NoError(t, err)

		status, _, body := get(t, app, "/v1/account")
		assert.Equal(t, 200, status, body)
		assert.Contains(t, body, string(h.account))
		status, _, body = get(t, app, "/v1/premises")
		assert.Equal(t, 200, status, body)
		assert.Contains(t, body, string(h.premises))
		assert.NotContains(t, body, string(other.premises))
		status, _, body = get(t, app, "/v1/registrations")
		assert.Equal(t, 403, status, "a user has no registrations: %s", body)
		status, body = sendJSON(t, app, http.MethodPost, "/v1/registrations", `{"type":"Device","id":"1","destination":true,"groupName":"door","publicIPv4":"198.51.99.9"}`)
		assert.Equal(t, 403, status, "users never register: %s", body)
		status, body = sendJSON(t, app, http.MethodPatch, "/v1/account", `{"name":"Mine"}`)
		assert.Equal(t, 403, status)
		assert.Contains(t, body, "confirm-first", "an app never counts as somebody who just typed the password")

		// The refresh token is of this key.
		stored, err := os.ReadFile(path)
		require.NoError(t, err)
		var credential struct{ RefreshToken string }
		require.NoError(t, json.Unmarshal(stored, &credential))
		require.NotEmpty(t, credential.RefreshToken)
		thief := newAttacker(t, s)
		refresh := url.Values{"grant_type": {"refresh_token"}, "client_id": {"gc-app"}, "refresh_token": {credential.RefreshToken}}
		assert.Equal(t, "invalid_dpop_proof", thief.form(t, "/oauth/token", refresh, "DPoP", "").code())
		assert.Equal(t, "invalid_grant", thief.form(t, "/oauth/token", refresh).code())
		again, err := clientauth.Open(path, s.URL, clientauth.Options{})
		require.NoError(t, err)
		status, _, body = get(t, again, "/v1/account")
		assert.Equal(t, 200, status, body)

		// Whoever changes the password throws every app out, at once.
		require.Equal(t, 204, post("/v1/account/password", fmt.Sprintf(`{"oldPassword":%q,"newPassword":"four other words it is"}`, password), cookie).StatusCode)
		for _, c := range []*clientauth.Client{app, again} {
			answer, err := (&http.Client{Transport: c.Transport()}).Get(s.URL + "/v1/account")
			if err == nil {
				assert.Equal(t, 401, answer.StatusCode)
				answer.Body.Close()
			} else {
				assert.ErrorIs(t, err, clientauth.ErrRefused)
			}
		}
		assert.NotContains(t, s.Log(), credential.RefreshToken)
	})
}
