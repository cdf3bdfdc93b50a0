// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/*
 * What the two ends of a connection do at the same moment, or one just after the other.
 */
#define _GNU_SOURCE
#include "adversaries.h"
#include <errno.h>
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <pthread.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/sendfile.h>
#include <sys/socket.h>
#include <sys/syscall.h>
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

/*
 * B answers while A half-closes.  A's calls wait, so it leaves the map then, and a
 * message of B may be under way to it.  Each round has a service of its own, as those of
 * which this was seen once are plain TCP.
 */
static void b_answers(void *argument)
{
	struct moment *m = argument;

	for (int i = 0; i < 6; i++)
		send_flow(m->b, &m->ba, m->size, &m->w);
}

static void a_half_closes(void *argument)
{
	struct moment *m = argument;

	if (shutdown(m->a, SHUT_WR))
		failed("shutdown");
}

void half_close(void)
{
	static struct moment m;
	struct dice dice = dice_of(0);

	start_watching();
	start_partner();
	for (; running(); counts->rounds++) {
		unsigned char rest;
		struct sockaddr_in name;
		int listener = make_listener(&name);

		m.a = socket(AF_INET, SOCK_STREAM, 0);
		if (connect(m.a, (void *)&name, sizeof(name)))
			failed("connect");
		m.b = accept(listener, NULL, NULL);
		close(listener);
		m.size = message_size(&dice, 65000);
		start_flow(&m.ab);
		start_flow(&m.ba);
		watch(&m.w, "half_close", m.a, m.b);
		send_flow(m.a, &m.ab, m.size, &m.w);
		if (one_in(&dice, 2))
			read_flow(m.b, &m.ab, m.ab.sent, &m.w);
		run_parts(b_answers, a_half_closes, &m,
			  (long)below(&dice, SPAN_NS) - SPAN_NS / 2);
		read_flow(m.a, &m.ba, m.ba.sent, &m.w);
		read_flow(m.b, &m.ab, m.ab.sent, &m.w);
		if (!m.w.broken && recv(m.b, &rest, 1, 0))
			failed("no end of the stream after a half close");
		unwatch(&m.w);
		if (!m.w.broken) {
			settle(&m.ab);
			settle(&m.ba);
		}
		close(m.a);
		close(m.b);
	}
}

/*
 * A message of A is under way, and waits for B's lock, while another thread of A sends
 * by TCP what makes both ends leave the map.  B has the lock because it sends a page
 * that is not there yet (userfaultfd).  When the page comes, B's lock goes first to the
 * segments that wait, and then to the message.
 */
struct under_way {
	int a, b, faults;
	unsigned char *page, *content;
	long bytes; /* of a page */
	size_t size;
	bool half_closes; /* B, before the message gets the lock */
	struct flow message, file, answer;
	struct watch w;
};

static void *send_page(void *argument)
{
	struct under_way *u = argument;

	if (send(u->b, u->page, u->bytes, MSG_NOSIGNAL) != u->bytes)
		failed("send of a page");
	if (u->half_closes)
		shutdown(u->b, SHUT_WR);
	return NULL;
}

static void *send_message(void *argument)
{
	struct under_way *u = argument;

	send_flow(u->a, &u->message, u->size, &u->w);
	return NULL;
}

static void await_fault(const struct under_way *u)
{
	struct uffd_msg event;

	if (read(u->faults, &event, sizeof(event)) != sizeof(event) ||
	    event.event != UFFD_EVENT_PAGEFAULT)
		give_up("userfaultfd");
}

static void bring_page(const struct under_way *u)
{
	struct uffdio_copy copy = { .dst = (uintptr_t)u->page,
				    .src = (uintptr_t)u->content,
				    .len = u->bytes };

	if (ioctl(u->faults, UFFDIO_COPY, &copy))
		give_up("UFFDIO_COPY");
}

static uint64_t sum_up(const unsigned char *bytes, size_t n)
{
	uint64_t sum = 0;

	while (n--)
		sum += *bytes++;
	return sum;
}

