// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/*
 * Streams of small messages, which make both ends leave the map, while several threads
 * are busy on each end.
 */
#define _GNU_SOURCE
#include "adversaries.h"
#include <errno.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define WRITERS 3
#define RECORD_MOST 16384

/* Of one thread; its body is the thread's stream from offset on. */
struct record {
	uint32_t writer, number;
	uint32_t length; /* of the body */
	uint32_t check;
	uint64_t offset;
};
#define RECORD_MARK 0x5eedf00d

enum talk { STREAM, DIALOGUE, ALONE };

struct side {
	struct pairs *pairs;
	int fd, writers;
	bool edge;
	atomic_int writing; /* writers that are not done */
	pthread_mutex_t lock;
	struct flow flows[WRITERS];		       /* what its writers send */
	atomic_ullong records[WRITERS], gone[WRITERS]; /* written, read */
	struct side *other;
};

struct pairs {
	struct side sides[2];
	struct watch w;
	enum talk talk;
	int records;
	size_t most;
	uint64_t number;
};

struct writer {
	struct side *side;
	int number;
};

static bool wait_until(int fd, short events, struct watch *w)
{
	struct pollfd p = { .fd = fd, .events = events };

	while (!w->broken)
		if (poll(&p, 1, TICK_MS) > 0)
			return true;
	return false;
}

static bool send_record(struct side *s, const unsigned char *bytes, size_t n)
{
	while (n) {
		ssize_t done = send(s->fd, bytes, n, MSG_NOSIGNAL);

		if (done < 0 && errno == EAGAIN &&
		    wait_until(s->fd, POLLOUT, &s->pairs->w))
			continue;
		if (done < 0) {
			if (!s->pairs->w.broken)
				failed("send of a record");
			return false;
		}
		bytes += done;
		n -= done;
		moved(&s->pairs->w);
	}
	return true;
}

/*
 * One send() is not one message for the other threads where it has to wait for memory,
 * in TCP neither.  So they take turns, or let no more than one record each wait.
 */
static void *write_records(void *argument)
{
	struct writer *me = argument;
	struct side *s = me->side;
	struct flow *flow = &s->flows[me->number];
	struct dice dice =
		dice_of(s->pairs->number * 64 + me->number * 2 + (s > s->other));
	bool alone = s->pairs->talk == ALONE;
	_Alignas(struct record) unsigned char bytes[sizeof(struct record) + RECORD_MOST];
	struct record *r = (void *)bytes;
	bool well = true;

	for (int i = 0; i < s->pairs->records && well; i++) {
		r->writer = me->number;
		r->number = i;
		r->length = one_in(&dice, 500) ? below(&dice, s->pairs->most)
					       : below(&dice, 120);
		r->check = RECORD_MARK ^ r->writer ^ i ^ r->length;
		r->offset = flow->sent;
		memcpy(bytes + sizeof(*r), bytes_at(flow, flow->sent), r->length);
		if (!alone)
			pthread_mutex_lock(&s->lock);
		well = send_record(s, bytes, sizeof(*r) + r->length);
		if (!alone)
			pthread_mutex_unlock(&s->lock);
		if (!well)
			break;
		flow->sent += r->length;
		s->records[me->number]++;
		while (s->pairs->talk != STREAM && !s->pairs->w.broken &&
		       s->gone[me->number] < s->records[me->number])
			sched_yield();
	}
	if (!--s->writing)
		shutdown(s->fd, SHUT_WR);
	moved(&s->pairs->w);
	return NULL;
}

/* False: the rest cannot be understood. */
static bool take_record(struct side *from, const unsigned char *bytes)
{
	const struct record *r = (void *)bytes;
	struct flow *flow = &from->flows[r->writer];
	unsigned long long due = from->gone[r->writer];

	if (r->number != due || r->offset != flow->got) {
		counts->reordered++;
		note("record %u of writer %u where %llu was due", r->number, r->writer,
		     due);
		return false;
	}
	took(flow, bytes + sizeof(*r), r->length);
	from->gone[r->writer]++;
	return !flow->wrong;
}

