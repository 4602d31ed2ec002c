package receiver

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/oapi-codegen/nullable"

	"github.com/groupcast/groupcast/internal/lease"
	"github.com/groupcast/groupcast/internal/refusal"
	"github.com/groupcast/groupcast/internal/rtp"
	"github.com/groupcast/groupcast/internal/udpbuffer"
	"github.com/groupcast/groupcast/models"
	"github.com/groupcast/groupcast/openapi/api"
	"github.com/groupcast/groupcast/openapi/client"
)

const (
	// DefaultPort is where copies arrive if nothing else is said.
	DefaultPort = 5004

	largest   = 1 << 16 // what fits any UDP datagram, in bytes
	leaveTime = 10 * time.Second
)

// RefusedError is an answer of the service that is no success: a problem document (RFC 9457). Its Final tells whether asking again can't help before
// somebody changes something.
type RefusedError = refusal.Error

// Loss is what was seen of one RTP stream.
type Loss = rtp.Report

// Config is what one receiver does. Client and Member are required. What it calls must not call Leave or Close.
type Config struct {
	// Client speaks to the service with the member's credential; package clientauth makes its http.RoundTripper.
	Client *client.ClientWithResponses
	// Member is who receives what, as it is posted: type, id and groupName at least. A service leaves groupIP out to have it looked up, if only one group of that
	// name is its; to tell groups of several homes apart it says groupIP and premisesId. Of addresses and port what is left out is that of Listen.
	Member api.RegistrationRequest
	// Listen is where the copies arrive. Port 0 takes a free one; the zero value is DefaultPort at all addresses of this host.
	Listen netip.AddrPort
	// Beside leaves the port to another program of this host, which gets the copies and knows nothing of consent; Media is not called then. Listen
	// needs an address and a port, and the process CAP_NET_RAW.
	Beside bool
	// BehindNAT registers no port: copies come to wherever a NAT makes the checks come from.
	BehindNAT bool
	// Media is given each datagram that isn't a check, on one goroutine; nil drops them. After an error the receiver leaves and ends with it.
	Media func(Datagram) error

	// Joined is told the service's answer at first, and again when a group that ended came back or has another address. It may be nil.
	Joined func(api.RegistrationAnswer)
	// Consent is told when the receiver's consent changes, as Receiver.Consent gives it. It may be nil.
	Consent func(models.ConsentState)
	// Step is told what the member does, for a log: joining, joined, moved, leaving, left, with keys and values in turn. It may be nil.
	Step func(step string, keysAndValues ...any)
	// Log gets what can't be done now and is tried again; nil is slog.Default.
	Log *slog.Logger
	// EventsElsewhere opens no stream of events, because the program has one for several groups: it calls Hear. One caller may have 8 streams, a service 64.
	EventsElsewhere bool
}

// Datagram is one that arrived.
type Datagram struct {
	// At is when, by the system's clock.
	At time.Time
	// Payload is only valid during the call.
	Payload []byte
	// RTP tells that Sequence is its number in its stream, extended to 64 bits over the wraps: the first one's is 65536 more than what it says.
	RTP      bool
	Sequence uint64
}

// Summary is what arrived so far.
type Summary struct {
	Datagrams uint64 `json:"datagrams"`
	Bytes     uint64 `json:"bytes"`
	// Streams has an entry for each RTP stream (SSRC), at most 64, sorted by SSRC.
	Streams []Loss `json:"streams"`
}

// socket is a *net.UDPConn or a *Beside.
type socket interface {
	Socket
	ReadFromUDPAddrPort(datagram []byte) (int, netip.AddrPort, error)
	Close() error
}

// Receiver is a destination at work. Its methods may be called on any goroutine.
type Receiver struct {
	config Config
	log    *slog.Logger
	socket socket
	at     netip.AddrPort
	lease  *lease.Lease

	renewing, keeping context.Context //nolint:containedctx // the receiver's own life: until it leaves, and until it has left
	stopRenewing      context.CancelFunc
	stopKeeping       context.CancelFunc
	member            sync.WaitGroup // what ends before the leave
	tasks             sync.WaitGroup
	nudge             chan struct{} // holds one: a check was heard, or there are other senders

	mu         sync.Mutex
	answer     api.RegistrationAnswer
	credential models.ConsentCredential
	consent    *Consent // nil: nobody asks
	forget     context.CancelFunc
	state      models.ConsentState // as it was told
	gone       bool                // it has left
	group      hearing
	reception  rtp.Reception
	datagrams  uint64
	bytes      uint64
	errs       []error
	unhook     func() bool // from the context of Join

	leave, end sync.Once
	leaveErr   error
	done       chan struct{}
}

