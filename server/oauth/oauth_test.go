package oauth_test

import (
	"context"
	"fmt"
	"maps"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/groupcast/groupcast/models"
	"github.com/groupcast/groupcast/server/devicegrant"
	"github.com/groupcast/groupcast/server/edgetest"
	"github.com/groupcast/groupcast/server/enrolment"
	"github.com/groupcast/groupcast/server/oauth"
	"github.com/groupcast/groupcast/server/servertest"
	"github.com/groupcast/groupcast/server/store/storetest"
)

func labs(t *testing.T, test func(t *testing.T, l *edgetest.Lab)) {
	storetest.Each(t, func(t *testing.T, db *storetest.DB) { test(t, edgetest.New(t, db)) })
}

// ticket makes one for a new camera of the home.
func ticket(t *testing.T, l *edgetest.Lab, h *servertest.Home) string {
	t.Helper()
	text, _, err := l.Enrolment.Create(t.Context(), h.Account.ID, enrolment.NewTicket{PremisesID: h.Premises.ID, DeviceType: models.DeviceCamera})
	require.NoError(t, err)
	return text
}

func register(t *testing.T, l *edgetest.Lab, k edgetest.Key, ticket string) (enrolment.Enrolled, error) {
	t.Helper()
	return l.OAuth.Register(context.Background(), oauth.Registration{
		Request: enrolment.Request{Ticket: ticket}, JWK: k.Public(t), Proofs: []string{k.Proof(t, l, "POST", "/oauth/register", "")},
	})
}

// enrolled lets a camera in.
func enrolled(t *testing.T, l *edgetest.Lab, h *servertest.Home) (edgetest.Key, models.Device) {
	t.Helper()
	k := edgetest.NewKey(t)
	e, err := register(t, l, k, ticket(t, l, h))
	require.NoError(t, err)
	return k, e.Device
}

func proofs(t *testing.T, l *edgetest.Lab, k edgetest.Key) []string {
	t.Helper()
	return []string{k.Proof(t, l, "POST", "/oauth/token", "")}
}

func refused(t *testing.T, want models.Code, err error, why string) {
	t.Helper()
	var e *models.Error
	if assert.ErrorAs(t, err, &e, why) {
		assert.Equal(t, want, e.Code, "%s: %s", why, e.Detail)
		assert.NotEmpty(t, e.Detail)
	}
}

// granted runs a device grant up to its approval.
func granted(t *testing.T, l *edgetest.Lab, h *servertest.Home, k edgetest.Key, client, scope string, user string) string {
	t.Helper()
	r := devicegrant.Request{ClientID: client, Scope: scope}
	if client == devicegrant.ClientDevice {
		r.DeviceType = models.DeviceCamera
	}
	g, err := l.OAuth.Authorize(t.Context(), oauth.DeviceAuthorization{Request: r, Proofs: []string{k.Proof(t, l, "POST", "/oauth/device_authorization", "")}})
	require.NoError(t, err)
	_, err = l.Grants.Decide(t.Context(), devicegrant.Approver{AccountID: h.Account.ID, UserID: user, Fresh: true, Typed: true}, g.UserCode, devicegrant.Decision{Approve: true, PremisesID: h.Premises.ID})
	require.NoError(t, err)
	return g.DeviceCode
}

func redeem(t *testing.T, l *edgetest.Lab, k edgetest.Key, client, code string) (oauth.Answer, error) {
	t.Helper()
	return l.OAuth.Token(context.Background(), oauth.Request{
		Credentials: oauth.Credentials{ClientID: client}, GrantType: oauth.GrantDeviceCode, DeviceCode: code, Proofs: proofs(t, l, k),
	})
}

func refresh(t *testing.T, l *edgetest.Lab, k edgetest.Key, client, token, scope string) (oauth.Answer, error) {
	t.Helper()
	return l.OAuth.Token(context.Background(), oauth.Request{
		Credentials: oauth.Credentials{ClientID: client}, GrantType: oauth.GrantRefreshToken, RefreshToken: token, Scope: scope, Proofs: proofs(t, l, k),
	})
}

