//go:build !mipsle

package tunnel

import (
	"bufio"
	"encoding/hex"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
	"golang.zx2c4.com/wireguard/conn"
	"golang.zx2c4.com/wireguard/device"
	"golang.zx2c4.com/wireguard/tun"

	"github.com/groupcast/groupcast/models"
)

// user is golang.zx2c4.com/wireguard on a tun device. Both end with the process, however that ends.
type user struct{ device *device.Device }

func openUser(c Config) (backend, error) {
	native, err := tun.CreateTUN(c.Name, MTU)
	switch {
	case errors.Is(err, os.ErrNotExist), errors.Is(err, unix.ENODEV), err != nil && strings.Contains(err.Error(), "does not exist"):
		return nil, fmt.Errorf("%w: load the kernel's module tun or wireguard", err)
	case errors.Is(err, unix.EACCES):
		return nil, fmt.Errorf("%w: let the agent's user open /dev/net/tun (mode 0666, as udev has it), or load the kernel's module wireguard", err)
	case errors.Is(err, unix.EBUSY):
		return nil, fmt.Errorf("%w: another program has the interface %s: does another agent run here?", err, c.Name)
	case err != nil:
		return nil, fmt.Errorf("make the tun device %s: %w", c.Name, err)
	}
	u := &user{device.NewDevice(&strict{Device: native, address: c.Address}, conn.NewStdNetBind(), &device.Logger{
		Verbosef: device.DiscardLogf,
		Errorf:   func(format string, args ...any) { c.Log.Debug("wireguard", "says", fmt.Sprintf(format, args...)) },
	})}
	key := c.Key.bytes()
	err = u.device.IpcSet(fmt.Sprintf("private_key=%x\nlisten_port=%d\n", key, c.Port))
	if err == nil {
		err = u.device.Up()
	}
	if err != nil {
		return nil, errors.Join(err, u.close())
	}
	return u, nil
}

func (u *user) set(leave []models.TunnelKey, come []Peer) error {
	var b strings.Builder
	for _, key := range leave {
		fmt.Fprintf(&b, "public_key=%s\nremove=true\n", hex.EncodeToString(key[:]))
	}
	for _, p := range come {
		fmt.Fprintf(&b, "public_key=%s\nreplace_allowed_ips=true\nallowed_ip=%s/128\n", hex.EncodeToString(p.Key[:]), p.Address)
		if p.Endpoint.IsValid() {
			fmt.Fprintf(&b, "endpoint=%s\npersistent_keepalive_interval=%d\n", p.Endpoint, int(KeepAlive.Seconds()))
		}
	}
	return u.device.IpcSet(b.String())
}

func (u *user) peers() (map[models.TunnelKey]PeerStatus, error) {
	text, err := u.device.IpcGet()
	if err != nil {
		return nil, err
	}
	all := map[models.TunnelKey]PeerStatus{}
	var key models.TunnelKey
	var seconds int64
	lines := bufio.NewScanner(strings.NewReader(text))
	for lines.Scan() {
		name, value, _ := strings.Cut(lines.Text(), "=")
		s := all[key]
		var err error
		switch name {
		case "public_key":
			var b []byte
			if b, err = hex.DecodeString(value); err == nil && len(b) == len(key) {
				key, s = models.TunnelKey(b), PeerStatus{}
			}
		case "endpoint":
			s.Endpoint, err = netip.ParseAddrPort(value)
		case "last_handshake_time_sec":
			seconds, err = strconv.ParseInt(value, 10, 64)
		case "last_handshake_time_nsec":
			var nanos int64
			if nanos, err = strconv.ParseInt(value, 10, 64); seconds != 0 {
				s.Handshake = time.Unix(seconds, nanos)
			}
		case "rx_bytes":
			s.Received, err = strconv.ParseUint(value, 10, 64)
		case "tx_bytes":
			s.Sent, err = strconv.ParseUint(value, 10, 64)
		default:
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("%s is not what WireGuard says", name)
		}
		all[key] = s
	}
	delete(all, models.TunnelKey{}) // what stood before the first peer is about this host
	return all, nil
}

func (u *user) close() error {
	u.device.Close()
	return nil
}

// strict lets nothing out of the tunnel but IPv4 in IPv6 for this host, and fragments of that: no peer reaches anything else here.
type strict struct {
	tun.Device
	address netip.Addr
	refused atomic.Uint64
}

const (
	ipv6Header     = 40
	protoIPv4      = 4
	protoFragment  = 44
	fragmentHeader = 8
)

// Write passes on what may come in. The device writes from one goroutine per peer, so nothing is kept between calls.
func (s *strict) Write(packets [][]byte, offset int) (int, error) {
	passed := packets
	for i, p := range packets {
		if s.passes(p[offset:]) {
			continue
		}
		passed = append([][]byte(nil), packets[:i]...)
		for _, p := range packets[i:] {
			if s.passes(p[offset:]) {
				passed = append(passed, p)
				continue
			}
			s.refused.Add(1)
		}
		break
	}
	if len(passed) == 0 {
		return len(packets), nil
	}
	if _, err := s.Device.Write(passed, offset); err != nil {
		return 0, err
	}
	return len(packets), nil
}

func (s *strict) passes(p []byte) bool {
	if len(p) < ipv6Header || p[0]>>4 != 6 || netip.AddrFrom16([16]byte(p[24:40])) != s.address {
		return false
	}
	switch p[6] {
	case protoIPv4:
		return true
	case protoFragment:
		return len(p) >= ipv6Header+fragmentHeader && p[ipv6Header] == protoIPv4
	}
	return false
}
