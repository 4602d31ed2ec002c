//go:build ignore

// SPDX-License-Identifier: Apache-2.0
//
// copy: TCX program on the ingress of the LAN interface. It copies the datagrams that cameras send to a group IP (SPEC 9). What it
// decides and writes is what package packet does: that is the reference, and the suite in backendtest holds the two together.
//
// A packet that isn't for the group range passes (TCX_NEXT). One that is never passes, except for the clone that is handed over to
// the socket backend, which serves what this program can't.

#include <stdbool.h>
#include <stddef.h>
#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#define TCX_NEXT (-1)
#define TCX_DROP 2

#define MAX_PORTS 16
#define MIN_HEADER 20
#define MAX_HEADER 60
#define UDP_HEADER 8
#define MAX_IPV4 65535
#define OPTION_TYPE 0x88
#define NOP 1 // one no-operation and the end of the list, as it lies in memory
#define OPTION_LENGTH 6
#define SECOND 1000000000ull
#define TICK_BITS 26 // a tick is 67 ms; nine years of them fit

// Marks of clones that come back through the ingress. A mark never comes from the wire.
#define MARK_MASK 0xffff0000
#define MARK_RESOLVE 0x67630000 // the low half is the interface to leave by: the kernel's own neighbour code sends it
#define MARK_SOCKET 0x67640000  // for the socket backend

// Order and number of these are known to counters.go.
enum group_counter {
	G_RECEIVED,
	G_MALFORMED,
	G_STALE,
	G_UNKNOWN_GROUP,
	G_SPOOF,
	G_UNREGISTERED,
	G_UNFLAGGED,
	G_TTL,
	G_STREAMS,
	G_OTHER_PORT,
	G_ERROR,
	G_NOT_UDP,
};
enum destination_counter {
	D_PACKETS,
	D_BYTES,
	D_FULL,
	D_UNREACHABLE,
	D_TOO_BIG,
	D_STALE,
	D_ERROR,
	D_RATE,
};
#define COUNTERS 12

enum kind {
	K_RESOLVED,   // both MAC addresses are known
	K_RESOLVE,    // the next hop's isn't known (yet): the kernel asks for it
	K_UNREACHABLE // the next hop doesn't answer
};

enum trigger { T_OPTION, T_SOURCE };

// slot is an element of a group's inner map: slot 0 is the group (struct group), the others are destinations.
struct slot {
	__be32 addr;
	__be16 port; // 0: the camera's
	__u8 kind;
	__u8 twin; // how many destinations before this one have its address
	__u32 ifindex;
	__u32 index; // of counters and deadlines
	__u32 mtu;
	__u8 mac[12]; // destination, source
	__be32 source; // the one whose datagrams are copied there; 0: all of the group's
};

struct group {
	__u32 destinations;
	__u32 index;
	__u32 version; // of its sources
	__u32 socket;  // 1: the socket backend has destinations of its own
	__u8 pad[20];
};

_Static_assert(sizeof(struct slot) == sizeof(struct group), "both are elements of one map");

struct source_key {
	__be32 group, addr;
	__u32 version;
};

struct stream_key {
	__be32 addr, group;
	__be16 port, group_port;
};

struct stream {
	__u64 used; // boot time
	__be16 port;
	__u8 pad[6];
};

struct counters {
	__u64 n[COUNTERS];
};

struct {
	__uint(type, BPF_MAP_TYPE_HASH_OF_MAPS);
	__uint(max_entries, 512);
	__type(key, __be32);
	__array(
	    values, struct {
		    __uint(type, BPF_MAP_TYPE_ARRAY);
		    __uint(max_entries, 1);
		    __uint(map_flags, BPF_F_INNER_MAP);
		    __uint(key_size, sizeof(__u32));
		    __uint(value_size, sizeof(struct slot));
	    });
} groups SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 32768);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct source_key);
	__type(value, __u32); // enum trigger, and above it the source port in network byte order
} sources SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 256);
	__type(key, struct stream_key);
	__type(value, struct stream);
} streams SEC(".maps");

// Source ports that are reserved and belong to no stream yet, in network byte order.
struct {
	__uint(type, BPF_MAP_TYPE_QUEUE);
	__uint(max_entries, 256);
	__uint(value_size, sizeof(__u32));
} ports SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct counters);
} counts SEC(".maps");

