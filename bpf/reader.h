/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * Readers that would miss fused bytes, or TCP's, for bpf_redirect.bpf.c.  One that is
 * inside tcp_recvmsg() never looks at the fused bytes.  One that is edge-triggered is
 * told once of what there is, and takes the end of the fused bytes for the end of all.
 */
#pragma once

#include "backlog.h"
#include "waiters.h"

#define EDGE_BYTES 65536     /* a request or an answer, edge_reader_full() */
#define DRAIN_WAIT_NS 100000 /* a reader is given so long at the most, */
#define DRAIN_SPINS 250	     /* with so many looks at it, */
#define DRAIN_PAUSES 16	     /* and pauses of some 20 ns between them */

struct file___before_6_13 {
	atomic_long_t f_count;
} __attribute__((preserve_access_index));

/*
 * May there be calls on the peer's socket besides those in its wait queue?  A call holds
 * a reference to the file, unless its task shares its descriptors with no other
 * (fdget()): then it is the only call of that task, and the descriptor's reference stands
 * for it.  So there are at most as many calls as references.  A single descriptor has
 * one; further ones (dup(2), fork(2)) look like calls, which costs speed alone.
 *
 * Two cases are beyond it: a program that closes its last descriptor while another
 * thread, or the other process that has it, is on its way in recv; and io_uring's workers
 * that receive, several at a time, from a registered file.
 */
static __always_inline bool strangers(struct tcp_sock *peer, u32 found)
{
	struct socket *socket = READ(sk_of(peer), sk_socket);
	struct file *file = READ(socket, file);
	struct file___before_6_13 *before = (void *)file;
	long more; /* references than one */

	if (!file)
		return false; /* not accepted yet */
	if (bpf_core_field_exists(before->f_count))
		more = READ(before, f_count.counter) - 1;
	else
		more = READ(file, f_ref.refcnt.counter);
	return more > (long)HOLDERS(found);
}

/*
 * A reader that sleeps inside tcp_recvmsg() (MSG_WAITALL, say) never looks at
 * the ingress queue: it would hang, or read newer bytes first.  Entering
 * tcp_recvmsg() takes unread TCP bytes.  There are none now, so such a reader found some
 * before: it took them, and now holds the lock or is in the wait queue, where it put
 * itself before it let go of the lock; or another reader took them, and it is still on
 * its way, a stranger (two threads that read one socket).  sleeps_in() tells it from one
 * that sleeps for fused bytes.
 *
 * The order: no TCP bytes (copied_seq), nobody who holds the lock to take them out of
 * TCP's queue, then the wait queue, then the references.  Who comes later finds TCP's
 * queue empty and does not get there; who came before is seen in one of the two.
 *
 * A reader that is woken and finds nothing takes the lock before it leaves the queue, and
 * enters it again before it lets go of the lock.  One look misses it if that happens
 * between the two reads (tests/adversaries: woken_reader, 5 of 94,000).  To be missed by
 * two looks, it would have to be woken for nothing twice, each time between them.
 */
static __always_inline bool reader_may_be_in_tcp(struct tcp_sock *peer)
{
	u64 address = address_of(peer), at;
	u32 seen = READ(peer, copied_seq);

	for (int look = 0; look < 2; look++) {
		at = after(seen, address);
		seen = READ(sk_of((struct tcp_sock *)at), sk_lock.owned);
		if (seen)
			return true;
		seen = waiters_of(after(seen, address), SLEEPS_FUSED);
		at = after(seen, address);
		if (seen & WAITER_IN_TCP || strangers((struct tcp_sock *)at, seen))
			return true;
	}
	at = after(seen, address);
	return READ(sk_of((struct tcp_sock *)at), sk_lock.owned);
}

/*
 * After a fallback: true for as long as a reader may be inside tcp_recvmsg().  Once none
 * is seen there, no reader can get there before the next TCP byte does.
 *
 * The reader of an adopted connection may have been on the way into tcp_recvmsg(),
 * unseen, when it was adopted; the first message goes by TCP to get it out of there.
 * One that never waits in recv() comes out by itself.
 */
static __always_inline bool reader_blocked(struct tcp_sock *own, struct tcp_sock *peer,
					   struct direction *direction)
{
	bool adopted = direction && direction->adopted;

	if (!own->data_segs_out && !adopted)
		return false; /* not a byte has gone by TCP; tracked without a reader */
	if (!direction)
		return true;
	if (direction->returned == (SEEN | own->write_seq))
		return false;
	direction->adopted = 0;
	if (adopted && !never_waits(peer))
		return true;
	if (reader_may_be_in_tcp(peer))
		return true;
	direction->returned = SEEN | own->write_seq;
	direction->blocked = 0;
	return false;
}

/* Nothing fused waits; a reader is given a moment.  Global, as waiters_of() is. */
__noinline bool drained(u64 address)
{
	struct tcp_sock *peer = (void *)address;
	u64 now = bpf_ktime_get_ns(), end = now + DRAIN_WAIT_NS;

	for (int i = 0; i < DRAIN_SPINS; i++) {
		if (no_fused_bytes(psock_of(peer)))
			return true;
		for (int pause = 0; pause < DRAIN_PAUSES; pause++)
			now = bpf_ktime_get_ns();
		if (now > end)
			return false;
	}
	return false;
}

/*
 * A reader finds first the fused bytes and then, in its next recv, those of TCP.  To a
 * level-triggered poll this seam is nothing.  An edge-triggered reader takes a short recv
 * for the end of what there is (epoll(7) allows it) and waits for an edge, but the TCP
 * bytes had theirs before; nginx also takes FIONREAD's 0 for it, which does not count TCP
 * bytes while fused ones could come.  So no TCP byte is sent while such a reader has
 * unread fused bytes.  Once it has none, and more comes than a dialogue has, the
 * connection becomes plain TCP for good.  Where too much waits all the same, seam.h
 * mends.
 */
static __always_inline bool
edge_reader_full(struct tcp_sock *peer, struct direction *direction, u32 found, u32 size)
{
	if (found & WAITER_EDGE && drained(address_of(peer)))
		return true;
	if (size >= BULK_BYTES)
		return false; /* bounded by its bytes */
	if (!direction)
		return true;
	if (++direction->waiting > MAX_UNREAD) /* or so many since it was counted */
		direction->waiting = messages_waiting(peer, MAX_UNREAD);
	return direction->waiting >= MAX_UNREAD;
}

/* A TCP byte would get behind fused ones, and its reader would be told once of both. */
static __always_inline bool seam_ahead(struct tcp_sock *peer)
{
	return !no_fused_bytes(psock_of(peer)) &&
	       waiters(peer) & (WAITER_EDGE | WAITER_LATER);
}
