package camera

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/netip"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/groupcast/groupcast/gateway-agent/packet"
	"github.com/groupcast/groupcast/gateway-agent/tunnel"
	"github.com/groupcast/groupcast/internal/refusal"
	"github.com/groupcast/groupcast/models"
	"github.com/groupcast/groupcast/openapi/api"
	"github.com/groupcast/groupcast/openapi/client"
)

const (
	tunnelWait = 50 * time.Second // of one long poll, at most
	reserve    = 10 * time.Second // for everything in a call that is not waiting
	firstRetry = time.Second
	lastRetry  = 15 * time.Second
)

// errNoWay says that there is no relay, or nobody who wants copies.
var errNoWay = errors.New("nobody copies now")

// Tunnel is a camera's own end of a tunnel to whatever relay copies for it (docs/adr/0076): its premises has no gateway. Datagrams go into it as a gateway would forward
// them, IPv4 in IPv6, and none goes anywhere else.
type Tunnel struct {
	client *client.ClientWithResponses
	device models.ID
	key    tunnel.PrivateKey
	from   netip.AddrPort
	option bool
	log    *slog.Logger
	id     atomic.Uint32
	way    atomic.Pointer[way]
	found  chan struct{} // closed once there was a way
	once   sync.Once

	mu     sync.Mutex // those below
	tunnel *tunnel.Tunnel
	state  string    // what was logged last
	until  time.Time // what the service said holds
}

// way is where datagrams go.
type way struct {
	*net.IPConn
	relay net.IPAddr
	until time.Time
}

// OpenTunnel reads this host's key from a file, or makes one, and opens nothing yet. The datagrams are to come from an address and port; port 0 is a drawn one.
func OpenTunnel(c *client.ClientWithResponses, device models.ID, keyFile string, from netip.AddrPort, option bool, log *slog.Logger) (*Tunnel, error) {
	if err := tunnel.Possible(); err != nil {
		return nil, fmt.Errorf("--tunnel: %w", err)
	}
	key, err := tunnel.LoadKey(keyFile)
	if err != nil {
		return nil, fmt.Errorf("--tunnel: %w", err)
	}
	if from.Port() == 0 {
		from = netip.AddrPortFrom(from.Addr(), uint16(32768+rand.N(28000)))
	}
	return &Tunnel{client: c, device: device, key: key, from: from, option: option, log: log, found: make(chan struct{})}, nil
}

// Declare tells the service the key and the address. It comes before the camera registers.
func (t *Tunnel) Declare(ctx context.Context) error {
	answer, err := t.client.DeclareTunnelWithResponse(ctx, t.device, api.TunnelDeclaration{TunnelKey: t.key.Public(), PrivateIPv4: t.from.Addr()})
	if err == nil {
		err = refusal.Check(answer, answer.HTTPResponse.Header)
	}
	if err != nil {
		return fmt.Errorf("declare the tunnel: %w", err)
	}
	return nil
}

// Follow keeps the tunnel going to the relay that the service names, until ctx is done; then the tunnel is gone. What the service said holds for maxStaleSeconds.
func (t *Tunnel) Follow(ctx context.Context) {
	stale := time.AfterFunc(time.Hour, t.expire)
	defer t.close()
	defer stale.Stop()
	var held api.TunnelInformation
	index, retry := "", firstRetry
	for ctx.Err() == nil {
		info, err := t.poll(ctx, index, time.Duration(held.MaxStaleSeconds)*time.Second)
		if err == nil {
			another := held.Epoch != "" && held.Epoch != info.Epoch
			held = info
			maxStale := time.Duration(info.MaxStaleSeconds) * time.Second
			stale.Reset(maxStale)
			err = t.apply(ctx, info, time.Now().Add(maxStale))
			if err == nil && another { // another life of the service's database may know another key
				err = t.Declare(ctx)
			}
			if err == nil {
				index, retry = info.Epoch+"."+info.Revision, firstRetry
				continue
			}
		}
		if ctx.Err() != nil {
			return
		}
		t.log.Error("where the tunnel goes isn't known; trying again", "error", err, "in", retry)
		if refused, ok := errors.AsType[*refusal.Error](err); ok && refused.Status == 404 { // a gateway took its place, and may be gone again
			t.stop()
			if err := t.Declare(ctx); err != nil {
				t.log.Error("the tunnel can't be declared", "error", err)
			}
		}
		select {
		case <-ctx.Done():
		case <-time.After(retry):
		}
		index, retry = "", min(2*retry, lastRetry)
	}
}

