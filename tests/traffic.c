// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/*
 * Traffic for the tests.  Each command makes its own connections on loopback,
 * checks every byte, prints what it saw as "name=value" words on one line, and
 * ends with 0 only if every byte arrived once, in order, at the right socket,
 * and no call failed that plain TCP would not fail.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/nbd.h>
#include <linux/bpf.h>
#include <linux/io_uring.h>
#include <linux/tls.h>
#include <net/if.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/sendfile.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static void __attribute__((format(printf, 1, 2), noreturn)) fail(const char *format, ...)
{
	va_list args;

	va_start(args, format);
	vfprintf(stderr, format, args);
	va_end(args);
	fprintf(stderr, " (%s)\n", strerror(errno));
	_exit(1);
}

/* Milliseconds. */
static double now_ms(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1e3 + t.tv_nsec / 1e6;
}

static uint64_t random_state = 88172645463325252ULL;

static uint64_t random_below(uint64_t limit)
{
	random_state ^= random_state << 13;
	random_state ^= random_state >> 7;
	random_state ^= random_state << 17;
	return random_state % limit;
}

/*
 * Byte i of stream s is fixed, so that a reader can tell a lost, repeated or
 * foreign byte wherever it starts.  The period is prime.
 */
#define PERIOD 1048573
#define CHUNK_MAX (1 << 20)
static unsigned char pattern[PERIOD + CHUNK_MAX];

static void make_pattern(void)
{
	uint32_t x = 1;

	for (size_t i = 0; i < PERIOD; i++) {
		x = x * 1664525 + 1013904223;
		pattern[i] = x >> 24;
	}
	for (size_t i = PERIOD; i < sizeof(pattern); i++)
		pattern[i] = pattern[i - PERIOD];
}

static const unsigned char *bytes_at(unsigned int stream, uint64_t offset)
{
	return pattern + (offset + stream * 7919ULL) % PERIOD;
}

static void check_bytes(const unsigned char *got, unsigned int stream, uint64_t offset,
			size_t n)
{
	if (memcmp(got, bytes_at(stream, offset), n))
		fail("stream %u differs from what was sent within %zu bytes of offset "
		     "%llu",
		     stream, n, (unsigned long long)offset);
}

static socklen_t parse_address(const char *text, int port,
			       struct sockaddr_storage *address)
{
	struct sockaddr_in6 *six = (void *)address;
	struct sockaddr_in *four = (void *)address;

	memset(address, 0, sizeof(*address));
	if (inet_pton(AF_INET6, text, &six->sin6_addr) == 1) {
		six->sin6_family = AF_INET6;
		six->sin6_port = htons(port);
		return sizeof(*six);
	}
	if (inet_pton(AF_INET, text, &four->sin_addr) != 1)
		fail("not an address: %s", text);
	four->sin_family = AF_INET;
	four->sin_port = htons(port);
	return sizeof(*four);
}

/* A port of 0 is replaced by the one that the kernel chose. */
static int listen_on(const char *text, int *port)
{
	struct sockaddr_storage address;
	socklen_t length = parse_address(text, *port, &address);
	int fd = socket(address.ss_family, SOCK_STREAM, 0), one = 1;

	setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one));
	if (fd < 0 || bind(fd, (void *)&address, length) || listen(fd, 4096))
		fail("listen on %s", text);
	length = sizeof(address);
	getsockname(fd, (void *)&address, &length);
	*port = ntohs(((struct sockaddr_in *)&address)->sin_port);
	return fd;
}

/* from: 0 lets the kernel choose the local port. */
static int connect_from(int from, const char *text, int port)
{
	struct sockaddr_storage address, local;
	socklen_t length = parse_address(text, port, &address);
	int fd = socket(address.ss_family, SOCK_STREAM, 0), one = 1;

	if (from) {
		setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one));
		parse_address(text, from, &local);
		if (bind(fd, (void *)&local, length))
			fail("bind to port %d", from);
	}
	if (fd < 0 || connect(fd, (void *)&address, length))
		fail("connect to %s port %d", text, port);
	return fd;
}

static void make_pair_at(int listener, int port, int pair[2])
{
	pair[0] = connect_from(0, "127.0.0.1", port);
	pair[1] = accept(listener, NULL, NULL);
	if (pair[1] < 0)
		fail("accept");
}

static void make_pair(int pair[2])
{
	int port = 0, listener = listen_on("127.0.0.1", &port);

	make_pair_at(listener, port, pair);
	close(listener);
}

static void send_all(int fd, const void *data, size_t n)
{
	while (n) {
		ssize_t sent = send(fd, data, n, MSG_NOSIGNAL);

		if (sent < 0)
			fail("send of %zu bytes", n);
		data = (const char *)data + sent;
		n -= sent;
	}
}

/* Fails at the end of the stream and after 20 s without a byte. */
static void recv_all(int fd, void *data, size_t n)
{
	struct timeval patience = { .tv_sec = 20 };

	setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof(patience));
	while (n) {
		ssize_t got = recv(fd, data, n, 0);

		if (got <= 0)
			fail("recv returned %zd with %zu bytes missing", got, n);
		data = (char *)data + got;
		n -= got;
	}
}

static void set_nonblocking(int fd)
{
	fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) | O_NONBLOCK);
}

static long available_kib(void)
{
	char line[128];
	long kib = -1;
	FILE *f = fopen("/proc/meminfo", "r");

	while (f && fgets(line, sizeof(line), f))
		if (sscanf(line, "MemAvailable: %ld", &kib) == 1)
			break;
	fclose(f);
	return kib;
}

/* Waits for a child and takes over its failure. */
static void reap(pid_t pid)
{
	int status;

	waitpid(pid, &status, 0);
	if (status)
		_exit(1);
}

/*
 * echo LISTEN CONNECT BYTES: a connection to each address, BYTES both ways.
 */
static int run_echo(char **args)
{
	int port = 0, listener = listen_on(args[0], &port), client, server;
	size_t n = atol(args[2]);
	unsigned char *buffer = malloc(n);

	client = connect_from(0, args[1], port);
	server = accept(listener, NULL, NULL);
	send_all(client, bytes_at(1, 0), n);
	recv_all(server, buffer, n);
	check_bytes(buffer, 1, 0, n);
	send_all(server, bytes_at(2, 0), n);
	recv_all(client, buffer, n);
	check_bytes(buffer, 2, 0, n);
	printf("echoed=%zu\n", n);
	return 0;
}

/*
 * burst CONNECTIONS MESSAGES: each connection sends that many numbered 4-byte
 * messages at once, without waiting for anything; the server echoes the last.
 */
struct burst_end {
	uint32_t next;
	unsigned char part[4];
	int have;
};

static void burst_server(int listener, int messages)
{
	static struct burst_end ends[65536];
	struct epoll_event event = { .events = EPOLLIN, .data.fd = listener }, events[64];
	int epoll = epoll_create1(0);

	epoll_ctl(epoll, EPOLL_CTL_ADD, listener, &event);
	for (;;) {
		int n = epoll_wait(epoll, events, 64, -1);

		for (int i = 0; i < n; i++) {
			int fd = events[i].data.fd;
			struct burst_end *end = &ends[fd];
			unsigned char buffer[256];
			ssize_t got;

			if (fd == listener) {
				fd = accept(listener, NULL, NULL);
				if (fd < 0)
					fail("accept");
				ends[fd] = (struct burst_end){ 0 };
				event.data.fd = fd;
				epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event);
				continue;
			}
			got = recv(fd, buffer, sizeof(buffer), MSG_DONTWAIT);
			if (got < 0 && errno == EAGAIN)
				continue;
			if (got <= 0) {
				close(fd);
				continue;
			}
			for (ssize_t b = 0; b < got; b++) {
				uint32_t number;

				end->part[end->have++] = buffer[b];
				if (end->have < 4)
					continue;
				end->have = 0;
				memcpy(&number, end->part, 4);
				if (number != end->next)
					fail("message %u arrived where %u was due",
					     number, end->next);
				if (++end->next == (uint32_t)messages)
					send_all(fd, &number, 4);
			}
		}
	}
}

struct burst_job {
	int connections, messages, port;
};

static void *burst_client(void *argument)
{
	struct burst_job *job = argument;

	for (int i = 0; i < job->connections; i++) {
		int fd = connect_from(0, "127.0.0.1", job->port);
		uint32_t last;

		for (int m = 0; m < job->messages; m++)
			send_all(fd, &m, 4);
		recv_all(fd, &last, 4);
		close(fd);
	}
	return NULL;
}

static int run_burst(char **args)
{
	struct burst_job job = { atoi(args[0]) / 4, atoi(args[1]), 0 };
	int listener = listen_on("127.0.0.1", &job.port);
	pthread_t threads[4];
	pid_t server = fork();

	if (!server) {
		burst_server(listener, job.messages);
		_exit(0);
	}
	close(listener);
	for (int i = 0; i < 4; i++)
		pthread_create(&threads[i], NULL, burst_client, &job);
	for (int i = 0; i < 4; i++)
		pthread_join(threads[i], NULL);
	kill(server, SIGTERM);
	printf("connections=%d messages=%d\n", job.connections * 4,
	       job.connections * 4 * job.messages);
	return 0;
}

/*
 * stall CONNECTIONS SIZE [LIMIT_MIB [RCVBUF]]: non-blocking writers write SIZE bytes at
 * a time to readers that do not read, until no writer has got a byte in for
 * 0.5 s (or, to bound a failing test, LIMIT_MIB are in).  RCVBUF: the readers' SO_RCVBUF.
 * Then every reader reads all of it while the writers write on for as much again, once.
 */
static int run_stall(char **args)
{
	int n = atoi(args[0]), epoll = epoll_create1(0);
	int receive = args[2] && args[3] ? atoi(args[3]) : 0;
	size_t size = atol(args[1]);
	uint64_t limit = args[2] ? strtoull(args[2], NULL, 10) << 20 : ~0ULL;
	uint64_t *sent = calloc(n, 8), *got = calloc(n, 8), *target = calloc(n, 8),
		 total = 0;
	static unsigned char buffer[CHUNK_MAX];
	int(*pairs)[2] = calloc(n, sizeof(*pairs));
	double last, longest = 0, first_resume = 0, resumed;
	uint64_t at_stall, left = 0;
	long kib;

	for (int i = 0; i < n; i++) {
		make_pair(pairs[i]);
		set_nonblocking(pairs[i][0]);
		set_nonblocking(pairs[i][1]);
		if (receive)
			setsockopt(pairs[i][1], SOL_SOCKET, SO_RCVBUF, &receive,
				   sizeof(receive));
	}
	usleep(100000);
	kib = available_kib();
	for (last = now_ms(); now_ms() - last < 500 && total < limit;) {
		bool progress = false;

		for (int i = 0; i < n; i++) {
			for (int k = 0; k < 64; k++) {
				ssize_t s = send(pairs[i][0], bytes_at(i, sent[i]), size,
						 MSG_NOSIGNAL);

				if (s < 0 && errno != EAGAIN)
					fail("send failed after %llu bytes on connection "
					     "%d of %d",
					     (unsigned long long)sent[i], i, n);
				if (s < 0)
					break;
				sent[i] += s;
				total += s;
				progress = true;
			}
		}
		if (progress)
			last = now_ms();
		else
			usleep(1000);
	}
	at_stall = total;
	kib -= available_kib();

	/* The readers resume; the writers are due as much again, up to 1 MiB. */
	for (int i = 0; i < n; i++) {
		struct epoll_event event = { .events = EPOLLIN, .data.u32 = i };

		target[i] = sent[i] + (sent[i] < CHUNK_MAX ? sent[i] : CHUNK_MAX);
		left += target[i];
		epoll_ctl(epoll, EPOLL_CTL_ADD, pairs[i][1], &event);
	}
	resumed = last = now_ms();
	while (left) {
		struct epoll_event events[64];
		int ready = epoll_wait(epoll, events, 64, 1);

		for (int e = 0; e < ready; e++) {
			int i = events[e].data.u32;
			ssize_t r = recv(pairs[i][1], buffer, sizeof(buffer), 0);
			double now = now_ms();

			if (r < 0 && errno == EAGAIN)
				continue;
			if (r <= 0)
				fail("recv returned %zd on connection %d", r, i);
			check_bytes(buffer, i, got[i], r);
			got[i] += r;
			left -= r;
			if (!first_resume)
				first_resume = now - resumed;
			if (now - last > longest)
				longest = now - last;
			last = now;
		}
		if (now_ms() - last > 30000)
			fail("no byte for 30 s with %llu missing",
			     (unsigned long long)left);
		for (int i = 0; i < n; i++) {
			size_t due = target[i] - sent[i];
			ssize_t s;

			if (!due)
				continue;
			s = send(pairs[i][0], bytes_at(i, sent[i]),
				 due < size ? due : size, MSG_NOSIGNAL);
			if (s < 0 && errno != EAGAIN)
				fail("send failed after the stall on connection %d", i);
			if (s > 0)
				sent[i] += s;
		}
	}
	printf("accepted=%llu memory_kib=%ld longest_wait_ms=%.0f first_byte_ms=%.0f\n",
	       (unsigned long long)at_stall, kib, longest, first_resume);
	return total >= limit;
}

