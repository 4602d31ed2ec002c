// The plain way to copy a datagram: one socket, one recvfrom, one sendto per receiver.
//
// usage: sendto GROUP PORT RECEIVER...
#include <arpa/inet.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>

int main(int argc, char **argv)
{
	static char datagram[65536];
	if (argc < 4)
		return 2;
	int receivers = argc - 3, size = 4 << 20, s = socket(AF_INET, SOCK_DGRAM, 0);
	struct sockaddr_in at = {.sin_family = AF_INET, .sin_port = htons(atoi(argv[2]))};
	struct sockaddr_in *to = calloc(receivers, sizeof *to);
	inet_pton(AF_INET, argv[1], &at.sin_addr);
	for (int i = 0; i < receivers; i++) {
		to[i] = at;
		inet_pton(AF_INET, argv[i + 3], &to[i].sin_addr);
	}
	setsockopt(s, SOL_SOCKET, SO_RCVBUFFORCE, &size, sizeof size);
	if (bind(s, (struct sockaddr *)&at, sizeof at)) {
		perror("bind");
		return 1;
	}
	puts("ready");
	fflush(stdout);
	for (;;) {
		ssize_t n = recvfrom(s, datagram, sizeof datagram, 0, NULL, NULL);
		for (int i = 0; n >= 0 && i < receivers; i++)
			sendto(s, datagram, n, 0, (struct sockaddr *)&to[i], sizeof to[i]);
	}
}
