/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * The maps that all programs share, and what their values mean.  The scripts know these
 * names and layouts; the rules of CONTRIBUTING.md say what a change of them breaks.
 */
#pragma once

#include "counters.h"
#include "pair_key.h"

char LICENSE[] SEC("license") = "Dual BSD/GPL"; /* of each object */

struct {
	__uint(type, BPF_MAP_TYPE_SOCKHASH);
	__uint(max_entries, 65536); /* load.sh --max-connections */
	__type(key, struct pair_key);
	__type(value, u64); /* bpftool dumps the socket cookies */
} sock_ops_map SEC(".maps");

/* Written by the scripts; bytes, so that no script needs the byte order. */
struct settings {
	u8 fuse;  /* 0: every message goes by TCP, no socket enters the map */
	u8 trace; /* 1: a line in the trace pipe for each end of a connection */
	u8 marks; /* MARKS_...: look at fuse_marks; bpf_guard.bpf.c, load.sh --careful */
	u8 careful;  /* 1: fuse only for readers that have been seen to read plainly */
	u8 account;  /* 1: bytes and age of each connection, struct direction */
	u8 nets;     /* 1: fuse_nets holds networks; nets.h */
	u8 listed;   /* 1: only services whose ports are in fuse_ports; enter.h */
	u8 refresh;  /* seconds after which a message goes by TCP again; 0: no --net */
	u8 sealed;   /* 1: fuse_sealed is to be looked at; leave.h */
	u8 splicers; /* not 0: who may splice stays out, splicers.h; 2: no guard */
};

struct {
	__uint(pinning, PINNING);
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, u32);
	__type(value, struct settings);
} fuse_settings SEC(".maps");

#define MARK_READER 1 /* reads as only TCP can: what it receives goes by TCP */
#define MARK_WRITER 2 /* writes as only TCP can */
#define MARK_PLAIN 4  /* has read as either path serves; --careful only */
/* Of struct settings; 0: there are none */
#define MARKS_KEPT 1
#define MARKS_LOST 2 /* there was no room: a socket without marks may have had them */

struct marks {
	u64 seen; /* MARK_... */
};

/*
 * What bpf_guard.bpf.c has seen the application do on a socket, by its cookie.  Marks go
 * when their socket leaves the map or closes.  load.sh makes room for twice as many
 * sockets as sock_ops_map has, since those of an earlier load have marks here, too.  So
 * nobody can fill it who cannot fill sock_ops_map.
 */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 65536);
	__type(key, u64);
	__type(value, struct marks);
} fuse_marks SEC(".maps");

/*
 * Ends, by their keys in sock_ops_map, whose peer has sealed its direction: it sends by
 * TCP alone from now on, and none of its fused messages is under way (leave.h).  Such an
 * end may leave the map.  One whose entry is evicted stays, which costs speed alone.
 */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 8192); /* ends */
	__type(key, struct pair_key);
	__type(value, u8);
} fuse_sealed SEC(".maps");

/*
 * What a direction keeps, by its sender's socket.  Without load.sh --account it has one
 * of these only once it has sent bytes by TCP or BULK_BYTES at a time, its reader did not
 * keep up, or it is to leave the map: dialogues that never fall back pay for none.
 */
#define SEEN (1ULL << 32)

struct direction {
	struct tcp_sock *peer; /* spares redirects that would be undone; steers only */
	u64 returned;	   /* SEEN | write_seq when no reader was inside tcp_recvmsg() */
	u32 waiting;	   /* no more messages than these wait, edge_reader_full() */
	u16 stream;	   /* so many small messages go by TCP once nothing waits */
	u32 blocked;	   /* messages in a row, reader_blocked() */
	u64 futile;	   /* ktime until which no message waits in place */
	u8 seam;	   /* has sent by TCP to an edge-triggered reader, seam.h */
	u8 adopted;	   /* nothing has gone by TCP since both ends are in the map */
	u8 leaving;	   /* is to leave the map: goes by TCP once nothing fused waits */
	u8 quiet;	   /* none of its messages is under way, quiet() in leave.h */
	u8 alone;	   /* its peer has not entered the map and never will */
	u8 paired;	   /* its peer was seen in the map */
	u8 sealed;	   /* goes by TCP for good; its reader was told so, fuse_sealed */
	u8 shared;	   /* another sockops program wants HDR_OPT_LEN_CB, too */
	int disconnects;   /* sk_disconnects when the socket entered the map */
	u64 probing_since; /* ktime, mend_as_reader(); 0: it does not */
	int keepalive;	   /* these as the application had set them */
	int keepidle;
	int keepintvl;
	int keepcnt;
	u32 outcome;	 /* of the last message, OUTCOME() */
	u64 since;	 /* ktime at which it was established; 0: not accounted */
	u64 fused_bytes; /* since it has this storage */
};

struct {
	__uint(pinning, PINNING);
	__uint(type, BPF_MAP_TYPE_SK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, int);
	__type(value, struct direction);
} fuse_directions SEC(".maps");

/* sk: of any type that bpf_sk_storage_get() takes */
static __always_inline struct direction *direction_of(void *sk)
{
	return bpf_sk_storage_get(&fuse_directions, sk, NULL,
				  BPF_SK_STORAGE_GET_F_CREATE);
}

/*
 * Is this end still in sock_ops_map?  It leaves under its own lock alone, so whoever
 * holds that may rely on the answer.
 */
static __always_inline bool in_map(struct tcp_sock *own)
{
	struct sk_psock *psock = psock_of(own);

	return psock && (u64)READ(link_of(psock), map) == (u64)&sock_ops_map;
}

/* What bpf_guard.bpf.c has seen of this socket; 0 where nobody looks. */
static __always_inline u64 marks_of(struct tcp_sock *tp)
{
	u64 cookie = READ(sk_of(tp), __sk_common.skc_cookie.counter);
	struct marks *marks = bpf_map_lookup_elem(&fuse_marks, &cookie);
	struct settings *set = array_value(&fuse_settings);

	if (marks)
		return marks->seen;
	return set && set->marks == MARKS_LOST ? MARK_READER | MARK_WRITER : 0;
}

/* bpf_guard.bpf.c does so when a socket in the map closes; this one is out of it. */
static __always_inline void forget_marks(struct tcp_sock *tp)
{
	u64 cookie = READ(sk_of(tp), __sk_common.skc_cookie.counter);

	bpf_map_delete_elem(&fuse_marks, &cookie);
}

/* --careful: nothing is fused to a reader before it has been seen to read plainly. */
static __always_inline bool reader_unseen(struct settings *set, struct tcp_sock *peer)
{
	return set->careful && !(marks_of(peer) & MARK_PLAIN);
}

/* Nor does anything wait that an earlier load has fused to it, without --careful. */
static __always_inline bool nothing_fused(struct settings *set, struct tcp_sock *tp)
{
	return reader_unseen(set, tp) && no_fused_bytes(psock_of(tp));
}
