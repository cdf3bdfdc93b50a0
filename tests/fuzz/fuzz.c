// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/*
 * fuzz PLAIN FUSED CALLS [SEED]: random socket calls on both ends of two
 * connections, one on the IPv4 address PLAIN, one on FUSED.  What the calls
 * return must be the same on both.  If it is not, three times in a row, the
 * sequence is shrunk and printed with its SEED, and the exit code is 1.
 *
 * No call waits, but for an edge that ought to have come.  Loopback delivers
 * within the call that sends, so results seldom depend on time as long as the
 * window is open: IN_FLIGHT bounds what is unread.  Calls that
 * tests/semantics/differences.tsv names are left out: MSG_TRUNC, MSG_OOB, FIONREAD,
 * splice, closing with unread bytes, sends after a reset.
 *
 * Some connections begin with a refused connect, some have an end that is mapped for
 * TCP_ZEROCOPY_RECEIVE, and some have ends in an edge-triggered epoll.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <poll.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#include <linux/tcp.h>

#define SEQUENCE 100	/* calls on one connection */
#define IN_FLIGHT 50000 /* bytes */
#define MAPPED 65536	/* by an end that reads with TCP_ZEROCOPY_RECEIVE */
#define EDGE_MS 1500	/* an edge that has not come by then never comes */

/* How a connection begins: bits */
#define REFUSED_FIRST 1
#define MAP_0 2 /* this end; MAP_0 << 1 is the other */
#define EDGE_0 8
#define NESTED_0 32 /* the edge is of a level-triggered epoll inside */
#define OPENINGS 128

static const char *const beginnings[] = {
	"a connect that is refused",
	"end 0 is mapped",
	"end 1 is mapped",
	"end 0 is in an edge-triggered epoll",
	"end 1 is in an edge-triggered epoll",
	"end 0: of a level-triggered one inside",
	"end 1: of a level-triggered one inside",
};

enum kind {
	SEND,
	SENDV,
	RECV,
	PEEK,
	WAITALL,
	READV,
	RECVMSG,
	ZEROCOPY,
	EDGE,
	POLL,
	ERROR,
	LOWAT,
	PEEK_OFF,
	INQ,
	SHUTDOWN,
	CLOSE,
	RESET,
	KINDS
};

static const char *const names[KINDS] = {
	"send",
	"writev",
	"recv",
	"recv MSG_PEEK",
	"recv MSG_WAITALL",
	"readv",
	"recvmsg",
	"TCP_ZEROCOPY_RECEIVE",
	"recv at edges",
	"poll",
	"SO_ERROR",
	"SO_RCVLOWAT",
	"SO_PEEK_OFF",
	"TCP_INQ",
	"shutdown",
	"close",
	"reset",
};

/* Of 1,000 calls */
static const int weights[KINDS] = { 300, 60, 200, 60, 50, 50, 50, 40, 80,
				    59,	 9,  12,  8,  8,  8,  4,  2 };

struct call {
	enum kind kind;
	int end; /* 0 connected, 1 was accepted */
	int size;
};

struct outcome {
	long result; /* negative: -errno */
	uint64_t hash;
};

struct connection {
	int fd[2];
	int edges[2]; /* epoll, or -1 */
	int inner[2]; /* the epoll inside edges, or -1 */
	int lowat[2];
	void *map[2];	  /* or NULL */
	bool reset;	  /* an end was closed so */
	int unread[2];	  /* bytes on the way to this end */
	uint64_t next[2]; /* number of the next byte that this end sends */
};

static uint64_t state;
static uint64_t made; /* calls on both connections */

/* splitmix64 */
static uint64_t number(void)
{
	uint64_t z = state += 0x9e3779b97f4a7c15;

	z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9;
	z = (z ^ z >> 27) * 0x94d049bb133111eb;
	return z ^ z >> 31;
}