// atOnce calls f from 16 goroutines and counts those that it lets through.
func atOnce(f func(i int) bool) int {
	var wg sync.WaitGroup
	var won atomic.Int64
	begin := make(chan struct{})
	for i := range 16 {
		wg.Go(func() {
			<-begin
			if f(i) {
				won.Add(1)
			}
		})
	}
	close(begin)
	wg.Wait()
	return int(won.Load())
}

// TestAttackOnceOnTwoReplicas sends what is good once sixteen times at once, to two replicas on one Postgres in turn.
func TestAttackOnceOnTwoReplicas(t *testing.T) {
	l := edgetest.New(t, storetest.Postgres(t))
	replicas := []*edgetest.Lab{l, l.Replica(t)}
	h := l.NewHome(t)
	ctx := context.Background()
	for round := range 5 {
		t.Run(fmt.Sprint(round), func(t *testing.T) {
			// A ticket, by sixteen different keys.
			one := ticket(t, l, h)
			devices := len(l.DB.Ints(t, "SELECT id FROM devices"))
			assert.Equal(t, 1, atOnce(func(i int) bool {
				_, err := register(t, replicas[i%2], edgetest.NewKey(t), one)
				if err != nil {
					refused(t, models.CodeInvalidGrant, err, "ticket")
				}
				return err == nil
			}), "a ticket")
			assert.Len(t, l.DB.Ints(t, "SELECT id FROM devices"), devices+1)

			// A key, with sixteen tickets: it belongs to one device.
			k := edgetest.NewKey(t)
			var tickets [16]string
			for i := range tickets {
				tickets[i] = ticket(t, l, h)
			}
			assert.Equal(t, 1, atOnce(func(i int) bool {
				_, err := register(t, replicas[i%2], k, tickets[i])
				if err != nil {
					refused(t, models.CodeAlreadyExists, err, "key")
				}
				return err == nil
			}), "a key")

			// A client assertion, each time with a proof of its own.
			assertion := k.Assertion(t, l)
			assert.Equal(t, 1, atOnce(func(i int) bool {
				_, err := replicas[i%2].OAuth.Token(ctx, oauth.Request{
					Credentials: oauth.Credentials{AssertionType: oauth.AssertionType, Assertion: assertion}, GrantType: oauth.GrantClientCredentials, Proofs: proofs(t, l, k),
				})
				if err != nil {
					refused(t, models.CodeInvalidClient, err, "assertion")
				}
				return err == nil
			}), "an assertion")

			// A proof, at the resource, over HTTP.
			a, err := l.OAuth.Token(ctx, oauth.Request{
				Credentials: oauth.Credentials{AssertionType: oauth.AssertionType, Assertion: k.Assertion(t, l)}, GrantType: oauth.GrantClientCredentials, Proofs: proofs(t, l, k),
			})
			require.NoError(t, err)
			proof := k.Proof(t, l, "GET", "/v1/groups", a.AccessToken)
			assert.Equal(t, 1, atOnce(func(i int) bool {
				r := replicas[i%2].Do(t, http.MethodGet, "/v1/groups", "", "Authorization", "DPoP "+a.AccessToken, "DPoP", proof)
				assert.Contains(t, []int{http.StatusOK, http.StatusUnauthorized}, r.Status, r.Body)
				return r.Status == http.StatusOK
			}), "a proof")

			// A device code that was approved.
			camera := edgetest.NewKey(t)
			code := granted(t, l, h, camera, devicegrant.ClientDevice, "", "")
			assert.Equal(t, 1, atOnce(func(i int) bool {
				_, err := redeem(t, replicas[i%2], camera, devicegrant.ClientDevice, code)
				if err != nil {
					refused(t, models.CodeInvalidGrant, err, "device code")
				}
				return err == nil
			}), "a device code")
		})
	}
	assert.Zero(t, l.DB.Deadlocks(t))
}

