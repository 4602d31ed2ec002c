package receive

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"sync"
	"time"

	"github.com/groupcast/groupcast/cmd/groupcastctl/internal/lease"
	"github.com/groupcast/groupcast/models"
	"github.com/groupcast/groupcast/openapi/api"
	"github.com/groupcast/groupcast/receiver"
)

const (
	// How soon the senders are asked for again while not all are known to answer.
	firstSeek = 250 * time.Millisecond
	lastSeek  = receiver.Quiet
	// calm is how often one looks while they do.
	calm = 5 * time.Second
)

// keeping keeps the consent of one lease on a socket.
type keeping struct {
	lease  *lease.Lease
	socket receiver.Socket

	mu         sync.Mutex
	consent    *receiver.Consent // nil: nobody asks for it
	credential models.ConsentCredential
	stop       context.CancelFunc

	joined bool // belongs to stay
}

// heed takes over what an answer says about consent.
func (k *keeping) heed(ctx context.Context, a api.RegistrationAnswer) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if a.Consent == nil || a.Consent.Ufrag == nil || a.Consent.Pwd == nil {
		return
	}
	if c := (models.ConsentCredential{Ufrag: *a.Consent.Ufrag, Password: *a.Consent.Pwd}); c != k.credential {
		if k.stop != nil {
			k.stop()
		}
		ctx, k.stop = context.WithCancel(ctx)
		k.credential, k.consent = c, receiver.New(c)
		go k.consent.Keep(ctx, k.socket)
		go k.seek(ctx, k.consent)
	}
	var places []netip.AddrPort
	if a.Senders != nil {
		for _, s := range *a.Senders {
			addr, err := netip.ParseAddr(s.Address)
			if err == nil && s.Port > 0 && s.Port < 1<<16 {
				places = append(places, netip.AddrPortFrom(addr, uint16(s.Port)))
			}
		}
	}
	k.consent.Senders(places)
}

// seek has the lease renewed, whose answer tells where copies come from, as long as there is no sender yet, or one that doesn't answer.
func (k *keeping) seek(ctx context.Context, c *receiver.Consent) {
	for wait := firstSeek; ; {
		select {
		case <-ctx.Done():
			return
		case <-time.After(wait):
		}
		if answering, all := c.Answered(time.Now()); all > 0 && answering == all {
			wait = calm
			continue
		}
		k.lease.Soon()
		wait = min(2*wait, lastSeek)
	}
}

// take tells whether a datagram is no media, and answers it if it is to be answered.
func (k *keeping) take(from netip.AddrPort, datagram []byte) bool {
	k.mu.Lock()
	c := k.consent
	k.mu.Unlock()
	if c == nil {
		return false
	}
	reply, check := c.Take(time.Now(), from, datagram)
	if reply != nil {
		_, _ = k.socket.WriteToUDPAddrPort(reply, from) // as if it was lost on the way
	}
	return check
}

// stay is the member's life in the group: it joins, keeps the lease until ctx is done, and leaves.
func (k *keeping) stay(ctx, leaveBy context.Context, joined func(api.RegistrationAnswer)) error {
	keeping, stop := context.WithCancel(leaveBy) // consent is kept until it has left
	defer stop()
	answer, err := k.lease.Join(ctx)
	if err != nil {
		return err
	}
	k.joined = true
	k.heed(keeping, answer)
	joined(answer)
	kept := make(chan struct{})
	go func() {
		defer close(kept)
		k.lease.Keep(ctx, func(a api.RegistrationAnswer, moved bool) {
			k.heed(keeping, a)
			if moved {
				joined(a)
			}
		})
	}()
	<-ctx.Done()
	<-kept
	_, err = k.lease.Leave(leaveBy)
	return err
}

// Respond registers, renews and keeps the consent for another program, which has the port, until ctx is done, and leaves.
func Respond(ctx, leaveBy context.Context, l *lease.Lease, beside *receiver.Beside, joined func(api.RegistrationAnswer)) error {
	k := &keeping{lease: l, socket: beside}
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	ended := make(chan error, 1)
	go func() {
		b := make([]byte, largest)
		for {
			n, from, err := beside.ReadFromUDPAddrPort(b)
			if err != nil {
				stop()
				ended <- err
				return
			}
			k.take(from, b[:n])
		}
	}()
	err := k.stay(ctx, leaveBy, joined)
	_ = beside.Close()
	if readErr := <-ended; !errors.Is(readErr, net.ErrClosed) {
		err = errors.Join(err, readErr)
	}
	return err
}