static struct call random_call(void)
{
	static const int most[] = { 10, 100, 2000, 20000 };
	int weight = number() % 1000;
	struct call call = { .end = number() % 2 };

	while (weight >= weights[call.kind])
		weight -= weights[call.kind++];
	call.size = 1 + number() % most[number() % 4];
	return call;
}

static void fail(const char *what)
{
	perror(what);
	exit(2);
}

static int epoll_on(int fd, unsigned int events)
{
	struct epoll_event e = { .events = events };
	int epoll_fd = epoll_create1(0);

	if (epoll_fd < 0 || epoll_ctl(epoll_fd, EPOLL_CTL_ADD, fd, &e))
		fail("fuzz: epoll");
	return epoll_fd;
}

/* How the connections of this sequence begin. */
static int opening;

static void open_end(struct connection *c, int end)
{
	int one = 1, fd = c->fd[end];

	setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
	if (opening & MAP_0 << end) {
		c->map[end] = mmap(NULL, MAPPED, PROT_READ, MAP_SHARED, fd, 0);
		if (c->map[end] == MAP_FAILED)
			fail("fuzz: mmap");
	}
	c->lowat[end] = 1;
	c->edges[end] = c->inner[end] = -1;
	if (!(opening & EDGE_0 << end))
		return;
	if (opening & NESTED_0 << end)
		fd = c->inner[end] = epoll_on(fd, EPOLLIN);
	c->edges[end] = epoll_on(fd, EPOLLIN | EPOLLET);
}

static void close_connection(struct connection *c)
{
	for (int i = 0; i < 2; i++) {
		if (c->map[i])
			munmap(c->map[i], MAPPED);
		if (c->edges[i] >= 0)
			close(c->edges[i]);
		if (c->inner[i] >= 0)
			close(c->inner[i]);
		if (c->fd[i] >= 0)
			close(c->fd[i]);
	}
}

static void open_connection(struct connection *c, struct in_addr address)
{
	struct sockaddr_in name = { .sin_family = AF_INET, .sin_addr = address };
	struct sockaddr_in refuses = { .sin_family = AF_INET,
				       .sin_addr = address,
				       .sin_port = htons(1) };
	int listener = socket(AF_INET, SOCK_STREAM, 0);
	socklen_t length = sizeof(name);

	memset(c, 0, sizeof(*c));
	c->fd[0] = socket(AF_INET, SOCK_STREAM, 0);
	if (opening & REFUSED_FIRST &&
	    (!connect(c->fd[0], (void *)&refuses, sizeof(refuses)) ||
	     errno != ECONNREFUSED))
		fail("fuzz: a connect that ought to be refused");
	if (bind(listener, (void *)&name, length) || listen(listener, 1) ||
	    getsockname(listener, (void *)&name, &length) ||
	    connect(c->fd[0], (void *)&name, length) ||
	    (c->fd[1] = accept(listener, NULL, NULL)) < 0)
		fail("fuzz: connect");
	close(listener);
	for (int i = 0; i < 2; i++)
		open_end(c, i);
}

/* FNV-1a */
static uint64_t hash(uint64_t h, const void *bytes, size_t n)
{
	for (size_t i = 0; i < n; i++)
		h = (h ^ ((const unsigned char *)bytes)[i]) * 0x100000001b3;
	return h;
}

static char buffer[65536];

static struct outcome send_bytes(struct connection *c, struct call call)
{
	int other = !call.end, n = call.size;
	struct iovec v[3] = { { buffer, n / 3 },
			      { buffer + n / 3, n / 3 },
			      { buffer + 2 * (n / 3), n - 2 * (n / 3) } };
	struct outcome o = { .result = 0 };
	struct msghdr m = { .msg_iov = v, .msg_iovlen = 3 };

