// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/*
 * A random schedule: many connections at once, each end in a thread or process of its
 * own, which does what programs do to sockets.  Which bytes must arrive is known all the
 * time: those of an end that closes in order, and those that had left the sending end
 * before it reset the connection, if the other end reads on to the end.
 *
 * What tests/semantics/differences.tsv lists is left out, or taken for what it is:
 * EAGAIN from a recv() that blocks is no failure, and a close with unread bytes may end
 * the other side's stream or reset it.
 */
#define _GNU_SOURCE
#include "adversaries.h"
#include <errno.h>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/select.h>
#include <sys/sendfile.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define LINKS 12
#define LOWAT_MS 3 /* so long may fewer bytes than SO_RCVLOWAT wait */

enum style { BLOCKING, POLL, SELECT, LEVEL, EDGE, EDGE_SHORT, STYLES };

enum finish {
	IN_ORDER,   /* sends all, reads all */
	LAZY,	    /* so, too; its close() is what ends its stream */
	RESET,	    /* SO_LINGER 0, at any time */
	CLOSE,	    /* at any time */
	DISCONNECT, /* connect(AF_UNSPEC), and used for the next connection */
};

struct end {
	struct link *link;
	int number;
	struct dice dice, send_dice; /* a thread each, perhaps */

	enum style style;
	enum finish finish;
	uint64_t budget;     /* bytes to send */
	uint64_t stop_after; /* so many bytes both ways, if it does not end in order */
	size_t most;	     /* bytes in a message */
	bool nonblocking;
	bool writer;	/* has a thread that sends */
	int fork_after; /* calls that moved something; 0: no fork */
	int dup_after;
	int stalls; /* one in so many reads */

	int fd, epoll, pipe[2];
	bool readable, writable, hung_up;
	bool in_done, child, lowat;
	atomic_bool out_done;
	atomic_bool ending; /* from now on, calls of the other end may fail */
	bool quiet;	    /* all that was sent had left when it ended */
};

struct link {
	struct end ends[2];
	struct flow flows[2]; /* what each end sends */
	struct watch w;
	bool dialogue;
	int steps;
	uint64_t number; /* of the round */
	int id;
	int listener, kept; /* a socket from the last round, or -1 */
	struct sockaddr_in name;
	pthread_barrier_t barrier;
	bool refused; /* its first connect() */
	char text[300];
};

/* Half of them: a fault of sockets that connect more than once would hide others. */
static bool only_once(const struct link *l)
{
	return l->id % 2;
}

/* In a long dialogue, Nagle's algorithm would wait all the time. */
static bool may_delay(const struct link *l)
{
	return !l->dialogue || l->steps < 10;
}

static struct end *other_of(struct end *e)
{
	return &e->link->ends[!e->number];
}

static struct flow *out_of(struct end *e)
{
	return &e->link->flows[e->number];
}

static struct flow *in_of(struct end *e)
{
	return &e->link->flows[!e->number];
}

static bool in_order(const struct end *e)
{
	return e->finish == IN_ORDER || e->finish == LAZY;
}

static bool broken(struct end *e)
{
	return e->link->w.broken;
}

/* Is this how calls fail once the other end is gone? */
static bool may_fail(struct end *e)
{
	return broken(e) ||
	       ((errno == ECONNRESET || errno == EPIPE) && other_of(e)->ending);
}

static void watch_edges(struct end *e)
{
	struct epoll_event event = { .events = EPOLLIN | EPOLLRDHUP };

	if (e->style < LEVEL)
		return;
	if (e->style != LEVEL)
		event.events |= EPOLLET | (e->writer || e->link->dialogue ? 0 : EPOLLOUT);
	if (e->epoll >= 0)
		close(e->epoll);
	e->epoll = epoll_create1(0);
	if (epoll_ctl(e->epoll, EPOLL_CTL_ADD, e->fd, &event))
		failed("epoll_ctl");
}

static bool edges(const struct end *e)
{
	return e->style == EDGE || e->style == EDGE_SHORT;
}

static void wait_by_poll(int fd, short events, int ms)
{
	struct pollfd p = { .fd = fd, .events = events };

	poll(&p, 1, ms);
}

