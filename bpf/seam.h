/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * What bpf_contrack.bpf.c does where TCP bytes get behind fused ones (the seam,
 * reader.h): an edge-triggered reader leaves the map before it, or is told once more of
 * what comes.
 */
#pragma once

#include "leave.h"

#define SOL_SOCKET 1 /* asm-generic/socket.h, as the options */
#define SO_KEEPALIVE 9
#define SO_RCVLOWAT 18
#define TCP_KEEPIDLE 4
#define TCP_KEEPINTVL 5
#define TCP_KEEPCNT 6
#define RCV_SHUTDOWN 1
#define TCP_SYN_RECV 3
#define PROBE 1		    /* of the options of start_probing(): yes, and a second */
#define PROBES 127	    /* that may go unanswered, the most there can be */
#define PROBING_NS NS_PER_S /* for which an end probes at least, until it is mended */
#define BUCKET_MAX 64	    /* elements of a sockhash's bucket, which has two or so */
#define NO_PEER 0
#define PEER_UNKNOWN 1

static __always_inline void set_option(struct bpf_sock_ops *skops, int level, int option,
				       int value)
{
	bpf_setsockopt(skops, level, option, &value, sizeof(value));
}

/* Puts an option back, unless the application has set it meanwhile. */
static __always_inline void restore(struct bpf_sock_ops *skops, int level, int option,
				    int ours, int value)
{
	int now = 0;

	if (!bpf_getsockopt(skops, level, option, &now, sizeof(now)) && now == ours)
		set_option(skops, level, option, value);
}

/* before_segment() then runs each second, before the segment of tcp_keepalive_timer(). */
static __always_inline void start_probing(struct bpf_sock_ops *skops)
{
	struct bpf_sock *sk = skops->sk;
	struct direction *direction;
	int size = sizeof(int);

	if (!sk)
		return;
	direction = direction_of(sk);
	if (!direction || direction->probing_since ||
	    bpf_getsockopt(skops, SOL_SOCKET, SO_KEEPALIVE, &direction->keepalive,
			   size) ||
	    bpf_getsockopt(skops, SOL_TCP, TCP_KEEPIDLE, &direction->keepidle, size) ||
	    bpf_getsockopt(skops, SOL_TCP, TCP_KEEPINTVL, &direction->keepintvl, size) ||
	    bpf_getsockopt(skops, SOL_TCP, TCP_KEEPCNT, &direction->keepcnt, size))
		return;
	direction->probing_since = bpf_ktime_get_ns();
	set_option(skops, SOL_TCP, TCP_KEEPIDLE, PROBE);
	set_option(skops, SOL_TCP, TCP_KEEPINTVL, PROBE);
	set_option(skops, SOL_TCP, TCP_KEEPCNT, PROBES);
	set_option(skops, SOL_SOCKET, SO_KEEPALIVE, PROBE);
}

static __always_inline void stop_probing(struct bpf_sock_ops *skops,
					 struct direction *direction)
{
	direction->probing_since = 0;
	restore(skops, SOL_TCP, TCP_KEEPIDLE, PROBE, direction->keepidle);
	restore(skops, SOL_TCP, TCP_KEEPINTVL, PROBE, direction->keepintvl);
	restore(skops, SOL_TCP, TCP_KEEPCNT, PROBES, direction->keepcnt);
	restore(skops, SOL_SOCKET, SO_KEEPALIVE, PROBE, direction->keepalive);
}

/* TCP bytes that the reader has not taken; a FIN is none. */
static __always_inline bool tcp_bytes_wait(struct tcp_sock *tp)
{
	u32 fin = sk_of(tp)->sk_shutdown & RCV_SHUTDOWN;

	return (int)(tp->rcv_nxt - fin - tp->copied_seq) > 0;
}

/*
 * As the sender of TCP bytes, before they leave.  A reader that is told once of what
 * there is meets no seam if its end leaves the map before it reads.
 */
static __always_inline void mend_as_sender(struct direction *direction)
{
	u32 found = waiters(direction->peer);

	if (found & WAITER_EDGE)
		direction->leaving = 1;
	else if (!(found & WAITER_LATER))
		direction->seam = 0;
}

#define ROTATED(word, bits) ((word) << (bits) | (word) >> (32 - (bits)))

