//go:build !mipsle

package tunnel

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// Possible tells why this process can't have a tunnel; nil: nothing is known that keeps it from one. It makes no interface.
func Possible() error {
	if f, err := os.OpenFile("/dev/net/tun", os.O_RDWR, 0); err == nil {
		_ = f.Close()
	} else if _, module := os.Stat("/sys/module/wireguard"); module != nil {
		return fmt.Errorf("%w: load the kernel's module wireguard or tun, and let the agent use it", err)
	}
	for domain, protocol := range map[int]int{unix.AF_INET6: unix.IPPROTO_IPIP, unix.AF_PACKET: 0} {
		fd, err := unix.Socket(domain, unix.SOCK_RAW|unix.SOCK_CLOEXEC, protocol)
		switch {
		case errors.Is(err, unix.EPERM):
			return fmt.Errorf("%w: the tunnel needs CAP_NET_RAW and CAP_NET_ADMIN; run the agent as root or give it those capabilities", err)
		case errors.Is(err, unix.EAFNOSUPPORT):
			return fmt.Errorf("%w: the tunnel needs IPv6 and packet sockets in the kernel", err)
		case err != nil:
			return fmt.Errorf("open a raw socket: %w", err)
		}
		_ = unix.Close(fd)
	}
	return nil
}