// TestRefreshTokensEnd goes through all ends of a refresh token, and what keeps it alive.
func TestRefreshTokensEnd(t *testing.T) {
	labs(t, func(t *testing.T, l *edgetest.Lab) {
		h := l.NewHome(t)
		k, thief := edgetest.NewKey(t), edgetest.NewKey(t)
		start := func() (string, models.ID) {
			t.Helper()
			a, err := redeem(t, l, k, devicegrant.ClientDevice, granted(t, l, h, k, devicegrant.ClientDevice, "", ""))
			require.NoError(t, err)
			require.NotEmpty(t, a.RefreshToken)
			assert.True(t, a.Bound)
			assert.Equal(t, oauth.DeviceLife, a.Life)
			id := l.DB.Ints(t, "SELECT device_id FROM device_keys WHERE thumbprint = '"+k.Thumbprint+"'")[0]
			return a.RefreshToken, models.ID(id)
		}
		token, device := start()
		use := func(who edgetest.Key, client, scope string) error {
			t.Helper()
			_, err := refresh(t, l, who, client, token, scope)
			return err
		}
		require.NoError(t, use(k, devicegrant.ClientDevice, ""))
		a, err := refresh(t, l, k, devicegrant.ClientDevice, token, "gc:notify")
		require.NoError(t, err)
		assert.Equal(t, "gc:notify", a.Scope)
		assert.Empty(t, a.RefreshToken)
		refused(t, models.CodeInvalidScope, use(k, devicegrant.ClientDevice, "gc:groups.read"), "a scope of gateways")
		refused(t, models.CodeInvalidScope, use(k, devicegrant.ClientDevice, "gc:account"), "a scope of users")
		refused(t, models.CodeInvalidGrant, use(thief, devicegrant.ClientDevice, ""), "another key")
		refused(t, models.CodeInvalidGrant, use(k, devicegrant.ClientGateway, ""), "another client")
		refused(t, models.CodeUnauthorizedClient, use(k, "gc-other", ""), "an unknown client")
		refused(t, models.CodeInvalidClient, use(k, "", ""), "no client")
		_, err = l.OAuth.Token(t.Context(), oauth.Request{Credentials: oauth.Credentials{ClientID: devicegrant.ClientDevice}, GrantType: oauth.GrantRefreshToken, RefreshToken: token})
		refused(t, models.CodeInvalidDPoPProof, err, "no proof")
		_, err = l.OAuth.Token(t.Context(), oauth.Request{
			Credentials: oauth.Credentials{ClientID: devicegrant.ClientDevice, Basic: true, BasicID: "svc-upload"}, GrantType: oauth.GrantRefreshToken, RefreshToken: token, Proofs: proofs(t, l, k),
		})
		refused(t, models.CodeUnauthorizedClient, err, "a client with a secret")

		// The same key, approved for the same place again: the device stays what it is.
		var again models.ID
		token, again = start()
		assert.Equal(t, device, again)
		revoke := func(who edgetest.Key, what string) {
			t.Helper()
			require.NoError(t, l.OAuth.Revoke(t.Context(), oauth.Revocation{
				Credentials: oauth.Credentials{ClientID: devicegrant.ClientDevice}, Token: what, Proofs: []string{who.Proof(t, l, "POST", "/oauth/revoke", "")},
			}))
		}
		revoke(thief, token)
		require.NoError(t, use(k, devicegrant.ClientDevice, ""), "only its holder can revoke it")
		revoke(k, token)
		refused(t, models.CodeInvalidGrant, use(k, devicegrant.ClientDevice, ""), "revoked")
		revoke(k, token)
		err = l.OAuth.Revoke(t.Context(), oauth.Revocation{Credentials: oauth.Credentials{ClientID: devicegrant.ClientDevice}, Token: token})
		refused(t, models.CodeInvalidClient, err, "revoking without a proof")

		// An access token that is revoked takes everything of the device with it.
		token, _ = start()
		a, err = refresh(t, l, k, devicegrant.ClientDevice, token, "")
		require.NoError(t, err)
		ask := func() int {
			return l.Do(t, http.MethodGet, "/v1/groups", "", "Authorization", "DPoP "+a.AccessToken, "DPoP", k.Proof(t, l, "GET", "/v1/groups", a.AccessToken)).Status
		}
		assert.Equal(t, http.StatusOK, ask())
		revoke(thief, a.AccessToken)
		assert.Equal(t, http.StatusOK, ask())
		revoke(k, a.AccessToken)
		assert.Equal(t, http.StatusUnauthorized, ask())
		refused(t, models.CodeInvalidGrant, use(k, devicegrant.ClientDevice, ""), "revoked with the access token")

		// So does the device's removal.
		token, device = start()
		require.NoError(t, l.Accounts.DeleteDevice(t.Context(), h.Account.ID, device))
		refused(t, models.CodeInvalidGrant, use(k, devicegrant.ClientDevice, ""), "the device is gone")

		token, _ = start()
		// Used, it lives on; unused, it ends after its life and not before.
		const moment = time.Minute
		for range 3 {
			l.DB.Advance(t, devicegrant.DeviceRefresh-moment)
			require.NoError(t, use(k, devicegrant.ClientDevice, ""))
		}
		l.DB.Advance(t, devicegrant.DeviceRefresh)
		refused(t, models.CodeInvalidGrant, use(k, devicegrant.ClientDevice, ""), "expired")
	})
}