static void wait_by_select(int fd, short events, int ms)
{
	struct timeval tick = { .tv_usec = ms * 1000 };
	fd_set in, out;

	FD_ZERO(&in);
	FD_ZERO(&out);
	if (events & POLLIN)
		FD_SET(fd, &in);
	if (events & POLLOUT)
		FD_SET(fd, &out);
	select(fd + 1, &in, &out, NULL, &tick);
}

static void wait_by_epoll(struct end *e, short events, int ms)
{
	struct epoll_event event = { .events = EPOLLRDHUP };

	if (e->style == LEVEL) {
		event.events |= events & POLLIN ? EPOLLIN : 0;
		event.events |= events & POLLOUT ? EPOLLOUT : 0;
		/* or it would be told of the end again and again */
		if (!(events & POLLIN))
			event.events &= ~EPOLLRDHUP;
		epoll_ctl(e->epoll, EPOLL_CTL_MOD, e->fd, &event);
		epoll_wait(e->epoll, &event, 1, ms);
		return;
	}
	if (epoll_wait(e->epoll, &event, 1, ms) <= 0)
		return;
	if (event.events & (EPOLLIN | EPOLLRDHUP | EPOLLHUP | EPOLLERR))
		e->readable = true;
	if (event.events & (EPOLLRDHUP | EPOLLHUP | EPOLLERR))
		e->hung_up = true;
	if (event.events & (EPOLLOUT | EPOLLHUP | EPOLLERR))
		e->writable = true;
}

/* Until something of events is there, or TICK_MS. */
static void await_events(struct end *e, short events)
{
	int ms = e->lowat ? LOWAT_MS : TICK_MS;

	if (e->style >= LEVEL)
		wait_by_epoll(e, events, ms);
	else if (e->style == SELECT && e->fd < FD_SETSIZE)
		wait_by_select(e->fd, events, ms);
	else
		wait_by_poll(e->fd, events, ms);
	if (!edges(e))
		e->readable = e->writable = true;
	if (e->lowat) {
		e->lowat = false;
		set_int(e->fd, SOL_SOCKET, SO_RCVLOWAT, 1);
	}
}

static void set_time(int fd, int option, long us)
{
	struct timeval time = { .tv_usec = us };

	setsockopt(fd, SOL_SOCKET, option, &time, sizeof(time));
}

static void tweak(struct end *e)
{
	struct dice *d = &e->dice;

	switch (below(d, 10)) {
	case 0:
		set_int(e->fd, IPPROTO_TCP, TCP_NODELAY,
			!may_delay(e->link) || one_in(d, 2));
		break;
	case 1:
		set_int(e->fd, SOL_SOCKET, SO_RCVBUF, 100000 + below(d, 300000));
		break;
	case 2:
		set_int(e->fd, SOL_SOCKET, SO_SNDBUF, 100000 + below(d, 300000));
		break;
	case 3: /* has the kernel look at the socket again; above 1 until it waits */
		e->lowat = !edges(e) && e->style != BLOCKING;
		set_int(e->fd, SOL_SOCKET, SO_RCVLOWAT,
			e->lowat ? 2 + below(d, 3000) : 1);
		break;
	case 4:
		set_time(e->fd, SO_RCVTIMEO, below(d, 2) * below(d, 50000));
		break;
	case 5:
		set_time(e->fd, SO_SNDTIMEO, below(d, 2) * below(d, 50000));
		break;
	case 6:
		set_int(e->fd, SOL_SOCKET, SO_KEEPALIVE, below(d, 2));
		break;
	case 7:
		set_int(e->fd, IPPROTO_TCP, TCP_QUICKACK, below(d, 2));
		break;
	case 8:
		set_int(e->fd, IPPROTO_TCP, TCP_NOTSENT_LOWAT,
			below(d, 2) ? 1 + (int)below(d, 100000) : -1);
		break;
	default:
		set_int(e->fd, IPPROTO_TCP, TCP_CORK, 1);
		set_int(e->fd, IPPROTO_TCP, TCP_CORK, 0);
	}
}

/* May it sleep in a call that sends?  Only if the other end reads, or another thread. */
static bool may_block(const struct end *e)
{
	return e->writer || (e->link->dialogue && in_order(e));
}

