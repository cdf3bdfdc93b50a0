/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * Memory stays bounded, for bpf_redirect.bpf.c: how many bytes and messages may wait for
 * a reader, what the kernel charges for them, and how long a writer waits for room.
 */
#pragma once

#include "maps.h"

#define SOCK_SNDBUF_LOCK 1 /* of sk_userlocks: the application has set the buffer */
#define SOCK_RCVBUF_LOCK 2

#define BULK_BYTES 49152   /* writes of so many and more stream better fused */
#define STREAM_BYTES 32768 /* for smaller ones such a backlog is a stream, no answer */
#define MAX_WAITING 32	   /* messages, */
#define MAX_UNREAD 1024	   /* or so many, where TCP would be wrong behind them */

#define STILL_NS 30000	   /* a reader that has done nothing for so long is not at work */
#define CATCH_UP_LOOKS 300 /* at the reader, in some 240 us */
#define CATCH_UP_PAUSES 40 /* between two looks, of some 20 ns */
#define FUTILE_NS 1000000  /* after a wait in vain; none is tried meanwhile */
#define TAKEN_SHARE 4	   /* bytes that may wait for each that was taken */
#define ROOM_BYTES 524288  /* a reader takes so much in some 100 us */
#define ROOM_SHARE 4	   /* or this part of the limit, if it is less */

/* Pages that other processors charge meanwhile, or keep (SK_MEMORY_PCPU_RESERVE, 1 MB) */
#define CHARGE_SLACK 1024
#define MEMCG_SLACK 256
#define MEMCG_DEPTH 16 /* of nested memory cgroups that are looked at */

/* Bytes.  With every TCP byte read, all of sk_rmem_alloc is fused backlog. */
static __always_inline u32 backlog_of(struct tcp_sock *peer)
{
	return READ(sk_of(peer), sk_backlog.rmem_alloc.counter);
}

/*
 * Bytes that may wait: the reader's receive buffer as TCP would let it grow, by what the
 * reader takes, and half of what the send buffer can grow to.  tcp_rcv_space_adjust()
 * grows the window to between 2 and 6 times of what was taken.  (With 1 instead of 4, a
 * stream of 64 KB on one processor had 0.975 of the throughput in its first second.)
 * The writer then fills TCP's send buffer on top of that, so it gets in what it would
 * with TCP alone: with less, two ends that each write before they read would wait for
 * each other.  Before the first read 6.4 MB fit in by default, and 4.3 with TCP alone.
 *
 * It is never more than half of what the receive buffer can grow to.  TCP counts the
 * backlog against that, so its window is closed when we fall back.  If the buffer were
 * overfull, TCP would drop the segment and wait for a retransmission.
 */
static __always_inline u32 backlog_limit(struct tcp_sock *own, struct tcp_sock *peer,
					 struct direction *direction)
{
	struct net *net = READ(sk_of(peer), __sk_common.skc_net.net);
	u64 limit = READ(sk_of(peer), sk_rcvbuf), most = limit;
	u32 backlog = backlog_of(peer);

	if (!(READ_BITFIELD(sk_of(peer), sk_userlocks) & SOCK_RCVBUF_LOCK))
		most = READ(net, ipv4.sysctl_tcp_rmem[2]);
	if (direction && direction->fused_bytes > backlog)
		limit += TAKEN_SHARE * (direction->fused_bytes - backlog);
	net = READ(sk_of(own), __sk_common.skc_net.net);
	if (READ_BITFIELD(sk_of(own), sk_userlocks) & SOCK_SNDBUF_LOCK)
		limit += (u32)READ(sk_of(own), sk_sndbuf) / 2;
	else
		limit += (u32)READ(net, ipv4.sysctl_tcp_wmem[2]) / 2;
	return limit < most / 2 ? limit : most / 2;
}

/*
 * Flow control in place: where the reader is at work on another processor, to wait for it
 * costs less than to go by TCP and come back.  True: it has taken every byte of TCP,
 * which stays so while our lock holds write_seq still, and no more than limit wait fused,
 * which only steers.  False: it has done nothing for STILL_NS, or was not done after all
 * looks.
 */
__noinline bool reader_catches_up(u64 address, u32 write_seq, u32 limit)
{
	struct tcp_sock *peer = (void *)address;
	u64 now = bpf_ktime_get_ns(), moved = now;
	u32 before = ~0U;

	for (int i = 0; i < CATCH_UP_LOOKS; i++) {
		u32 unread = write_seq - READ(peer, copied_seq);
		u32 backlog = backlog_of(peer);

		if (!unread && backlog <= limit)
			return true;
		if (unread + backlog < before)
			moved = now;
		else if (now - moved > STILL_NS)
			return false;
		before = unread + backlog;
		for (int pause = 0; pause < CATCH_UP_PAUSES; pause++)
			now = bpf_ktime_get_ns();
	}
	return false;
}