// TestAppsOfUsers is the device grant of an app: its token speaks for the user until the password changes or the user is gone.
func TestAppsOfUsers(t *testing.T) {
	labs(t, func(t *testing.T, l *edgetest.Lab) {
		h := l.NewHome(t)
		l.User(t, h.Account.ID, "anna")
		user := l.DB.Texts(t, "SELECT id FROM users")[0]
		k := edgetest.NewKey(t)
		a, err := redeem(t, l, k, devicegrant.ClientApp, granted(t, l, h, k, devicegrant.ClientApp, "gc:notify gc:devices", user))
		require.NoError(t, err)
		assert.Equal(t, oauth.UserLife, a.Life)
		assert.ElementsMatch(t, []string{"gc:notify", "gc:devices"}, strings.Fields(a.Scope))
		ask := func(path string) edgetest.Answer {
			return l.Do(t, http.MethodGet, path, "", "Authorization", "DPoP "+a.AccessToken, "DPoP", k.Proof(t, l, "GET", path, a.AccessToken))
		}
		assert.Equal(t, http.StatusOK, ask("/v1/groups").Status)
		assert.Equal(t, http.StatusForbidden, ask("/v1/account").Status, "the scope was not asked for")
		_, err = refresh(t, l, k, devicegrant.ClientApp, a.RefreshToken, "gc:account")
		refused(t, models.CodeInvalidScope, err, "more than was approved")
		_, err = refresh(t, l, k, devicegrant.ClientApp, a.RefreshToken, "")
		require.NoError(t, err)
		l.DB.Advance(t, devicegrant.AppRefresh-time.Minute)
		_, err = refresh(t, l, k, devicegrant.ClientApp, a.RefreshToken, "")
		require.NoError(t, err)

		cookie := l.LogIn(t, "anna")
		r := l.Do(t, http.MethodPost, "/v1/account/password", fmt.Sprintf(`{"oldPassword":%q,"newPassword":"four other words it is"}`, edgetest.Password), "Cookie", cookie)
		require.Equal(t, http.StatusNoContent, r.Status, r.Body)
		assert.Equal(t, http.StatusUnauthorized, ask("/v1/groups").Status, "a new password ends the app")
		_, err = refresh(t, l, k, devicegrant.ClientApp, a.RefreshToken, "")
		refused(t, models.CodeInvalidGrant, err, "its refresh token, too")
	})
}

