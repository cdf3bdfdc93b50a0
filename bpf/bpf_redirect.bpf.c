// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/*
 * Decides for each message whether it is fused: handed to the peer's ingress queue
 * (bpf_tcp_ingress) without passing through TCP.
 *
 * The contract.  A message is fused only if nothing tells the two paths apart but speed;
 * anything unclear falls back to TCP, which is always correct.  Every byte arrives, in
 * order: the receiver reads its ingress queue before its TCP queue (tcp_bpf_recvmsg), so
 * a message may be fused only when every TCP byte before it has been read.  Memory stays
 * bounded: the kernel puts no limit on the ingress queue, so this program does.  send()
 * does not fail where TCP's would not, but for the window that peer_stays() leaves: the
 * program always returns SK_PASS, and never lets the kernel refuse the charge.
 *
 * Locks.  tcp_bpf_sendmsg() holds the sender's lock while this runs; nobody holds the
 * peer's.  What is read of the peer is read fault-safe (READ) and may be stale at once,
 * so each rule says why a stale answer costs speed only.
 *
 * The peer is known without a lookup of our own: a successful redirect leaves it in
 * sk_msg->sk_redir.  A redirect cannot be taken back, but a second one, to the sender's
 * own key without BPF_F_INGRESS, sends the message by the sender's own TCP; after that
 * the peer's address is remembered.
 */
#include "leave.h"
#include "reader.h"
#include "rules.h"
#include "streams.h"

#define STREAM_MESSAGES 64 /* small ones by TCP, once too many have waited */
#define TCP_NAGLE_OFF 1
#define WHOLE_BYTES 131072 /* two full segments on lo, make_whole() */
#define CACHE_BYTES 524288 /* what waits beyond leaves the cache unread */
#define LOCK_WAIT_NS 6000  /* a reader copies 64 KB in some 5 us */
#define LOCK_SPINS 300	   /* looks at the lock meanwhile, at the most */

static __always_inline u32 too_much_waits(struct sk_msg_md *msg, struct tcp_sock *own,
					  struct tcp_sock *peer,
					  struct direction *direction);

/* The rules, in the order of docs/design.md.  First those that do not ask the peer: */
static __always_inline u32 writer_speaks_against(struct settings *set,
						 struct tcp_sock *own,
						 struct direction *direction)
{
	if (!can_send(own) || not_plain_tcp(own) || is_shared(own))
		return OUTCOME(tcp_socket_state);
	if (writer_wants_tcp(own))
		return OUTCOME(tcp_socket_option);
	if (set->marks && marks_of(own) & MARK_WRITER)
		return OUTCOME(tcp_guarded);
	if (captured(own))
		return OUTCOME(tcp_captured);
	if (state_is_old(set, own))
		return OUTCOME(tcp_refresh);
	if (direction && is_leaving(direction))
		return OUTCOME(tcp_backlog_number);
	return FUSED;
}

/*
 * Does this message wake a thread that sleeps in send, for room in TCP's send buffer?
 * SOCK_NOSPACE then stays set.  If there is room by now, and the thread goes on to recv,
 * the room that comes later wakes it there (sk_stream_write_space()).  It then answers
 * EAGAIN, where TCP's would sleep on.  While it sleeps, bytes that it has sent wait here
 * (rcv_nxt), which is asked first: in a dialogue none do.
 */
static __always_inline bool wakes_writer(struct tcp_sock *own, struct tcp_sock *peer)
{
	return own->rcv_nxt != own->copied_seq && READ(sk_of(peer), sk_write_pending) &&
	       !never_waits(peer);
}

/* What is the first that speaks against fusing to this peer? */
static __always_inline u32 speaks_against(struct sk_msg_md *msg, struct settings *set,
					  struct tcp_sock *own, struct tcp_sock *peer,
					  struct direction *direction)
{
	u32 outcome;

