/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * Both ends of a loopback connection enter the map, or none does, for bpf_contrack.bpf.c.
 * The end that connects decides, and leaves word of it; the end that accepts does the
 * same.  Alone in the map that one could not do what TCP's own can (TCP_ULP, say), and
 * FIONREAD would count none of the bytes that it reads, by which nginx takes a large
 * request for read.
 *
 * The order: word is left in ACTIVE_ESTABLISHED, before the acknowledgement is sent by
 * which the other end is established.  What brings the packet there (a queue with a lock)
 * brings the word.  It is one number of 64 bits: its reader finds all of it or none.
 *
 * No word, no entry: who connected is in no cgroup of the load, was connected before it,
 * or by Fast Open; or another connection that was made meanwhile has the place.  (Many
 * are where the other end is established late: TCP_DEFER_ACCEPT, a full accept queue.)
 * The end that connected is then alone, and leaves (is_alone()).
 */
#pragma once

#include "maps.h"

#define DIALLERS 65536 /* a connection that is made takes one of so many words */
#define WORD_BITS 0xffULL

/* as_connected() but for WORD_BITS; those are its outcome, and 0 if it has entered. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, DIALLERS);
	__type(key, u32);
	__type(value, u64);
} fuse_diallers SEC(".maps");

static __always_inline u64 *word_at(u64 id)
{
	u32 place = (u32)(id ^ id >> 32) % DIALLERS;

	return bpf_map_lookup_elem(&fuse_diallers, &place);
}

/* Of an end that connected */
static __always_inline void leave_word(struct tcp_sock *tp, u32 outcome)
{
	u64 id = isns_as_one(tp), *word = word_at(id);

	if (word)
		*(volatile u64 *)word = (id & ~WORD_BITS) | outcome;
}

/* Of an end that accepted: the counter that tells why it stays out, 0 if it may enter. */
static __always_inline u32 follow_word(struct tcp_sock *tp)
{
	u64 id = as_connected(isns_as_one(tp)), *place = word_at(id), word;

	if (!place)
		return OUTCOME(ends_refused);
	word = *(volatile u64 *)place;
	return (word ^ id) & ~WORD_BITS ? OUTCOME(ends_remote) : word & WORD_BITS;
}
