package dpop_test

import (
	"context"
	"crypto/elliptic"
	"encoding/base64"
	"errors"
	"fmt"
	"math/big"
	"strings"
	"testing"
	"time"

	"github.com/groupcast/groupcast/server/dpop"
	"github.com/groupcast/groupcast/server/replay"
)

func unb64(t testing.TB, s string) []byte {
	t.Helper()
	b, err := base64.RawURLEncoding.DecodeString(s)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestAGoodProofNamesItsKey(t *testing.T) {
	for _, s := range []signer{newEd(t), newEC(t)} {
		t.Run(s.alg(), func(t *testing.T) {
			v, _, _ := newVerifier(t)
			res := mustVerify(t, v, s.request(s.sign(s.header(), payload())))
			if res.Thumbprint != s.thumbprint() || res.Nonce != "" {
				t.Fatalf("got %+v, want thumbprint %s and no nonce", res, s.thumbprint())
			}
			// Where a token is asked for there is none to hash yet.
			atToken := dpop.Request{Method: "POST", Path: "/oauth/token", Proofs: []string{
				s.sign(s.header(), fmt.Sprintf(`{"jti":"1","htm":"POST","htu":"%s/oauth/token","iat":%d}`, publicURL, start.Unix())),
			}}
			if res := mustVerify(t, v, atToken); res.Thumbprint != s.thumbprint() {
				t.Fatalf("at the token endpoint: %+v", res)
			}
		})
	}
}

func TestWhatAHonestClientMaySend(t *testing.T) {
	s := newEd(t)
	for name, p := range map[string]string{
		"a kid":                s.sign(strings.Replace(s.header(), "{", `{"kid":"1",`, 1), payload()),
		"claims we don't know": s.sign(s.header(), payload("{", `{"exp":1,"extra":{"a":[1]},`)),
		"iat with a fraction":  s.sign(s.header(), payload(`"iat":1700000000`, `"iat":1700000000.25`)),
		"iat a minute ago":     s.sign(s.header(), payload(`"iat":1700000000`, `"iat":1699999940`)),
		"iat in a minute":      s.sign(s.header(), payload(`"iat":1700000000`, `"iat":1700000060`)),
		"htu with a query":     s.sign(s.header(), payload(path, path+"?a=b")),
		"htu with a port":      s.sign(s.header(), payload(publicURL, "https://groupcast.example:443")),
		"htu in capitals":      s.sign(s.header(), payload(publicURL, "HTTPS://Groupcast.Example")),
		"htu percent-encoded":  s.sign(s.header(), payload(path, "/v1/%72egistrations")),
		"a jti of 64 bytes":    s.sign(s.header(), payload(`"jti":"`, `"jti":"`+strings.Repeat("j", 64-26))),
		"webcrypto's members":  s.sign(strings.Replace(s.header(), `{"kty"`, `{"key_ops":["verify"],"ext":true,"kty"`, 1), payload()),
	} {
		t.Run(name, func(t *testing.T) {
			v, _, _ := newVerifier(t)
			mustVerify(t, v, s.request(p))
		})
	}
}

func TestHostileProofs(t *testing.T) {
	s, ec, other := newEd(t), newEC(t), newEd(t)
	good := s.sign(s.header(), payload())
	parts := strings.Split(good, ".")
	h := func(from, to string) string {
		if !strings.Contains(s.header(), from) {
			t.Fatalf("the header has no %s", from)
		}
		return s.sign(strings.Replace(s.header(), from, to, 1), payload())
	}
	p := func(changes ...string) string { return s.sign(s.header(), payload(changes...)) }
	jwk := func(jwk string) string {
		return s.sign(fmt.Sprintf(`{"typ":"dpop+jwt","alg":"EdDSA","jwk":%s}`, jwk), payload())
	}
	lowOrder := b64(make([]byte, 32))
	x, _ := strings.CutPrefix(s.jwk, `{"kty":"OKP","crv":"Ed25519","x":"`)
	x = strings.TrimSuffix(x, `"}`)
	// The other signature that ECDSA gives for the same text is valid too; it must not pass for a new proof. See TestAttackReplay.
	const alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
	lastBit := good[:len(good)-1] + string(alphabet[strings.IndexByte(alphabet, good[len(good)-1])^1])

	for name, tc := range map[string]struct {
		proofs []string
		code   dpop.Code
	}{
		"none":                     {nil, ""},
		"two header fields":        {[]string{good, p()}, ""},
		"two in one field":         {[]string{good + ", " + p()}, ""},
		"empty":                    {[]string{""}, ""},
		"one part":                 {[]string{"abc"}, ""},
		"two parts":                {[]string{parts[0] + "." + parts[1]}, ""},
		"four parts":               {[]string{good + ".x"}, ""},
		"five parts, a JWE":        {[]string{good + ".x.y"}, ""},
		"JSON serialisation":       {[]string{`{"payload":"` + parts[1] + `","protected":"` + parts[0] + `","signature":"` + parts[2] + `"}`}, ""},
		"too long":                 {[]string{p("{", `{"pad":"`+strings.Repeat("x", dpop.MaxSize)+`",`)}, ""},
		"the access token":         {[]string{token}, ""},
		"no signature":             {[]string{parts[0] + "." + parts[1] + "."}, ""},
		"signature of zeros":       {[]string{parts[0] + "." + parts[1] + "." + b64(make([]byte, 64))}, ""},
		"signature with padding":   {[]string{good + "=="}, ""},
		"signature cut":            {[]string{good[:len(good)-4]}, ""},
		"signature, last bit":      {[]string{lastBit}, ""},
		"signature, line break":    {[]string{good[:len(good)-5] + "\n" + good[len(good)-5:]}, ""},
		"payload, line break":      {[]string{parts[0] + "." + parts[1][:8] + "\r\n" + parts[1][8:] + "." + parts[2]}, ""},
		"standard base64":          {[]string{base64.StdEncoding.EncodeToString([]byte(s.header())) + "." + parts[1] + "." + parts[2]}, ""},
		"payload of another proof": {[]string{parts[0] + "." + b64([]byte(payload())) + "." + parts[2]}, ""},
		"another's key named":      {[]string{s.sign(other.header(), payload())}, ""},

		"typ missing":        {[]string{h(`"typ":"dpop+jwt",`, "")}, ""},
		"typ JWT":            {[]string{h("dpop+jwt", "JWT")}, ""},
		"typ at+jwt":         {[]string{h("dpop+jwt", "at+jwt")}, ""},
		"typ in capitals":    {[]string{h("dpop+jwt", "DPOP+JWT")}, ""},
		"typ with prefix":    {[]string{h("dpop+jwt", "application/dpop+jwt")}, ""},
		"typ a number":       {[]string{h(`"dpop+jwt"`, "123")}, ""},
		"typ null":           {[]string{h(`"dpop+jwt"`, "null")}, ""},
		"typ an array":       {[]string{h(`"dpop+jwt"`, `["dpop+jwt"]`)}, ""},
		"alg none":           {[]string{h("EdDSA", "none")}, ""},
		"alg HS256":          {[]string{h("EdDSA", "HS256")}, ""},
		"alg RS256":          {[]string{h("EdDSA", "RS256")}, ""},
		"alg ES384":          {[]string{h("EdDSA", "ES384")}, ""},
		"alg missing":        {[]string{h(`"alg":"EdDSA",`, "")}, ""},
		"alg of another key": {[]string{h("EdDSA", "ES256")}, ""},
		"EdDSA with EC key":  {[]string{ec.sign(strings.Replace(ec.header(), "ES256", "EdDSA", 1), payload())}, ""},
		"crit":               {[]string{h("{", `{"crit":["x"],"x":1,`)}, ""},
		"b64 false":          {[]string{h("{", `{"crit":["b64"],"b64":false,`)}, ""},
		"jku":                {[]string{h("{", `{"jku":"http://127.0.0.1/",`)}, ""},
		"x5u":                {[]string{h("{", `{"x5u":"http://127.0.0.1/",`)}, ""},
		"x5c":                {[]string{h("{", `{"x5c":["AA"],`)}, ""},
		"zip":                {[]string{h("{", `{"zip":"DEF",`)}, ""},
		"alg twice":          {[]string{h("{", `{"alg":"none",`)}, ""},
		"jwk twice":          {[]string{h("{", `{"jwk":`+other.jwk+`,`)}, ""},
		"typ, other case":    {[]string{h(`"typ"`, `"TYP"`)}, ""},
		"header an array":    {[]string{s.sign("[]", payload())}, ""},
		"header null":        {[]string{s.sign("null", payload())}, ""},
		"header and more":    {[]string{s.sign(s.header()+"{}", payload())}, ""},
		"header deep":        {[]string{s.sign(strings.Repeat("[", 2000), payload())}, ""},

		"jwk missing":              {[]string{s.sign(`{"typ":"dpop+jwt","alg":"EdDSA"}`, payload())}, ""},
		"jwk null":                 {[]string{jwk("null")}, ""},
		"jwk a string":             {[]string{jwk(`"` + x + `"`)}, ""},
		"jwk a set":                {[]string{jwk(`{"keys":[` + s.jwk + `]}`)}, ""},
		"jwk private":              {[]string{jwk(`{"kty":"OKP","crv":"Ed25519","x":"` + x + `","d":"` + b64(s.ed.Seed()) + `"}`)}, ""},
		"jwk private, odd type":    {[]string{jwk(`{"kty":"OKP","crv":"Ed25519","x":"` + x + `","d":null}`)}, ""},
		"jwk symmetric":            {[]string{jwk(`{"kty":"oct","k":"AAAA"}`)}, ""},
		"jwk RSA":                  {[]string{jwk(`{"kty":"RSA","n":"AQAB","e":"AQAB"}`)}, ""},
		"jwk RSA and Ed25519":      {[]string{jwk(`{"kty":"OKP","crv":"Ed25519","x":"` + x + `","n":"AQAB"}`)}, ""},
		"jwk X25519":               {[]string{jwk(`{"kty":"OKP","crv":"X25519","x":"` + x + `"}`)}, ""},
		"jwk Ed448":                {[]string{jwk(`{"kty":"OKP","crv":"Ed448","x":"` + b64(make([]byte, 57)) + `"}`)}, ""},
		"jwk P-384":                {[]string{jwk(`{"kty":"EC","crv":"P-384","x":"` + b64(make([]byte, 48)) + `","y":"` + b64(make([]byte, 48)) + `"}`)}, ""},
		"jwk EC with Ed25519":      {[]string{jwk(`{"kty":"EC","crv":"Ed25519","x":"` + x + `"}`)}, ""},
		"jwk low order":            {[]string{jwk(`{"kty":"OKP","crv":"Ed25519","x":"` + lowOrder + `"}`)}, ""},
		"jwk 31 bytes":             {[]string{jwk(`{"kty":"OKP","crv":"Ed25519","x":"` + b64(s.ed[33:]) + `"}`)}, ""},
		"jwk with a certificate":   {[]string{jwk(`{"kty":"OKP","crv":"Ed25519","x":"` + x + `","x5c":["AA"]}`)}, ""},
		"jwk x twice":              {[]string{jwk(`{"kty":"OKP","crv":"Ed25519","x":"` + lowOrder + `","x":"` + x + `"}`)}, ""},
		"jwk x padded":             {[]string{jwk(`{"kty":"OKP","crv":"Ed25519","x":"` + x + `="}`)}, ""},
		"jwk for encryption":       {[]string{jwk(`{"use":"enc","kty":"OKP","crv":"Ed25519","x":"` + x + `"}`)}, ""},
		"jwk for other operations": {[]string{jwk(`{"key_ops":["deriveKey"],"kty":"OKP","crv":"Ed25519","x":"` + x + `"}`)}, ""},
		"jwk, odd operations":      {[]string{jwk(`{"key_ops":"verify","kty":"OKP","crv":"Ed25519","x":"` + x + `"}`)}, ""},
		"jwk for another alg":      {[]string{jwk(`{"alg":"ES256","kty":"OKP","crv":"Ed25519","x":"` + x + `"}`)}, ""},
		"jwk not on the curve":     {[]string{ec.sign(fmt.Sprintf(`{"typ":"dpop+jwt","alg":"ES256","jwk":{"kty":"EC","crv":"P-256","x":%q,"y":%q}}`, b64(make([]byte, 32)), b64(make([]byte, 32))), payload())}, ""},
		"jwk coordinate too short": {[]string{ec.sign(`{"typ":"dpop+jwt","alg":"ES256","jwk":{"kty":"EC","crv":"P-256","x":"AQ","y":"AQ"}}`, payload())}, ""},

		"payload an array":    {[]string{s.sign(s.header(), "[]")}, ""},
		"payload empty":       {[]string{s.sign(s.header(), "")}, ""},
		"payload null":        {[]string{s.sign(s.header(), "null")}, ""},
		"jti missing":         {[]string{p(`"jti"`, `"xti"`)}, ""},
		"jti empty":           {[]string{s.sign(s.header(), fmt.Sprintf(`{"jti":"","htm":"POST","htu":%q,"iat":%d,"ath":%q}`, publicURL+path, start.Unix(), ath(token)))}, ""},
		"jti a number":        {[]string{p(`"jti":"`, `"jti":1,"x":"`)}, ""},
		"jti of 65 bytes":     {[]string{p(`"jti":"`, `"jti":"`+strings.Repeat("j", 65-26))}, ""},
		"jti twice":           {[]string{p("{", `{"jti":"a",`)}, ""},
		"jti, other case":     {[]string{p(`"jti"`, `"JTI"`)}, ""},
		"htm other":           {[]string{p("POST", "GET")}, ""},
		"htm in small":        {[]string{p("POST", "post")}, ""},
		"htm missing":         {[]string{p(`"htm":"POST",`, "")}, ""},
		"htu other path":      {[]string{p(path, path+"/x")}, ""},
		"htu with slash":      {[]string{p(path, path+"/")}, ""},
		"htu other host":      {[]string{p("groupcast.example", "evil.example")}, ""},
		"htu longer host":     {[]string{p("groupcast.example", "groupcast.example.evil.example")}, ""},
		"htu other port":      {[]string{p("groupcast.example", "groupcast.example:444")}, ""},
		"htu http":            {[]string{p("https", "http")}, ""},
		"htu user":            {[]string{p("https://", "https://groupcast.example@")}, ""},
		"htu relative":        {[]string{p(publicURL, "")}, ""},
		"htu dot segments":    {[]string{p(path, "/x/.."+path)}, ""},
		"htu encoded dots":    {[]string{p(path, "/x/%2e%2E"+path)}, ""},
		"htu encoded slash":   {[]string{p(path, "/v1%2fregistrations")}, ""},
		"htu double slash":    {[]string{p(path, "/"+path)}, ""},
		"htu not a URI":       {[]string{p(path, "/%zz")}, ""},
		"htu missing":         {[]string{p(`"htu"`, `"xtu"`)}, ""},
		"iat missing":         {[]string{p(`"iat"`, `"xat"`)}, ""},
		"iat null":            {[]string{p(`"iat":1700000000`, `"iat":null`)}, ""},
		"iat a string":        {[]string{p(`"iat":1700000000`, `"iat":"1700000000"`)}, ""},
		"iat out of range":    {[]string{p(`"iat":1700000000`, `"iat":1e400`)}, ""},
		"iat beyond all time": {[]string{p(`"iat":1700000000`, `"iat":1e300`)}, ""},
		"ath missing":         {[]string{p(`"ath"`, `"xth"`)}, ""},
		"ath of another":      {[]string{p(ath(token), ath("x"))}, ""},
		"ath not a string":    {[]string{p(`"ath":"`+ath(token)+`"`, `"ath":true`)}, ""},

		"iat 61 s ago":          {[]string{p("1700000000", "1699999939")}, dpop.UseNonce},
		"iat in 61 s":           {[]string{p("1700000000", "1700000061")}, dpop.UseNonce},
		"iat 0, no clock":       {[]string{p("1700000000", "0")}, dpop.UseNonce},
		"nonce invented":        {[]string{p("{", `{"nonce":"AAAA",`)}, dpop.UseNonce},
		"nonce not base64":      {[]string{p("{", `{"nonce":"!",`)}, dpop.UseNonce},
		"another key's proof":   {[]string{other.sign(other.header(), payload())}, dpop.InvalidToken},
		"another key's, EC key": {[]string{ec.sign(ec.header(), payload())}, dpop.InvalidToken},
	} {
		t.Run(name, func(t *testing.T) {
			v, _, _ := newVerifier(t)
			_, err := v.Verify(context.Background(), s.request(tc.proofs...))
			e := refusal(t, err)
			want := tc.code
			if want == "" {
				want = dpop.InvalidProof
			}
			if e.Code != want {
				t.Fatalf("refused with %v, want %s", e, want)
			}
			if (e.Nonce != "") != (want == dpop.UseNonce) {
				t.Fatalf("%s came with nonce %q", e.Code, e.Nonce)
			}
			if !strings.HasSuffix(e.Detail, ".") {
				t.Fatalf("the detail is no sentence: %q", e.Detail)
			}
		})
	}
	// What all of them were made from is good.
	v, _, _ := newVerifier(t)
	mustVerify(t, v, s.request(good))
}

func TestAttackReplay(t *testing.T) {
	for _, s := range []signer{newEd(t), newEC(t)} {
		t.Run(s.alg(), func(t *testing.T) {
			v, _, c := newVerifier(t)
			proof := s.sign(s.header(), payload(`"jti":"`, `"jti":"same`))
			mustVerify(t, v, s.request(proof))
			for _, later := range []time.Duration{0, time.Second, dpop.Window - time.Second, dpop.Window, dpop.Window + time.Second, time.Hour} {
				c.now = start.Add(later)
				if _, err := v.Verify(context.Background(), s.request(proof)); err == nil {
					t.Fatalf("accepted again after %s", later)
				}
			}
			c.now = start
			if s.ec != nil {
				// (r, n-s) is the other valid signature of the same text.
				i := strings.LastIndexByte(proof, '.')
				sig := unb64(t, proof[i+1:])
				twin := new(big.Int).Sub(elliptic.P256().Params().N, new(big.Int).SetBytes(sig[32:]))
				twin.FillBytes(sig[32:])
				if _, err := v.Verify(context.Background(), s.request(proof[:i+1]+b64(sig))); err == nil {
					t.Fatal("the twin of a used signature was accepted")
				}
			}
			// The jti belongs to its key: another device may count the same way.
			twin := newEd(t)
			again := payload()
			mustVerify(t, v, s.request(s.sign(s.header(), again)))
			mustVerify(t, v, twin.request(twin.sign(twin.header(), again)))
		})
	}
}

func TestAttackProofForAnotherPurpose(t *testing.T) {
	s := newEd(t)
	proof := s.sign(s.header(), payload())
	for name, change := range map[string]func(*dpop.Request){
		"another method": func(r *dpop.Request) { r.Method = "DELETE" },
		"another path":   func(r *dpop.Request) { r.Path = "/v1/groups" },
		"another token":  func(r *dpop.Request) { r.Token = "other.token.here" },
		"a thief's key":  func(r *dpop.Request) { r.BoundTo = newEd(t).thumbprint() },
		"a free token":   func(r *dpop.Request) { r.BoundTo = "" },
	} {
		v, _, _ := newVerifier(t)
		r := s.request(proof)
		change(&r)
		if _, err := v.Verify(context.Background(), r); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

func TestARefusedProofIsNotUsedUp(t *testing.T) {
	s := newEd(t)
	v, _, _ := newVerifier(t)
	body := payload()
	good := s.sign(s.header(), body)
	forged := good[:strings.LastIndexByte(good, '.')+1] + b64(make([]byte, 64))
	if _, err := v.Verify(context.Background(), s.request(forged)); err == nil {
		t.Fatal("a forgery was accepted")
	}
	mustVerify(t, v, s.request(good)) // somebody who guesses a jti can't burn it
}

func TestACameraWithoutAClock(t *testing.T) {
	s := newEC(t)
	v, _, c := newVerifier(t)
	without := func(nonce string) dpop.Request {
		return s.request(s.sign(s.header(), payload("1700000000", "12", "{", `{"nonce":"`+nonce+`",`)))
	}
	_, err := v.Verify(context.Background(), without(""))
	e := refusal(t, err)
	if e.Code != dpop.UseNonce || e.Nonce == "" {
		t.Fatalf("got %v, want a nonce", e)
	}
	if res := mustVerify(t, v, without(e.Nonce)); res.Nonce != "" {
		t.Fatal("a young nonce was replaced")
	}
	c.now = start.Add(dpop.NonceLife/2 + time.Second)
	res := mustVerify(t, v, without(e.Nonce))
	if res.Nonce == "" || res.Nonce == e.Nonce {
		t.Fatalf("an old nonce was not replaced: %q", res.Nonce)
	}
	c.now = start.Add(dpop.NonceLife + time.Second)
	if _, err := v.Verify(context.Background(), without(e.Nonce)); refusal(t, err).Code != dpop.UseNonce {
		t.Fatalf("an expired nonce: %v", err)
	}
	mustVerify(t, v, without(res.Nonce))
}

func TestAttackReplayWithANonce(t *testing.T) {
	s := newEd(t)
	v, nonces, c := newVerifier(t)
	proof := s.sign(s.header(), payload("{", `{"nonce":"`+nonces.Current()+`",`))
	mustVerify(t, v, s.request(proof))
	for later := time.Duration(0); later <= dpop.NonceLife+2*time.Second; later += time.Second {
		c.now = start.Add(later)
		if _, err := v.Verify(context.Background(), s.request(proof)); err == nil {
			t.Fatalf("accepted again after %s", later)
		}
	}
}

func TestAttackForgedNonce(t *testing.T) {
	s := newEd(t)
	v, nonces, c := newVerifier(t)
	try := func(nonce string) error {
		_, err := v.Verify(context.Background(), s.request(s.sign(s.header(), payload("{", `{"nonce":"`+nonce+`",`))))
		return err
	}
	good := nonces.Current()
	if err := try(good); err != nil {
		t.Fatal(err)
	}
	raw := unb64(t, good)
	for i := range raw {
		bad := append([]byte(nil), raw...)
		bad[i] ^= 1
		if try(b64(bad)) == nil {
			t.Fatalf("a nonce with byte %d changed was accepted", i)
		}
	}
	foreign, err := dpop.NewNonces([]byte(strings.Repeat("k", 32)), c.Now)
	if err != nil {
		t.Fatal(err)
	}
	if try(foreign.Current()) == nil {
		t.Fatal("a nonce under another key was accepted")
	}
	ahead, err := dpop.NewNonces(make([]byte, 32), func() time.Time { return start.Add(dpop.Window + time.Second) })
	if err != nil {
		t.Fatal(err)
	}
	if try(ahead.Current()) == nil {
		t.Fatal("a nonce from the future was accepted")
	}
}

func TestNoncesAreTheSameForAllReplicas(t *testing.T) {
	c := &clock{now: start}
	a, b := noncesAt(t, c), noncesAt(t, c)
	one := a.Current()
	if made, ok := b.MadeAt(one); !ok || !made.Equal(start) {
		t.Fatalf("made at %v, %v", made, ok)
	}
	if a.Current() != one {
		t.Fatal("a second nonce was made within the same second")
	}
	c.now = start.Add(time.Second)
	if a.Current() == one {
		t.Fatal("the nonce did not move with the clock")
	}
	c.now = start.Add(-time.Hour)
	if made, _ := b.MadeAt(a.Current()); !made.Equal(c.now) {
		t.Fatal("the nonce did not follow a clock that was set back")
	}
}

// fullMemory stands for a replay memory under a flood, and for one that can't be reached.
type fullMemory struct{ err error }

func (f fullMemory) Use(context.Context, string, time.Time) error { return f.err }

func TestAFullOrBrokenMemoryNeverAccepts(t *testing.T) {
	s := newEd(t)
	c := &clock{now: start}
	for _, tc := range []struct {
		err     error
		refused bool
	}{{replay.ErrForgotten, true}, {errors.New("database away"), false}} {
		v, err := dpop.NewVerifier(publicURL, noncesAt(t, c), fullMemory{tc.err}, c.Now)
		if err != nil {
			t.Fatal(err)
		}
		_, err = v.Verify(context.Background(), s.request(s.sign(s.header(), payload())))
		var e *dpop.Error
		if err == nil || errors.As(err, &e) != tc.refused {
			t.Fatalf("%v: got %v", tc.err, err)
		}
		if tc.refused && (e.Code != dpop.UseNonce || e.Nonce == "") {
			t.Fatalf("%v: got %v, want a nonce", tc.err, e)
		}
	}
}

func TestPublicURL(t *testing.T) {
	s := newEd(t)
	c := &clock{now: start}
	for url, htu := range map[string]string{
		"https://groupcast.example/":           publicURL + path,
		"https://GROUPCAST.example:443":        publicURL + path,
		"https://groupcast.example/prefix/":    "https://groupcast.example/prefix" + path,
		"http://127.0.0.1:8080":                "http://127.0.0.1:8080" + path,
		"http://[::1]:8080":                    "http://[::1]:8080" + path,
		"https://groupcast.example/a%7Eb":      "https://groupcast.example/a~b" + path,
		"https://groupcast.example/caf%c3%a9/": "https://groupcast.example/caf%C3%A9" + path,
	} {
		v := verifierAt(t, url, c)
		if _, err := v.Verify(context.Background(), s.request(s.sign(s.header(), payload(publicURL+path, htu)))); err != nil {
			t.Errorf("%s: %v", url, err)
		}
	}
	for _, url := range []string{"", "groupcast.example", "//groupcast.example", "ftp://groupcast.example", "https://", "https://a/?b", "https://a/#b", "https://u@a", "https://a/../b"} {
		if _, err := dpop.NewVerifier(url, noncesAt(t, c), fullMemory{}, c.Now); err == nil {
			t.Errorf("%q was taken for a public URL", url)
		}
	}
}

func TestNonceKeySize(t *testing.T) {
	for _, n := range []int{0, 16, 31, 33} {
		if _, err := dpop.NewNonces(make([]byte, n), time.Now); err == nil {
			t.Errorf("a key of %d bytes was accepted", n)
		}
	}
}
