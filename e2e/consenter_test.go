package e2e

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/groupcast/groupcast/e2e/netlab"
	"github.com/groupcast/groupcast/models"
	"github.com/groupcast/groupcast/receiver"
	"github.com/groupcast/groupcast/receiver/consentcheck"
)

// consenter is a member's program: it receives copies and keeps its consent by package receiver.
type consenter struct {
	conn   *net.UDPConn
	at     netip.AddrPort
	silent atomic.Bool
	done   sync.WaitGroup

	senders []netip.AddrPort
	consent atomic.Pointer[receiver.Consent] // nil: it never spoke
	quiet   context.CancelFunc               // ends its checks
}

// openConsenter has the program at the address; port 0 is any. It says nothing before consents.
func openConsenter(ns *netlab.Namespace, addr string, port uint16) *consenter {
	c := &consenter{conn: ns.ListenUDP(fmt.Sprintf("%s:%d", addr, port))}
	at := c.conn.LocalAddr().(*net.UDPAddr).AddrPort()
	c.at = netip.AddrPortFrom(at.Addr().Unmap(), at.Port())
	c.silent.Store(true)
	return c
}

// consents begins with the credential and the senders of the answer to the registration, and goes on until close or silence.
func (c *consenter) consents(a registered) {
	keeping := receiver.New(models.ConsentCredential{Ufrag: a.Consent.Ufrag, Password: a.Consent.Pwd})
	first := c.consent.Swap(keeping) == nil
	c.knows(a)
	if first {
		c.done.Go(c.read)
	}
	var ctx context.Context
	ctx, c.quiet = context.WithCancel(context.Background())
	c.silent.Store(false)
	c.done.Go(func() { keeping.Keep(ctx, c.conn) })
}

// knows takes the senders of a newer answer.
func (c *consenter) knows(a registered) {
	c.senders = nil
	for _, s := range a.Senders {
		c.senders = append(c.senders, netip.AddrPortFrom(s.Address, s.Port))
	}
	c.consent.Load().Senders(c.senders)
}

// fallsSilent ends its checks and answers: its socket stays, and nothing leaves it.
func (c *consenter) fallsSilent() {
	if c.silent.Swap(true) {
		return
	}
	c.quiet()
}

func (c *consenter) read() {
	b := make([]byte, 1<<16)
	for {
		n, from, err := c.conn.ReadFromUDPAddrPort(b)
		switch {
		case errors.Is(err, net.ErrClosed):
			return
		case err != nil: // the network's answer to a check
			continue
		}
		if reply, _ := c.consent.Load().Take(time.Now(), from, b[:n]); reply != nil && !c.silent.Load() {
			_, _ = c.conn.WriteToUDPAddrPort(reply, from)
		}
	}
}

// asks sends one check more, whatever is due.
func (c *consenter) asks(credential models.ConsentCredential) {
	for _, to := range c.senders {
		check, _ := consentcheck.NewRequest(credential, consentcheck.ToAgent)
		_, _ = c.conn.WriteToUDPAddrPort(check, to)
	}
}

func (c *consenter) close() {
	c.fallsSilent()
	_ = c.conn.Close()
	c.done.Wait()
}