static ssize_t read_some(struct side *s, unsigned char *to, size_t n, int epoll)
{
	struct epoll_event event;
	ssize_t got;

	while (!s->pairs->w.broken) {
		got = recv(s->fd, to, n, s->edge ? MSG_DONTWAIT : 0);
		if (got >= 0 || errno != EAGAIN)
			return got;
		while (s->edge && !s->pairs->w.broken &&
		       epoll_wait(epoll, &event, 1, TICK_MS) <= 0)
			;
	}
	return -1;
}

static bool is_record(const struct side *from, const unsigned char *bytes)
{
	const struct record *r = (void *)bytes;

	return r->writer < (uint32_t)from->writers && r->length <= RECORD_MOST &&
	       r->check == (RECORD_MARK ^ r->writer ^ r->number ^ r->length);
}

static void *read_records(void *argument)
{
	struct side *s = argument, *from = s->other;
	struct epoll_event event = { .events = EPOLLIN | EPOLLET };
	int epoll = epoll_create1(0);
	size_t room = 4 * (sizeof(struct record) + RECORD_MOST), have = 0, at = 0;
	unsigned char *buffer = malloc(room);
	ssize_t n;

	if (s->edge)
		epoll_ctl(epoll, EPOLL_CTL_ADD, s->fd, &event);
	while ((n = read_some(s, buffer + have, room - have, epoll)) > 0) {
		moved(&s->pairs->w);
		have += n;
		for (at = 0; have - at >= sizeof(struct record);) {
			struct record r;

			memcpy(&r, buffer + at, sizeof(r));
			if (!is_record(from, (void *)&r)) {
				counts->reordered++;
				note("no record where one was due, behind %llu moves",
				     s->pairs->w.moved);
				goto out;
			}
			if (have - at < sizeof(r) + r.length)
				break;
			if (at) { /* so that it is aligned */
				memmove(buffer, buffer + at, have - at);
				have -= at;
				at = 0;
			}
			if (!take_record(from, buffer))
				goto out;
			at = sizeof(r) + r.length;
		}
		memmove(buffer, buffer + at, have - at);
		have -= at;
	}
	if (n < 0 && !s->pairs->w.broken)
		failed("recv of records");
out:
	if (n) { /* its writers must come to an end */
		s->pairs->w.broken = true;
		shutdown(s->fd, SHUT_RDWR);
	}
	free(buffer);
	close(epoll);
	return NULL;
}

static void settle_records(struct pairs *p)
{
	for (int i = 0; i < 2 && !p->w.broken; i++)
		for (int k = 0; k < p->sides[i].writers; k++) {
			struct side *s = &p->sides[i];

			settle(&s->flows[k]);
			if (s->gone[k] < s->records[k])
				note("writer %d: %llu of %llu records", k, s->gone[k],
				     s->records[k]);
		}
}

static void choose_pairs(struct pairs *p, struct dice *dice)
{
	static const int numbers[] = { 10, 300, 3000, 30000 };

	p->talk = below(dice, 3);
	p->most = one_in(dice, 2) ? 2000 : RECORD_MOST;
	if (p->talk == ALONE)
		p->most = 2000;
	p->records = 1 + below(dice, numbers[below(dice, p->talk == STREAM ? 4 : 3)]);
	for (int i = 0; i < 2; i++) {
		struct side *s = &p->sides[i];

		s->pairs = p;
		s->other = &p->sides[!i];
		s->writing = s->writers = 1 + below(dice, WRITERS);
		s->edge = one_in(dice, 2);
		for (int k = 0; k < s->writers; k++) {
			start_flow(&s->flows[k]);
			s->records[k] = s->gone[k] = 0;
		}
	}
}

