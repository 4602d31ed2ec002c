// Package lan makes the kernel answer ARP on the LAN for the group IPs that are allocated, deliver their datagrams to this host,
// and drop everything else that is sent to the group range. It owns two routing rules and one routing table, and touches
// nothing else of the host's network: no address, no neighbour, no setting.
//
// What it installs, all under routing protocol 147, so that it recognises its own:
//
//	ip rule  pref 147 iif <lan> lookup 147       group IPs are local, but only for what comes in from the LAN
//	ip route table 147: local <group IP> dev lo  one per allocated group IP
//	ip rule  pref 148 to <group range> blackhole one per prefix of the range, whoever sends
//
// The kernel answers an ARP request if its own routing says that the address is local for a packet from there. So the local
// routes are the ARP answers. A group IP of nobody has no route, gets no answer, and a datagram that comes all the same falls
// through to the blackhole.
//
// The blackholes are rules and not routes in the table, because they have to hold for every interface and also for what this
// host sends itself. They are put in place first and are never removed by the agent: neither a clean stop nor a crash
// may open a way from the group range to the uplink. Close removes the local routes only, so that no ARP is answered for streams that
// nobody copies; after a crash they stay until the next Open, which starts from none. Block puts the blackholes alone in place, at the
// start of the host; Unblock removes all, for whoever uninstalls the agent.
//
// On loopback all of 127/8 is local anyway: nothing is installed there, and no privilege is needed.
package lan
