package harness

import (
	"bytes"
	"encoding/json"
	"io"
	"mime"
	"net/http"
	"net/netip"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
)

// No log line may hold a secret, a token, a code or the address of a destination (SPEC §11). The harness remembers all that
// passes through its clients, and looks for it in what each program printed when that program's test ends. What other clients
// send it can't know; that it finds by its form.

// secretMembers are the members of bodies and fields of forms whose values nobody may log.
var secretMembers = []string{
	"accessToken", "access_token", "refresh_token", "token", "ticket", "clientSecret", "client_secret", "client_assertion", "device_code",
	"deviceCode", "user_code", "userCode", "password", "oldPassword", "newPassword", "invitation", "pwd", "d",
}

// sessionCookie is the name of the cookie that holds a user's session.
const sessionCookie = "__Host-groupcast"

// secretForms are what secrets look like whoever made them.
var secretForms = map[string]*regexp.Regexp{
	"a token or proof (JWT)": regexp.MustCompile(`eyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{8,}`),
	"a private key (PEM)":    regexp.MustCompile(`-----BEGIN [A-Z ]*PRIVATE KEY-----`),
	"a private key (JWK)":    regexp.MustCompile(`\\?"d\\?"\s*:\s*\\?"[A-Za-z0-9_-]{40,}`),
	"a user code":            regexp.MustCompile(`\b[BCDFGHJKLMNPQRSTVWXZ]{4}-[BCDFGHJKLMNPQRSTVWXZ]{4}\b`),
}

// shortest is the length below which a value can't be told from ordinary text.
const shortest = 8

var secrecy = struct {
	sync.Mutex
	secrets map[string]string // value: what it is
	// destinations and others are addresses by test: what is a destination in one is a gateway in another.
	destinations, others map[string]map[netip.Addr]bool
}{secrets: map[string]string{}, destinations: map[string]map[netip.Addr]bool{}, others: map[string]map[netip.Addr]bool{}}

// Secret makes a value known that no log may hold.
func Secret(what, value string) {
	value = strings.TrimSpace(value)
	if len(value) < shortest || isPlain(value) {
		return
	}
	secrecy.Lock()
	defer secrecy.Unlock()
	secrecy.secrets[value] = what
}

// isPlain tells whether a log may well hold a value that somebody sent as a secret, as drawn requests do: an address (those that
// nobody may log are destinations), or a few characters over and over.
func isPlain(value string) bool {
	if _, err := netip.ParseAddr(value); err == nil {
		return true
	}
	seen := map[rune]bool{}
	for _, r := range value {
		seen[r] = true
	}
	return len(seen) < 5
}

func remember(in map[string]map[netip.Addr]bool, test, address string) {
	if prefix, _, ok := strings.Cut(address, "/"); ok {
		address = prefix
	}
	a, err := netip.ParseAddr(address)
	if err != nil || a.IsUnspecified() {
		return
	}
	secrecy.Lock()
	defer secrecy.Unlock()
	if in[test] == nil {
		in[test] = map[netip.Addr]bool{}
	}
	in[test][a.Unmap()] = true
}

// Destination makes the address of a destination known, which no log of a program of this test may hold.
func Destination(t testing.TB, address string) {
	t.Helper()
	remember(secrecy.destinations, wholeTest(t), address)
}

// ordinary are addresses that programs may name: their own, and those of gateways.
func ordinary(t testing.TB, addresses ...string) {
	t.Helper()
	for _, address := range addresses {
		remember(secrecy.others, wholeTest(t), address)
	}
}

// wholeTest is the test without the subtest.
func wholeTest(t testing.TB) string {
	t.Helper()
	name, _, _ := strings.Cut(t.Name(), "/")
	return name
}

var addresses = regexp.MustCompile(`[0-9]{1,3}(\.[0-9]{1,3}){3}|[0-9a-fA-F]{0,4}(:[0-9a-fA-F]{0,4}){2,7}`)

// Leaks names what stands in a log although it must not, without repeating it. What a person runs in their own terminal may
// show them addresses: they are looked for only in what services print.
func Leaks(test, log string, service bool) []string {
	found := map[string]bool{}
	for what, form := range secretForms {
		if form.MatchString(log) {
			found[what] = true
		}
	}
	secrecy.Lock()
	defer secrecy.Unlock()
	for _, value := range contained(log, secrecy.secrets) {
		found[secrecy.secrets[value]] = true
	}
	if service && len(secrecy.destinations[test]) > 0 {
		for _, text := range addresses.FindAllString(log, -1) {
			a, err := netip.ParseAddr(text)
			if err == nil && secrecy.destinations[test][a.Unmap()] && !secrecy.others[test][a.Unmap()] {
				found["the address of a destination, "+a.String()] = true
			}
		}
	}
	var list []string
	for what := range found {
		list = append(list, what)
	}
	slices.Sort(list)
	return list
}

