/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * A socket leaves the map while it lives in three steps, so that no message is lost and
 * no send fails; bpf_redirect.bpf.c and bpf_contrack.bpf.c rely on that.  A is an end, B
 * the other.  Each runs its part in HDR_OPT_LEN, before a segment of its own and under
 * its own lock, and takes out nobody but itself.
 *
 * 1. seal(), A: from now on A sends by TCP alone (direction->sealed, which
 *    bpf_redirect.bpf.c asks first, under the same lock), and no fused message of A is
 *    under way (direction->quiet; quiet() has the proof).  So B's fused queue never grows
 *    again.  A writes B's key into fuse_sealed.
 * 2. leave(), B: its direction is sealed by A, and its fused queue is empty.  B takes
 *    itself out.  A message of B may be under way to A: A is still in the map, and what
 *    is under way holds a reference to B's psock.  A call that sleeps inside B's
 *    tcp_bpf_recvmsg() holds one, too, and wakes by TCP's bytes.
 * 3. leave(), A: B has no psock.  So no call is inside it, and none of B's messages is
 *    under way: what it delivered to A was delivered under A's lock, before this.  Nor
 *    will there be one, since B is out.  A's fused queue is empty.  A takes itself out.
 *
 * An end that half-closes has no more to send.  It leaves at once, without these steps,
 * if nothing_comes().
 *
 * An end that has closed has no psock, either: to the other that is as good as 3.  So is
 * one that never entered the map (direction->alone): nothing fused comes from it.  Who
 * has acknowledged or sent a byte after the handshake is past the callback in which it
 * would have entered, so an end that is not in the map then never will be, but by
 * adoption (is_alone() here, peer_of() in seam.h).
 *
 * What is read of the other end: each reads the other's queue, but for step 3, only so
 * that no TCP byte gets behind a fused one of an edge-triggered reader; a stale answer
 * costs that reader time (mend_as_reader()).  Once B's psock is gone, it never comes
 * back.  The cached address of B may be another socket's once B has been freed; then B
 * has closed, and it is right to leave A in the map, and right to take it out.
 */
#pragma once

#include "maps.h"
#include "waiters.h"

#define QUIET_WAIT_NS 100000 /* a reader copies 64 KB in some 5 us */
#define QUIET_LOOKS 1500     /* 500 missed 1 of 10 readers of 3 MB */

/* To leave the map it goes by TCP, but not into the seam behind fused bytes. */
static __always_inline bool is_leaving(struct direction *direction)
{
	return direction->sealed ||
	       (direction->leaving && no_fused_bytes(psock_of(direction->peer)));
}

/*
 * Is no message of this end under way, between its verdict and the peer's queue?
 *
 * tcp_bpf_sendmsg() holds a reference to the sender's psock from before the verdict until
 * the message is in the peer's queue.  It took that before it took the lock that is held
 * now, so whoever is under way is counted.  Two references are the map's and that of the
 * call that this runs for.  Each sleeper in tcp_bpf_recvmsg() has one as well, and enters
 * and leaves the wait queue under the same lock.  (Pollers come and go without it, and
 * may lead the walk astray, so two walks must agree.)  For any other call inside, one
 * that waits for the lock perhaps, the answer is no, which is safe.
 *
 * direction->quiet keeps a yes until the next message is fused: no verdict falls
 * without this program, so nobody gets under way in between.
 */
static __always_inline bool quiet(struct tcp_sock *own)
{
	u32 others = references(psock_of(own)) - 2, found;

	if (!in_map(own))
		return false;
	if (!others)
		return true;
	found = waiters_of(address_of(own), SLEEPS_FUSED);
	return others == HARMLESS_ONES(found) && !(found & WAITER_IN_TCP) &&
	       found == waiters_of(address_of(own), SLEEPS_FUSED);
}

/* But for the map, nobody holds the psock of a socket that is in it. */
static __always_inline bool nobody_inside(struct tcp_sock *tp)
{
	return references(psock_of(tp)) == 1 && in_map(tp);
}

/*
 * Orders what was written before with what is read behind it (Dekker), on arm64, too,
 * where an atomic addition does not: a bucket's lock is taken, let go of, and taken
 * again. No socket has this cookie.
 */
