package tokens_test

import (
	"context"
	"crypto"
	"crypto/ed25519"
	"crypto/hmac"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/groupcast/groupcast/models"
	"github.com/groupcast/groupcast/server/keys"
	"github.com/groupcast/groupcast/server/store/storetest"
	"github.com/groupcast/groupcast/server/tokens"
)

const issuerURL = "https://groupcast.example"

var (
	camera = models.Device{
		ID: 664123086043511412, AccountID: "a_01j9zq3v6t7n8m2k4h5g6f7d8s", PremisesID: "p_01j9zq3v6t7n8m2k4h5g6f7d8s", Type: models.DeviceCamera,
	}
	gateway = models.Device{ID: 812345678901234567, AccountID: camera.AccountID, PremisesID: camera.PremisesID, Type: models.DeviceGateway}
	upload  = models.Service{ID: "svc-upload"}
)

type lab struct {
	ring     *keys.Ring
	issuer   *tokens.Issuer
	verifier *tokens.Verifier
	now      time.Time
}

func newLab(t testing.TB) *lab {
	t.Helper()
	l := &lab{ring: newRing(t), now: time.Date(2026, 11, 21, 12, 0, 0, 0, time.UTC)}
	clock := func() time.Time { return l.now }
	l.issuer = tokens.NewIssuer(issuerURL, l.ring, clock)
	l.verifier = tokens.NewVerifier(issuerURL, l.ring, clock)
	return l
}

func newRing(t testing.TB) *keys.Ring {
	t.Helper()
	kek, err := keys.LoadOrCreateKEK(filepath.Join(t.TempDir(), "kek"))
	require.NoError(t, err)
	ring, err := keys.Load(context.Background(), storetest.SQLite(t).Store, kek, keys.Options{})
	require.NoError(t, err)
	return ring
}

func (l *lab) device(t testing.TB, d models.Device) string {
	t.Helper()
	token, err := l.issuer.Device(d, tokens.Grant{Life: time.Hour})
	require.NoError(t, err)
	return token
}

func TestIssuedTokensSpeakForTheirSubject(t *testing.T) {
	l := newLab(t)
	got, err := l.verifier.Verify(l.device(t, camera))
	require.NoError(t, err)
	assert.Equal(t, tokens.Subject{
		Kind: models.KindDevice, Device: camera.ID, Account: camera.AccountID, Premises: camera.PremisesID,
		Scopes: []string{"gc:register", "gc:notify"}, IssuedAt: l.now.Local(), ExpiresAt: l.now.Add(time.Hour).Local(),
	}, got)

	got, err = l.verifier.Verify(l.device(t, gateway))
	require.NoError(t, err)
	assert.Equal(t, models.KindGateway, got.Kind)
	assert.Equal(t, gateway.ID, got.Device)
	assert.Equal(t, []string{"gc:groups.read", "gc:notify", "gc:consent.report"}, got.Scopes)

	sat, err := l.issuer.Service(upload, tokens.Grant{Life: tokens.MaxLife})
	require.NoError(t, err)
	got, err = l.verifier.Verify(sat)
	require.NoError(t, err)
	assert.Equal(t, tokens.Subject{
		Kind: models.KindService, Service: "svc-upload", Scopes: []string{"gc:register", "gc:events", "gc:notify"},
		IssuedAt: l.now.Local(), ExpiresAt: l.now.Add(tokens.MaxLife).Local(),
	}, got)
}

// decode takes a token apart without checking it.
func decode(t testing.TB, token string) (header, payload map[string]any) {
	t.Helper()
	parts := strings.Split(token, ".")
	require.Len(t, parts, 3)
	for i, into := range []*map[string]any{&header, &payload} {
		raw, err := base64.RawURLEncoding.DecodeString(parts[i])
		require.NoError(t, err)
		require.NoError(t, json.Unmarshal(raw, into))
	}
	return header, payload
}