	if (READ(peer, inet_conn.icsk_ulp_ops) || is_shared(peer))
		return OUTCOME(tcp_socket_state);
	/*
	 * It leaves the map.  Where fused bytes wait it does not, as leave_half_closed()
	 * asks, too; they stay the same while its shutdown(2) holds the lock.
	 */
	if (half_closed(peer) && no_fused_bytes(psock_of(peer))) {
		if (direction && is_out(peer))
			direction->alone = 1;
		return OUTCOME(tcp_peer_unknown);
	}
	if (reader_wants_tcp(peer) || kernel_reads(peer) || reader_maps(peer))
		return OUTCOME(tcp_socket_option);
	if (reader_guarded(set, peer))
		return OUTCOME(tcp_guarded);
	if (much_of_a_file(msg->size) && !seam_ahead(peer))
		return OUTCOME(tcp_sendfile);
	if (wakes_writer(own, peer) && !seam_ahead(peer))
		return OUTCOME(tcp_in_flight);
	if (tcp_bytes_unread(own, peer) &&
	    !waits_in_place(msg, own, peer, direction,
			    backlog_limit(own, peer, direction)))
		return OUTCOME(tcp_in_flight);
	if (!bpf_core_field_exists(struct sk_psock, msg_tot_len) &&
	    waiters(peer) & (WAITER_EDGE | WAITER_LATER))
		return OUTCOME(tcp_edge_triggered); /* FIONREAD would not tell it */
	outcome = too_much_waits(msg, own, peer, direction);
	if (outcome)
		return outcome;
	if (charge_may_fail(own, peer, msg->size))
		return OUTCOME(tcp_memory);
	if (reader_blocked(own, peer, direction))
		return OUTCOME(tcp_blocked_reader);
	return FUSED;
}

/*
 * Bytes and messages that wait; each limit has its own reason.  Before a fix of 6.10 and
 * stable kernels the receiver was charged for nothing, and only the number tells.
 */
static __always_inline u32 too_much_waits(struct sk_msg_md *msg, struct tcp_sock *own,
					  struct tcp_sock *peer,
					  struct direction *direction)
{
	u32 backlog = backlog_of(peer), size = msg->size, found;
	bool many;

	if (!backlog && messages_waiting(peer, MAX_WAITING) == MAX_WAITING)
		return size < BULK_BYTES ? OUTCOME(tcp_backlog_number)
					 : OUTCOME(tcp_backlog_bytes);
	if (!backlog && direction) {
		direction->waiting = 0;
		if (direction->stream && size < BULK_BYTES) {
			direction->stream--;
			return OUTCOME(tcp_backlog_number);
		}
	}
	many = too_many_wait(peer, backlog, size);
	if (!many && backlog + size <= EDGE_BYTES)
		return FUSED;
	if (!finds_room(msg, own, peer, direction, backlog))
		return OUTCOME(tcp_backlog_bytes);
	found = waiters(peer);
	if (found & (WAITER_EDGE | WAITER_LATER)) {
		if (!direction)
			direction = direction_of(msg->sk);
		if (edge_reader_full(peer, direction, found, size))
			return OUTCOME(tcp_edge_triggered);
		if (many)
			direction->stream = STREAM_MESSAGES;
		return FUSED;
	}
	return many ? OUTCOME(tcp_backlog_number) : FUSED;
}

static __noinline u32 falls_back(struct sk_msg_md *msg, struct settings *set,
				 struct tcp_sock *own, struct tcp_sock *peer,
				 struct direction *direction)
{
	u32 outcome = speaks_against(msg, set, own, peer, direction);

	if (outcome == FUSED)
		return FUSED;
	if (!direction)
		direction = direction_of(msg->sk);
	if (direction)
		direction->peer = peer;
	return outcome;
}

/* The peer, to whom the message goes now; NULL if it is not in the map. */
static __always_inline struct tcp_sock *redirect(struct sk_msg_md *msg,
						 struct tcp_sock *own)
{
	struct pair_key key;

	if (!peer_key(own, &key) ||
	    bpf_msg_redirect_hash(msg, &sock_ops_map, &key, BPF_F_INGRESS) != SK_PASS)
		return NULL;
	return (void *)READ((struct sk_msg *)msg, sk_redir);
}

/*
 * bpf_tcp_ingress() takes the peer's lock, and sleeps if a reader holds it to copy.  To
 * wait here is cheaper than to sleep and be woken, and the reader finds more when it is
 * done.  With more than a cache holds waiting, the sleep keeps the writer from running
 * ahead.
 */
static __always_inline void await_lock(struct tcp_sock *peer)
{
	u64 end;

	if (!READ(sk_of(peer), sk_lock.owned))
		return;
	end = bpf_ktime_get_ns() + LOCK_WAIT_NS;
	for (int i = 0; i < LOCK_SPINS; i++)
		if (!READ(sk_of(peer), sk_lock.owned) || backlog_of(peer) > CACHE_BYTES ||
		    bpf_ktime_get_ns() > end)
			return;
}

