// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/*
 * Marks the TCP sockets that programs which may splice have already when sockfuse is
 * loaded, and their services, as mark_splicer() does with later ones.  A BPF iterator: a
 * read of its pin runs this once for each open file of each process.
 *
 * Where the guard makes splice answer EINVAL, a Go program reads instead, but only if it
 * has not spliced from that connection before.  So its established ones are marked there,
 * too: --adopt leaves them on TCP.
 */
#define PINNING LIBBPF_PIN_BY_NAME
#include "enter.h"

#define TCP_LISTEN 10

static __always_inline bool is_tcp(struct sock *sk)
{
	u16 family = READ(sk, __sk_common.skc_family);

	return (family == AF_INET || family == AF_INET6) &&
	       READ(sk, sk_protocol) == IPPROTO_TCP;
}

static __always_inline void note_service(struct sock *sk)
{
	struct service service = service_here(sk);

	if (READ_BITFIELD(sk, __sk_common.skc_state) == TCP_LISTEN)
		note_reason(&service, REASON_MAY_SPLICE);
}

/*
 * Before 5.11 a socket cannot be marked from here, and a record of fuse_services may be
 * pushed out.  So its port is left out, in every network namespace.
 */
static __always_inline void leave_port_out(struct file *file)
{
	struct inode *inode = READ(file, f_inode);
	struct socket *socket = READ(file, private_data);
	u8 value = PORT_MAY_SPLICE, *listed;
	struct sock *sk;
	u16 port;

	if ((READ(inode, i_mode) & S_IFMT) != S_IFSOCK)
		return;
	sk = READ(socket, sk);
	if (!is_tcp(sk) || READ_BITFIELD(sk, __sk_common.skc_state) != TCP_LISTEN)
		return;
	note_service(sk);
	port = READ(sk, __sk_common.skc_num);
	listed = bpf_map_lookup_elem(&fuse_ports, &port);
	if (!listed || *listed) /* not what --exclude-port names: status.sh shows that */
		bpf_map_update_elem(&fuse_ports, &port, &value, BPF_ANY);
}

SEC("iter/task_file")
int bpf_splicers(struct bpf_iter__task_file *ctx)
{
	struct task_struct *task = ctx->task;
	struct file *file = ctx->file;
	struct socket *socket;
	bool stays_out;

	if (!task || !file)
		return 0;
	stays_out = may_splice(task);
	if (!stays_out && !is_go(task))
		return 0;
	if (!bpf_core_enum_value_exists(enum bpf_func_id, BPF_FUNC_sock_from_file)) {
		if (stays_out)
			leave_port_out(file);
		return 0;
	}
	socket = bpf_sock_from_file(file);
	if (!socket || !is_tcp(socket->sk))
		return 0;
	if (!stays_out &&
	    READ_BITFIELD(socket->sk, __sk_common.skc_state) != TCP_ESTABLISHED)
		return 0;
	bpf_sk_storage_get(&fuse_splicers, socket->sk, NULL, BPF_SK_STORAGE_GET_F_CREATE);
	if (stays_out)
		note_service(socket->sk);
	return 0;
}
