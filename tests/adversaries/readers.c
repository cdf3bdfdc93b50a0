// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/*
 * Readers that see less than recv() of one thread does: TCP's queue alone, or what
 * another thread has left.
 */
#define _GNU_SOURCE
#include "adversaries.h"
#include <errno.h>
#include <linux/tcp.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/sendfile.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#define MAPPED (64 * 1024)

/*
 * TCP_ZEROCOPY_RECEIVE maps whole pages of TCP's queue, copies what is no whole page,
 * or says in recv_skip_hint how much is to be had by recv().
 */
struct zerocopy {
	int a, b;
	unsigned char *map; /* NULL: not yet */
	struct flow flow;
	struct watch w;
};

static unsigned char buffer[LONGEST];

static void map_some(struct zerocopy *z)
{
	struct tcp_zerocopy_receive request = {
		.address = (uintptr_t)z->map,
		.length = MAPPED,
		.copybuf_address = (uintptr_t)buffer,
		.copybuf_len = 4096,
	};
	socklen_t length = sizeof(request);
	ssize_t n;

	if (getsockopt(z->b, IPPROTO_TCP, TCP_ZEROCOPY_RECEIVE, &request, &length)) {
		if (errno != EIO) /* nothing there */
			failed("TCP_ZEROCOPY_RECEIVE");
		return;
	}
	if (request.length) {
		took(&z->flow, z->map, request.length);
		moved(&z->w);
	}
	if (request.copybuf_len > 0) {
		took(&z->flow, buffer, request.copybuf_len);
		moved(&z->w);
	}
	if (request.recv_skip_hint) {
		n = recv(z->b, buffer,
			 request.recv_skip_hint < LONGEST ? request.recv_skip_hint
							  : LONGEST,
			 MSG_DONTWAIT);
		if (n > 0) {
			took(&z->flow, buffer, n);
			moved(&z->w);
		}
	}
}

static void receive_some(struct zerocopy *z, size_t most)
{
	ssize_t n = recv(z->b, buffer, most, MSG_DONTWAIT);

	if (n < 0 && errno != EAGAIN)
		failed("recv");
	if (n <= 0)
		return;
	took(&z->flow, buffer, n);
	moved(&z->w);
}

/* Pages that begin where a page begins can be mapped. */
static void send_pages(struct zerocopy *z, size_t pages)
{
	int file = memfd_create("pages", 0);
	size_t n = pages * 4096;
	off_t at = 0;
	ssize_t done;

	if (write(file, bytes_at(&z->flow, z->flow.sent), n) != (ssize_t)n)
		give_up("write to a memfd");
	done = sendfile(z->a, file, &at, n);
	if (done != (ssize_t)n)
		failed("sendfile of pages: %zd", done);
	if (done > 0)
		z->flow.sent += done;
	close(file);
}

static void send_kinds(struct zerocopy *z, struct dice *dice)
{
	for (int i = 1 + below(dice, 5); i; i--) {
		switch (below(dice, 4)) {
		case 0:
			send_pages(z, 8 + below(dice, 5));
			break;
		case 1: /* by TCP */
			set_int(z->b, SOL_SOCKET, SO_RCVLOWAT, 2);
			send_flow(z->a, &z->flow, 1 + below(dice, 9000), &z->w);
			set_int(z->b, SOL_SOCKET, SO_RCVLOWAT, 1);
			break;
		default:
			send_flow(z->a, &z->flow, 1 + below(dice, 9000), &z->w);
		}
	}
}

static void read_kinds(struct zerocopy *z, struct dice *dice)
{
	struct pollfd p = { .fd = z->b, .events = POLLIN };

	while (z->flow.got < z->flow.sent && !z->w.broken && !z->flow.wrong) {
		if (poll(&p, 1, TICK_MS) <= 0)
			continue;
		if (z->map && !one_in(dice, 3))
			map_some(z);
		else
			receive_some(z, 1 + below(dice, one_in(dice, 2) ? 100 : 60000));
		if (z->map && z->flow.got < z->flow.sent && one_in(dice, 8))
			map_some(z); /* nobody said that something is there */
	}
}

static void map_socket(struct zerocopy *z)
{
	z->map = mmap(NULL, MAPPED, PROT_READ, MAP_SHARED, z->b, 0);
	if (z->map == MAP_FAILED)
		give_up("mmap of a socket");
}

/*
 * What then goes by TCP would overtake the bytes that wait (a file does:
 * zerocopy_receive_mapped_behind_bytes).  A few small messages do not.
 */
static void map_behind_bytes(struct zerocopy *z, struct dice *dice)
{
	send_flow(z->a, &z->flow, 1 + below(dice, 8000), &z->w);
	map_socket(z);
	for (int i = 1 + below(dice, 3); i; i--)
		send_flow(z->a, &z->flow, 1 + below(dice, 2000), &z->w);
}