	if (c->unread[other] + n > IN_FLIGHT)
		return o; /* not made */
	made++;
	for (int i = 0; i < n; i++)
		buffer[i] = (c->next[call.end] + i) * 7 / 3;
	o.result = call.kind == SEND
			   ? send(c->fd[call.end], buffer, n, MSG_NOSIGNAL | MSG_DONTWAIT)
			   : sendmsg(c->fd[call.end], &m, MSG_NOSIGNAL | MSG_DONTWAIT);
	if (o.result > 0) {
		c->next[call.end] += o.result;
		c->unread[other] += o.result;
	}
	return o;
}

/* One call, of at most n bytes to the buffer from at on. */
static ssize_t receive_once(int fd, enum kind kind, size_t at, size_t n,
			    uint64_t *control)
{
	struct iovec v[3] = { { buffer + at, n / 3 },
			      { buffer + at + n / 3, n / 3 },
			      { buffer + at + 2 * (n / 3), n - 2 * (n / 3) } };
	char room[256];
	struct msghdr m = { .msg_iov = v,
			    .msg_iovlen = 3,
			    .msg_control = room,
			    .msg_controllen = sizeof(room) };
	ssize_t done;

	if (kind == RECV || kind == WAITALL)
		return recv(fd, buffer + at, n,
			    MSG_DONTWAIT | (kind == WAITALL ? MSG_WAITALL : 0));
	if (kind == READV)
		m.msg_controllen = 0;
	done = recvmsg(fd, &m, MSG_DONTWAIT);
	if (done > 0)
		*control = 0;
	if (done > 0)
		for (struct cmsghdr *h = CMSG_FIRSTHDR(&m); h; h = CMSG_NXTHDR(&m, h))
			*control =
				hash(*control, CMSG_DATA(h), h->cmsg_len - CMSG_LEN(0));
	return done;
}

/*
 * As many calls as it takes, as programs do that read a stream: one that reads
 * the last fused bytes does not go on to the TCP bytes behind them
 * (recv_at_seam in differences.tsv).  So of a peek the first byte is compared.
 */
static struct outcome receive_bytes(struct connection *c, struct call call)
{
	struct outcome o = { 0, 0 };
	int fd = c->fd[call.end];
	uint64_t control = 0;
	ssize_t done = 0;

	if (call.kind == PEEK) {
		done = recv(fd, buffer, call.size, MSG_DONTWAIT | MSG_PEEK);
		o.result = done > 0 ? 1 + (unsigned char)buffer[0] : done;
		return o;
	}
	while (o.result < call.size) {
		done = receive_once(fd, call.kind, o.result, call.size - o.result,
				    &control);
		if (done <= 0)
			break;
		o.result += done;
	}
	c->unread[call.end] -= o.result;
	o.hash = hash(0xcbf29ce484222325 ^ control, buffer, o.result);
	if (!o.result && done < 0)
		o.result = -1;
	return o;
}

/* All that is unread is copied, where the buffer has room for it. */
static ssize_t receive_zerocopy(int fd, void *map)
{
	struct tcp_zerocopy_receive z = { .address = (unsigned long)map,
					  .length = MAPPED,
					  .copybuf_address = (unsigned long)buffer,
					  .copybuf_len = sizeof(buffer) };
	socklen_t length = sizeof(z);

	if (getsockopt(fd, IPPROTO_TCP, TCP_ZEROCOPY_RECEIVE, &z, &length))
		return -1;
	return z.copybuf_len;
}

static struct outcome receive_mapped(struct connection *c, int end)
{
	struct outcome o = { receive_zerocopy(c->fd[end], c->map[end]), 0 };

	if (o.result > 0) {
		c->unread[end] -= o.result;
		o.hash = hash(0xcbf29ce484222325, buffer, o.result);
	}
	return o;
}

/* Whether one comes, and in *ends if it tells that this is the end. */
static bool edge_comes(struct connection *c, int end, bool *ends)
{
	struct epoll_event e;

	if (epoll_wait(c->edges[end], &e, 1, EDGE_MS) != 1 ||
	    (c->inner[end] >= 0 && epoll_wait(c->inner[end], &e, 1, 0) != 1))
		return false;
	*ends = e.events & (EPOLLHUP | EPOLLERR);
	return true;
}

