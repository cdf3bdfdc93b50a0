/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * How every program here reads the kernel, and changes nothing: numbers of its headers,
 * READ() for memory that may be stale, and what a socket tells about itself.  The psock
 * of a socket (struct sk_psock) is what the kernel keeps of it while it is in a map.
 */
#pragma once

#include "../vmlinux.h"
#include <bpf/bpf_core_read.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#define AF_INET 2
#define AF_INET6 10
#define TCP_ESTABLISHED 1
#define IPPROTO_TCP 6
#define SOL_TCP 6
#define SEND_SHUTDOWN 2
#define O_NONBLOCK 04000 /* of all but alpha, mips, parisc and sparc */
#define S_IFMT 0170000
#define S_IFSOCK 0140000
#define PF_IO_WORKER 0x10 /* linux/sched.h: a thread that works for io_uring */
#define PAGE_SIZE 4096
#define NS_PER_S 1000000000ULL

/*
 * READ(address, field): a field of a kernel structure whose address may be
 * stale; 0 if it cannot be read.  bpf_rdonly_cast() (6.2) makes it one load,
 * whose fault the kernel mends; before, bpf_probe_read_kernel() is called.
 */
#ifndef OLD_LOADER
extern void *bpf_rdonly_cast(const void *obj, u32 btf_id) __ksym __weak;
#else /* libbpf before 0.6 does not load what names a function of the kernel */
#define bpf_rdonly_cast(obj, btf_id) ((void *)(obj))
static void *const bpf_rdonly_cast = NULL;
#endif

#define CAST(address)                                                                    \
	((typeof(address))bpf_rdonly_cast(address,                                       \
					  bpf_core_type_id_kernel(typeof(*(address)))))

#define READ(address, field)                                                             \
	({                                                                               \
		typeof((address)->field) value;                                          \
		if (bpf_rdonly_cast)                                                     \
			value = CAST(address)->field;                                    \
		else                                                                     \
			bpf_core_read(&value, sizeof(value), &(address)->field);         \
		value;                                                                   \
	})

/* The same for a bitfield, or a field whose size differs between kernels. */
#define READ_BITFIELD(address, field)                                                    \
	(bpf_rdonly_cast ? BPF_CORE_READ_BITFIELD(CAST(address), field)                  \
			 : BPF_CORE_READ_BITFIELD_PROBED(address, field))

/* container_of(), relocated */
#define CONTAINER(pointer, type, field)                                                  \
	((void *)(pointer)-bpf_core_field_offset(type, field))

/* A pointer as a number: what a global function may be called with. */
static __always_inline u64 address_of(const void *pointer)
{
	u64 address = 0;

	bpf_probe_read_kernel(&address, sizeof(address), &pointer);
	return address;
}

/*
 * The address, once what was seen has been read.  x86 keeps loads in order anyway; arm64
 * keeps those whose address comes from the value of one before, as here.
 */
static __always_inline u64 after(u64 seen, u64 address)
{
	asm volatile("%0 &= 0\n\t%1 += %0" : "+r"(seen), "+r"(address));
	return address;
}

/* What bpf_skc_to_tcp_sock() returns can be read like memory of our own. */
static __always_inline struct sock *sk_of(struct tcp_sock *tp)
{
	return &tp->inet_conn.icsk_inet.sk;
}

/* Bits below the pointer in sk_user_data; a psock has the first and not the second. */
#define SK_USER_DATA_NOCOPY 1ULL
#define SK_USER_DATA_BPF 2ULL
#define SK_USER_DATA_BITS 7ULL

/*
 * NULL if the socket is in no map.  A reader inside the kernel (iSCSI, say) keeps a bare
 * pointer of its own there, over that to the psock if there was one.
 */
static __always_inline struct sk_psock *psock_of(struct tcp_sock *tp)
{
	u64 data = (u64)READ(sk_of(tp), sk_user_data);

	if ((data & (SK_USER_DATA_NOCOPY | SK_USER_DATA_BPF)) != SK_USER_DATA_NOCOPY)
		return NULL;
	return (void *)(data & ~SK_USER_DATA_BITS);
}

/* In no map, and nobody is inside its psock. */
static __always_inline bool is_out(struct tcp_sock *tp)
{
	return !psock_of(tp);
}

/* Has it called shutdown(SHUT_WR)? */
static __always_inline bool half_closed(struct tcp_sock *tp)
{
	return READ(sk_of(tp), sk_shutdown) & SEND_SHUTDOWN;
}

/* Nothing fused waits for the reader of this psock, which may be NULL. */
static __always_inline bool no_fused_bytes(struct sk_psock *psock)
{
	struct list_head *head = &psock->ingress_msg;

	return !psock || READ(head, next) == head;
}

/* The map's reference, and one of each call that is inside the socket's psock. */
static __always_inline u32 references(struct sk_psock *psock)
{
	return READ(psock, refcnt.refs.counter);
}

/*
 * What ties the psock to the first map that it is in.  That is sock_ops_map or no map of
 * ours at all: a socket that has a psock already does not enter (kept_out()), and maps
 * of others come behind.
 */
static __always_inline struct sk_psock_link *link_of(struct sk_psock *psock)
{
	return CONTAINER(READ(psock, link.next), struct sk_psock_link, list);
}

/* Another program has it in a map, too, and may want to see what comes, or send there. */
static __always_inline bool is_shared(struct tcp_sock *tp)
{
	struct sk_psock *psock = psock_of(tp);

	return READ(psock, link.next) != READ(psock, link.prev);
}

/* The kernel itself reads, and takes EAGAIN for an error (nbd, usbip). */
static __always_inline bool kernel_reads(struct tcp_sock *tp)
{
	return bpf_core_field_exists(struct sock, sk_use_task_frag) &&
	       !READ(sk_of(tp), sk_use_task_frag);
}

/*
 * Repair mode (tcp_repair in tcp(7)) chooses its own sequence numbers; an upper-layer
 * protocol (kTLS, an MPTCP subflow, SMC fallback) changes what the bytes mean.
 */
static __always_inline bool not_plain_tcp(struct tcp_sock *tp)
{
	return BPF_CORE_READ_BITFIELD(tp, repair) || tp->inet_conn.icsk_ulp_ops;
}

static __always_inline bool never_waits(struct tcp_sock *peer)
{
	struct socket *socket = READ(sk_of(peer), sk_socket);
	struct file *file = READ(socket, file);

	return READ(file, f_flags) & O_NONBLOCK;
}
