/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * The rules of bpf_redirect.bpf.c that ask a socket as it is now: first the writer's,
 * whose lock is held, then the reader's, where each answer may be stale at once.
 */
#pragma once

#include "maps.h"

#define TCP_CLOSE_WAIT 8
#define SENDFILE_BYTES 32768 /* from here on a copy costs more than fusing spares */
#define NS_PER_US 1000
#define US_PER_S 1000000ULL

/* Only in these states does plain TCP take bytes from send(). */
static __always_inline bool can_send(struct tcp_sock *own)
{
	u8 state = sk_of(own)->__sk_common.skc_state;

	return state == TCP_ESTABLISHED || state == TCP_CLOSE_WAIT;
}

static __always_inline bool has_flag(unsigned long flags, u64 bit)
{
	return flags >> bit & 1;
}

/* Big endian, for the script that writes it. */
struct capture {
	u32 until; /* seconds of CLOCK_BOOTTIME, as in /proc/uptime; 0: nothing */
	u16 port;  /* of either end; 0: any */
	u16 unused;
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, u32);
	__type(value, struct capture);
} fuse_capture SEC(".maps");

/*
 * trace_lo_traffic.sh --all sees what goes by TCP.  Twice a second it sets until five
 * seconds ahead.  If it is killed, messages are fused again 5 to 6 s later.
 */
static __always_inline bool captured(struct tcp_sock *own)
{
	struct sock_common *common = &sk_of(own)->__sk_common;
	struct capture *capture = array_value(&fuse_capture);
	u16 port;

	if (!capture || !capture->until ||
	    bpf_ktime_get_boot_ns() / NS_PER_S > bpf_ntohl(capture->until))
		return false;
	port = capture->port;
	return !port || port == common->skc_dport || port == bpf_htons(common->skc_num);
}

/* The writer waits in its error queue for what only TCP sends there. */
static __always_inline bool writer_wants_tcp(struct tcp_sock *own)
{
	struct sock *sk = sk_of(own);
	u64 zerocopy = bpf_core_enum_value(enum sock_flags, SOCK_ZEROCOPY);

	return has_flag(sk->__sk_common.skc_flags, zerocopy) || sk->sk_tsflags;
}

/*
 * NAT and connection tracking forget a flow of which they see nothing for a time; it
 * could then neither fall back nor be closed.  tcp_mstamp: the last segment.
 */
static __always_inline bool state_is_old(struct settings *set, struct tcp_sock *own)
{
	return set->refresh && !both_ends_loopback(own) &&
	       bpf_ktime_get_ns() / NS_PER_US - own->tcp_mstamp > set->refresh * US_PER_S;
}

/* The reader has set an option that tcp_bpf_recvmsg() does not serve. */
static __always_inline bool reader_wants_tcp(struct tcp_sock *peer)
{
	struct sock *sk = sk_of(peer);
	unsigned long flags = READ(sk, __sk_common.skc_flags);
	u64 timestamp = bpf_core_enum_value(enum sock_flags, SOCK_RCVTSTAMP);
	u64 urgent = bpf_core_enum_value(enum sock_flags, SOCK_URGINLINE);

	return has_flag(flags, timestamp) || has_flag(flags, urgent) ||
	       READ(sk, sk_rcvlowat) > 1 || READ(sk, sk_peek_off) >= 0 ||
	       READ_BITFIELD(sk, sk_tsflags) || READ_BITFIELD(peer, recvmsg_inq);
}

static __always_inline bool reader_guarded(struct settings *set, struct tcp_sock *peer)
{
	return set->marks && (marks_of(peer) & MARK_READER || reader_unseen(set, peer));
}

/*
 * TCP_ZEROCOPY_RECEIVE, which needs the socket mapped (tcp_mmap), takes from TCP's queue
 * alone.  It must not overtake fused bytes, so while some wait this rule does not send
 * TCP bytes behind them.
 */
static __always_inline bool reader_maps(struct tcp_sock *peer)
{
	struct socket_alloc *alloc = (void *)READ(sk_of(peer), sk_socket);

	return READ(alloc, vfs_inode.i_data.i_mmap.rb_root.rb_node) &&
	       no_fused_bytes(psock_of(peer));
}

/*
 * sendfile(2): the file's pages are in the task's own pipe until they are sent.  TCP
 * sends them as they are, a socket in a map copies them (tcp_bpf_sendmsg).
 */
static __always_inline bool much_of_a_file(u32 size)
{
	struct task_struct *task = (void *)bpf_get_current_task();
	struct pipe_inode_info *pipe;

	if (size < SENDFILE_BYTES)
		return false;
	pipe = READ(task, splice_pipe);
	return pipe && READ_BITFIELD(pipe, head) != READ_BITFIELD(pipe, tail);
}

/*
 * Covers the start race, a miss, and the way back from a fallback.  Stale: copied_seq
 * only advances, up to write_seq, which our lock holds still.
 */
static __always_inline bool tcp_bytes_unread(struct tcp_sock *own, struct tcp_sock *peer)
{
	return READ(peer, copied_seq) != own->write_seq;
}
