package dpop_test

import (
	"strings"
	"testing"
	"time"

	"github.com/groupcast/groupcast/server/dpop"
)

// The examples of RFC 9449: the key and the two proofs of §4 and §7.1.
const (
	rfc9449JWK = `{"kty":"EC","x":"l8tFrhx-34tV3hRICRDY9zCkDlpBhF42UQUfWVAWBFs","y":"9VE4jf_Ok_o64zbTTlcuNJajHmt6v9TDVrU0CdvGRDA","crv":"P-256"}`
	rfc9449JKT = "0ZcOCORZNYy-DWpqq30jZyJGHTN0d2HglBV3uiguA4I"

	rfc9449TokenProof = "eyJ0eXAiOiJkcG9wK2p3dCIsImFsZyI6IkVTMjU2IiwiandrIjp7Imt0eSI6Ik" +
		"VDIiwieCI6Imw4dEZyaHgtMzR0VjNoUklDUkRZOXpDa0RscEJoRjQyVVFVZldWQVdCR" +
		"nMiLCJ5IjoiOVZFNGpmX09rX282NHpiVFRsY3VOSmFqSG10NnY5VERWclUwQ2R2R1JE" +
		"QSIsImNydiI6IlAtMjU2In19.eyJqdGkiOiItQndDM0VTYzZhY2MybFRjIiwiaHRtIj" +
		"oiUE9TVCIsImh0dSI6Imh0dHBzOi8vc2VydmVyLmV4YW1wbGUuY29tL3Rva2VuIiwia" +
		"WF0IjoxNTYyMjYyNjE2fQ.2-GxA6T8lP4vfrg8v-FdWP0A0zdrj8igiMLvqRMUvwnQg" +
		"4PtFLbdLXiOSsX0x7NVY-FNyJK70nfbV37xRZT3Lg"

	rfc9449Token         = "Kz~8mXK1EalYznwH-LC-1fBAo.4Ljp~zsPE_NeO.gxU"
	rfc9449ResourceProof = "eyJ0eXAiOiJkcG9wK2p3dCIsImFsZyI6IkVTMjU2IiwiandrIjp7Imt0eSI6Ik" +
		"VDIiwieCI6Imw4dEZyaHgtMzR0VjNoUklDUkRZOXpDa0RscEJoRjQyVVFVZldWQVdCR" +
		"nMiLCJ5IjoiOVZFNGpmX09rX282NHpiVFRsY3VOSmFqSG10NnY5VERWclUwQ2R2R1JE" +
		"QSIsImNydiI6IlAtMjU2In19.eyJqdGkiOiJlMWozVl9iS2ljOC1MQUVCIiwiaHRtIj" +
		"oiR0VUIiwiaHR1IjoiaHR0cHM6Ly9yZXNvdXJjZS5leGFtcGxlLm9yZy9wcm90ZWN0Z" +
		"WRyZXNvdXJjZSIsImlhdCI6MTU2MjI2MjYxOCwiYXRoIjoiZlVIeU8ycjJaM0RaNTNF" +
		"c05yV0JiMHhXWG9hTnk1OUlpS0NBcWtzbVFFbyJ9.2oW9RP35yRqzhrtNP86L-Ey71E" +
		"OptxRimPPToA1plemAgR6pxHF8y6-yqyVnmcw6Fy1dqd-jfxSYoMxhAJpLjA"
)

