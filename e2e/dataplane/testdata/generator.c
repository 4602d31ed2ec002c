// A camera for benchmarks, on CPU 0. It keeps a window of datagrams on their way, so nothing is lost and the CPU under test is never
// without work; or it sends at a fixed rate. A thread of the lowest real-time priority on CPU 1 measures what that CPU has left.
//
// usage: generator INTERFACE TO-MAC FROM-MAC FROM TO COPIES WINDOW RATE SECONDS SIZES STAMP PRIORITY OPTION CHECKS [FRAME...]
//   COPIES    that each datagram becomes
//   RATE      datagrams per second; 0: as many as the window lets
//   SIZES     0: 1200 bytes each; 1: one byte more than the last, so that no two can be segments of one
//   STAMP     1: the payload ends with the time that it was sent (CLOCK_MONOTONIC, ns) and has no checksum
//   PRIORITY  1: real time
//   OPTION    the sum of 1: with option 0x88; 2: in IPv6, as in the tunnel between a gateway and its relay; 4: without an Ethernet header
//   CHECKS    of the FRAMEs, in hexadecimal digits, so many are sent a second between the datagrams, one after the other
// File descriptor 3 is a BPF array that can be mapped, whose element 0 counts the copies that arrived.
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <linux/if_ether.h>
#include <linux/if_packet.h>
#include <net/if.h>
#include <netinet/ether.h>
#include <pthread.h>
#include <sched.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <time.h>

#define BATCH 64
#define PAYLOAD 1200
#define HEADERS (14 + 40 + 28 + 8) // at most
#define PAUSE 0.15 // seconds of warming up

static volatile uint64_t turns __attribute__((aligned(128)));
static volatile int done;
static int realtime;

static void place(int cpu, int priority)
{
	cpu_set_t set;
	struct sched_param p = {.sched_priority = priority};
	CPU_ZERO(&set);
	CPU_SET(cpu, &set);
	sched_setaffinity(0, sizeof set, &set);
	if (realtime && sched_setscheduler(0, SCHED_FIFO, &p))
		perror("real time");
}

static void *idle(void *unused)
{
	place(1, 1);
	while (!done) {
		for (int i = 0; i < 64; i++)
			__asm__ volatile("" ::: "memory");
		turns++;
	}
	return unused;
}

static double now(void)
{
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec + t.tv_nsec * 1e-9;
}

static uint32_t sum(const uint8_t *b, int n, uint32_t s)
{
	for (int i = 0; i < n; i++)
		s += i & 1 ? b[i] : b[i] << 8;
	while (s >> 16)
		s = (s & 0xffff) + (s >> 16);
	return s;
}

static void put16(uint8_t *b, uint32_t v)
{
	b[0] = v >> 8;
	b[1] = v;
}

// frame builds a datagram and gives its length.
static int frame(uint8_t *f, char **a, int payload, int checksum, int option)
{
	int header = option & 1 ? 28 : 20, outer = option & 2 ? 40 : 0;
	uint8_t *ip = f + 14 + outer, *udp = ip + header;
	memcpy(f, ether_aton(a[1]), 6);
	memcpy(f + 6, ether_aton(a[2]), 6);
	put16(f + 12, outer ? ETH_P_IPV6 : ETH_P_IP);
	if (outer) {
		f[14] = 0x60;
		put16(f + 18, header + 8 + payload);
		f[20] = 4;
		f[21] = 64;
		inet_pton(AF_INET6, "fd12:3456:789a::1", f + 22);
		inet_pton(AF_INET6, "fd12:3456:789a:1::1", f + 38);
	}
	ip[0] = 0x40 | header / 4;
	put16(ip + 2, header + 8 + payload);
	ip[6] = 0x40;
	ip[8] = 64;
	ip[9] = 17;
	inet_pton(AF_INET, a[3], ip + 12);
	inet_pton(AF_INET, a[4], ip + 16);
	if (option & 1) {
		ip[20] = 0x88;
		ip[21] = 6;
		memcpy(ip + 22, ip + 12, 4);
	}
	put16(ip + 10, ~sum(ip, header, 0));
	put16(udp, 5000);
	put16(udp + 2, 5004);
	put16(udp + 4, 8 + payload);
	for (int i = 0; i < payload; i++)
		udp[8 + i] = i * 7;
	uint16_t check = ~sum(udp, 8 + payload, sum(ip + 12, 8, 17 + 8 + payload));
	put16(udp + 6, !checksum ? 0 : check ? check : 0xffff);
	return 14 + outer + header + 8 + payload;
}

// bytes reads hexadecimal digits and gives how many bytes they are.
static int bytes(uint8_t *to, const char *digits, int room)
{
	int n = 0;
	for (unsigned b; n < room && sscanf(digits + 2 * n, "%2x", &b) == 1; n++)
		to[n] = b;
	return n;
}

