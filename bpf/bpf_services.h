/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * What is known of services.  One that does what differs fused is plain TCP from then
 * on.  One whose connections gain nothing is left on TCP from the next connection on,
 * and every TRY_EVERY-th of them is fused, to see whether that still holds.
 *
 * A service is what a user connects to, so what one user's connections teach concerns
 * his own next ones, and nobody else's; what the service itself does, ANYBODY's.
 */
#ifndef SOCKFUSE_BPF_SERVICES_H
#define SOCKFUSE_BPF_SERVICES_H

#include "bpf_sockmap.h"

#define ANYBODY (~0U) /* the kernel's own "no user" */
#define IN_VAIN 16    /* connections in a row that gained nothing */
#define LEFT_WEIGHT 8 /* one that left the map counts as so many */
#define TRY_EVERY 64
#define NS_PER_SECOND 1000000000ULL

struct service {
	u32 netns; /* inode number, as in /proc/PID/ns/net */
	u32 port;  /* that it listens on, host byte order */
	u32 user;  /* who connects, as the first user namespace numbers users; ANYBODY */
};

enum reason {
	REASON_SPLICE = 1,
	REASON_RECV_FLAGS,     /* MSG_WAITALL, MSG_TRUNC, MSG_OOB */
	REASON_SEND_FLAGS,     /* MSG_OOB */
	REASON_INTERRUPTED,    /* a blocking recv answered EAGAIN */
	REASON_ULP,	       /* TCP_ULP: kTLS */
	REASON_MAY_SPLICE,     /* bpf_splicers.h */
	REASON_SPLICED_BEFORE, /* the same of a service from before the load whose socket
				  could not be marked: this stays whoever listens there,
				  too */
};

/* How a connection went. */
enum ending {
	GAINED, /* it carried enough, bpf_flows.h */
	SHORT,	/* it closed before */
	STREAM, /* it left the map, as small messages one way */
	FILES,	/* or as files */
	ENDINGS,
};

struct known {
	u32 reason;   /* enum reason: it stays plain TCP; 0: it has done nothing */
	u32 since;    /* seconds of CLOCK_BOOTTIME when this or the next last changed */
	u32 in_vain;  /* the last in a row that gained nothing, up to IN_VAIN */
	u32 left_out; /* connections since then that were not fused, or to try */
	u32 ended[ENDINGS]; /* connections, for status.sh */
};

/*
 * Who fills it pushes out what is not used.  The numbers change without a lock, on
 * several processors at a time, and a record may have been given to another service
 * meanwhile (an LRU map gives them out again).  What is lost or counted there steers:
 * each choice is right.  A reason is written by its key.
 */
struct {
	__uint(pinning, PINNING);
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 16384);
	__type(key, struct service);
	__type(value, struct known);
} fuse_services SEC(".maps");

/*
 * Of what this end does.  connected: this end did; the one that accepted has the port of
 * its service, and cannot know who connected.
 */
static __always_inline struct service service_of(struct tcp_sock *tp, bool connected)
{
	struct sock_common *common = &sk_of(tp)->__sk_common;

	return (struct service){
		.netns = common->skc_net.net->ns.inum,
		.port = connected ? bpf_ntohs(common->skc_dport) : common->skc_num,
		.user = connected ? sk_of(tp)->sk_uid.val : ANYBODY,
	};
}

static __always_inline u32 seconds(void)
{
	return bpf_ktime_get_boot_ns() / NS_PER_SECOND;
}

/* It was seen to do what differs: never again. */
static __always_inline void note_reason(struct service *service, u32 reason)
{
	struct known *before = bpf_map_lookup_elem(&fuse_services, service);
	struct known known = {};

	if (before)
		known = *before;
	if (known.reason)
		return;
	known.reason = reason;
	known.since = seconds();
	bpf_map_update_elem(&fuse_services, service, &known, BPF_ANY);
}

/*
 * Of an end that connects: the last connections to its service gained nothing, and this
 * one is not to try again.
 */
static __always_inline bool gains_nothing(struct service *service)
{
	struct known *known = bpf_map_lookup_elem(&fuse_services, service);

	return known && known->in_vain >= IN_VAIN && ++known->left_out % TRY_EVERY;
}

#endif /* SOCKFUSE_BPF_SERVICES_H */