/* From a pipe, all of it, as bytes that are in there are sent already. */
static ssize_t splice_bytes(struct end *e, size_t n)
{
	loff_t at = place_of(out_of(e), out_of(e)->sent);
	ssize_t done, in, sent = 0;

	if (e->pipe[0] < 0 && pipe(e->pipe))
		give_up("pipe");
	in = splice(streams_file, &at, e->pipe[1], NULL, n < 60000 ? n : 60000, 0);
	while (sent < in) {
		done = splice(e->pipe[0], NULL, e->fd, NULL, in - sent, 0);
		if (done < 0 && errno == EAGAIN && !broken(e)) {
			wait_by_poll(e->fd, POLLOUT, TICK_MS);
			continue;
		}
		if (done <= 0)
			return sent ? sent : done;
		sent += done;
	}
	return sent;
}

static ssize_t send_more(int fd, const unsigned char *bytes, size_t n, int flags)
{
	ssize_t first = send(fd, bytes, n / 2, flags | MSG_MORE), second;

	if (first < 0)
		return first;
	second = send(fd, bytes + first, n - first, flags);
	return second < 0 ? first : first + second;
}

static ssize_t send_corked(int fd, const unsigned char *bytes, size_t n, int flags)
{
	ssize_t done;

	set_int(fd, IPPROTO_TCP, TCP_CORK, 1);
	done = send_more(fd, bytes, n, flags);
	set_int(fd, IPPROTO_TCP, TCP_CORK, 0);
	return done;
}

static ssize_t send_by(struct end *e, size_t n)
{
	const unsigned char *bytes = bytes_at(out_of(e), out_of(e)->sent);
	struct iovec v[2] = { { (void *)bytes, n / 3 },
			      { (void *)(bytes + n / 3), n - n / 3 } };
	struct msghdr m = { .msg_iov = v, .msg_iovlen = 2 };
	int flags = MSG_NOSIGNAL | (may_block(e) ? 0 : MSG_DONTWAIT);
	off_t at = place_of(out_of(e), out_of(e)->sent);

	switch (below(&e->send_dice, 20)) {
	case 0:
		return sendmsg(e->fd, &m, flags);
	case 1:
		if (n > 1)
			return send_more(e->fd, bytes, n, flags);
		break;
	case 2:
		if (n > 1)
			return send_corked(e->fd, bytes, n, flags);
		break;
	case 3:
		if (may_block(e) || e->nonblocking)
			return sendfile(e->fd, streams_file, &at, n);
		break;
	case 4:
		if (may_block(e))
			return splice_bytes(e, n);
	}
	return send(e->fd, bytes, n, flags);
}

/* False: nothing went. */
static bool send_one(struct end *e, uint64_t limit)
{
	size_t n = message_size(&e->send_dice, e->most);
	ssize_t done;

	if (n > limit)
		n = limit;
	done = send_by(e, n);
	if (done > 0) {
		out_of(e)->sent += done;
		moved(&e->link->w);
		return true;
	}
	if (done < 0 && (errno == EAGAIN || errno == EINTR)) {
		e->writable = false;
		return false;
	}
	if (!may_fail(e))
		failed("link %d: send of %zu bytes", e->link->id, n);
	e->out_done = true;
	return false;
}

static void end_of_stream(struct end *e)
{
	struct end *other = other_of(e);

	e->in_done = true;
	if (!broken(e) && !other->ending && !other->out_done)
		failed("link %d: an end of the stream that nobody sent", e->link->id);
}

static _Thread_local unsigned char bytes_read[LONGEST];

static ssize_t recv_by(struct end *e, size_t n)
{
	int flags = e->style == BLOCKING ? 0 : MSG_DONTWAIT;
	struct iovec v[2] = { { bytes_read, n / 3 }, { bytes_read + n / 3, n - n / 3 } };
	struct msghdr m = { .msg_iov = v, .msg_iovlen = 2 };
	ssize_t peeked;

	if (one_in(&e->dice, 12)) {
		peeked = recv(e->fd, bytes_read, n, MSG_PEEK | MSG_DONTWAIT);
		if (peeked > 0)
			check(in_of(e), in_of(e)->got, bytes_read, peeked);
	}
	if (one_in(&e->dice, 8))
		return recvmsg(e->fd, &m, flags);
	return recv(e->fd, bytes_read, n, flags);
}

