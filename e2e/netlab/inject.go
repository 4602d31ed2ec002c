package netlab

import (
	"golang.org/x/sys/unix"
)

// InjectIPv4 sends a whole IPv4 packet as it stands. The kernel finds the way and the neighbour, fills in the header checksum
// and, if it is 0, the identification; it fragments nothing.
func (n *Namespace) InjectIPv4(packet []byte) {
	n.t.Helper()
	if len(packet) < 20 {
		n.t.Fatalf("%s: inject: %d bytes are no IPv4 packet", n.Name, len(packet))
	}
	var err error
	n.Do(func() { err = sendRaw(packet) })
	if err != nil {
		n.t.Fatalf("%s: inject IPv4 packet: %v", n.Name, err)
	}
}

func sendRaw(packet []byte) error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_RAW)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return unix.Sendto(fd, packet, 0, &unix.SockaddrInet4{Addr: [4]byte(packet[16:20])})
}

// InjectFrame sends whole Ethernet frames as they stand, one right after the other.
func (n *Namespace) InjectFrame(iface string, frames ...[]byte) {
	n.t.Helper()
	index := n.link(iface).Attrs().Index
	var err error
	n.Do(func() { err = sendFrames(index, frames) })
	if err != nil {
		n.t.Fatalf("%s: inject frames: %v", end(n, iface), err)
	}
}

func sendFrames(index int, frames [][]byte) error {
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	for _, frame := range frames {
		if err := unix.Sendto(fd, frame, 0, &unix.SockaddrLinklayer{Ifindex: index}); err != nil {
			return err
		}
	}
	return nil
}
