package duplicator

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// ProbeReceiveBuffer gives how many bytes the kernel grants this process for what cameras send and the agent has not read yet, and how many the
// socket backend asks for.
func ProbeReceiveBuffer() (granted, wanted int, err error) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return 0, receiveBuffer, fmt.Errorf("open a UDP socket: %w", err)
	}
	defer unix.Close(fd)
	if err := prepareListener(fd, true); err != nil {
		return 0, receiveBuffer, fmt.Errorf("prepare a UDP socket for options and group IPs: %w", err)
	}
	granted, err = unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF)
	return granted / 2, receiveBuffer, err // the kernel doubles what it grants, for its own bookkeeping
}

// ProbeRing says why the socket backend has to send a datagram that came alone by a system call for each destination; nil if one will do for all.
func ProbeRing() error {
	r, err := openRing()
	if err == nil {
		r.free()
	}
	return err
}
