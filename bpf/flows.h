/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * How a connection goes, for bpf_contrack.bpf.c, which knows its beginning and its end,
 * and bpf_redirect.bpf.c, which knows its messages (streams.h).  What both ends have to
 * say of it stands in one place for both, since it takes both to tell a dialogue from a
 * stream.
 */
#pragma once

#include "services.h"

#define FLOWS 65536 /* the default of load.sh --max-connections */
#define WORTH 8	    /* turns: four requests and answers pay for entering the map */

struct flow {
	u64 id;			/* as the end that connected has isns_as_one(); 0: free */
	u64 since;		/* ktime of the second message of the run, and */
	u32 slept;		/* slept() then */
	struct service service; /* as the end that connected knows it */
	u32 turns; /* fused messages that were bulk, or answered a fused one */
	u32 run;   /* small messages in a row from one end */
	u32 files; /* messages of SENDFILE_BYTES of a file */
	u32 lost;  /* messages that TCP serves better, less two for each turn */
	u8 last;   /* end of the last message: CONNECTED or ACCEPTED */
	u8 bulk;   /* end of the last bulk */
	u8 fused;  /* the last message was */
	u8 both;   /* the end that accepted has entered the map, too */
	u8 judged; /* has taught what there is, or is to teach nothing */
	struct bpf_spin_lock lock;
};

/*
 * By id, whose bits the kernel draws.  A connection takes its place when it enters the
 * map, whoever had it.  One that has lost it takes it again now and then (streams.h), and
 * teaches nothing.
 *
 * What teaches is under the lock: whose place this is, and whether it was judged.  So
 * each connection teaches once, its own service, and two ends that close at the same time
 * are one.  Of the rest nothing is locked: what two processors lose there steers.
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

/* isns: as an end sees them that does not know which it is; NULL: it has no place. */
static __always_inline struct flow *flow_of(u64 isns, u64 *id)
{
	struct flow *flow = flow_at(isns);

	*id = isns;
	if (flow && flow->id == isns)
		return flow;
	*id = as_connected(isns);
	flow = flow_at(*id);
	return flow && flow->id == *id ? flow : NULL;
}

/* judged: it is to teach nothing of its service. */
static __always_inline void begin_flow(u64 id, struct service *service, bool judged)
{
	struct flow *flow = flow_at(id);

	if (!flow)
		return;
	bpf_spin_lock(&flow->lock);
	flow->id = id;
	flow->since = 0;
	flow->slept = 0;
	flow->service = *service;
	flow->turns = judged ? WORTH : 0;
	flow->run = 0;
	flow->files = 0;
	flow->lost = 0;
	flow->last = 0;
	flow->bulk = 0;
	flow->fused = 1;
	flow->both = 0;
	flow->judged = judged;
	bpf_spin_unlock(&flow->lock);
}

/* Of an end that accepted, and has entered the map */
static __always_inline void join_flow(struct tcp_sock *tp)
{
	u64 id = as_connected(isns_as_one(tp));
	struct flow *flow = flow_at(id);

	if (flow && flow->id == id)
		flow->both = 1;
}

/*
 * Only of two ends that were both in the map: where one stayed out, or is on another host
 * (load.sh --net), nothing could be fused.
 */
static __noinline int teach(struct flow *flow, u64 id, u32 how)
{
	struct service service = {};
	bool first;

	if (flow->judged)
		return 0;
	bpf_spin_lock(&flow->lock);
	first = flow->id == id && flow->both && !flow->judged;
	if (first) {
		flow->judged = 1;
		service = flow->service;
	}
	bpf_spin_unlock(&flow->lock);
	if (first)
		note_ending(&service, how);
	return 0;
}

/* It closes, and neither end has said yet that it gained or left the map. */
static __always_inline void end_flow(struct tcp_sock *tp)
{
	struct flow *flow;
	u64 id;

	flow = flow_of(isns_as_one(tp), &id);
	if (flow)
		teach(flow, id, SHORT);
}