/*
 * Copies a streamed message into one block of pages, to be faster where the writer is
 * far ahead, as on one processor.  sk_page_frag_refill() takes blocks of 32 KB, which the
 * reader's processor gives back to its own list of free pages.  Of those it hoards tens
 * of MB, so the writer's copy always goes to memory that no cache holds.  A larger block
 * (above PAGE_ALLOC_COSTLY_ORDER) returns at once to the allocator, and the writer gets
 * its own warm 32 KB back.  A reader that keeps up reads what the writer's cache still
 * holds; there the second copy costs more than it spares (1.7 and 2.8 times TCP's speed
 * with and without it, 64 KB, two processors).  The same holds for a dialogue, whose
 * answers use up what the processor hoards.  A failure leaves the message as it was.
 */
static __always_inline void gather(struct sk_msg_md *msg)
{
	bpf_msg_pull_data(msg, 0, msg->size, 0);
}

/*
 * Redirects the message to its peer, unless something speaks against it.  A known peer is
 * asked about first, which spares a redirect that would be taken back.
 */
static __always_inline u32 hand_over(struct sk_msg_md *msg, struct settings *set,
				     struct tcp_sock *own, struct direction *direction,
				     struct tcp_sock **reached)
{
	struct tcp_sock *known = direction ? direction->peer : NULL, *peer;
	u32 outcome = known ? falls_back(msg, set, own, known, direction) : FUSED;

	if (outcome)
		return outcome;
	*reached = peer = in_map(own) ? redirect(msg, own) : NULL;
	if (!peer) {
		if (direction && is_alone(own, direction))
			direction->alone = 1;
		return OUTCOME(tcp_peer_unknown);
	}
	if (peer != known) {
		if (direction)
			direction->peer = peer;
		outcome = falls_back(msg, set, own, peer, direction);
		if (outcome)
			return outcome;
	}
	return FUSED;
}

/*
 * The peer's psock goes when the peer closes; a send that then waits to deliver fails
 * with EPIPE, where TCP's would not.  So this is the last that is asked, and as little as
 * possible is done after the wait: another reader's call would take the lock.  What
 * remains is the kernel's own window, from here to sk_psock_get() in
 * tcp_bpf_sendmsg_redir(): of 10,000 sends that met a close 3 failed, and 85 before this
 * was asked.  To ask for the last descriptor, too (f_ref), left 2 of the 3 and cost each
 * message between two processors 40 to 60 ns.
 */
static __always_inline bool peer_stays(struct tcp_sock *peer)
{
	await_lock(peer);
	return !is_out(peer);
}

static __always_inline void count_fused_message(u32 size)
{
	struct counters *c = array_value(&fuse_counters);

	if (!c)
		return;
	__sync_fetch_and_add(&c->fused_messages, 1);
	__sync_fetch_and_add(&c->fused_bytes, size);
}

/* Before peer_stays(): if that says no, note_by_tcp() puts it right. */
static __always_inline void note_fused(struct sk_msg_md *msg, struct tcp_sock *own,
				       struct tcp_sock *peer, struct direction *direction)
{
	u32 verdict = note_message(own, peer, msg->size, FUSED);
	bool leaves = several_readers(peer) || verdict == TCPS;

	if (verdict == BULK_AGAIN && backlog_of(peer) > CACHE_BYTES)
		gather(msg);
	if (!direction && (leaves || msg->size >= BULK_BYTES)) {
		direction = direction_of(msg->sk);
		if (direction)
			direction->peer = peer;
	}
	if (!direction)
		return;
	direction->leaving |= leaves;
	direction->quiet = 0;
	direction->outcome = FUSED;
	direction->fused_bytes += msg->size;
}

/*
 * Takes a redirect back, of a sender that is in_map(): one of this call, or of the one
 * before if the kernel asks again for the rest of a message of which it could deliver a
 * part (the address stays in sk_msg).  The key is that of the map's element: a guess at
 * which end this is could name the socket of a stranger, whose TCP would then send the
 * message.
 */
static __always_inline void send_by_own_tcp(struct sk_msg_md *msg, struct tcp_sock *own)
{
	struct sk_msg *kernel = (void *)msg;
	struct pair_key key;

	if (READ(kernel, sk_redir) && stored_key(own, &key))
		bpf_msg_redirect_hash(msg, &sock_ops_map, &key, 0);
}

