/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * Services teach: what is known of one decides how its next connections go, and nothing
 * else does but the connection itself.
 *
 * What was seen of a service that only TCP serves (enum reason) keeps its next ones on
 * TCP until the next load.  What gains nothing is left on TCP, and is tried again: if
 * IN_VAIN connections in a row gained nothing, and came one upon the other, the next ones
 * are plain TCP.  Each TRY_EVERY-th of these is fused all the same.  The first that gains
 * brings the service back, one that goes on gaining does so again and again, and after a
 * pause all begins anew.  How a connection goes is in flows.h.
 *
 * A client's doings concern the connections of its user alone, whatever he does and
 * however long.  What the service itself did concerns ANYBODY's.
 *
 * Asked is when a connection is established, so no byte, no order and no memory of a
 * connection depends on this; of the two ends only the one that connects asks what gains,
 * and the other one does as it did (diallers.h).
 */
#pragma once

#include "maps.h"

#define IN_VAIN 16 /* connections; a mixed service has fewer in a row by chance */
/* ns between two connections; to enter the map costs each some 3 us, nothing to that */
#define DENSE_NS (NS_PER_S / 10)
#define TRY_EVERY 64	      /* connections; all of them pay a 64th of those 3 us */
#define TRY_AFTER_NS NS_PER_S /* without a connection; who comes then starts afresh */

#define ANYBODY (~0U) /* the kernel's own "no user" */

struct service {
	u32 netns;  /* inode number, as in /proc/PID/ns/net; later another's */
	u32 cookie; /* low half of net_cookie, nobody else's; 0 before 5.12 */
	u32 port;   /* that it listens on, host byte order */
	u32 user;   /* who connects, as the first user namespace numbers users; ANYBODY */
};

/* What was seen that only TCP serves */
enum reason {
	REASON_SPLICE = 1,
	REASON_RECV_FLAGS,	 /* MSG_WAITALL, MSG_TRUNC, MSG_OOB */
	REASON_SEND_FLAGS,	 /* MSG_OOB */
	REASON_INTERRUPTED,	 /* a blocking recv answered EAGAIN */
	REASON_ULP,		 /* TCP_ULP: kTLS */
	REASON_RECV_BESIDE_SEND, /* reader_beside(), wakes_writer() */
	REASON_MAY_SPLICE,	 /* splicers.h */
};

/* How a connection went */
enum ending {
	GAINED, /* it carried enough to pay for entering the map */
	SHORT,	/* it closed before */
	STREAM, /* it left the map, as small messages one way */
	FILES,	/* or as files */
	ENDINGS,
};

struct known {		    /* times: CLOCK_BOOTTIME, ns */
	u64 since;	    /* the path last changed, or it was first seen */
	u64 asked;	    /* its last connection */
	u16 reason;	    /* enum reason, 0: none */
	u16 in_vain;	    /* the last in a row that gained nothing, up to IN_VAIN */
	u32 left_out;	    /* connections since then that were not fused, or to try */
	u32 ended[ENDINGS]; /* connections, for status.sh */
};

/*
 * The numbers change without a lock, on several processors at a time, and a record may
 * have been given to another service meanwhile (an LRU map gives them out again).  What
 * is lost or counted there steers: each choice is right.
 *
 * Who fills it pushes out what is not used; that is learned anew.  What is used again is
 * not pushed out by what is used once, however much, unless it fills half of the table
 * (bpf_lru_list.c).  So what was seen of a service is not lost to those that have a new
 * port for each connection, as passive FTP.
 */
struct {
	__uint(pinning, PINNING);
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 16384); /* services */
	__type(key, struct service);
	__type(value, struct known);
} fuse_services SEC(".maps");

/* The service whose end this is */
static __always_inline struct service service_here(struct sock *sk)
{
	struct net *net = READ(sk, __sk_common.skc_net.net);

	return (struct service){
		.netns = READ(net, ns.inum),
		.cookie = bpf_core_field_exists(net->net_cookie) ? READ(net, net_cookie)
								 : 0,
		.port = READ(sk, __sk_common.skc_num),
		.user = ANYBODY,
	};
}

/* The service that this end's doings concern.  Only the end that connected has a user. */
static __always_inline struct service service_of(struct tcp_sock *tp, bool connected)
{
	struct sock *sk = sk_of(tp);
	struct service service = service_here(sk);

	if (connected) {
		service.port = bpf_ntohs(READ(sk, __sk_common.skc_dport));
		service.user = READ(sk, sk_uid.val);
	}
	return service;
}