/*
 * ahead SIZE DEPTH ROUNDS: both ends write DEPTH chunks of SIZE bytes before they read
 * the first, and then one for each that they read.
 */
struct ahead {
	int fd;
	size_t size;
	int depth, rounds;
	unsigned int out, in;
};

static void *ahead_end(void *argument)
{
	struct ahead *end = argument;
	unsigned char *buffer = malloc(end->size);

	for (int i = 0; i < end->depth + end->rounds; i++) {
		if (i >= end->depth)
			recv_all(end->fd, buffer, end->size);
		for (size_t at = 0, n; at < end->size; at += n) {
			n = end->size - at < CHUNK_MAX ? end->size - at : CHUNK_MAX;
			if (i >= end->depth)
				check_bytes(buffer + at, end->in, i - end->depth, n);
			memcpy(buffer + at, bytes_at(end->out, i), n);
		}
		send_all(end->fd, buffer, end->size);
	}
	free(buffer);
	return NULL;
}

static int run_ahead(char **args)
{
	struct ahead ends[2] = { { .out = 1, .in = 2 }, { .out = 2, .in = 1 } };
	pthread_t threads[2];
	int pair[2];

	make_pair(pair);
	alarm(20); /* both wait */
	for (int i = 0; i < 2; i++) {
		ends[i].fd = pair[i];
		ends[i].size = atoi(args[0]);
		ends[i].depth = atoi(args[1]);
		ends[i].rounds = atoi(args[2]);
		if (pthread_create(&threads[i], NULL, ahead_end, &ends[i]))
			return 1;
	}
	for (int i = 0; i < 2; i++)
		pthread_join(threads[i], NULL);
	printf("rounds=%d\n", ends[0].rounds);
	return 0;
}

/*
 * mix BYTES SEED: both ends at once write chunks of 1 B to 1 MB, pause, and
 * read pieces of any size, until BYTES have gone each way.  Each end is one
 * thread that polls.
 */
struct mix_end {
	int fd;
	unsigned int out, in; /* streams */
	uint64_t bytes, sent, got;
	double write_after, read_after; /* pauses, in now_ms() */
};

/* Small sizes as often as large ones. */
static size_t mix_size(void)
{
	return 1 + random_below(1ULL << (1 + random_below(20)));
}

static double mix_pause(void)
{
	return random_below(2000) ? 0 : now_ms() + random_below(20);
}

static void mix_write(struct mix_end *end)
{
	size_t n = mix_size();
	ssize_t sent;

	if (n > end->bytes - end->sent)
		n = end->bytes - end->sent;
	sent = send(end->fd, bytes_at(end->out, end->sent), n, MSG_NOSIGNAL);
	if (sent < 0 && errno != EAGAIN)
		fail("send after %llu bytes", (unsigned long long)end->sent);
	if (sent > 0)
		end->sent += sent;
	if (end->sent == end->bytes)
		shutdown(end->fd, SHUT_WR);
	end->write_after = mix_pause();
}

/* Returns false at the end of the stream. */
static bool mix_read(struct mix_end *end)
{
	static unsigned char buffer[CHUNK_MAX];
	ssize_t n = recv(end->fd, buffer, mix_size(), 0);

	if (n < 0 && errno != EAGAIN)
		fail("recv after %llu bytes", (unsigned long long)end->got);
	if (n > 0) {
		check_bytes(buffer, end->in, end->got, n);
		end->got += n;
	}
	end->read_after = mix_pause();
	return n != 0;
}

static void mix(struct mix_end *end)
{
	double last = now_ms();
	bool open = true;

	set_nonblocking(end->fd);
	while (open || end->sent < end->bytes) {
		struct pollfd p = { .fd = end->fd };
		double now = now_ms();

		if (end->sent < end->bytes && now >= end->write_after)
			p.events |= POLLOUT;
		if (open && now >= end->read_after)
			p.events |= POLLIN;
		if (poll(&p, 1, p.events ? 1000 : 1) > 0)
			last = now;
		if (p.events && now - last > 30000)
			fail("nothing moved for 30 s: %llu sent, %llu read",
			     (unsigned long long)end->sent, (unsigned long long)end->got);
		if (p.revents & p.events & POLLOUT)
			mix_write(end);
		if (p.revents & p.events & POLLIN)
			open = mix_read(end);
	}
	if (end->got != end->bytes)
		fail("%llu of %llu bytes arrived", (unsigned long long)end->got,
		     (unsigned long long)end->bytes);
}

static int run_mix(char **args)
{
	struct mix_end end = { .bytes = strtoull(args[0], NULL, 10) };
	int pair[2];
	pid_t child;

	make_pair(pair);
	child = fork();
	random_state ^= strtoull(args[1], NULL, 10) * 2654435761u + !child;
	end.fd = pair[child ? 0 : 1];
	close(pair[child ? 1 : 0]);
	end.out = child ? 1 : 2;
	end.in = child ? 2 : 1;
	mix(&end);
	if (!child)
		_exit(0);
	reap(child);
	printf("each_way=%llu\n", (unsigned long long)end.bytes);
	return 0;
}

/*
 * tuples: the same four numbers (addresses, ports) in two new network
 * namespaces; each end in turn is closed and each other end talks.
 */
static void new_namespace(void)
{
	struct ifreq lo = { .ifr_name = "lo", .ifr_flags = IFF_UP };
	int fd;

	if (unshare(CLONE_NEWNET))
		fail("unshare");
	fd = socket(AF_INET, SOCK_DGRAM, 0);
	if (ioctl(fd, SIOCSIFFLAGS, &lo))
		fail("lo up");
	close(fd);
}

/* early: the end closes before the second namespace's connection is made. */
static void talk_over_tuples(int closed, bool early)
{
	int ends[4]; /* client, server of the first namespace; of the second */
	char byte;

	for (int ns = 0; ns < 2; ns++) {
		int port = 7000, listener;

		new_namespace();
		listener = listen_on("127.0.0.1", &port);
		ends[ns * 2] = connect_from(7001, "127.0.0.1", port);
		ends[ns * 2 + 1] = accept(listener, NULL, NULL);
		close(listener);
		if (early && !ns)
			close(ends[closed]);
	}
	if (!early)
		close(ends[closed]);
	for (int from = 0; from < 4; from++) {
		char letter = 'a' + from;

		if (from == closed)
			continue;
		for (int k = 0; k < 3; k++)
			if (send(ends[from], &letter, 1, MSG_NOSIGNAL) < 0 &&
			    from != (closed ^ 1))
				fail("send of end %d with end %d closed", from, closed);
	}
	usleep(20000);
	for (int to = 0; to < 4; to++) {
		int letters = 0;

		if (to == closed)
			continue;
		while (recv(ends[to], &byte, 1, MSG_DONTWAIT) == 1) {
			if (byte != 'a' + (to ^ 1))
				fail("end %d read a byte of end %d", to, byte - 'a');
			letters++;
		}
		if (to != (closed ^ 1) && letters != 3)
			fail("end %d read %d of 3 bytes", to, letters);
	}
	for (int i = 0; i < 4; i++)
		if (i != closed)
			close(ends[i]);
}

static int run_tuples(void)
{
	for (int closed = 0; closed < 4; closed++)
		talk_over_tuples(closed, false);
	talk_over_tuples(0, true);
	talk_over_tuples(1, true);
	printf("leaked=0\n");
	return 0;
}

/*
 * waitall: a reader waits in recv(MSG_WAITALL) for 20,000 bytes of which only
 * some have come, by TCP; then the rest comes.  For that the direction must
 * have fallen back: the reader first lets a backlog grow beyond its limit.
 */
static void *waitall_reader(void *argument)
{
	int fd = *(int *)argument;
	static unsigned char buffer[20000];
	uint64_t got = 0;

	for (int round = 0; round < 50; round++) {
		size_t have = 0;

		while (have < sizeof(buffer)) { /* fused, it may return short */
			ssize_t n = recv(fd, buffer + have, sizeof(buffer) - have,
					 MSG_WAITALL);

			if (n <= 0)
				fail("recv(MSG_WAITALL) returned %zd in round %d", n,
				     round);
			check_bytes(buffer + have, 5, got + have, n);
			have += n;
		}
		got += have;
		usleep(random_below(3000));
	}
	return NULL;
}

static int run_waitall(void)
{
	uint64_t sent = 0, total = 50 * 20000;
	pthread_t reader;
	int pair[2];

	make_pair(pair);
	/* 50 small messages wait, more than may be fused: TCP takes over. */
	for (; sent < 50 * 16; sent += 16)
		send_all(pair[0], bytes_at(5, sent), 16);
	pthread_create(&reader, NULL, waitall_reader, &pair[1]);
	while (sent < total) {
		size_t n = 1 + random_below(9000);

		if (n > total - sent)
			n = total - sent;
		send_all(pair[0], bytes_at(5, sent), n);
		sent += n;
		/* let the reader take everything, so that fusing is due again */
		for (int k = 0; k < 20; k++) {
			int unread = 0;

			ioctl(pair[1], FIONREAD, &unread);
			if (!unread)
				break;
			usleep(500);
		}
		usleep(random_below(1500));
	}
	alarm(20); /* a reader that hangs */
	pthread_join(reader, NULL);
	printf("rounds=50\n");
	return 0;
}

/* A connection of that user's to a service of ours */
static void make_pair_of(const char *uid, int listener, int port, int pair[2])
{
	if (seteuid(atoi(uid)))
		fail("seteuid");
	pair[0] = connect_from(0, "127.0.0.1", port);
	if (seteuid(0))
		fail("seteuid back");
	pair[1] = accept(listener, NULL, NULL);
}

/*
 * flagged PORT UID END: one connection, of that user's, to a service of this one's at
 * that port; 100 bytes each way.  END, client or server, reads with MSG_WAITALL.
 */
