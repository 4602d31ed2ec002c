//go:build ignore

// SPDX-License-Identifier: Apache-2.0
//
// copy: TCX program on the ingress of the LAN interface. It copies the datagrams that cameras send to a group IP (SPEC 9). What it
// decides and writes is what package packet does: that is the reference, and the suite in backendtest holds the two together.
//
// A packet that isn't for the group range passes (TCX_NEXT). One that is never passes, except for the clone that is handed over to
// the socket backend, which serves what this program can't.
//
// With RELAY defined it is the program on a relay's tunnel device, which has no Ethernet header: the datagrams are in IPv6 (RFC 2473), and the outer source
// address says whose they are. What it doesn't serve passes as it came: the socket backend of the relay has the same table.

#include <stdbool.h>
#include <stddef.h>
#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/ipv6.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#define TCX_NEXT (-1)
#define TCX_DROP 2
#define DECAP_IPV4 (1ull << 7) // BPF_F_ADJ_ROOM_DECAP_L3_IPV4, of Linux 6.3

#define MAX_PORTS 16
#define MIN_HEADER 20
#define MAX_HEADER 60
#define UDP_HEADER 8
#define MAX_IPV4 65535

#ifdef RELAY
#define AT sizeof(struct ipv6hdr) // of the camera's IPv4 header, as the packet comes
#else
#define AT ETH_HLEN
#endif
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
	K_NONE,       // nothing is in the slot
	K_GROUP,      // the group is
	K_RESOLVED,   // both MAC addresses are known
	K_RESOLVE,    // the next hop's isn't known (yet): the kernel asks for it
	K_UNREACHABLE // the next hop doesn't answer
};

enum trigger { T_NONE, T_OPTION, T_SOURCE };

struct source {
	__be32 addr;
	__be16 port; // reserved for this source; 0: each of its streams has one
	__u16 trigger;
};

// slot is a piece of a group's inner map: slot 0 is the group (struct group), the others are destinations. An element holds many of them: a function call
// for each copy costs more than all that is compared and written for it.
struct slot {
	__u8 kind;
	__u8 twin : 7; // how many destinations before this one have its address
	__u8 last : 1; // of the group
	__u16 mac0;    // the MAC addresses of destination and source, by their offsets
	__u32 mac2, mac6;
	__u16 mac10;
	__be16 port; // 0: the camera's
	__be32 addr;
	__be32 source; // the one whose datagrams are copied there; 0: all of the group's
	__u32 ifindex;
	__u16 index; // of counters and deadlines
	__u16 mtu;
};

#define SOURCES 2

struct group {
	__u8 kind; // as in struct slot
	__u8 socket : 1; // the socket backend has destinations of its own
	__u8 more : 1;   // it has more sources than these
	__u16 index;
	__u32 version; // of the other sources, and the other blocks
	__u32 destinations;
	struct source source[SOURCES];
	__u32 in_pieces; // a relay's only; until when datagrams follow those that came in fragments, see now_coarse
};

_Static_assert(sizeof(struct slot) == 32 && sizeof(struct group) == 32, "both are slots of one map, two in a line of the cache");
_Static_assert(offsetof(struct slot, kind) == offsetof(struct group, kind), "a slot says what it is");

#define BLOCK 16

struct block {
	struct slot slot[BLOCK];
};

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

// home_key begins with the premises: every home has the same few group IPs.
struct home_key {
	struct in6_addr premises; // its tunnel address
	__be32 group;
};

// The first blocks of the groups, by the place of the group IP in the range; at a relay by struct home_key. These inner maps have one size, so that the kernel
// has the program look into them without a call.
struct {
#ifdef RELAY
	__uint(type, BPF_MAP_TYPE_HASH_OF_MAPS);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct home_key);
#else
	__uint(type, BPF_MAP_TYPE_ARRAY_OF_MAPS);
	__type(key, __u32);
#endif
	__uint(max_entries, 1);
	__array(
	    values, struct {
		    __uint(type, BPF_MAP_TYPE_ARRAY);
		    __uint(max_entries, 1);
		    __uint(key_size, sizeof(__u32));
		    __uint(value_size, sizeof(struct block));
	    });
} groups SEC(".maps");

