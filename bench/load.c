// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/*
 * load [OPTION...] rr|stream|connect|stall SIZE SECONDS CPU_A CPU_B: traffic between two
 * processes on one host, each on its processor.
 *	rr	a request of SIZE bytes and an answer of as many
 *	stream	writes of SIZE bytes one way
 *	connect	connections with one request and answer each
 *	stall	writes of SIZE bytes that do not wait, to a reader that does not read
 *	--unix		AF_UNIX stream sockets instead of TCP over 127.0.0.1
 *	--smc		AF_SMC sockets, which carry TCP's addresses
 *	--epoll		event loops instead of a thread for each connection
 *	--connections N	so many at a time (1)
 *	--after S	what comes before so many seconds does not count; not with
 *			--epoll, nor of connect and pipe
 *	--netns FILE	the end that listens is in this network namespace (setns(2))
 *	--address A	and has this address, of IPv4
 * load pipe SIZE SECONDS CPU: writes of SIZE bytes into a pipe, read again.
 *
 * Prints a JSON object: per_second (transactions, connections, or bytes of a
 * stream), cpu_seconds (both processes, for a million of them or a GB), and for rr
 * p50_us, p99_us and p999_us.  Of stall: unread, the bytes that got in.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define MAX_CONNECTIONS 1024
#define BUFFER (1 << 20)
#define MAX_EVENTS 64

#define STALL_MOST 256000000

static bool unix_sockets, event_loops;
static int family = AF_INET;
static int connections = 1;
static const char *netns, *listens_on = "127.0.0.1";
static enum { RR, STREAM, CONNECT, STALL, PIPE } kind;
static size_t size;
static uint64_t measured_from, deadline; /* ns */
static double after;
static pid_t server;
static double cpu_before; /* seconds */
static char buffer[BUFFER];

static void __attribute__((noreturn)) fail(const char *what)
{
	fprintf(stderr, "load: %s: %s\n", what, strerror(errno));
	exit(1);
}

static uint64_t now_ns(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1000000000ULL + t.tv_nsec;
}

static void pin_to(int cpu)
{
	cpu_set_t set;

	CPU_ZERO(&set);
	CPU_SET(cpu, &set);
	if (sched_setaffinity(0, sizeof(set), &set))
		fail("sched_setaffinity");
}

/* Latencies in ns: 32 buckets for each power of two, so within 3 %. */
#define STEPS 32
#define BUCKETS (64 * STEPS)
static uint64_t histogram[BUCKETS], transactions;

static int bucket_of(uint64_t ns)
{
	int power = 63 - __builtin_clzll(ns | STEPS);

	return (power - 5) * STEPS + (ns >> (power - 5));
}

static double bucket_us(int bucket)
{
	int power = bucket < 2 * STEPS ? 0 : bucket / STEPS - 1;

	return (double)((uint64_t)(bucket - power * STEPS) << power) / 1e3;
}

static void record(uint64_t start, uint64_t end)
{
	__atomic_fetch_add(&histogram[bucket_of(end - start)], 1, __ATOMIC_RELAXED);
	__atomic_fetch_add(&transactions, 1, __ATOMIC_RELAXED);
}

static double percentile_us(double share)
{
	uint64_t seen = 0;

	for (int i = 0; i < BUCKETS; i++) {
		seen += histogram[i];
		if (seen && seen >= share * transactions)
			return bucket_us(i);
	}
	return 0;
}

static double cpu_seconds(pid_t pid)
{
	struct timespec t;
	clockid_t clock;

	if (clock_getcpuclockid(pid, &clock) || clock_gettime(clock, &t))
		fail("clock_getcpuclockid");
	return t.tv_sec + t.tv_nsec / 1e9;
}

static double cpu_of_both(void)
{
	return cpu_seconds(0) + (server ? cpu_seconds(server) : 0);
}

/* false at the end of the stream, or once time is up and the peer has gone */
static bool write_all(int fd)
{
	for (size_t done = 0; done < size;) {
		ssize_t n = send(fd, buffer, size - done, MSG_NOSIGNAL);

		if (n <= 0)
			return false;
		done += n;
	}
	return true;
}

static bool read_all(int fd)
{
	for (size_t done = 0; done < size;) {
		ssize_t n = read(fd, buffer, size - done);

		if (n <= 0)
			return false;
		done += n;
	}
	return true;
}

static void no_delay(int fd)
{
	int one = 1;

	if (!unix_sockets)
		setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
}

static union {
	struct sockaddr any;
	struct sockaddr_in in;
	struct sockaddr_un un;
} address;
static socklen_t address_length;

static int listen_somewhere(void)
{
	int fd = socket(family, SOCK_STREAM, 0);

	if (unix_sockets) {
		address.un.sun_family =
			AF_UNIX; /* an abstract name, chosen by the kernel */
		address_length = sizeof(sa_family_t);
	} else {
		address.in.sin_family = AF_INET;
		if (inet_pton(AF_INET, listens_on, &address.in.sin_addr) != 1)
			fail(listens_on);
		address_length = sizeof(address.in);
	}
	if (bind(fd, &address.any, address_length) || listen(fd, 1024))
		fail("listen");
	address_length = sizeof(address);
	if (getsockname(fd, &address.any, &address_length))
		fail("getsockname");
	return fd;
}