// Boot time in ticks until which a group or destination may be served. A living agent pushes them forward. 32 bits, because every
// machine writes them at once.
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__uint(map_flags, BPF_F_MMAPABLE);
	__type(key, __u32);
	__type(value, __u32);
} deadlines SEC(".maps");

// Boot time until which a destination's copies take its rate if they leave one after the other (pace.go). Two CPUs may overwrite each other's, which
// lets a packet more through.
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u64);
} paces SEC(".maps");

// What the program and the callbacks of bpf_loop read at changing places can't lie on the stack. An IPv4 header and the UDP header after it.
struct scratch {
	__u8 header[MAX_HEADER + UDP_HEADER + 4];
};
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct scratch);
} scratch SEC(".maps");

// Set before loading. Addresses are in host byte order.
const volatile __u32 range_first, range_last;
const volatile __be32 uplink;
const volatile __u16 media_ports[MAX_PORTS];
const volatile __u32 media_port_count; // 0: every port is one
const volatile __u32 nop_options;
const volatile __u64 pace_per_byte; // 1/1024 ns; 0: no rate
const volatile __u64 pace_burst;    // ns

static __always_inline void count(struct counters *c, __u32 i, __u64 n)
{
	if (c && i < COUNTERS)
		c->n[i] += n;
}

static __always_inline struct counters *counters_of(__u32 index) { return bpf_map_lookup_elem(&counts, &index); }

static __always_inline bool in_force(__u32 index, __u64 now)
{
	__u32 *until = bpf_map_lookup_elem(&deadlines, &index);
	return until && (__u32)(now >> TICK_BITS) < *(volatile __u32 *)until;
}

static __always_inline __u32 fold(__u64 s)
{
	s = (s & 0xffffffff) + (s >> 32);
	s = (s & 0xffff) + (s >> 16);
	s = (s & 0xffff) + (s >> 16);
	return (s & 0xffff) + (s >> 16);
}

struct head {
	__u16 mac[6];
	__be16 proto;
	struct iphdr ip;
} __attribute__((packed, aligned(2)));

struct udp {
	__be16 source, dest, len;
	__u16 check;
};

enum checksum {
	C_NONE,    // zero, and stays so
	C_FULL,    // as it is on the wire
	C_PARTIAL, // of the pseudo header only: the sender is on this host and leaves the rest to the device
};

// pass is what the callback of bpf_loop works with.
struct pass {
	struct __sk_buff *skb;
	void *inner;
	__u64 now;
	__u64 bytes;      // UDP payload
	__u32 packets;    // datagrams: 0 for a later fragment, more than one for a super-packet
	__u32 count;      // of destinations
	__u32 sum;        // of the copy's IPv4 header without identification and destination
	__be16 id;        // identification
	__u32 udp;        // offset of the UDP header, 0 for a later fragment
	__u32 size;       // of the IPv4 packet
	__u32 super;      // a super-packet: size isn't that on the wire
	__u64 check;      // of the UDP checksum, without what differs from copy to copy
	enum checksum kind;
	__be16 own_port;  // the camera's
	__be32 source;    // the camera
	__u32 last;       // interface for the original
};

// write_copy writes what differs from copy to copy, straight into the packet: calls of helpers cost more than the writing. The kernel
// keeps the head of a packet writable that was cloned by bpf_clone_redirect.
static __always_inline long write_copy(struct pass *p, struct slot *d)
{
	void *data = (void *)(long)p->skb->data, *end = (void *)(long)p->skb->data_end;
	struct head *h = data;
	if (data + sizeof(*h) > end)
		return -1;
	__be32 addr = d->addr;
	if (p->udp) {
		__be16 port = d->port ?: p->own_port;
		struct udp *u = data + (p->udp & 63);
		if ((void *)(u + 1) > end)
			return -1;
		u->dest = port;
		if (p->kind != C_NONE) {
			__u16 check = p->kind == C_FULL ? ~fold(p->check + addr + port) : fold(p->check + addr);
			u->check = check ?: 0xffff;
		}
	}
	// A receiver couldn't tell the fragments for two of its ports apart if they had one identification.
	__be16 id = p->id ^ bpf_htons((__u16)d->twin << 12);
	h->ip.daddr = addr;
	h->ip.id = id;
	h->ip.check = ~fold((__u64)p->sum + addr + id);
	const __u16 *mac = (const void *)d->mac;
	for (int i = 0; i < 6; i++)
		h->mac[i] = mac[i];
	return 0;
}

