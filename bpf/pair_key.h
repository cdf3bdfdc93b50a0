/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * Which socket is whose peer: every program computes the same pair key for an end, at any
 * time of its life, and stores nothing for it.
 *
 * The pair key names a socket by the handshake it took part in: the two initial sequence
 * numbers (host byte order) and the network namespace whose loopback device carried it.
 * No address stands in it, so IPv4, IPv6 and v4-mapped ends of one connection meet, and
 * equal addresses in two namespaces never do.  A socket is stored under the key that its
 * peer computes.
 *
 * Where the two ends may be in different namespaces (load.sh --net), the end says
 * which of the two it is instead; nets.h tells why.
 */
#pragma once

#include "kernel.h"

#define LOOPBACK_NET bpf_htonl(0x7f000000)
#define LOOPBACK_MASK bpf_htonl(0xff000000)
#define CONNECTED 1
#define ACCEPTED 2

struct pair_key {
	u64 netns;	/* address of the struct net; or CONNECTED or ACCEPTED */
	u32 sender_isn; /* of the end that looks the key up */
	u32 peer_isn;
};

/* addr: network byte order */
static __always_inline bool is_loopback4(u32 addr)
{
	return (addr & LOOPBACK_MASK) == LOOPBACK_NET;
}

/* words: network byte order; ::1 or ::ffff:127.0.0.0/104 */
static __always_inline bool is_loopback6(u32 *words)
{
	if (words[0] || words[1])
		return false;
	return words[2] ? words[2] == bpf_htonl(0xffff) && is_loopback4(words[3])
			: words[3] == bpf_htonl(1);
}

/* Policy, unless load.sh --net says more: which connections may be fused at all. */
static __always_inline bool both_ends_loopback(struct tcp_sock *tp)
{
	struct sock_common *common = &sk_of(tp)->__sk_common;

	if (common->skc_family == AF_INET)
		return is_loopback4(common->skc_rcv_saddr) &&
		       is_loopback4(common->skc_daddr);
	return common->skc_family == AF_INET6 &&
	       is_loopback6(common->skc_v6_rcv_saddr.in6_u.u6_addr32) &&
	       is_loopback6(common->skc_v6_daddr.in6_u.u6_addr32);
}

/*
 * The key under which a sockhash holds the socket; false if none does.  The sockhash may
 * be sock_ops_map, that of an earlier load, whose sockets stay in it, or another
 * program's: only in_map() tells.
 */
static __always_inline bool stored_key(struct tcp_sock *tp, struct pair_key *key)
{
	struct sk_psock *psock = psock_of(tp);
	struct bpf_shtab_elem *elem;

	if (!psock)
		return false;
	elem = READ(link_of(psock), link_raw);
	/* The kernel's own sockets keep other things in sk_user_data. */
	if (READ(elem, sk) != sk_of(tp))
		return false;
	return !bpf_probe_read_kernel(key, sizeof(*key), &elem->key);
}

/*
 * The two numbers as this end sees them.  The counters advance in step
 * (tcp_snd_una_update, tcp_rcv_nxt_update), so the differences are constant for the life
 * of a connection.
 *
 * sender_isn is the initial sequence number itself on the side that connected,
 * where bytes_acked counts the SYN, and one more on the side that accepted.
 * peer_isn is one more than the initial sequence number on both.
 */
static __always_inline struct pair_key isns_of(struct tcp_sock *tp)
{
	return (struct pair_key){
		.netns = (u64)sk_of(tp)->__sk_common.skc_net.net,
		.sender_isn = tp->snd_una - (u32)tp->bytes_acked,
		.peer_isn = tp->rcv_nxt - (u32)tp->bytes_received,
	};
}

/* The two numbers as this end sees them, in one */
static __always_inline u64 isns_as_one(struct tcp_sock *tp)
{
	struct pair_key key = isns_of(tp);

	return (u64)key.sender_isn << 32 | key.peer_isn;
}

/* The same as the end that connected sees them, from what the other one sees */
static __always_inline u64 as_connected(u64 isns)
{
	return (u64)((u32)isns - 1) << 32 | isns >> 32;
}

/* The key under which the peer is stored, of an end that knows which it is. */
static __always_inline struct pair_key peer_key_of(struct tcp_sock *tp, bool connected)
{
	struct pair_key key = isns_of(tp);

	if (!both_ends_loopback(tp))
		key.netns = connected ? ACCEPTED : CONNECTED;
	return key;
}

/*
 * The same, of an end that does not know which it is.  Where that matters, the element of
 * the map tells; false: the socket is in none.
 */
static __always_inline bool peer_key(struct tcp_sock *tp, struct pair_key *key)
{
	struct pair_key stored;

	*key = isns_of(tp);
	if (both_ends_loopback(tp))
		return true;
	if (!stored_key(tp, &stored))
		return false;
	key->netns = stored.netns == CONNECTED ? ACCEPTED : CONNECTED;
	return true;
}

/* The key under which the socket itself is stored: its peer's view. */
static __always_inline struct pair_key own_key(struct tcp_sock *tp, bool connected)
{
	struct pair_key key = isns_of(tp);
	u32 isn = key.sender_isn;

	if (!both_ends_loopback(tp))
		key.netns = connected ? CONNECTED : ACCEPTED;
	key.sender_isn = connected ? key.peer_isn : key.peer_isn - 1;
	key.peer_isn = connected ? isn + 1 : isn;
	return key;
}

/*
 * Which end is this?  The sequence number of its first byte is one more than
 * isns_of() says on the end that connected, and the same on the one that accepted.
 * False: the counters do not tell (a segment that the host itself dropped).
 */
static __always_inline bool tell_end(struct tcp_sock *tp, bool *connected)
{
	u32 first = tp->snd_nxt - (u32)tp->bytes_sent + (u32)tp->bytes_retrans;
	u32 ahead = first - isns_of(tp).sender_isn;

	*connected = ahead == 1;
	return ahead <= 1;
}
