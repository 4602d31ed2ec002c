package sync

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"runtime/debug"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"golang.org/x/time/rate"

	"github.com/groupcast/groupcast/models"
	"github.com/groupcast/groupcast/openapi/api"
	"github.com/groupcast/groupcast/openapi/client"
)

const (
	wait    = 30 * time.Second // how long the server may hold a poll, at most
	reserve = 10 * time.Second // for everything in a call that is not waiting

	pollEvery = time.Second           // on average, if nothing new comes
	newsEvery = 50 * time.Millisecond // on average, if something new comes each time

	firstBackOff   = 500 * time.Millisecond
	longestBackOff = 30 * time.Second
	longestRetry   = 5 * time.Minute // of what a Retry-After asks for
	startSpread    = 5 * time.Second

	largeAnswer   = 1 << 20 // bytes
	giveBackEvery = 10 * time.Second
)

// Answer is one success: the server was heard from.
type Answer struct {
	// Information is the full snapshot, nil if nothing changed since the cursor that was sent.
	Information *Information
	// Asked is when the question was sent.
	Asked time.Time

	size int // of the snapshot in bytes
}

// Held says what is applied and kept safe.
type Held struct {
	// Cursor acknowledges it when it is sent; "" if there is nothing to acknowledge.
	Cursor   string
	MaxStale time.Duration
}

// wait is how long the server may hold a poll: short enough to be heard from several times before what is held is stale.
func (h Held) wait(longest time.Duration) time.Duration {
	return min(longest, h.MaxStale/3).Truncate(time.Second)
}

// Deliver applies an answer and gives what is held after it. With an error the question is asked again after a back-off.
type Deliver func(context.Context, Answer) (Held, error)

// Config is whom to talk to, and about which gateway.
type Config struct {
	Server  string
	Gateway models.Gateway
	// TunnelKey is the gateway's; the zero key lets no relay serve it.
	TunnelKey models.TunnelKey
	// Relay makes it that relay's instead of a gateway's.
	Relay     Node
	Transport *http.Transport
	// Authorized carries requests through the transport, with the credential.
	Authorized http.RoundTripper
	// Located is told where the service is, at first and whenever it may be elsewhere; nil: nobody wants to know.
	Located func(Service)
	Log     *slog.Logger
}

// Poller keeps one gateway's group information up to date.
type Poller struct {
	config Config
	node   Node
	client *client.Client
	counts counts
	// A poll that follows news is limited like the server limits its answers, so that a member that leaves in a lively moment is
	// gone at once; any other is limited so that a server that answers without waiting is not flooded.
	afterNews, otherwise *rate.Limiter

	declared    bool
	stun        string // what the service said of its STUN port; "": it has none
	located     bool
	told        bool // config.Located was
	heard       bool // the last call succeeded
	connectedAt time.Time
	gaveBack    time.Time
}

// New makes a poller; nothing is sent before Run.
func New(c Config) (*Poller, error) {
	p := &Poller{config: c, afterNews: rate.NewLimiter(rate.Every(newsEvery), 2), otherwise: rate.NewLimiter(rate.Every(pollEvery), 2)}
	p.node = gatewayNode{c.Gateway, c.TunnelKey}
	if c.Relay != nil {
		p.node = c.Relay
	}
	var err error
	p.client, err = client.NewClient(c.Server, client.WithHTTPClient(&http.Client{
		Transport: c.Authorized,
		// The token goes to the server that was configured and to nobody it points at.
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}))
	if err != nil {
		return nil, fmt.Errorf("sync: %w", err)
	}
	return p, nil
}

// Known is what the server says about this gateway.
type Known struct {
	// Gateway is what the gateway last declared, if it ever did.
	Gateway api.Gateway
	// Date is the server's clock, to the second; zero if it doesn't say.
	Date time.Time
}

