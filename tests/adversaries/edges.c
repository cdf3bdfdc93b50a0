// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/*
 * Readers that are told once of what comes (an edge), and take a recv() that returns
 * less than was asked for for the end of what there is.  epoll(7) allows it.
 */
#define _GNU_SOURCE
#include "adversaries.h"
#include <errno.h>
#include <fcntl.h>
#include <linux/io_uring.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

/* One way to be told.  start() and stop() are for one connection. */
struct teller {
	const char *name;
	bool (*prepare)(void); /* false: not on this kernel */
	void (*start)(int fd);
	bool (*await)(void); /* false: nothing for TICK_MS */
	void (*stop)(void);
};

struct batch {
	int fd;
	struct flow flow;
	struct watch w;
	int count;
	size_t size; /* 0: any */
	int files;   /* of 16 messages, by sendfile() */
	long pause;  /* us between two */
	struct dice dice;
	atomic_bool sent;
};

static void send_batch(void *argument)
{
	struct batch *b = argument;
	bool well = true;

	for (int i = 0; i < b->count && well; i++) {
		size_t n = b->size ? b->size : message_size(&b->dice, 8000);

		if ((int)below(&b->dice, 16) < b->files)
			well = send_file(b->fd, &b->flow, 32768 + n % 16384, &b->w);
		else
			well = send_flow(b->fd, &b->flow, n, &b->w);
		if (b->pause && one_in(&b->dice, 16))
			usleep(b->pause);
	}
	b->sent = true;
}

/* At most what TCP's buffers hold, whoever reads. */
static void choose_batch(struct batch *b, struct dice *dice)
{
	static const struct {
		int count;
		size_t size;
	} plans[] = {
		{ 2000, 100 }, { 200, 1000 }, { 25, 9000 },  { 5, 40000 }, { 2, 100000 },
		{ 3, 100 },    { 4000, 16 },  { 1, 150000 }, { 30, 0 },	   { 100, 2000 },
	};
	size_t plan = below(dice, sizeof(plans) / sizeof(plans[0]));

	b->count = plans[plan].count;
	b->size = plans[plan].size;
	b->files = one_in(dice, 2) ? 0 : 4;
	if (b->files && b->count > 10)
		b->count = 10;
	b->pause = one_in(dice, 4) ? 1 + below(dice, 200) : 0;
	b->dice = dice_of(below(dice, ~0ULL));
	b->sent = false;
}

static void read_told(const struct teller *teller, int fd, struct batch *b, size_t size)
{
	static unsigned char buffer[LONGEST];

	while ((!b->sent || b->flow.got < b->flow.sent) && !b->w.broken) {
		ssize_t n;

		if (!teller->await())
			continue;
		do {
			n = recv(fd, buffer, size, MSG_DONTWAIT);
			if (n < 0 && errno != EAGAIN && !b->w.broken)
				failed("%s: recv", teller->name);
			if (n > 0) {
				took(&b->flow, buffer, n);
				moved(&b->w);
			}
		} while (n == (ssize_t)size);
	}
}

static void edge_round(const struct teller *teller, struct dice *dice)
{
	static struct batch b;
	int pair[2];

	make_pair(pair);
	b.fd = pair[0];
	start_flow(&b.flow);
	set_nonblocking(pair[1], one_in(dice, 2));
	set_int(pair[0], IPPROTO_TCP, TCP_NODELAY, !one_in(dice, 4));
	teller->start(pair[1]);
	watch(&b.w, teller->name, pair[0], pair[1]);
	for (int i = 1 + below(dice, 4); i && !b.w.broken; i--) {
		size_t size = one_in(dice, 4) ? 1000 + below(dice, 60000) : LONGEST;
		bool late = one_in(dice, 2);

		choose_batch(&b, dice);
		run_part(send_batch, &b);
		if (late) /* all of it waits */
			await_part();
		read_told(teller, pair[1], &b, size);
		if (!late)
			await_part();
	}
	unwatch(&b.w);
	if (!b.w.broken)
		settle(&b.flow);
	teller->stop();
	close(pair[0]);
	close(pair[1]);
}

