// Package stunfilter has the kernel keep everything but STUN from a socket: what doesn't begin with a byte of 0 to 3 and has the magic cookie
// (RFC 7983, RFC 8489 §5) costs a program that only wants checks nothing, however much media comes to the same port. Linux only.
package stunfilter

import "golang.org/x/sys/unix"

const (
	accept, drop = 0xffffffff, 0
	udpHeader    = 8
	cookie       = 0x2112A442
)

// OnUDP is for a UDP socket.
func OnUDP(fd int) error {
	// A filter of such a socket sees the datagram from its UDP header on.
	return attach(fd, append([]unix.SockFilter{{Code: unix.BPF_LDX | unix.BPF_W | unix.BPF_IMM}}, stun...))
}

// OnRaw is for a raw socket that sees all UDP datagrams: it takes those to the port only. Over IPv4 such a socket sees the IP header, too; over IPv6 it doesn't.
func OnRaw(fd int, port uint16, ipHeader bool) error {
	begin := unix.SockFilter{Code: unix.BPF_LDX | unix.BPF_W | unix.BPF_IMM}
	if ipHeader {
		begin.Code = unix.BPF_LDX | unix.BPF_B | unix.BPF_MSH // its length
	}
	return attach(fd, append([]unix.SockFilter{
		begin,
		{Code: unix.BPF_LD | unix.BPF_H | unix.BPF_IND, K: 2},
		{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, Jt: 1, K: uint32(port)},
		{Code: unix.BPF_RET | unix.BPF_K, K: drop},
	}, stun...))
}

// stun looks at what is behind a UDP header that begins where the X register says. What is too short is dropped by the first load beyond its end.
var stun = []unix.SockFilter{
	{Code: unix.BPF_LD | unix.BPF_B | unix.BPF_IND, K: udpHeader},
	{Code: unix.BPF_JMP | unix.BPF_JGE | unix.BPF_K, Jt: 3, K: 4},
	{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_IND, K: udpHeader + 4},
	{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, Jf: 1, K: cookie},
	{Code: unix.BPF_RET | unix.BPF_K, K: accept},
	{Code: unix.BPF_RET | unix.BPF_K, K: drop},
}

func attach(fd int, program []unix.SockFilter) error {
	return unix.SetsockoptSockFprog(fd, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, &unix.SockFprog{Len: uint16(len(program)), Filter: &program[0]})
}