static int run_flagged(char **args)
{
	int port = atoi(args[0]), listener = listen_on("127.0.0.1", &port), pair[2];
	const char *names[2] = { "client", "server" };
	unsigned char got[100];

	make_pair_of(args[1], listener, port, pair);
	for (int reader = 0; reader < 2; reader++) {
		send_all(pair[!reader], bytes_at(reader, 0), sizeof(got));
		if (strcmp(args[2], names[reader]))
			recv_all(pair[reader], got, sizeof(got));
		else if (recv(pair[reader], got, sizeof(got), MSG_WAITALL) != sizeof(got))
			fail("recv(MSG_WAITALL)");
		check_bytes(got, reader, 0, sizeof(got));
	}
	return 0;
}

/*
 * visits PORT UID CONNECTIONS HOW N [open]: so many connections of that user's, one after
 * the other, to a service at that port, each with
 *	talk	N requests and answers of 100 bytes
 *	mixed	the same, but a single one on 15 of 16 connections
 *	apart	the same as talk, and 150 ms between the connections
 *	stream	N messages of 64 bytes one way, each read before the next
 *	slow	the same, with pauses of 0.5 ms
 *	naps	the same, with pauses as short as can be
 *	busy	the same, with 100 us of work for each
 *	sparse	the same, with an answer to each eight
 *	upload, download	N of 64 KB, to the service or from it
 *	files	N requests of 100 bytes, and 60,000 bytes by sendfile() for each
 *	pages	the same, behind a header of 200 bytes
 * Then both ends close, but with "open" the client only when the last connection is done
 * and a line has come on standard input.
 */
static void visit_message(int from, int to, size_t n, uint64_t offset)
{
	static unsigned char buffer[65536];

	send_all(from, bytes_at(1, offset), n);
	recv_all(to, buffer, n);
	check_bytes(buffer, 1, offset, n);
}

static void visit_file(int from, int to, size_t n)
{
	static unsigned char buffer[65536];
	static int file = -1;
	off_t start = 0;

	if (file < 0) {
		file = memfd_create("visit", 0);
		if (write(file, bytes_at(1, 0), n) != (ssize_t)n)
			fail("write");
	}
	if (sendfile(from, file, &start, n) != (ssize_t)n)
		fail("sendfile");
	recv_all(to, buffer, n);
	check_bytes(buffer, 1, 0, n);
}

/* keeps the processor for so long */
static void work(double ms)
{
	double end = now_ms() + ms;

	while (now_ms() < end)
		;
}

static void visit(const int pair[2], const char *how, int n)
{
	bool talk =
		!strcmp(how, "talk") || !strcmp(how, "mixed") || !strcmp(how, "apart");

	for (int i = 0; i < n; i++) {
		bool page = !strcmp(how, "pages"), file = page || !strcmp(how, "files");

		if (file || talk)
			visit_message(pair[0], pair[1], 100, i);
		if (page)
			visit_message(pair[1], pair[0], 200, i);
		if (talk)
			visit_message(pair[1], pair[0], 100, i);
		else if (file)
			visit_file(pair[1], pair[0], 60000);
		else if (!strcmp(how, "upload"))
			visit_message(pair[0], pair[1], 65536, i);
		else if (!strcmp(how, "download"))
			visit_message(pair[1], pair[0], 65536, i);
		else
			visit_message(pair[0], pair[1], 64, i);
		if (!strcmp(how, "slow"))
			usleep(500);
		if (!strcmp(how, "naps"))
			usleep(1);
		if (!strcmp(how, "busy"))
			work(0.1);
		if (!strcmp(how, "sparse") && i % 8 == 7)
			visit_message(pair[1], pair[0], 64, i);
	}
}

static int run_visits(char **args)
{
	int port = atoi(args[0]), listener = listen_on("127.0.0.1", &port), pair[2];
	char line[16];

	prctl(PR_SET_TIMERSLACK, 1); /* ns */
	for (int i = 0; i < atoi(args[2]); i++) {
		make_pair_of(args[1], listener, port, pair);
		for (int end = 0; end < 2; end++)
			setsockopt(pair[end], IPPROTO_TCP, TCP_NODELAY, &(int){ 1 },
				   sizeof(int));
		visit(pair, args[3],
		      !strcmp(args[3], "mixed") && i % 16 != 15 ? 1 : atoi(args[4]));
		if (!strcmp(args[3], "apart"))
			usleep(150000);
		if (!args[5])
			close(pair[0]);
		close(pair[1]);
	}
	printf("visited\n");
	fflush(stdout);
	return args[5] && !fgets(line, sizeof(line), stdin);
}

/*
 * splice HOW: two connections of one service, whose reader takes 100 bytes that are
 * there: by splice(2) (call), as a program of 32 bits calls it (ia32), by sendfile(2)
 * into a pipe (sendfile), by io_uring (uring), or, nothing that looks past fused bytes,
 * by a read that a worker of io_uring does (uring_read).  How many came, or -errno.
 */
#define SPLICED 100

#ifdef __x86_64__
static long splice_ia32(int from, int to)
{
	long result;

	/* 313, in, off_in, out, off_out, length, flags */
	asm volatile("mov %%rbp, %%r12\n\t"
		     "xor %%ebp, %%ebp\n\t"
		     "int $0x80\n\t"
		     "mov %%r12, %%rbp"
		     : "=a"(result)
		     : "0"(313L), "b"((long)from), "c"(0L), "d"((long)to), "S"(0L),
		       "D"((long)SPLICED)
		     : "memory", "r8", "r9", "r10", "r11", "r12");
	return (int)result;
}
#else
static long splice_ia32(int from, int to)
{
	(void)from, (void)to;
	return -ENOSYS;
}
#endif

/* A ring for this one request; its result. */
static long by_uring(const struct io_uring_sqe *request)
{
	struct io_uring_params params = {};
	int ring = syscall(__NR_io_uring_setup, 1, &params);
	struct io_uring_sqe *sqes;
	char *submit, *done;

	if (ring < 0)
		fail("io_uring_setup");
	submit = mmap(NULL, params.sq_off.array + 4, PROT_READ | PROT_WRITE,
		      MAP_SHARED | MAP_POPULATE, ring, IORING_OFF_SQ_RING);
	done = mmap(NULL,
		    params.cq_off.cqes + params.cq_entries * sizeof(struct io_uring_cqe),
		    PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, ring,
		    IORING_OFF_CQ_RING);
	sqes = mmap(NULL, sizeof(*sqes), PROT_READ | PROT_WRITE,
		    MAP_SHARED | MAP_POPULATE, ring, IORING_OFF_SQES);
	if (submit == MAP_FAILED || done == MAP_FAILED || sqes == MAP_FAILED)
		fail("mmap of the ring");
	*sqes = *request;
	*(uint32_t *)(submit + params.sq_off.array) = 0;
	__atomic_store_n((uint32_t *)(submit + params.sq_off.tail), 1, __ATOMIC_RELEASE);
	if (syscall(__NR_io_uring_enter, ring, 1, 1, IORING_ENTER_GETEVENTS, NULL, 0) !=
	    1)
		fail("io_uring_enter");
	close(ring);
	return ((struct io_uring_cqe *)(done + params.cq_off.cqes))->res;
}

static long take_spliced(const char *how, int from, const int pipe[2])
{
	static unsigned char buffer[SPLICED];
	struct io_uring_sqe splice_it = {
		.opcode = IORING_OP_SPLICE,
		.fd = pipe[1],
		.off = -1,
		.splice_fd_in = from,
		.splice_off_in = -1,
		.len = SPLICED,
	};
	struct io_uring_sqe read_it = {
		.opcode = IORING_OP_READ,
		.flags = IOSQE_ASYNC,
		.fd = from,
		.addr = (uintptr_t)buffer,
		.len = SPLICED,
	};
	long n;

	if (!strcmp(how, "ia32"))
		return splice_ia32(from, pipe[1]);
	if (!strcmp(how, "uring"))
		return by_uring(&splice_it);
	if (!strcmp(how, "uring_read")) {
		n = by_uring(&read_it);
		return n > 0 ? write(pipe[1], buffer, n) : n;
	}
	if (!strcmp(how, "sendfile"))
		n = sendfile(pipe[1], from, NULL, SPLICED);
	else
		n = splice(from, NULL, pipe[1], NULL, SPLICED, 0);
	return n < 0 ? -errno : n;
}

static int run_splice(const char *how)
{
	int port = 0, listener = listen_on("127.0.0.1", &port), pair[2], pipes[2];
	unsigned char got[SPLICED];
	long n[2];

	for (int i = 0; i < 2; i++) {
		make_pair_at(listener, port, pair);
		if (pipe(pipes))
			fail("pipe");
		send_all(pair[0], bytes_at(i, 0), SPLICED);
		alarm(20); /* one that waits for TCP's bytes */
		n[i] = take_spliced(how, pair[1], pipes);
		alarm(0);
		if (n[i] <= 0)
			recv_all(pair[1], got, SPLICED);
		else if (read(pipes[0], got, SPLICED) != SPLICED)
			fail("%ld bytes spliced", n[i]);
		check_bytes(got, i, 0, SPLICED);
		close(pair[0]);
		close(pair[1]);
	}
	printf("first=%ld second=%ld\n", n[0], n[1]);
	return 0;
}

/*
 * ktls: an end that becomes kTLS after it was fused.  What it sends its peer's
 * TCP reader gets as records, and a kTLS reader gets no plain bytes for records.
 * A service that was refused kTLS gets a second connection.
 */
/* False: this kernel does not let a socket that is in a sockhash become kTLS. */
static bool use_tls(int fd, int direction)
{
	struct tls12_crypto_info_aes_gcm_128 keys = {
		.info = { .version = TLS_1_2_VERSION,
			  .cipher_type = TLS_CIPHER_AES_GCM_128 },
	};

	if (setsockopt(fd, IPPROTO_TCP, TCP_ULP, "tls", 3))
		fail("TCP_ULP: is the tls module loaded?");
	if (!setsockopt(fd, SOL_TLS, direction, &keys, sizeof(keys)))
		return true;
	if (errno != EINVAL)
		fail("kTLS, direction %d", direction);
	return false;
}

/* True: the ends could become kTLS, the sender, the receiver or both. */
static bool ktls_dialogue(const int pair[2], bool sends, bool receives)
{
	unsigned char buffer[2000];
	ssize_t n;

	for (int i = 0; i < 2; i++) {
		send_all(pair[i], bytes_at(1, 0), 100);
		recv_all(pair[!i], buffer, 100);
	}
	if ((sends && !use_tls(pair[0], TLS_TX)) ||
	    (receives && !use_tls(pair[1], TLS_RX)))
		return false;
	send_all(pair[0], bytes_at(1, 0), 1000);
	n = recv(pair[1], buffer, sizeof(buffer), 0);
	if (!receives &&
	    (n < 5 || buffer[0] != 23 || memmem(buffer, n, bytes_at(1, 0), 16)))
		fail("a TCP reader got %zd bytes that are no TLS record", n);
	if (!sends && n >= 0)
		fail("a kTLS reader took %zd plain bytes", n);
	if (sends && receives && (n != 1000 || memcmp(buffer, bytes_at(1, 0), 1000)))
		fail("kTLS to kTLS: recv %zd", n);
	return true;
}

