/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * Which sockets may enter sock_ops_map: one answer for the two programs that put them
 * there, bpf_contrack.bpf.c when the handshake ends, and bpf_adopt.bpf.c later.
 */
#pragma once

#include "splicers.h"

/* What bpf_contrack.bpf.c is called for on a socket in the map. */
#define CALLBACKS (BPF_SOCK_OPS_STATE_CB_FLAG | BPF_SOCK_OPS_WRITE_HDR_OPT_CB_FLAG)

#define PORT_MAY_SPLICE 3 /* bpf_splicers.bpf.c */

/* 1: load.sh --port; 0: --exclude-port; 2: left out unless it is listed */
struct {
	__uint(pinning, PINNING);
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 65536); /* ports of services */
	__type(key, u16);
	__type(value, u8);
} fuse_ports SEC(".maps");

/* How often the socket has been disconnected, 0 where the kernel does not count. */
static __always_inline int disconnects_of(struct tcp_sock *tp)
{
	return bpf_core_field_exists(struct sock, sk_disconnects)
		       ? sk_of(tp)->sk_disconnects
		       : 0;
}

/* Where the kernel's own users of a socket put a function of theirs. */
extern const void sock_def_readable __ksym __weak;

/*
 * Somebody in the kernel reads what comes (NVMe/TCP, iSCSI, NFS, nbd): by read_sock,
 * which never sees fused bytes, or by a recvmsg that takes EAGAIN for an error.  Of a
 * socket that a program has made and hands to the kernel later, the port of its service
 * tells: load.sh excludes those by default.
 */
static __always_inline bool is_kernels(struct tcp_sock *tp)
{
	struct sock *sk = sk_of(tp);

	return BPF_CORE_READ_BITFIELD(sk, sk_kern_sock) || kernel_reads(tp) ||
	       (&sock_def_readable &&
		(const void *)sk->sk_data_ready != &sock_def_readable);
}

/* The counter that tells why connections to this port stay out, 0 if they may enter. */
static __always_inline u32 excluded(struct settings *set, struct service *service)
{
	u16 port = service->port;
	u8 *listed = bpf_map_lookup_elem(&fuse_ports, &port);

	if (listed && *listed == PORT_MAY_SPLICE)
		return OUTCOME(ends_may_splice);
	return (listed ? *listed != 1 : set->listed) ? OUTCOME(ends_excluded) : 0;
}

/* The counter that tells why a socket of this service may not enter, 0 if it may. */
static __always_inline u32 kept_out(struct tcp_sock *tp, struct service *service,
				    bool gain)
{
	u32 outcome = left_on_tcp(*service, gain);

	if (outcome)
		return outcome;
	if (is_kernels(tp) || not_plain_tcp(tp))
		return OUTCOME(ends_left_out);
	return psock_of(tp) ? OUTCOME(ends_refused) : 0; /* in a map already */
}

/* op: that of the sockops program when such an end is established */
static __always_inline void trace_end(struct tcp_sock *tp, bool connected)
{
	u32 op = connected ? BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB
			   : BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB;
	struct sock_common *common = &sk_of(tp)->__sk_common;
	u32 lport = common->skc_num, rport = bpf_ntohs(common->skc_dport);
	u32 local[4], remote[4];

	if (!bpf_core_enum_value_exists(enum bpf_func_id, BPF_FUNC_trace_vprintk)) {
		/* before 5.16 no more than three values, and no addresses */
		bpf_printk("sockfuse: op = %d, port %d --> port %d", op, lport, rport);
		return;
	}
	if (common->skc_family == AF_INET) {
		local[3] = common->skc_rcv_saddr;
		remote[3] = common->skc_daddr;
		bpf_printk("sockfuse: ipv4 op = %d, %pI4 port %d --> %pI4 port %d", op,
			   &local[3], lport, &remote[3], rport);
		return;
	}
	bpf_probe_read_kernel(local, sizeof(local), &common->skc_v6_rcv_saddr);
	bpf_probe_read_kernel(remote, sizeof(remote), &common->skc_v6_daddr);
	if (local[2])
		bpf_printk(
			"sockfuse: ipv4 in ipv6 op = %d, %pI4 port %d --> %pI4 port %d",
			op, &local[3], lport, &remote[3], rport);
	else
		bpf_printk("sockfuse: ipv6 op = %d, %pI6 port %d --> %pI6 port %d", op,
			   local, lport, remote, rport);
}