// Join opens the socket, registers, and receives until ctx ends or Close is called; then it leaves. It tries to register once: a *RefusedError says why the service
// refused; an error of the socket names the address.
func Join(ctx context.Context, c Config) (*Receiver, error) {
	if c.Log == nil {
		c.Log = slog.Default()
	}
	if !c.Listen.IsValid() {
		c.Listen = netip.AddrPortFrom(netip.IPv4Unspecified(), DefaultPort)
	}
	r := &Receiver{config: c, log: c.Log, nudge: make(chan struct{}, 1), done: make(chan struct{}), state: models.ConsentPending}
	if err := r.open(); err != nil {
		return nil, err
	}
	r.lease = lease.New(c.Client, r.request(), c.Step, c.Log)
	r.renewing, r.stopRenewing = context.WithCancel(context.WithoutCancel(ctx))
	r.keeping, r.stopKeeping = context.WithCancel(context.WithoutCancel(ctx))
	answer, err := r.lease.Join(ctx)
	if err != nil {
		r.stopRenewing()
		r.stopKeeping()
		return nil, errors.Join(err, r.socket.Close())
	}
	r.heed(answer) //nolint:contextcheck // consent is kept until the receiver has left
	r.joined(answer)
	r.member.Go(func() { //nolint:contextcheck // as above
		r.lease.Keep(r.renewing, func(a api.RegistrationAnswer, moved bool) {
			r.heed(a)
			if moved {
				r.joined(a)
			}
		})
	})
	r.member.Go(r.attend)
	if !c.EventsElsewhere {
		r.member.Go(r.follow)
	}
	r.tasks.Go(r.receive)
	unhook := context.AfterFunc(ctx, func() { _ = r.Close() }) //nolint:contextcheck // ctx has ended then; the leave has a time of its own
	r.mu.Lock()
	r.unhook = unhook
	r.mu.Unlock()
	return r, nil
}

func (r *Receiver) open() error {
	at := r.config.Listen
	if r.config.Beside {
		beside, err := OpenBeside(at)
		if err != nil {
			return err
		}
		r.socket, r.at = beside, at
		return nil
	}
	conn, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(at))
	if err != nil {
		return fmt.Errorf("open the port for the copies: %w", err)
	}
	udpbuffer.Enlarge(conn)
	at = conn.LocalAddr().(*net.UDPAddr).AddrPort()
	r.socket, r.at = conn, netip.AddrPortFrom(at.Addr().Unmap(), at.Port())
	return nil
}

// request is the member with what the socket knows.
func (r *Receiver) request() api.RegistrationRequest {
	m := r.config.Member
	m.Destination = true
	if r.config.BehindNAT {
		m.Port = nil
	} else if _, err := m.Port.Get(); err != nil {
		m.Port = nullable.NewNullableWithValue(int32(r.at.Port()))
	}
	for _, given := range []nullable.Nullable[netip.Addr]{m.PrivateIPv4, m.PublicIPv4, m.IPv6} {
		if _, err := given.Get(); err == nil {
			return m
		}
	}
	switch addr := r.at.Addr(); {
	case addr.IsUnspecified():
	case addr.Is4():
		m.PublicIPv4 = nullable.NewNullableWithValue(addr)
	default:
		m.IPv6 = nullable.NewNullableWithValue(addr)
	}
	return m
}

// Addr is where the copies arrive: the address that was bound.
func (r *Receiver) Addr() netip.AddrPort { return r.at }

// Consent tells how the consent stands as seen from here: ConsentLive once gateways ask, which is when they send copies. ConsentExempt if nobody asks.
func (r *Receiver) Consent() models.ConsentState {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.standing(time.Now())
}

func (r *Receiver) standing(now time.Time) models.ConsentState {
	if r.consent == nil {
		return models.ConsentExempt
	}
	return r.consent.State(now)
}

// Summary tells what arrived so far, and what is missing.
func (r *Receiver) Summary() Summary {
	r.mu.Lock()
	defer r.mu.Unlock()
	return Summary{Datagrams: r.datagrams, Bytes: r.bytes, Streams: r.reception.Reports()}
}

// Done is closed when the receiver has ended: it has left, and nothing is handed on any more.
func (r *Receiver) Done() <-chan struct{} { return r.done }

// Wait waits until the receiver has ended, and gives why if it wasn't asked to: the error of Media or of the socket. An error of the leave is
// among it; the lease then ends by itself.
func (r *Receiver) Wait() error {
	<-r.done
	r.mu.Lock()
	defer r.mu.Unlock()
	return errors.Join(append(slices.Clone(r.errs), r.leaveErr)...)
}