static void pairs_round(struct pairs *p, struct dice *dice)
{
	pthread_t threads[2 * (WRITERS + 1)];
	struct writer writers[2 * WRITERS];
	int pair[2], n = 0, w = 0, first = below(dice, 2);

	make_pair(pair);
	choose_pairs(p, dice);
	watch(&p->w, "thread_pairs", pair[0], pair[1]);
	for (int i = 0; i < 2; i++) {
		struct side *s = &p->sides[i];

		s->fd = pair[i];
		set_nonblocking(s->fd, s->edge && one_in(dice, 2));
		if (pthread_create(&threads[n++], NULL, read_records, s))
			give_up("pthread_create");
	}
	for (int i = 0; i < 2; i++)
		for (int k = 0; k < p->sides[i].writers; k++) {
			writers[w] = (struct writer){ &p->sides[i], k };
			if (pthread_create(&threads[n++], NULL, write_records,
					   &writers[w++]))
				give_up("pthread_create");
		}
	while (n)
		pthread_join(threads[--n], NULL);
	unwatch(&p->w);
	settle_records(p);
	close(pair[first]);
	close(pair[!first]);
	counts->rounds++;
}

#define CONNECTIONS 3

static void *pairs_again(void *argument)
{
	struct pairs *p = calloc(1, sizeof(*p));
	struct dice dice = dice_of((uintptr_t)argument);

	for (int i = 0; i < 2; i++)
		pthread_mutex_init(&p->sides[i].lock, NULL);
	for (p->number = (uintptr_t)argument << 32; running(); p->number++)
		pairs_round(p, &dice);
	return NULL;
}

void thread_pairs(void)
{
	pthread_t threads[CONNECTIONS];

	start_watching();
	for (uintptr_t i = 0; i < CONNECTIONS; i++)
		if (pthread_create(&threads[i], NULL, pairs_again, (void *)i))
			give_up("pthread_create");
	for (int i = 0; i < CONNECTIONS; i++)
		pthread_join(threads[i], NULL);
}

/*
 * run.sh has lo's segments, and so their acknowledgments, handled by any processor
 * (rps_cpus).  Timers run too: options change all the time.  Two threads write, one
 * reader sleeps in recv(); or there is an answer now and then.
 */
struct elsewhere {
	int fd[2];
	struct flow flow, answers;
	pthread_mutex_t lock;
	int messages;
	size_t most;
	bool answer;
	atomic_int writing;
	atomic_bool over;
	struct watch w;
	uint64_t number;
	int cpu;
};

static void *write_small(void *argument)
{
	struct elsewhere *e = argument;
	struct dice dice = dice_of(e->number * 8 + e->writing);
	bool well = true;

	pin(e->cpu);
	for (int i = 0; i < e->messages && well && !e->w.broken; i++) {
		pthread_mutex_lock(&e->lock);
		well = send_flow(e->fd[0], &e->flow, 1 + below(&dice, e->most), &e->w);
		pthread_mutex_unlock(&e->lock);
		if (one_in(&dice, 4000))
			usleep(below(&dice, 250000)); /* timers of TCP run out */
		moved(&e->w);
	}
	if (!--e->writing)
		shutdown(e->fd[0], SHUT_WR);
	return NULL;
}

/* EAGAIN: recv_woken_without_bytes in tests/semantics/differences.tsv. */
static void *read_asleep(void *argument)
{
	unsigned char bytes[65536];
	struct elsewhere *e = argument;
	struct dice dice = dice_of(e->number * 8 + 5);
	ssize_t n;

	pin(e->cpu + 1);
	for (;;) {
		n = recv(e->fd[1], bytes, 1 + below(&dice, sizeof(bytes)), 0);
		if (n < 0 && errno == EAGAIN)
			continue;
		if (n <= 0)
			break;
		took(&e->flow, bytes, n);
		moved(&e->w);
		if (one_in(&dice, 5000))
			usleep(below(&dice, 30000));
		if (e->answer && one_in(&dice, 50) &&
		    !send_flow(e->fd[1], &e->answers, 1 + below(&dice, 300), &e->w))
			break;
	}
	if (n < 0 && !e->w.broken)
		failed("recv of one asleep");
	shutdown(e->fd[1], SHUT_WR);
	return NULL;
}

