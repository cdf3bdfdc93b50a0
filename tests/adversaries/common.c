// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
#define _GNU_SOURCE
#include "adversaries.h"
#include <errno.h>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <semaphore.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/sendfile.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

long now_ns(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1000000000L + t.tv_nsec;
}

/* splitmix64 */
static uint64_t roll(struct dice *dice)
{
	uint64_t z = dice->state += 0x9e3779b97f4a7c15;

	z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9;
	z = (z ^ z >> 27) * 0x94d049bb133111eb;
	return z ^ z >> 31;
}

struct dice dice_of(uint64_t number)
{
	struct dice dice = { seed };

	dice.state = roll(&dice) ^ number * 0x2545f4914f6cdd1d;
	roll(&dice);
	return dice;
}

uint64_t below(struct dice *dice, uint64_t limit)
{
	return roll(dice) % limit;
}

bool one_in(struct dice *dice, unsigned int n)
{
	return !below(dice, n);
}

/* Most are small. */
size_t message_size(struct dice *dice, size_t most)
{
	static const size_t classes[] = { 10, 200, 2000, 20000, 70000, LONGEST };
	size_t limit = classes[below(dice, below(dice, 4) ? 4 : 6)];

	return 1 + below(dice, limit < most ? limit : most);
}

#define PERIOD 1048573 /* prime */
#define STRIDE 104729
int streams_file;
static unsigned char *streams;

static void __attribute__((constructor)) make_streams(void)
{
	size_t size = PERIOD + LONGEST;
	uint64_t x = 1;

	streams_file = memfd_create("streams", 0);
	if (streams_file < 0 || ftruncate(streams_file, size))
		give_up("memfd_create");
	streams = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, streams_file, 0);
	if (streams == MAP_FAILED)
		give_up("mmap");
	for (size_t i = 0; i < size; i++) {
		x = x * 6364136223846793005 + 1442695040888963407;
		streams[i] = i < PERIOD ? x >> 56 : streams[i - PERIOD];
	}
}

off_t place_of(const struct flow *flow, uint64_t offset)
{
	return (offset + (uint64_t)flow->stream * STRIDE) % PERIOD;
}

const unsigned char *bytes_at(const struct flow *flow, uint64_t offset)
{
	return streams + place_of(flow, offset);
}

static atomic_int notes;
#define MOST_NOTES 40

static void say(const char *format, va_list args, int error)
{
	char line[600];
	int n = vsnprintf(line, sizeof(line) - 60, format, args);

	if (error)
		n += snprintf(line + n, 58, " (%s)", strerror(error));
	line[n++] = '\n';
	if (atomic_fetch_add(&notes, 1) < MOST_NOTES && write(2, line, n) < 0)
		notes = 0;
}

void note(const char *format, ...)
{
	va_list args;

	va_start(args, format);
	say(format, args, 0);
	va_end(args);
}

void failed(const char *format, ...)
{
	int error = errno;
	va_list args;

	counts->failed++;
	if (error == EPIPE)
		counts->epipe++;
	va_start(args, format);
	say(format, args, error);
	va_end(args);
}

void give_up(const char *what)
{
	perror(what);
	_exit(2);
}

#define WINDOW 16 /* bytes that tell a place */

/* Where in the stream are these bytes from? */
static void tell_place(const struct flow *flow, uint64_t offset,
		       const unsigned char *bytes, size_t n)
{
	if (n >= WINDOW)
		for (long at = 0; at < PERIOD; at++)
			if (!memcmp(bytes, bytes_at(flow, offset + at), WINDOW)) {
				if (at > PERIOD / 2)
					at -= PERIOD;
				note("stream %u: at %llu are the bytes of %+ld, sent "
				     "%llu",
				     flow->stream, (unsigned long long)offset, at,
				     flow->sent);
				return;
			}
	note("stream %u: at %llu is none of its bytes, sent %llu", flow->stream,
	     (unsigned long long)offset, flow->sent);
}

bool check(struct flow *flow, uint64_t offset, const void *bytes, size_t n)
{
	const unsigned char *due = bytes_at(flow, offset), *found = bytes;
	size_t i = 0;

	if (!memcmp(bytes, due, n))
		return true;
	if (atomic_exchange(&flow->wrong, true))
		return false;
	counts->reordered++;
	while (found[i] == due[i])
		i++;
	tell_place(flow, offset + i, found + i, n - i);
	return false;
}

void took(struct flow *flow, const void *bytes, size_t n)
{
	if (!flow->wrong && check(flow, flow->got, bytes, n))
		counts->bytes += n;
	flow->got += n;
}