// Look asks the server for this gateway, and changes nothing: neither there nor for a poller that runs beside.
func (p *Poller) Look(ctx context.Context) (Known, error) {
	ctx, cancel := context.WithTimeout(ctx, reserve)
	defer cancel()
	defer p.config.Transport.CloseIdleConnections()
	a, err := maxBody.read(p.client.GetGateway(ctx, p.config.Gateway.ID))
	if err != nil {
		return Known{}, err
	}
	date, _ := http.ParseTime(a.header.Get("Date")) // zero if there is none
	if a.status != http.StatusOK {
		return Known{Date: date}, a.failure()
	}
	k := Known{Date: date}
	if err := json.Unmarshal(a.body, &k.Gateway); err != nil || k.Gateway.GatewayID != p.config.Gateway.ID {
		return k, errors.New("what answers is not about this gateway: is this the registration service?")
	}
	return k, nil
}

// Decode reads and checks group information as that of this gateway or relay.
func (p *Poller) Decode(raw []byte) (*Information, error) { return p.node.decode(raw) }

// Run declares and polls until ctx ends, beginning with what is held already. It survives everything else.
func (p *Poller) Run(ctx context.Context, held Held, deliver Deliver) {
	defer p.config.Transport.CloseIdleConnections()
	trouble := faults{log: p.config.Log}
	limiter := p.otherwise
	for first := true; ; first = false {
		if limiter.Wait(ctx) != nil {
			return
		}
		before := held.Cursor
		var err error
		held, err = p.once(ctx, held, deliver)
		if ctx.Err() != nil {
			return
		}
		limiter, p.heard = p.otherwise, err == nil
		if err == nil {
			if held.Cursor != before {
				limiter = p.afterNews
			}
			trouble.over()
			continue
		}
		p.counts.failed.Add(1)
		select {
		case <-ctx.Done():
		case <-time.After(trouble.happened(ctx, err, first)):
		}
	}
}

// once declares if that is due, polls once and delivers the answer. It gives what is held then.
func (p *Poller) once(ctx context.Context, held Held, deliver Deliver) (Held, error) {
	p.recycle()
	if undeclared := p.declare(ctx); undeclared != nil {
		undeclared = fmt.Errorf("declare this agent: %w", undeclared)
		if _, answered := errors.AsType[*ServerError](undeclared); !answered {
			return held, undeclared
		}
		// What an earlier declaration led to may still be right, and what is copied needs it.
		held, _ = p.exchange(ctx, held, deliver)
		return held, undeclared
	}
	p.locate(ctx)
	return p.exchange(ctx, held, deliver)
}

func (p *Poller) exchange(ctx context.Context, held Held, deliver Deliver) (Held, error) {
	got, err := p.poll(ctx, held)
	if err != nil {
		return held, fmt.Errorf("fetch the group information: %w", err)
	}
	held, err = deliver(ctx, got)
	if err != nil {
		return held, fmt.Errorf("apply the group information: %w", err)
	}
	p.giveBack(got.size)
	return held, nil
}

// giveBack returns to the host what reading a large answer took: many times what of it stays. An idle relay would keep it for minutes.
func (p *Poller) giveBack(size int) {
	if now := time.Now(); size >= largeAnswer && now.Sub(p.gaveBack) >= giveBackEvery {
		debug.FreeOSMemory()
		p.gaveBack = now
	}
}

// recycle drops the connection if it is old; between two polls it is idle.
func (p *Poller) recycle() {
	if now := time.Now(); now.Sub(p.connectedAt) > recycle {
		p.config.Transport.CloseIdleConnections()
		p.connectedAt = now.Add(rand.N(recycle / 10))
		p.located = false
		if p.config.Gateway.BehindNAT {
			p.declared = false // the answer says where the STUN port is
		}
	}
}

// declare states what this gateway serves, unless the server has said that it knows.
func (p *Poller) declare(ctx context.Context) error {
	if p.declared {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, reserve)
	defer cancel()
	stun, err := p.node.declare(ctx, p.client)
	if err != nil {
		return err
	}
	p.declared = true
	p.located, p.stun = p.located && stun == p.stun, stun
	p.config.Log.Info("declared to the server")
	return nil
}

