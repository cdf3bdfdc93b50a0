// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/*
 * Optional (load.sh --sidecar): TCP connections of the processes in a cgroup go to a
 * proxy on the loopback address of their network namespace, as with a REDIRECT rule of
 * iptables, but before there is a packet.  The proxy asks for the original destination
 * with SO_ORIGINAL_DST, getpeername() of the client tells it, too, and both legs are
 * loopback or --net connections, which bpf_contrack.bpf.c fuses.  Left alone: the proxy's
 * own connections, those to loopback, and UDP.
 */
#include "maps.h"

#define SOCK_STREAM 1
#define SOL_IP 0
#define SOL_IPV6 41
#define SO_ORIGINAL_DST 80 /* linux/netfilter_ipv4.h; IP6T_SO_ORIGINAL_DST is, too */

/* Written by load.sh, numbers with the lowest byte first. */
struct sidecar {
	u8 port[2];
	u8 uid[4]; /* the proxy's */
	u8 mark[4];
	u8 by_uid; /* 1: that user's connections are left alone */
	u8 by_mark;
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, u32);
	__type(value, struct sidecar);
} fuse_sidecar SEC(".maps");

/* An address and a port, network byte order; IPv4 as ::ffff:a.b.c.d */
struct place {
	u32 words[4];
	u32 port;
};

/* Where a socket that was sent to the proxy wanted to go. */
struct {
	__uint(type, BPF_MAP_TYPE_SK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, int);
	__type(value, struct place);
} fuse_originals SEC(".maps");

/* The same by where it comes from, which is what the proxy's end knows. */
struct source {
	u64 netns; /* cookie */
	struct place from;
	u32 zero;
};

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 65536); /* connections */
	__type(key, struct source);
	__type(value, struct place);
} fuse_sources SEC(".maps");

static __always_inline bool switched_on(void)
{
	struct settings *set = array_value(&fuse_settings);

	return set && set->fuse;
}

static __always_inline u32 number(const u8 *bytes)
{
	return bytes[0] | bytes[1] << 8 | bytes[2] << 16 | (u32)bytes[3] << 24;
}

static __always_inline bool is_mapped(const u32 *words)
{
	return !words[0] && !words[1] && words[2] == bpf_htonl(0xffff);
}

/* An end's address in struct place.  The verifier takes no pointer into a context. */
#define KNOWN_AS(words, family, ip4, ip6)                                                \
	do {                                                                             \
		u32 w0 = (ip6)[0], w1 = (ip6)[1], w2 = (ip6)[2], w3 = (ip6)[3];          \
		u32 four = (ip4), is_four = (family) == AF_INET;                         \
		asm volatile("" : "+r"(w0), "+r"(w1), "+r"(w2), "+r"(w3), "+r"(four));   \
		(words)[0] = is_four ? 0 : w0;                                           \
		(words)[1] = is_four ? 0 : w1;                                           \
		(words)[2] = is_four ? bpf_htonl(0xffff) : w2;                           \
		(words)[3] = is_four ? four : w3;                                        \
	} while (0)

static __always_inline bool is_proxy(struct bpf_sock_addr *ctx, struct sidecar *sidecar)
{
	return (sidecar->by_uid &&
		(u32)bpf_get_current_uid_gid() == number(sidecar->uid)) ||
	       (sidecar->by_mark && ctx->sk && ctx->sk->mark == number(sidecar->mark));
}

/* The proxy's port in network byte order; 0: this connection goes where it wants. */
static __always_inline u32 divert(struct bpf_sock_addr *ctx, struct place *to)
{
	struct sidecar *sidecar = array_value(&fuse_sidecar);
	struct place *original;

	if (!sidecar || !ctx->sk || ctx->type != SOCK_STREAM ||
	    ctx->protocol != IPPROTO_TCP)
		return 0;
	bpf_sk_storage_delete(&fuse_originals, ctx->sk); /* of an earlier connect() */
	if (!switched_on() || is_loopback6(to->words) || is_proxy(ctx, sidecar))
		return 0;
	original = bpf_sk_storage_get(&fuse_originals, ctx->sk, to,
				      BPF_SK_STORAGE_GET_F_CREATE);
	return original ? bpf_htons(sidecar->port[0] | sidecar->port[1] << 8) : 0;
}

SEC("cgroup/connect4")
int sidecar_connect4(struct bpf_sock_addr *ctx)
{
	struct place to = {
		.words = { 0, 0, bpf_htonl(0xffff), ctx->user_ip4 },
		.port = ctx->user_port,
	};
	u32 port = divert(ctx, &to);

	if (port) {
		ctx->user_ip4 = bpf_htonl(0x7f000001);
		ctx->user_port = port;
	}
	return 1;
}

