// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/*
 * What the two ends of a connection do at the same moment, or one just after the other.
 */
#define _GNU_SOURCE
#include "adversaries.h"
#include <errno.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <pthread.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/sendfile.h>
#include <sys/socket.h>
#include <unistd.h>

/*
 * A socket may count a connect() that was refused as a disconnect, and one that was
 * connected before has seen a real one.  What it did not read when its peer closed must
 * be there all the same.
 */
static int connect_in_the_end(struct dice *dice, int listener,
			      const struct sockaddr_in *name)
{
	struct sockaddr none = { .sa_family = AF_UNSPEC };
	int fd = socket(AF_INET, SOCK_STREAM, 0);
	struct sockaddr_in nobody;
	int refuser = make_refuser(&nobody);

	for (int i = below(dice, 3); i; i--)
		if (!connect(fd, (void *)&nobody, sizeof(nobody)) ||
		    errno != ECONNREFUSED)
			failed("connect to where nobody listens");
	close(refuser);
	if (one_in(dice, 4)) {
		if (connect(fd, (void *)name, sizeof(*name)))
			failed("first connect");
		close(accept(listener, NULL, NULL));
		if (connect(fd, &none, sizeof(none)))
			failed("connect(AF_UNSPEC)");
	}
	if (connect(fd, (void *)name, sizeof(*name)))
		failed("connect after one that was refused");
	return fd;
}

/* Has the other end's close arrived? */
static void await_close(int fd, struct watch *w)
{
	struct pollfd p = { .fd = fd, .events = POLLRDHUP };

	while (!w->broken && poll(&p, 1, TICK_MS) <= 0)
		;
}

static void answer_and_close(int client, int server, struct dice *dice, struct flow *flow,
			     struct watch *w)
{
	size_t size = one_in(dice, 2) ? 1000 : 1 + below(dice, 16000);
	bool reset = one_in(dice, 2);
	unsigned char rest[1000];
	ssize_t last;

	if (!reset) {
		shutdown(client, SHUT_WR);
		if (recv(server, rest, sizeof(rest), 0))
			failed("no end of the stream after a half close");
	}
	send_flow(server, flow, size, w);
	if (reset)
		reset_on_close(server);
	close(server);
	await_close(client, w);
	read_flow(client, flow, size, w);
	last = recv(client, rest, sizeof(rest), MSG_DONTWAIT);
	settle(flow);
	if (w->broken || flow->got < size)
		return;
	if (reset ? last >= 0 || errno != ECONNRESET : last)
		failed("after %s recv returns %zd", reset ? "a reset" : "the end", last);
}

void refused_connect(void)
{
	struct dice dice = dice_of(0);
	struct sockaddr_in name;
	int listener = make_listener(&name);
	static struct watch w;

	start_watching();
	for (; running(); counts->rounds++) {
		struct flow question, answer;
		int client = connect_in_the_end(&dice, listener, &name);
		int server = accept(listener, NULL, NULL);

		start_flow(&question);
		start_flow(&answer);
		watch(&w, "refused_connect", client, server);
		send_flow(client, &question, 1 + below(&dice, 300), &w);
		read_flow(server, &question, question.sent, &w);
		settle(&question);
		answer_and_close(client, server, &dice, &answer, &w);
		unwatch(&w);
		close(client);
		if (counts->rounds % 5000 == 4999) {
			close(listener);
			listener = make_listener(&name);
		}
	}
}

/*
 * A sends a large message while B, whose edge-triggered epoll makes A want to leave the
 * map with it, sends by TCP.  A's processor handles B's segment between the verdict and
 * the delivery of A's message.
 */
struct moment {
	int a, b, epoll;
	size_t size; /* A's message */
	bool lowat;  /* what makes B's go by TCP */
	bool short_is_end;
	struct flow ab, ba;
	struct watch w;
};

#define FILE_BYTES 40000
#define SPAN_NS 80000

static void b_sends(void *argument)
{
	struct moment *m = argument;

	if (m->lowat)
		send_flow(m->b, &m->ba, 2, &m->w);
	else
		send_file(m->b, &m->ba, FILE_BYTES, &m->w);
}

