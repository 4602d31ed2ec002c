// Package udpbuffer gives sockets that receive video room for a burst: one key frame to several hundred datagrams.
package udpbuffer

import (
	"net"

	"golang.org/x/sys/unix"
)

// Size is the room asked for, in bytes.
const Size = 4 << 20

// Enlarge asks for Size. Without CAP_NET_ADMIN the system's limit (net.core.rmem_max) applies, which is no error: it is enough
// for a receiver that reads at once.
func Enlarge(conn *net.UDPConn) {
	raw, err := conn.SyscallConn()
	if err != nil {
		return
	}
	_ = raw.Control(func(fd uintptr) {
		if unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, Size) != nil {
			_ = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUF, Size)
		}
	})
}