static void zerocopy_round(struct zerocopy *z, struct dice *dice)
{
	int pair[2], before = below(dice, 3), batches = 2 + below(dice, 5);

	make_pair(pair);
	z->a = pair[0];
	z->b = pair[1];
	z->map = NULL;
	start_flow(&z->flow);
	watch(&z->w, "zerocopy_receive", z->a, z->b);
	set_int(z->a, IPPROTO_TCP, TCP_NODELAY, 1);
	for (int i = 0; i < batches && !z->w.broken && !z->flow.wrong; i++) {
		if (i == before && one_in(dice, 3)) {
			map_behind_bytes(z, dice);
		} else {
			if (i == before)
				map_socket(z);
			send_kinds(z, dice);
		}
		read_kinds(z, dice);
	}
	unwatch(&z->w);
	if (!z->w.broken && !z->flow.wrong)
		settle(&z->flow);
	if (z->map)
		munmap(z->map, MAPPED);
	close(z->a);
	close(z->b);
}

void zerocopy_receive(void)
{
	static struct zerocopy z;
	struct dice dice = dice_of(0);

	start_watching();
	pin(0);
	for (; running(); counts->rounds++)
		zerocopy_round(&z, &dice);
}

/*
 * Several threads block in recv() on one socket.  Which gets what, nobody knows, so
 * the bytes are counted and summed up, and looked at where there is one message only.
 */
#define READERS 3
struct crowd {
	int fd;
	struct flow flow;
	struct watch w;
	atomic_ullong sum, taken;
	atomic_bool over;
	atomic_int resting;
	int readers;
};

static uint64_t sum_of(const unsigned char *bytes, size_t n)
{
	uint64_t sum = 0;

	while (n--)
		sum += *bytes++;
	return sum;
}

/*
 * After a message some readers do something else until another thread has had the next
 * one, as long as there is one left that reads.  So that has to be woken.
 */
static void rest(struct crowd *c)
{
	unsigned long long taken = c->taken;

	if (++c->resting < c->readers)
		while (c->taken == taken && !c->over && !c->w.broken)
			usleep(20);
	c->resting--;
}

/* EAGAIN: recv_woken_without_bytes in tests/semantics/differences.tsv. */
static void *read_in_crowd(void *argument)
{
	static _Thread_local unsigned char mine[100000];
	static atomic_uint threads;
	struct crowd *c = argument;
	struct dice dice = dice_of(++threads);
	ssize_t n;

	for (;;) {
		n = recv(c->fd, mine, sizeof(mine), 0);
		if (n < 0 && (errno == EAGAIN || errno == EINTR))
			continue;
		if (n <= 0)
			break;
		c->sum += sum_of(mine, n);
		c->taken += n;
		moved(&c->w);
		if (one_in(&dice, 2))
			rest(c);
	}
	if (n < 0 && !c->w.broken)
		failed("recv of several threads");
	moved(&c->w);
	return NULL;
}

static void send_to_crowd(int fd, struct crowd *c, struct dice *dice, uint64_t *sum)
{
	uint64_t from = c->flow.sent;

	for (int i = one_in(dice, 2) ? 1 : 1 + below(dice, 5); i; i--) {
		if (one_in(dice, 3)) {
			send_file(fd, &c->flow, 32768 + below(dice, 10000), &c->w);
		} else {
			int lowat = one_in(dice, 3);

			if (lowat)
				set_int(c->fd, SOL_SOCKET, SO_RCVLOWAT, 2);
			send_flow(fd, &c->flow, 2 + message_size(dice, 20000), &c->w);
			if (lowat)
				set_int(c->fd, SOL_SOCKET, SO_RCVLOWAT, 1);
		}
		if (one_in(dice, 4))
			usleep(below(dice, 300));
	}
	while (from < c->flow.sent) {
		size_t n = c->flow.sent - from < LONGEST ? c->flow.sent - from : LONGEST;

		*sum += sum_of(bytes_at(&c->flow, from), n);
		from += n;
	}
}

static void crowd_round(struct crowd *c, struct dice *dice)
{
	int pair[2], readers = 2 + below(dice, READERS - 1);
	pthread_t threads[READERS];
	uint64_t sum = 0;

	make_pair(pair);
	c->fd = pair[1];
	c->sum = c->taken = 0;
	c->over = false;
	c->resting = 0;
	c->readers = readers;
	start_flow(&c->flow);
	watch(&c->w, "two_readers", pair[0], pair[1]);
	for (int i = 0; i < readers; i++)
		if (pthread_create(&threads[i], NULL, read_in_crowd, c))
			give_up("pthread_create");
	for (int i = 1 + below(dice, 40); i && !c->w.broken; i--) {
		if (one_in(dice, 4))
			usleep(below(dice, 500)); /* they are asleep */
		send_to_crowd(pair[0], c, dice, &sum);
		while (c->taken < c->flow.sent && !c->w.broken)
			usleep(20);
		if (c->taken == c->flow.sent && c->sum != sum) {
			counts->reordered++;
			note("two_readers: other bytes than were sent");
			break;
		}
	}
	c->over = true;
	shutdown(pair[0], SHUT_WR);
	for (int i = 0; i < readers; i++)
		pthread_join(threads[i], NULL);
	unwatch(&c->w);
	c->flow.got = c->taken;
	if (!c->w.broken)
		settle(&c->flow);
	counts->bytes += c->taken;
	close(pair[0]);
	close(pair[1]);
}