/*
 * tcp_bpf_push() sends a message that goes by TCP piece by piece (32 KB and less), where
 * tcp_sendmsg() would have made full segments of it.  With nothing in flight the first
 * piece leaves at once.  Nagle then holds the last until that is acknowledged, and the
 * receiver waits 40 ms with it, for a second full segment.  So such a message is made
 * one piece, up to what makes two full segments on lo.  A failure leaves it as it was.
 */
static __always_inline void make_whole(struct sk_msg_md *msg, struct tcp_sock *own)
{
	struct sk_msg *kernel = (void *)msg;

	if (msg->size <= WHOLE_BYTES && own->snd_una == own->write_seq &&
	    READ(kernel, sg.end) - READ(kernel, sg.start) != 1 &&
	    !(BPF_CORE_READ_BITFIELD(own, nonagle) & TCP_NAGLE_OFF))
		bpf_msg_pull_data(msg, 0, msg->size, 0);
}

/* What a message by TCP means to the reader, who is told in bpf_contrack.bpf.c. */
static __always_inline void note_reader(struct settings *set, struct tcp_sock *own,
					struct direction *direction, u32 outcome)
{
	struct tcp_sock *peer = direction->peer;
	u32 found;

	if (!peer || direction->sealed)
		return;
	found = waiters(peer);
	if (!nothing_fused(set, peer))
		direction->seam |= !!(found & (WAITER_EDGE | WAITER_LATER));
	/* --careful: one that has not read yet is fused to once it reads plainly. */
	if ((outcome == OUTCOME(tcp_guarded) && !(set->careful && !marks_of(peer))) ||
	    (wakes_writer(own, peer) && learn_pair(own, peer, REASON_RECV_BESIDE_SEND)) ||
	    several_readers(peer))
		direction->leaving = 1;
}

/*
 * A writer that has filled TCP's send buffer sleeps.  What wakes it (sk_write_space)
 * wakes a thread that sleeps in recv on the same socket, too, and that one answers EAGAIN
 * where TCP's would sleep on.  Nothing reaches it there, but its service's next
 * connections can be spared.  Half a buffer: a dialogue that falls back has no reader
 * looked for.
 */
static __always_inline bool reader_beside(struct tcp_sock *own)
{
	struct sock *sk = sk_of(own);

	return 2 * sk->sk_wmem_queued > sk->sk_sndbuf &&
	       HARMLESS_ONES(waiters_of(address_of(own), SLEEPS_FUSED));
}

static __always_inline void note_by_tcp(struct sk_msg_md *msg, struct settings *set,
					struct tcp_sock *own, u32 outcome)
{
	struct direction *direction = direction_of(msg->sk);

	if (!direction)
		return;
	note_reader(set, own, direction, outcome);
	if (!direction->leaving && reader_beside(own) &&
	    learn(own, REASON_RECV_BESIDE_SEND))
		direction->leaving = 1;
	if (!direction->quiet)
		direction->quiet = quiet(own);
	direction->outcome = outcome;
	count_by_tcp(direction, own, msg->size, outcome);
}

SEC("sk_msg")
int bpf_redir(struct sk_msg_md *msg)
{
	struct settings *set = array_value(&fuse_settings);
	struct tcp_sock *own, *peer = NULL;
	struct direction *direction;
	u32 outcome;

	own = msg->sk ? bpf_skc_to_tcp_sock(msg->sk) : NULL;
	if (!own) {
		COUNT(tcp_socket_state);
		return SK_PASS;
	}
	if (!set || !set->fuse) {
		COUNT(tcp_switched_off);
		send_by_own_tcp(msg, own);
		make_whole(msg, own);
		return SK_PASS;
	}
	direction =
		bpf_sk_storage_get(&fuse_directions, msg->sk, NULL,
				   own->data_segs_out ? BPF_SK_STORAGE_GET_F_CREATE : 0);
	outcome = writer_speaks_against(set, own, direction);
	if (!outcome)
		outcome = hand_over(msg, set, own, direction, &peer);
	if (!outcome) {
		note_fused(msg, own, peer, direction);
		if (peer_stays(peer)) {
			count_fused_message(msg->size);
			return SK_PASS;
		}
		outcome = OUTCOME(tcp_peer_unknown);
	}
	count(outcome);
	send_by_own_tcp(msg, own);
	make_whole(msg, own);
	note_by_tcp(msg, set, own, outcome);
	return SK_PASS;
}