/*
 * An edge for every byte: a reader that takes a short count for the end of what there
 * is gets all the same; once it is told of the end, it reads to the end, as no edge
 * would tell of that on plain TCP.  Where it does not get all, the result is what it got.
 */
static struct outcome receive_at_edges(struct connection *c, int end)
{
	struct outcome o = { 0, 0 };
	bool ends = false;
	ssize_t done;

	while (c->unread[end] && (ends || edge_comes(c, end, &ends))) {
		done = recv(c->fd[end], buffer + o.result, sizeof(buffer) - o.result,
			    MSG_DONTWAIT);
		if (done > 0) {
			o.result += done;
			c->unread[end] -= done;
		} else if (ends) {
			break;
		}
	}
	o.hash = hash(0xcbf29ce484222325, buffer, o.result);
	return o;
}

/* This connection has no such end, or the result would tell of a known difference. */
static bool makes_no_sense(const struct connection *c, struct call call)
{
	switch (call.kind) {
	case SEND:
	case SENDV:
		return c->reset;
	case ZEROCOPY:
		return !c->map[call.end];
	case EDGE: /* SO_RCVLOWAT keeps edges back */
		return c->edges[call.end] < 0 || c->lowat[call.end] > 1;
	case POLL:
	case RECV:
	case PEEK:
	case WAITALL:
	case READV:
	case RECVMSG:
	case ERROR:
	case SHUTDOWN:
		return false;
	default: /* An option reaches bytes that are sent after it, so it waits for
		    silence. */
		return c->unread[call.end];
	}
}

static struct outcome set(int fd, int level, int option, int value)
{
	return (struct outcome){ setsockopt(fd, level, option, &value, sizeof(value)),
				 0 };
}

static struct outcome make_call(struct connection *c, struct call call)
{
	struct outcome o = { 0, 0 };
	struct linger linger = { .l_onoff = 1, .l_linger = 0 };
	int fd = c->fd[call.end], value = 0;
	struct pollfd p = { .fd = fd, .events = POLLIN | POLLOUT | POLLPRI | POLLRDHUP };
	socklen_t length = sizeof(value);

	if (fd < 0 || makes_no_sense(c, call))
		return o;
	if (call.kind > SENDV)
		made++;
	errno = 0;
	switch (call.kind) {
	case SEND:
	case SENDV:
		o = send_bytes(c, call);
		break;
	case ZEROCOPY:
		o = receive_mapped(c, call.end);
		break;
	case EDGE:
		o = receive_at_edges(c, call.end);
		break;
	case POLL:
		poll(&p, 1, 0);
		o.result = p.revents;
		break;
	case ERROR:
		o.result = getsockopt(fd, SOL_SOCKET, SO_ERROR, &value, &length);
		o.hash = value;
		break;
	case LOWAT:
		c->lowat[call.end] = call.size > 50 ? 1 : call.size;
		o = set(fd, SOL_SOCKET, SO_RCVLOWAT, c->lowat[call.end]);
		break;
	case PEEK_OFF:
		o = set(fd, SOL_SOCKET, SO_PEEK_OFF, call.size > 50 ? -1 : 0);
		break;
	case INQ:
		o = set(fd, IPPROTO_TCP, TCP_INQ, call.size % 2);
		break;
	case SHUTDOWN:
		o.result = shutdown(fd, SHUT_WR);
		break;
	case RESET:
		setsockopt(fd, SOL_SOCKET, SO_LINGER, &linger, sizeof(linger));
		c->reset = true;
		/* fall through */
	case CLOSE:
		o.result = close(fd);
		c->fd[call.end] = -1;
		break;
	default:
		o = receive_bytes(c, call);
	}
	if (o.result < 0)
		o.result = -errno;
	return o;
}

