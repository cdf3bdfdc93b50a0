// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/*
 * Optional: lists the sockets in sock_ops_map, for status.sh.  Pinned as a BPF iterator;
 * each read of the pin runs this once for each socket and prints a line, fields between
 * tabs: local and remote address, network namespace (inode), cookie, own and peer's key,
 * outcome, backlog and, with load.sh --account, bytes and age.  Nothing is locked and
 * nothing changed; a socket that closes meanwhile is listed or not.  A last line tells
 * the id of the map's verdict program.  bpftool cannot lend maps to an iterator, so the
 * sender's struct direction is found where the kernel keeps it, in the socket.
 */
#include "maps.h"

#define MAX_STORAGES 16 /* of one socket, other programs' included */

static __always_inline bool is_directions(struct bpf_map *map)
{
	const char ours[16] = "fuse_directions";
	char name[16] = {};

	bpf_core_read(name, sizeof(name), &map->name);
	for (u32 i = 0; i < sizeof(name); i++)
		if (name[i] != ours[i])
			return false;
	return READ(map, value_size) == sizeof(struct direction);
}

/* A copy; as new if the socket has none. */
static __always_inline struct direction copy_of_direction(struct tcp_sock *tp)
{
	struct bpf_local_storage *storage = READ(sk_of(tp), sk_bpf_storage);
	struct direction direction = {};
	struct hlist_node *node = READ(storage, list.first);

	for (int i = 0; i < MAX_STORAGES && node; i++) {
		struct bpf_local_storage_elem *elem =
			CONTAINER(node, struct bpf_local_storage_elem, snode);
		struct bpf_map *map = &READ(elem, sdata.smap)->map;

		if (is_directions(map)) {
			bpf_probe_read_kernel(&direction, sizeof(direction),
					      elem->sdata.data);
			break;
		}
		node = READ(node, next);
	}
	return direction;
}

/* ADDRESS:PORT as ss(8) writes it; port: host byte order, the rest: network. */
static __always_inline void print_end(struct seq_file *seq, u16 family, u32 ip4,
				      struct in6_addr *in6, u16 port)
{
	u32 ip6[4];

	if (family == AF_INET) {
		BPF_SEQ_PRINTF(seq, "%pI4:%u\t", &ip4, port);
		return;
	}
	bpf_probe_read_kernel(ip6, sizeof(ip6), in6);
	if (ip6[0] || ip6[1] || (ip6[2] && ip6[2] != bpf_htonl(0xffff)))
		BPF_SEQ_PRINTF(seq, "[%pI6]:%u\t", ip6, port);
	else if (ip6[2])
		BPF_SEQ_PRINTF(seq, "[::ffff:%pI4]:%u\t", &ip6[3], port);
	else
		BPF_SEQ_PRINTF(seq, "[::%x]:%u\t", bpf_ntohl(ip6[3]), port);
}

/* Bytes fused to this end that its reader has not taken. */
static __always_inline u32 fused_backlog(struct tcp_sock *tp, struct sk_psock *psock)
{
	if (bpf_core_field_exists(psock->msg_tot_len))
		return READ(psock, msg_tot_len);
	/* TCP's unread bytes are charged to the same counter. */
	return no_fused_bytes(psock) ? 0 : READ(sk_of(tp), sk_backlog.rmem_alloc.counter);
}

/* How its last message went: -1 if it has sent none, else OUTCOME(). */
static __always_inline int last_outcome(struct sk_psock *psock,
					const struct direction *direction)
{
	bool fused = true;

	if (direction->outcome)
		return direction->outcome;
	if (bpf_core_field_exists(psock->redir_ingress))
		fused = READ(psock, redir_ingress);
	return fused ? FUSED : -1;
}

static __always_inline void print_key(struct seq_file *seq, struct pair_key *key)
{
	BPF_SEQ_PRINTF(seq, "%llx %x %x\t", key->netns, key->sender_isn, key->peer_isn);
}

static __always_inline void print_socket(struct seq_file *seq, struct tcp_sock *tp,
					 struct pair_key *stored)
{
	struct sock_common *common = &sk_of(tp)->__sk_common;
	struct sk_psock *psock = psock_of(tp);
	struct direction direction = copy_of_direction(tp);
	struct pair_key peer;

	peer_key(tp, &peer); /* of a socket that has just left the map no end finds it */
	print_end(seq, common->skc_family, common->skc_rcv_saddr,
		  &common->skc_v6_rcv_saddr, common->skc_num);
	print_end(seq, common->skc_family, common->skc_daddr, &common->skc_v6_daddr,
		  bpf_ntohs(common->skc_dport));
	BPF_SEQ_PRINTF(seq, "%u\t%llx\t", common->skc_net.net->ns.inum,
		       bpf_get_socket_cookie(sk_of(tp)));
	print_key(seq, stored);
	print_key(seq, &peer);
	BPF_SEQ_PRINTF(seq, "%d\t%u", last_outcome(psock, &direction),
		       fused_backlog(tp, psock));
	if (direction.since)
		BPF_SEQ_PRINTF(seq, "\t%llu\t%llu", direction.fused_bytes,
			       (bpf_ktime_get_ns() - direction.since) / NS_PER_S);
	BPF_SEQ_PRINTF(seq, "\n");
}

/* The verdict program's id, 0 if none is attached. */
static __always_inline void print_map(struct seq_file *seq, struct bpf_map *map)
{
	struct bpf_shtab *table = (void *)map;
	struct bpf_prog *verdict = READ(table, progs.msg_parser);
	struct bpf_prog_aux *aux = READ(verdict, aux);

	BPF_SEQ_PRINTF(seq, "verdict\t%u\n", READ(aux, id));
}

SEC("iter/sockmap")
int bpf_status(struct bpf_iter__sockmap *ctx)
{
	struct seq_file *seq = ctx->meta->seq;
	struct pair_key *key = ctx->key, stored;
	struct sock *sk = ctx->sk;
	struct tcp_sock *tp;

	if (!sk || !key) {
		print_map(seq, ctx->map);
		return 0;
	}
	tp = bpf_skc_to_tcp_sock(sk);
	if (!tp)
		return 0;
	stored = *key;
	print_socket(seq, tp, &stored);
	return 0;
}