func TestClaims(t *testing.T) {
	l := newLab(t)
	token := l.device(t, camera)
	assert.Less(t, len(token), 800)
	header, payload := decode(t, token)
	assert.Equal(t, map[string]any{"alg": "EdDSA", "typ": "at+jwt", "kid": l.ring.Signer().KID}, header)
	assert.Len(t, l.ring.Signer().KID, 16)
	for _, name := range []string{"sub", "edid", "eacc", "jti"} {
		assert.NotEmpty(t, payload[name], name)
	}
	assert.Regexp(t, `^dev:[A-Za-z0-9_-]{22}$`, payload["sub"])
	_, payload2 := decode(t, l.device(t, camera))
	assert.Equal(t, payload["sub"], payload2["sub"], "the handle of a device stays")
	assert.NotEqual(t, payload["jti"], payload2["jti"])
	for _, name := range []string{"sub", "edid", "eacc", "jti"} {
		delete(payload, name)
	}
	at := float64(l.now.Unix())
	assert.Equal(t, map[string]any{
		"iss": issuerURL, "aud": []any{"groupcast"}, "client_id": "gc-device", "gc_kind": "device", "dtype": "camera",
		"prem": string(camera.PremisesID), "scope": "gc:register gc:notify", "iat": at, "nbf": at, "exp": at + 3600,
	}, payload)
	raw, err := base64.RawURLEncoding.DecodeString(strings.Split(token, ".")[1])
	require.NoError(t, err)
	assert.NotContains(t, string(raw), camera.ID.String())
	assert.NotContains(t, string(raw), string(camera.AccountID))

	// Two ids that are the same number in JavaScript are two devices here.
	near := camera
	near.ID++
	got, err := l.verifier.Verify(l.device(t, near))
	require.NoError(t, err)
	assert.Equal(t, near.ID, got.Device)
}

func TestLifetimesAreBounded(t *testing.T) {
	l := newLab(t)
	for _, life := range []time.Duration{0, -time.Second, tokens.MaxLife + time.Second} {
		_, err := l.issuer.Device(camera, tokens.Grant{Life: life})
		assert.Error(t, err)
		_, err = l.issuer.Service(upload, tokens.Grant{Life: life})
		assert.Error(t, err)
	}
}

func refused(t testing.TB, l *lab, token, why string) {
	t.Helper()
	s, err := l.verifier.Verify(token)
	var e *models.Error
	if assert.ErrorAs(t, err, &e, why) {
		assert.Equal(t, models.CodeUnauthenticated, e.Code, why)
		assert.Zero(t, s)
		if len(token) > 20 {
			assert.NotContains(t, err.Error(), token[:20], why)
		}
	}
}

func TestTime(t *testing.T) {
	l := newLab(t)
	token := l.device(t, camera)
	issued := l.now
	for _, c := range []struct {
		after time.Duration
		ok    bool
	}{
		{-31 * time.Second, false}, {-29 * time.Second, true}, {time.Hour + 29*time.Second, true}, {time.Hour + 31*time.Second, false}, {24 * time.Hour, false},
	} {
		l.now = issued.Add(c.after)
		if c.ok {
			_, err := l.verifier.Verify(token)
			assert.NoError(t, err, c.after)
		} else {
			refused(t, l, token, c.after.String())
		}
	}
	_, err := l.verifier.Verify(token)
	assert.ErrorContains(t, err, "has expired")
}

// sign makes a token of any header and payload with a key of the issuer, as nobody outside can.
func (l *lab) sign(t testing.TB, header, payload any) string {
	t.Helper()
	text := func(v any) string {
		if s, ok := v.(string); ok {
			return base64.RawURLEncoding.EncodeToString([]byte(s))
		}
		b, err := json.Marshal(v)
		require.NoError(t, err)
		return base64.RawURLEncoding.EncodeToString(b)
	}
	input := text(header) + "." + text(payload)
	return input + "." + base64.RawURLEncoding.EncodeToString(sign(l.ring.Signer().Private, input))
}

func without(m map[string]any, names ...string) map[string]any {
	m = maps.Clone(m)
	for _, n := range names {
		delete(m, n)
	}
	return m
}

func with(m map[string]any, name string, value any) map[string]any {
	m = maps.Clone(m)
	m[name] = value
	return m
}

