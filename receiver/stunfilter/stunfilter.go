// Package stunfilter has the kernel keep everything but STUN from a socket: what doesn't begin with a byte of 0 to 3 and has the magic cookie
// (RFC 7983, RFC 8489 §5) costs a program that only wants checks nothing, however much media comes to the same port. Linux only.
package stunfilter

import (
	"slices"

	"golang.org/x/sys/unix"
)

const (
	accept, drop = 0xffffffff, 0
	udpHeader    = 8
	cookie       = 0x2112A442
)

// OnUDP is for a UDP socket.
func OnUDP(fd int) error { return attach(fd, atStart, stun) }

// OnRaw4 is for a raw socket that sees all UDP datagrams over IPv4: it takes those to the port only.
func OnRaw4(fd int, port uint16) error { return attach(fd, behindIPv4, to(port), stun) }

// OnRaw6 is the same over IPv6.
func OnRaw6(fd int, port uint16) error { return attach(fd, atStart, to(port), stun) }

// The X register says where the UDP header begins. A UDP socket's filter and that of a raw socket over IPv6 see the datagram from there on, one over
// IPv4 from the IP header on.
var (
	atStart    = []unix.SockFilter{{Code: unix.BPF_LDX | unix.BPF_W | unix.BPF_IMM}}
	behindIPv4 = []unix.SockFilter{{Code: unix.BPF_LDX | unix.BPF_B | unix.BPF_MSH}}
)

func to(port uint16) []unix.SockFilter {
	return []unix.SockFilter{
		{Code: unix.BPF_LD | unix.BPF_H | unix.BPF_IND, K: 2},
		{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, Jt: 1, K: uint32(port)},
		{Code: unix.BPF_RET | unix.BPF_K, K: drop},
	}
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

func attach(fd int, parts ...[]unix.SockFilter) error {
	program := slices.Concat(parts...)
	return unix.SetsockoptSockFprog(fd, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, &unix.SockFprog{Len: uint16(len(program)), Filter: &program[0]})
}
