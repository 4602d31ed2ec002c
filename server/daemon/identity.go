package daemon

import (
	"context"
	"crypto/rand"
	"net/http"
	"time"

	"github.com/groupcast/groupcast/server/accounts"
	"github.com/groupcast/groupcast/server/adminapi"
	"github.com/groupcast/groupcast/server/audit"
	"github.com/groupcast/groupcast/server/devicegrant"
	"github.com/groupcast/groupcast/server/dpop"
	"github.com/groupcast/groupcast/server/enrolment"
	"github.com/groupcast/groupcast/server/externalissuers"
	"github.com/groupcast/groupcast/server/httpapi"
	"github.com/groupcast/groupcast/server/keys"
	"github.com/groupcast/groupcast/server/oauth"
	"github.com/groupcast/groupcast/server/passwords"
	"github.com/groupcast/groupcast/server/ratelimit"
	"github.com/groupcast/groupcast/server/relays"
	"github.com/groupcast/groupcast/server/replay"
	"github.com/groupcast/groupcast/server/tokens"
	"github.com/groupcast/groupcast/server/users"
)

// replayCapacity is how many proofs one process remembers at once: at 1000 requests a second those of the longest time that a proof is good.
const replayCapacity = 400_000

// identity is what issues tokens and tells callers by them.
type identity struct {
	adminapi.Identity
	access httpapi.Access
	nonces *dpop.Nonces
	users  *users.Service
	// refusals is where the public edge notes them.
	refusals *audit.Refusals
	run      []func(context.Context)
}

func (d *Daemon) newIdentity(ctx context.Context, issuer string, ring *keys.Ring, kek *keys.KEK, accts *accounts.Service, nodes *relays.Service) (identity, error) {
	used := replay.NewTable(d.store, d.log)
	proofs, nonces, err := d.newProofs(issuer, kek, used)
	if err != nil {
		return identity{}, err
	}
	tickets := enrolment.New(d.store, accts, nodes)
	grants := devicegrant.New(d.store, tickets)
	tokenIssuer := tokens.NewIssuer(issuer, ring, time.Now)
	var verifier httpapi.TokenVerifier = tokens.NewVerifier(issuer, ring, time.Now)
	if d.cfg.ExternalIssuers != "" {
		issuers, err := externalissuers.Load(d.cfg.ExternalIssuers)
		if err != nil {
			return identity{}, err
		}
		verifier, err = externalissuers.New(ctx, verifier, issuers, &http.Client{
			// What the operator configured is what is asked, and nothing it points at.
			CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		}, time.Now, d.log)
		if err != nil {
			return identity{}, err
		}
	}
	cache := tokens.NewCache(verifier, time.Now)
	hasher, err := passwords.NewHasher(passwords.Recommended, 0)
	if err != nil {
		return identity{}, err
	}
	people := users.New(d.store, accts, hasher, passwords.NewDelays(time.Now), users.SignUp(d.cfg.SignUp))
	service := oauth.New(oauth.Parts{
		Issuer: issuer, Store: d.store, Accounts: accts, Enrolment: tickets, Grants: grants, Tokens: tokenIssuer, Verifier: cache, Proofs: proofs,
		Used: used, Users: people, Now: time.Now, Log: d.log,
	})
	refusals := audit.NewRefusals(d.store, time.Now, d.log)
	return identity{
		refusals: refusals,
		Identity: adminapi.Identity{Issuer: tokenIssuer, OAuth: service, Enrolment: tickets, Grants: grants, Keys: ring},
		access:   httpapi.Access{Tokens: cache, Proofs: proofs, Accounts: accts, Users: people, Relays: nodes},
		users:    people,
		nonces:   nonces,
		run: []func(context.Context){
			used.Run, service.Run, d.maintainKeys(ring), audit.NewSealer(d.store, d.log).Run,
			audit.NewPruner(d.store, d.cfg.AuditRetention, d.log).Run, refusals.Run,
		},
	}, nil
}

// newProofs makes what checks proofs of possession. On Postgres all replicas share the memory of used proofs and the key of the nonces. On
// SQLite there is one process, whose own memory costs nothing; since it begins empty, it takes no proof that could have been used
// before: neither by its time, nor by a nonce, whose key is as young as the process.
func (d *Daemon) newProofs(issuer string, kek *keys.KEK, table *replay.Table) (*dpop.Verifier, *dpop.Nonces, error) {
	var used dpop.Replays = table
	key, err := kek.Derive("dpop nonces")
	if err != nil {
		return nil, nil, err
	}
	if d.cfg.DatabaseURL == "" {
		_, _ = rand.Read(key)
		memory, err := replay.NewMemory(replayCapacity, time.Now)
		if err != nil {
			return nil, nil, err
		}
		memory.RefuseUntil(time.Now().Add(2 * dpop.Window))
		used = memory
	}
	nonces, err := dpop.NewNonces(key, time.Now)
	if err != nil {
		return nil, nil, err
	}
	proofs, err := dpop.NewVerifier(issuer, nonces, used, time.Now)
	return proofs, nonces, err
}

// maintainKeys does what is due with the signing keys, on every replica.
func (d *Daemon) maintainKeys(ring *keys.Ring) func(context.Context) {
	return func(ctx context.Context) {
		ticker := time.NewTicker(keys.MaintainEvery)
		defer ticker.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-ticker.C:
			}
			if err := ring.Maintain(ctx); err != nil && ctx.Err() == nil {
				d.log.WarnContext(ctx, "The signing keys could not be looked after; it is tried again.", "error", err)
			}
		}
	}
}

// limitedCallers is how many callers a limit remembers, with about 250 bytes each.
const limitedCallers = 100_000

// newLimits makes the limits of the public edge.
func (d *Daemon) newLimits() (l httpapi.Limits, err error) {
	for _, each := range []struct {
		to       **ratelimit.Limiter
		requests int
	}{{&l.Source, d.cfg.RateLimitSource}, {&l.Principal, d.cfg.RateLimitPrincipal}} {
		if each.requests == 0 {
			continue
		}
		*each.to, err = ratelimit.New(ratelimit.Limit{Requests: each.requests, Window: time.Minute}, limitedCallers, time.Now)
		if err != nil {
			return l, err
		}
	}
	return l, nil
}