/* False: nothing came. */
static bool recv_one(struct end *e, uint64_t limit)
{
	size_t n = one_in(&e->dice, 3) ? message_size(&e->dice, LONGEST) : LONGEST;
	ssize_t done;

	if (n > limit)
		n = limit;
	done = recv_by(e, n);
	if (done > 0) {
		took(in_of(e), bytes_read, done);
		moved(&e->link->w);
		if (e->style == EDGE_SHORT && done < (ssize_t)n && !e->hung_up)
			e->readable = false;
		if (e->stalls && one_in(&e->dice, e->stalls))
			usleep(below(&e->dice, 20000));
		return true;
	}
	if (done < 0 && (errno == EAGAIN || errno == EINTR)) {
		if (e->style != BLOCKING)
			e->readable = false;
		return false;
	}
	if (!done) {
		end_of_stream(e);
		return true;
	}
	if (!may_fail(e))
		failed("link %d: recv", e->link->id);
	e->in_done = true;
	return true;
}

static void close_all_but(int fd)
{
	int low = fd < streams_file ? fd : streams_file;
	int high = fd < streams_file ? streams_file : fd;

	if (low > 3)
		close_range(3, low - 1, 0);
	if (high > low + 1)
		close_range(low + 1, high - 1, 0);
	close_range(high + 1, ~0U, 0);
}

/* A child goes on.  True: it was, this is the parent. */
static bool handed_over(struct end *e)
{
	int ours[] = { e->fd, e->epoll, e->pipe[0], e->pipe[1] };
	pid_t child;

	e->link->w.fd[e->number] = -1;
	child = fork();
	if (child < 0)
		give_up("fork");
	if (child) {
		e->link->w.child[e->number] = child;
		for (int i = 0; i < 4; i++)
			if (ours[i] >= 0)
				close(ours[i]);
		waitpid(child, NULL, 0);
		e->link->w.child[e->number] = 0;
		return true;
	}
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	e->child = true;
	close_all_but(e->fd);
	e->pipe[0] = e->pipe[1] = e->epoll = -1;
	e->readable = e->writable = true;
	watch_edges(e);
	return false;
}

static void take_another_fd(struct end *e)
{
	int fd = dup(e->fd);

	close(e->fd);
	e->fd = fd;
	if (!e->child)
		e->link->w.fd[e->number] = fd;
	e->readable = e->writable = true;
	watch_edges(e);
}

static bool is_over(struct end *e)
{
	return broken(e) ||
	       (!in_order(e) && in_of(e)->got + out_of(e)->sent >= e->stop_after);
}

/* After each call that moved something.  True: this end is over. */
static bool turn_of_events(struct end *e)
{
	if (one_in(&e->dice, 60))
		tweak(e);
	if (e->dup_after && !--e->dup_after)
		take_another_fd(e);
	if (e->fork_after && !--e->fork_after && handed_over(e)) {
		e->fd = -1;
		return true;
	}
	return is_over(e);
}

static void end_output(struct end *e)
{
	e->out_done = true;
	if (e->finish != IN_ORDER)
		return;
	shutdown(e->fd, SHUT_WR);
	moved(&e->link->w);
}

static void *send_all(void *argument)
{
	struct end *e = argument;

	while (!broken(e) && !e->out_done) {
		if (out_of(e)->sent >= e->budget) {
			end_output(e);
			break;
		}
		if (!send_one(e, e->budget - out_of(e)->sent))
			wait_by_poll(e->fd, POLLOUT, TICK_MS);
	}
	return NULL;
}

static void drive_pair(struct end *e)
{
	pthread_t thread;

	if (pthread_create(&thread, NULL, send_all, e))
		give_up("pthread_create");
	while (!broken(e) && !e->in_done) {
		if (!e->readable)
			await_events(e, POLLIN);
		if (recv_one(e, LONGEST) && turn_of_events(e))
			break;
	}
	pthread_join(thread, NULL);
}