// Leave ends the registration, as long as ctx lets it. What still arrives is handed on until Close. Only the first call does something; others wait for it.
func (r *Receiver) Leave(ctx context.Context) error {
	r.leave.Do(func() {
		r.stopRenewing()
		r.member.Wait()
		_, err := r.lease.Leave(ctx)
		r.mu.Lock()
		defer r.mu.Unlock()
		r.gone, r.leaveErr = true, err
		if r.forget != nil {
			r.forget()
		}
	})
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.leaveErr
}

// Close leaves, unless Leave did, for which it takes 10 seconds at most, and frees the socket. The error is that of Wait.
func (r *Receiver) Close() error {
	r.end.Do(func() {
		ctx, cancel := context.WithTimeout(context.Background(), leaveTime)
		defer cancel()
		_ = r.Leave(ctx) // Wait tells
		r.stopKeeping()
		_ = r.socket.Close()
		r.tasks.Wait()
		r.mu.Lock()
		if r.unhook != nil {
			r.unhook()
		}
		r.mu.Unlock()
		close(r.done)
	})
	return r.Wait()
}

func (r *Receiver) joined(a api.RegistrationAnswer) {
	if r.config.Joined != nil {
		r.config.Joined(a)
	}
}

// heed takes over what an answer to the registration says.
func (r *Receiver) heed(a api.RegistrationAnswer) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if deref(a.RegistrationID) != deref(r.answer.RegistrationID) {
		r.group = hearing{} // it may be another life of the group
	}
	r.answer = a
	if a.Consent == nil || r.gone {
		return
	}
	c := models.ConsentCredential{Ufrag: deref(a.Consent.Ufrag), Password: deref(a.Consent.Pwd)}
	if c != r.credential {
		if r.forget != nil {
			r.forget()
		}
		r.credential, r.consent, r.forget = c, nil, nil
		if c.Ufrag != "" && c.Password != "" {
			var ctx context.Context
			ctx, r.forget = context.WithCancel(r.keeping)
			r.consent = New(c)
			keep := r.consent.Keep
			r.tasks.Go(func() { keep(ctx, r.socket) })
		}
	}
	r.sendersAre(deref(a.Senders))
}

// sendersAre takes over where copies come from.
func (r *Receiver) sendersAre(senders []api.Sender) {
	if r.consent == nil {
		return
	}
	var places []netip.AddrPort
	for _, s := range senders {
		addr, err := netip.ParseAddr(s.Address)
		if err == nil && s.Port > 0 && s.Port < 1<<16 {
			places = append(places, netip.AddrPortFrom(addr, uint16(s.Port)))
		}
	}
	r.consent.Senders(places)
	r.wake()
}

func (r *Receiver) wake() {
	select {
	case r.nudge <- struct{}{}:
	default:
	}
}

func deref[T any](p *T) T { return *cmp.Or(p, new(T)) }

// receive runs until the socket is closed. It has the receiver end if nothing can be received or handed on any more.
func (r *Receiver) receive() {
	buffer := make([]byte, largest)
	failed := false
	fail := func(err error) {
		r.mu.Lock()
		r.errs = append(r.errs, err)
		r.mu.Unlock()
		failed = true
		go func() { _ = r.Close() }()
	}
	for {
		n, from, err := r.socket.ReadFromUDPAddrPort(buffer)
		now := time.Now()
		switch {
		case errors.Is(err, net.ErrClosed):
			return
		case err != nil:
			fail(fmt.Errorf("receive: %w", err))
			return
		}
		d, media := r.take(now, from, buffer[:n])
		if media && !failed && r.config.Media != nil {
			if err := r.config.Media(d); err != nil {
				fail(err)
			}
		}
	}
}

// take answers a check, or counts what is none.
func (r *Receiver) take(now time.Time, from netip.AddrPort, datagram []byte) (d Datagram, media bool) {
	r.mu.Lock()
	if r.consent != nil {
		if reply, check := r.consent.Take(now, from, datagram); check {
			gone := r.gone
			r.mu.Unlock()
			if reply != nil && !gone {
				_, _ = r.socket.WriteToUDPAddrPort(reply, from) // as if it was lost on the way
				r.wake()
			}
			return d, false
		}
	}
	defer r.mu.Unlock()
	r.datagrams++
	r.bytes += uint64(len(datagram))
	d = Datagram{At: now, Payload: datagram}
	d.Sequence, d.RTP = r.reception.Note(datagram)
	return d, true
}
