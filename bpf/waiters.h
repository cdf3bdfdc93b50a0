/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * Who waits on a socket, and where.  The entries of its wait queue tell, and the stack of
 * one that sleeps in a call.  Nothing is locked; whoever is not known for sure counts as
 * WAITER_IN_TCP or WAITER_EDGE, for which the callers take TCP.
 */
#pragma once

#include "kernel.h"

#define EPOLLET (1U << 31)
#define MAX_WAITERS 16 /* entries of a queue that are looked at */

/* Sleeps of receive functions, and of connect(2), wake by this; those of poll do not. */
extern const void woken_wake_function __ksym __weak;
/* Where they sleep for TCP bytes alone, for fused ones too, for neither. */
extern const void tcp_recvmsg __ksym __weak;
extern const void tcp_recvmsg_locked __ksym __weak;
extern const void tcp_splice_read __ksym __weak;
extern const void tcp_bpf_recvmsg __ksym __weak;
extern const void inet_stream_connect __ksym __weak;
extern const void __inet_stream_connect __ksym __weak;
/* Waits of poll(2) and select(2). */
extern const void pollwake __ksym __weak;
/* Waits of epoll, for as long as the socket is in its set, and of io_uring. */
extern const void ep_poll_callback __ksym __weak;
extern const void io_poll_wake __ksym __weak;
extern const void io_async_wake __ksym __weak; /* until 5.16, of what is not a poll */

#define WAITER_IN_TCP 1	 /* may sleep inside tcp_recvmsg() */
#define WAITER_EDGE 2	 /* is told once of what there is: told_once() */
#define WAITER_LATER 4	 /* none yet: not accepted, or O_NONBLOCK and not polled */
#define SLEEPER 0x100	 /* for each that sleeps in a call on the socket, and */
#define HARMLESS 0x10000 /* for each of those that sleeps harmlessly */
#define HOLDER 0x1000000 /* for each whose call holds a reference to the file */
#define HARMLESS_ONES(found) ((found) / HARMLESS % (HOLDER / HARMLESS))
#define HOLDERS(found) ((found) / HOLDER)

#define SLEEPS_IN_TCP 1
#define SLEEPS_FUSED 2	    /* in tcp_bpf_recvmsg(), which sees fused bytes */
#define SLEEPS_CONNECTING 3 /* in connect(2) */

#define STACK_BELOW 128 /* bytes below the waiter's entry on its stack: from there */
#define STACK_CHUNKS 10 /* so many chunks are read, */
#define STACK_WORDS 8	/* of so many words each */
#define ADDRESS_BITS ((1ULL << 48) - 1) /* arm64 signs return addresses above */
#define RECEIVE_BYTES 16384		/* more than any of these functions has */
#define CONNECT_BYTES 1024		/* inet_recvmsg() is not far behind */
#define TEXT_BYTES (1ULL << 28)		/* around any of them lies all kernel text */
#define IO_WAIT_BITS 3ULL /* io_uring marks its waits by these, over the request */
#define REQ_F_FIXED_FILE 1

static __always_inline bool inside(u64 word, const void *function, u64 size)
{
	return function && ((word - (u64)function) & ADDRESS_BITS) < size;
}

/*
 * Where does this waiter sleep (SLEEPS_...)?  Its stack tells.  Close above its entry in
 * the wait queue (and for arm64 just below) are the addresses that its functions return
 * to.  What earlier calls have left on the stack may look like one.  The address in
 * connect(2) is so near that the first one found counts.  That in tcp_bpf_recvmsg() is
 * further up, so it counts only if no address in TCP is found; a reader in tcp_recvmsg()
 * has two of those.
 */
__weak u32 sleeps_in(u64 waiter)
{
	u64 stack[STACK_WORDS], at = waiter - STACK_BELOW;
	u32 found = SLEEPS_IN_TCP;

	if (!&tcp_recvmsg || !&tcp_splice_read || !&tcp_bpf_recvmsg)
		return SLEEPS_IN_TCP;
	for (int chunk = 0; chunk < STACK_CHUNKS; chunk++, at += sizeof(stack)) {
		if (bpf_probe_read_kernel(stack, sizeof(stack), (void *)at))
			return SLEEPS_IN_TCP;
		for (int i = 0; i < STACK_WORDS; i++) {
			if (!inside(stack[i] + TEXT_BYTES / 2, &tcp_recvmsg, TEXT_BYTES))
				continue; /* most */
			if (inside(stack[i], &tcp_recvmsg, RECEIVE_BYTES) ||
			    inside(stack[i], &tcp_recvmsg_locked, RECEIVE_BYTES) ||
			    inside(stack[i], &tcp_splice_read, RECEIVE_BYTES))
				return SLEEPS_IN_TCP;
			if (inside(stack[i], &tcp_bpf_recvmsg, RECEIVE_BYTES))
				found = SLEEPS_FUSED;
			if (found == SLEEPS_IN_TCP &&
			    (inside(stack[i], &inet_stream_connect, CONNECT_BYTES) ||
			     inside(stack[i], &__inet_stream_connect, CONNECT_BYTES)))
				return SLEEPS_CONNECTING;
		}
	}
	return found;
}