// contained gives the secrets that stand in a log. A long run has thousands of them and a long log, so that is read once and not once for each.
func contained(log string, secrets map[string]string) (values []string) {
	begins := map[[shortest]byte][]string{}
	for value := range secrets {
		begin := [shortest]byte([]byte(value))
		begins[begin] = append(begins[begin], value)
	}
	text := []byte(log)
	for i := range max(len(text)-shortest+1, 0) {
		for _, value := range begins[[shortest]byte(text[i:])] {
			if strings.HasPrefix(log[i:], value) {
				values = append(values, value)
			}
		}
	}
	return values
}

// Attentive is a client's way to a service within the test's process: what passes through is looked for by NoLeaks.
func Attentive(t testing.TB, through *http.Transport) http.RoundTripper {
	t.Helper()
	return attentive{through, wholeTest(t)}
}

// NoLeaks fails the test if something that Leaks names stands in what a service within the test's process logged.
func NoLeaks(t testing.TB, who, log string) {
	t.Helper()
	for _, what := range Leaks(wholeTest(t), log, true) {
		t.Errorf("%s has logged %s", who, what)
	}
}

// attentive is a transport that remembers the secrets and addresses that pass through it.
type attentive struct {
	*http.Transport

	test string
}

func (a attentive) RoundTrip(r *http.Request) (*http.Response, error) {
	if authorization := r.Header.Get("Authorization"); authorization != "" {
		_, token, ok := strings.Cut(authorization, " ")
		if !ok {
			token = authorization
		}
		Secret("what stood in an Authorization header", token)
		if id, secret, ok := r.BasicAuth(); ok && id != "" {
			Secret("a client secret", secret)
		}
	}
	sessions(r.Cookies())
	Secret("a proof of possession", r.Header.Get("DPoP"))
	var sent []byte
	if r.GetBody != nil {
		if body, err := r.GetBody(); err == nil {
			sent, _ = io.ReadAll(body)
			_ = body.Close()
		}
	}
	if media, _, _ := mime.ParseMediaType(r.Header.Get("Content-Type")); media == "application/x-www-form-urlencoded" {
		form, _ := url.ParseQuery(string(sent))
		for _, name := range secretMembers {
			Secret("the field "+name, form.Get(name))
		}
	} else {
		a.members(sent, r.Method == http.MethodPut)
	}
	answer, err := a.Transport.RoundTrip(r)
	if err != nil {
		return nil, err
	}
	sessions(answer.Cookies())
	media, _, _ := mime.ParseMediaType(answer.Header.Get("Content-Type"))
	if answer.StatusCode < 300 && media == "application/json" {
		body, err := io.ReadAll(answer.Body)
		_ = answer.Body.Close()
		if err != nil {
			return nil, err
		}
		a.members(body, false)
		answer.Body = io.NopCloser(bytes.NewReader(body))
		var sentObject map[string]any
		if json.Unmarshal(sent, &sentObject) == nil && sentObject["destination"] == true {
			for _, name := range []string{"privateIPv4", "publicIPv4", "IPv6"} {
				if address, ok := sentObject[name].(string); ok {
					remember(secrecy.destinations, a.test, address)
				}
			}
		}
	}
	return answer, nil
}

// sessions remembers the tokens of users' sessions.
func sessions(cookies []*http.Cookie) {
	for _, c := range cookies {
		if c.Name == sessionCookie {
			Secret("a session", c.Value)
		}
	}
}

// members remembers what a JSON object holds.
func (a attentive) members(body []byte, declares bool) {
	var object map[string]any
	if json.Unmarshal(body, &object) != nil {
		return
	}
	for _, name := range secretMembers {
		if value, ok := object[name].(string); ok {
			Secret("the member "+name, value)
		}
	}
	if consent, ok := object["consent"].(map[string]any); ok {
		if pwd, ok := consent["pwd"].(string); ok {
			Secret("a destination's credential", pwd)
		}
	}
	if declares {
		for _, name := range []string{"gatewayIPv4", "uplinkIPv4", "lanPrefix"} {
			if address, ok := object[name].(string); ok {
				remember(secrecy.others, a.test, address)
			}
		}
	}
}
