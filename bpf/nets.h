/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * load.sh --net: which connections between other addresses than loopback may enter the
 * map.  It promises bpf_contrack.bpf.c that the two ends are each other's, against
 * anybody.
 *
 * Between namespaces sequence numbers prove nothing: who owns one can choose its own,
 * and the peer's with a raw socket.  So who accepts enters only if each end has had a
 * packet of the other: the one that ended its handshake came from the very socket that
 * connected, and the one that ended that socket's came from this.  A random number of
 * each proves it: nobody can choose it, and only who sees their packets sees it.  A wrong
 * one leaves the socket that connected alone for good, so there is one guess in 2^64 and
 * no second.  (A SYN-ACK that is sent again, or a SYN cookie, has another number than the
 * end that accepts: that connection is TCP's.)  Both roles have keys of their own, and
 * the entry here outlives whoever of the two closes first, so what is stored under the
 * key of a live socket's peer is its peer or nothing.
 */
#pragma once

#include "maps.h"

struct net_key {
	u32 prefixlen;
	u32 words[4]; /* network byte order; IPv4 as ::ffff:a.b.c.d */
};

struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 4096); /* of load.sh --net */
	__type(key, struct net_key);
	__type(value, u8);
} fuse_nets SEC(".maps");

#define NOBODY 1

struct dialled {
	u64 connected; /* address of its tcp_sock */
	u64 accepted;  /* of the one that was taken for its peer; NOBODY: none may be */
	u32 txhash;
	u32 answer; /* hash of the packet that ended its handshake, the other's SYN-ACK */
	struct bpf_spin_lock lock; /* of accepted while it is 0 or NOBODY */
};

/* Ends that connected between such addresses, by their own key, until both have closed */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 65536); /* connections */
	__type(key, struct pair_key);
	__type(value, struct dialled);
} fuse_dialled SEC(".maps");

static __always_inline bool in_nets(u32 word0, u32 word1, u32 word2, u32 word3)
{
	struct net_key key = {
		.prefixlen = 128,
		.words = { word0, word1, word2, word3 },
	};

	return is_loopback6(key.words) || bpf_map_lookup_elem(&fuse_nets, &key);
}

static __always_inline bool both_ends_in_nets(struct tcp_sock *tp)
{
	struct sock_common *common = &sk_of(tp)->__sk_common;
	u32 mapped = bpf_htonl(0xffff), *own, *peer;

	if (common->skc_family == AF_INET)
		return in_nets(0, 0, mapped, common->skc_rcv_saddr) &&
		       in_nets(0, 0, mapped, common->skc_daddr);
	own = common->skc_v6_rcv_saddr.in6_u.u6_addr32;
	peer = common->skc_v6_daddr.in6_u.u6_addr32;
	return common->skc_family == AF_INET6 &&
	       in_nets(own[0], own[1], own[2], own[3]) &&
	       in_nets(peer[0], peer[1], peer[2], peer[3]);
}

/*
 * Whose packet ended the handshake: a socket's skbs have its sk_txhash for their hash
 * (skb_set_hash_from_sk, tcp_make_synack), and keep it through loopback, veth, bridges
 * and NAT.  0: no socket's.  What the kernel works out from addresses and ports of a
 * packet (__skb_get_hash, for RPS or a queue) is marked by sw_hash; whoever makes packets
 * could tabulate that, and then send the one that has the hash he wants.
 */
static __always_inline u32 hash_of_last(struct bpf_sock_ops *skops)
{
	struct bpf_sock_ops_kern *kern = (void *)skops;
	struct sk_buff *skb = READ(kern, skb);

	if (!READ_BITFIELD(skb, l4_hash) || READ_BITFIELD(skb, sw_hash))
		return 0;
	return READ(skb, hash);
}

/*
 * Gives the place of the peer to one end, or to NOBODY, for good; false if another end
 * has it (from: NOBODY) or it was given at all (from: 0).
 *
 * accepted changes only here, from 0 or NOBODY, and in unpair(), by the end whose
 * address it is.  So under the lock one processor sees 0 and all others what it wrote:
 * an entry answers one guess, however many guess at once.  And an end that has made it
 * NOBODY may leave the map: none that accepted has entered for it, and none will.
 */
static __always_inline bool claim(struct dialled *found, u64 from, u64 accepted)
{
	bool free;

	bpf_spin_lock(&found->lock);
	free = found->accepted <= from;
	if (free)
		found->accepted = accepted;
	bpf_spin_unlock(&found->lock);
	return free;
}

/* 0: this end may enter; else the counter that tells why not. */
static __always_inline u32 pair(struct bpf_sock_ops *skops, struct tcp_sock *tp,
				bool connected)
{
	u32 last = hash_of_last(skops);
	struct dialled *found;
	struct pair_key key;
	bool peer;

	if (connected) {
		struct dialled dialled = {
			.connected = (u64)tp,
			.txhash = sk_of(tp)->sk_txhash,
			.answer = last,
		};

		key = own_key(tp, true);
		if (!bpf_map_update_elem(&fuse_dialled, &key, &dialled, BPF_NOEXIST))
			return 0;
		return bpf_map_lookup_elem(&fuse_dialled, &key) ? OUTCOME(ends_refused)
								: OUTCOME(ends_map_full);
	}
	key = peer_key_of(tp, false);
	found = bpf_map_lookup_elem(&fuse_dialled, &key);
	if (!found)
		return OUTCOME(ends_remote);
	peer = last && found->txhash == last && found->answer == sk_of(tp)->sk_txhash;
	if (!claim(found, 0, peer ? (u64)tp : NOBODY) || !peer)
		return OUTCOME(ends_remote);
	return 0;
}

/*
 * Who accepted takes the entry along, unless it never entered the map and the other
 * end is to leave it; one that connected and has no peer takes its own.
 */
static __always_inline void unpair(struct tcp_sock *tp, bool gone)
{
	struct pair_key key = own_key(tp, true);
	struct dialled *found;

	if (both_ends_loopback(tp))
		return;
	found = bpf_map_lookup_elem(&fuse_dialled, &key);
	if (found && found->connected == (u64)tp && claim(found, NOBODY, NOBODY))
		bpf_map_delete_elem(&fuse_dialled, &key);
	key = peer_key_of(tp, false);
	found = bpf_map_lookup_elem(&fuse_dialled, &key);
	if (found && found->accepted == (u64)tp) {
		found->accepted = NOBODY;
		if (gone)
			bpf_map_delete_elem(&fuse_dialled, &key);
	}
}

/*
 * An end that connected and has an answer, or its bytes acknowledged, has a peer that is
 * past its handshake.  If that has not entered, it is on another host, or not to be
 * fused; nothing was fused to this end, which leaves the map.
 */
static __always_inline void leave_if_alone(struct tcp_sock *tp)
{
	struct pair_key key = own_key(tp, true);
	struct dialled *found;

	if (both_ends_loopback(tp) || !psock_of(tp))
		return;
	found = bpf_map_lookup_elem(&fuse_dialled, &key);
	if (!found || found->connected != (u64)tp)
		return;
	if (tp->bytes_acked <= 1 && !tp->bytes_received) /* the SYN alone */
		return;
	if (!claim(found, NOBODY, NOBODY))
		return;
	if (!bpf_map_delete_elem(&sock_ops_map, &key))
		COUNT(ends_remote);
	forget_marks(tp);
	bpf_map_delete_elem(&fuse_dialled, &key);
}
