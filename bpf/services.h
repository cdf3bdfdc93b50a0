/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * Services teach, for bpf_contrack.bpf.c and bpf_redirect.bpf.c: one whose connections
 * gain nothing is left on TCP, and is tried again from time to time.  How a connection
 * goes is in flows.h.
 *
 * The rule.  IN_VAIN connections in a row gained nothing, and came one upon the other:
 * the next ones are plain TCP.  Each TRY_EVERY-th of these is fused all the same, and so
 * is one that comes after a pause.  The first that gains brings the service back.
 *
 * A service is what one user connects to, so his connections teach of his own next ones.
 * Nobody else's are concerned, whatever he does and however long.
 */
#pragma once

#include "maps.h"

#define IN_VAIN 16 /* connections; a mixed service has fewer in a row by chance */
/* ns between two connections; to enter the map costs each some 3 us, nothing to that */
#define DENSE_NS (NS_PER_S / 10)
#define TRY_EVERY 64	      /* connections; all of them pay a 64th of those 3 us */
#define TRY_AFTER_NS NS_PER_S /* without a connection; who comes then starts afresh */

/* How a connection went. */
enum ending {
	GAINED, /* it carried enough to pay for entering the map */
	SHORT,	/* it closed before */
	STREAM, /* it left the map, as small messages one way */
	FILES,	/* or as files */
	ENDINGS,
};

struct known {		    /* times: CLOCK_BOOTTIME, ns */
	u64 since;	    /* the path last changed, or it was first seen */
	u64 asked;	    /* its last connection */
	u32 in_vain;	    /* the last in a row that gained nothing, up to IN_VAIN */
	u32 left_out;	    /* connections since then that were not fused, or to try */
	u32 ended[ENDINGS]; /* connections, for status.sh */
};

/*
 * The numbers change without a lock, on several processors at a time, and a record may
 * have been given to another service meanwhile (an LRU map gives them out again).  What
 * is lost or counted there steers: each choice is right.  Who fills it pushes out what is
 * not used; that is learned anew.
 */
struct {
	__uint(pinning, PINNING);
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 16384); /* services */
	__type(key, struct service);
	__type(value, struct known);
} fuse_services SEC(".maps");

/*
 * A connection to the service is made: is it to be left on TCP?  Only the end that
 * connects asks.  The other one does as it does, so what changes in between parts no two
 * ends.
 */
static __always_inline bool gains_nothing(struct service *service)
{
	struct known *known = bpf_map_lookup_elem(&fuse_services, service);
	u64 now, pause;

	if (!known)
		return false;
	now = bpf_ktime_get_boot_ns();
	pause = now - known->asked;
	known->asked = now;
	if (known->in_vain < IN_VAIN) {
		if (known->in_vain && pause > DENSE_NS)
			known->in_vain = 0;
		return false;
	}
	return pause <= TRY_AFTER_NS && ++known->left_out % TRY_EVERY;
}

/* The record of a service, made if there was none; NULL: there is no memory. */
static __always_inline struct known *record_of(struct service *service)
{
	struct known *known = bpf_map_lookup_elem(&fuse_services, service), first = {};

	if (known)
		return known;
	first.since = first.asked = bpf_ktime_get_boot_ns();
	bpf_map_update_elem(&fuse_services, service, &first, BPF_NOEXIST);
	return bpf_map_lookup_elem(&fuse_services, service);
}

/*
 * service: on the stack.  The map hashes it and copies it later, and a key that changed
 * in between (as in another map) would stand where nobody finds it.
 */
static __noinline int note_ending(struct service *service, u32 how)
{
	struct known *known = record_of(service);
	u32 before, now;

	if (!known || how >= ENDINGS)
		return 0;
	__sync_fetch_and_add(&known->ended[how], 1);
	before = known->in_vain;
	now = how == GAINED ? 0 : before < IN_VAIN ? before + 1 : IN_VAIN;
	if (now == before)
		return 0;
	known->in_vain = now;
	if (before == IN_VAIN || now == IN_VAIN) {
		known->since = bpf_ktime_get_boot_ns();
		known->left_out = 0;
	}
	return 0;
}
