// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/*
 * Optional: puts connections into sock_ops_map that are established already: those from
 * before the load (load.sh --adopt), or all once they are some seconds old (--min-age),
 * so that short ones do not pay for it.  Pinned as a BPF iterator; each read of the pin
 * runs this once for each TCP socket of the reader's network namespace.  The kernel holds
 * the socket's lock meanwhile (bpf_iter_tcp_seq_show), so nobody is in the middle of
 * sending or receiving.
 *
 * Both ends enter or none: a read notes each end that may, and the next one puts those in
 * whose other end was noted too.  bpf_redirect.bpf.c sends the first message of each
 * direction by TCP, and so gets a reader out of tcp_recvmsg() that was inside, unseen.
 */
#define PINNING LIBBPF_PIN_BY_NAME
#include "enter.h"

#define SOCK_OPS_CB_FLAGS 1008 /* TCP_BPF_SOCK_OPS_CB_FLAGS of linux/bpf.h since 6.12 */
#define CGROUP_DEPTH 64	       /* levels that are looked at */
#define MAX_CGROUPS 64	       /* of load.sh --cgroup */

/* Holds sock_ops_map, whose size differs from load to load. */
struct {
	__uint(pinning, PINNING);
	__uint(type, BPF_MAP_TYPE_ARRAY_OF_MAPS);
	__uint(max_entries, 1);
	__type(key, u32);
	__array(
		values, struct {
			__uint(type, BPF_MAP_TYPE_SOCKHASH);
			__uint(max_entries, 1);
			__type(key, struct pair_key);
			__type(value, u64);
		});
} fuse_adopters SEC(".maps");

/* When an end was first seen (ktime), by the key under which it would be stored. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 131072); /* ends */
	__type(key, struct pair_key);
	__type(value, u64);
} fuse_seen SEC(".maps");

/* The cgroups of load.sh --cgroup, by id, the lowest byte first. */
struct {
	__uint(pinning, PINNING);
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, MAX_CGROUPS);
	__type(key, u8[8]);
	__type(value, u8);
} fuse_cgroups SEC(".maps");

/* Is it in one of them, where bpf_contrack.bpf.c is called for it? */
static __always_inline bool in_cgroup(struct tcp_sock *tp)
{
	struct cgroup_subsys_state *css = &READ(sk_of(tp), sk_cgrp_data.cgroup)->self;

	for (int depth = 0; depth < CGROUP_DEPTH && css; depth++) {
		u64 id = BPF_CORE_READ(css, cgroup, kn, id);
		u8 key[8];

		for (int i = 0; i < 8; i++)
			key[i] = id >> 8 * i;
		if (bpf_map_lookup_elem(&fuse_cgroups, key))
			return true;
		css = READ(css, parent);
	}
	return false;
}

/* Nanoseconds for which both ends have been noted; 0 if only one is. */
static __always_inline u64 age_of(struct tcp_sock *tp, const struct pair_key *key)
{
	struct pair_key peer;
	u64 *own_seen, *peer_seen, now = bpf_ktime_get_ns();

	own_seen = bpf_map_lookup_elem(&fuse_seen, key);
	if (!own_seen)
		bpf_map_update_elem(&fuse_seen, key, &now, BPF_NOEXIST);
	if (!peer_key(tp, &peer)) /* those adopted are both on loopback */
		return 0;
	peer_seen = bpf_map_lookup_elem(&fuse_seen, &peer);
	if (!own_seen || !peer_seen)
		return 0;
	return now - (*own_seen > *peer_seen ? *own_seen : *peer_seen);
}

static __always_inline bool call_back(struct tcp_sock *tp, struct direction *direction)
{
	int flags = 0;

	if (bpf_getsockopt(tp, SOL_TCP, SOCK_OPS_CB_FLAGS, &flags, sizeof(flags)))
		return false;
	direction->shared = !!(flags & BPF_SOCK_OPS_WRITE_HDR_OPT_CB_FLAG);
	flags |= CALLBACKS;
	return !bpf_setsockopt(tp, SOL_TCP, SOCK_OPS_CB_FLAGS, &flags, sizeof(flags));
}

static __always_inline void adopt(struct settings *set, struct tcp_sock *tp,
				  const struct pair_key *key, bool connected)
{
	void *map = array_value(&fuse_adopters);
	struct direction *direction;

	if (!map)
		return;
	direction = direction_of(tp);
	if (!direction)
		return;
	direction->adopted = 1;
	direction->disconnects = disconnects_of(tp);
	if (set->account)
		direction->since = bpf_ktime_get_ns();
	if (!call_back(tp, direction) || bpf_map_update_elem(map, key, tp, BPF_NOEXIST)) {
		bpf_sk_storage_delete(&fuse_directions, tp);
		return;
	}
	COUNT(ends_tracked);
	if (set->trace)
		trace_end(tp, connected);
}

SEC("iter/tcp")
int bpf_adopt(struct bpf_iter__tcp *ctx)
{
	struct settings *set = array_value(&fuse_settings);
	struct sock_common *common = ctx->sk_common;
	struct service service;
	struct pair_key key;
	struct tcp_sock *tp;
	bool connected;

	tp = common ? bpf_skc_to_tcp_sock(common) : NULL;
	if (!set || !set->fuse || !tp || common->skc_state != TCP_ESTABLISHED ||
	    READ(sk_of(tp), sk_user_data) || !both_ends_loopback(tp))
		return 0;
	/* One that was in the map has left it for good. */
	if (bpf_sk_storage_get(&fuse_directions, tp, NULL, 0))
		return 0;
	if (!tell_end(tp, &connected))
		return 0;
	service = service_of(tp, connected);
	if (excluded(set, &service) || kept_out(tp, &service, false) || !in_cgroup(tp))
		return 0;
	if (IS_SPLICERS(set, tp) || (set->nonblocking && !never_waits(tp)))
		return 0;
	key = own_key(tp, connected);
	if (age_of(tp, &key) > set->min_age * NS_PER_S)
		adopt(set, tp, &key, connected);
	return 0;
}