static void drive_stream(struct end *e)
{
	for (;;) {
		bool some = false;

		if (!e->out_done && out_of(e)->sent >= e->budget)
			end_output(e);
		if (e->in_done && e->out_done)
			return;
		if (!e->in_done && e->readable)
			some |= recv_one(e, LONGEST);
		if (!e->out_done && e->writable)
			some |= send_one(e, e->budget - out_of(e)->sent);
		if (some ? turn_of_events(e) : is_over(e))
			return;
		if (!some && !(e->in_done && e->out_done) &&
		    (e->in_done || !e->readable) && (e->out_done || !e->writable))
			await_events(e, (e->in_done ? 0 : POLLIN) |
						(e->out_done ? 0 : POLLOUT));
	}
}

/* False: this end is over. */
static bool say(struct end *e, size_t n)
{
	uint64_t until = out_of(e)->sent + n;

	while (out_of(e)->sent < until) {
		if (e->out_done || broken(e))
			return !broken(e);
		if (!send_one(e, until - out_of(e)->sent))
			wait_by_poll(e->fd, POLLOUT, TICK_MS);
		else if (turn_of_events(e))
			return false;
	}
	return true;
}

static bool hear(struct end *e, uint64_t until)
{
	while (in_of(e)->got < until) {
		uint64_t more = one_in(&e->dice, 2) ? until - in_of(e)->got : LONGEST;

		if (e->in_done || broken(e))
			return !broken(e);
		if (!e->readable)
			await_events(e, POLLIN);
		else if (recv_one(e, more) && turn_of_events(e))
			return false;
	}
	return true;
}

/* Both ends know what comes next. */
static void drive_dialogue(struct end *e)
{
	struct dice sizes = dice_of(e->link->number * 8 + e->link->id * 7919 + 7);
	uint64_t due[2] = { 0, 0 };
	bool goes_on = true;

	for (int i = 0; i < e->link->steps && goes_on && !e->in_done; i++)
		for (int turn = 0; turn < 2 && goes_on; turn++) {
			size_t n = message_size(&sizes, 100000);

			due[turn] += n;
			goes_on = turn == e->number ? say(e, n) : hear(e, due[turn]);
		}
	if (!goes_on || !in_order(e))
		return;
	end_output(e);
	while (!e->in_done && !broken(e)) {
		if (!e->readable)
			await_events(e, POLLIN);
		if (recv_one(e, LONGEST) && turn_of_events(e))
			return;
	}
}

/* Of what TCP had, everything is acknowledged, so the other end has it. */
static bool all_has_left(struct end *e)
{
	int left = 1;

	for (int i = 0; i < 2000 && left; i++) {
		if (ioctl(e->fd, TIOCOUTQ, &left))
			return false;
		if (left)
			usleep(1000);
	}
	return !left;
}

static void finish(struct end *e)
{
	struct sockaddr none = { .sa_family = AF_UNSPEC };

	if (!in_order(e) && one_in(&e->dice, 2) && !broken(e) && !other_of(e)->ending)
		e->quiet = all_has_left(e) && !other_of(e)->ending;
	e->ending = true;
	if (e->finish == DISCONNECT && !connect(e->fd, &none, sizeof(none))) {
		set_int(e->fd, SOL_SOCKET, SO_RCVLOWAT, 1);
		e->link->kept = e->fd;
	} else {
		if (e->finish == RESET)
			reset_on_close(e->fd);
		close(e->fd);
	}
	if (e->epoll >= 0)
		close(e->epoll);
	for (int i = 0; i < 2; i++)
		if (e->pipe[i] >= 0)
			close(e->pipe[i]);
	moved(&e->link->w);
	if (e->child)
		_exit(0);
}

static void connect_refused(int fd)
{
	struct sockaddr_in nobody;
	int refuser = make_refuser(&nobody);

	if (!connect(fd, (void *)&nobody, sizeof(nobody)) || errno != ECONNREFUSED)
		failed("connect to where nobody listens");
	close(refuser);
}

