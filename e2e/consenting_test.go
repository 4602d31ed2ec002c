package e2e

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/groupcast/groupcast/models"
	"github.com/groupcast/groupcast/receiver"
)

// consenting is a destination with a socket of its own. It keeps its consent whether the test looks or not, until it falls silent.
type consenting struct {
	*net.UDPConn

	media    chan []byte // what has come; what comes while it is full is lost
	answered atomic.Int64
	silent   atomic.Bool
	stop     context.CancelFunc
}

// consents has a registered destination keep its consent with the senders of its answer.
func consents(t testing.TB, conn *net.UDPConn, a registered) *consenting {
	t.Helper()
	require.NotEmpty(t, a.Senders, "the gateway hasn't told where it sends from")
	ctx, stop := context.WithCancel(context.Background())
	t.Cleanup(stop)
	c := &consenting{UDPConn: conn, media: make(chan []byte, 1<<14), stop: stop}
	consent := receiver.New(models.ConsentCredential{Ufrag: a.Consent.Ufrag, Password: a.Consent.Pwd})
	var places []netip.AddrPort
	for _, s := range a.Senders {
		places = append(places, netip.AddrPortFrom(s.Address, s.Port))
	}
	consent.Senders(places)
	go consent.Keep(ctx, conn)
	go c.take(consent)
	return c
}

// take answers checks and hands on what is none.
func (c *consenting) take(consent *receiver.Consent) {
	b := make([]byte, 1<<16)
	for {
		n, from, err := c.ReadFromUDPAddrPort(b)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			continue // the network's answer to a check
		}
		reply, check := consent.Take(time.Now(), from, b[:n])
		switch {
		case !check:
			select {
			case c.media <- slices.Clone(b[:n]):
			default:
			}
		case reply != nil && !c.silent.Load():
			c.answered.Store(time.Now().UnixNano())
			_, _ = c.WriteToUDPAddrPort(reply, from)
		}
	}
}

// fallSilent has it neither ask nor answer any more, and gives when it answered last.
func (c *consenting) fallSilent() time.Time {
	c.stop()
	c.silent.Store(true)
	return time.Unix(0, c.answered.Load())
}

// next gives what comes next, or fails.
func (c *consenting) next(t testing.TB) []byte {
	t.Helper()
	select {
	case b := <-c.media:
		return b
	case <-time.After(time.Minute):
		require.Fail(t, "the copies stopped")
		return nil
	}
}

// untilSenders registers until the gateway has told where its copies come from.
func untilSenders(t testing.TB, register func() registered) (a registered) {
	t.Helper()
	require.Eventually(t, func() bool { a = register(); return len(a.Senders) > 0 }, time.Minute, 20*time.Millisecond,
		"the gateway hasn't told where it sends from")
	return a
}
