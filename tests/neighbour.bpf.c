// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/* Somebody else's programs that want something of the same sockets. */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

char LICENSE[] SEC("license") = "Dual BSD/GPL";

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u64);
} segments SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_SOCKHASH);
	__uint(max_entries, 1000);
	__type(key, __u64);
	__type(value, __u64);
} sockets SEC(".maps");

/* Counts the segments of every connection. */
SEC("sockops")
int counts(struct bpf_sock_ops *skops)
{
	__u32 zero = 0;
	__u64 *so_far;

	switch (skops->op) {
	case BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB:
	case BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB:
		bpf_sock_ops_cb_flags_set(skops,
					  skops->bpf_sock_ops_cb_flags |
						  BPF_SOCK_OPS_WRITE_HDR_OPT_CB_FLAG);
		break;
	case BPF_SOCK_OPS_HDR_OPT_LEN_CB:
		so_far = bpf_map_lookup_elem(&segments, &zero);
		if (so_far)
			__sync_fetch_and_add(so_far, 1);
	}
	return 1;
}

/* Takes every socket into its map; whose verdict program, if it has one, is to see all.
 */
SEC("sockops")
int takes(struct bpf_sock_ops *skops)
{
	__u64 cookie = bpf_get_socket_cookie(skops);

	if (skops->op == BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB ||
	    skops->op == BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB)
		bpf_sock_hash_update(skops, &sockets, &cookie, BPF_ANY);
	return 1;
}

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u64);
} seen SEC(".maps"); /* bytes */

SEC("sk_skb/stream_verdict")
int reads(struct __sk_buff *skb)
{
	__u32 zero = 0;
	__u64 *bytes = bpf_map_lookup_elem(&seen, &zero);

	if (bytes)
		__sync_fetch_and_add(bytes, skb->len);
	return SK_PASS;
}