static int run_ktls(void)
{
	int at_once = 0, later = 0;

	for (int ends = 1; ends <= 3; ends++) {
		int port = 0, listener = listen_on("127.0.0.1", &port);

		for (int again = 0; again < 2; again++) {
			int pair[2];
			bool done;

			make_pair_at(listener, port, pair);
			done = ktls_dialogue(pair, ends & 1, ends & 2);
			*(again ? &later : &at_once) += done;
			close(pair[0]);
			close(pair[1]);
		}
		close(listener);
	}
	printf("at_once=%d later=%d\n", at_once, later);
	return 0;
}

/*
 * hold CONNECTIONS [SECONDS]: so many at a time, each with a message each way;
 * spread over processes, since descriptors are limited.
 */
#define HOLD_EACH 6000

static void hold_some(int n, int number)
{
	int(*pairs)[2] = calloc(n, sizeof(*pairs));
	char address[32];
	int port = 0, listener;
	unsigned char buffer[100];

	snprintf(address, sizeof(address), "127.0.1.%d", number + 1);
	listener = listen_on(address, &port);
	for (int i = 0; i < n; i++) {
		pairs[i][0] = connect_from(0, address, port);
		pairs[i][1] = accept(listener, NULL, NULL);
		if (pairs[i][1] < 0)
			fail("accept of connection %d", i);
	}
	for (int turn = 0; turn < 2; turn++) {
		for (int i = 0; i < n; i++)
			send_all(pairs[i][turn],
				 bytes_at(number * HOLD_EACH + i + turn, 0), 100);
		for (int i = 0; i < n; i++) {
			recv_all(pairs[i][!turn], buffer, 100);
			check_bytes(buffer, number * HOLD_EACH + i + turn, 0, 100);
		}
	}
}

static int run_hold(char **args)
{
	int n = atoi(args[0]), processes = (n + HOLD_EACH - 1) / HOLD_EACH;
	int done[2], go[2];
	char byte = 0;

	if (pipe(done) || pipe(go))
		fail("pipe");
	for (int p = 0; p < processes; p++) {
		if (!fork()) {
			hold_some(p < processes - 1 ? HOLD_EACH : n - p * HOLD_EACH, p);
			close(go[1]);
			if (write(done[1], &byte, 1) != 1 || read(go[0], &byte, 1))
				fail("pipe");
			_exit(0);
		}
	}
	close(done[1]);
	for (int p = 0; p < processes; p++)
		if (read(done[0], &byte, 1) != 1)
			fail("a process failed");
	/* All are open now. */
	printf("connections=%d\n", n);
	fflush(stdout);
	if (args[1])
		sleep(atoi(args[1]));
	close(go[1]);
	for (int p = 0; p < processes; p++)
		reap(-1);
	return 0;
}

static void enter_cgroup(const char *procs)
{
	int fd = open(procs, O_WRONLY);

	if (fd < 0 || write(fd, "0", 1) != 1)
		fail("%s", procs);
	close(fd);
}

#define ALONE_BYTES 3000000
#define ALONE_WRITE 50000

static void *send_alone(void *argument)
{
	for (size_t sent = 0; sent < ALONE_BYTES; sent += ALONE_WRITE)
		send_all(*(int *)argument, bytes_at(1, sent), ALONE_WRITE);
	return NULL;
}

/*
 * alone connected|accepted PROCS: that end of a connection is in the cgroup of that
 * cgroup.procs, the other is not.  It reads at each edge for as long as FIONREAD says
 * that there is more, as nginx does.
 */
static int run_alone(char **args)
{
	bool connected = !strcmp(args[0], "connected");
	struct epoll_event event = { .events = EPOLLIN | EPOLLET };
	int pair[2], port = 0, left, epoll = epoll_create1(0);
	struct sockaddr_storage address;
	static unsigned char buffer[4096];
	size_t got = 0;
	socklen_t length;
	pthread_t writer;
	int listener;
	ssize_t n;

	pair[0] = connected ? -1 : socket(AF_INET, SOCK_STREAM, 0);
	listener = connected ? listen_on("127.0.0.1", &port) : -1;
	enter_cgroup(args[1]);
	if (connected)
		pair[0] = socket(AF_INET, SOCK_STREAM, 0);
	else
		listener = listen_on("127.0.0.1", &port);
	length = parse_address("127.0.0.1", port, &address);
	if (connect(pair[0], (void *)&address, length))
		fail("connect");
	pair[1] = accept(listener, NULL, NULL);
	if (epoll_ctl(epoll, EPOLL_CTL_ADD, pair[!connected], &event))
		fail("epoll_ctl");
	if (pthread_create(&writer, NULL, send_alone, &pair[connected]))
		fail("pthread_create");
	while (got < ALONE_BYTES) {
		if (epoll_wait(epoll, &event, 1, 5000) != 1)
			fail("no edge after %zu of %d bytes", got, ALONE_BYTES);
		do {
			n = recv(pair[!connected], buffer, sizeof(buffer), MSG_DONTWAIT);
			if (n < 0)
				break;
			check_bytes(buffer, 1, got, n);
			got += n;
			left = 0;
			ioctl(pair[!connected], FIONREAD, &left);
		} while (left);
	}
	printf("bytes=%zu\n", got);
	return 0;
}

/*
 * deferred: a connection that accepts only once bytes are there.  Its client connects
 * while another connection is open, which closes before the client sends.  Says what
 * FIONREAD tells of the 90 bytes where they were accepted.
 */
static int run_deferred(void)
{
	int other[2], pair[2], port = 0, listener = listen_on("127.0.0.1", &port),
			       left = 0, yes = 1;
	struct sockaddr_storage address;
	socklen_t length = parse_address("127.0.0.1", port, &address);
	struct pollfd readable = { .events = POLLIN };

	make_pair(other);
	setsockopt(listener, SOL_TCP, TCP_DEFER_ACCEPT, &yes, sizeof(yes));
	pair[0] = socket(AF_INET, SOCK_STREAM, 0);
	if (connect(pair[0], (void *)&address, length))
		fail("connect");
	close(other[0]);
	close(other[1]);
	send_all(pair[0], bytes_at(1, 0), 90);
	pair[1] = accept(listener, NULL, NULL);
	readable.fd = pair[1];
	if (poll(&readable, 1, 5000) != 1 || ioctl(pair[1], FIONREAD, &left))
		fail("nothing to read");
	printf("bytes=%d\n", left);
	return 0;
}

/*
 * nbd: one end of a connection is handed to the kernel's block device, which reads there.
 * Then the other end sends 16 bytes.
 */
static void *nbd_device(void *argument)
{
	ioctl(*(int *)argument, NBD_DO_IT);
	return NULL;
}

static int run_nbd(void)
{
	int pair[2], device = open("/dev/nbd0", O_RDWR);
	unsigned char byte;
	pthread_t thread;

	make_pair(pair);
	send_all(pair[0], bytes_at(1, 0), 1);
	recv_all(pair[1], &byte, 1);
	if (device < 0 || ioctl(device, NBD_SET_SIZE, 4096UL) ||
	    ioctl(device, NBD_SET_SOCK, pair[0]) ||
	    pthread_create(&thread, NULL, nbd_device, &device))
		fail("/dev/nbd0");
	usleep(500000); /* it waits for an answer */
	send_all(pair[1], bytes_at(2, 0), 16);
	usleep(100000);
	ioctl(device, NBD_DISCONNECT);
	close(pair[1]);
	pthread_join(thread, NULL);
	ioctl(device, NBD_CLEAR_SOCK);
	return 0;
}

/*
 * late: two threads read one socket.  One, of this name, finds bytes that went by TCP and
 * is on the way to take them, for half a second (tests/late.bpf.c).  The other takes them
 * meanwhile, and more are sent, for the first.
 */
static void *late_reader(void *argument)
{
	unsigned char bytes[100];

	if (prctl(PR_SET_NAME, "late"))
		fail("PR_SET_NAME");
	return (void *)recv(*(int *)argument, bytes, sizeof(bytes), 0);
}

static int run_late(void)
{
	struct timespec until;
	pthread_t thread;
	int pair[2], more = 2, one = 1;
	void *n = NULL;

	make_pair(pair);
	setsockopt(pair[1], SOL_SOCKET, SO_RCVLOWAT, &more, sizeof(more));
	send_all(pair[0], "tcp", 3);
	setsockopt(pair[1], SOL_SOCKET, SO_RCVLOWAT, &one, sizeof(one));
	if (pthread_create(&thread, NULL, late_reader, &pair[1]))
		fail("pthread_create");
	usleep(100000);
	if (recv(pair[1], (char[3]){}, 3, MSG_DONTWAIT) != 3)
		fail("the late reader was not late");
	send_all(pair[0], "fused?", 6);
	clock_gettime(CLOCK_REALTIME, &until);
	until.tv_sec += 5;
	if (pthread_timedjoin_np(thread, &n, &until))
		fail("the late reader sleeps while bytes wait");
	printf("late=%ld\n", (long)n);
	return 0;
}

/*
 * unread: bytes are sent and not read; a line on standard input later (the
 * test unloads meanwhile) more are sent, and all are read.  So few that nothing
 * but the switch speaks against fusing the later ones.
 */
static int run_unread(void)
{
	static unsigned char buffer[30000];
	int pair[2];
	char line[16];

	make_pair(pair);
	send_all(pair[0], bytes_at(3, 0), 20000);
	printf("ready\n");
	fflush(stdout);
	if (!fgets(line, sizeof(line), stdin))
		return 1;
	send_all(pair[0], bytes_at(3, 20000), 10000);
	recv_all(pair[1], buffer, sizeof(buffer));
	check_bytes(buffer, 3, 0, sizeof(buffer));
	send_all(pair[1], bytes_at(4, 0), 1000);
	recv_all(pair[0], buffer, 1000);
	check_bytes(buffer, 4, 0, 1000);
	printf("read=31000\n");
	return 0;
}

/*
 * mptcp: a connection of MPTCP sockets; its subflows have an upper-layer
 * protocol.
 */
static int run_mptcp(void)
{
	struct sockaddr_storage address;
	socklen_t length = parse_address("127.0.0.1", 0, &address);
	int listener = socket(AF_INET, SOCK_STREAM, IPPROTO_MPTCP);
	int client = socket(AF_INET, SOCK_STREAM, IPPROTO_MPTCP), server;
	unsigned char buffer[1000];

	if (listener < 0 || client < 0 || bind(listener, (void *)&address, length) ||
	    listen(listener, 1) || getsockname(listener, (void *)&address, &length) ||
	    connect(client, (void *)&address, length))
		fail("mptcp");
	server = accept(listener, NULL, NULL);
	for (int turn = 0; turn < 10; turn++) {
		send_all(client, bytes_at(1, turn), sizeof(buffer));
		recv_all(server, buffer, sizeof(buffer));
		check_bytes(buffer, 1, turn, sizeof(buffer));
	}
	printf("echoed=10000\n");
	return 0;
}

/* repair: a socket in repair mode is established by connect() alone. */
static int run_repair(void)
{
	int fd = socket(AF_INET, SOCK_STREAM, 0), on = 1;
	struct sockaddr_storage address;
	socklen_t length = parse_address("127.0.0.1", 9, &address);

	if (setsockopt(fd, IPPROTO_TCP, TCP_REPAIR, &on, sizeof(on)) ||
	    connect(fd, (void *)&address, length))
		fail("repair");
	printf("repaired=1\n");
	return 0;
}

/*
 * beside CONNECTIONS: to one service, one after the other.  It sends 40 MB, more than
 * its client lets wait, while a thread of it sleeps in recv on the same socket.  The
 * client reads all, answers, and closes.  Prints on how many connections that recv
 * failed, and the last of them.
 */