static int connect_end(struct end *e)
{
	struct sockaddr_in *name = &e->link->name;
	int fd = e->link->kept, error = 0;
	socklen_t length = sizeof(error);

	if (fd < 0)
		fd = socket(AF_INET, SOCK_STREAM, 0);
	e->link->kept = -1;
	set_nonblocking(fd, false);
	set_time(fd, SO_RCVTIMEO, 0);
	set_time(fd, SO_SNDTIMEO, 0);
	e->link->refused = !only_once(e->link) && one_in(&e->dice, 4);
	if (e->link->refused)
		connect_refused(fd);
	set_nonblocking(fd, one_in(&e->dice, 3));
	if (connect(fd, (void *)name, sizeof(*name)) && errno != EINPROGRESS) {
		failed("link %d: connect", e->link->id);
		return fd;
	}
	for (int i = 0; i < 100; i++) {
		struct pollfd p = { .fd = fd, .events = POLLOUT };

		if (poll(&p, 1, TICK_MS) > 0)
			break;
	}
	if (getsockopt(fd, SOL_SOCKET, SO_ERROR, &error, &length) ||
	    (error && !other_of(e)->ending)) {
		errno = error;
		failed("link %d: connection", e->link->id);
	}
	return fd;
}

static int accept_end(struct end *e)
{
	struct pollfd p = { .fd = e->link->listener, .events = POLLIN };
	int fd;

	if (one_in(&e->dice, 4))
		usleep(below(&e->dice, 3000));
	while (poll(&p, 1, TICK_MS) <= 0)
		if (broken(e))
			return -1;
	fd = accept(e->link->listener, NULL, NULL);
	if (fd < 0)
		failed("accept");
	return fd;
}

static void live(struct end *e)
{
	e->fd = e->number ? accept_end(e) : connect_end(e);
	if (e->fd < 0)
		return;
	e->link->w.fd[e->number] = e->fd;
	set_nonblocking(e->fd, e->nonblocking);
	if (one_in(&e->dice, 4))
		usleep(below(&e->dice, 2000));
	set_int(e->fd, IPPROTO_TCP, TCP_NODELAY,
		!may_delay(e->link) || one_in(&e->dice, 2));
	watch_edges(e);
	if (e->link->dialogue)
		drive_dialogue(e);
	else if (e->writer)
		drive_pair(e);
	else
		drive_stream(e);
	if (e->fd < 0)
		return; /* a child has it */
	e->link->w.fd[e->number] = -1;
	finish(e);
}

static uint64_t budget_of(struct end *e)
{
	switch (below(&e->dice, 8)) {
	case 0:
		return 0;
	case 1: /* so many small ones that both ends leave the map */
		e->most = 10 + below(&e->dice, 190);
		return e->most * (5000 + below(&e->dice, 20000)) / 2;
	case 2:
		return below(&e->dice, 8000000);
	case 3:
	case 4:
		return below(&e->dice, 200000);
	default:
		return below(&e->dice, 5000);
	}
}

static void choose_end(struct end *e)
{
	struct dice *d = &e->dice;

	e->most = one_in(d, 3) ? 1000 : LONGEST;
	e->style = below(d, STYLES);
	e->budget = budget_of(e);
	e->finish = one_in(d, 2) ? IN_ORDER : below(d, 5);
	if (e->finish == (e->number ? DISCONNECT : LAZY))
		e->finish = IN_ORDER;
	if (e->finish == DISCONNECT && only_once(e->link))
		e->finish = CLOSE;
	e->nonblocking = e->style != BLOCKING && one_in(d, 2);
	e->writer = !e->link->dialogue && in_order(e) &&
		    (e->style == BLOCKING || one_in(d, 4));
	if (e->style == BLOCKING && !e->writer && !e->link->dialogue)
		e->style = POLL; /* it has to send, too */
	e->stalls = one_in(d, 4) ? 20 + below(d, 200) : 0;
	e->fork_after = e->dup_after = 0;
	if (!e->writer && one_in(d, 3))
		e->dup_after = 1 + below(d, 50);
	if (!e->writer && e->finish != DISCONNECT && one_in(d, 6))
		e->fork_after = 1 + below(d, 50);
	e->fd = e->epoll = e->pipe[0] = e->pipe[1] = -1;
	e->readable = e->writable = true;
	e->in_done = e->child = e->lowat = e->hung_up = e->quiet = false;
	e->out_done = e->ending = false;
}