/*
 * Does this waiter of epoll or io_uring learn of what there is only once?  An
 * edge-triggered epoll does, and one that is itself in the set of another epoll may.  Of
 * io_uring a multishot poll does, and the others have the same function.
 */
static __always_inline bool told_once(struct wait_queue_entry *waiter, const void *func)
{
	struct eppoll_entry *entry = CONTAINER(waiter, struct eppoll_entry, wait);
	struct list_head *outer;
	struct epitem *item;

	if (func != &ep_poll_callback)
		return &io_poll_wake && func == &io_poll_wake;
	item = READ(entry, base);
	if (READ(item, event.events) & EPOLLET)
		return true;
	outer = &READ(item, ep)->poll_wait.head;
	return READ(outer, next) != outer;
}

/*
 * The same number, but unknown to the verifier.  Until 6.2 it tells apart all values of
 * every number that it knows, in a program with functions, and walks on from each.
 */
static __always_inline u64 unknown(u64 number, u64 argument)
{
	asm volatile("%0 += %1\n\t%0 -= %1" : "+r"(number) : "r"(argument));
	return number;
}

/*
 * Does the call of this waiter hold a reference to the socket's file?  One that sleeps in
 * the socket does if its task shares its descriptors with another (fdget()), poll(2)
 * always does (__pollwait()), and io_uring unless the file is registered.  Of its workers
 * nobody knows.
 */
static __always_inline bool holds_file(struct wait_queue_entry *waiter, const void *func)
{
	struct task_struct *task = READ(waiter, private);
	struct files_struct *files;
	struct io_kiocb *request;

	if (func == &woken_wake_function) {
		files = READ(task, files);
		return !(READ(task, flags) & PF_IO_WORKER) &&
		       READ(files, count.counter) > 1;
	}
	if ((&io_poll_wake && func == &io_poll_wake) ||
	    (&io_async_wake && func == &io_async_wake)) {
		request = (void *)((u64)task & ~IO_WAIT_BITS);
		return bpf_core_field_exists(request->flags) &&
		       !(READ_BITFIELD(request, flags) & REQ_F_FIXED_FILE);
	}
	return &pollwake && func == &pollwake;
}

/* What this entry of a wait queue adds to found, for waiters_of(). */
static __always_inline u64 with_waiter(u64 found, struct list_head *entry, u32 harmless)
{
	struct wait_queue_entry *waiter =
		CONTAINER(entry, struct wait_queue_entry, entry);
	const void *func = (const void *)READ(waiter, func);

	if (func == &woken_wake_function) {
		found += SLEEPER;
		if (harmless && sleeps_in(address_of(waiter)) == harmless)
			found += HARMLESS;
		else
			found |= WAITER_IN_TCP;
	} else if (told_once(waiter, func)) {
		found |= WAITER_EDGE;
	}
	if (harmless && holds_file(waiter, func))
		found += HOLDER;
	return found;
}

/*
 * Who waits in the peer's wait queue; epoll does while it watches the socket.
 * harmless: 0, or the SLEEPS_... of those that count as HARMLESS, and not as in TCP; if
 * it is 0, no stack is looked at.  A global function: the verifier walks through its
 * loop once, and not for every way that leads to a call.
 */
__weak u32 waiters_of(u64 address, u32 harmless)
{
	struct tcp_sock *peer = (void *)address;
	struct socket *socket = READ(sk_of(peer), sk_socket);
	struct file *file = READ(socket, file);
	struct socket_wq *queue;
	struct list_head *head, *pos, *last;
	u32 once = 0, left = 0;
	u64 found;

	if (!socket)
		return WAITER_LATER;
	queue = READ(sk_of(peer), sk_wq);
	if (READ(queue, fasync_list)) /* O_ASYNC: a signal for each edge */
		once = WAITER_EDGE;
	head = &queue->wait.head;
	pos = READ(head, next);
	if (pos == head)
		return unknown(once, address)
			       ?: READ(file, f_flags) & O_NONBLOCK ? WAITER_LATER
								   : 0;
	if (!&woken_wake_function || !&ep_poll_callback)
		return WAITER_IN_TCP | WAITER_EDGE; /* hidden: kernel.kptr_restrict = 2 */
	found = unknown(once, address);
	for (int i = 0; i < MAX_WAITERS; i++) {
		found = with_waiter(found, pos, harmless);
		last = pos;
		pos = READ(pos, next);
		if (pos == last || !pos) { /* it has just left the queue: once more */
			left = WAITER_IN_TCP;
			pos = READ(head, next);
			found = unknown(once, address);
		}
		if (pos == head)
			return found;
	}
	return found | (left ?: WAITER_IN_TCP | WAITER_EDGE); /* many */
}

static __always_inline u32 waiters(struct tcp_sock *peer)
{
	return waiters_of(address_of(peer), 0);
}

/*
 * Several threads sleep in recv on one socket.  All are woken for a message, and those
 * that get nothing answer EAGAIN, where TCP would let them sleep on.  So both ends leave
 * the map.
 */
static __always_inline bool several_readers(struct tcp_sock *peer)
{
	struct socket_wq *queue = READ(sk_of(peer), sk_wq);
	struct list_head *head = &queue->wait.head;

	return READ(head, next) != READ(head, prev) && /* there are two and more */
	       HARMLESS_ONES(waiters_of(address_of(peer), SLEEPS_FUSED)) > 1;
}
