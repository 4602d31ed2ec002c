// Package externalissuers takes access tokens of issuers that the operator trusts already: it checks them against the issuer's published keys and
// tells which service of ours, or whom of the issuer's users, they speak for. It is all configuration: no token names a URL that is fetched or a scope that we know by
// itself.
//
// It never takes a device or a gateway from outside: their tokens carry our binding to account and premises (design: identity.md §4.6).
package externalissuers

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"net/url"
	"os"
	"slices"
	"time"

	"github.com/groupcast/groupcast/models"
	"github.com/groupcast/groupcast/server/tokens"
)

// Issuer is one trusted issuer.
type Issuer struct {
	// Issuer is the exact iss of its tokens.
	Issuer string `json:"issuer"`
	// JWKSURI is where its keys are: https, or http on loopback for development.
	JWKSURI string `json:"jwksUri"`
	// Audience has to be among the aud of its tokens.
	Audience string `json:"audience"`
	// Algs are the algorithms it may sign with: EdDSA, ES256, RS256.
	Algs []string `json:"algs"`
	// MayIssue is what its tokens stand for: ["service"] or ["user"]. One issuer's tokens are of one kind: nothing in a token tells a user
	// from the client that the user logged in with in a way that every issuer keeps to.
	MayIssue []models.Kind `json:"mayIssue"`
	// ScopeClaim is the claim that tells what a token is good for: a text of words, or a list as in the capabilities of a SAT.
	ScopeClaim string `json:"scopeClaim"`
	// ScopeMap gives our scopes for the values of that claim. Values are compared exactly and never used as patterns.
	ScopeMap map[string][]string `json:"scopeMap"`
	// ClientIDClaim is the claim that names the client; empty means sub.
	ClientIDClaim string `json:"clientIdClaim"`
	// Services gives our service for the issuer's name of a client. Who isn't listed is nobody here.
	Services map[string]models.ServiceID `json:"services"`
	// PoP is "dpop" if every token has to be bound to a key (RFC 9449); empty takes bearer tokens too.
	PoP string `json:"pop"`
	// MaxLife is the longest life of a token in Go's notation, such as 1h; at most a day.
	MaxLife string `json:"maxLife"`

	life time.Duration
}

// Load reads the file that the key external-issuers names. Every fault in it stops the start.
func Load(path string) ([]Issuer, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("external-issuers: %w", err)
	}
	var file struct {
		Issuers []Issuer `json:"issuers"`
	}
	d := json.NewDecoder(bytes.NewReader(text))
	d.DisallowUnknownFields()
	if err := d.Decode(&file); err != nil {
		return nil, fmt.Errorf("external-issuers: %s: %w", path, err)
	}
	var faults []error
	seen := map[string]bool{}
	for n := range file.Issuers {
		i := &file.Issuers[n]
		if err := i.check(); err != nil {
			faults = append(faults, fmt.Errorf("external-issuers: %s: issuer %q: %w", path, i.Issuer, err))
		}
		if seen[i.Issuer] {
			faults = append(faults, fmt.Errorf("external-issuers: %s: issuer %q stands twice", path, i.Issuer))
		}
		seen[i.Issuer] = true
	}
	return file.Issuers, errors.Join(faults...)
}

func (i *Issuer) check() error {
	if len(i.MayIssue) != 1 || i.MayIssue[0] != models.KindService && i.MayIssue[0] != models.KindUser {
		return errors.New(`mayIssue has to be ["service"] or ["user"]: tokens of devices and gateways are this service's own`)
	}
	kind := i.MayIssue[0]
	known := tokens.Scopes(kind)
	switch {
	case i.Issuer == "" || i.Audience == "" || i.ScopeClaim == "":
		return errors.New("give issuer, audience and scopeClaim")
	case !safeURL(i.JWKSURI):
		return errors.New("jwksUri has to be https (http works on loopback only), without user")
	case len(i.Algs) == 0 || slices.ContainsFunc(i.Algs, func(a string) bool { return a != "EdDSA" && a != "ES256" && a != "RS256" }):
		return errors.New("algs has to list some of EdDSA, ES256 and RS256")
	case i.PoP != "" && i.PoP != "dpop":
		return errors.New(`pop has to be "dpop" or left out`)
	case len(i.ScopeMap) == 0:
		return errors.New("scopeMap has to name at least one scope")
	case kind == models.KindService && len(i.Services) == 0:
		return errors.New("services has to name at least one")
	case kind == models.KindUser && (len(i.Services) > 0 || i.ClientIDClaim != ""):
		return errors.New("services and clientIdClaim are for issuers of services; users are known by sub")
	}
	for value, scopes := range i.ScopeMap {
		for _, s := range scopes {
			if !slices.Contains(known, s) {
				return fmt.Errorf("scopeMap: %q gives the scope %q, which no %s can have", value, s, kind)
			}
		}
	}
	var err error
	if i.life, err = time.ParseDuration(i.MaxLife); err != nil || i.life <= 0 || i.life > tokens.MaxLife {
		return fmt.Errorf("maxLife: %q is not a time up to %s", i.MaxLife, tokens.MaxLife)
	}
	if i.ClientIDClaim == "" {
		i.ClientIDClaim = "sub"
	}
	return nil
}

func safeURL(text string) bool {
	u, err := url.Parse(text)
	if err != nil || u.Hostname() == "" || u.User != nil {
		return false
	}
	a, err := netip.ParseAddr(u.Hostname())
	return u.Scheme == "https" || u.Scheme == "http" && (u.Hostname() == "localhost" || err == nil && a.IsLoopback())
}