void start_flow(struct flow *flow)
{
	static atomic_uint last;

	flow->stream = ++last;
	flow->wrong = false;
	flow->sent = flow->got = 0;
}

void settle(struct flow *flow)
{
	if (flow->got >= flow->sent)
		return;
	counts->lost += flow->sent - flow->got;
	note("stream %u: %llu of %llu bytes arrived", flow->stream, flow->got,
	     flow->sent);
}

#define WATCHES 256
static struct watch *_Atomic watches[WATCHES];
static int patience = 10; /* s */

void report(void);

static void break_round(struct watch *w)
{
	counts->hung++;
	note("%s hung: after %llu moves none for %d s", w->what, w->moved, patience);
	w->broken = true;
	for (int i = 0; i < 2; i++) {
		if (w->child[i] > 0)
			kill(w->child[i], SIGKILL);
		if (w->fd[i] >= 0)
			shutdown(w->fd[i], SHUT_RDWR);
	}
}

static void look_at(struct watch *w)
{
	unsigned long long moves = w->moved;

	if (!w->on || moves != w->last) {
		w->last = moves;
		w->still = 0;
		return;
	}
	if (++w->still < patience * 1000 / TICK_MS)
		return;
	if (w->broken) { /* not even that helps */
		note("%s cannot be ended", w->what);
		report();
		_exit(0);
	}
	w->still = 0;
	break_round(w);
}

/* It counts its own ticks: on a machine that stands still, nothing has hung. */
static void *keep_watch(void *unused)
{
	for (;;) {
		usleep(TICK_MS * 1000);
		for (int i = 0; i < WATCHES; i++)
			if (watches[i])
				look_at(watches[i]);
	}
	return unused;
}

void start_watching(void)
{
	const char *seconds = getenv("PATIENCE_S");
	pthread_t thread;

	if (seconds && atoi(seconds) > 0)
		patience = atoi(seconds);
	if (pthread_create(&thread, NULL, keep_watch, NULL))
		give_up("pthread_create");
}

void watch(struct watch *w, const char *what, int first, int second)
{
	bool known = false;

	w->what = what;
	w->fd[0] = first;
	w->fd[1] = second;
	w->child[0] = w->child[1] = 0;
	w->broken = false;
	moved(w);
	w->on = true;
	for (int i = 0; i < WATCHES && !known; i++)
		known = watches[i] == w;
	for (int i = 0; i < WATCHES && !known; i++) {
		struct watch *none = NULL;

		known = atomic_compare_exchange_strong(&watches[i], &none, w);
	}
}

void unwatch(struct watch *w)
{
	w->on = false;
}

static int processors(cpu_set_t *set)
{
	CPU_ZERO(set);
	return sched_getaffinity(0, sizeof(*set), set) ? 1 : CPU_COUNT(set);
}

static int cpus;
static cpu_set_t first_set;

static void __attribute__((constructor)) count_processors(void)
{
	cpus = processors(&first_set);
}

void pin(int cpu)
{
	cpu_set_t one;
	int i = 0;

	if (cpus < 2)
		return;
	for (cpu %= cpus;; i++)
		if (CPU_ISSET(i, &first_set) && !cpu--)
			break;
	CPU_ZERO(&one);
	CPU_SET(i, &one);
	sched_setaffinity(0, sizeof(one), &one);
}

void spin_until(long ns)
{
	while (now_ns() < ns)
		if (cpus < 2)
			sched_yield();
}

void spin_while(const atomic_int *flag, int value)
{
	for (int i = 0; *flag == value; i++)
		if (cpus < 2 || i % 4096 == 4095)
			sched_yield();
}

int make_listener(struct sockaddr_in *name)
{
	int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
	socklen_t length = sizeof(*name);

	*name = (struct sockaddr_in){ .sin_family = AF_INET, .sin_addr = address };
	if (fd < 0 || bind(fd, (void *)name, length) || listen(fd, 64) ||
	    getsockname(fd, (void *)name, &length))
		give_up("listen");
	return fd;
}

int make_refuser(struct sockaddr_in *name)
{
	int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
	socklen_t length = sizeof(*name);

	*name = (struct sockaddr_in){ .sin_family = AF_INET, .sin_addr = address };
	if (fd < 0 || bind(fd, (void *)name, length) ||
	    getsockname(fd, (void *)name, &length))
		give_up("bind");
	return fd;
}

#define PER_LISTENER 5000 /* connections: ports stay in TIME_WAIT for a minute */

