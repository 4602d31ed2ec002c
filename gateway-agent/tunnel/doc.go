// Package tunnel joins gateways and relays by WireGuard, so that a camera's datagram can be copied in the network instead of at home (SPEC §9).
//
// In the tunnel the datagram travels unchanged, as IPv4 in IPv6 (RFC 2473): from the premises' tunnel address to the relay's. WireGuard lets a peer use no
// other source address than the one /128 that it was given with its key, so the source address proves the premises, whatever the IPv4 header inside says.
//
// What doesn't fit the tunnel's MTU is fragmented by the host at the IPv6 level (RFC 2473 §7.1) and put together by the host at the other end.
// So the outer UDP datagrams never need fragments, which NATs and firewalls on the way like to drop.
//
// The kernel's WireGuard is used where there is one, else golang.zx2c4.com/wireguard on a tun device. Nothing is routed: what comes out of the tunnel and is not IPv4
// in IPv6 for this host goes nowhere.
package tunnel
