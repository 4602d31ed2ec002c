package clientauth

import (
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
)

// Transport gives an http.RoundTripper that authorizes requests to the credential's server and sends them through Options.Base. It refuses
// requests to any other server, so that neither a mistake nor a redirection gives the token away. A refused nonce or token is replaced
// and the request sent once more, if its body can be read again.
func (c *Client) Transport() http.RoundTripper { return (*transport)(c) }

type transport Client

// Format keeps secrets out of whatever prints the value.
func (t *transport) Format(s fmt.State, _ rune) { fmt.Fprintf(s, "transport with %v", (*Client)(t)) }

// RoundTrip implements http.RoundTripper.
func (t *transport) RoundTrip(r *http.Request) (*http.Response, error) {
	c := (*Client)(t)
	e := c.endpoint
	if origin, err := normalServer(r.URL.Scheme+"://"+r.URL.Host, true); err != nil || origin != e.origin {
		closeBody(r)
		return nil, fmt.Errorf("the credential is for %s: it is not sent to %s://%s", e.issuer, r.URL.Scheme, r.URL.Host)
	}
	repeatable := r.Body == nil || r.Body == http.NoBody || r.GetBody != nil
	tried := map[string]bool{} // each mendable refusal is mended once
	for {
		token, err := c.current(r.Context())
		if err != nil {
			closeBody(r)
			return nil, err
		}
		out := r.Clone(r.Context())
		if len(tried) > 0 && r.GetBody != nil {
			if out.Body, err = r.GetBody(); err != nil {
				return nil, fmt.Errorf("send the request again: %w", err)
			}
		}
		out.Header.Set("Authorization", token.scheme+" "+token.value)
		madeWith := e.known()
		if token.key != nil {
			proof, err := token.key.proof(r.Method, targetURI(r.URL), token.value, madeWith.nonce, e.now(madeWith))
			if err != nil {
				closeBody(out)
				return nil, err
			}
			out.Header.Set("DPoP", proof)
		}
		resp, err := e.opts.Base.RoundTrip(out)
		if err != nil {
			return nil, err
		}
		e.learn(resp.Header)
		if resp.StatusCode != http.StatusUnauthorized || !repeatable {
			return resp, nil
		}
		code := challenge(resp.Header)
		switch {
		case tried[code]:
			return resp, nil
		case code == "invalid_token" && token.renewable():
			c.forget(token.value)
		case token.key != nil && e.mends(code, madeWith):
		default:
			return resp, nil
		}
		tried[code] = true
		_, _ = io.CopyN(io.Discard, resp.Body, maxAnswer) // so that the connection can be used again
		_ = resp.Body.Close()
	}
}

// targetURI is a request's URL without query and fragment (RFC 9449 §4.2).
func targetURI(u *url.URL) string {
	target := url.URL{Scheme: strings.ToLower(u.Scheme), Host: strings.ToLower(u.Host), Path: u.Path, RawPath: u.RawPath}
	if target.Path == "" {
		target.Path = "/"
	}
	return target.String()
}

// challenge reads the error of a WWW-Authenticate header (RFC 6750 §3, RFC 9449 §7.1).
func challenge(h http.Header) string {
	for _, v := range h.Values("WWW-Authenticate") {
		_, after, found := strings.Cut(v, `error="`)
		if code, _, ok := strings.Cut(after, `"`); found && ok {
			return code
		}
	}
	return ""
}

func closeBody(r *http.Request) {
	if r.Body != nil {
		_ = r.Body.Close()
	}
}
