// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/*
 * ratio rr|stream SIZE SECONDS CPU_A CPU_B: one connection on loopback between
 * two processes, each on its processor.  Prints transactions per second (a
 * request of SIZE bytes and an answer of as many) or bytes per second.
 * ratio pipe SIZE SECONDS CPU: writes of SIZE bytes, read again, per second.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <netinet/tcp.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static double now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec + t.tv_nsec / 1e9;
}

static void pin_to(int cpu)
{
	cpu_set_t set;

	CPU_ZERO(&set);
	CPU_SET(cpu, &set);
	if (sched_setaffinity(0, sizeof(set), &set))
		perror("sched_setaffinity");
}

/* 0 at the end of the stream */
static int exact(ssize_t (*call)(int, void *, size_t), int fd, char *buffer, size_t n)
{
	while (n) {
		ssize_t done = call(fd, buffer, n);

		if (done <= 0)
			return 0;
		buffer += done;
		n -= done;
	}
	return 1;
}

static ssize_t write_call(int fd, void *buffer, size_t n)
{
	return write(fd, buffer, n);
}

static void serve(int fd, int rr, char *buffer, size_t size)
{
	while (rr && exact(read, fd, buffer, size) && exact(write_call, fd, buffer, size))
		;
	while (!rr && read(fd, buffer, size) > 0)
		;
	_exit(0);
}

/* A connection whose other end a child serves. */
static int connection(int rr, int cpu, char *buffer, size_t size)
{
	struct sockaddr_in address = { .sin_family = AF_INET };
	socklen_t length = sizeof(address);
	int listener, client, server, one = 1;

	address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
	listener = socket(AF_INET, SOCK_STREAM, 0);
	client = socket(AF_INET, SOCK_STREAM, 0);
	if (bind(listener, (void *)&address, sizeof(address)) || listen(listener, 1) ||
	    getsockname(listener, (void *)&address, &length) ||
	    connect(client, (void *)&address, length) ||
	    (server = accept(listener, NULL, NULL)) < 0) {
		perror("ratio");
		exit(1);
	}
	setsockopt(client, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
	setsockopt(server, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
	if (!fork()) {
		pin_to(cpu);
		close(client);
		serve(server, rr, buffer, size);
	}
	close(server);
	return client;
}

int main(int argc, char **argv)
{
	int answers, ends[2]; /* to read from, to write to */
	double seconds, start, end;
	unsigned long count = 0;
	char *buffer;
	size_t size;

	if (!(argc == 5 && !strcmp(argv[1], "pipe")) &&
	    !(argc == 6 && (!strcmp(argv[1], "rr") || !strcmp(argv[1], "stream")))) {
		fprintf(stderr, "usage: ratio rr|stream SIZE SECONDS CPU_A CPU_B\n"
				"       ratio pipe SIZE SECONDS CPU\n");
		return 2;
	}
	answers = strcmp(argv[1], "stream");
	size = atol(argv[2]);
	seconds = atof(argv[3]);
	buffer = calloc(1, size > 1 << 20 ? size : 1 << 20);
	if (argc == 6)
		ends[0] = ends[1] = connection(answers, atoi(argv[5]), buffer, size);
	else if (pipe(ends))
		return 1;
	pin_to(atoi(argv[4]));
	start = now();
	do {
		for (int i = 0; i < 64; i++, count++)
			if (!exact(write_call, ends[1], buffer, size) ||
			    (answers && !exact(read, ends[0], buffer, size))) {
				perror("ratio");
				return 1;
			}
		end = now();
	} while (end - start < seconds);
	close(ends[1]);
	wait(NULL);
	end = now();
	printf("%.0f\n", (answers ? count : (double)count * size) / (end - start));
	return 0;
}