static struct in_addr plain, fused;

/* Longer than an acknowledgment is delayed. */
static int pause_us;

/* The first call whose outcomes differ, or -1; says them if asked to. */
static int differs(const struct call *calls, int n, int verbose)
{
	struct connection x, y;
	int found = -1;

	open_connection(&x, plain);
	open_connection(&y, fused);
	for (int i = 0; i < n && found < 0; i++) {
		struct outcome p, f;

		if (pause_us && calls[i].kind > SENDV)
			usleep(pause_us);
		p = make_call(&x, calls[i]);
		f = make_call(&y, calls[i]);

		if (verbose)
			printf("  end %d: %s %d: plain %ld %016llx, fused %ld %016llx\n",
			       calls[i].end, names[calls[i].kind], calls[i].size,
			       p.result, (unsigned long long)p.hash, f.result,
			       (unsigned long long)f.hash);
		if (p.result != f.result || p.hash != f.hash)
			found = i;
	}
	close_connection(&x);
	close_connection(&y);
	return found;
}

/*
 * Neither a softirq that the scheduler put off nor a segment that waits for
 * the congestion window is a difference: the last run gives them time.
 */
static int differs_always(const struct call *calls, int n)
{
	int found = -1;

	for (int run = 0; run < 3; run++) {
		pause_us = run == 2 ? 60000 : 0;
		found = differs(calls, n, 0);
		if (found < 0)
			break;
	}
	pause_us = 0;
	return found;
}

/* Leaves out what is not needed for the difference. */
static int shrink(struct call *calls, int n)
{
	for (int bit = 1; bit < OPENINGS; bit *= 2) {
		int all = opening;

		opening &= ~bit;
		if (all & bit && differs_always(calls, n) < 0)
			opening = all;
	}
	for (int length = n / 2; length; length /= 2)
		for (int at = 0; at + length <= n;) {
			struct call fewer[SEQUENCE];

			memcpy(fewer, calls, at * sizeof(*calls));
			memcpy(fewer + at, calls + at + length,
			       (n - at - length) * sizeof(*calls));
			if (differs_always(fewer, n - length) < 0) {
				at += length;
				continue;
			}
			n -= length;
			memcpy(calls, fewer, n * sizeof(*calls));
		}
	return n;
}

int main(int argc, char **argv)
{
	uint64_t seed, wanted;

	if (argc < 4 || argc > 5 || inet_pton(AF_INET, argv[1], &plain) != 1 ||
	    inet_pton(AF_INET, argv[2], &fused) != 1) {
		fprintf(stderr, "usage: fuzz PLAIN FUSED CALLS [SEED]\n");
		return 2;
	}
	wanted = strtoull(argv[3], NULL, 0);
	seed = argc == 5 ? strtoull(argv[4], NULL, 0) : (uint64_t)time(NULL);
	signal(SIGPIPE, SIG_IGN);
	for (uint64_t first = seed; made < wanted; seed++) {
		struct call calls[SEQUENCE];
		int n;

		state = seed * 0x2545f4914f6cdd1d;
		for (int i = 0; i < SEQUENCE; i++)
			calls[i] = random_call();
		opening = number() % 4 ? 0 : number() % OPENINGS;
		n = differs(calls, SEQUENCE, 0) < 0 ? -1
						    : differs_always(calls, SEQUENCE);
		if (n < 0)
			continue;
		printf("seed %llu (first %llu) differs:\n", (unsigned long long)seed,
		       (unsigned long long)first);
		fflush(stdout); /* readers at edges make the rest take minutes */
		n = shrink(calls, n + 1);
		for (int bit = 0; 1 << bit < OPENINGS; bit++)
			if (opening >> bit & 1)
				printf("  %s\n", beginnings[bit]);
		pause_us = 60000;
		differs(calls, n, 1);
		return 1;
	}
	printf("calls=%llu\n", (unsigned long long)made);
	return 0;
}