func TestRequestsThatMixThings(t *testing.T) {
	l := edgetest.New(t, storetest.SQLite(t))
	k, device := enrolled(t, l, l.NewHome(t))
	assertion := func() oauth.Credentials {
		return oauth.Credentials{AssertionType: oauth.AssertionType, Assertion: k.Assertion(t, l)}
	}
	for name, c := range map[string]struct {
		r    oauth.Request
		want models.Code
	}{
		"no grant":                         {oauth.Request{}, models.CodeUnsupportedGrant},
		"client credentials with a code":   {oauth.Request{GrantType: oauth.GrantClientCredentials, DeviceCode: "x"}, models.CodeBadRequest},
		"client credentials, refresh":      {oauth.Request{GrantType: oauth.GrantClientCredentials, RefreshToken: "x"}, models.CodeBadRequest},
		"a code with a scope":              {oauth.Request{GrantType: oauth.GrantDeviceCode, DeviceCode: "x", Scope: "gc:notify"}, models.CodeBadRequest},
		"no code":                          {oauth.Request{GrantType: oauth.GrantDeviceCode}, models.CodeBadRequest},
		"refresh without a token":          {oauth.Request{GrantType: oauth.GrantRefreshToken}, models.CodeBadRequest},
		"no client authentication":         {oauth.Request{GrantType: oauth.GrantClientCredentials}, models.CodeInvalidClient},
		"another type of assertion":        {oauth.Request{Credentials: oauth.Credentials{AssertionType: "saml2", Assertion: "x"}, GrantType: oauth.GrantClientCredentials}, models.CodeInvalidClient},
		"secret and assertion":             {oauth.Request{Credentials: oauth.Credentials{Basic: true, Assertion: "x"}, GrantType: oauth.GrantClientCredentials}, models.CodeBadRequest},
		"client_id beside another's basic": {oauth.Request{Credentials: oauth.Credentials{Basic: true, BasicID: "a", ClientID: "b"}, GrantType: oauth.GrantClientCredentials}, models.CodeInvalidClient},
		"client_id beside another's assertion": {oauth.Request{
			Credentials: oauth.Credentials{ClientID: "b", AssertionType: oauth.AssertionType, Assertion: k.Assertion(t, l)}, GrantType: oauth.GrantClientCredentials,
		}, models.CodeInvalidClient},
		"two proofs": {oauth.Request{Credentials: assertion(), GrantType: oauth.GrantClientCredentials, Proofs: append(proofs(t, l, k), proofs(t, l, k)...)}, models.CodeInvalidDPoPProof},
		"no proof":   {oauth.Request{Credentials: assertion(), GrantType: oauth.GrantClientCredentials}, models.CodeInvalidDPoPProof},
		"another key's proof": {oauth.Request{
			Credentials: assertion(), GrantType: oauth.GrantClientCredentials, Proofs: proofs(t, l, edgetest.NewKey(t)),
		}, models.CodeInvalidDPoPProof},
		"a scope twice is once, but not a foreign one": {oauth.Request{
			Credentials: assertion(), GrantType: oauth.GrantClientCredentials, Scope: "gc:notify gc:notify gc:links", Proofs: proofs(t, l, k),
		}, models.CodeInvalidScope},
		"a scope of spaces": {oauth.Request{Credentials: assertion(), GrantType: oauth.GrantClientCredentials, Scope: "  ", Proofs: proofs(t, l, k)}, models.CodeInvalidScope},
	} {
		_, err := l.OAuth.Token(t.Context(), c.r)
		refused(t, c.want, err, name)
	}
	a, err := l.OAuth.Token(t.Context(), oauth.Request{Credentials: assertion(), GrantType: oauth.GrantClientCredentials, Scope: "gc:notify gc:notify", Proofs: proofs(t, l, k)})
	require.NoError(t, err)
	assert.Equal(t, "gc:notify", a.Scope)
	require.NoError(t, l.OAuth.Revoke(t.Context(), oauth.Revocation{Credentials: assertion(), Token: a.AccessToken}))
	assert.Positive(t, l.DB.Ints(t, fmt.Sprintf("SELECT not_before FROM devices WHERE id = %d", device.ID))[0])
	refused(t, models.CodeInvalidClient, l.OAuth.Revoke(t.Context(), oauth.Revocation{Credentials: oauth.Credentials{Basic: true, BasicID: "svc-none"}}), "revoking as nobody")
	refused(t, models.CodeUnauthorizedClient, l.OAuth.Revoke(t.Context(), oauth.Revocation{Credentials: oauth.Credentials{ClientID: "gc-other"}}), "revoking as an unknown client")

	_, err = l.OAuth.Register(t.Context(), oauth.Registration{JWK: []byte(`{"kty":"OKP"}`)})
	refused(t, models.CodeInvalidClientMetadata, err, "half a key")
	_, err = l.OAuth.Register(t.Context(), oauth.Registration{JWK: k.Public(t)})
	refused(t, models.CodeInvalidDPoPProof, err, "a key without a proof")
	_, err = l.OAuth.Register(t.Context(), oauth.Registration{JWK: k.Public(t), Proofs: []string{edgetest.NewKey(t).Proof(t, l, "POST", "/oauth/register", "")}})
	refused(t, models.CodeInvalidDPoPProof, err, "a key with another's proof")
	_, err = l.OAuth.Authorize(t.Context(), oauth.DeviceAuthorization{Request: devicegrant.Request{ClientID: devicegrant.ClientDevice, Scope: "gc:account"}})
	refused(t, models.CodeInvalidScope, err, "a device that wants a user's scope")
}