/* In which order the two threads of A sent, nobody knows. */
static void read_both(struct under_way *u)
{
	static unsigned char buffer[LONGEST];
	struct pollfd p = { .fd = u->b, .events = POLLIN };
	size_t due = u->message.sent + u->file.sent, got = 0;
	uint64_t sum = sum_up(bytes_at(&u->message, 0), u->message.sent) +
		       sum_up(bytes_at(&u->file, 0), u->file.sent);

	while (got < due && !u->w.broken) {
		ssize_t n;

		if (poll(&p, 1, TICK_MS) <= 0)
			continue;
		n = recv(u->b, buffer, sizeof(buffer), MSG_DONTWAIT);
		if (n < 0 && errno == EAGAIN)
			continue;
		if (n <= 0) {
			failed("recv of what two threads sent: %zd", n);
			return;
		}
		got += n;
		sum -= sum_up(buffer, n);
		moved(&u->w);
	}
	counts->bytes += got;
	if (got == due && sum) {
		counts->reordered++;
		note("under_way: other bytes than were sent");
	}
}

static void under_way_round(struct under_way *u, struct dice *dice)
{
	struct epoll_event event = { .events = EPOLLIN | EPOLLET };
	int pair[2], epoll = epoll_create1(0);
	pthread_t page, message;

	make_pair(pair);
	u->a = pair[0];
	u->b = pair[1];
	u->size = 1 + below(dice, 20000);
	u->half_closes = one_in(dice, 2);
	start_flow(&u->message);
	start_flow(&u->file);
	start_flow(&u->answer);
	memcpy(u->content, bytes_at(&u->answer, 0), u->bytes);
	madvise(u->page, u->bytes, MADV_DONTNEED);
	epoll_ctl(epoll, EPOLL_CTL_ADD, u->b, &event);
	watch(&u->w, "under_way", u->a, u->b);
	if (pthread_create(&page, NULL, send_page, u))
		give_up("pthread_create");
	await_fault(u);
	if (pthread_create(&message, NULL, send_message, u))
		give_up("pthread_create");
	usleep(500); /* it waits */
	send_file(u->a, &u->file, FILE_BYTES, &u->w);
	bring_page(u);
	pthread_join(page, NULL);
	pthread_join(message, NULL);
	send_file(u->a, &u->file, FILE_BYTES, &u->w); /* the answer is unread */
	read_both(u);
	u->answer.sent = u->bytes;
	read_flow(u->a, &u->answer, u->bytes, &u->w);
	unwatch(&u->w);
	if (!u->w.broken)
		settle(&u->answer);
	close(u->a);
	close(u->b);
	close(epoll);
}

/* False: not on this kernel. */
static bool prepare_faults(struct under_way *u)
{
	struct uffdio_api api = { .api = UFFD_API };
	struct uffdio_register range = { .mode = UFFDIO_REGISTER_MODE_MISSING };

	u->bytes = sysconf(_SC_PAGESIZE);
	u->faults = syscall(SYS_userfaultfd, O_CLOEXEC);
	if (u->faults < 0 || ioctl(u->faults, UFFDIO_API, &api))
		return false;
	u->content = mmap(NULL, u->bytes, PROT_READ | PROT_WRITE,
			  MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	u->page = mmap(NULL, u->bytes, PROT_READ | PROT_WRITE,
		       MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	range.range.start = (uintptr_t)u->page;
	range.range.len = u->bytes;
	return u->content != MAP_FAILED && u->page != MAP_FAILED &&
	       !ioctl(u->faults, UFFDIO_REGISTER, &range);
}

void under_way(void)
{
	static struct under_way u;
	struct dice dice = dice_of(0);

	if (!prepare_faults(&u)) {
		counts->skipped = true;
		return;
	}
	start_watching();
	for (; running(); counts->rounds++)
		under_way_round(&u, &dice);
}
