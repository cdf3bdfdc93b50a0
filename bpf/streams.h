/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * Streams go to TCP, and dialogues stay fused, for bpf_redirect.bpf.c.  A stream of small
 * writes is TCP's, and so are files; and TCP is faster for a socket in no map (by 2 to 4
 * times at 64 bytes).  Once either has lasted, both ends leave: from now on nothing is
 * fused behind what the reader has taken, so that the direction can be sealed (leave.h).
 */
#pragma once

#include "backlog.h"

#define LEAVE_MESSAGES 16384 /* small ones that were streamed */
#define LEAVE_SENDFILE 64    /* messages of SENDFILE_BYTES of a file */
#define LEAVE_BLOCKED 1024   /* messages in a row whose reader was blocked */
#define SAMPLE 256	     /* small messages that are judged together */
#define PAUSE_NS 16000	     /* for each of them; a stream takes less */

/*
 * Which end of a connection was the last to send bulk, or a SAMPLE of small messages:
 * the address of its tcp_sock, by the lower of the two addresses.  One entry for both, so
 * that what an earlier connection left at these addresses is put right by the first
 * answer.  Steers only; a connection whose entry was evicted counts as a dialogue.
 */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 1024); /* connections */
	__type(key, u64);
	__type(value, u64);
} fuse_streams SEC(".maps");

/* The last time that either end was asked, it was this one. */
static __always_inline bool streams(struct tcp_sock *own, struct tcp_sock *peer)
{
	u64 self = (u64)own, other = (u64)peer;
	u64 key = self < other ? self : other;
	u64 *last = bpf_map_lookup_elem(&fuse_streams, &key);

	if (!last) {
		bpf_map_update_elem(&fuse_streams, &key, &self, BPF_ANY);
		return false;
	}
	if (*last == self)
		return true;
	*last = self;
	return false;
}

static __always_inline void count_streamed(struct direction *direction, u32 more)
{
	direction->streamed += more;
	if (direction->streamed >= LEAVE_MESSAGES && direction->peer)
		direction->leaving = 1;
}

static __always_inline void count_by_tcp(struct direction *direction, u32 size,
					 u32 outcome)
{
	if (outcome == OUTCOME(tcp_sendfile))
		count_streamed(direction, LEAVE_MESSAGES / LEAVE_SENDFILE);
	else if (outcome == OUTCOME(tcp_blocked_reader) &&
		 ++direction->blocked >= LEAVE_BLOCKED)
		count_streamed(direction, LEAVE_MESSAGES);
	else if (size < BULK_BYTES && (outcome == OUTCOME(tcp_in_flight) ||
				       outcome == OUTCOME(tcp_backlog_number)))
		count_streamed(direction, 1);
}

/*
 * A reader that keeps pace has every message of a stream fused.  So each SAMPLE of small
 * ones is judged: it counts as streamed if no answer came in between and no pause.  Else
 * two that were are taken back.
 */
static __always_inline void count_fused(struct direction *direction, struct tcp_sock *own,
					struct tcp_sock *peer)
{
	u64 now, since = direction->sampled;

	if (++direction->small % SAMPLE)
		return;
	now = direction->sampled = bpf_ktime_get_ns();
	if (streams(own, peer) && now - since < SAMPLE * PAUSE_NS)
		count_streamed(direction, SAMPLE);
	else
		direction->streamed -= direction->streamed < 2 * SAMPLE
					       ? direction->streamed
					       : 2 * SAMPLE;
}