static __always_inline void full_barrier(void)
{
	u64 nobody = 0;

	bpf_map_delete_elem(&fuse_marks, &nobody);
	bpf_map_delete_elem(&fuse_marks, &nobody);
}

/*
 * Is no message of the peer under way to this end, and will there be none?  This runs
 * under this end's lock, after shutdown(2) has set SEND_SHUTDOWN and a full_barrier().
 * Who sends at the peer takes a reference to its psock first, and then asks for
 * SEND_SHUTDOWN (half_closed()).  So whoever does not see it is counted here.  Besides
 * the map's reference only readers that sleep have one, as in quiet().  Without the
 * peer's lock the queue may change between the looks, so all must agree.  A peer that
 * leaves the map meanwhile takes the map's reference along, so it must be there after the
 * count; once it has left, a message may be under way for as long as it has a psock.
 */
__noinline bool none_under_way(u64 address)
{
	struct tcp_sock *peer = (void *)address;
	struct sk_psock *psock = psock_of(peer);
	u32 others, found = 0;

	if (!psock)
		return true;
	others = references(psock) - 1;
	if (others)
		found = waiters_of(address, SLEEPS_FUSED);
	if (others != HARMLESS_ONES(found) || found & WAITER_IN_TCP ||
	    others != references(psock) - 1 ||
	    (others && found != waiters_of(address, SLEEPS_FUSED)))
		return false;
	return in_map((void *)after(others, address));
}

/* A reader that copies is done soon, so this waits for it. */
__noinline bool nothing_comes(u64 address)
{
	u64 end = bpf_ktime_get_ns() + QUIET_WAIT_NS;

	full_barrier();
	for (int i = 0; i < QUIET_LOOKS; i++) {
		if (none_under_way(address))
			return true;
		if (bpf_ktime_get_ns() > end)
			return false;
	}
	return false;
}

/* Step 1 */
static __always_inline void seal(struct settings *set, struct tcp_sock *tp,
				 struct direction *direction)
{
	struct pair_key reader;
	u8 yes = 1;

	if (direction->sealed && is_out(direction->peer))
		return;
	if (!no_fused_bytes(psock_of(direction->peer)) || !no_fused_bytes(psock_of(tp)))
		return;
	if (!is_out(tp) && !direction->quiet && !nobody_inside(tp))
		return;
	if (!peer_key(tp, &reader) ||
	    bpf_map_update_elem(&fuse_sealed, &reader, &yes, BPF_ANY))
		return;
	direction->sealed = 1;
	set->sealed = 1;
}

/* What it sends by TCP would get behind fused bytes that the peer has not read. */
static __always_inline bool answer_waits(struct direction *direction)
{
	return direction && direction->peer && !no_fused_bytes(psock_of(direction->peer));
}

/* Steps 2 and 3; wanted: the latter has a use, too. */
static __always_inline void leave(struct settings *set, struct tcp_sock *tp,
				  struct direction *direction, bool wanted)
{
	struct sk_psock *psock = psock_of(tp);
	bool alone = direction && (direction->alone || (wanted && direction->peer &&
							is_out(direction->peer)));
	struct pair_key key;

	if (!in_map(tp) || !no_fused_bytes(psock) || !(alone || set->sealed) ||
	    !stored_key(tp, &key))
		return;
	if (!alone &&
	    (answer_waits(direction) || !bpf_map_lookup_elem(&fuse_sealed, &key)))
		return;
	bpf_map_delete_elem(&fuse_sealed, &key);
	if (!bpf_map_delete_elem(&sock_ops_map, &key))
		COUNT(ends_unfused);
	forget_marks(tp); /* last, or it could be marked again */
}

/*
 * The peer has acknowledged bytes, so it is past the callback in which it could have
 * entered the map, and it is not there.  One (bytes_acked) may be for the SYN.  The
 * peer of an adopted end may still be on its way.
 */
static __always_inline bool is_alone(struct tcp_sock *own, struct direction *direction)
{
	return own->bytes_acked > 1 && !direction->adopted;
}
