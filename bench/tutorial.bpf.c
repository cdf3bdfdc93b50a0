// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/*
 * What tutorials about sockops and sk_msg build, for make compare: both ends of a
 * connection from 127.0.0.1 to itself enter a sockhash, by their addresses and ports.
 * Each message is redirected to the other end, and what the redirect answers is the
 * verdict.  Nothing falls back, and nothing bounds what waits.  It prints no line for a
 * connection, since sockfuse prints none by default.
 */
#include <linux/bpf.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#define LOOPBACK bpf_htonl(0x7f000001)

char LICENSE[] SEC("license") = "Dual BSD/GPL";

/* One end, as it sees the connection; ports: network byte order */
struct end {
	__u32 local, remote;
	__u32 local_port, remote_port;
	__u32 family;
};

struct {
	__uint(type, BPF_MAP_TYPE_SOCKHASH);
	__uint(max_entries, 65535);
	__type(key, struct end);
	__type(value, __u64); /* bpftool dumps the socket cookies */
} tutorial SEC(".maps");

SEC("sockops")
int enters(struct bpf_sock_ops *skops)
{
	struct end own = {
		.local = skops->local_ip4,
		.remote = skops->remote_ip4,
		.local_port = bpf_htonl(skops->local_port),
		.remote_port = skops->remote_port,
		.family = skops->family,
	};

	if (skops->op != BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB &&
	    skops->op != BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB)
		return 1;
	if (own.local == LOOPBACK && own.remote == LOOPBACK)
		bpf_sock_hash_update(skops, &tutorial, &own, BPF_NOEXIST);
	return 1;
}

SEC("sk_msg")
int redirects(struct sk_msg_md *msg)
{
	struct end other = {
		.local = msg->remote_ip4,
		.remote = msg->local_ip4,
		.local_port = msg->remote_port,
		.remote_port = bpf_htonl(msg->local_port),
		.family = msg->family,
	};

	if (other.local != LOOPBACK || other.remote != LOOPBACK)
		return SK_PASS;
	return bpf_msg_redirect_hash(msg, &tutorial, &other, BPF_F_INGRESS);
}