// TestAttackUnknownServicesCostTheSameWork: a secret for a service that doesn't exist takes the statements of one that does.
func TestAttackUnknownServicesCostTheSameWork(t *testing.T) {
	labs(t, func(t *testing.T, l *edgetest.Lab) {
		_, err := l.Accounts.CreateService(t.Context(), "svc-upload", "upload")
		require.NoError(t, err)
		c, secret, err := l.OAuth.CreateCredential(t.Context(), "svc-upload", "first", "")
		require.NoError(t, err)
		request := func(id, secret string) func() {
			return func() {
				_, err := l.OAuth.Token(t.Context(), oauth.Request{Credentials: oauth.Credentials{Basic: true, BasicID: id, BasicSecret: secret}, GrantType: oauth.GrantClientCredentials})
				refused(t, models.CodeInvalidClient, err, id)
			}
		}
		assert.Equal(t, l.DB.Statements(request("svc-upload", "wrong")), l.DB.Statements(request("svc-nobody", "wrong")))
		a, err := l.OAuth.Token(t.Context(), oauth.Request{Credentials: oauth.Credentials{Basic: true, BasicID: "svc-upload", BasicSecret: secret}, GrantType: oauth.GrantClientCredentials})
		require.NoError(t, err)
		assert.False(t, a.Bound)
		assert.Equal(t, oauth.ServiceLife, a.Life)

		list, _, err := l.OAuth.ListCredentials(t.Context(), "svc-upload", models.Page{})
		require.NoError(t, err)
		require.Len(t, list, 1)
		assert.Equal(t, c.ID, list[0].ID)
		assert.NotContains(t, fmt.Sprintf("%+v", list), secret)
		_, _, err = l.OAuth.ListCredentials(t.Context(), "svc-nobody", models.Page{})
		refused(t, models.CodeNotFound, err, "list")
		_, _, err = l.OAuth.CreateCredential(t.Context(), "svc-nobody", "", "")
		refused(t, models.CodeNotFound, err, "create")
		for _, bad := range []string{`{"keys":[]}`, `{}`, `x`, `{"keys":[{"kty":"RSA","n":"AQAB","e":"AQAB"}]}`} {
			_, _, err = l.OAuth.CreateCredential(t.Context(), "svc-upload", "", bad)
			refused(t, models.CodeBadRequest, err, bad)
		}
		refused(t, models.CodeNotFound, l.OAuth.DeleteCredential(t.Context(), "svc-other", c.ID), "another service's")

		// Only a service itself ends its tokens.
		revoke := func(id, secret string) error {
			return l.OAuth.Revoke(t.Context(), oauth.Revocation{Credentials: oauth.Credentials{Basic: true, BasicID: id, BasicSecret: secret}, Token: a.AccessToken})
		}
		ask := func() int {
			return l.Do(t, http.MethodGet, "/v1/registrations", "", "Authorization", "Bearer "+a.AccessToken).Status
		}
		_, err = l.Accounts.CreateService(t.Context(), "svc-other", "other")
		require.NoError(t, err)
		_, otherSecret, err := l.OAuth.CreateCredential(t.Context(), "svc-other", "", "")
		require.NoError(t, err)
		require.NoError(t, revoke("svc-other", otherSecret))
		assert.Equal(t, http.StatusOK, ask())
		require.NoError(t, revoke("svc-upload", secret))
		assert.Equal(t, http.StatusUnauthorized, ask())
		require.NoError(t, l.OAuth.DeleteCredential(t.Context(), "svc-upload", c.ID))
		refused(t, models.CodeNotFound, l.OAuth.DeleteCredential(t.Context(), "svc-upload", c.ID), "twice")
		request("svc-upload", secret)()
	})
}

