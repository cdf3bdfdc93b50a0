/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * One counter for each outcome of a message or of a connection, so that status.sh can say
 * how often each rule decided.
 */
#pragma once

#include "kernel.h"

/* bpftool cannot lend maps to an iterator: libbpf finds them by their names. */
#ifndef PINNING
#define PINNING LIBBPF_PIN_NONE
#endif

/* In messages or connections, unless the name says bytes */
struct counters {
	u64 fused_messages;
	u64 fused_bytes;
	u64 tcp_switched_off;
	u64 tcp_socket_state;  /* closing, repair mode, upper-layer protocol, shared */
	u64 tcp_socket_option; /* a reader or writer asked for what only TCP has */
	u64 tcp_guarded;  /* the guard saw such a call; --careful: or saw no read yet */
	u64 tcp_sendfile; /* SENDFILE_BYTES of a file, which TCP sends without a copy */
	u64 tcp_peer_unknown;	/* the other end is not in the map */
	u64 tcp_captured;	/* trace_lo_traffic.sh --all */
	u64 tcp_refresh;	/* no segment for long: NAT would forget the connection */
	u64 tcp_in_flight;	/* TCP bytes the peer has not read yet */
	u64 tcp_backlog_bytes;	/* enough bytes wait for the peer's reader */
	u64 tcp_backlog_number; /* enough messages wait for the peer's reader */
	u64 tcp_edge_triggered; /* the peer's reader is, and may get no more fused */
	u64 tcp_memory;		/* the kernel might refuse to charge the peer */
	u64 tcp_blocked_reader; /* the peer's reader may sit inside tcp_recvmsg */
	u64 ends_tracked;	/* sockets that entered the map */
	u64 ends_left_out;	/* kernel socket, repair mode, upper-layer protocol */
	u64 ends_excluded;	/* load.sh --port, --exclude-port */
	u64 ends_remote;	/* the other end is none that is known here */
	u64 ends_guarded;	/* their service does what only TCP serves, services.h */
	u64 ends_may_splice;	/* they or their peers may, splicers.h */
	u64 ends_no_gain;	/* their service gains nothing */
	u64 ends_map_full;
	u64 ends_refused; /* in another map already, or the kernel did not take it */
	u64 ends_unfused; /* left the map while they lived, leave() */
};

struct {
	__uint(pinning, PINNING);
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, u32);
	__type(value, struct counters);
} fuse_counters SEC(".maps");

static __always_inline void *array_value(void *map)
{
	u32 zero = 0;

	return bpf_map_lookup_elem(map, &zero);
}

/* Atomic although per CPU: the programs can be preempted between load and store. */
#define COUNT(counter)                                                                   \
	do {                                                                             \
		struct counters *c = array_value(&fuse_counters);                        \
		if (c)                                                                   \
			__sync_fetch_and_add(&c->counter, 1);                            \
	} while (0)

/* An outcome is the place of its counter; a rule answers with that. */
#define OUTCOME(counter) (offsetof(struct counters, counter) / sizeof(u64))
#define FUSED OUTCOME(fused_messages) /* 0 */

static __always_inline void count(u32 outcome)
{
	struct counters *c = array_value(&fuse_counters);

	/* Or the check is of a copy, and not of what is added. */
	asm volatile("" : "+r"(outcome));
	if (c && outcome < sizeof(*c) / sizeof(u64))
		__sync_fetch_and_add((u64 *)c + outcome, 1);
}