static void *read_answers(void *argument)
{
	unsigned char bytes[4096];
	struct elsewhere *e = argument;
	ssize_t n;

	do {
		n = recv(e->fd[0], bytes, sizeof(bytes), 0);
		if (n > 0)
			took(&e->answers, bytes, n);
		moved(&e->w);
	} while (n > 0 || (n < 0 && errno == EAGAIN && !e->w.broken));
	if (n < 0 && !e->w.broken)
		failed("recv of answers");
	return NULL;
}

static void *set_options(void *argument)
{
	static const int levels[][2] = {
		{ IPPROTO_TCP, TCP_NODELAY }, { SOL_SOCKET, SO_KEEPALIVE },
		{ SOL_SOCKET, SO_RCVLOWAT },  { IPPROTO_TCP, TCP_QUICKACK },
		{ IPPROTO_TCP, TCP_CORK },    { IPPROTO_TCP, TCP_NOTSENT_LOWAT },
		{ SOL_SOCKET, SO_BUSY_POLL },
	};
	struct elsewhere *e = argument;
	struct dice dice = dice_of(e->number * 8 + 6);

	while (!e->over) {
		int end = below(&dice, 2), option = below(&dice, 7), value;

		value = below(&dice, 2);
		if (levels[option][1] == TCP_NOTSENT_LOWAT && option == 5)
			value = value ? 16384 : -1;
		if (levels[option][1] == SO_RCVLOWAT && option == 2)
			value = 1; /* has the kernel look at its reader again */
		set_int(e->fd[end], levels[option][0], levels[option][1], value);
		if (option == 4)
			set_int(e->fd[end], IPPROTO_TCP, TCP_CORK, 0);
		usleep(below(&dice, 2000));
	}
	return NULL;
}

static void elsewhere_round(struct elsewhere *e, struct dice *dice)
{
	pthread_t threads[5];
	int n = 0;

	make_pair(e->fd);
	start_flow(&e->flow);
	start_flow(&e->answers);
	e->writing = 2;
	e->over = false;
	e->cpu = below(dice, 2);
	e->most = one_in(dice, 2) ? 64 : 300;
	e->messages = 100 + below(dice, one_in(dice, 2) ? 2000 : 30000);
	e->answer = one_in(dice, 2);
	watch(&e->w, "acks_elsewhere", e->fd[0], e->fd[1]);
	if (pthread_create(&threads[n++], NULL, read_asleep, e) ||
	    pthread_create(&threads[n++], NULL, read_answers, e) ||
	    pthread_create(&threads[n++], NULL, write_small, e) ||
	    pthread_create(&threads[n++], NULL, write_small, e) ||
	    pthread_create(&threads[n++], NULL, set_options, e))
		give_up("pthread_create");
	for (int i = 0; i < n; i++) {
		e->over =
			i == n - 1; /* the last sets options until all others are done */
		pthread_join(threads[i], NULL);
	}
	unwatch(&e->w);
	if (!e->w.broken) {
		settle(&e->flow);
		settle(&e->answers);
	}
	close(e->fd[0]);
	close(e->fd[1]);
	counts->rounds++;
}

static void *elsewhere_again(void *argument)
{
	struct elsewhere *e = calloc(1, sizeof(*e));
	struct dice dice = dice_of((uintptr_t)argument);

	pthread_mutex_init(&e->lock, NULL);
	for (e->number = (uintptr_t)argument << 32; running(); e->number++)
		elsewhere_round(e, &dice);
	return NULL;
}

void acks_elsewhere(void)
{
	pthread_t threads[CONNECTIONS];

	start_watching();
	for (uintptr_t i = 0; i < CONNECTIONS; i++)
		if (pthread_create(&threads[i], NULL, elsewhere_again, (void *)i))
			give_up("pthread_create");
	for (int i = 0; i < CONNECTIONS; i++)
		pthread_join(threads[i], NULL);
}
