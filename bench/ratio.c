// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/*
 * ratio rr|stream SIZE SECONDS CPU_A CPU_B: one connection on loopback between
 * two processes, each on its processor.  Prints transactions per second (a
 * request of SIZE bytes and an answer of as many) or bytes per second.
 * ratio connect SIZE SECONDS CPU_A CPU_B: connections with one transaction each,
 * per second.
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
#include <sys/prctl.h>
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
}

static void no_delay(int fd)
{
	int one = 1;

	setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
}

static int connect_to(const struct sockaddr_in *address)
{
	int fd = socket(AF_INET, SOCK_STREAM, 0);

	if (connect(fd, (const void *)address, sizeof(*address))) {
		perror("ratio");
		exit(1);
	}
	no_delay(fd);
	return fd;
}

/* Children serve one connection each, or all of them one child, for ever. */
static struct sockaddr_in listen_on_loopback(int rr, int one_each, int cpu, char *buffer,
					     size_t size)
{
	struct sockaddr_in address = { .sin_family = AF_INET };
	socklen_t length = sizeof(address);
	int listener = socket(AF_INET, SOCK_STREAM, 0), fd;

	address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
	if (bind(listener, (void *)&address, sizeof(address)) || listen(listener, 1024) ||
	    getsockname(listener, (void *)&address, &length)) {
		perror("ratio");
		exit(1);
	}
	if (fork())
		return close(listener), address;
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	pin_to(cpu);
	while ((fd = accept(listener, NULL, NULL)) >= 0) {
		no_delay(fd);
		serve(fd, rr, buffer, size);
		close(fd);
		if (!one_each)
			break;
	}
	_exit(0);
}

/* One write of SIZE bytes, and the reading of as many; exits if it fails. */
static void transact(const int ends[2], int answers, char *buffer, size_t size)
{
	if (exact(write_call, ends[1], buffer, size) &&
	    (!answers || exact(read, ends[0], buffer, size)))
		return;
	perror("ratio");
	exit(1);
}

int main(int argc, char **argv)
{
	int answers, connects, ends[2]; /* to read from, to write to */
	double seconds, start, end;
	struct sockaddr_in address;
	unsigned long count = 0;
	char *buffer;
	size_t size;

	if (!(argc == 5 && !strcmp(argv[1], "pipe")) &&
	    !(argc == 6 && (!strcmp(argv[1], "rr") || !strcmp(argv[1], "stream") ||
			    !strcmp(argv[1], "connect")))) {
		fprintf(stderr,
			"usage: ratio rr|stream|connect SIZE SECONDS CPU_A CPU_B\n"
			"       ratio pipe SIZE SECONDS CPU\n");
		return 2;
	}
	answers = strcmp(argv[1], "stream");
	connects = !strcmp(argv[1], "connect");
	size = atol(argv[2]);
	seconds = atof(argv[3]);
	buffer = calloc(1, size > 1 << 20 ? size : 1 << 20);
	if (argc == 6)
		address = listen_on_loopback(answers, connects, atoi(argv[5]), buffer,
					     size);
	if (argc == 5 && pipe(ends))
		return 1;
	if (argc == 6 && !connects)
		ends[0] = ends[1] = connect_to(&address);
	pin_to(atoi(argv[4]));
	start = now();
	do {
		for (int i = 0; i < 64; i++, count++) {
			if (connects)
				ends[0] = ends[1] = connect_to(&address);
			transact(ends, answers, buffer, size);
			if (connects)
				close(ends[0]);
		}
		end = now();
	} while (end - start < seconds);
	if (!connects) {
		close(ends[1]);
		wait(NULL);
		end = now();
	}
	printf("%.0f\n", (answers ? count : (double)count * size) / (end - start));
	return 0;
}
