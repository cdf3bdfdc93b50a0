/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * How a connection goes: does it gain, or is it a stream of small writes?  What both ends
 * have to say of that stands in one place for both.
 */
#ifndef SOCKFUSE_BPF_FLOWS_H
#define SOCKFUSE_BPF_FLOWS_H

#include "bpf_services.h"

#define FLOWS 8192
#define BULK_BYTES 49152 /* writes of so many bytes stream better fused */
#define WORTH 8		 /* turns: some six fused messages pay for entering the map */
#define STREAM_RUN 64
#define OUTWEIGHS 16384 /* messages */
#define STREAM_GAP_NS 64000
#define TAKE_EVERY 64

struct flow {
	u64 id;			/* flow_id(); 0: free */
	u64 since;		/* ktime of the second message of the run */
	struct service service; /* as the end that connected knows it; or port 0 */
	u32 turns; /* fused messages that were bulk, or answered a fused one */
	u32 run;   /* small messages in a row from one end */
	u8 last;   /* end that sent the last message: CONNECTED or ACCEPTED */
	u8 bulk;   /* end that sent the last bulk */
	u8 fused;  /* the last message was */
};

/*
 * By flow_id(), whose bits nobody can choose.  A connection takes its place when it is
 * established, whoever had it; one that has lost it, or never had one, takes it again
 * now and then.  No lock: what two processors lose, or one finds half written, steers.
 */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, FLOWS);
	__type(key, u32);
	__type(value, struct flow);
} fuse_flows SEC(".maps");

static __always_inline struct flow *flow_at(u64 id)
{
	u32 place = (u32)(id ^ id >> 32) % FLOWS;

	return bpf_map_lookup_elem(&fuse_flows, &place);
}

/* The two sequence numbers as the end that connected has them in isns_of() */
static __always_inline u64 flow_id(struct tcp_sock *tp, bool connected)
{
	struct pair_key key = isns_of(tp);

	return connected ? (u64)key.sender_isn << 32 | key.peer_isn
			 : (u64)(key.peer_isn - 1) << 32 | key.sender_isn;
}

/* NULL: it has no place.  Else end says which of the two it is. */
static __always_inline struct flow *flow_of(struct tcp_sock *tp, u8 *end)
{
	u64 id = flow_id(tp, true);
	struct flow *flow = flow_at(id);

	*end = CONNECTED;
	if (flow && flow->id == id)
		return flow;
	id = flow_id(tp, false);
	flow = flow_at(id);
	*end = ACCEPTED;
	return flow && flow->id == id ? flow : NULL;
}

/* service: NULL if it is not to be judged, or was. */
static __always_inline struct flow *begin_flow(u64 id, struct service *service)
{
	struct flow *flow = flow_at(id);

	if (!flow)
		return NULL;
	*flow = (struct flow){ .id = id, .fused = 1 };
	if (service)
		flow->service = *service;
	else
		flow->turns = WORTH;
	return flow;
}

/* Port 0 is nobody's: of a connection that teaches nothing. */
static __noinline int note_ending(struct service *service, u32 how)
{
	struct known *known, first = { .since = seconds() };
	u32 before, now;

	if (!service->port || how >= ENDINGS)
		return 0;
	known = bpf_map_lookup_elem(&fuse_services, service);
	if (!known) {
		bpf_map_update_elem(&fuse_services, service, &first, BPF_NOEXIST);
		known = bpf_map_lookup_elem(&fuse_services, service);
	}
	if (!known)
		return 0;
	known->ended[how]++;
	before = known->in_vain;
	now = how == GAINED ? 0 : before + (how == SHORT ? 1 : LEFT_WEIGHT);
	if (now > IN_VAIN)
		now = IN_VAIN;
	known->in_vain = now;
	if ((before == IN_VAIN) != (now == IN_VAIN)) {
		known->since = first.since;
		known->left_out = 0;
	}
	return 0;
}

/* It teaches nothing of its service. */
static __always_inline void forget_flow(struct tcp_sock *tp)
{
	struct flow *flow;
	u8 end;

	flow = flow_of(tp, &end);
	if (flow)
		flow->id = 0;
}

/* It closes; both ends say so, and the first one counts. */
static __always_inline void end_flow(struct tcp_sock *tp)
{
	struct flow *flow;
	u8 end;

	flow = flow_of(tp, &end);
	if (!flow)
		return;
	flow->id = 0;
	if (flow->turns < WORTH)
		note_ending(&flow->service, SHORT);
}

#endif /* SOCKFUSE_BPF_FLOWS_H */