int main(int argc, char **argv)
{
	if (argc < 15)
		return 2;
	char **a = argv + 1;
	int copies = atoi(a[5]), window = atoi(a[6]), sizes = atoi(a[9]), stamp = atoi(a[10]);
	double rate = atof(a[7]), seconds = atof(a[8]);
	realtime = atoi(a[11]);
	double checks = atof(a[13]), check_at = 0;
	int check = 0;
	static struct {
		uint8_t b[256];
		int n;
	} check_frames[64];
	int check_count = 0;
	for (; check_count < argc - 15 && check_count < 64; check_count++)
		check_frames[check_count].n = bytes(check_frames[check_count].b, a[14 + check_count], sizeof check_frames[0].b);

	volatile uint64_t *arrived = mmap(NULL, 4096, PROT_READ, MAP_SHARED, 3, 0);
	if (arrived == MAP_FAILED) {
		perror("map the counter");
		return 1;
	}
	int s = socket(AF_PACKET, SOCK_RAW, 0), on = 1, room = 1 << 25;
	struct sockaddr_ll at = {.sll_family = AF_PACKET, .sll_ifindex = if_nametoindex(a[0])};
	setsockopt(s, SOL_PACKET, PACKET_QDISC_BYPASS, &on, sizeof on);
	setsockopt(s, SOL_SOCKET, SO_SNDBUFFORCE, &room, sizeof room);
	if (s < 0 || bind(s, (void *)&at, sizeof at)) {
		perror("packet socket");
		return 1;
	}
	static uint8_t frames[BATCH][HEADERS + PAYLOAD];
	static struct mmsghdr messages[2 * BATCH];
	static struct iovec parts[2 * BATCH];
	for (int i = 0; i < 2 * BATCH; i++) { // twice, so that a batch can begin anywhere
		if (i < BATCH) {
			parts[i].iov_base = frames[i];
			parts[i].iov_len = frame(frames[i], a, sizes ? PAYLOAD - BATCH + 1 + i : PAYLOAD, !stamp, atoi(a[12]));
			if (atoi(a[12]) & 4) {
				parts[i].iov_base = frames[i] + 14;
				parts[i].iov_len -= 14;
			}
		} else {
			parts[i] = parts[i - BATCH];
		}
		messages[i].msg_hdr.msg_iov = &parts[i];
		messages[i].msg_hdr.msg_iovlen = 1;
	}

	place(0, 2);
	pthread_t thread;
	pthread_create(&thread, NULL, idle, NULL);
	nanosleep(&(struct timespec){.tv_nsec = 10000000}, NULL);
	double t = now();
	uint64_t before = turns;
	nanosleep(&(struct timespec){.tv_nsec = 40000000}, NULL);
	double speed = (turns - before) / (now() - t); // turns per second of an idle CPU

	double begin = now(), from = begin + PAUSE, moved = begin, counting = 0;
	uint64_t base = arrived[0], start = base, sent = 0, last = 0, lost = 0, first = 0, idled = 0;
	int next = 0;
	for (;;) {
		t = now();
		if (!counting && t >= from) {
			counting = t;
			first = arrived[0];
			idled = turns;
			lost = 0;
		}
		if (counting && t >= counting + seconds)
			break;
		if (checks > 0 && check_count > 0 && t >= check_at) {
			check_at = t + 1 / checks;
			send(s, check_frames[check % check_count].b, check_frames[check % check_count].n, 0);
			check++;
		}
		uint64_t got = arrived[0] - base;
		if (got != last) {
			last = got;
			moved = t;
		}
		int64_t n;
		if (rate > 0) {
			n = (int64_t)((t - begin) * rate) - (int64_t)sent;
		} else {
			n = window - (int64_t)(sent - got / copies);
			if (n < window / 2) // in bursts, as cameras do
				n = 0;
			if (t - moved > 0.05) { // what isn't here by now is lost
				lost += sent * copies - got;
				base = arrived[0];
				sent = last = 0;
				moved = t;
				continue;
			}
		}
		n = n > BATCH ? BATCH : n;
		if (n <= 0) {
			for (double end = t + 2e-6; now() < end;)
				;
			continue;
		}
		if (stamp) {
			struct timespec ts;
			n = 1;
			clock_gettime(CLOCK_MONOTONIC, &ts);
			uint64_t ns = ts.tv_sec * 1000000000ull + ts.tv_nsec;
			memcpy(frames[next] + parts[next].iov_len - 8, &ns, 8);
		}
		int r = sendmmsg(s, messages + next, n, 0);
		if (r > 0) {
			sent += r;
			next = (next + r) % BATCH;
		}
	}
	double took = now() - counting;
	uint64_t delivered = arrived[0] - first;
	double left = speed > 0 ? (turns - idled) / took / speed : 0; // without real time the thread may not have had a turn
	done = 1;
	pthread_join(thread, NULL);
	printf("copies=%.0f idle=%.4f lost=%llu all=%llu\n", delivered / took, left, (unsigned long long)lost,
	       (unsigned long long)(arrived[0] - start));
	return 0;
}