// The other blocks of those that have more, by their version.
struct {
	__uint(type, BPF_MAP_TYPE_HASH_OF_MAPS);
	__uint(max_entries, 1);
	__type(key, __u32);
	__array(
	    values, struct {
		    __uint(type, BPF_MAP_TYPE_ARRAY);
		    __uint(max_entries, 1);
		    __uint(map_flags, BPF_F_INNER_MAP);
		    __uint(key_size, sizeof(__u32));
		    __uint(value_size, sizeof(struct block));
	    });
} rests SEC(".maps");

// What a group has more of sources than fit beside it.
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 32768);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct source_key);
	__type(value, struct source);
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

struct scratch {
	__u64 jiffies, now; // boot time, and when it was read
	// What the program and the callbacks of bpf_loop read at changing places can't lie on the stack. An IPv4 header and the UDP header after it.
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
const volatile __be32 inside[4]; // the relay's own tunnel address
const volatile __u16 media_ports[MAX_PORTS];
const volatile __u32 media_port_count; // 0: every port is one
const volatile __u32 nop_options;
const volatile __u64 pace_per_byte; // 1/1024 ns; 0: no rate
const volatile __u64 pace_burst;    // ns

#define unlikely(x) __builtin_expect(!!(x), 0)

static __always_inline void count(struct counters *c, __u32 i, __u64 n)
{
	if (c && i < COUNTERS)
		c->n[i] += n;
}

static __always_inline struct counters *counters_of(__u32 index) { return bpf_map_lookup_elem(&counts, &index); }

// boot_time reads the clock once in a jiffy, at most 10 ms: that takes as long as the program needs for three copies, because the CPU has to finish
// all before. deadline.go makes up for it. Rates need the time itself.
static __always_inline __u64 boot_time(void)
{
	__u32 zero = 0;
	struct scratch *s = bpf_map_lookup_elem(&scratch, &zero);
	if (!s || pace_per_byte)
		return bpf_ktime_get_boot_ns();
	__u64 jiffies = bpf_jiffies64();
	if (s->jiffies != jiffies) {
		s->now = bpf_ktime_get_boot_ns();
		s->jiffies = jiffies;
	}
	return s->now;
}

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

// fold_few folds a sum of a few 16-bit words.
static __always_inline __u32 fold_few(__u32 s)
{
	s = (s & 0xffff) + (s >> 16);
	return (s & 0xffff) + (s >> 16);
}

// mask is all bits if n isn't 0, and else none. No branch: the verifier would follow both ways through all the copies.
static __always_inline __u32 mask(__u16 n) { return (__s32)-(__u32)n >> 31; }

static __always_inline __u32 halves(__u32 word) { return (word & 0xffff) + (word >> 16); }

struct udp {
	__be16 source, dest, len;
	__u16 check;
};

// pass is what all copies of a packet have in common.
struct pass {
	__u64 now;
	__u64 bytes;     // UDP payload
	__u32 packets;   // datagrams: 0 for a later fragment, more than one for a super-packet
	__u32 count;     // of destinations
	__u32 sum;       // of the copy's IPv4 header without identification and destination
	__be16 id;       // identification
	__be16 own_port; // the camera's
	__be32 source;   // the camera
	__u32 udp;       // offset of the UDP header, 0 for a later fragment
	__u32 size;      // of the IPv4 packet
	__u32 on_wire;   // the same; 0 for a super-packet, whose pieces are smaller
	__u32 check;     // of the UDP checksum, without what differs from copy to copy
	__u16 full;      // all bits if the checksum is a full one, else none
	__u16 checked;   // all bits if there is a checksum, else none
	__u32 last;      // interface for the original
};

// write_copy writes what differs from copy to copy, straight into the packet: calls of helpers cost more than the writing. The kernel
// keeps the head of a packet writable that was cloned by bpf_clone_redirect.
static __always_inline long write_copy(struct __sk_buff *skb, struct pass *p, struct slot *d)
{
	void *data = (void *)(long)skb->data, *end = (void *)(long)skb->data_end;
	struct iphdr *ip = data + ETH_HLEN;
	if ((void *)(ip + 1) > end)
		return -1;
	__be32 addr = d->addr;
	__u32 halved = halves(addr);
	if (p->udp) {
		__be16 port = d->port ?: p->own_port;
		struct udp *u = data + (p->udp & 63);
		if ((void *)(u + 1) > end)
			return -1;
		u->dest = port;
		__u16 check = fold_few(p->check + halved + (port & p->full)) ^ p->full;
		u->check = (check ?: 0xffff) & p->checked;
	}
	// A receiver couldn't tell the fragments for two of its ports apart if they had one identification.
	__be16 id = p->id ^ bpf_htons((__u16)d->twin << 12);
	ip->daddr = addr;
	ip->id = id;
	ip->check = ~fold_few(p->sum + halved + id);
	// The IPv4 header begins at a multiple of four, so these words do too.
	*(__u16 *)data = d->mac0;
	*(__u32 *)(data + 2) = d->mac2;
	*(__u32 *)(data + 6) = d->mac6;
	*(__u16 *)(data + 10) = d->mac10;
	return 0;
}

// What seldom happens to a copy is in global functions: the verifier looks at them once, and they are out of the others' way.

__noinline int missed(__u32 index, __u32 why, __u32 datagrams)
{
	count(counters_of(index), why, datagrams);
	return 0;
}

__noinline int take(__u32 index, __u64 now, __u32 bytes)
{
	__u64 *until = bpf_map_lookup_elem(&paces, &index);
	if (!until)
		return 0;
	__u64 before = *(volatile __u64 *)until;
	if (before > now + pace_burst)
		return 0;
	*(volatile __u64 *)until = (before > now ? before : now) + (bytes * pace_per_byte >> 10);
	return 1;
}

__noinline int resolve(struct __sk_buff *skb, __u32 ifindex)
{
	skb->mark = MARK_RESOLVE | (ifindex & ~MARK_MASK);
	int result = bpf_clone_redirect(skb, skb->ifindex, BPF_F_INGRESS);
	skb->mark = 0;
	return result;
}

static __always_inline void copy_to(struct __sk_buff *skb, struct pass *p, struct slot *d)
{
	__u32 index = d->index, ifindex = d->ifindex;
	if (unlikely(d->source && d->source != p->source))
		return;
	if (unlikely(!in_force(index, p->now))) {
		missed(index, D_STALE, p->packets);
		return;
	}
	if (unlikely(d->kind == K_UNREACHABLE)) {
		missed(index, D_UNREACHABLE, p->packets);
		return;
	}
	if (unlikely(p->on_wire > d->mtu)) {
		missed(index, D_TOO_BIG, p->packets);
		return;
	}
	if (pace_per_byte && !take(index, p->now, p->size)) {
		missed(index, D_RATE, p->packets);
		return;
	}
	if (unlikely(write_copy(skb, p, d))) {
		missed(index, D_ERROR, p->packets);
		return;
	}
	int result = 0;
	if (unlikely(d->kind == K_RESOLVE))
		result = resolve(skb, ifindex);
	else if (d->last)
		p->last = ifindex;
	else
		result = bpf_clone_redirect(skb, ifindex, 0);
	if (unlikely(result && result != 2 /* NET_XMIT_CN: it was sent */)) {
		missed(index, result > 0 ? D_FULL : D_ERROR, p->packets);
		return;
	}
	struct counters *c = counters_of(index);
	if (c) {
		c->n[D_PACKETS] += p->packets;
		c->n[D_BYTES] += p->bytes;
	}
}

// copy_slots makes the copies for the destinations of a block. Where they begin and end is in the slots, because the verifier follows each number that the
// end of a loop is compared with.
static __always_inline void copy_slots(struct __sk_buff *skb, struct pass *p, struct block *b)
{
	for (__u32 i = 0; i < BLOCK; i++) {
		struct slot *d = &b->slot[i];
		if (d->kind == K_NONE)
			break;
		if (d->kind != K_GROUP)
			copy_to(skb, p, d);
	}
}

// copy_block is for the blocks after the first.
__noinline int copy_block(struct __sk_buff *skb, struct pass *p, struct block *b)
{
	if (!p || !b)
		return 1;
	copy_slots(skb, p, b);
	return 0;
}

// rest is what the callback of bpf_loop works with that copies for the blocks after the first.
struct rest {
	struct __sk_buff *skb;
	void *blocks;
	struct pass *pass;
};

static long next_block(__u32 i, struct rest *r)
{
	struct block *b = bpf_map_lookup_elem(r->blocks, &i);
	if (!b)
		return 1;
	return copy_block(r->skb, r->pass, b) != 0;
}

// read_checksum prepares what write_copy makes of the UDP checksum: none stays none; a full one is as it is on the wire; a partial one is of the pseudo header
// only, because the sender is on this host and leaves the rest to the device. One that isn't the sum of the pseudo header is full. For the others: a program can't
// ask, but the helper changes only a full one for something that is not in the pseudo header.
static __always_inline long read_checksum(struct __sk_buff *skb, struct pass *p, struct udp *u, __be32 camera, __be16 source_port, __be32 group)
{
	__u32 at = p->udp + offsetof(struct udp, check);
	__u16 changed = 0;
	bool partial = false;
	if (fold((__u64)camera + group + bpf_htons(IPPROTO_UDP) + u->len) == u->check) {
		if (bpf_l4_csum_replace(skb, at, 0, 1, 2) || bpf_skb_load_bytes(skb, at, &changed, 2))
			return -1;
		partial = changed == u->check;
	}
	__u64 sum = (__u64)(__u32)~camera + uplink + (__u32)~group;
	if (partial)
		sum += u->check;
	else
		sum += (__u64)(__u16)~u->check + (__u16)~u->source + source_port + (__u16)~u->dest;
	p->check = fold(sum);
	p->checked = mask(u->check);
	p->full = ~mask(partial);
	return 0;
}

// stream_port gives the source port of a camera stream, which may be a new one, or 0 if there are too many streams. It is global like copy_block, because the
// agent reserves a port for each source, so few streams have one of their own.
__noinline int stream_port(struct stream_key *key, __u64 now)
{
	if (!key)
		return 0;
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

// source_of gives the registered source of that address, or one with trigger T_NONE.
static __always_inline struct source source_of(const struct group *g, __be32 group_ip, __be32 addr)
{
	struct source none = {};
	for (__u32 i = 0; i < SOURCES; i++)
		if (g->source[i].addr == addr)
			return g->source[i]; // an empty one has no trigger either
	if (!g->more)
		return none;
	struct source_key key = {.group = group_ip, .addr = addr, .version = g->version};
	struct source *s = bpf_map_lookup_elem(&sources, &key);
	return s ? *s : none;
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

static __always_inline __u64 sum_header(const struct iphdr *ip)
{
	__u64 sum = 0;
	for (__u32 i = 0; i < MIN_HEADER / 4; i++)
		sum += ((const __be32 *)ip)[i];
	return sum;
}

// content is what is read of a packet beside the fixed part of its IPv4 header.
struct content {
	struct udp udp;
	__be32 id; // of option 0x88
	__u32 flagged;
};

// usual reads a datagram whose header holds the option and an end, or no options, and is right: that is what cameras send. It gives false for all others.
static __always_inline bool usual(void *data, void *end, const struct iphdr *ip, __u32 header, struct content *content)
{
	const __u32 *options = data + AT + sizeof(*ip);
	if (header == MIN_HEADER && (void *)(options + 2) <= end && fold(sum_header(ip)) == 0xffff) {
		content->udp = *(struct udp *)options;
		return true;
	}
	if (header != MIN_HEADER + 8 || (void *)(options + 4) > end)
		return false;
	__u32 first = options[0], second = options[1], filler = second >> 16;
	if ((__u16)first != (OPTION_TYPE | OPTION_LENGTH << 8) || ((__u8)filler && filler != NOP && filler != (NOP | NOP << 8)))
		return false;
	if (fold(sum_header(ip) + first + second) != 0xffff)
		return false;
	content->udp = *(struct udp *)(options + 2);
	content->flagged = true;
	content->id = first >> 16 | second << 16;
	return true;
}

// read_content reads step by step a header of that length and so many bytes after it, and gives 1 if the header is wrong. It is global, so that the verifier
// looks at it once and not for every way that leads there.
__noinline int read_content(struct __sk_buff *skb, struct content *content, __u32 header, __u32 after)
{
	__u32 zero = 0;
	struct scratch *scr = bpf_map_lookup_elem(&scratch, &zero);
	if (!scr || !content || header < MIN_HEADER || header > MAX_HEADER || after > UDP_HEADER)
		return 1;
	__u32 size = header + after;
	asm volatile("" : "+r"(size)); // the verifier of Linux 6.12 doesn't know the bounds of a sum
	if (size < MIN_HEADER || size > MAX_HEADER + UDP_HEADER || bpf_skb_load_bytes(skb, AT, scr->header, size))
		return 1;
	__u64 sum = 0;
	for (__u32 i = 0; i < MAX_HEADER && i < header; i += 4)
		sum += *(__be32 *)(scr->header + i);
	if (fold(sum) != 0xffff)
		return 1;
	content->udp = *(struct udp *)(scr->header + (header & 0x3c));
	struct search option = {.header = scr->header, .at = MIN_HEADER, .length = header};
	if (header > MIN_HEADER)
		bpf_loop(MAX_HEADER - MIN_HEADER, next_option, &option, 0);
	content->flagged = option.found;
	content->id = option.id;
	return option.bad;
}

static __always_inline bool media_port(__be16 port)
{
	__u16 p = bpf_ntohs(port);
	for (__u32 i = 0; i < MAX_PORTS && i < media_port_count; i++)
		if (media_ports[i] == p)
			return true;
	return media_port_count == 0;
}

// find_group gives the first block of the group that a packet is for, and its IPv4 header. If there is none, verdict says what becomes of the packet.
#ifdef RELAY
// What passes is the socket backend's: also fragments, of the datagram or of what is around it, because who puts them together has to see all. So that a stream stays in
// order, the whole datagrams of the group follow them there, for about a second after the last.
#define FOLLOW 1024

// now_coarse counts in units of 2^20 ns, about a millisecond, and wraps.
static __always_inline __u32 now_coarse(void)
{
	return boot_time() >> 20;
}

static __always_inline struct block *find_group(struct __sk_buff *skb, struct iphdr *ip, int *verdict)
{
	struct {
		struct ipv6hdr outer;
		struct iphdr ip;
	} h;
	struct {
		__u8 nexthdr, reserved;
		__be16 offset;
		__be32 id;
		struct iphdr ip;
	} first;
	void *data = (void *)(long)skb->data, *end = (void *)(long)skb->data_end;
	*verdict = TCX_NEXT;
	if (skb->protocol != bpf_htons(ETH_P_IPV6) || skb->gso_size)
		return NULL;
	if (data + sizeof(h) <= end)
		__builtin_memcpy(&h, data, sizeof(h));
	else if (bpf_skb_load_bytes(skb, 0, &h, sizeof(h)))
		return NULL;
	if (h.outer.version != 6)
		return NULL;
	bool pieces = h.outer.nexthdr == IPPROTO_FRAGMENT;
	if (pieces) { // only the first says which group it is for
		if (bpf_skb_load_bytes(skb, sizeof(h.outer), &first, sizeof(first)) || first.nexthdr != IPPROTO_IPIP || first.offset & bpf_htons(0xfff8))
			return NULL;
		h.ip.daddr = first.ip.daddr;
	} else if (h.outer.nexthdr != IPPROTO_IPIP || bpf_ntohs(h.outer.payload_len) + sizeof(h.outer) != skb->len) {
		return NULL;
	} else {
		pieces = h.ip.frag_off & bpf_htons(0x3fff);
	}
	for (__u32 i = 0; i < 4; i++)
		if (h.outer.daddr.in6_u.u6_addr32[i] != inside[i])
			return NULL;
	struct home_key key = {.premises = h.outer.saddr, .group = h.ip.daddr};
	void *inner = bpf_map_lookup_elem(&groups, &key);
	if (!inner)
		return NULL;
	__u32 zero = 0;
	struct block *block = bpf_map_lookup_elem(inner, &zero);
	if (!block)
		return NULL;
	struct group *g = (void *)block;
	__u32 now = now_coarse();
	if (pieces) {
		g->in_pieces = now + FOLLOW;
		return NULL;
	}
	if (g->in_pieces - now <= FOLLOW)
		return NULL;
	*ip = h.ip;
	return block;
}
#else
static __always_inline struct block *find_group(struct __sk_buff *skb, struct iphdr *ip, int *verdict)
{
	void *data = (void *)(long)skb->data, *end = (void *)(long)skb->data_end;
	*verdict = TCX_NEXT;
	if (data + ETH_HLEN + sizeof(*ip) <= end)
		*ip = *(struct iphdr *)(data + ETH_HLEN);
	else if (bpf_skb_load_bytes(skb, ETH_HLEN, ip, sizeof(*ip)))
		return NULL;
	__u32 to = bpf_ntohl(ip->daddr);
	if (to < range_first || to > range_last)
		return NULL;

	// From here on nothing passes.
	*verdict = TCX_DROP;
	__u32 zero = 0, place = to - range_first;
	void *inner = bpf_map_lookup_elem(&groups, &place);
	if (!inner) {
		count(counters_of(0), G_UNKNOWN_GROUP, 1);
		return NULL;
	}
	return bpf_map_lookup_elem(inner, &zero);
}
#endif

// take_off removes the first bytes of the packet's IPv4 header, which is written anew, and whatever is around it but for room for an Ethernet header.
static __always_inline long take_off(struct __sk_buff *skb, __u32 removed)
{
#ifdef RELAY
	if (bpf_skb_adjust_room(skb, -(__s32)(AT + removed), BPF_ADJ_ROOM_MAC, DECAP_IPV4))
		return -1;
	return bpf_skb_change_head(skb, ETH_HLEN, 0);
#else
	return removed ? bpf_skb_adjust_room(skb, -(__s32)removed, BPF_ADJ_ROOM_MAC, BPF_F_ADJ_ROOM_FIXED_GSO) : 0;
#endif
}

SEC("tc")
int copy(struct __sk_buff *skb)
{
#ifndef RELAY
	if (skb->protocol != bpf_htons(ETH_P_IP) || skb->vlan_present)
		return TCX_NEXT;
#endif
	__u32 mark = skb->mark;
	if ((mark & MARK_MASK) == MARK_RESOLVE) {
		skb->mark = 0;
#ifdef RELAY // on its way back in it lost the Ethernet header
		if (bpf_skb_change_head(skb, ETH_HLEN, 0))
			return TCX_DROP;
#endif
		return bpf_redirect_neigh(mark & ~MARK_MASK, NULL, 0, 0);
	}
	if ((mark & MARK_MASK) == MARK_SOCKET) {
		skb->mark = 0;
		return TCX_NEXT;
	}
	struct iphdr ip;
	int verdict;
	struct block *block = find_group(skb, &ip, &verdict);
	if (!block)
		return verdict;
	void *data = (void *)(long)skb->data, *end = (void *)(long)skb->data_end;
	__be32 group_ip = ip.daddr;
	struct group *g = (void *)block;
	__u32 index = g->index;
	struct pass p = {.count = g->destinations, .now = boot_time()};
	struct counters *c = counters_of(index);
	if (ip.protocol != IPPROTO_UDP) {
		count(c, G_NOT_UDP, 1);
		return TCX_DROP;
	}

	// What packet.Parse checks.
	__u32 header = ip.ihl * 4, size = bpf_ntohs(ip.tot_len), length = skb->len - AT;
	__u32 field = bpf_ntohs(ip.frag_off), offset = (field & 0x1fff) * 8, more = field & 0x2000;
	bool first = offset == 0;
	bool super = skb->gso_size > 0;
	p.packets = !first ? 0 : super && skb->gso_segs > 1 ? skb->gso_segs : 1;
	count(c, G_RECEIVED, p.packets);
	if (ip.version != 4 || header < MIN_HEADER || header > MAX_HEADER || size < header || size > length)
		goto malformed;
	__u32 payload = size - header;
	struct content content = {};
	if (!(first && usual(data, end, &ip, header, &content)) &&
	    read_content(skb, &content, header, first && payload >= UDP_HEADER ? UDP_HEADER : 0))
		goto malformed;
	struct udp udp = content.udp;
	if ((more && (payload == 0 || payload % 8)) || header + offset + payload > MAX_IPV4)
		goto malformed;
	if (first) {
		if (payload < UDP_HEADER)
			goto malformed;
		__u32 udp_length = bpf_ntohs(udp.len);
		if (udp_length < UDP_HEADER || (!more && udp_length > payload))
			goto malformed;
	}
	bool flagged = content.flagged;
	if (first && !media_port(udp.dest)) {
		count(c, G_OTHER_PORT, p.packets);
		return TCX_DROP;
	}

	// What packet.Decide decides, in its order.
	if (!in_force(index, p.now)) {
		count(c, G_STALE, p.packets);
		return TCX_DROP;
	}
	if (flagged && content.id != ip.saddr) {
		count(c, G_SPOOF, p.packets);
		return TCX_DROP;
	}
	struct source source = source_of(g, group_ip, ip.saddr);
	if (source.trigger == T_NONE) {
		count(c, G_UNREGISTERED, p.packets);
		return TCX_DROP;
	}
	bool by_source = source.trigger == T_SOURCE;
	if (!flagged && !by_source) {
		count(c, G_UNFLAGGED, p.packets);
		return TCX_DROP;
	}
	if (ip.ttl <= 1) {
		count(c, G_TTL, p.packets);
		return TCX_DROP;
	}

	skb->mark = 0;
	if (g->socket) {
		skb->mark = MARK_SOCKET;
		if (bpf_clone_redirect(skb, skb->ifindex, BPF_F_INGRESS))
			count(c, G_ERROR, p.packets);
		skb->mark = 0;
	}
	if (p.count == 0)
		return TCX_DROP;
	p.source = ip.saddr;
	__be16 source_port = source.port;
	if (first && !source_port) {
		struct stream_key key = {.addr = ip.saddr, .group = group_ip, .port = udp.source, .group_port = udp.dest};
		source_port = stream_port(&key, p.now);
		if (!source_port) {
			count(c, G_STREAMS, p.packets);
			return TCX_DROP;
		}
	}

	// What all copies have in common is written once.
	if (!super && length > size && bpf_skb_change_tail(skb, AT + size, 0)) // padding of a short frame
		goto failed;
	__u32 options = nop_options && !by_source && header > MIN_HEADER ? 4 : 0;
	__u32 removed = header - MIN_HEADER - options;
	if (take_off(skb, removed))
		goto failed;
	p.size = size - removed;
	p.on_wire = p.size & ~mask(skb->gso_size);
	p.bytes = first ? payload - UDP_HEADER : payload;
	if (first && !more && !super)
		p.bytes = bpf_ntohs(udp.len) - UDP_HEADER;
	p.id = ip.id;
	ip.ihl = (MIN_HEADER + options) / 4;
	ip.tot_len = bpf_htons(p.size);
	ip.ttl--;
	ip.check = ip.id = ip.daddr = 0;
	__be32 from = ip.saddr;
	ip.saddr = uplink;
	p.sum = fold(sum_header(&ip) + (options ? NOP : 0));
	if (first) {
		p.udp = ETH_HLEN + MIN_HEADER + options;
		p.own_port = udp.dest;
		if (read_checksum(skb, &p, &udp, from, source_port, group_ip))
			goto failed;
	}
	__u32 headers = ETH_HLEN + MIN_HEADER + options + (first ? sizeof(udp) : 0);
	if ((void *)(long)skb->data + headers > (void *)(long)skb->data_end && bpf_skb_pull_data(skb, headers))
		goto failed;
	data = (void *)(long)skb->data;
	end = (void *)(long)skb->data_end;
	if (data + ETH_HLEN + sizeof(ip) > end)
		goto failed;
#ifdef RELAY
	((struct ethhdr *)data)->h_proto = bpf_htons(ETH_P_IP);
#endif
	*(struct iphdr *)(data + ETH_HLEN) = ip;
	data += ETH_HLEN + sizeof(ip);
	if (options) {
		if (data + 4 > end)
			goto failed;
		*(__be32 *)data = NOP;
		data += 4;
	}
	if (first) {
		if (data + sizeof(udp) > end)
			goto failed;
		((struct udp *)data)->source = source_port;
	}
	copy_block(skb, &p, block);
	if (p.count >= BLOCK) {
		__u32 version = g->version;
		struct rest rest = {.skb = skb, .blocks = bpf_map_lookup_elem(&rests, &version), .pass = &p};
		if (rest.blocks)
			bpf_loop(p.count / BLOCK, next_block, &rest, 0);
	}
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