static void run_teller(const struct teller *teller)
{
	struct dice dice = dice_of(0);

	if (!teller->prepare()) {
		counts->skipped = true;
		return;
	}
	start_watching();
	start_partner();
	for (; running(); counts->rounds++)
		edge_round(teller, &dice);
}

/* io_uring's poll that goes on (IORING_POLL_ADD_MULTI). */
static struct {
	int ring, fd;
	unsigned int *sq_tail, *sq_mask, *sq_array, *cq_head, *cq_tail, *cq_mask;
	struct io_uring_sqe *sqes;
	struct io_uring_cqe *cqes;
	uint64_t number; /* of the connection: what older ones had is passed over */
} uring;

static int set_up_ring(struct io_uring_params *params)
{
	memset(params, 0, sizeof(*params));
#ifdef IORING_SETUP_DEFER_TASKRUN
	if (seed % 2) {
		params->flags = IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN;
		uring.ring = syscall(SYS_io_uring_setup, 64, params);
		if (uring.ring >= 0)
			return uring.ring;
		memset(params, 0, sizeof(*params));
	}
#endif
	return uring.ring = syscall(SYS_io_uring_setup, 64, params);
}

static void *map_ring(size_t size, off_t what)
{
	void *at = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE,
			uring.ring, what);

	if (at == MAP_FAILED)
		give_up("mmap of io_uring");
	return at;
}

static bool prepare_uring(void)
{
	struct io_uring_params p;
	char *sq, *cq;

	if (set_up_ring(&p) < 0 || !(p.features & IORING_FEAT_EXT_ARG))
		return false;
	sq = map_ring(p.sq_off.array + p.sq_entries * sizeof(unsigned int),
		      IORING_OFF_SQ_RING);
	cq = map_ring(p.cq_off.cqes + p.cq_entries * sizeof(struct io_uring_cqe),
		      IORING_OFF_CQ_RING);
	uring.sqes =
		map_ring(p.sq_entries * sizeof(struct io_uring_sqe), IORING_OFF_SQES);
	uring.sq_tail = (void *)(sq + p.sq_off.tail);
	uring.sq_mask = (void *)(sq + p.sq_off.ring_mask);
	uring.sq_array = (void *)(sq + p.sq_off.array);
	uring.cq_head = (void *)(cq + p.cq_off.head);
	uring.cq_tail = (void *)(cq + p.cq_off.tail);
	uring.cq_mask = (void *)(cq + p.cq_off.ring_mask);
	uring.cqes = (void *)(cq + p.cq_off.cqes);
	return true;
}

static void submit(const struct io_uring_sqe *sqe)
{
	unsigned int tail = *uring.sq_tail, at = tail & *uring.sq_mask;

	uring.sqes[at] = *sqe;
	uring.sq_array[at] = at;
	__atomic_store_n(uring.sq_tail, tail + 1, __ATOMIC_RELEASE);
	if (syscall(SYS_io_uring_enter, uring.ring, 1, 0, 0, NULL, 0) != 1)
		give_up("io_uring_enter");
}

static void poll_on(void)
{
	submit(&(struct io_uring_sqe){ .opcode = IORING_OP_POLL_ADD,
				       .fd = uring.fd,
				       .poll32_events = POLLIN,
				       .len = IORING_POLL_ADD_MULTI,
				       .user_data = uring.number });
}

static bool take_event(struct io_uring_cqe *event)
{
	unsigned int head = *uring.cq_head;

	if (head == __atomic_load_n(uring.cq_tail, __ATOMIC_ACQUIRE))
		return false;
	*event = uring.cqes[head & *uring.cq_mask];
	__atomic_store_n(uring.cq_head, head + 1, __ATOMIC_RELEASE);
	return true;
}

