// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/*
 * Optional: puts connections into sock_ops_map that were established before the load
 * (load.sh --adopt).  Pinned as a BPF iterator; each read of the pin runs this once for
 * each TCP socket of the reader's network namespace.  The kernel holds the socket's lock
 * meanwhile (bpf_iter_tcp_seq_show), so nobody is in the middle of sending or receiving.
 *
 * Both ends enter or none: a read notes each end that may, and the next one puts those in
 * of which both ends were noted before it began.  bpf_redirect.bpf.c sends the first
 * message of each direction by TCP, and so gets a reader out of tcp_recvmsg() that was
 * inside, unseen.
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

/* Which read of the pin noted an end, by the key under which it would be stored. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 131072); /* ends */
	__type(key, struct pair_key);
	__type(value, u64);
} fuse_noted SEC(".maps");

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

/* read: the number of this one.  Had earlier ones noted both ends? */
static __always_inline bool both_noted(struct tcp_sock *tp, const struct pair_key *key,
				       u64 read)
{
	u64 *own = bpf_map_lookup_elem(&fuse_noted, key), *other;
	struct pair_key peer;

	if (!own)
		bpf_map_update_elem(&fuse_noted, key, &read, BPF_NOEXIST);
	if (!own || *own == read || !peer_key(tp, &peer))
		return false;
	other = bpf_map_lookup_elem(&fuse_noted, &peer);
	return other && *other != read;
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
	if (IS_SPLICERS(set, tp))
		return 0;
	key = own_key(tp, connected);
	if (both_noted(tp, &key, ctx->meta->session_id))
		adopt(set, tp, &key, connected);
	return 0;
}