#define BESIDE_BYTES (40 << 20)

static void *beside_reader(void *argument)
{
	int fd = *(int *)argument;
	void *failed = NULL;
	unsigned char byte;
	ssize_t n;

	while ((n = recv(fd, &byte, 1, 0)) < 0 && errno == EAGAIN)
		failed = argument;
	if (n != 1)
		fail("recv returned %zd, errno %d", n, n ? errno : 0);
	return failed;
}

static void beside_client(int port)
{
	static unsigned char buffer[1 << 20];
	int fd = connect_from(0, "127.0.0.1", port);

	usleep(300000); /* the service has come to sleep */
	for (uint64_t got = 0; got < BESIDE_BYTES; got += sizeof(buffer)) {
		recv_all(fd, buffer, sizeof(buffer));
		check_bytes(buffer, 1, got, sizeof(buffer));
	}
	send_all(fd, "", 1);
	close(fd);
	_exit(0);
}

static int run_beside(char **args)
{
	int port = 0, listener = listen_on("127.0.0.1", &port), failed = 0, last = 0;

	for (int i = 1; i <= atoi(args[0]); i++) {
		pid_t client = fork();
		pthread_t reader;
		void *again;
		int fd;

		if (!client)
			beside_client(port);
		fd = accept(listener, NULL, NULL);
		pthread_create(&reader, NULL, beside_reader, &fd);
		usleep(100000);
		for (uint64_t sent = 0; sent < BESIDE_BYTES; sent += 65536)
			send_all(fd, bytes_at(1, sent), 65536);
		pthread_join(reader, &again);
		failed += !!again;
		if (again)
			last = i;
		close(fd);
		reap(client);
	}
	printf("failed=%d last=%d\n", failed, last);
	return 0;
}

/*
 * pipelined CONNECTIONS DONTWAIT: to one service, one after the other.  The client is one
 * thread: it sends 12 MB (if DONTWAIT is 1, with MSG_DONTWAIT, again and again), and then
 * it waits for all answers, 5 bytes for each 100 KB.  The service pauses now and then, so
 * that the client fills TCP's send buffer.  Prints on how many connections recv failed,
 * and the last of them.
 */
#define PIPELINED_BYTES 12000000
#define PIPELINED_ANSWERED 100000

static void pipelined_service(int listener, int connections)
{
	static unsigned char buffer[65536];

	for (int i = 0; i < connections; i++) {
		int fd = accept(listener, NULL, NULL), answers = 0;

		for (uint64_t got = 0; got < PIPELINED_BYTES;) {
			ssize_t n = recv(fd, buffer, sizeof(buffer), 0);

			if (n <= 0)
				fail("the service's recv returned %zd", n);
			check_bytes(buffer, 1, got, n);
			got += n;
			if (random_below(8) == 0)
				usleep(random_below(3000));
			for (; answers < (int)(got / PIPELINED_ANSWERED); answers++)
				send_all(fd, bytes_at(2, 5 * answers), 5);
		}
		close(fd);
	}
	_exit(0);
}

/* Returns whether a recv answered EAGAIN. */
static bool pipelined_client(int port, int flags)
{
	unsigned char buffer[5 * PIPELINED_BYTES / PIPELINED_ANSWERED];
	int fd = connect_from(0, "127.0.0.1", port);
	bool failed = false;

	for (uint64_t sent = 0; sent < PIPELINED_BYTES;) {
		size_t most =
			PIPELINED_BYTES - sent < 50000 ? PIPELINED_BYTES - sent : 50000;
		ssize_t n = send(fd, bytes_at(1, sent), most, flags | MSG_NOSIGNAL);

		if (n < 0 && errno != EAGAIN)
			fail("send after %llu bytes", (unsigned long long)sent);
		sent += n > 0 ? n : 0;
		if (n < 0)
			usleep(1000);
	}
	for (size_t got = 0; got < sizeof(buffer);) {
		ssize_t n = recv(fd, buffer + got, sizeof(buffer) - got, 0);

		if (n == 0 || (n < 0 && errno != EAGAIN))
			fail("recv returned %zd", n);
		failed |= n < 0;
		got += n > 0 ? n : 0;
	}
	check_bytes(buffer, 2, 0, sizeof(buffer));
	close(fd);
	return failed;
}

static int run_pipelined(char **args)
{
	int port = 0, listener = listen_on("127.0.0.1", &port), failed = 0, last = 0;
	int connections = atoi(args[0]), flags = atoi(args[1]) ? MSG_DONTWAIT : 0;
	pid_t service = fork();

	if (!service)
		pipelined_service(listener, connections);
	for (int i = 1; i <= connections; i++) {
		if (!pipelined_client(port, flags))
			continue;
		failed++;
		last = i;
	}
	reap(service);
	printf("failed=%d last=%d\n", failed, last);
	return 0;
}

/*
 * early: a reader goes to sleep before its connection is established, since the
 * accept queue is full (the SYN is sent again a second later); what the other end sends
 * reaches it.
 */
static void *early_reader(void *fd)
{
	unsigned char buffer[5];

	recv_all((intptr_t)fd, buffer, sizeof(buffer));
	check_bytes(buffer, 1, 0, sizeof(buffer));
	return NULL;
}

static int run_early(void)
{
	int port = 0, listener = listen_on("127.0.0.1", &port), first, fd;
	struct sockaddr_storage address;
	socklen_t length = parse_address("127.0.0.1", port, &address);
	pthread_t reader;

	listen(listener, 0); /* takes one */
	first = connect_from(0, "127.0.0.1", port);
	fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
	if (!connect(fd, (void *)&address, length) || errno != EINPROGRESS)
		fail("the accept queue is not full");
	fcntl(fd, F_SETFL, 0);
	if (pthread_create(&reader, NULL, early_reader, (void *)(intptr_t)fd))
		fail("pthread_create");
	usleep(100000);
	close(accept(listener, NULL, NULL));
	send_all(accept(listener, NULL, NULL), bytes_at(1, 0), 5);
	pthread_join(reader, NULL);
	close(first);
	printf("early=1\n");
	return 0;
}

/*
 * shutdown UNREAD: what is sent after shutdown(SHUT_WR) fails as it does with TCP. UNREAD
 * bytes, 0 to 1000, wait for the end that calls it.
 */
static int run_shutdown(char **args)
{
	int pair[2], unread = atoi(args[0]);
	unsigned char buffer[2000];

	make_pair(pair);
	send_all(pair[0], bytes_at(1, 0), 1000);
	if (unread)
		send_all(pair[1], bytes_at(2, 0), unread);
	if (shutdown(pair[0], SHUT_WR))
		fail("shutdown");
	if (send(pair[0], "x", 1, MSG_NOSIGNAL) != -1 || errno != EPIPE)
		fail("send after shutdown(SHUT_WR) did not fail with EPIPE");
	recv_all(pair[1], buffer, 1000);
	check_bytes(buffer, 1, 0, 1000);
	if (recv(pair[1], buffer, 1, 0))
		fail("no end of the stream");
	/* The other way is still open. */
	send_all(pair[1], bytes_at(2, unread), 1000);
	recv_all(pair[0], buffer, unread + 1000);
	check_bytes(buffer, 2, 0, unread + 1000);
	printf("half_closed=1\n");
	return 0;
}

/*
 * half_close CONNECTIONS BYTES SLEEPS: to one service, one after the other.  The client
 * sends BYTES, calls shutdown(SHUT_WR) and waits in recv for the answer; if SLEEPS is 1,
 * a thread of it waits there from the start; if it is 2, the client half-closes with a
 * byte of the service unread, and waits once it has read that.  The service answers 100
 * ms after the end of the stream, long after the FIN has been acknowledged.  Prints on
 * how many connections recv failed, and the last of them.
 */
#define HALF_CLOSE_ANSWER 1000

static void half_close_service(int listener, int connections, bool first)
{
	static unsigned char buffer[65536];

	for (int i = 0; i < connections; i++) {
		int fd = accept(listener, NULL, NULL);
		uint64_t got = 0;
		ssize_t n;

		if (first)
			send_all(fd, bytes_at(2, 0), 1);
		for (; (n = recv(fd, buffer, sizeof(buffer), 0)) > 0; got += n) {
			check_bytes(buffer, 1, got, n);
			usleep(n == sizeof(buffer) ? 300 : 0);
		}
		if (n < 0)
			fail("the service's recv");
		usleep(100000);
		send_all(fd, bytes_at(2, 0), HALF_CLOSE_ANSWER);
		close(fd);
	}
	_exit(0);
}

/* Returns its argument if a recv answered EAGAIN, else NULL. */
static void *half_close_reader(void *argument)
{
	unsigned char buffer[HALF_CLOSE_ANSWER];
	int fd = *(int *)argument;
	void *failed = NULL;
	ssize_t n;

	for (size_t got = 0; got<sizeof(buffer); got += n> 0 ? n : 0) {
		n = recv(fd, buffer + got, sizeof(buffer) - got, 0);
		if (n == 0 || (n < 0 && errno != EAGAIN))
			fail("recv returned %zd", n);
		if (n < 0)
			failed = argument;
	}
	check_bytes(buffer, 2, 0, sizeof(buffer));
	return failed;
}

static int run_half_close(char **args)
{
	int port = 0, listener = listen_on("127.0.0.1", &port), failed = 0, last = 0;
	int connections = atoi(args[0]), bytes = atoi(args[1]), sleeps = atoi(args[2]);
	pid_t service = fork();

	if (!service)
		half_close_service(listener, connections, sleeps == 2);
	for (int i = 1; i <= connections; i++) {
		int fd = connect_from(0, "127.0.0.1", port);
		unsigned char byte;
		pthread_t reader;
		void *again;

		if (sleeps == 1)
			pthread_create(&reader, NULL, half_close_reader, &fd);
		if (sleeps)
			usleep(50000);
		for (int sent = 0, n; sent < bytes; sent += n) {
			n = bytes - sent < 50000 ? bytes - sent : 50000;
			send_all(fd, bytes_at(1, sent), n);
		}
		shutdown(fd, SHUT_WR);
		if (sleeps == 2 && recv(fd, &byte, 1, 0) != 1)
			fail("the first byte");
		if (sleeps == 1)
			pthread_join(reader, &again);
		else
			again = half_close_reader(&fd);
		failed += !!again;
		last = again ? i : last;
		close(fd);
	}
	reap(service);
	printf("failed=%d last=%d\n", failed, last);
	return 0;
}

/*
 * A reader as edge-triggered servers are: it reads when an edge has come, and
 * takes a short recv for the end of what there is (epoll(7)), or, as nginx
 * does, the bytes that FIONREAD told of after a recv that was not short.
 */
struct edge_reader {
	int fd, epoll;
	size_t buffer;
	bool asks; /* FIONREAD */
	bool ready;
	int available; /* -1: not known */
};

static void edge_register(struct edge_reader *r, int fd)
{
	struct epoll_event event = { .events = EPOLLIN | EPOLLRDHUP | EPOLLET };

	r->fd = fd;
	r->ready = false;
	r->epoll = epoll_create1(0);
	if (r->epoll < 0 || epoll_ctl(r->epoll, EPOLL_CTL_ADD, fd, &event))
		fail("epoll");
}

