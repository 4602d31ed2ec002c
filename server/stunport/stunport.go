// Package stunport tells whoever asks by STUN which address and port its datagrams come from (RFC 8489 Binding), so that a gateway behind a NAT learns
// what its sender ports are mapped to (SPEC §10).
//
// It knows nobody and keeps nothing. What it sends is never larger than what it answers and goes where that came from, so it can't be used to flood
// anybody; everything that isn't a plain Binding request is met with silence.
package stunport

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"time"

	"github.com/pion/stun/v3"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/groupcast/groupcast/server/ratelimit"
)

const (
	// One network (/24, or /64 for IPv6) may ask so often: a home keeps a port for each camera in a group, 25 at most as a rule, open with a request every 5 s, and a
	// carrier has many homes in one network. An answer costs what a request does.
	perNetwork = 6000
	window     = time.Minute
	networks   = 16384 // that are remembered, about 250 bytes each
	// maxRequest is more than any request without credentials needs.
	maxRequest = 512
	// retryAfter is the pause after a read that failed, which for UDP passes.
	retryAfter = 10 * time.Millisecond
)

// Server answers on one socket.
type Server struct {
	limits  *ratelimit.Limiter
	log     *slog.Logger
	answers *prometheus.CounterVec
}

// New makes a server; now is the clock that requests are limited by.
func New(now func() time.Time, log *slog.Logger, metrics prometheus.Registerer) (*Server, error) {
	limits, err := ratelimit.New(ratelimit.Limit{Requests: perNetwork, Window: window}, networks, now)
	if err != nil {
		return nil, err
	}
	s := &Server{limits: limits, log: log, answers: prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "groupcast_stun_requests_total", Help: "Datagrams that came to the STUN port, by what became of them.",
	}, []string{"outcome"})}
	for _, outcome := range []string{"answered", "ignored", "rate_limited"} {
		s.answers.WithLabelValues(outcome)
	}
	metrics.MustRegister(s.answers)
	return s, nil
}

// Serve answers until the context is done, and closes the socket then.
func (s *Server) Serve(ctx context.Context, conn *net.UDPConn) {
	defer context.AfterFunc(ctx, func() { _ = conn.Close() })() // a socket that is closed twice says so, which changes nothing
	buffer := make([]byte, maxRequest+1)
	var answer []byte
	for ctx.Err() == nil {
		n, from, err := conn.ReadFromUDPAddrPort(buffer)
		if err != nil {
			if !errors.Is(err, net.ErrClosed) {
				s.log.WarnContext(ctx, "the STUN port can't read", "error", err)
				time.Sleep(retryAfter)
			}
			continue
		}
		from = netip.AddrPortFrom(from.Addr().Unmap(), from.Port())
		answer = Answer(answer[:0], buffer[:n], from)
		switch {
		case len(answer) == 0:
			s.answers.WithLabelValues("ignored").Inc()
		case !s.limits.Take(ratelimit.BySource(from.Addr())).Allowed:
			s.answers.WithLabelValues("rate_limited").Inc()
		default:
			_, _ = conn.WriteToUDPAddrPort(answer, from) // who can't be reached asks again
			s.answers.WithLabelValues("answered").Inc()
		}
	}
}

// Answer appends the answer to a datagram that came from an address and port: nothing unless it is a Binding request without any attribute that has to be
// understood, and at least as large as its answer, which is 32 bytes over IPv4 and 44 over IPv6.
func Answer(to, datagram []byte, from netip.AddrPort) []byte {
	if len(datagram) > maxRequest || !stun.IsMessage(datagram) {
		return to
	}
	request := &stun.Message{Raw: datagram}
	if request.Decode() != nil || request.Type != stun.BindingRequest || len(datagram) != int(request.Length)+20 {
		return to
	}
	for _, a := range request.Attributes {
		if a.Type.Required() {
			return to
		}
	}
	if request.Contains(stun.AttrFingerprint) && stun.Fingerprint.Check(request) != nil {
		return to
	}
	answer, err := stun.Build(stun.NewTransactionIDSetter(request.TransactionID), stun.BindingSuccess,
		&stun.XORMappedAddress{IP: from.Addr().AsSlice(), Port: int(from.Port())})
	if err != nil || len(answer.Raw) > len(datagram) {
		return to
	}
	return append(to, answer.Raw...)
}

// Listen opens the socket.
func Listen(ctx context.Context, address string) (*net.UDPConn, error) {
	var lc net.ListenConfig
	conn, err := lc.ListenPacket(ctx, "udp", address)
	if err != nil {
		return nil, err
	}
	udp, ok := conn.(*net.UDPConn)
	if !ok {
		return nil, fmt.Errorf("%s gave a %T", address, conn)
	}
	return udp, nil
}