SEC("cgroup/connect6")
int sidecar_connect6(struct bpf_sock_addr *ctx)
{
	struct place to = {
		.words = { ctx->user_ip6[0], ctx->user_ip6[1], ctx->user_ip6[2],
			   ctx->user_ip6[3] },
		.port = ctx->user_port,
	};
	u32 port = divert(ctx, &to);
	bool mapped = is_mapped(to.words);

	if (port) {
		ctx->user_ip6[0] = 0;
		ctx->user_ip6[1] = 0;
		ctx->user_ip6[2] = mapped ? bpf_htonl(0xffff) : 0;
		ctx->user_ip6[3] = bpf_htonl(mapped ? 0x7f000001 : 1);
		ctx->user_port = port;
	}
	return 1;
}

SEC("cgroup/getpeername4")
int sidecar_getpeername4(struct bpf_sock_addr *ctx)
{
	struct place *original =
		ctx->sk ? bpf_sk_storage_get(&fuse_originals, ctx->sk, NULL, 0) : NULL;

	if (original && switched_on()) {
		ctx->user_ip4 = original->words[3];
		ctx->user_port = original->port;
	}
	return 1;
}

SEC("cgroup/getpeername6")
int sidecar_getpeername6(struct bpf_sock_addr *ctx)
{
	struct place *original =
		ctx->sk ? bpf_sk_storage_get(&fuse_originals, ctx->sk, NULL, 0) : NULL;

	if (original && switched_on()) {
		ctx->user_ip6[0] = original->words[0];
		ctx->user_ip6[1] = original->words[1];
		ctx->user_ip6[2] = original->words[2];
		ctx->user_ip6[3] = original->words[3];
		ctx->user_port = original->port;
	}
	return 1;
}

/* Before the SYN: the source port is known now.  An old entry of it goes. */
SEC("sockops")
int sidecar_connects(struct bpf_sock_ops *skops)
{
	struct bpf_sock *sk = skops->sk;
	struct source source = {};
	struct place *original;

	if (skops->op != BPF_SOCK_OPS_TCP_CONNECT_CB || !sk || !switched_on())
		return 1;
	source.netns = bpf_get_netns_cookie(skops);
	source.from.port = skops->local_port;
	KNOWN_AS(source.from.words, skops->family, skops->local_ip4, skops->local_ip6);
	original = bpf_sk_storage_get(&fuse_originals, sk, NULL, 0);
	if (original)
		bpf_map_update_elem(&fuse_sources, &source, original, BPF_ANY);
	else
		bpf_map_delete_elem(&fuse_sources, &source);
	return 1;
}

/* Where the peer of the proxy's socket wanted to go; NULL if it came by itself. */
static __always_inline struct place *original_of(struct bpf_sockopt *ctx)
{
	struct bpf_sock *sk = ctx->sk;
	struct source source = {};

	if (!sk || sk->protocol != IPPROTO_TCP || !switched_on())
		return NULL;
	source.netns = bpf_get_netns_cookie(ctx);
	source.from.port = bpf_ntohs(sk->dst_port);
	KNOWN_AS(source.from.words, sk->family, sk->dst_ip4, sk->dst_ip6);
	return bpf_map_lookup_elem(&fuse_sources, &source);
}

/* What connection tracking answers elsewhere, in struct sockaddr_in or sockaddr_in6 */
SEC("cgroup/getsockopt")
int sidecar_original_dst(struct bpf_sockopt *ctx)
{
	bool four = ctx->level == SOL_IP;
	struct place *original;
	u32 *answer = ctx->optval;

	if (ctx->optlen > PAGE_SIZE)
		ctx->optlen = 0; /* or the kernel would answer EFAULT for any option */
	if (ctx->optname != SO_ORIGINAL_DST || (!four && ctx->level != SOL_IPV6))
		return 1;
	original = original_of(ctx);
	if (!original || four != is_mapped(original->words))
		return 1;
	if ((void *)(answer + 4) > ctx->optval_end)
		return 1;
	if (four) {
		answer[0] = 0;
		answer[1] = original->words[3];
		answer[2] = 0;
		answer[3] = 0;
		ctx->optlen = 16;
	} else {
		if ((void *)(answer + 7) > ctx->optval_end)
			return 1;
		answer[0] = 0;
		answer[1] = 0; /* flow */
		answer[2] = original->words[0];
		answer[3] = original->words[1];
		answer[4] = original->words[2];
		answer[5] = original->words[3];
		answer[6] = 0; /* scope */
		ctx->optlen = 28;
	}
	*(u16 *)answer = four ? AF_INET : AF_INET6;
	*((u16 *)answer + 1) = original->port;
	ctx->retval = 0;
	return 1;
}