static void a_sends(void *argument)
{
	struct moment *m = argument;

	send_flow(m->a, &m->ab, m->size, &m->w);
}

static void read_by_edges(struct moment *m)
{
	static unsigned char buffer[LONGEST];
	struct epoll_event event;

	while (m->ab.got < m->ab.sent && !m->w.broken) {
		ssize_t n;

		if (epoll_wait(m->epoll, &event, 1, TICK_MS) <= 0)
			continue;
		do {
			n = recv(m->b, buffer, sizeof(buffer), 0);
			if (n < 0 && errno != EAGAIN)
				failed("recv of an edge-triggered reader");
			if (n <= 0)
				break;
			took(&m->ab, buffer, n);
			moved(&m->w);
		} while (n == sizeof(buffer) || !m->short_is_end);
		if (!n)
			return;
	}
}

static void talk_on(struct moment *m, struct dice *dice)
{
	for (int i = below(dice, 4); i && !m->w.broken; i--) {
		if (!send_flow(m->a, &m->ab, 2 + below(dice, 2000), &m->w))
			return;
		read_by_edges(m);
		if (!send_flow(m->b, &m->ba, 2 + below(dice, 2000), &m->w))
			return;
		read_flow(m->a, &m->ba, m->ba.sent, &m->w);
	}
}

static void leave_at_once(struct moment *m, struct dice *dice)
{
	struct epoll_event event = { .events = EPOLLIN | EPOLLET };
	long delay = (long)below(dice, 2 * SPAN_NS) - SPAN_NS / 2;
	int pair[2], first = below(dice, 2);

	make_pair(pair);
	m->a = pair[0];
	m->b = pair[1];
	m->size = one_in(dice, 4) ? 1 + below(dice, 70000) : 60000;
	m->short_is_end = one_in(dice, 2);
	m->epoll = epoll_create1(0);
	start_flow(&m->ab);
	start_flow(&m->ba);
	watch(&m->w, "leaving_map", m->a, m->b);
	set_nonblocking(m->b, true);
	for (int i = below(dice, 4) ? 0 : 2; i < 2; i++)
		set_int(pair[i], IPPROTO_TCP, TCP_NODELAY, 1);
	if (m->lowat)
		set_int(m->a, SOL_SOCKET, SO_RCVLOWAT, 2);
	send_file(m->a, &m->ab, FILE_BYTES, &m->w);
	read_flow(m->b, &m->ab, m->ab.sent, &m->w);
	epoll_ctl(m->epoll, EPOLL_CTL_ADD, m->b, &event);
	run_parts(b_sends, a_sends, m, delay);
	read_by_edges(m);
	read_flow(m->a, &m->ba, m->ba.sent, &m->w);
	talk_on(m, dice);
	unwatch(&m->w);
	if (!m->w.broken) {
		settle(&m->ab);
		settle(&m->ba);
	}
	close(pair[first]);
	close(pair[!first]);
	close(m->epoll);
}

static void leave_again_and_again(bool lowat)
{
	static struct moment m;
	struct dice dice = dice_of(0);

	m.lowat = lowat;
	start_watching();
	start_partner();
	for (; running(); counts->rounds++)
		leave_at_once(&m, &dice);
}

void leaving_map(void)
{
	leave_again_and_again(false);
}

void leaving_map_lowat(void)
{
	leave_again_and_again(true);
}

/* The kernel takes the closing end out of the map while a message is on its way there. */
static void b_closes(void *argument)
{
	struct moment *m = argument;

	close(m->b);
}

void closing_peer(void)
{
	static struct moment m;
	struct dice dice = dice_of(0);

	start_watching();
	start_partner();
	for (; running(); counts->rounds++) {
		int pair[2];

		make_pair(pair);
		m.a = pair[0];
		m.b = pair[1];
		m.size = one_in(&dice, 2) ? 1 + below(&dice, 2000)
					  : 1 + below(&dice, 65000);
		start_flow(&m.ab);
		watch(&m.w, "closing_peer", m.a, -1);
		run_parts(b_closes, a_sends, &m,
			  (long)below(&dice, SPAN_NS) - SPAN_NS / 4);
		unwatch(&m.w);
		close(m.a);
	}
}