// poll asks for what is newer than what is held. It lets the server wait only if all is well: at the start and after a failure what is
// held may have been confirmed long ago, and wants to be at once.
func (p *Poller) poll(ctx context.Context, held Held) (Answer, error) {
	var maxWait *int32
	var known *string
	deadline := reserve
	if held.Cursor != "" {
		var wait time.Duration
		if p.heard {
			wait = held.wait(p.node.longest())
		}
		seconds, etag := int32(wait.Seconds()), `"`+held.Cursor+`"`
		maxWait, known = &seconds, &etag
		deadline += wait + wait/16 // the server spreads its answers over a sixteenth
	}
	asked := time.Now()
	ctx, cancel := context.WithTimeout(ctx, deadline)
	defer cancel()
	a, err := p.node.largest().read(p.node.groups(ctx, p.client, maxWait, known))
	if err != nil {
		return Answer{}, err
	}
	if took := time.Since(asked); took > deadline {
		return Answer{}, fmt.Errorf("it was read %s after it was asked for, and may have been true then only: did this process stand still?", took.Round(time.Second))
	}
	etag := a.header.Get("ETag")
	switch a.status {
	case http.StatusNotModified:
		if held.Cursor == "" || etag != `"`+held.Cursor+`"` {
			return Answer{}, errors.New("the server says that nothing changed since something that was not asked about")
		}
		p.counts.unchanged.Add(1)
		return Answer{Asked: asked}, nil
	case http.StatusOK:
		info, err := p.node.decode(a.body)
		if err == nil && etag != `"`+info.Cursor()+`"` {
			err = errors.New("its ETag is not its epoch and revision")
		}
		if err == nil && a.header.Get(resyncHeader) == "" && !follows(held.Cursor, info) {
			err = errors.New("it is older than what is held, or of another life of the server's database, and the server doesn't say why: an answer from a cache, or " +
				"one that was recorded")
		}
		if err != nil {
			p.counts.refused.Add(1)
			// The server may know another declaration, for example an older one from a backup.
			p.declared = false
			return Answer{}, fmt.Errorf("refused, the last good one stays in force: %w", err)
		}
		if why := a.header.Get(resyncHeader); why != "" {
			p.config.Log.Warn("the server did not know the cursor and sent everything", "why", why)
		}
		if epoch, _, ok := strings.Cut(held.Cursor, "."); ok && epoch != info.Epoch {
			p.declared = false // another life of the database may not know what this gateway declared
		}
		p.counts.changed.Add(1)
		return Answer{Information: info, Asked: asked, size: len(a.body)}, nil
	case http.StatusNotFound, http.StatusConflict:
		p.declared = false
	}
	return Answer{}, a.failure()
}

// resyncHeader is where a server says why it answers with something that doesn't follow what was asked about.
const resyncHeader = "Groupcast-Resync"

// follows tells whether a snapshot is what is held or newer, in the same life of the server's database. The server never sends anything else
// without saying so: it can't know whether another answer was kept and played again.
func follows(cursor string, info *Information) bool {
	epoch, revision, ok := strings.Cut(cursor, ".")
	if !ok {
		return true // nothing is held
	}
	n, err := strconv.ParseInt(revision, 10, 64)
	return err == nil && epoch == info.Epoch && info.Revision >= n
}

// Counts says how the polls went since the start.
type Counts struct {
	Changed   uint64 `json:"changed"`   // answered with a snapshot
	Unchanged uint64 `json:"unchanged"` // answered at the time-out
	Refused   uint64 `json:"refused"`   // answered with something that can't be right
	Failed    uint64 `json:"failed"`    // calls and answers that led to a back-off, the refused ones included
}

type counts struct{ changed, unchanged, refused, failed atomic.Uint64 }

// Counts may be asked at any time.
func (p *Poller) Counts() Counts {
	c := &p.counts
	return Counts{c.changed.Load(), c.unchanged.Load(), c.refused.Load(), c.failed.Load()}
}

// ReportConsents tells the server where copies come from and who consents. It may run beside Run.
func (p *Poller) ReportConsents(ctx context.Context, report api.ConsentReport) (api.ConsentReportAnswer, error) {
	ctx, cancel := context.WithTimeout(ctx, reserve)
	defer cancel()
	var answer api.ConsentReportAnswer
	a, err := maxBody.read(p.node.report(ctx, p.client, report))
	switch {
	case err != nil:
		return answer, err
	case a.status != http.StatusOK:
		return answer, a.failure()
	}
	if err := json.Unmarshal(a.body, &answer); err != nil {
		return answer, errors.New("the server's answer to a report is not what the contract says")
	}
	return answer, nil
}