/* For bulk alone; after a vain wait (on one processor, say) none for FUTILE_NS. */
static __always_inline bool waits_in_place(struct sk_msg_md *msg, struct tcp_sock *own,
					   struct tcp_sock *peer,
					   struct direction *direction, u32 limit)
{
	if (msg->size < BULK_BYTES)
		return false;
	if (!direction)
		direction = direction_of(msg->sk);
	if (!direction || bpf_ktime_get_ns() < direction->futile)
		return false;
	if (reader_catches_up(address_of(peer), own->write_seq, limit))
		return true;
	direction->futile = bpf_ktime_get_ns() + FUTILE_NS;
	return false;
}

/* Is there room below the limit, after a wait perhaps? */
static __always_inline bool finds_room(struct sk_msg_md *msg, struct tcp_sock *own,
				       struct tcp_sock *peer, struct direction *direction,
				       u32 backlog)
{
	u32 limit = backlog_limit(own, peer, direction), size = msg->size, room;

	if ((u64)backlog + size <= limit)
		return true;
	/* Room for this message alone would make the next one wait, too. */
	room = limit / ROOM_SHARE < ROOM_BYTES ? limit / ROOM_SHARE : ROOM_BYTES;
	if (room < size)
		room = size;
	return room <= limit && waits_in_place(msg, own, peer, direction, limit - room);
}

/* Messages in the peer's ingress queue, max if there are more. */
static __always_inline u32 messages_waiting(struct tcp_sock *peer, u32 max)
{
	struct sk_psock *psock = psock_of(peer);
	struct list_head *head = &psock->ingress_msg, *pos;
	u32 waiting = 0;

	if (!psock) /* it has left the map */
		return 0;
	pos = READ(head, next);
	while (waiting < max && pos != head) {
		pos = READ(pos, next);
		waiting++;
	}
	return waiting;
}

/*
 * A waiting message costs about 1 KB of slab that no socket is charged for, whatever its
 * size, so their number is bounded too.  They are counted only when more bytes wait than
 * MAX_WAITING messages of this size have.  One that is fused without a count has at least
 * a 32nd of the backlog, so some hundred wait at the very most.  Request/response never
 * notices.
 *
 * Streams of writes below BULK_BYTES are faster by TCP, which merges them.
 */
static __always_inline bool too_many_wait(struct tcp_sock *peer, u32 backlog, u32 size)
{
	if (size >= BULK_BYTES)
		return false;
	if (backlog > STREAM_BYTES)
		return true;
	return backlog > MAX_WAITING * size &&
	       messages_waiting(peer, MAX_WAITING) == MAX_WAITING;
}

/* pages more fit below every limit from this counter up to the root */
static __always_inline bool has_room(struct page_counter *counter, u64 pages)
{
	for (int depth = 0; depth < MEMCG_DEPTH; depth++) {
		if (!counter)
			return true;
		if (READ(counter, usage.counter) + pages + MEMCG_SLACK >
		    READ(counter, max))
			return false;
		counter = READ(counter, parent);
	}
	return false;
}

/*
 * bpf_tcp_ingress() charges the receiver and hands a refusal to send() as ENOMEM, where
 * TCP would wait.  __sk_mem_raise_allocated() cannot refuse while TCP as a whole is below
 * tcp_mem[0] and every memory cgroup of the receiver has room; what sk_forward_alloc
 * holds was charged before.
 */
static __always_inline bool charge_may_fail(struct tcp_sock *own, struct tcp_sock *peer,
					    u32 size)
{
	struct proto *prot = sk_of(own)->__sk_common.skc_prot;
	long allocated = prot->memory_allocated->counter;
	u64 pages = size / PAGE_SIZE + 1;
	struct mem_cgroup *memcg;
	/* READ() takes structures alone; this one is a long. */
	long low = READ((struct rb_node *)prot->sysctl_mem, __rb_parent_color);

	if (allocated + (long)pages + CHARGE_SLACK > low)
		return true;
	if (!bpf_core_field_exists(struct sock, sk_memcg))
		return false;
	memcg = READ(sk_of(peer), sk_memcg);
	if (!memcg)
		return false;
	if (READ(sk_of(peer), sk_forward_alloc) >= (int)size)
		return false;
	if (!has_room(&memcg->memory, pages))
		return true;
	return bpf_core_field_exists(struct mem_cgroup, tcpmem) &&
	       !has_room(&memcg->tcpmem, pages);
}