func TestHostileTokens(t *testing.T) {
	l := newLab(t)
	good := l.device(t, camera)
	header, payload := decode(t, good)
	_, other := decode(t, l.device(t, gateway))
	parts := strings.Split(good, ".")
	at := l.now.Unix()
	_, err := l.verifier.Verify(l.sign(t, header, payload))
	require.NoError(t, err, "what this test makes is valid before it is spoiled")

	signed := map[string]string{}
	for name, value := range map[string]any{
		"exp as text": with(payload, "exp", "9999999999"), "exp null": with(payload, "exp", nil), "exp 0": with(payload, "exp", 0),
		"exp negative": with(payload, "exp", -1), "exp before iat": with(payload, "exp", at-10), "exp far off": with(payload, "exp", at+90000),
		"no exp": without(payload, "exp"), "no iat": without(payload, "iat"), "no nbf": without(payload, "nbf"), "no jti": without(payload, "jti"),
		"no sub": without(payload, "sub"), "no client": without(payload, "client_id"), "no aud": without(payload, "aud"), "no iss": without(payload, "iss"),
		"no kind": without(payload, "gc_kind"), "no premises": without(payload, "prem"), "no type": without(payload, "dtype"),
		"iat in future": with(payload, "iat", at+120), "nbf in future": with(payload, "nbf", at+120),
		"other iss": with(payload, "iss", "https://evil.example"), "iss with slash": with(payload, "iss", issuerURL+"/"), "iss list": with(payload, "iss", []string{issuerURL}),
		"other aud": with(payload, "aud", "other"), "two auds": with(payload, "aud", []string{"groupcast", "other"}), "aud empty": with(payload, "aud", []string{}),
		"user kind": with(payload, "gc_kind", "user"), "operator kind": with(payload, "gc_kind", "operator"), "kind of another": with(payload, "gc_kind", "gateway"),
		"service with a device": with(payload, "gc_kind", "service"), "scope as list": with(payload, "scope", []string{"gc:register"}),
		"edid as number": with(payload, "edid", 664123086043511412), "edid plain": with(payload, "edid", camera.ID.String()),
		"eacc in edid": with(payload, "edid", payload["eacc"]), "edid in eacc": with(payload, "eacc", payload["edid"]),
		"edid of another": with(payload, "edid", other["edid"]), "sub of another": with(payload, "sub", other["sub"]), "edid empty": with(payload, "edid", ""),
		"bound to a key": with(payload, "cnf", map[string]string{"jkt": "x"}), "Cnf": with(payload, "Cnf", 1),
		"a claim twice in another case": with(payload, "SCOPE", "gc:groups.read"),
	} {
		signed["payload: "+name] = l.sign(t, header, value)
	}
	raw := func(segment string) string {
		b, err := base64.RawURLEncoding.DecodeString(segment)
		require.NoError(t, err)
		return string(b)
	}
	plain := raw(parts[1])
	signed["payload: a claim twice"] = l.sign(t, header, strings.Replace(plain, `{`, `{"scope":"gc:groups.read",`, 1))
	signed["payload: data after it"] = l.sign(t, header, plain+`{}`)
	for name, text := range map[string]string{"empty": "", "null": "null", "list": "[]", "text": `"x"`, "number": "1"} {
		signed["payload: "+name] = l.sign(t, header, text)
		signed["header: "+name] = l.sign(t, text, payload)
	}
	for name, value := range map[string]any{
		"no alg": without(header, "alg"), "no kid": without(header, "kid"), "no typ": without(header, "typ"),
		"unknown kid": with(header, "kid", "AAAAAAAAAAAAAAAA"), "kid as number": with(header, "kid", 1), "kid empty": with(header, "kid", ""),
		"alg none": with(header, "alg", "none"), "alg nOnE": with(header, "alg", "nOnE"), "alg HS256": with(header, "alg", "HS256"), "alg ES256": with(header, "alg", "ES256"),
		"alg eddsa": with(header, "alg", "eddsa"), "alg as list": with(header, "alg", []string{"EdDSA"}),
		"typ of a proof": with(header, "typ", "dpop+jwt"), "typ JWT": with(header, "typ", "JWT"), "typ in capitals": with(header, "typ", "AT+JWT"), "typ with a prefix": with(header, "typ", "application/at+jwt"),
		"crit": with(header, "crit", []string{"exp"}), "b64": with(header, "b64", false), "jku": with(header, "jku", "http://127.0.0.1/"),
		"jwk": with(header, "jwk", map[string]string{"kty": "OKP"}), "x5u": with(header, "x5u", "http://127.0.0.1/"), "zip": with(header, "zip", "DEF"),
		"kid in capitals": with(without(header, "kid"), "KID", header["kid"]),
	} {
		signed["header: "+name] = l.sign(t, value, payload)
	}
	signed["header: a member twice"] = l.sign(t, strings.Replace(raw(parts[0]), `{`, `{"alg":"none",`, 1), payload)

	// The public key as an HMAC secret, in the forms in which libraries have taken it for one.
	public, _ := l.ring.Public(l.ring.Signer().KID)
	der, err := x509.MarshalPKIXPublicKey(public.Key)
	require.NoError(t, err)
	for name, secret := range map[string][]byte{"raw": public.Key.(ed25519.PublicKey), "DER": der, "PEM": pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der})} {
		h, err := json.Marshal(with(header, "alg", "HS256"))
		require.NoError(t, err)
		input := base64.RawURLEncoding.EncodeToString(h) + "." + parts[1]
		mac := hmac.New(sha256.New, secret)
		mac.Write([]byte(input))
		signed["HMAC with the public key, "+name] = input + "." + base64.RawURLEncoding.EncodeToString(mac.Sum(nil))
	}
	// Other keys under our kid.
	_, foreign, err := ed25519.GenerateKey(nil)
	require.NoError(t, err)
	signed["signed by somebody else"] = parts[0] + "." + parts[1] + "." +
		base64.RawURLEncoding.EncodeToString(ed25519.Sign(foreign, []byte(parts[0]+"."+parts[1])))
	rsaKey, err := rsa.GenerateKey(rand.Reader, 2048)
	require.NoError(t, err)
	rs := jwt.NewWithClaims(jwt.SigningMethodRS256, jwt.MapClaims(payload))
	rs.Header["kid"], rs.Header["typ"] = header["kid"], header["typ"]
	signed["RS256"], err = rs.SignedString(rsaKey)
	require.NoError(t, err)
	signed["of another installation"] = newLab(t).device(t, camera)

	// The text itself.
	last := parts[2][len(parts[2])-1]
	for _, c := range "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_" {
		if byte(c) != last {
			signed["last character "+string(c)] = good[:len(good)-1] + string(c)
		}
	}
	for name, text := range map[string]string{
		"empty": "", "dots": "..", "no signature": parts[0] + "." + parts[1] + ".", "two parts": parts[0] + "." + parts[1], "four parts": good + ".x",
		"five parts": good + "..", "padding": good + "=", "space": good + " ", "newline": good + "\n", "newline within": parts[0] + ".\n" + parts[1] + "." + parts[2],
		"standard alphabet": strings.NewReplacer("-", "+", "_", "/").Replace(good) + "+", "not base64": "!." + parts[1] + "." + parts[2],
		"too long": parts[0] + "." + strings.Repeat("A", 5000) + "." + parts[2], "ten megabytes": strings.Repeat("A", 10<<20),
	} {
		signed["text: "+name] = text
	}
	for name, token := range signed {
		refused(t, l, token, name)
	}
	t.Logf("%d hostile tokens", len(signed))
}

func FuzzVerify(f *testing.F) {
	l := newLab(f)
	good := []string{l.device(f, camera), l.device(f, gateway)}
	sat, err := l.issuer.Service(upload, tokens.Grant{Life: time.Hour})
	require.NoError(f, err)
	good = append(good, sat)
	for _, token := range good {
		f.Add(token)
	}
	f.Add("eyJhbGciOiJub25lIn0.e30.")
	f.Add("..")
	f.Fuzz(func(t *testing.T, token string) {
		_, err := l.verifier.Verify(token)
		if slices.Contains(good, token) {
			require.NoError(t, err)
			return
		}
		require.Error(t, err, "a forged token, or another spelling of a valid one")
	})
}

func sign(key crypto.Signer, input string) []byte {
	signature, err := key.Sign(rand.Reader, []byte(input), crypto.Hash(0))
	if err != nil {
		panic(err)
	}
	return signature
}