// expire ends what the service said, unless it has said it again.
func (t *Tunnel) expire() {
	t.mu.Lock()
	defer t.mu.Unlock()
	if time.Now().Before(t.until) {
		return
	}
	t.stopLocked()
	t.tellLocked("the service was not heard from for too long: nothing is sent until it answers")
}

// poll asks where the tunnel goes. What it held before is said again several times before it is over.
func (t *Tunnel) poll(ctx context.Context, index string, maxStale time.Duration) (api.TunnelInformation, error) {
	params := &api.GetTunnelInformationParams{}
	limit := reserve
	if index != "" {
		wait := max(min(tunnelWait, maxStale/3), time.Second)
		seconds := int32(wait / time.Second)
		params.Index, params.Wait = &index, &seconds
		limit += wait + wait/16 // the service spreads its answers over a sixteenth
	}
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	answer, err := t.client.GetTunnelInformationWithResponse(ctx, t.device, params)
	if err == nil {
		err = refusal.Check(answer, answer.HTTPResponse.Header)
	}
	switch {
	case err != nil:
		return api.TunnelInformation{}, err
	case answer.JSON200 == nil || answer.JSON200.MaxStaleSeconds < 1:
		return api.TunnelInformation{}, errors.New("the service answered something else than where the tunnel goes")
	}
	return *answer.JSON200, nil
}

// apply has datagrams go to the relay that copies, or nowhere, and nowhere after that time.
func (t *Tunnel) apply(ctx context.Context, info api.TunnelInformation, until time.Time) error {
	r := info.Relay
	switch {
	case info.Fanout != models.FanoutNetwork:
		t.stop()
		t.tell("nobody copies: the account holder has to set fanout to network for this premises")
		return nil
	case r == nil, !r.Forwarding:
		t.stop()
		t.tell("waiting for a relay")
		return nil
	case !info.Needed:
		t.stop()
		t.tell("there is no destination: nothing is sent")
		return nil
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.until = until
	if t.tunnel != nil && t.tunnel.Address() != r.OwnTunnelAddress {
		t.closeLocked()
	}
	if t.tunnel == nil {
		var err error
		// The name is the device's, so that several cameras may be on one host.
		name := "gc" + strconv.FormatInt(int64(t.device), 36)
		t.tunnel, err = tunnel.Open(tunnel.Config{Name: name, Key: t.key, Address: r.OwnTunnelAddress, Log: t.log}) //nolint:contextcheck // what it calls ends by itself
		if err != nil {
			t.tunnel = nil
			return err
		}
	}
	relay := tunnel.Peer{Key: r.TunnelKey, Address: r.TunnelAddress, Endpoint: netip.AddrPortFrom(r.EndpointIPv4, uint16(r.EndpointPort))}
	if err := t.tunnel.Apply([]tunnel.Peer{relay}); err != nil {
		return err
	}
	next := &way{relay: net.IPAddr{IP: r.TunnelAddress.AsSlice()}, until: until}
	if before := t.way.Load(); before != nil {
		next.IPConn = before.IPConn
	} else {
		var err error
		if next.IPConn, err = openInner(ctx, t.tunnel); err != nil {
			return err
		}
	}
	t.way.Store(next)
	t.once.Do(func() { close(t.found) })
	t.tellLocked("sending to a relay", "relay", r.RelayID.String())
	return nil
}

// openInner opens what sends IPv4 in IPv6 (protocol 4) in the tunnel and nowhere else.
func openInner(ctx context.Context, t *tunnel.Tunnel) (*net.IPConn, error) {
	bind := net.ListenConfig{Control: func(_, _ string, raw syscall.RawConn) error {
		var bound error
		err := raw.Control(func(fd uintptr) { bound = unix.BindToDevice(int(fd), t.Interface()) })
		return errors.Join(err, bound)
	}}
	conn, err := bind.ListenPacket(ctx, "ip6:4", t.Address().String())
	if err != nil {
		return nil, fmt.Errorf("open a raw socket in the tunnel: %w", err)
	}
	return conn.(*net.IPConn), nil //nolint:forcetypeassert // of that network it is one
}

// stop sends nothing more, and leaves the interface up.
func (t *Tunnel) stop() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.stopLocked()
}