/*
 * Was this seen of the service?  The record is put there as a whole: a reason that was
 * written into it alone could become another service's, and would stay.
 */
static __always_inline void note_reason(struct service *service, u16 reason)
{
	struct known *known = bpf_map_lookup_elem(&fuse_services, service), next = {};

	if (known && known->reason)
		return;
	if (known)
		next = *known;
	next.since = bpf_ktime_get_boot_ns();
	next.reason = reason;
	bpf_map_update_elem(&fuse_services, service, &next, BPF_ANY);
	bpf_map_lookup_elem(&fuse_services, service); /* it is used */
}

/* Is this the end that connected?  The key under which it is stored tells. */
static __always_inline bool stored_as_connected(struct tcp_sock *tp,
						struct pair_key *stored)
{
	return stored->sender_isn == own_key(tp, true).sender_isn;
}

/*
 * Its service takes TCP from the next connection on; only with this user if the end is
 * the client's.  False: it is in no map.
 */
static __always_inline bool learn(struct tcp_sock *tp, u16 reason)
{
	struct service service;
	struct pair_key stored;

	if (!stored_key(tp, &stored))
		return false;
	service = service_of(tp, stored_as_connected(tp, &stored));
	note_reason(&service, reason);
	return true;
}

/*
 * What both ends of a connection do together concerns its client's user alone.  False:
 * one is in no map, or what was kept as the peer's address is another's by now.
 */
static __always_inline bool learn_pair(struct tcp_sock *own, struct tcp_sock *peer,
				       u16 reason)
{
	struct pair_key stored, peers, wanted;
	struct service service;

	if (!stored_key(own, &stored) || !stored_key(peer, &peers) ||
	    !peer_key(own, &wanted) || peers.netns != wanted.netns ||
	    peers.sender_isn != wanted.sender_isn || peers.peer_isn != wanted.peer_isn)
		return false;
	service = service_of(stored_as_connected(own, &stored) ? own : peer, true);
	note_reason(&service, reason);
	return true;
}

/* Service: on the stack, as the map hashes it first and copies it later. */
static __always_inline void note_ending(struct service *service, u32 how)
{
	struct known *known = bpf_map_lookup_elem(&fuse_services, service), first = {};
	u16 before, now;

	if (!known) {
		first.since = first.asked = bpf_ktime_get_boot_ns();
		first.in_vain = how != GAINED;
		for (u32 i = 0; i < ENDINGS; i++)
			first.ended[i] = i == how;
		bpf_map_update_elem(&fuse_services, service, &first, BPF_NOEXIST);
		return;
	}
	if (how < ENDINGS)
		__sync_fetch_and_add(&known->ended[how], 1);
	before = known->in_vain;
	now = how == GAINED ? 0 : before < IN_VAIN ? before + 1 : IN_VAIN;
	if (now == before)
		return;
	known->in_vain = now;
	if (before == IN_VAIN || now == IN_VAIN) {
		known->since = bpf_ktime_get_boot_ns();
		known->left_out = 0;
	}
}

/* A connection to it is made: is it to be left on TCP, as it would gain nothing? */
static __always_inline bool gains_nothing(struct known *known)
{
	u64 now = bpf_ktime_get_boot_ns(), pause = now - known->asked;

	known->asked = now;
	if (known->in_vain < IN_VAIN) {
		if (known->in_vain && pause > DENSE_NS)
			known->in_vain = 0;
		return false;
	}
	if (pause > TRY_AFTER_NS) {
		known->in_vain = 0;
		return false;
	}
	return ++known->left_out % TRY_EVERY;
}

/*
 * The counter that tells why a connection to the service is plain TCP, 0 if it is not.
 * Only the end that connects knows its user, so it may stay out alone; diallers.h then
 * takes the other one along.  gain: it asks what gains, too.
 */
static __always_inline u32 left_on_tcp(struct service service, bool gain)
{
	struct known *known = bpf_map_lookup_elem(&fuse_services, &service);

	/* Before the second lookup, which those that gain nothing need not pay */
	if (gain && known && !known->reason && gains_nothing(known))
		return OUTCOME(ends_no_gain);
	if (service.user != ANYBODY && !(known && known->reason)) {
		service.user = ANYBODY;
		known = bpf_map_lookup_elem(&fuse_services, &service);
	}
	if (!known || !known->reason)
		return 0;
	return known->reason < REASON_MAY_SPLICE ? OUTCOME(ends_guarded)
						 : OUTCOME(ends_may_splice);
}