static void edge_wait(struct edge_reader *r, unsigned int stream, uint64_t got,
		      uint64_t due)
{
	struct pollfd p = { .fd = r->fd, .events = POLLIN };
	struct epoll_event event;
	char byte;

	if (epoll_wait(r->epoll, &event, 1, 10000) != 1) {
		poll(&p, 1, 0);
		fail("the edge-triggered reader of stream %u (buffer %zu, FIONREAD %d) "
		     "has %llu of %llu bytes and gets no edge; poll tells %x, a peek %zd",
		     stream, r->buffer, r->asks, (unsigned long long)got,
		     (unsigned long long)due, p.revents,
		     recv(r->fd, &byte, 1, MSG_DONTWAIT | MSG_PEEK));
	}
	r->ready = true;
	r->available = -1;
}

static void edge_read(struct edge_reader *r, unsigned int stream, uint64_t due)
{
	unsigned char buffer[CHUNK_MAX];
	uint64_t got = 0;

	while (got < due) {
		ssize_t n;

		if (!r->ready)
			edge_wait(r, stream, got, due);
		n = recv(r->fd, buffer, r->buffer, MSG_DONTWAIT);
		if (n < 0 && errno == EAGAIN) {
			r->ready = false;
			continue;
		}
		if (n <= 0)
			fail("edge-triggered recv: %zd", n);
		check_bytes(buffer, stream, got, n);
		got += n;
		if ((size_t)n < r->buffer) {
			r->ready = false;
		} else if (r->asks) {
			if (r->available < 0)
				ioctl(r->fd, FIONREAD, &r->available);
			else
				r->available = r->available > n ? r->available - n : 0;
			if (!r->available)
				r->ready = false;
		}
	}
}

/* What both ends of a round know. */
struct edge_round {
	uint64_t bytes[2];  /* of the request and of the answer */
	size_t messages[2]; /* bytes of each send */
	size_t buffer;
	bool asks;
	int accept_ms, register_ms, read_ms; /* how late the server is */
	int answer_ms; /* how late the client reads the last answer, all of it sent */
	int dialogues;
};

static int random_delay(void)
{
	return random_below(4) ? 0 : (int)random_below(60);
}

/* limit: of the bytes of a request and of an answer; 0: far above any buffer */
static void edge_random(struct edge_round *round, uint64_t limit)
{
	for (int i = 0; i < 2; i++) {
		round->messages[i] = 1 + random_below(1ULL << (1 + random_below(19)));
		round->bytes[i] = 1 + random_below(round->messages[i] * 900);
		if (round->bytes[i] > 60000000)
			round->bytes[i] = 60000000;
		if (limit)
			round->messages[i] = round->bytes[i] = 1 + random_below(limit);
	}
	round->buffer = 512ULL << random_below(8);
	round->asks = random_below(2);
	round->accept_ms = random_delay();
	/* Longer than accept() and epoll_ctl() are apart, but not for bulk:
	 * docs/semantics.md. */
	round->register_ms = round->bytes[0] > 1000000 ? 0 : random_delay();
	round->read_ms = random_delay();
	round->dialogues = random_below(2) ? 1 : 3;
	round->answer_ms = random_delay();
	/* Where tcp_rmem[2] is 1 MB, more than is fused and no more than TCP's window. */
	if (!limit && !random_below(8)) {
		int way = random_below(2);

		round->messages[way] = 1000 + random_below(30000);
		round->bytes[way] = 500000 + random_below(60000);
		*(way ? &round->answer_ms : &round->read_ms) = 700;
	}
}

static void send_messages(int fd, unsigned int stream, uint64_t bytes, size_t message)
{
	for (uint64_t sent = 0; sent < bytes;) {
		size_t n = message < bytes - sent ? message : bytes - sent;

		send_all(fd, bytes_at(stream, sent), n);
		sent += n;
	}
}

struct edge_server {
	int listener;
	const struct edge_round *round;
};

static void *edge_serve(void *argument)
{
	const struct edge_server *server = argument;
	const struct edge_round *round = server->round;
	struct edge_reader r = { .buffer = round->buffer, .asks = round->asks };
	int fd;

	if (round->accept_ms)
		usleep(round->accept_ms * 1000);
	fd = accept4(server->listener, NULL, NULL, SOCK_NONBLOCK);
	if (fd < 0)
		fail("accept");
	if (round->register_ms)
		usleep(round->register_ms * 1000);
	edge_register(&r, fd);
	fcntl(fd, F_SETFL, 0); /* its sends may block */
	if (round->read_ms)
		usleep(round->read_ms * 1000);
	for (int i = 0; i < round->dialogues; i++) {
		edge_read(&r, 1, round->bytes[0]);
		send_messages(fd, 2, round->bytes[1], round->messages[1]);
	}
	close(r.epoll);
	close(fd);
	return NULL;
}

/* edge ROUNDS [BYTES]: requests and answers between edge-triggered readers, of any
 * size, or in one message of at most so many bytes.
 */
static int run_edge(char **args)
{
	int rounds = atoi(args[0]), port = 0, listener = listen_on("127.0.0.1", &port);
	uint64_t total = 0, limit = args[1] ? strtoull(args[1], NULL, 10) : 0;

	random_state ^= (uint64_t)getpid() << 32 ^ (uint64_t)now_ms();
	for (int i = 0; i < rounds; i++) {
		struct edge_round round;
		struct edge_server server = { listener, &round };
		struct edge_reader r = { .ready = false };
		pthread_t thread;
		int fd;

		edge_random(&round, limit);
		r.buffer = round.buffer;
		r.asks = round.asks;
		pthread_create(&thread, NULL, edge_serve, &server);
		fd = connect_from(0, "127.0.0.1", port);
		edge_register(&r, fd);
		for (int j = 0; j < round.dialogues; j++) {
			send_messages(fd, 1, round.bytes[0], round.messages[0]);
			if (j == round.dialogues - 1 && round.answer_ms)
				usleep(round.answer_ms * 1000);
			edge_read(&r, 2, round.bytes[1]);
			total += round.bytes[0] + round.bytes[1];
		}
		pthread_join(thread, NULL);
		close(r.epoll);
		close(fd);
	}
	printf("rounds=%d bytes=%llu\n", rounds, (unsigned long long)total);
	return 0;
}

/*
 * busy CONNECTIONS: requests, answers of the same size, and pauses on each connection,
 * until SIGTERM; every other one has blocking readers, the rest edge-triggered ones. Says
 * "connected" when all are.
 */
#define BUSY_MAX 40000
static volatile sig_atomic_t busy_stopped;
static pthread_barrier_t all_connected;
struct busy_end {
	int fd, number;
	bool server;
	uint64_t messages;
};

/* False: the connection has ended, before the first of these bytes. */
static bool busy_read(const struct busy_end *end, struct edge_reader *r, uint64_t at,
		      size_t due)
{
	unsigned char buffer[BUSY_MAX];
	size_t got = 0;

	while (got < due) {
		ssize_t n = recv(end->fd, buffer, due - got, 0);

		if (n < 0 && errno == EAGAIN && r->fd) {
			edge_wait(r, end->number, got, due);
			continue;
		}
		if (!n && !got)
			return false;
		if (n <= 0)
			fail("busy recv: %zd", n);
		check_bytes(buffer, end->number, at + got, n);
		got += n;
	}
	return true;
}

static void *busy(void *argument)
{
	struct busy_end *end = argument;
	unsigned int seed = end->number + 1, pause = end->number;
	struct edge_reader r = { .fd = 0 };
	uint64_t at = 0;

	if (end->number % 2) {
		set_nonblocking(end->fd); /* no message fills its buffers */
		edge_register(&r, end->fd);
	}
	pthread_barrier_wait(&all_connected);
	for (;; end->messages++) {
		size_t n = 1 + rand_r(&seed) % (rand_r(&seed) % 8 ? 2000 : BUSY_MAX);

		if (!end->server) {
			usleep(1000 * (rand_r(&pause) % 200));
			if (busy_stopped)
				break;
			send_all(end->fd, bytes_at(end->number, at), n);
		}
		if (!busy_read(end, &r, at, n)) {
			if (!end->server)
				fail("connection %d ended", end->number);
			break;
		}
		if (end->server)
			send_all(end->fd, bytes_at(end->number, at), n);
		at += n;
	}
	close(end->fd);
	return NULL;
}

static void stop_busy(int signal)
{
	(void)signal;
	busy_stopped = 1;
}

static int run_busy(char **args)
{
	int n = atoi(args[0]), port = 0, listener = listen_on("127.0.0.1", &port);
	struct busy_end *ends = calloc(2 * n, sizeof(*ends));
	pthread_t *threads = calloc(2 * n, sizeof(*threads));
	uint64_t messages = 0;

	signal(SIGTERM, stop_busy);
	pthread_barrier_init(&all_connected, NULL, 2 * n + 1);
	for (int i = 0; i < 2 * n; i += 2) {
		int pair[2];

		make_pair_at(listener, port, pair);
		for (int side = 0; side < 2; side++)
			ends[i + side] = (struct busy_end){
				.fd = pair[side],
				.number = i / 2,
				.server = side,
			};
	}
	for (int i = 0; i < 2 * n; i++)
		if (pthread_create(&threads[i], NULL, busy, &ends[i]))
			fail("pthread_create");
	pthread_barrier_wait(&all_connected);
	printf("connected\n");
	fflush(stdout);
	for (int i = 0; i < 2 * n; i++) {
		pthread_join(threads[i], NULL);
		messages += ends[i].messages;
	}
	printf("messages=%llu\n", (unsigned long long)messages);
	return 0;
}

/*
 * leave CONNECTIONS MESSAGES: on each connection so many small messages one way, as
 * fast as they go.  On every other one the reader blocks; on the rest it polls, and
 * answers now and then from another thread.
 */
struct leave_job {
	int pair[2], number, messages;
	bool polls;
	uint64_t bytes;
};

static void *leave_writer(void *argument)
{
	struct leave_job *job = argument;
	unsigned int sizes = job->number + 1;
	uint64_t sent = 0;

	for (int i = 0; i < job->messages; i++) {
		size_t n = 1 + rand_r(&sizes) % 200;

		send_all(job->pair[0], bytes_at(job->number, sent), n);
		sent += n;
	}
	job->bytes = sent;
	shutdown(job->pair[0], SHUT_WR);
	return NULL;
}

/*
 * Until the end of the stream; returns how much came.  One that polls is slow, so that
 * its writer runs ahead whatever else the machine does.
 */
static uint64_t leave_read(int fd, bool polls, unsigned int stream)
{
	unsigned char buffer[65536];
	uint64_t got = 0;

	for (;;) {
		struct pollfd ready = { .fd = fd, .events = POLLIN };
		ssize_t n;

		if (polls)
			usleep(2000);
		if (polls && poll(&ready, 1, 20000) != 1)
			fail("stream %u: nothing for 20 s", stream);
		n = recv(fd, buffer, sizeof(buffer), polls ? MSG_DONTWAIT : 0);
		if (n < 0 && polls && errno == EAGAIN)
			continue;
		if (n < 0)
			fail("stream %u: recv", stream);
		if (!n)
			return got;
		check_bytes(buffer, stream, got, n);
		got += n;
	}
}

static void *leave_reader(void *argument)
{
	struct leave_job *job = argument;

	return (void *)leave_read(job->pair[1], job->polls, job->number);
}

static void *leave_answers(void *argument)
{
	struct leave_job *job = argument;

	for (int i = 0; i < 500; i++) {
		send_all(job->pair[1], bytes_at(job->number + 1, i * 100), 100);
		usleep(2000);
	}
	shutdown(job->pair[1], SHUT_WR);
	return NULL;
}

