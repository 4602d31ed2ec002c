package duplicator

import (
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"time"

	"github.com/groupcast/groupcast/gateway-agent/packet"
	"github.com/groupcast/groupcast/gateway-agent/sender"
	"github.com/groupcast/groupcast/gateway-agent/table"
	"github.com/groupcast/groupcast/models"
)

// Duplicator is what every backend does; there are more than one because kernels differ.
type Duplicator interface {
	// Apply makes the snapshot the one in force. A datagram is copied by the old snapshot or by the new one, never by a mix. Nil
	// stands for no groups. An error names the groups that can't be served; the others are. Only with an error that wraps
	// ErrNotApplied is the snapshot not in force at all.
	Apply(*table.Snapshot) error
	// Counters gives what was counted since the start.
	Counters() Counters
	// Close frees what this process holds, and stops its copying. What a backend left in the kernel for the agent's successor
	// ends by itself within the time that the backend says.
	Close() error
}

// Config is how a backend copies.
type Config struct {
	// GroupRange holds the group IPs of this gateway. Groups outside are refused, and so are destinations inside.
	GroupRange models.AddrRange
	// Uplink is the IPv4 address of this host that copies are sent from.
	Uplink netip.Addr
	// Ports are the UDP ports of a group IP that cameras send to. Default: 5004.
	Ports []uint16
	// AnyPort has every UDP port of a group IP seen, whatever Ports says. The socket backend needs Linux 5.9, CAP_BPF and CAP_NET_ADMIN for it.
	AnyPort bool
	// CopyOptions says what the copies carry in place of the camera's options. Default: packet.Strip.
	CopyOptions packet.CopyOptions
	// DestinationRate is what the copies for one destination may take, in bits per second with IP headers; 0: no limit. See pace.go.
	DestinationRate uint64
	// Heard takes the STUN that destinations send to a port that their copies leave from, where it comes to a socket of the backend; nil: it is
	// dropped. The ports are reserved by package sender, which hears the rest.
	Heard sender.Heard
	// Answered are sockets that hold reserved ports: the network's answers to what the kernel sends from there arrive at them.
	Answered func(each func(fd int))
	// Permit tells which hosts may get copies at all, whether they consented or nobody asks them; nil: all but those that a backend refuses
	// by itself.
	Permit func(netip.Addr) bool
	// AllowLoopback permits destinations in 127/8, for the demo.
	AllowLoopback bool
	// MaxStale is how long a snapshot may be used after Apply, whatever its ValidUntil says; it guards against a wall clock that
	// is wrong. Default: 15 minutes.
	MaxStale time.Duration
	// StreamIdle is how long a camera stream keeps its sockets, and so its source port, without a datagram. Default: 5 minutes.
	StreamIdle time.Duration
	// MaxStreams bounds the camera streams at a time over all groups. Default: 256.
	MaxStreams int
	// Log takes what an operator needs to know. It never gets a destination's address. Default: slog.Default.
	Log *slog.Logger

	relay bool // group IPs are those of many homes
}

// ErrNotApplied is wrapped by the errors of Apply that leave the snapshot before in force.
var ErrNotApplied = errors.New("the snapshot is not in force")

// Complete gives the configuration with its defaults, or says everything that is wrong with it.
func (c Config) Complete() (Config, error) {
	c = c.withDefaults()
	if err := c.validate(); err != nil {
		return Config{}, fmt.Errorf("duplicator: %w", err)
	}
	return c, nil
}

func (c Config) withDefaults() Config {
	if len(c.Ports) == 0 {
		c.Ports = []uint16{5004}
	}
	c.Ports = slices.Compact(slices.Sorted(slices.Values(c.Ports)))
	if c.CopyOptions == "" {
		c.CopyOptions = packet.Strip
	}
	if c.MaxStale == 0 {
		c.MaxStale = 15 * time.Minute
	}
	if c.StreamIdle == 0 {
		c.StreamIdle = 5 * time.Minute
	}
	if c.MaxStreams == 0 {
		c.MaxStreams = 256
	}
	if c.Log == nil {
		c.Log = slog.Default()
	}
	return c
}

func (c Config) validate() error {
	var errs []error
	if c.GroupRange.Size() == 0 && !c.relay {
		errs = append(errs, fmt.Errorf("group range %s is not a range of IPv4 addresses; give first-last", c.GroupRange))
	}
	if !c.Uplink.Is4() || c.Uplink.IsUnspecified() || c.Uplink.IsMulticast() {
		errs = append(errs, fmt.Errorf("uplink %s is not an IPv4 address of a host; give the address that copies are sent from",
			c.Uplink))
	}
	if slices.Contains(c.Ports, 0) {
		errs = append(errs, errors.New("media port 0 is not a port; give 1 to 65535"))
	}
	if c.CopyOptions != packet.Strip && c.CopyOptions != packet.NOP {
		errs = append(errs, fmt.Errorf("copy options %q are unknown; give %q or %q", c.CopyOptions, packet.Strip, packet.NOP))
	}
	if c.MaxStale < 0 || c.StreamIdle < 0 || c.MaxStreams < 0 {
		errs = append(errs, errors.New("the staleness limit, the idle time and the number of streams can't be negative"))
	}
	return errors.Join(errs...)
}