static __always_inline bool take(__u32 index, __u64 now, __u32 bytes)
{
	__u64 *until = bpf_map_lookup_elem(&paces, &index);
	if (!until)
		return false;
	__u64 before = *(volatile __u64 *)until;
	if (before > now + pace_burst)
		return false;
	*(volatile __u64 *)until = (before > now ? before : now) + (bytes * pace_per_byte >> 10);
	return true;
}

static long copy_to(__u32 i, struct pass *p)
{
	__u32 slot = i + 1;
	struct slot *d = bpf_map_lookup_elem(p->inner, &slot);
	if (!d)
		return 1;
	struct counters *c = counters_of(d->index);
	__u64 datagrams = p->packets;
	if (d->source && d->source != p->source)
		return 0;
	if (!in_force(d->index, p->now)) {
		count(c, D_STALE, datagrams);
		return 0;
	}
	if (d->kind == K_UNREACHABLE) {
		count(c, D_UNREACHABLE, datagrams);
		return 0;
	}
	if (!p->super && p->size > d->mtu) {
		count(c, D_TOO_BIG, datagrams);
		return 0;
	}
	if (pace_per_byte && !take(d->index, p->now, p->skb->len - ETH_HLEN)) {
		count(c, D_RATE, datagrams);
		return 0;
	}
	if (write_copy(p, d)) {
		count(c, D_ERROR, datagrams);
		return 0;
	}
	__u32 ifindex = d->ifindex;
	long result = 0;
	if (d->kind == K_RESOLVE) {
		p->skb->mark = MARK_RESOLVE | (ifindex & ~MARK_MASK);
		result = bpf_clone_redirect(p->skb, p->skb->ifindex, BPF_F_INGRESS);
		p->skb->mark = 0;
	} else if (slot == p->count) {
		p->last = ifindex;
	} else {
		result = bpf_clone_redirect(p->skb, ifindex, 0);
	}
	if (result == 0 || result == 2 /* NET_XMIT_CN: it was sent */) {
		count(c, D_PACKETS, datagrams);
		count(c, D_BYTES, p->bytes);
	} else {
		count(c, result > 0 ? D_FULL : D_ERROR, datagrams);
	}
	return 0;
}

// read_checksum prepares what write_copy makes of the UDP checksum. A program can't ask whether it is full or partial, but the helper changes
// only a full one for something that is not in the pseudo header.
static __always_inline long read_checksum(struct pass *p, struct udp *u, __be32 camera, __be16 source_port, __be32 group)
{
	__u32 at = p->udp + offsetof(struct udp, check);
	__u16 changed = 0;
	if (!u->check)
		return 0;
	if (bpf_l4_csum_replace(p->skb, at, 0, 1, 2) || bpf_skb_load_bytes(p->skb, at, &changed, 2))
		return -1;
	p->kind = changed == u->check ? C_PARTIAL : C_FULL;
	p->check = (__u64)(__u32)~camera + uplink + (__u32)~group;
	if (p->kind == C_PARTIAL)
		p->check += u->check;
	else
		p->check += (__u64)(__u16)~u->check + (__u16)~u->source + source_port + (__u16)~u->dest;
	return 0;
}

// stream_port gives the source port of a camera stream, or 0 if there are too many streams.
static __always_inline __be16 stream_port(struct stream_key *key, __u64 now)
{
	struct stream *s = bpf_map_lookup_elem(&streams, key);
	if (s) {
		if (now - s->used > SECOND)
			s->used = now;
		return s->port;
	}
	__u32 port = 0;
	if (bpf_map_pop_elem(&ports, &port))
		return 0;
	struct stream fresh = {.used = now, .port = port};
	long err = bpf_map_update_elem(&streams, key, &fresh, BPF_NOEXIST);
	if (!err)
		return port;
	bpf_map_push_elem(&ports, &port, 0);
	s = bpf_map_lookup_elem(&streams, key); // another CPU was first, or there is no room
	return s ? s->port : 0;
}

// search is what the callback of bpf_loop works with that reads one option. A plain loop is beyond what the verifier follows.
struct search {
	__u8 *header;
	__u32 at, length;
	__be32 id;
	bool found, bad;
};