static bool await_event(struct io_uring_cqe *event)
{
	struct __kernel_timespec tick = { .tv_nsec = TICK_MS * 1000000 };
	struct io_uring_getevents_arg arg = { .ts = (uintptr_t)&tick };

	if (take_event(event))
		return true;
	syscall(SYS_io_uring_enter, uring.ring, 0, 1,
		IORING_ENTER_GETEVENTS | IORING_ENTER_EXT_ARG, &arg, sizeof(arg));
	return take_event(event);
}

static void start_uring(int fd)
{
	uring.fd = fd;
	uring.number += 2;
	poll_on();
}

static bool await_uring(void)
{
	struct io_uring_cqe event;

	if (!await_event(&event) || event.user_data != uring.number)
		return false;
	if (!(event.flags & IORING_CQE_F_MORE))
		poll_on();
	return true;
}

/* Until then it holds the socket open. */
static void stop_uring(void)
{
	struct io_uring_cqe event = { .user_data = 0 };

	submit(&(struct io_uring_sqe){ .opcode = IORING_OP_POLL_REMOVE,
				       .addr = uring.number,
				       .user_data = uring.number + 1 });
	while (event.user_data != uring.number + 1)
		await_event(&event);
}

void uring_seam(void)
{
	static const struct teller teller = { "uring_seam", prepare_uring, start_uring,
					      await_uring, stop_uring };

	run_teller(&teller);
}

/* A signal for each time that something comes (O_ASYNC). */
static sigset_t signals;

static bool prepare_sigio(void)
{
	sigemptyset(&signals);
	sigaddset(&signals, SIGRTMIN);
	sigaddset(&signals, SIGIO); /* also where too many are queued */
	return !sigprocmask(SIG_BLOCK, &signals, NULL);
}

static bool await_signal(void)
{
	struct timespec tick = { .tv_nsec = TICK_MS * 1000000 };

	return sigtimedwait(&signals, NULL, &tick) > 0;
}

static int signalled_fd;

static void start_sigio(int fd)
{
	struct f_owner_ex owner = { .type = F_OWNER_TID, .pid = syscall(SYS_gettid) };

	static int number;

	/* SIGIO is one signal, however often it came; others are queued. */
	signalled_fd = fd;
	if (fcntl(fd, F_SETOWN_EX, &owner) ||
	    fcntl(fd, F_SETSIG, ++number % 2 ? SIGIO : SIGRTMIN) ||
	    fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) | O_ASYNC))
		give_up("fcntl of signals");
}

static void stop_sigio(void)
{
	struct timespec none = { 0 };

	fcntl(signalled_fd, F_SETFL, fcntl(signalled_fd, F_GETFL) & ~O_ASYNC);
	while (sigtimedwait(&signals, NULL, &none) > 0)
		;
}

void sigio(void)
{
	static const struct teller teller = { "sigio", prepare_sigio, start_sigio,
					      await_signal, stop_sigio };

	run_teller(&teller);
}

/* A level-triggered epoll, which an edge-triggered one watches. */
static int inner = -1, outer = -1;

static bool prepare_nested(void)
{
	return true;
}

static void start_nested(int fd)
{
	struct epoll_event level = { .events = EPOLLIN };
	struct epoll_event edge = { .events = EPOLLIN | EPOLLET };

	inner = epoll_create1(0);
	outer = epoll_create1(0);
	if (epoll_ctl(inner, EPOLL_CTL_ADD, fd, &level) ||
	    epoll_ctl(outer, EPOLL_CTL_ADD, inner, &edge))
		give_up("epoll_ctl");
}

static bool await_nested(void)
{
	struct epoll_event event;

	if (epoll_wait(outer, &event, 1, TICK_MS) <= 0)
		return false;
	epoll_wait(inner, &event, 1, 0);
	return true;
}

static void stop_nested(void)
{
	close(inner);
	close(outer);
}

void nested_epoll(void)
{
	static const struct teller teller = { "nested_epoll", prepare_nested,
					      start_nested, await_nested, stop_nested };

	run_teller(&teller);
}
