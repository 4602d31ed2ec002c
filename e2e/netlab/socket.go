package netlab

import (
	"net"
	"unsafe"

	"golang.org/x/sys/unix"
)

const receiveBuffer = 64 << 20

// forceBuffer goes beyond net.core.rmem_max, which root may.
func forceBuffer(conn *net.UDPConn) error {
	raw, err := conn.SyscallConn()
	if err != nil {
		return err
	}
	var setErr error
	err = raw.Control(func(fd uintptr) {
		setErr = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, receiveBuffer)
	})
	if err != nil {
		return err
	}
	return setErr
}

// checksumOffload turns transmit checksum offload on or off, and with it segmentation offload.
func checksumOffload(iface string, on bool) error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)

	value := struct{ cmd, data uint32 }{cmd: unix.ETHTOOL_STXCSUM}
	if on {
		value.data = 1
	}
	request := struct {
		name [unix.IFNAMSIZ]byte
		data unsafe.Pointer
		_    [16]byte
	}{data: unsafe.Pointer(&value)}
	copy(request.name[:unix.IFNAMSIZ-1], iface)
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.SIOCETHTOOL, uintptr(unsafe.Pointer(&request)))
	if errno != 0 {
		return errno
	}
	return nil
}

// ifaFlags spares IPv6 addresses the second or two of duplicate address detection.
func ifaFlags(ip net.IP) int {
	if ip.To4() != nil {
		return 0
	}
	return unix.IFA_F_NODAD
}

func htons(v uint16) uint16 { return v<<8 | v>>8 }