void two_readers(void)
{
	static struct crowd c;
	struct dice dice = dice_of(0);

	start_watching();
	for (; running(); counts->rounds++)
		crowd_round(&c, &dice);
}

/*
 * A process with one thread sleeps inside TCP: it has the first of two bytes that it
 * waits for.  When the other end reads what it has sent, it is woken for nothing
 * (sk_stream_write_space()) and goes back to sleep; the second byte is sent just then.
 * Who holds the lock and who sleeps is read one after the other, so one look alone
 * misses it between the two, once in some 50,000 rounds.
 */
#define WOKEN_ROUNDS 500 /* a connection */
#define ASLEEP_NS 60000
#define SMALL 16384   /* bytes, of a buffer that is full at once */
#define WOKEN_NS 700  /* it takes the lock so long after, and up to */
#define LOCKED_NS 900 /* so much later */

struct woken {
	atomic_int step;
	unsigned char got[2];
};
enum { READY = 1, FIRST_SENT, GOES_TO_SLEEP, WOKEN_DONE };

static void fill(int fd)
{
	while (send(fd, buffer, 4096, MSG_DONTWAIT) > 0)
		;
}

static void sleep_for_two_bytes(int fd, struct woken *shared)
{
	pin(0);
	for (int i = 0; i < WOKEN_ROUNDS; i++) {
		set_int(fd, SOL_SOCKET, SO_RCVLOWAT, 2); /* the first by TCP */
		fill(fd);
		shared->step = READY;
		spin_while(&shared->step, READY);
		fill(fd);
		set_int(fd, SOL_SOCKET, SO_RCVLOWAT, 1);
		shared->step = GOES_TO_SLEEP;
		if (recv(fd, shared->got, 2, MSG_WAITALL) != 2)
			break;
		shared->step = WOKEN_DONE;
		while (shared->step == WOKEN_DONE)
			;
	}
	_exit(0);
}

static void await_step(struct woken *shared, int step, struct watch *w)
{
	while (shared->step != step && !w->broken)
		;
}

static void woken_round(int fd, struct woken *shared, struct flow *flow,
			struct dice *dice, struct watch *w)
{
	await_step(shared, READY, w);
	send_flow(fd, flow, 1, w);
	shared->step = FIRST_SENT;
	await_step(shared, GOES_TO_SLEEP, w);
	spin_until(now_ns() + ASLEEP_NS);
	(void)!recv(fd, buffer, sizeof(buffer), MSG_DONTWAIT);
	spin_until(now_ns() + WOKEN_NS + below(dice, LOCKED_NS));
	send_flow(fd, flow, 1, w);
	await_step(shared, WOKEN_DONE, w);
	if (w->broken)
		return;
	took(flow, shared->got, 2);
	while (recv(fd, buffer, sizeof(buffer), MSG_DONTWAIT) > 0)
		;
	shared->step = 0;
}

/* Both buffers from the start, and without Nagle. */
static void make_small_pair(int pair[2])
{
	struct sockaddr_in name;
	int listener = make_listener(&name);

	set_int(listener, SOL_SOCKET, SO_RCVBUF, SMALL);
	pair[1] = socket(AF_INET, SOCK_STREAM, 0);
	set_int(pair[1], SOL_SOCKET, SO_SNDBUF, SMALL);
	if (connect(pair[1], (void *)&name, sizeof(name)))
		give_up("connect");
	pair[0] = accept(listener, NULL, NULL);
	if (pair[0] < 0)
		give_up("accept");
	close(listener);
	for (int i = 0; i < 2; i++)
		set_int(pair[i], IPPROTO_TCP, TCP_NODELAY, 1);
}

static void woken_connection(struct woken *shared, struct dice *dice)
{
	static struct flow flow;
	static struct watch w;
	int pair[2];
	;
	pid_t child;

	make_small_pair(pair);
	set_int(pair[0], SOL_SOCKET, SO_RCVLOWAT, 2);
	start_flow(&flow);
	shared->step = 0;
	watch(&w, "woken_reader", pair[0], -1);
	send_flow(pair[0], &flow, 1, &w); /* fused */
	read_flow(pair[1], &flow, 1, &w);
	child = fork();
	if (child < 0)
		give_up("fork");
	if (!child) {
		close(pair[0]);
		sleep_for_two_bytes(pair[1], shared);
	}
	w.child[0] = child;
	close(pair[1]);
	for (int i = 0; i < WOKEN_ROUNDS && !w.broken && !flow.wrong; i++) {
		woken_round(pair[0], shared, &flow, dice, &w);
		counts->rounds++;
		moved(&w);
	}
	unwatch(&w);
	if (!w.broken)
		settle(&flow);
	kill(child, SIGKILL);
	waitpid(child, NULL, 0);
	close(pair[0]);
}

void woken_reader(void)
{
	struct woken *shared = mmap(NULL, sizeof(*shared), PROT_READ | PROT_WRITE,
				    MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	struct dice dice = dice_of(0);

	if (shared == MAP_FAILED)
		give_up("mmap");
	start_watching();
	pin(1);
	while (running())
		woken_connection(shared, &dice);
}