func (t *Tunnel) stopLocked() {
	if w := t.way.Swap(nil); w != nil {
		_ = w.Close() // what is being sent fails, as on a network
	}
	if t.tunnel != nil {
		if err := t.tunnel.Apply(nil); err != nil {
			t.log.Error("the tunnel can't be set", "error", err)
		}
	}
}

func (t *Tunnel) close() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.closeLocked()
}

func (t *Tunnel) closeLocked() {
	t.stopLocked()
	if t.tunnel == nil {
		return
	}
	if err := t.tunnel.Close(); err != nil {
		t.log.Error("the tunnel's interface can't be removed", "error", err)
	}
	t.tunnel = nil
}

func (t *Tunnel) tell(state string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.tellLocked(state)
}

func (t *Tunnel) tellLocked(state string, more ...any) {
	if now := fmt.Sprint(state, more); now != t.state {
		t.state = now
		t.log.Info("tunnel: "+state, more...) //nolint:sloglint // one of five sentences of this file
	}
}

// send puts one datagram into the tunnel; errNoWay while nobody copies.
func (t *Tunnel) send(payload []byte, to netip.AddrPort) error {
	w := t.way.Load()
	if w == nil || !time.Now().Before(w.until) {
		return errNoWay
	}
	whole, err := datagram(t.from, to, uint16(t.id.Add(1)), t.option, payload)
	if err != nil {
		return err
	}
	if _, err = w.WriteTo(whole, &w.relay); errors.Is(err, net.ErrClosed) {
		return errNoWay
	}
	return err
}

// datagram is a UDP datagram over IPv4, with the option that asks for copies (SPEC §9), as the kernel would make it on a link of any size.
func datagram(from, to netip.AddrPort, id uint16, option bool, payload []byte) ([]byte, error) {
	header := 20
	if option {
		header = 28 // the option takes six bytes, and two end the list
	}
	length := header + 8 + len(payload)
	if length > 1<<16-1 {
		return nil, fmt.Errorf("%d bytes are too many for a datagram", len(payload))
	}
	b := make([]byte, header+8, length)
	b[0], b[8], b[9] = 4<<4|byte(header/4), 64, unix.IPPROTO_UDP
	binary.BigEndian.PutUint16(b[2:], uint16(length))
	binary.BigEndian.PutUint16(b[4:], id)
	copy(b[12:], from.Addr().AsSlice())
	copy(b[16:], to.Addr().AsSlice())
	if option {
		b[20], b[21] = packet.OptionType, packet.OptionLength
		copy(b[22:], from.Addr().AsSlice())
	}
	udp := b[header:]
	binary.BigEndian.PutUint16(udp, from.Port())
	binary.BigEndian.PutUint16(udp[2:], to.Port())
	binary.BigEndian.PutUint16(udp[4:], uint16(8+len(payload)))
	b = append(b, payload...)
	udp = b[header:]
	pseudo := sum(b[12:20], unix.IPPROTO_UDP+uint32(len(udp))) // RFC 768
	checksum := ^fold(sum(udp, pseudo))
	if checksum == 0 {
		checksum = 0xffff
	}
	binary.BigEndian.PutUint16(udp[6:], checksum)
	binary.BigEndian.PutUint16(b[10:], ^fold(sum(b[:header], 0)))
	return b, nil
}

// sum adds the 16-bit words of b to what was added before (RFC 1071); 64 KiB don't overflow.
func sum(b []byte, before uint32) uint32 {
	for ; len(b) > 1; b = b[2:] {
		before += uint32(b[0])<<8 | uint32(b[1])
	}
	if len(b) > 0 {
		before += uint32(b[0]) << 8
	}
	return before
}

func fold(sum uint32) uint16 {
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return uint16(sum)
}