static int connect_once(void)
{
	int fd = socket(family, SOCK_STREAM, 0);

	if (fd < 0 || connect(fd, &address.any, address_length))
		fail("connect");
	no_delay(fd);
	return fd;
}

static void answer(int fd)
{
	while (kind == STREAM ? read(fd, buffer, size) > 0
			      : read_all(fd) && write_all(fd))
		;
	close(fd);
}

static void ask(int fd)
{
	uint64_t start = now_ns(), end;

	do {
		if (!write_all(fd) || (kind != STREAM && !read_all(fd)))
			fail("the other end has gone");
		end = now_ns();
		if (start >= measured_from)
			record(start, end);
		else if (end >= measured_from)
			cpu_before = cpu_of_both();
		start = end;
	} while (end < deadline);
	close(fd);
}

/* Nobody answers; how much the other end's memory takes. */
static void fill(int fd)
{
	do {
		ssize_t n = send(fd, buffer, size, MSG_DONTWAIT | MSG_NOSIGNAL);

		if (n > 0)
			transactions += n;
		else if (errno != EAGAIN)
			fail("send");
		else
			usleep(1000);
	} while (transactions < STALL_MOST && now_ns() < deadline);
}

static void *answer_thread(void *fd)
{
	answer((intptr_t)fd);
	return NULL;
}

static void *ask_thread(void *fd)
{
	ask((intptr_t)fd);
	return NULL;
}

/* A thread for each connection. */
static void run_threads(void *(*work)(void *), const int *fds)
{
	pthread_t threads[MAX_CONNECTIONS];

	for (int i = 0; i < connections; i++)
		if (pthread_create(&threads[i], NULL, work, (void *)(intptr_t)fds[i]))
			fail("pthread_create");
	for (int i = 0; i < connections; i++)
		pthread_join(threads[i], NULL);
}

/* One loop for all; no call blocks, so that no two ends can wait for each other. */
struct turn {
	int fd;
	size_t to_read, to_write; /* one of them is 0 */
	uint32_t wanted;
	uint64_t start;
};

/* true: the whole message has come, or gone */
static bool step(struct turn *turn, bool *gone)
{
	bool reading = turn->to_read;
	ssize_t n;

	if (reading)
		n = recv(turn->fd, buffer, turn->to_read, MSG_DONTWAIT);
	else
		n = send(turn->fd, buffer, turn->to_write, MSG_DONTWAIT | MSG_NOSIGNAL);
	*gone = n == 0 || (n < 0 && errno != EAGAIN);
	if (n <= 0)
		return false;
	if (reading)
		return !(turn->to_read -= n);
	return !(turn->to_write -= n);
}

/* What the loop waits for now; nothing to do if it is that already. */
static void want(int epoll, struct turn *turn, int how)
{
	uint32_t events = turn->to_read ? EPOLLIN : EPOLLOUT;
	struct epoll_event event = { .events = events, .data.ptr = turn };

	if (turn->wanted != events && epoll_ctl(epoll, how, turn->fd, &event))
		fail("epoll_ctl");
	turn->wanted = events;
}

/* As far as it goes without waiting; false when the connection is done. */
static bool go_on(struct turn *turn, bool asks)
{
	bool gone, wrote = turn->to_write;

	while (step(turn, &gone)) {
		if (wrote) {
			turn->to_read = size;
		} else {
			uint64_t now = now_ns();

			if (asks)
				record(turn->start, now);
			if (asks && now > deadline)
				return false;
			turn->start = now;
			turn->to_write = size;
		}
		wrote = !wrote;
	}
	return !gone;
}

/* Asks or answers until no connection is left. */
static void run_loop(const int *fds, bool asks)
{
	static struct turn turns[MAX_CONNECTIONS];
	struct epoll_event events[MAX_EVENTS];
	int epoll = epoll_create1(0), left = connections;

	for (int i = 0; i < connections; i++) {
		turns[i] = (struct turn){ .fd = fds[i], .start = now_ns() };
		*(asks ? &turns[i].to_write : &turns[i].to_read) = size;
		want(epoll, &turns[i], EPOLL_CTL_ADD);
	}
	while (left) {
		int n = epoll_wait(epoll, events, MAX_EVENTS, -1);

		for (int i = 0; i < n; i++) {
			struct turn *turn = events[i].data.ptr;

			if (go_on(turn, asks)) {
				want(epoll, turn, EPOLL_CTL_MOD);
			} else {
				close(turn->fd);
				left--;
			}
		}
	}
}

static void serve(int listener)
{
	int fds[MAX_CONNECTIONS];

	for (int i = 0; kind == CONNECT || i < connections; i++) {
		int fd = accept(listener, NULL, NULL);

		if (fd < 0)
			fail("accept");
		no_delay(fd);
		if (kind == CONNECT)
			answer(fd);
		else
			fds[i] = fd;
	}
	if (kind == STALL)
		pause();
	else if (event_loops)
		run_loop(fds, false);
	else
		run_threads(answer_thread, fds);
}