// TestAttackURLsInHeaders is row 14: a header that names a URL makes nobody fetch it, wherever a JWT is taken.
func TestAttackURLsInHeaders(t *testing.T) {
	l := edgetest.New(t, storetest.SQLite(t))
	h := l.NewHome(t)
	trap := newTrap(t)
	k, device := enrolled(t, l, h)
	thief := edgetest.NewKey(t)
	id := enrolment.ClientPrefix + k.Thumbprint
	now := time.Now()
	camera := l.As(t, models.Principal{Kind: models.KindDevice, Device: device})
	assert.Equal(t, http.StatusOK, camera.Do(t, http.MethodGet, "/v1/groups", "").Status)
	for name, header := range map[string]map[string]any{
		"jku": {"jku": trap.URL + "/keys"}, "x5u": {"x5u": trap.URL + "/cert"}, "kid": {"kid": trap.URL + "/keys"},
		"jwk": {"jwk": map[string]any{"kty": "OKP", "crv": "Ed25519", "x": "AA", "jku": trap.URL}}, "iss": {"iss": trap.URL},
		"x5c": {"x5c": []string{"AA"}}, "crit": {"crit": []string{"jku"}, "jku": trap.URL},
	} {
		for _, signer := range []edgetest.Key{k, thief} {
			with := func(typ string) map[string]any {
				all := map[string]any{"typ": typ}
				maps.Copy(all, header)
				return all
			}
			token := signer.Sign(t, with("at+jwt"), jwt.MapClaims{
				"iss": trap.URL, "aud": "groupcast", "sub": "svc-upload", "client_id": "svc-upload", "gc_kind": "service", "scope": "gc:register", "jti": "x",
				"iat": now.Unix(), "nbf": now.Unix(), "exp": now.Add(time.Minute).Unix(),
			})
			assert.Equal(t, http.StatusUnauthorized, l.Do(t, http.MethodGet, "/v1/registrations", "", "Authorization", "Bearer "+token).Status, name)
			_, err := l.OAuth.Token(t.Context(), oauth.Request{GrantType: oauth.GrantClientCredentials, Proofs: proofs(t, l, k), Credentials: oauth.Credentials{
				AssertionType: oauth.AssertionType, Assertion: signer.Sign(t, with("JWT"), jwt.MapClaims{
					"iss": id, "sub": id, "aud": l.URL, "jti": fmt.Sprint(name, signer.Thumbprint), "iat": now.Unix(), "exp": now.Add(time.Minute).Unix(),
				}),
			}})
			if name != "kid" || signer.Thumbprint != k.Thumbprint { // a kid is a name and nothing else
				refused(t, models.CodeInvalidClient, err, name)
			}
			_, err = l.OAuth.Token(t.Context(), oauth.Request{GrantType: oauth.GrantClientCredentials, Proofs: []string{signer.Sign(t, with("dpop+jwt"), jwt.MapClaims{
				"jti": "x", "htm": "POST", "htu": l.URL + "/oauth/token", "iat": now.Unix(),
			})}})
			refused(t, models.CodeInvalidDPoPProof, err, name)
		}
	}
	assert.Zero(t, trap.hits.Load(), "nothing that a client sends is fetched")
}

type trap struct {
	URL  string
	hits atomic.Int64
}

// newTrap listens on loopback and counts who connects.
func newTrap(t *testing.T) *trap {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	x := &trap{URL: "http://" + l.Addr().String()}
	var running sync.WaitGroup
	running.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			x.hits.Add(1)
			_ = c.Close()
		}
	})
	t.Cleanup(func() { _ = l.Close(); running.Wait() })
	return x
}