/* jhash() of a key, as sock_hash_bucket_hash() has it. */
static __always_inline u32 hash_of_key(struct pair_key *key)
{
	u32 a, b, c, words[4] = {};

	/* Else the verifier would see half a pointer to a network namespace. */
	bpf_probe_read_kernel(words, sizeof(words), key);
	a = b = c = 0xdeadbeef + sizeof(words);
	a += words[0], b += words[1], c += words[2];
	a = (a - c) ^ ROTATED(c, 4), c += b;
	b = (b - a) ^ ROTATED(a, 6), a += c;
	c = (c - b) ^ ROTATED(b, 8), b += a;
	a = (a - c) ^ ROTATED(c, 16), c += b;
	b = (b - a) ^ ROTATED(a, 19), a += c;
	c = (c - b) ^ ROTATED(b, 4), b += a;
	a += words[3];
	c = (c ^ b) - ROTATED(b, 14), a = (a ^ c) - ROTATED(c, 11);
	b = (b ^ a) - ROTATED(a, 25), c = (c ^ b) - ROTATED(b, 16);
	a = (a ^ c) - ROTATED(c, 4), b = (b ^ a) - ROTATED(a, 14);
	return (c ^ b) - ROTATED(b, 24);
}

/*
 * The address of the peer of an end that is in the map, NO_PEER if the peer is not there,
 * or PEER_UNKNOWN.  A sockops program may not look a socket up, so this walks through the
 * bucket as sock_hash_lookup_elem_raw() does, under the same RCU lock: what was there
 * before and stays there is found.  The element of this end tells the hash that the
 * kernel computed of its key; where ours differs, or the bucket is full, the answer is
 * PEER_UNKNOWN.
 */
static __noinline u64 peer_of(struct tcp_sock *tp)
{
	struct sk_psock *psock = psock_of(tp);
	struct bpf_shtab_elem *elem;
	struct pair_key key, other;
	struct sk_psock_link *link;
	struct bpf_shtab *table;
	struct hlist_node *node;
	u64 bucket;
	u32 hash;

	if (!in_map(tp) || !stored_key(tp, &key))
		return PEER_UNKNOWN;
	link = link_of(psock);
	elem = READ(link, link_raw);
	if (READ(elem, hash) != hash_of_key(&key) || !peer_key(tp, &key))
		return PEER_UNKNOWN;
	table = CONTAINER(READ(link, map), struct bpf_shtab, map);
	hash = hash_of_key(&key);
	bucket = (u64)READ(table, buckets) +
		 (u64)(hash & (READ(table, buckets_num) - 1)) *
			 bpf_core_type_size(struct bpf_shtab_bucket);
	node = READ((struct bpf_shtab_bucket *)bucket, head.first);
	for (int i = 0; node; i++, node = READ(node, next)) {
		elem = CONTAINER(node, struct bpf_shtab_elem, node);
		if (i == BUCKET_MAX ||
		    bpf_probe_read_kernel(&other, sizeof(other), &elem->key))
			return PEER_UNKNOWN;
		if (other.netns == key.netns && other.sender_isn == key.sender_isn &&
		    other.peer_isn == key.peer_isn)
			return address_of(READ(elem, sk));
	}
	return NO_PEER;
}

/*
 * As the reader of TCP bytes, before they are acknowledged.  Once the fused
 * ones have been read, the kernel is made to tell again of TCP's:
 * tcp_set_rcvlowat() does when SO_RCVLOWAT is set to what it is.  While fused
 * bytes wait, nothing will happen on the socket when they are read (the sender
 * may be gone by then), so it probes the peer until they are.
 */
static __always_inline void mend_as_reader(struct bpf_sock_ops *skops,
					   struct settings *set, struct tcp_sock *tp,
					   struct direction *direction)
{
	struct bpf_sock *sk = skops->sk;
	u32 found = waiters(tp);
	struct sk_psock *psock;

	if (!sk || !(found & (WAITER_EDGE | WAITER_LATER)))
		return;
	if (!direction)
		direction = direction_of(sk);
	/*
	 * With a SYN's data (TCP Fast Open), or adopted, the peer may be on its way.  One
	 * whose address is known was in the map, and may have a message under way.
	 */
	if (direction && !direction->paired && !direction->adopted &&
	    sk_of(tp)->__sk_common.skc_state != TCP_SYN_RECV) {
		direction->paired = direction->peer || peer_of(tp) != NO_PEER;
		direction->alone |= !direction->paired;
	}
	leave(set, tp, direction, found & WAITER_EDGE);
	psock = psock_of(tp);
	if (psock)
		start_probing(skops);
	if (found & WAITER_EDGE && no_fused_bytes(psock))
		set_option(skops, SOL_SOCKET, SO_RCVLOWAT, sk_of(tp)->sk_rcvlowat);
}