static void connect_and_ask(void)
{
	uint64_t start = now_ns(), end;

	do {
		int fd = connect_once();

		if (!write_all(fd) || !read_all(fd))
			fail("the other end has gone");
		close(fd);
		end = now_ns();
		record(start, end);
		start = end;
	} while (end < deadline);
}

/* The listener in its network namespace, and then back. */
static int listen_there(void)
{
	int here = open("/proc/self/ns/net", O_RDONLY), listener;
	int there = netns ? open(netns, O_RDONLY) : here;

	if (setns(there, CLONE_NEWNET))
		fail("setns");
	listener = listen_somewhere();
	if (setns(here, CLONE_NEWNET))
		fail("setns");
	return listener;
}

static void run_pipe(void)
{
	int ends[2];

	if (pipe(ends))
		fail("pipe");
	for (uint64_t end = now_ns(); end < deadline;) {
		uint64_t start = end;

		if (write(ends[1], buffer, size) != (ssize_t)size || !read_all(ends[0]))
			fail("pipe");
		end = now_ns();
		record(start, end);
	}
}

static void print_result(void)
{
	double seconds = (now_ns() - measured_from) / 1e9,
	       cpu = cpu_of_both() - cpu_before;
	double amount = transactions * (kind == STREAM ? (double)size : 1);

	if (kind == STALL) {
		printf("{\"unread\": %llu}\n", (unsigned long long)transactions);
		return;
	}
	printf("{\"per_second\": %.0f, \"cpu_seconds\": %.4f", amount / seconds,
	       cpu / amount * (kind == STREAM ? 1e9 : 1e6));
	if (kind == RR)
		printf(", \"p50_us\": %.2f, \"p99_us\": %.2f, \"p999_us\": %.2f",
		       percentile_us(.5), percentile_us(.99), percentile_us(.999));
	printf("}\n");
}

static int __attribute__((noreturn)) usage(void)
{
	fprintf(stderr,
		"usage: load [--unix] [--smc] [--epoll] [--connections N] [--after S] "
		"[--netns FILE] [--address A]\n"
		"            rr|stream|connect|stall SIZE SECONDS CPU_A CPU_B\n"
		"       load pipe SIZE SECONDS CPU\n");
	exit(2);
}

static void parse(int argc, char **argv)
{
	static const struct option options[] = {
		{ "unix", no_argument, NULL, 'u' },
		{ "smc", no_argument, NULL, 'm' },
		{ "epoll", no_argument, NULL, 'e' },
		{ "connections", required_argument, NULL, 'c' },
		{ "after", required_argument, NULL, 's' },
		{ "netns", required_argument, NULL, 'n' },
		{ "address", required_argument, NULL, 'a' },
		{}
	};
	static const char *const kinds[] = { "rr", "stream", "connect", "stall", "pipe" };
	int option, i;

	while ((option = getopt_long(argc, argv, "", options, NULL)) >= 0) {
		if (option == 'u')
			unix_sockets = true, family = AF_UNIX;
		else if (option == 'm')
			family = AF_SMC;
		else if (option == 'e')
			event_loops = true;
		else if (option == 'c')
			connections = atoi(optarg);
		else if (option == 's')
			after = atof(optarg);
		else if (option == 'n')
			netns = optarg;
		else if (option == 'a')
			listens_on = optarg;
		else
			usage();
	}
	argv += optind;
	argc -= optind;
	for (i = 0; argc && i < 5 && strcmp(argv[0], kinds[i]);)
		i++;
	if (argc == 0 || i == 5 || argc != (i == PIPE ? 4 : 5))
		usage();
	kind = i;
	size = atol(argv[1]);
	if (size < 1 || size > BUFFER || connections < 1 ||
	    connections > MAX_CONNECTIONS || (event_loops && kind != RR) ||
	    (after && (kind > STREAM || event_loops)))
		usage();
}

int main(int argc, char **argv)
{
	int fds[MAX_CONNECTIONS], listener = -1;
	siginfo_t ended;

	parse(argc, argv);
	argv += optind;
	if (kind != PIPE)
		listener = listen_there();
	if (kind != PIPE && !(server = fork())) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		pin_to(atoi(argv[4]));
		serve(listener);
		return 0;
	}
	pin_to(atoi(argv[3]));
	for (int i = 0; kind != CONNECT && kind != PIPE && i < connections; i++)
		fds[i] = connect_once();
	cpu_before = cpu_of_both();
	measured_from = now_ns() + after * 1e9;
	deadline = measured_from + atof(argv[2]) * 1e9;
	if (kind == PIPE)
		run_pipe();
	else if (kind == CONNECT)
		connect_and_ask();
	else if (kind == STALL)
		fill(fds[0]);
	else if (event_loops)
		run_loop(fds, true);
	else
		run_threads(ask_thread, fds);
	if (kind == CONNECT || kind == STALL)
		kill(server, SIGKILL); /* it would go on for ever */
	if (server)
		waitid(P_PID, server, &ended, WEXITED | WNOWAIT);
	print_result();
	return 0;
}