static int run_leave(char **args)
{
	int n = atoi(args[0]);
	struct leave_job *jobs = calloc(n, sizeof(*jobs));
	pthread_t(*threads)[3] = calloc(n, sizeof(*threads));
	uint64_t bytes = 0;

	for (int i = 0; i < n; i++) {
		jobs[i] = (struct leave_job){ .number = i,
					      .messages = atoi(args[1]),
					      .polls = i % 2 };
		make_pair(jobs[i].pair);
		if (pthread_create(&threads[i][0], NULL, leave_reader, &jobs[i]) ||
		    pthread_create(&threads[i][1], NULL, leave_writer, &jobs[i]) ||
		    (jobs[i].polls &&
		     pthread_create(&threads[i][2], NULL, leave_answers, &jobs[i])))
			fail("pthread_create");
	}
	for (int i = 0; i < n; i++) {
		void *got;

		if (jobs[i].polls &&
		    leave_read(jobs[i].pair[0], true, jobs[i].number + 1) != 50000)
			fail("answers are missing");
		pthread_join(threads[i][0], &got);
		pthread_join(threads[i][1], NULL);
		if ((uint64_t)got != jobs[i].bytes)
			fail("stream %d: %llu bytes of %llu", i, (unsigned long long)got,
			     (unsigned long long)jobs[i].bytes);
		bytes += jobs[i].bytes;
	}
	printf("bytes=%llu\n", (unsigned long long)bytes);
	return 0;
}

/*
 * again MESSAGES: so many small messages one way, until both ends have left the map;
 * a line on standard input later connect(AF_UNSPEC), and with the same socket a
 * dialogue of 200 messages on a new connection.
 */
static int run_again(char **args)
{
	int port = 0, listener = listen_on("127.0.0.1", &port);
	struct sockaddr none = { .sa_family = AF_UNSPEC };
	struct sockaddr_storage address;
	socklen_t length = parse_address("127.0.0.1", port, &address);
	struct leave_job job = { .messages = atoi(args[0]), .polls = true };
	unsigned char buffer[100];
	pthread_t reader;
	char line[16];
	void *got;

	make_pair_at(listener, port, job.pair);
	if (pthread_create(&reader, NULL, leave_reader, &job))
		fail("pthread_create");
	leave_writer(&job);
	pthread_join(reader, &got);
	close(job.pair[1]);
	printf("streamed\n");
	fflush(stdout);
	if (!fgets(line, sizeof(line), stdin))
		return 1;
	if ((uint64_t)got != job.bytes || connect(job.pair[0], &none, sizeof(none)) ||
	    connect(job.pair[0], (void *)&address, length))
		fail("again");
	job.pair[1] = accept(listener, NULL, NULL);
	for (int i = 0; i < 100; i++) {
		send_all(job.pair[0], bytes_at(1, i), sizeof(buffer));
		recv_all(job.pair[1], buffer, sizeof(buffer));
		check_bytes(buffer, 1, i, sizeof(buffer));
		send_all(job.pair[1], bytes_at(2, i), sizeof(buffer));
		recv_all(job.pair[0], buffer, sizeof(buffer));
		check_bytes(buffer, 2, i, sizeof(buffer));
	}
	printf("bytes=%llu\n", (unsigned long long)job.bytes);
	return 0;
}

/*
 * proxy LISTEN CONNECT [go]: takes connections at 127.0.0.1 port LISTEN and splices each
 * both ways, to and from one to port CONNECT.  With "go" it looks like a Go program to
 * the kernel: one handler for all signals.
 */
static void ignore_signal(int signal)
{
	(void)signal;
}

static void splice_all(int to, int from)
{
	int ends[2];
	ssize_t n;

	if (pipe(ends))
		fail("pipe");
	while ((n = splice(from, NULL, ends[1], NULL, 65536, SPLICE_F_MOVE)) > 0)
		while (n > 0) {
			ssize_t done = splice(ends[0], NULL, to, NULL, n, SPLICE_F_MOVE);

			if (done <= 0)
				exit(1);
			n -= done;
		}
	shutdown(to, SHUT_WR);
	exit(n < 0);
}

static void proxy_one(int client, int port)
{
	struct sockaddr_storage address;
	socklen_t length = parse_address("127.0.0.1", port, &address);
	int server = socket(AF_INET, SOCK_STREAM, 0);

	if (connect(server, (void *)&address, length))
		fail("connect to port %d", port);
	if (!fork())
		splice_all(server, client);
	splice_all(client, server);
}

static int run_proxy(char **args, bool go)
{
	struct sigaction all = { .sa_handler = ignore_signal };
	int port = atoi(args[0]), listener;

	if (go && (sigaction(SIGURG, &all, NULL) || sigaction(SIGSEGV, &all, NULL) ||
		   sigaction(SIGBUS, &all, NULL)))
		fail("sigaction");
	signal(SIGCHLD, SIG_IGN);
	listener = listen_on("127.0.0.1", &port);
	for (;;) {
		int client = accept(listener, NULL, NULL);

		if (client >= 0 && !fork()) {
			close(listener);
			proxy_one(client, atoi(args[1]));
		}
		close(client);
	}
}

/*
 * server PORT [ADDRESS]: sends back what comes, at 127.0.0.1 or there.
 *
 * through SERVER PROXY CONNECTIONS SIZE [connect]: such a server at port SERVER, if that
 * is not 0, and clients, one after the other, that connect to port PROXY of a program
 * that forwards to it, send SIZE bytes and want them back.  With "connect" they ask for
 * the server by HTTP's CONNECT first.
 */
static void *server_connection(void *argument)
{
	int fd = (long)argument;
	char buffer[65536];
	ssize_t n;

	while ((n = recv(fd, buffer, sizeof(buffer), 0)) > 0)
		send_all(fd, buffer, n);
	close(fd);
	return NULL;
}

static void *run_server(void *argument)
{
	for (;;) {
		long fd = accept((long)argument, NULL, NULL);
		pthread_t thread;

		if (fd < 0 ||
		    pthread_create(&thread, NULL, server_connection, (void *)fd))
			fail("accept");
		pthread_detach(thread);
	}
}

struct through_job {
	int fd;
	uint64_t size;
};

static size_t chunk(struct through_job *job, uint64_t done)
{
	return job->size - done < CHUNK_MAX ? job->size - done : CHUNK_MAX;
}

static void *through_writer(void *argument)
{
	struct through_job *job = argument;

	for (uint64_t done = 0; done < job->size; done += chunk(job, done))
		send_all(job->fd, bytes_at(1, done), chunk(job, done));
	return NULL;
}

static void ask_for_tunnel(int fd, int server)
{
	static const char accepted[] = "HTTP/1.1 200 ";
	char text[256] = "";
	int length = snprintf(text, sizeof(text), "CONNECT 127.0.0.1:%d HTTP/1.1\r\n\r\n",
			      server);

	send_all(fd, text, length);
	memset(text, 0, sizeof(text));
	for (length = 0; !strstr(text, "\r\n\r\n"); length++) {
		if (length == sizeof(text) - 1)
			fail("no tunnel");
		recv_all(fd, text + length, 1);
	}
	if (strncmp(text, accepted, strlen(accepted)))
		fail("no tunnel: %s", text);
}

static int run_through(char **args, bool connects)
{
	int server = atoi(args[0]), connections = atoi(args[2]);
	struct sockaddr_storage address;
	socklen_t length = parse_address("127.0.0.1", atoi(args[1]), &address);
	struct through_job job = { .size = atoll(args[3]) };
	static unsigned char buffer[CHUNK_MAX];
	pthread_t thread, writer;
	double start;

	if (server && pthread_create(&thread, NULL, run_server,
				     (void *)(long)listen_on("127.0.0.1", &server)))
		return 1;
	start = now_ms();
	for (int i = 0; i < connections; i++) {
		job.fd = socket(AF_INET, SOCK_STREAM, 0);
		if (connect(job.fd, (void *)&address, length))
			fail("connect to port %s", args[1]);
		if (connects)
			ask_for_tunnel(job.fd, server);
		if (pthread_create(&writer, NULL, through_writer, &job))
			return 1;
		for (uint64_t done = 0; done < job.size; done += chunk(&job, done)) {
			recv_all(job.fd, buffer, chunk(&job, done));
			check_bytes(buffer, 1, done, chunk(&job, done));
		}
		pthread_join(writer, NULL);
		close(job.fd);
	}
	printf("connections=%d ms=%.1f\n", connections, now_ms() - start);
	return 0;
}

/*
 * whole SIZE ROUNDS: says "connected", waits for a line, and sends SIZE bytes again and
 * again, each time for an answer of one byte; slow: rounds of 30 ms and more.
 */
struct whole_job {
	int fd, rounds;
	size_t size;
};

static void *whole_server(void *argument)
{
	struct whole_job *job = argument;
	unsigned char *buffer = malloc(job->size);

	for (int i = 0; i < job->rounds; i++) {
		recv_all(job->fd, buffer, job->size);
		check_bytes(buffer, 1, i, job->size);
		send_all(job->fd, buffer, 1);
	}
	free(buffer);
	return NULL;
}

static int run_whole(char **args)
{
	struct whole_job job = { .size = atoi(args[0]), .rounds = atoi(args[1]) };
	int port = 0, listener = listen_on("127.0.0.1", &port), pair[2], slow = 0;
	unsigned char answer;
	pthread_t server;
	char line[16];

	make_pair_at(listener, port, pair);
	job.fd = pair[1];
	printf("connected\n");
	fflush(stdout);
	if (!fgets(line, sizeof(line), stdin) ||
	    pthread_create(&server, NULL, whole_server, &job))
		return 1;
	for (int i = 0; i < job.rounds; i++) {
		double from = now_ms();

		send_all(pair[0], bytes_at(1, i), job.size);
		recv_all(pair[0], &answer, 1);
		slow += now_ms() - from > 30;
	}
	pthread_join(server, NULL);
	printf("rounds=%d slow=%d\n", job.rounds, slow);
	return 0;
}

/*
 * steps: one connection whose client sends and whose server reads, as lines on
 * standard input say, each answered with "ok":
 *	send N [TIMES]	in one send() each
 *	read N
 *	answer N	the server sends, and
 *	take N [TIMES]	the client reads
 *	fill N		the server sends in a thread; answered once that sleeps
 *	waitall N	recv(MSG_WAITALL), in a thread; answered once it sleeps
 *	await N		recv() of as many, in a thread; answered once it sleeps
 *	poll		a thread sleeps in poll(2) for what does not come
 *	dup, undup	the server has a second descriptor, or no more
 *	lowat N		SO_RCVLOWAT of the reader
 *	rcvbuf N	SO_RCVBUF of the reader
 *	edge		an edge-triggered epoll watches the reader
 *	keepcnt N	TCP_KEEPCNT of the reader
 *	keepcnt_is N
 *	keepidle_is N	TCP_KEEPIDLE of the reader is N, within ten seconds
 *	sendfile N [TIMES]	by sendfile(), and read after each
 *	file N	by sendfile(), and not read
 *	pace N [TIMES]	in one send() each, and read after each
 *	talk N [TIMES]	the same, and the server answers
 *	share N	end N (0: the client) enters the map of tests/neighbour.bpf.c, too
 */
struct steps {
	int pair[2];
	int copy;      /* of the server's descriptor */
	size_t wanted; /* by the thread */
	int flags;
	int filling; /* bytes */
	volatile bool about_to_read;
	uint64_t sent, taken, answered, answers_taken;
};

