// Package ebpf is the backend that copies in the kernel: a TCX program on the ingress of the LAN interface (Linux 6.6 and later),
// several times as fast as sockets.
//
// The program (copy.bpf.c) goes by maps that this package fills: group.go turns a snapshot into one inner map per group and swaps
// it in at once; nexthop.go asks the kernel's routing and neighbour tables where each destination is, and follows their changes;
// port.go reserves the source ports; deadline.go keeps pushing forward until when a group or destination may be served, so a program
// whose agent died goes silent by itself; pin.go keeps the program in place while one agent ends and the next one starts.
//
// What the kernel path can't serve is left to a socket backend beside it, which gets a clone of the camera's datagram: IPv6
// destinations, those behind an interface that isn't Ethernet or takes smaller packets than the LAN, and those without a route. Their copies have a source
// port of their own. The two swap one after the other, so for some milliseconds after a change a datagram may go to the old set of
// the one and the new set of the other.
//
// Ports of the group IP other than the configured ones are dropped, unless AnyPort says that there are none but these. A later fragment has no port: as in package packet, its group and source
// decide.
package ebpf

//go:generate ./generate.sh
