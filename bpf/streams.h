/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * Streams go to TCP, and dialogues stay fused, for bpf_redirect.bpf.c.  A stream of small
 * writes is TCP's, and so are files; and TCP is faster for a socket in no map (by 2 to 4
 * times at 64 bytes).  So both ends leave: from now on nothing is fused behind what the
 * reader has taken, so that the direction can be sealed (leave.h).
 *
 * A stream is small messages in a row from one end, without an answer and without a
 * pause, for STREAM_NS and more, of which the reader has taken STREAM_RUN and more.  They
 * have no pause if they come fast, or if their writer does not sleep: what takes its time
 * then is to wake the reader, for each of them.  A dialogue has answers.  However much a
 * client sends ahead, and however long its server has to wait for a processor: what is
 * taken is answered, or in the making for so long that fusing gains it nothing.  A
 * connection that has had many turns must send many more messages in a row.
 */
#pragma once

#include "backlog.h"
#include "flows.h"

#define LEAVE_BLOCKED 1024 /* messages in a row whose reader was blocked */
#define LEAVE_FILES 4	  /* messages of SENDFILE_BYTES; a page with pictures has fewer */
#define STREAM_RUN 64	  /* messages; more than a server takes before it answers one */
#define STREAM_NS 1000000 /* in 1 ms a server answers, or the way there hardly counts */
/* ns for each message of a run; one whose reader is woken for each takes some 43 us */
#define STREAM_GAP_NS 64000ULL
/* ns for each of a run whose writer does not sleep; more, and it has pauses */
#define BUSY_GAP_NS (16 * STREAM_GAP_NS)
#define OUTWEIGHS 16384 /* messages in a row that outweigh any number of turns */
#define MORE_THAN 16	/* times its turns, of a connection that has gained */
#define SPARSE 4 /* messages for each answer, and more, may be a stream all the same */
#define SPARSE_NS 16000ULL /* for each of them; a stream takes less */
#define RENEW_EVERY 1024   /* turns */
#define TAKE_EVERY 64 /* messages without a place; two that share one each get a run */

/* What a message says of its connection */
enum verdict {
	NOTHING_NEW,
	LOST_PLACE, /* or never had one: it was adopted */
	BULK_AGAIN, /* and the last bulk came from the same end */
	TCPS,	    /* files, or a stream of small messages; */
	LONG_RUN,   /* the latter if the reader has taken enough */
};
#define VERDICT_BITS 3 /* of an answer; above them are the messages of a long run */

/* What was a dialogue has to do something else more often than it has had turns. */
static __always_inline bool outweighs(u32 messages, struct flow *flow)
{
	u64 turns = flow->turns;

	return messages >= OUTWEIGHS ||
	       messages > (turns < WORTH ? turns : turns * MORE_THAN);
}

/* A dialogue goes on: while it does, its service's next connections are fused. */
static __noinline int renew(struct flow *flow, u64 id)
{
	struct service service = {};
	struct known *known;

	bpf_spin_lock(&flow->lock);
	if (flow->id == id && flow->both)
		service = flow->service;
	bpf_spin_unlock(&flow->lock);
	known = bpf_map_lookup_elem(&fuse_services, &service);
	if (known)
		known->in_vain = 0;
	return 0;
}

/* It gains what a dialogue does; one bulk message gains as much as WORTH answers. */
static __always_inline void count_turn(struct flow *flow, u64 id, bool bulk)
{
	flow->lost -= flow->lost < 2 ? flow->lost : 2;
	if (++flow->turns >= WORTH || bulk)
		teach(flow, id, GAINED);
	if (flow->turns % RENEW_EVERY == 0)
		renew(flow, id);
}

/*
 * What TCP serves better, though it is no run: a run that ends in a sparse answer, and
 * what goes by TCP as both ends send at once.  As much of it as OUTWEIGHS is a stream.
 */
static __always_inline bool count_lost(struct flow *flow, bool answers, u32 outcome)
{
	if (outcome == OUTCOME(tcp_in_flight) || outcome == OUTCOME(tcp_backlog_number))
		flow->lost++;
	else if (answers && flow->run >= SPARSE &&
		 bpf_ktime_get_ns() - flow->since <= flow->run * SPARSE_NS)
		flow->lost += flow->run;
	return flow->lost >= OUTWEIGHS;
}

/* What a file's header gained, the file itself loses: by TCP from a socket in a map. */
static __always_inline bool is_download(struct flow *flow)
{
	if (flow->turns)
		flow->turns--;
	flow->run = 0;
	return ++flow->files >= LEAVE_FILES && outweighs(flow->files, flow);
}

/* How often the task that sends has slept.  Of two that take turns it tells nothing. */
static __always_inline u32 slept(void)
{
	struct task_struct *task = (void *)bpf_get_current_task();

	return READ(task, nvcsw);
}