#define ANY_FLAGS -1 /* in as many calls as it takes */

static void read_step(struct steps *steps, size_t n, int flags)
{
	static unsigned char buffer[CHUNK_MAX];

	if (flags == ANY_FLAGS)
		recv_all(steps->pair[1], buffer, n);
	else if (recv(steps->pair[1], buffer, n, flags) != (ssize_t)n)
		fail("recv of %zu bytes", n);
	check_bytes(buffer, 1, steps->taken, n);
	steps->taken += n;
}

static void take_answer(struct steps *steps, size_t n)
{
	static unsigned char buffer[CHUNK_MAX];

	recv_all(steps->pair[0], buffer, n);
	check_bytes(buffer, 2, steps->answers_taken, n);
	steps->answers_taken += n;
}

static void *await_step(void *argument)
{
	struct steps *steps = argument;

	steps->about_to_read = true;
	read_step(steps, steps->wanted, steps->flags);
	return NULL;
}

static void file_step(struct steps *steps, size_t n)
{
	int file = memfd_create("step", 0);
	off_t start = 0;

	if (write(file, bytes_at(1, steps->sent), n) != (ssize_t)n ||
	    sendfile(steps->pair[0], file, &start, n) != (ssize_t)n)
		fail("sendfile");
	close(file);
	steps->sent += n;
}

static int tcp_option(int fd, int option)
{
	socklen_t length = sizeof(int);
	int value = -1;

	if (getsockopt(fd, IPPROTO_TCP, option, &value, &length))
		fail("getsockopt");
	return value;
}

static void await_option(int fd, int option, int value, int tenths)
{
	for (; tcp_option(fd, option) != value; tenths--) {
		if (!tenths)
			fail("option %d is %d, not %d", option, tcp_option(fd, option),
			     value);
		usleep(100000);
	}
}

/* Asleep in poll(2) for what does not come. */
static void *poll_step(void *argument)
{
	struct pollfd p = { .fd = *(int *)argument, .events = POLLPRI };

	poll(&p, 1, -1);
	return NULL;
}

static void share_step(int fd, uint64_t key)
{
	uint64_t value = fd;
	union bpf_attr attr = {
		.pathname = (uintptr_t) "/sys/fs/bpf/foreign_maps/sockets",
	};
	int map = syscall(SYS_bpf, BPF_OBJ_GET, &attr, sizeof(attr));

	attr = (union bpf_attr){
		.map_fd = map,
		.key = (uintptr_t)&key,
		.value = (uintptr_t)&value,
	};
	if (map < 0 || syscall(SYS_bpf, BPF_MAP_UPDATE_ELEM, &attr, sizeof(attr)))
		fail("map of the neighbour");
	close(map);
}

static void *fill_step(void *argument)
{
	struct steps *steps = argument;

	for (int left = steps->filling, n; left; left -= n) {
		n = left < 65536 ? left : 65536;
		send_all(steps->pair[1], bytes_at(2, steps->answered), n);
		steps->answered += n;
	}
	return NULL;
}

static void take_step(struct steps *steps, const char *name, int n, int times)
{
	struct epoll_event event = { .events = EPOLLIN | EPOLLET };
	pthread_t thread;

	if (!strcmp(name, "send")) {
		for (; times; times--, steps->sent += n)
			send_all(steps->pair[0], bytes_at(1, steps->sent), n);
	} else if (!strcmp(name, "sendfile")) {
		for (; times; times--) {
			file_step(steps, n);
			read_step(steps, n, ANY_FLAGS);
		}
	} else if (!strcmp(name, "file")) {
		file_step(steps, n);
	} else if (!strcmp(name, "pace")) {
		for (; times; times--) {
			take_step(steps, "send", n, 1);
			read_step(steps, n, ANY_FLAGS);
		}
	} else if (!strcmp(name, "talk")) {
		for (; times; times--) {
			take_step(steps, "pace", n, 1);
			take_step(steps, "answer", n, 1);
			take_step(steps, "take", n, 1);
		}
	} else if (!strcmp(name, "read")) {
		read_step(steps, n, ANY_FLAGS);
	} else if (!strcmp(name, "answer")) {
		send_all(steps->pair[1], bytes_at(2, steps->answered), n);
		steps->answered += n;
	} else if (!strcmp(name, "fill")) {
		steps->filling = n;
		if (pthread_create(&thread, NULL, fill_step, steps))
			fail("pthread_create");
		usleep(500000);
	} else if (!strcmp(name, "take")) {
		for (; times; times--)
			take_answer(steps, n);
	} else if (!strcmp(name, "waitall") || !strcmp(name, "await")) {
		steps->wanted = n;
		steps->flags = strcmp(name, "await") ? MSG_WAITALL : 0;
		steps->about_to_read = false;
		if (pthread_create(&thread, NULL, await_step, steps))
			fail("pthread_create");
		while (!steps->about_to_read)
			usleep(1000);
		usleep(100000);
	} else if (!strcmp(name, "share")) {
		share_step(steps->pair[n], n);
	} else if (!strcmp(name, "poll")) {
		if (pthread_create(&thread, NULL, poll_step, &steps->pair[1]))
			fail("pthread_create");
		usleep(100000);
	} else if (!strcmp(name, "dup")) {
		steps->copy = dup(steps->pair[1]);
	} else if (!strcmp(name, "undup")) {
		close(steps->copy);
	} else if (!strcmp(name, "lowat")) {
		if (setsockopt(steps->pair[1], SOL_SOCKET, SO_RCVLOWAT, &n, sizeof(n)))
			fail("SO_RCVLOWAT");
	} else if (!strcmp(name, "rcvbuf")) {
		if (setsockopt(steps->pair[1], SOL_SOCKET, SO_RCVBUF, &n, sizeof(n)))
			fail("SO_RCVBUF");
	} else if (!strcmp(name, "keepcnt")) {
		if (setsockopt(steps->pair[1], IPPROTO_TCP, TCP_KEEPCNT, &n, sizeof(n)))
			fail("TCP_KEEPCNT");
	} else if (!strcmp(name, "keepcnt_is")) {
		await_option(steps->pair[1], TCP_KEEPCNT, n, 0);
	} else if (!strcmp(name, "keepidle_is")) {
		await_option(steps->pair[1], TCP_KEEPIDLE, n, 100);
	} else if (!strcmp(name, "edge")) {
		if (epoll_ctl(epoll_create1(0), EPOLL_CTL_ADD, steps->pair[1], &event))
			fail("epoll_ctl");
	} else {
		fail("no such step: %s", name);
	}
}

static int run_steps(void)
{
	struct steps steps = {};
	char line[80], name[20];

	make_pair(steps.pair);
	while (fgets(line, sizeof(line), stdin)) {
		int n = 0, times = 1;

		if (sscanf(line, "%19s %d %d", name, &n, &times) < 1)
			fail("not a step: %s", line);
		take_step(&steps, name, n, times);
		printf("ok\n");
		fflush(stdout);
	}
	return 0;
}

/* cookie: that of this network namespace, of which the maps keep the low half */
static int run_cookie(void)
{
	int sk = socket(AF_INET, SOCK_STREAM, 0);
	uint64_t cookie = 0;
	socklen_t n = sizeof(cookie);

	if (getsockopt(sk, SOL_SOCKET, SO_NETNS_COOKIE, &cookie, &n))
		fail("SO_NETNS_COOKIE");
	printf("%u\n", (uint32_t)cookie);
	return 0;
}

int main(int argc, char **argv)
{
	struct rlimit files;

	signal(SIGPIPE, SIG_IGN);
	getrlimit(RLIMIT_NOFILE, &files);
	files.rlim_cur = files.rlim_max;
	setrlimit(RLIMIT_NOFILE, &files);
	make_pattern();
	if (argc == 5 && !strcmp(argv[1], "echo"))
		return run_echo(argv + 2);
	if (argc == 4 && !strcmp(argv[1], "burst"))
		return run_burst(argv + 2);
	if (argc >= 4 && !strcmp(argv[1], "stall"))
		return run_stall(argv + 2);
	if (argc == 5 && !strcmp(argv[1], "ahead"))
		return run_ahead(argv + 2);
	if (argc == 4 && !strcmp(argv[1], "mix"))
		return run_mix(argv + 2);
	if (argc >= 3 && !strcmp(argv[1], "edge"))
		return run_edge(argv + 2);
	if (argc == 2 && !strcmp(argv[1], "tuples"))
		return run_tuples();
	if (argc == 2 && !strcmp(argv[1], "waitall"))
		return run_waitall();
	if (argc == 5 && !strcmp(argv[1], "flagged"))
		return run_flagged(argv + 2);
	if (argc >= 7 && !strcmp(argv[1], "visits"))
		return run_visits(argv + 2);
	if (argc == 2 && !strcmp(argv[1], "cookie"))
		return run_cookie();
	if (argc == 3 && !strcmp(argv[1], "splice"))
		return run_splice(argv[2]);
	if (argc == 2 && !strcmp(argv[1], "ktls"))
		return run_ktls();
	if (argc >= 3 && !strcmp(argv[1], "hold"))
		return run_hold(argv + 2);
	if (argc == 4 && !strcmp(argv[1], "alone"))
		return run_alone(argv + 2);
	if (argc == 2 && !strcmp(argv[1], "nbd"))
		return run_nbd();
	if (argc == 2 && !strcmp(argv[1], "deferred"))
		return run_deferred();
	if (argc == 2 && !strcmp(argv[1], "late"))
		return run_late();
	if (argc == 2 && !strcmp(argv[1], "unread"))
		return run_unread();
	if (argc == 2 && !strcmp(argv[1], "mptcp"))
		return run_mptcp();
	if (argc == 2 && !strcmp(argv[1], "repair"))
		return run_repair();
	if (argc == 3 && !strcmp(argv[1], "shutdown"))
		return run_shutdown(argv + 2);
	if (argc == 5 && !strcmp(argv[1], "half_close"))
		return run_half_close(argv + 2);
	if (argc == 2 && !strcmp(argv[1], "early"))
		return run_early();
	if (argc == 4 && !strcmp(argv[1], "pipelined"))
		return run_pipelined(argv + 2);
	if (argc == 3 && !strcmp(argv[1], "beside"))
		return run_beside(argv + 2);
	if (argc == 3 && !strcmp(argv[1], "busy"))
		return run_busy(argv + 2);
	if (argc == 4 && !strcmp(argv[1], "leave"))
		return run_leave(argv + 2);
	if (argc >= 3 && !strcmp(argv[1], "server")) {
		int port = atoi(argv[2]);

		run_server(
			(void *)(long)listen_on(argc > 3 ? argv[3] : "127.0.0.1", &port));
	}
	if (argc >= 6 && !strcmp(argv[1], "through"))
		return run_through(argv + 2, argc > 6);
	if (argc >= 4 && !strcmp(argv[1], "proxy"))
		return run_proxy(argv + 2, argc > 4);
	if (argc == 4 && !strcmp(argv[1], "whole"))
		return run_whole(argv + 2);
	if (argc == 3 && !strcmp(argv[1], "again"))
		return run_again(argv + 2);
	if (argc == 2 && !strcmp(argv[1], "steps"))
		return run_steps();
	fprintf(stderr,
		"usage: traffic "
		"echo|burst|stall|mix|edge|tuples|waitall|flagged|splice|ktls|hold|"
		"unread|mptcp|repair|shutdown|early|busy|leave|again|whole|proxy|server|"
		"through|"
		"steps "
		"...\n");
	return 2;
}