void make_pair(int pair[2])
{
	static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
	static int listener = -1, made;
	static struct sockaddr_in name;

	pthread_mutex_lock(&lock);
	if (listener < 0 || ++made % PER_LISTENER == 0) {
		if (listener >= 0)
			close(listener);
		listener = make_listener(&name);
	}
	pair[0] = socket(AF_INET, SOCK_STREAM, 0);
	if (pair[0] < 0 || connect(pair[0], (void *)&name, sizeof(name)))
		give_up("connect");
	pair[1] = accept(listener, NULL, NULL);
	if (pair[1] < 0)
		give_up("accept");
	pthread_mutex_unlock(&lock);
}

void set_int(int fd, int level, int option, int value)
{
	setsockopt(fd, level, option, &value, sizeof(value));
}

void set_nonblocking(int fd, bool on)
{
	int flags = fcntl(fd, F_GETFL);

	fcntl(fd, F_SETFL, on ? flags | O_NONBLOCK : flags & ~O_NONBLOCK);
}

void reset_on_close(int fd)
{
	struct linger none = { .l_onoff = 1 };

	setsockopt(fd, SOL_SOCKET, SO_LINGER, &none, sizeof(none));
}

static struct {
	sem_t wanted, finished;
	atomic_int ready, go;
	part *part;
	void *argument;
	long delay;
	bool at_once;
} partner;

static void *be_partner(void *unused)
{
	pin(1);
	for (;;) {
		while (sem_wait(&partner.wanted))
			;
		if (partner.at_once) {
			partner.ready = 1;
			spin_while(&partner.go, 0);
			if (partner.delay > 0)
				spin_until(now_ns() + partner.delay);
		}
		partner.part(partner.argument);
		sem_post(&partner.finished);
	}
	return unused;
}

void start_partner(void)
{
	pthread_t thread;

	pin(0);
	if (sem_init(&partner.wanted, 0, 0) || sem_init(&partner.finished, 0, 0) ||
	    pthread_create(&thread, NULL, be_partner, NULL))
		give_up("pthread_create");
}

void run_part(part *theirs, void *argument)
{
	partner.part = theirs;
	partner.argument = argument;
	partner.at_once = false;
	sem_post(&partner.wanted);
}

void await_part(void)
{
	while (sem_wait(&partner.finished))
		;
}

void run_parts(part *theirs, part *ours, void *argument, long delay)
{
	partner.part = theirs;
	partner.argument = argument;
	partner.delay = delay;
	partner.at_once = true;
	partner.ready = partner.go = 0;
	sem_post(&partner.wanted);
	spin_while(&partner.ready, 0);
	partner.go = 1;
	if (delay < 0)
		spin_until(now_ns() - delay);
	ours(argument);
	await_part();
}

/* In a file descriptor that does not block, too. */
static bool await(int fd, short events, struct watch *w)
{
	struct pollfd p = { .fd = fd, .events = events };

	while (!w->broken)
		if (poll(&p, 1, TICK_MS) > 0)
			return true;
	return false;
}

bool send_flow(int fd, struct flow *flow, size_t n, struct watch *w)
{
	while (n) {
		ssize_t done;

		/* The reader may have it before send() is back. */
		done = send(fd, bytes_at(flow, flow->sent), n, MSG_NOSIGNAL);
		if (done < 0 && errno == EAGAIN && await(fd, POLLOUT, w))
			continue;
		if (done < 0 && w->broken)
			return false;
		if (done < 0) {
			failed("send of %zu bytes at %llu", n, flow->sent);
			return false;
		}
		flow->sent += done;
		n -= done;
		moved(w);
	}
	return true;
}

bool send_file(int fd, struct flow *flow, size_t n, struct watch *w)
{
	while (n) {
		off_t at = place_of(flow, flow->sent);
		ssize_t done = sendfile(fd, streams_file, &at, n);

		if (done < 0 && errno == EAGAIN && await(fd, POLLOUT, w))
			continue;
		if (done < 0 && w->broken)
			return false;
		if (done <= 0) {
			failed("sendfile of %zu bytes at %llu", n, flow->sent);
			return false;
		}
		flow->sent += done;
		n -= done;
		moved(w);
	}
	return true;
}

void read_flow(int fd, struct flow *flow, uint64_t until, struct watch *w)
{
	static _Thread_local unsigned char buffer[LONGEST];

	while (flow->got < until && await(fd, POLLIN, w)) {
		ssize_t n = recv(fd, buffer, sizeof(buffer), MSG_DONTWAIT);

		if (n < 0 && errno == EAGAIN)
			continue;
		if (n < 0 && !w->broken)
			failed("recv at %llu of %llu", flow->got,
			       (unsigned long long)until);
		if (n <= 0)
			return;
		took(flow, buffer, n);
		moved(w);
	}
}