static void choose(struct link *l)
{
	struct dice d = dice_of(l->number * 8 + l->id * 7919);
	uint64_t both = 0;

	l->dialogue = one_in(&d, 2);
	l->steps = below(&d, one_in(&d, 4) ? 500 : 30);
	for (int i = 0; i < 2; i++) {
		struct end *e = &l->ends[i];

		e->link = l;
		e->number = i;
		e->dice = dice_of(l->number * 8 + l->id * 7919 + 1 + i);
		e->send_dice = dice_of(l->number * 8 + l->id * 7919 + 3 + i);
		choose_end(e);
		start_flow(&l->flows[i]);
		both += l->dialogue ? l->steps * 1000ULL : e->budget;
	}
	for (int i = 0; i < 2; i++)
		l->ends[i].stop_after = below(&d, both + 1);
}

static int describe_end(const struct end *e, char *text, size_t size)
{
	static const char *const styles[] = {
		"blocking", "poll", "select", "level", "edge", "edge, short is the end"
	};
	static const char *const finishes[] = { "in order", "lazy", "reset", "close",
						"disconnect" };

	return snprintf(text, size, "; end %d: %s%s%s%s%s, %s", e->number,
			styles[e->style], e->nonblocking ? ", nonblocking" : "",
			e->writer ? ", writer" : "", e->fork_after ? ", fork" : "",
			e->dup_after ? ", dup" : "", finishes[e->finish]);
}

/* Before its ends live: what they have used up since is not told. */
static void describe(struct link *l)
{
	char *text = l->text;
	size_t size = sizeof(l->text);
	int n;

	n = snprintf(text, size, "link %d, round %llu, %s", l->id,
		     (unsigned long long)l->number, l->dialogue ? "dialogue" : "streams");
	if (l->kept >= 0)
		n += snprintf(text + n, size - n, ", connected before");
	for (int i = 0; i < 2; i++)
		n += describe_end(&l->ends[i], text + n, size - n);
}

static void judge(struct link *l)
{
	unsigned long long faults = counts->lost + counts->reordered;

	for (int i = 0; i < 2 && !l->w.broken; i++) {
		struct end *from = &l->ends[i], *to = &l->ends[!i];

		if (in_order(to) && (in_order(from) || from->quiet))
			settle(&l->flows[i]);
		if (in_order(from) && l->flows[i].got > l->flows[i].sent) {
			counts->reordered++;
			note("link %d: more than was sent", l->id);
		}
	}
	if (counts->lost + counts->reordered > faults || l->flows[0].wrong ||
	    l->flows[1].wrong)
		note("  in %s%s", l->text, l->refused ? "; refused first" : "");
	counts->rounds++;
}

static void *live_again(void *argument)
{
	struct end *e = argument;
	struct link *l = e->link;
	static atomic_bool over;
	int number = e->number;

	if (l->id % 3)
		pin(l->id + number);
	for (;;) {
		if (!number) {
			over = over || !running();
			l->number++;
			choose(l);
			if (l->number % 2000 == 1) {
				if (l->listener >= 0)
					close(l->listener);
				l->listener = make_listener(&l->name);
			}
			describe(l);
			watch(&l->w, l->text, -1, -1);
			if (over)
				l->steps = -1;
		}
		pthread_barrier_wait(&l->barrier);
		if (l->steps < 0)
			break;
		live(e);
		pthread_barrier_wait(&l->barrier);
		if (!number) {
			unwatch(&l->w);
			judge(l);
		}
	}
	unwatch(&l->w);
	return NULL;
}

void schedule(void)
{
	struct link *links = mmap(NULL, LINKS * sizeof(*links), PROT_READ | PROT_WRITE,
				  MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	pthread_t threads[2 * LINKS];

	if (links == MAP_FAILED)
		give_up("mmap");
	start_watching();
	for (int i = 0; i < 2 * LINKS; i++) {
		struct link *l = &links[i / 2];

		if (i % 2 == 0) {
			pthread_barrier_init(&l->barrier, NULL, 2);
			l->id = i / 2;
			l->listener = l->kept = -1;
		}
		l->ends[i % 2].link = l;
		l->ends[i % 2].number = i % 2;
		if (pthread_create(&threads[i], NULL, live_again, &l->ends[i % 2]))
			give_up("pthread_create");
	}
	for (int i = 0; i < 2 * LINKS; i++)
		pthread_join(threads[i], NULL);
}
