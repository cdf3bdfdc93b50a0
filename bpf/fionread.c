// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/*
 * fionread SOCKHASH: does FIONREAD count TCP's bytes on a socket that is in a sockhash?
 * Puts one there, whose peer has sent a byte by TCP.  Exit code 0: it does; 1: it does
 * not; 2: nobody knows, and errno says why on stderr.
 */
#include <arpa/inet.h>
#include <bpf/bpf.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <unistd.h>

static int check(int result, const char *what)
{
	if (result < 0) {
		perror(what);
		exit(2);
	}
	return result;
}

int main(int argc, char **argv)
{
	struct sockaddr_in address = { .sin_family = AF_INET,
				       .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
	struct sockaddr *any = (struct sockaddr *)&address;
	socklen_t length = sizeof(address);
	unsigned long long reader;
	int map, listener, writer, one = 1, count;
	char key[16] = "", byte;

	if (argc != 2) {
		fprintf(stderr, "Usage: fionread SOCKHASH\n");
		return 2;
	}
	map = check(bpf_obj_get(argv[1]), argv[1]);
	listener = check(socket(AF_INET, SOCK_STREAM, 0), "socket");
	check(bind(listener, any, length), "bind");
	check(listen(listener, 1), "listen");
	check(getsockname(listener, any, &length), "getsockname");
	writer = check(socket(AF_INET, SOCK_STREAM, 0), "socket");
	check(connect(writer, any, length), "connect");
	reader = check(accept(listener, NULL, NULL), "accept");
	/* By TCP, too, if a sockfuse is on here. */
	check(setsockopt(reader, SOL_SOCKET, SO_OOBINLINE, &one, sizeof(one)),
	      "SO_OOBINLINE");
	/* EBUSY: it is in the map of that sockfuse. */
	if (bpf_map_update_elem(map, key, &reader, BPF_ANY) && errno != EBUSY)
		check(-1, "bpf_map_update_elem");
	check(write(writer, "", 1), "write");
	check(recv(reader, &byte, 1, MSG_PEEK), "recv");
	check(ioctl(reader, FIONREAD, &count), "FIONREAD");
	return count != 1;
}
