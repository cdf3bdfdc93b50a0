/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * What the adversaries share.  Each is a function that makes rounds until running()
 * says no, and counts what went wrong.  It knows every byte that must arrive.
 */
#ifndef ADVERSARIES_H
#define ADVERSARIES_H

#include <netinet/in.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

/* In memory that processes share: children count, too. */
struct counts {
	atomic_ullong rounds;
	atomic_ullong bytes;	 /* that arrived as they were sent */
	atomic_ullong lost;	 /* bytes that had to arrive and did not */
	atomic_ullong reordered; /* streams with a wrong byte somewhere */
	atomic_ullong failed;	 /* calls that must not fail */
	atomic_ullong epipe;	 /* of these: sends that failed with EPIPE */
	atomic_ullong hung;	 /* rounds that stood still with bytes on the way */
	atomic_bool skipped;	 /* the kernel does not have what is needed */
};
extern struct counts *counts;

extern struct in_addr address; /* of all connections */
extern uint64_t seed;

bool running(void);
long now_ns(void);

/* The same seed, the same numbers. */
struct dice {
	uint64_t state;
};
struct dice dice_of(uint64_t number); /* and of the seed */
uint64_t below(struct dice *dice, uint64_t limit);
bool one_in(struct dice *dice, unsigned int n);
size_t message_size(struct dice *dice, size_t most);

/*
 * Byte i of a stream is fixed, so its reader can tell where each byte belongs.  All
 * streams lie in one file, which sendfile() and splice() take them from; nothing
 * changes it, as TCP may send its pages as they are.
 */
#define LONGEST (1 << 18) /* bytes in one call */
struct flow {
	uint32_t stream;
	atomic_bool wrong;
	atomic_ullong sent, got;
};
extern int streams_file;
off_t place_of(const struct flow *flow, uint64_t offset);
const unsigned char *bytes_at(const struct flow *flow, uint64_t offset);
bool check(struct flow *flow, uint64_t offset, const void *bytes, size_t n);
void took(struct flow *flow, const void *bytes, size_t n);
void start_flow(struct flow *flow);
/* How much has not arrived counts as lost. */
void settle(struct flow *flow);

/* With errno.  Each says so on standard error, the first few times. */
void failed(const char *format, ...) __attribute__((format(printf, 1, 2)));
void note(const char *format, ...) __attribute__((format(printf, 1, 2)));
/* The machine cannot do it: exit code 2. */
void give_up(const char *what) __attribute__((noreturn));

/*
 * A round that is watched and stands still for PATIENCE_S seconds of a watcher that
 * gets to run has hung: it is broken, so that its threads come to an end.
 */
struct watch {
	atomic_bool on, broken;
	atomic_ullong moved;
	atomic_int fd[2];
	atomic_int child[2];
	const char *what;
	unsigned long long last;
	int still;
};
void start_watching(void);
void watch(struct watch *w, const char *what, int first, int second);
void unwatch(struct watch *w);
static inline void moved(struct watch *w)
{
	atomic_fetch_add(&w->moved, 1);
}
#define TICK_MS 100

void pin(int cpu); /* where there are two */
void spin_until(long ns);
void spin_while(const atomic_int *flag, int value);

/* pair[0] connected, pair[1] was accepted. */
void make_pair(int pair[2]);
int make_listener(struct sockaddr_in *name);
/* Where connect() is refused, until it is closed. */
int make_refuser(struct sockaddr_in *name);
void set_int(int fd, int level, int option, int value);
void set_nonblocking(int fd, bool on);
void reset_on_close(int fd);

/*
 * A second thread, on the second processor: run() has it do its part, ours starts at
 * the same moment or some ns before or after; delay > 0: theirs is the later one.
 */
typedef void part(void *argument);
void start_partner(void);
void run_parts(part *theirs, part *ours, void *argument, long delay);
void run_part(part *theirs, void *argument); /* and come back at once */
void await_part(void);

/* All of n bytes; false: it failed, which is counted. */
bool send_flow(int fd, struct flow *flow, size_t n, struct watch *w);
/* By TCP, even in the map, from 32 KB on. */
bool send_file(int fd, struct flow *flow, size_t n, struct watch *w);
/* Until so many bytes are there in all, by poll(). */
void read_flow(int fd, struct flow *flow, uint64_t until, struct watch *w);

void refused_connect(void);
void leaving_map(void);
void leaving_map_lowat(void);
void closing_peer(void);
void half_close(void);
void under_way(void);
void uring_seam(void);
void sigio(void);
void nested_epoll(void);
void zerocopy_receive(void);
void two_readers(void);
void woken_reader(void);
void thread_pairs(void);
void acks_elsewhere(void);
void schedule(void);

#endif /* ADVERSARIES_H */
