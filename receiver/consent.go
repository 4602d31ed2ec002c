package receiver

import (
	"context"
	"math/rand/v2"
	"net/netip"
	"sync"
	"time"

	"github.com/groupcast/groupcast/models"
	"github.com/groupcast/groupcast/receiver/consentcheck"
)

const (
	// after a check that isn't answered; then doubling up to models.ConsentEvery. The first often comes before the gateway has heard of the registration.
	firstAgain = 20 * time.Millisecond
	// Quiet is how long a sender may leave checks unanswered before its place is to be asked for again: it may have another one.
	Quiet = 15 * time.Second
)

// Socket is what checks leave from: a *net.UDPConn, or a Beside.
type Socket interface {
	WriteToUDPAddrPort(datagram []byte, to netip.AddrPort) (int, error)
}

// Consent keeps one registration's consent with each of its senders (SPEC §10). A Receiver has one by itself; this is for programs that register and
// read their socket on their own. They give every datagram to Take, which tells checks from media and says what to answer, and run Keep beside it:
//
//	c := receiver.New(models.ConsentCredential{Ufrag: *answer.Consent.Ufrag, Password: *answer.Consent.Pwd})
//	c.Senders(places)
//	go c.Keep(ctx, socket)
//	for {
//		n, from, err := socket.ReadFromUDPAddrPort(b)
//		if reply, check := c.Take(time.Now(), from, b[:n]); check {
//			if reply != nil {
//				socket.WriteToUDPAddrPort(reply, from)
//			}
//			continue
//		}
//		// b[:n] is media
//	}
//
// Its methods may be called on any goroutine.
type Consent struct {
	credential models.ConsentCredential
	wake       chan struct{} // holds one

	mu      sync.Mutex
	senders map[netip.AddrPort]*sender
}

// sender is how the checks go with one sender.
type sender struct {
	since    time.Time
	due      time.Time
	again    time.Duration
	asked    consentcheck.ID
	answered time.Time // zero: never
	heard    time.Time // when it last asked; zero: never
}

// New keeps nothing yet.
func New(c models.ConsentCredential) *Consent {
	return &Consent{credential: c, wake: make(chan struct{}, 1), senders: map[netip.AddrPort]*sender{}}
}

// Senders replaces the places that copies come from. Each new one is asked at once.
func (c *Consent) Senders(places []netip.AddrPort) {
	c.mu.Lock()
	defer c.mu.Unlock()
	before := c.senders
	c.senders = map[netip.AddrPort]*sender{}
	now := time.Now()
	for _, at := range places {
		at = netip.AddrPortFrom(at.Addr().Unmap(), at.Port())
		if c.senders[at] = before[at]; before[at] == nil {
			c.senders[at] = &sender{since: now, due: now, again: firstAgain}
		}
	}
	select {
	case c.wake <- struct{}{}:
	default:
	}
}

// Take tells whether a datagram is no media, and what to answer to it, if anything.
func (c *Consent) Take(now time.Time, from netip.AddrPort, datagram []byte) (reply []byte, check bool) {
	if !consentcheck.IsSTUN(datagram) {
		return nil, false
	}
	m, ok := consentcheck.Parse(datagram)
	if !ok || !m.Authentic(c.credential.Password) {
		return nil, true
	}
	from = netip.AddrPortFrom(from.Addr().Unmap(), from.Port())
	if m.Kind == consentcheck.Request {
		if ufrag, ok := consentcheck.ToReceiver.Ufrag(m.Username); !ok || ufrag != c.credential.Ufrag {
			return nil, true
		}
		c.mu.Lock()
		defer c.mu.Unlock()
		if s := c.senders[from]; s != nil {
			s.heard = now
		}
		return consentcheck.NewAnswer(c.credential, m.ID, from, len(datagram)), true
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if s := c.senders[from]; s != nil && s.asked == m.ID {
		s.answered, s.again, s.due = now, firstAgain, now.Add(spread(models.ConsentEvery))
	}
	return nil, true
}

func spread(d time.Duration) time.Duration {
	return time.Duration(float64(d) * (0.8 + 0.4*rand.Float64())) //nolint:gosec // nobody gains by guessing it
}

// Check is a request to be sent.
type Check struct {
	To   netip.AddrPort
	Data []byte
}

// Due gives the checks to be sent now, and when the next ones are, a minute from now at the latest.
func (c *Consent) Due(now time.Time) (checks []Check, next time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	next = now.Add(time.Minute)
	for at, s := range c.senders {
		if !now.Before(s.due) {
			var data []byte
			data, s.asked = consentcheck.NewRequest(c.credential, consentcheck.ToAgent)
			checks = append(checks, Check{at, data})
			s.due, s.again = now.Add(s.again), min(2*s.again, models.ConsentEvery)
		}
		if s.due.Before(next) {
			next = s.due
		}
	}
	return checks, next
}

// Keep sends checks whenever they are due, until ctx ends. What can't be sent is sent again like what is lost.
func (c *Consent) Keep(ctx context.Context, socket Socket) {
	for {
		checks, next := c.Due(time.Now())
		for _, check := range checks {
			_, _ = socket.WriteToUDPAddrPort(check.Data, check.To)
		}
		select {
		case <-ctx.Done():
			return
		case <-c.wake:
		case <-time.After(time.Until(next)):
		}
	}
}

// Answered tells how many senders answered within Quiet, and of how many. A receiver whose senders don't all answer registers again, to learn where
// they are now.
func (c *Consent) Answered(now time.Time) (answering, all int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, s := range c.senders {
		last := s.since
		if s.answered.After(last) {
			last = s.answered
		}
		if now.Sub(last) < Quiet {
			answering++
		}
	}
	return answering, len(c.senders)
}

// State tells how the consent stands as seen from here: ConsentLive while each sender has asked within models.ConsentExpires, which is what it sends copies
// by; ConsentLost where one did and does no more; ConsentUnreachable if one didn't within models.ConsentPatience; else ConsentPending, also if there
// is no sender yet. Of several senders the worst counts.
func (c *Consent) State(now time.Time) models.ConsentState {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.senders) == 0 {
		return models.ConsentPending
	}
	worst := models.ConsentLive
	for _, s := range c.senders {
		state := models.ConsentLive
		switch {
		case s.heard.IsZero() && now.Sub(s.since) >= models.ConsentPatience:
			state = models.ConsentUnreachable
		case s.heard.IsZero():
			state = models.ConsentPending
		case now.Sub(s.heard) >= models.ConsentExpires:
			state = models.ConsentLost
		}
		worst = max(worst, state)
	}
	return worst
}