/* One more small message from the same end: is it a stream, as far as its sender goes? */
static __always_inline bool is_long_run(struct flow *flow, u64 id, bool fused)
{
	u64 took;

	if (++flow->run == 2) {
		flow->since = bpf_ktime_get_ns();
		flow->slept = slept();
	}
	if (flow->run < STREAM_RUN || !outweighs(flow->run, flow))
		return false;
	took = bpf_ktime_get_ns() - flow->since;
	if (took <= flow->run * STREAM_GAP_NS ||
	    (took <= flow->run * BUSY_GAP_NS && 2 * (slept() - flow->slept) < flow->run))
		return took >= STREAM_NS;
	flow->run = 0;
	if (fused) /* fused one by one they gain as answers do */
		teach(flow, id, GAINED);
	return false;
}

/*
 * Notes a message.  What the other end notes meanwhile may be lost; a dialogue would have
 * to lose all of a run's answers.  A global function: the verifier walks through it once.
 */
__noinline u32 judge(u64 isns, u32 size, u32 outcome)
{
	bool bulk = size >= BULK_BYTES, fused = outcome == FUSED, answers, again;
	struct flow *flow;
	u64 id;
	u8 end;

	flow = flow_of(isns, &id);
	if (!flow)
		return LOST_PLACE;
	if (outcome == OUTCOME(tcp_captured)) {
		flow->judged = 1; /* what it would gain is not to be seen now */
		return NOTHING_NEW;
	}
	end = id == isns ? CONNECTED : ACCEPTED;
	answers = flow->last != end;
	again = bulk && flow->bulk == end;
	if (fused && (bulk || (answers && flow->fused)))
		count_turn(flow, id, bulk);
	flow->last = end;
	flow->fused = fused;
	if (bulk)
		flow->bulk = end;
	if (outcome == OUTCOME(tcp_sendfile)) {
		if (!is_download(flow))
			return NOTHING_NEW;
		teach(flow, id, FILES);
		return TCPS;
	}
	if (!bulk && count_lost(flow, answers, outcome)) {
		teach(flow, id, STREAM);
		return TCPS;
	}
	if (bulk || answers)
		flow->run = 0;
	if (bulk || !is_long_run(flow, id, fused))
		return again ? BULK_AGAIN : NOTHING_NEW;
	return LONG_RUN | flow->run << VERDICT_BITS;
}

/* Small messages of about this size that the reader has not taken, at the most */
static __always_inline u32 untaken(struct tcp_sock *own, struct tcp_sock *peer, u32 size)
{
	u32 by_tcp = READ(own, write_seq) - READ(peer, copied_seq);

	return by_tcp / (size ?: 1) + messages_waiting(peer, MAX_UNREAD);
}

/*
 * A connection without a place takes one now and then, or what was established before
 * many others could not be seen to be a stream.  The key under which the socket is stored
 * tells which end it is.
 */
static __always_inline void take_place(struct tcp_sock *own, u64 isns)
{
	struct service nobodys = {};
	struct pair_key stored;

	if (!(bpf_get_prandom_u32() % TAKE_EVERY) && stored_key(own, &stored))
		begin_flow(stored.sender_isn == (u32)isns ? isns : as_connected(isns),
			   &nobodys, true);
}

/*
 * What the message said leaves a question; what it says with the answer.  Addresses; peer
 * is 0 if it is not known.  Seldom called, and a global function, as judge() is.
 */
__noinline u32 look_closer(u64 isns, u64 own, u64 peer, u32 size, u32 verdict)
{
	u32 run = verdict >> VERDICT_BITS;
	struct flow *flow;
	u64 id;

	if (verdict == LOST_PLACE)
		take_place((void *)own, isns);
	if (!run || !peer || untaken((void *)own, (void *)peer, size) + STREAM_RUN > run)
		return NOTHING_NEW;
	flow = flow_of(isns, &id);
	if (flow)
		teach(flow, id, STREAM);
	return TCPS;
}

/* A message to this peer (NULL: not known): NOTHING_NEW, BULK_AGAIN or TCPS. */
static __always_inline u32 note_message(struct tcp_sock *own, struct tcp_sock *peer,
					u32 size, u32 outcome)
{
	u64 isns = isns_as_one(own);
	u32 verdict = judge(isns, size, outcome);

	if (verdict == LOST_PLACE || verdict >> VERDICT_BITS)
		return look_closer(isns, address_of(own), address_of(peer), size,
				   verdict);
	return verdict;
}

/* A message has gone by TCP. */
static __always_inline void count_by_tcp(struct direction *direction,
					 struct tcp_sock *own, u32 size, u32 outcome)
{
	u32 verdict = note_message(own, direction->peer, size, outcome);

	if (!direction->peer)
		return;
	if (verdict == TCPS || (outcome == OUTCOME(tcp_blocked_reader) &&
				++direction->blocked >= LEAVE_BLOCKED))
		direction->leaving = 1;
}
