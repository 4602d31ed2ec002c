//go:build !mipsle

package tunnel

import (
	"errors"
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// Built tells whether this build of the agent has a tunnel at all.
const Built = true

// Lack is something that this process needs for a tunnel and hasn't got.
type Lack struct {
	What string // "CAP_NET_RAW", for example
	Why  error
	Do   string
}

// Possible tells why this process can't forward to a relay; nil: nothing is known that keeps it from that. It makes no interface.
func Possible() error {
	var errs []error
	for _, l := range Lacks(true) {
		errs = append(errs, fmt.Errorf("%s: %w: %s", l.What, l.Why, l.Do))
	}
	return errors.Join(errs...)
}

const unitHint = "run it as root or give it that; the package has what systemd needs for it (docs/adr/0078)"

// Lacks gives all that is missing for a tunnel, and for what a gateway sends there if this is to be one.
func Lacks(gateway bool) (all []Lack) {
	if f, err := os.OpenFile("/dev/net/tun", os.O_RDWR, 0); err == nil {
		_ = f.Close()
	} else if _, module := os.Stat("/sys/module/wireguard"); module != nil {
		do := "load the kernel's module wireguard or tun (modprobe wireguard)"
		if errors.Is(err, unix.EPERM) || errors.Is(err, unix.EACCES) {
			do = "load the kernel's module wireguard (modprobe wireguard), or let the agent open /dev/net/tun: " + unitHint
		}
		all = append(all, Lack{"WireGuard", fmt.Errorf("the kernel's isn't there, and for the agent's own: %w", err), do})
	}
	if !administers() {
		all = append(all, Lack{"CAP_NET_ADMIN", errors.New("without it no interface can be made"), unitHint})
	}
	if err := raw(unix.AF_INET6, unix.IPPROTO_IPIP); errors.Is(err, unix.EAFNOSUPPORT) {
		all = append(all, Lack{"IPv6", errors.New("this kernel has none, and inside the tunnel is nothing else"), "load the kernel's module ipv6, or remove ipv6.disable=1 from its command line"})
	} else if err != nil {
		all = append(all, Lack{"CAP_NET_RAW", fmt.Errorf("a raw socket in the tunnel can't be opened: %w", err), unitHint})
	}
	if b, err := os.ReadFile("/proc/sys/net/ipv6/conf/default/disable_ipv6"); err == nil && strings.TrimSpace(string(b)) == "1" {
		all = append(all, Lack{"IPv6", errors.New("it is turned off for new interfaces"), "sysctl -w net.ipv6.conf.default.disable_ipv6=0"})
	}
	if !gateway {
		return all
	}
	if err := raw(unix.AF_PACKET, 0); err != nil {
		all = append(all, Lack{"AF_PACKET", fmt.Errorf("what cameras send can't be taken: %w", err), unitHint})
	}
	return all
}

func raw(domain, protocol int) error {
	fd, err := unix.Socket(domain, unix.SOCK_RAW|unix.SOCK_CLOEXEC, protocol)
	if err == nil {
		err = unix.Close(fd)
	}
	return err
}

func administers() bool {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	err := unix.Capget(&header, &data[0])
	return err == nil && data[0].Effective&(1<<unix.CAP_NET_ADMIN) != 0
}