static long next_option(__u32 i, struct search *o)
{
	__u32 at = o->at, length = o->length;
	if (at >= length)
		return 1;
	__u8 type = o->header[at & 63];
	if (type == 0)
		return 1;
	if (type == 1) {
		o->at = at + 1;
		return 0;
	}
	__u32 size = o->header[(at + 1) & 63];
	if (at + 2 > length || size < 2 || at + size > length) {
		o->bad = true;
		return 1;
	}
	if (type == OPTION_TYPE) {
		if (size != OPTION_LENGTH || o->found) {
			o->bad = true;
			return 1;
		}
		o->found = true;
		o->id = o->header[(at + 2) & 63] | o->header[(at + 3) & 63] << 8 | o->header[(at + 4) & 63] << 16 |
			(__u32)o->header[(at + 5) & 63] << 24;
	}
	o->at = at + size;
	return 0;
}

static __always_inline bool media_port(__be16 port)
{
	__u16 p = bpf_ntohs(port);
	for (__u32 i = 0; i < MAX_PORTS; i++)
		if (i < media_port_count && media_ports[i] == p)
			return true;
	return false;
}

SEC("tc")
int copy(struct __sk_buff *skb)
{
	if (skb->protocol != bpf_htons(ETH_P_IP) || skb->vlan_present)
		return TCX_NEXT;
	__u32 mark = skb->mark;
	if ((mark & MARK_MASK) == MARK_RESOLVE) {
		skb->mark = 0;
		return bpf_redirect_neigh(mark & ~MARK_MASK, NULL, 0, 0);
	}
	if ((mark & MARK_MASK) == MARK_SOCKET) {
		skb->mark = 0;
		return TCX_NEXT;
	}
	struct iphdr ip;
	if (bpf_skb_load_bytes(skb, ETH_HLEN, &ip, sizeof(ip)))
		return TCX_NEXT;
	__u32 to = bpf_ntohl(ip.daddr);
	if (to < range_first || to > range_last)
		return TCX_NEXT;

	// From here on nothing passes.
	__u32 zero = 0;
	__be32 group_ip = ip.daddr;
	void *inner = bpf_map_lookup_elem(&groups, &group_ip);
	struct scratch *scr = bpf_map_lookup_elem(&scratch, &zero);
	if (!scr)
		return TCX_DROP;
	if (!inner) {
		count(counters_of(0), G_UNKNOWN_GROUP, 1);
		return TCX_DROP;
	}
	struct group *g = bpf_map_lookup_elem(inner, &zero);
	if (!g)
		return TCX_DROP;
	__u32 version = g->version, socket = g->socket, index = g->index;
	struct pass p = {.skb = skb, .inner = inner, .count = g->destinations, .now = bpf_ktime_get_boot_ns()};
	struct counters *c = counters_of(index);
	if (ip.protocol != IPPROTO_UDP) {
		count(c, G_NOT_UDP, 1);
		return TCX_DROP;
	}

	// What packet.Parse checks.
	__u32 header = ip.ihl * 4, size = bpf_ntohs(ip.tot_len), length = skb->len - ETH_HLEN;
	__u32 field = bpf_ntohs(ip.frag_off), offset = (field & 0x1fff) * 8, more = field & 0x2000;
	bool first = offset == 0;
	p.super = skb->gso_size > 0;
	p.packets = !first ? 0 : p.super && skb->gso_segs > 1 ? skb->gso_segs : 1;
	count(c, G_RECEIVED, p.packets);
	if (ip.version != 4 || header < MIN_HEADER || header > MAX_HEADER || size < header || size > length)
		goto malformed;
	__u32 payload = size - header;
	if (bpf_skb_load_bytes(skb, ETH_HLEN, scr->header, header + (first && payload >= UDP_HEADER ? UDP_HEADER : 0)))
		goto malformed;
	__u64 sum = 0;
	for (__u32 i = 0; i < MAX_HEADER; i += 4)
		if (i < header)
			sum += *(__be32 *)(scr->header + i);
	if (fold(sum) != 0xffff)
		goto malformed;
	if ((more && (payload == 0 || payload % 8)) || header + offset + payload > MAX_IPV4)
		goto malformed;
	struct udp udp = {};
	if (first) {
		if (payload < UDP_HEADER)
			goto malformed;
		udp = *(struct udp *)(scr->header + (header & 0x3c));
		__u32 udp_length = bpf_ntohs(udp.len);
		if (udp_length < UDP_HEADER || (!more && udp_length > payload))
			goto malformed;
	}
	struct search option = {.header = scr->header, .at = MIN_HEADER, .length = header};
	if (header > MIN_HEADER)
		bpf_loop(MAX_HEADER - MIN_HEADER, next_option, &option, 0);
	if (option.bad)
		goto malformed;
	bool flagged = option.found;
	if (first && media_port_count && !media_port(udp.dest)) {
		count(c, G_OTHER_PORT, p.packets);
		return TCX_DROP;
	}

	// What packet.Decide decides, in its order.
	if (!in_force(index, p.now)) {
		count(c, G_STALE, p.packets);
		return TCX_DROP;
	}
	if (flagged && option.id != ip.saddr) {
		count(c, G_SPOOF, p.packets);
		return TCX_DROP;
	}
	struct source_key source = {.group = group_ip, .addr = ip.saddr, .version = version};
	__u32 *trigger = bpf_map_lookup_elem(&sources, &source);
	if (!trigger) {
		count(c, G_UNREGISTERED, p.packets);
		return TCX_DROP;
	}
	__u32 by_source = (*trigger & 0xffff) == T_SOURCE;
	__be16 source_port = *trigger >> 16; // reserved for this source; 0: each of its streams has one
	if (!flagged && !by_source) {
		count(c, G_UNFLAGGED, p.packets);
		return TCX_DROP;
	}
	if (ip.ttl <= 1) {
		count(c, G_TTL, p.packets);
		return TCX_DROP;
	}

	skb->mark = 0;
	if (socket) {
		skb->mark = MARK_SOCKET;
		if (bpf_clone_redirect(skb, skb->ifindex, BPF_F_INGRESS))
			count(c, G_ERROR, p.packets);
		skb->mark = 0;
	}
	if (p.count == 0)
		return TCX_DROP;
	p.source = ip.saddr;
	if (first && !source_port) {
		struct stream_key stream = {.addr = ip.saddr, .group = group_ip, .port = udp.source, .group_port = udp.dest};
		source_port = stream_port(&stream, p.now);
		if (!source_port) {
			count(c, G_STREAMS, p.packets);
			return TCX_DROP;
		}
	}

	// What all copies have in common is written once.
	if (!p.super && length > size && bpf_skb_change_tail(skb, ETH_HLEN + size, 0)) // padding of a short frame
		goto failed;
	__u32 options = nop_options && !by_source && header > MIN_HEADER ? 4 : 0;
	__u32 removed = header - MIN_HEADER - options;
	if (removed && bpf_skb_adjust_room(skb, -(__s32)removed, BPF_ADJ_ROOM_NET, BPF_F_ADJ_ROOM_FIXED_GSO))
		goto failed;
	p.size = size - removed;
	p.bytes = first ? payload - UDP_HEADER : payload;
	if (first && !more && !p.super)
		p.bytes = bpf_ntohs(udp.len) - UDP_HEADER;
	p.id = ip.id;
	ip.ihl = (MIN_HEADER + options) / 4;
	ip.tot_len = bpf_htons(p.size);
	ip.ttl--;
	ip.check = ip.id = ip.daddr = 0;
	__be32 from = ip.saddr;
	ip.saddr = uplink;
	sum = options ? NOP : 0;
	for (__u32 i = 0; i < MIN_HEADER / 4; i++)
		sum += ((__be32 *)&ip)[i];
	p.sum = fold(sum);
	if (first) {
		p.udp = ETH_HLEN + MIN_HEADER + options;
		p.own_port = udp.dest;
		if (read_checksum(&p, &udp, from, source_port, group_ip))
			goto failed;
	}
	if (bpf_skb_pull_data(skb, ETH_HLEN + MIN_HEADER + options + (first ? sizeof(udp) : 0)))
		goto failed;
	struct head *h = (void *)(long)skb->data;
	struct udp *u = (void *)(h + 1) + options;
	if ((void *)(h + 1) > (void *)(long)skb->data_end)
		goto failed;
	h->ip = ip;
	if (options) {
		if ((void *)(h + 1) + 4 > (void *)(long)skb->data_end)
			goto failed;
		*(__be32 *)(h + 1) = NOP;
	}
	if (first) {
		if ((void *)(u + 1) > (void *)(long)skb->data_end)
			goto failed;
		u->source = source_port;
	}
	bpf_loop(p.count, copy_to, &p, 0);
	if (p.last)
		return bpf_redirect(p.last, 0);
	return TCX_DROP;

malformed:
	count(c, G_MALFORMED, 1);
	return TCX_DROP;
failed:
	count(c, G_ERROR, p.packets);
	return TCX_DROP;
}

char copyright[] SEC("license") = "Apache-2.0";