func TestVectorsRFC9449(t *testing.T) {
	c := &clock{now: time.Unix(1562262616, 0)}
	atIssuer := verifierAt(t, "https://server.example.com", c)
	res := mustVerify(t, atIssuer, dpop.Request{Proofs: []string{rfc9449TokenProof}, Method: "POST", Path: "/token"})
	if res.Thumbprint != rfc9449JKT {
		t.Errorf("§4: thumbprint %s, want %s", res.Thumbprint, rfc9449JKT)
	}
	atResource := verifierAt(t, "https://resource.example.org", c)
	req := dpop.Request{Proofs: []string{rfc9449ResourceProof}, Method: "GET", Path: "/protectedresource", Token: rfc9449Token, BoundTo: rfc9449JKT}
	if res := mustVerify(t, atResource, req); res.Thumbprint != rfc9449JKT {
		t.Errorf("§7.1: thumbprint %s, want %s", res.Thumbprint, rfc9449JKT)
	}
	if got, want := dpop.Hash(rfc9449Token), "fUHyO2r2Z3DZ53EsNrWBb0xWXoaNy59IiKCAqksmQEo"; got != want {
		t.Errorf("§7.1: ath %s, want %s", got, want)
	}
	key, err := dpop.ParseKey([]byte(rfc9449JWK))
	if err != nil || key.Thumbprint != rfc9449JKT || key.Alg != "ES256" {
		t.Errorf("§6.1: key %+v, %v", key, err)
	}
}

func TestVectorsRFC8037(t *testing.T) {
	// Appendix A.2 and A.3: the public key and its thumbprint.
	const jwk = `{"kty":"OKP","crv":"Ed25519","x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}`
	key, err := dpop.ParseKey([]byte(jwk))
	if err != nil {
		t.Fatal(err)
	}
	if want := "kPrK_qmxVWaYVA9wwBF6Iuo3vVzz7TxHCTwXBygrS4k"; key.Thumbprint != want {
		t.Errorf("A.3: thumbprint %s, want %s", key.Thumbprint, want)
	}
	// Appendix A.4 and A.5: a JWS with that key.
	const jws = "eyJhbGciOiJFZERTQSJ9.RXhhbXBsZSBvZiBFZDI1NTE5IHNpZ25pbmc.hgyY0il_MGCjP0JzlnLWG1PPOt7-09PGcvMg3AIbQR6dWbhijcNR4ki4iylGjg5BhVsPt9g7sVvpAr_MuM0KAg"
	signed := jws[:strings.LastIndexByte(jws, '.')]
	if err := key.Verify(signed, unb64(t, jws[len(signed)+1:])); err != nil {
		t.Errorf("A.5: %v", err)
	}
	if err := key.Verify(signed+"x", unb64(t, jws[len(signed)+1:])); err == nil {
		t.Error("A.5: the signature fits another text")
	}
}

func TestVectorsRFC7638(t *testing.T) {
	// §3.1 is an RSA key: it is refused as a client's key.
	const jwk = `{"kty":"RSA","n":"0vx7agoebGcQSuuPiLJXZptN9nndrQmbXEps2aiAFbWhM78LhWx4cbbfAAtVT86zwu1RK7aPFFxuhDR1L6tSoc_BJECPebWKRXjBZCiFV4n3oknjhMstn64tZ_2W-5JsGY4Hc5n9yBXArwl93lqt7_RN5w6Cf0h4QyQ5v-65YGjQR0_FDW2QvzqY368QQMicAtaSqzs8KJZgnYb9c7d0zgdAZHzu6qMQvRL5hajrn1n91CbOpbISD08qNLyrdkt-bFTWhAI4vMQFh6WeZu0fM4lFd2NcRwr3XPksINHaQ-G_xBniIqbw0Ls1jF44-csFCur-kEgU8awapJzKnqDKgw","e":"AQAB","alg":"RS256","kid":"2011-04-29"}`
	if _, err := dpop.ParseKey([]byte(jwk)); err == nil || !strings.Contains(err.Error(), "RSA") {
		t.Errorf("an RSA key: %v", err)
	}
	// The thumbprint doesn't depend on the order of members, white space and optional members (§3.2).
	const other = ` { "y" : "9VE4jf_Ok_o64zbTTlcuNJajHmt6v9TDVrU0CdvGRDA", "use":"sig", "alg":"ES256", "kid":"7", "key_ops":["verify"], "ext":true,
		"x":"l8tFrhx-34tV3hRICRDY9zCkDlpBhF42UQUfWVAWBFs", "crv":"P-256", "kty":"EC" } `
	if key, err := dpop.ParseKey([]byte(other)); err != nil || key.Thumbprint != rfc9449JKT {
		t.Errorf("the same key, written differently: %+v, %v", key, err)
	}
}
