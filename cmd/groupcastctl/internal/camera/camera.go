package camera

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net/netip"
	"time"

	"github.com/groupcast/groupcast/cmd/groupcastctl/internal/datagramlog"
	"github.com/groupcast/groupcast/internal/lease"
	"github.com/groupcast/groupcast/openapi/api"
)

// drain is how long a camera stays registered after the end of its stream, so that the gateway copies the last datagrams before
// the group ends.
const drain = 500 * time.Millisecond

// Config is what one camera does.
type Config struct {
	Lease *lease.Lease
	// Private is the address that the camera registers and sends from; port 0 takes a free one.
	Private netip.AddrPort
	// MediaPort is the UDP port of the group IP that the stream goes to.
	MediaPort uint16
	// Tunnel, if it isn't nil, takes the datagrams instead of the LAN, with Private and Option that it was opened with.
	Tunnel *Tunnel
	// Option asks for copies by the IP option; without it the gateway has to trigger on the source.
	Option bool
	// Relay is where a local UDP stream comes in. If it isn't set, Stream is sent.
	Relay netip.AddrPort
	// Stream is an MPEG transport stream.
	Stream io.Reader
	Pace   Pace

	SendLog *datagramlog.Log
	Log     *slog.Logger
	// Joined is told the group IP at first and each time it changed.
	Joined func(api.RegistrationAnswer)
	// Await, if it isn't nil, returns when the stream is to begin, or its context is done. What comes in at Relay before that is dropped.
	Await func(context.Context, api.RegistrationAnswer) error
}

// Summary is what a camera did.
type Summary struct {
	Sent   uint64 `json:"sent"`
	Failed uint64 `json:"failed"`
	// Dropped went nowhere because no relay copied, or nobody wanted copies.
	Dropped uint64 `json:"dropped,omitempty"`
}

// Run registers, sends until the stream ends or ctx is done, and leaves. All sockets are open before it registers. The leave may
// take until leaveBy is done.
func Run(ctx, leaveBy context.Context, c Config) (Summary, error) {
	var sender *Sender
	var err error
	if c.Tunnel != nil {
		sender = &Sender{tunnel: c.Tunnel, log: c.SendLog, errors: c.Log}
	} else if sender, err = OpenSender(c.Private, c.Option, c.SendLog, c.Log); err != nil {
		return Summary{}, err
	}
	defer sender.Close()
	begin := make(chan struct{}) // closed when the stream is to begin
	if c.Await == nil {
		close(begin) // before anyone is told that the camera has joined, so that nothing that is sent then is dropped
	}
	stream := func(ctx context.Context) error {
		select {
		case <-begin:
			return sendTransportStream(ctx, c.Stream, c.Pace, sender.Send)
		case <-ctx.Done():
			return nil
		}
	}
	if c.Relay.IsValid() {
		in, err := openRelay(c.Relay)
		if err != nil {
			return Summary{}, err
		}
		defer in.close()
		stream = func(ctx context.Context) error {
			return in.run(ctx, func(datagram []byte) {
				select {
				case <-begin:
					sender.Send(datagram)
				default:
				}
			})
		}
	}
	joined := func(answer api.RegistrationAnswer) {
		sender.Aim(netip.AddrPortFrom(answer.GroupIP, c.MediaPort))
		c.Joined(answer)
	}
	if c.Tunnel != nil {
		if err := c.Tunnel.Declare(ctx); err != nil {
			return Summary{}, err
		}
	}
	answer, err := c.Lease.Join(ctx)
	if err != nil {
		return Summary{}, err
	}
	joined(answer)

	ctx, stop := context.WithCancel(ctx)
	defer stop()
	if c.Tunnel != nil {
		followed := make(chan struct{})
		defer func() { <-followed }()
		defer stop()
		go func() {
			defer close(followed)
			c.Tunnel.Follow(ctx)
		}()
	}
	kept, ended := make(chan struct{}), make(chan error, 2)
	go func() {
		defer close(kept)
		c.Lease.Keep(ctx, func(a api.RegistrationAnswer, moved bool) {
			if moved {
				joined(a)
			}
		})
	}()
	go func() { ended <- stream(ctx) }()
	awaited := make(chan struct{})
	if c.Await == nil {
		close(awaited)
	} else {
		go func() {
			defer close(awaited)
			if err := c.Await(ctx, answer); err != nil {
				ended <- err
				return
			}
			if c.Tunnel != nil { // they are there, so that there will be a way
				select {
				case <-c.Tunnel.found:
				case <-ctx.Done():
				}
			}
			close(begin)
		}()
	}
	select {
	case err = <-ended:
		if err == nil {
			sleepUntil(ctx, time.Now().Add(drain))
		}
	case <-ctx.Done(): // a read of standard input may go on; it sends nothing any more
	}
	stop()
	_ = sender.Close() // what a read still brings isn't sent after the camera has left
	<-kept
	<-awaited // and nothing is said any more
	_, leaveErr := c.Lease.Leave(leaveBy)
	return Summary{Sent: sender.sent.Load(), Failed: sender.failed.Load(), Dropped: sender.dropped.Load()}, errors.Join(err, leaveErr)
}
