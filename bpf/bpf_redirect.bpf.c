// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/*
 * Decides for each message whether it is fused: handed to the peer's ingress
 * queue (bpf_tcp_ingress) without passing through TCP.
 *
 * The contract.  A message is fused only if nothing tells the two paths apart
 * but speed; anything unclear falls back to TCP, which is always correct.
 * Every byte arrives, in order: the receiver reads its ingress queue before
 * its TCP queue (tcp_bpf_recvmsg), so a message may be fused only when every
 * TCP byte before it has been read.  Memory stays bounded: the kernel puts no
 * limit on the ingress queue, so this program does.  send() does not fail where
 * TCP's would not, but for the window that is_going() leaves: the program always
 * returns SK_PASS, and never lets the kernel refuse the charge.
 *
 * Locks.  tcp_bpf_sendmsg() holds the sender's lock while this runs; nobody
 * holds the peer's.  What is read of the peer is read fault-safe (READ) and
 * may be stale at once, so each rule says why a stale answer costs speed only.
 *
 * The peer is known without a lookup of our own: a successful redirect leaves
 * it in sk_msg->sk_redir.  A redirect cannot be taken back, but a second one,
 * to the sender's own key without BPF_F_INGRESS, sends the message by the
 * sender's own TCP; after that the peer's address is remembered.
 */
#include "bpf_sockmap.h"

#define TCP_ESTABLISHED 1
#define TCP_CLOSE_WAIT 8
#define SOCK_SNDBUF_LOCK 1 /* of sk_userlocks: the application has set the buffer */
#define SOCK_RCVBUF_LOCK 2
#define TCP_NAGLE_OFF 1
#define WHOLE_BYTES 131072

/*
 * Slack for what other processors charge between the check and the charge,
 * and for what each keeps aside (SK_MEMORY_PCPU_RESERVE is 1 MB), in pages.
 */
#define CHARGE_SLACK 1024
#define MEMCG_SLACK 256
#define MEMCG_DEPTH 16
#define LOCK_WAIT_NS 6000 /* a reader copies 64 KB in some 5 us */
#define LOCK_SPINS 300
#define CACHE_BYTES 524288 /* what waits beyond leaves the cache unread */

/*
 * Writes of BULK_BYTES and more stream better fused.  For smaller ones, a
 * backlog of STREAM_BYTES says that this is a stream and not an answer.
 */
#define BULK_BYTES 49152
#define STREAM_BYTES 32768
#define MAX_WAITING 32 /* messages */

#define EDGE_BYTES 65536 /* a request or an answer, edge_reader_full() */
#define MAX_UNREAD 1024	 /* messages, where TCP would be wrong behind them */
#define DRAIN_WAIT_NS 100000
#define DRAIN_SPINS 250
#define DRAIN_PAUSES 16 /* of some 20 ns */
#define STREAM_MESSAGES 64
#define STILL_NS 30000
#define CATCH_UP_LOOKS 300
#define CATCH_UP_PAUSES 40 /* of some 20 ns */
#define FUTILE_NS 1000000
#define ROOM_BYTES 524288 /* a reader takes so much in some 100 us */
#define SENDFILE_BYTES 32768
#define LEAVE_MESSAGES 16384
#define LEAVE_SENDFILE 64
#define LEAVE_BLOCKED 1024
#define SAMPLE 256
#define US_PER_S 1000000ULL
#define PAUSE_NS 16000

char LICENSE[] SEC("license") = "Dual BSD/GPL";

/*
 * Which end of a connection was the last to send bulk, or a SAMPLE of small messages:
 * the address of its tcp_sock, by the lower of the two addresses.  One entry for both, so
 * that what an earlier connection left at these addresses is put right by the first
 * answer.  Steers only; a connection whose entry was evicted counts as a dialogue.
 */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 1024);
	__type(key, u64);
	__type(value, u64);
} fuse_streams SEC(".maps");

static __always_inline struct direction *direction_of(struct sk_msg_md *msg)
{
	return bpf_sk_storage_get(&fuse_directions, msg->sk, NULL,
				  BPF_SK_STORAGE_GET_F_CREATE);
}

static __always_inline bool has_flag(unsigned long flags, u64 bit)
{
	return flags >> bit & 1;
}

/* The writer waits in its error queue for what only TCP sends there. */
static __always_inline bool writer_wants_tcp(struct tcp_sock *own)
{
	struct sock *sk = sk_of(own);
	u64 zerocopy = bpf_core_enum_value(enum sock_flags, SOCK_ZEROCOPY);

	return has_flag(sk->__sk_common.skc_flags, zerocopy) || sk->sk_tsflags;
}

/*
 * The reader has asked for what tcp_bpf_recvmsg() does not give: SO_RCVLOWAT,
 * SO_PEEK_OFF, TCP_INQ, timestamps, urgent bytes in line.
 */
static __always_inline bool reader_wants_tcp(struct tcp_sock *peer)
{
	struct sock *sk = sk_of(peer);
	unsigned long flags = READ(sk, __sk_common.skc_flags);
	u64 timestamp = bpf_core_enum_value(enum sock_flags, SOCK_RCVTSTAMP);
	u64 urgent = bpf_core_enum_value(enum sock_flags, SOCK_URGINLINE);

	return has_flag(flags, timestamp) || has_flag(flags, urgent) ||
	       READ(sk, sk_rcvlowat) > 1 || READ(sk, sk_peek_off) >= 0 ||
	       READ_BITFIELD(sk, sk_tsflags) || READ_BITFIELD(peer, recvmsg_inq);
}

static __always_inline bool reader_guarded(struct settings *set, struct tcp_sock *peer)
{
	return set->marks && (marks_of(peer) & MARK_READER || reader_unseen(set, peer));
}

/*
 * TCP_ZEROCOPY_RECEIVE, which needs the socket mapped (tcp_mmap), takes from TCP's queue
 * alone.  It must not overtake fused bytes, so while some wait this rule does not send
 * TCP bytes behind them.
 */
static __always_inline bool reader_maps(struct tcp_sock *peer)
{
	struct socket_alloc *alloc = (void *)READ(sk_of(peer), sk_socket);

	return READ(alloc, vfs_inode.i_data.i_mmap.rb_root.rb_node) &&
	       no_fused_bytes(psock_of(peer));
}

/* Only in these states does plain TCP take bytes from send(). */
static __always_inline bool can_send(struct tcp_sock *own)
{
	u8 state = sk_of(own)->__sk_common.skc_state;

	return state == TCP_ESTABLISHED || state == TCP_CLOSE_WAIT;
}

/*
 * Covers the start race, a miss, and the way back from a fallback.  Stale:
 * copied_seq only advances, up to write_seq, which our lock holds still.
 */
static __always_inline bool tcp_bytes_unread(struct tcp_sock *own, struct tcp_sock *peer)
{
	return READ(peer, copied_seq) != own->write_seq;
}

/* Bytes.  With every TCP byte read, all of sk_rmem_alloc is fused backlog. */
static __always_inline u32 backlog_of(struct tcp_sock *peer)
{
	return READ(sk_of(peer), sk_backlog.rmem_alloc.counter);
}

/*
 * Bytes that may wait: the reader's receive buffer as TCP would let it grow, by what the
 * reader takes (tcp_rcv_space_adjust()), and half of what the send buffer can grow to.
 * The writer then fills TCP's send buffer on top of that, so it gets in what it would
 * with TCP alone: with less, two ends that each write before they read would wait for
 * each other.  Before the first read it is 6.4 MB by default, and 4.3 with TCP alone.
 *
 * It is never more than half of what the receive buffer can grow to.  TCP counts the
 * backlog against that, so its window is closed when we fall back.  If the buffer were
 * overfull, TCP would drop the segment and wait for a retransmission.
 */
static __always_inline u32 backlog_limit(struct tcp_sock *own, struct tcp_sock *peer,
					 struct direction *direction)
{
	struct net *net = READ(sk_of(peer), __sk_common.skc_net.net);
	u64 limit = READ(sk_of(peer), sk_rcvbuf), most = limit;
	u32 backlog = backlog_of(peer);

	if (!(READ_BITFIELD(sk_of(peer), sk_userlocks) & SOCK_RCVBUF_LOCK))
		most = READ(net, ipv4.sysctl_tcp_rmem[2]);
	if (direction && direction->fused_bytes > backlog)
		limit += direction->fused_bytes - backlog;
	net = READ(sk_of(own), __sk_common.skc_net.net);
	if (READ_BITFIELD(sk_of(own), sk_userlocks) & SOCK_SNDBUF_LOCK)
		limit += (u32)READ(sk_of(own), sk_sndbuf) / 2;
	else
		limit += (u32)READ(net, ipv4.sysctl_tcp_wmem[2]) / 2;
	return limit < most / 2 ? limit : most / 2;
}

/*
 * Flow control in place: where the reader is at work on another processor, to wait for it
 * costs less than to go by TCP and come back.  True: it has taken every byte of TCP,
 * which stays so while our lock holds write_seq still, and no more than limit wait fused,
 * which only steers.  False: it has done nothing for STILL_NS, or was not done after all
 * looks, some 240 us.
 */
__noinline bool reader_catches_up(u64 address, u32 write_seq, u32 limit)
{
	struct tcp_sock *peer = (void *)address;
	u64 now = bpf_ktime_get_ns(), moved = now;
	u32 before = ~0U;

	for (int i = 0; i < CATCH_UP_LOOKS; i++) {
		u32 unread = write_seq - READ(peer, copied_seq),
		    backlog = backlog_of(peer);

		if (!unread && backlog <= limit)
			return true;
		if (unread + backlog < before)
			moved = now;
		else if (now - moved > STILL_NS)
			return false;
		before = unread + backlog;
		for (int pause = 0; pause < CATCH_UP_PAUSES; pause++)
			now = bpf_ktime_get_ns();
	}
	return false;
}

/* For bulk alone; after a vain wait (on one processor, say) none for FUTILE_NS. */
static __always_inline bool waits_in_place(struct sk_msg_md *msg, struct tcp_sock *own,
					   struct tcp_sock *peer,
					   struct direction *direction, u32 limit)
{
	if (msg->size < BULK_BYTES)
		return false;
	if (!direction)
		direction = direction_of(msg);
	if (!direction || bpf_ktime_get_ns() < direction->futile)
		return false;
	if (reader_catches_up(address_of(peer), own->write_seq, limit))
		return true;
	direction->futile = bpf_ktime_get_ns() + FUTILE_NS;
	return false;
}

/* Messages in the peer's ingress queue, max if there are more. */
static __always_inline u32 messages_waiting(struct tcp_sock *peer, u32 max)
{
	struct sk_psock *psock = psock_of(peer);
	struct list_head *head = &psock->ingress_msg, *pos;
	u32 waiting = 0;

	if (!psock) /* it has left the map */
		return 0;
	pos = READ(head, next);
	while (waiting < max && pos != head) {
		pos = READ(pos, next);
		waiting++;
	}
	return waiting;
}

/*
 * A waiting message costs about 1 KB of slab that no socket is charged for,
 * whatever its size, so their number is bounded too.  They are counted only
 * when there are more bytes than so many messages of this size would have;
 * each that gets by lets the backlog grow by a 32nd, so some hundred wait at
 * the very most.  Request/response never notices.
 *
 * Streams of writes below BULK_BYTES are faster by TCP, which merges them.
 */
static __always_inline bool too_many_wait(struct tcp_sock *peer, u32 backlog, u32 size)
{
	if (size >= BULK_BYTES)
		return false;
	if (backlog > STREAM_BYTES)
		return true;
	return backlog > MAX_WAITING * size &&
	       messages_waiting(peer, MAX_WAITING) == MAX_WAITING;
}

/* pages more fit below every limit from this counter up to the root */
static __always_inline bool has_room(struct page_counter *counter, u64 pages)
{
	for (int depth = 0; depth < MEMCG_DEPTH; depth++) {
		if (!counter)
			return true;
		if (READ(counter, usage.counter) + pages + MEMCG_SLACK >
		    READ(counter, max))
			return false;
		counter = READ(counter, parent);
	}
	return false;
}

/*
 * bpf_tcp_ingress() charges the receiver and hands a refusal to send() as
 * ENOMEM, where TCP would wait.  __sk_mem_raise_allocated() cannot refuse
 * while TCP as a whole is below tcp_mem[0] and every memory cgroup of the
 * receiver has room; what sk_forward_alloc holds was charged before.
 */
static __always_inline bool charge_may_fail(struct tcp_sock *own, struct tcp_sock *peer,
					    u32 size)
{
	struct proto *prot = sk_of(own)->__sk_common.skc_prot;
	long allocated = prot->memory_allocated->counter;
	u64 pages = size / PAGE_SIZE + 1;
	struct mem_cgroup *memcg;
	/* READ() takes structures alone; this one is a long. */
	long low = READ((struct rb_node *)prot->sysctl_mem, __rb_parent_color);

	if (allocated + (long)pages + CHARGE_SLACK > low)
		return true;

	if (!bpf_core_field_exists(struct sock, sk_memcg))
		return false;
	memcg = READ(sk_of(peer), sk_memcg);
	if (!memcg)
		return false;
	if (READ(sk_of(peer), sk_forward_alloc) >= (int)size)
		return false;
	if (!has_room(&memcg->memory, pages))
		return true;
	return bpf_core_field_exists(struct mem_cgroup, tcpmem) &&
	       !has_room(&memcg->tcpmem, pages);
}

/*
 * sendfile(2): the file's pages are in the task's own pipe until they are sent.  TCP
 * sends them as they are, a socket in a map copies them (tcp_bpf_sendmsg), which from
 * SENDFILE_BYTES on costs more than fusing spares.
 */
static __always_inline bool much_of_a_file(u32 size)
{
	struct task_struct *task = (void *)bpf_get_current_task();
	struct pipe_inode_info *pipe;

	if (size < SENDFILE_BYTES)
		return false;
	pipe = READ(task, splice_pipe);
	return pipe && READ_BITFIELD(pipe, head) != READ_BITFIELD(pipe, tail);
}

struct file___before_6_13 {
	atomic_long_t f_count;
} __attribute__((preserve_access_index));

/*
 * May there be calls on the peer's socket besides those in its wait queue?  A call holds
 * a reference to the file, unless its task shares its descriptors with no other
 * (fdget()): then it is the only call of that task, and the descriptor's reference stands
 * for it.  So there are at most as many calls as references.  A single descriptor has
 * one; further ones (dup(2), fork(2)) look like calls, which costs speed alone.
 *
 * Two cases are beyond it: a program that closes its last descriptor while another
 * thread, or the other process that has it, is on its way in recv; and io_uring's workers
 * that receive, several at a time, from a registered file.
 */
static __always_inline bool strangers(struct tcp_sock *peer, u32 found)
{
	struct socket *socket = READ(sk_of(peer), sk_socket);
	struct file *file = READ(socket, file);
	struct file___before_6_13 *before = (void *)file;
	long more; /* references than one */

	if (!file)
		return false; /* not accepted yet */
	if (bpf_core_field_exists(before->f_count))
		more = READ(before, f_count.counter) - 1;
	else
		more = READ(file, f_ref.refcnt.counter);
	return more > (long)HOLDERS(found);
}

/*
 * A reader that sleeps inside tcp_recvmsg() (MSG_WAITALL, say) never looks at
 * the ingress queue: it would hang, or read newer bytes first.  Entering
 * tcp_recvmsg() takes unread TCP bytes.  There are none now, so such a reader found some
 * before: it took them, and now holds the lock or is in the wait queue, where it put
 * itself before it let go of the lock; or another reader took them, and it is still on
 * its way, a stranger (two threads that read one socket).  sleeps_in() tells it from one
 * that sleeps for fused bytes.
 *
 * The order: no TCP bytes (copied_seq), nobody who holds the lock to take them out of
 * TCP's queue, then the wait queue, then the references.  Who comes later finds TCP's
 * queue empty and does not get there; who came before is seen in one of the two.
 *
 * A reader that is woken and finds nothing takes the lock before it leaves the queue, and
 * enters it again before it lets go of the lock.  To be missed by two looks, it would
 * have to be woken for nothing twice, and each time between the same two reads; nothing
 * of this connection wakes it now.
 */
static __always_inline bool reader_may_be_in_tcp(struct tcp_sock *peer)
{
	u64 address = address_of(peer), at;
	u32 seen = READ(peer, copied_seq);

	for (int look = 0; look < 2; look++) {
		at = after(seen, address);
		seen = READ(sk_of((struct tcp_sock *)at), sk_lock.owned);
		if (seen)
			return true;
		seen = waiters_of(after(seen, address), SLEEPS_FUSED);
		at = after(seen, address);
		if (seen & WAITER_IN_TCP || strangers((struct tcp_sock *)at, seen))
			return true;
	}
	at = after(seen, address);
	return READ(sk_of((struct tcp_sock *)at), sk_lock.owned);
}

/*
 * After a fallback: true for as long as a reader may be inside tcp_recvmsg().  Once none
 * is seen there, no reader can get there before the next TCP byte does.
 *
 * The reader of an adopted connection may have been on the way into tcp_recvmsg(),
 * unseen, when it was adopted; the first message goes by TCP to get it out of there.
 * One that never waits in recv() comes out by itself.
 */
static __always_inline bool reader_blocked(struct tcp_sock *own, struct tcp_sock *peer,
					   struct direction *direction)
{
	bool adopted = direction && direction->adopted;

	if (!own->data_segs_out && !adopted)
		return false; /* not a byte has gone by TCP; tracked without a reader */
	if (!direction)
		return true;
	if (direction->returned == (SEEN | own->write_seq))
		return false;
	direction->adopted = 0;
	if (adopted && !never_waits(peer))
		return true;
	if (reader_may_be_in_tcp(peer))
		return true;
	direction->returned = SEEN | own->write_seq;
	direction->blocked = 0;
	return false;
}

/*
 * No fused byte waits; a reader on another processor is given a moment.  A
 * global function as waiters_of() is.
 */
__noinline bool drained(u64 address)
{
	struct tcp_sock *peer = (void *)address;
	u64 now = bpf_ktime_get_ns(), end = now + DRAIN_WAIT_NS;

	for (int i = 0; i < DRAIN_SPINS; i++) {
		if (no_fused_bytes(psock_of(peer)))
			return true;
		for (int pause = 0; pause < DRAIN_PAUSES; pause++)
			now = bpf_ktime_get_ns();
		if (now > end)
			return false;
	}
	return false;
}

/*
 * A reader finds first the fused bytes and then, in its next recv, those of
 * TCP.  To a level-triggered poll this seam is nothing.  An edge-triggered
 * reader takes a short recv for the end of what there is (epoll(7) allows it)
 * and waits for an edge, but the TCP bytes had theirs before; nginx also takes
 * FIONREAD's 0 for it, which does not count TCP bytes while fused ones could
 * come.  So no TCP byte is sent while such a reader has unread fused bytes.  Once
 * it has none, what is more than a dialogue makes the connection plain TCP again,
 * for good.
 *
 * Where too much waits all the same, bpf_contrack.bpf.c makes the missing edge.
 */
static __always_inline bool
edge_reader_full(struct tcp_sock *peer, struct direction *direction, u32 found, u32 size)
{
	if (found & WAITER_EDGE && drained(address_of(peer)))
		return true;
	if (size >= BULK_BYTES)
		return false; /* bounded by its bytes */
	if (!direction)
		return true;
	if (++direction->waiting > MAX_UNREAD) /* or so many since it was counted */
		direction->waiting = messages_waiting(peer, MAX_UNREAD);
	return direction->waiting >= MAX_UNREAD;
}

/* A TCP byte would get behind fused ones, and its reader would be told once of both. */
static __always_inline bool seam_ahead(struct tcp_sock *peer)
{
	return !no_fused_bytes(psock_of(peer)) &&
	       waiters(peer) & (WAITER_EDGE | WAITER_LATER);
}

/*
 * Bytes and messages that wait; each limit has its own reason.  Before a fix of 6.10
 * and stable kernels the receiver was charged for nothing, and what waits shows by
 * its number alone.
 */
static __always_inline u32 too_much_waits(struct sk_msg_md *msg, struct tcp_sock *own,
					  struct tcp_sock *peer,
					  struct direction *direction)
{
	u32 backlog = backlog_of(peer), size = msg->size, found, limit, room;
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
	limit = backlog_limit(own, peer, direction);
	if ((u64)backlog + size > limit) {
		/* Room for this message alone would make the next one wait, too. */
		room = limit / 4 < ROOM_BYTES ? limit / 4 : ROOM_BYTES;
		if (room < size)
			room = size;
		if (room > limit ||
		    !waits_in_place(msg, own, peer, direction, limit - room))
			return OUTCOME(tcp_backlog_bytes);
	}
	found = waiters(peer);
	if (found & (WAITER_EDGE | WAITER_LATER)) {
		if (!direction)
			direction = direction_of(msg);
		if (edge_reader_full(peer, direction, found, size))
			return OUTCOME(tcp_edge_triggered);
		if (many)
			direction->stream = STREAM_MESSAGES;
		return FUSED;
	}
	return many ? OUTCOME(tcp_backlog_number) : FUSED;
}

/* The decision, rule by rule: what is the first that speaks against fusing? */
static __always_inline u32 speaks_against(struct sk_msg_md *msg, struct settings *set,
					  struct tcp_sock *own, struct tcp_sock *peer,
					  struct direction *direction)
{
	u32 outcome;

	if (READ(peer, inet_conn.icsk_ulp_ops) || is_shared(peer))
		return OUTCOME(tcp_socket_state);
	if (reader_wants_tcp(peer) || kernel_reads(peer) || reader_maps(peer))
		return OUTCOME(tcp_socket_option);
	if (reader_guarded(set, peer))
		return OUTCOME(tcp_guarded);
	if (much_of_a_file(msg->size) && !seam_ahead(peer))
		return OUTCOME(tcp_sendfile);
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
 * Several threads sleep in recv on one socket.  All are woken for a message, and those
 * that get nothing answer EAGAIN, where TCP would let them sleep on.  So both ends leave
 * the map.
 */
#define SEVERAL 2

static __always_inline bool several_readers(struct tcp_sock *peer)
{
	struct socket_wq *queue = READ(sk_of(peer), sk_wq);
	struct list_head *head = &queue->wait.head;

	return READ(head, next) != READ(head, prev) && /* there are two and more */
	       HARMLESS_ONES(waiters_of(address_of(peer), SLEEPS_FUSED)) >= SEVERAL;
}

/* --careful: it takes TCP now, and is fused to once it has been seen to read plainly. */
static __always_inline bool not_read_yet(struct settings *set, struct tcp_sock *peer)
{
	return set->careful && !marks_of(peer);
}

/* What a message by TCP means to the reader, who is told in bpf_contrack.bpf.c. */
static __always_inline void note_reader(struct settings *set, struct direction *direction,
					u32 outcome)
{
	struct tcp_sock *peer = direction->peer;
	u32 found;

	if (!peer || direction->sealed)
		return;
	found = waiters(peer);
	if (!nothing_fused(set, peer))
		direction->seam |= !!(found & (WAITER_EDGE | WAITER_LATER));
	if ((outcome == OUTCOME(tcp_guarded) && !not_read_yet(set, peer)) ||
	    several_readers(peer))
		direction->leaving = 1;
}

static __noinline u32 falls_back(struct sk_msg_md *msg, struct settings *set,
				 struct tcp_sock *own, struct tcp_sock *peer,
				 struct direction *direction)
{
	u32 outcome = speaks_against(msg, set, own, peer, direction);

	if (outcome == FUSED)
		return FUSED;
	if (!direction)
		direction = direction_of(msg);
	if (direction)
		direction->peer = peer;
	return outcome;
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
 * bpf_tcp_ingress() takes the peer's lock, and sleeps if a reader holds it to
 * copy.  To wait here is cheaper than to sleep and be woken, and the reader finds
 * more when it is done.  With more than a cache holds waiting, the sleep is what keeps
 * the writer from running ahead.
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

/*
 * NAT and connection tracking forget a flow of which they see nothing for a time; it
 * could then neither fall back nor be closed.  tcp_mstamp: the last segment.
 */
static __always_inline bool state_is_old(struct settings *set, struct tcp_sock *own)
{
	return set->refresh && !both_ends_loopback(own) &&
	       bpf_ktime_get_ns() / 1000 - own->tcp_mstamp > set->refresh * US_PER_S;
}

/* What speaks against fusing whoever the peer is. */
static __always_inline u32 writer_speaks_against(struct settings *set,
						 struct tcp_sock *own)
{
	if (!can_send(own) || not_plain_tcp(own) || is_shared(own))
		return OUTCOME(tcp_socket_state);
	if (writer_wants_tcp(own))
		return OUTCOME(tcp_socket_option);
	if (set->marks && marks_of(own) & MARK_WRITER)
		return OUTCOME(tcp_guarded);
	if (state_is_old(set, own))
		return OUTCOME(tcp_refresh);
	return FUSED;
}

/*
 * A stream of small writes is TCP's, and so are files; and TCP is faster for a socket
 * in no map (by 2 to 4 times at 64 bytes).  Once either has lasted, both ends leave:
 * from now on nothing is fused behind what the reader has taken, so that
 * bpf_contrack.bpf.c can seal the direction.
 */
static __always_inline void count_streamed(struct direction *direction, u32 more)
{
	direction->streamed += more;
	if (direction->streamed >= LEAVE_MESSAGES && direction->peer)
		direction->leaving = 1;
}

/* To leave the map it goes by TCP, but not into the seam behind fused bytes. */
static __always_inline bool is_leaving(struct direction *direction)
{
	return direction->sealed ||
	       (direction->leaving && no_fused_bytes(psock_of(direction->peer)));
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
 * A reader that keeps pace has every message of a stream fused.  So each SAMPLE of
 * small ones is judged: it counts as streamed if no answer came in between and no pause.
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

/*
 * The peer's psock goes when the peer closes; a send that then waits to deliver fails
 * with EPIPE, where TCP's would not.  So this is the last that is asked.  What remains is
 * the kernel's own window, from here to sk_psock_get() in tcp_bpf_sendmsg_redir(): of
 * 10,000 sends that met a close 0 to 2 failed, and 85 without this rule.
 */
static __always_inline bool is_going(struct tcp_sock *peer)
{
	return !psock_of(peer);
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

static __always_inline void count_message(u32 size)
{
	struct counters *c = array_value(&fuse_counters);

	if (c) {
		__sync_fetch_and_add(&c->fused_messages, 1);
		__sync_fetch_and_add(&c->fused_bytes, size);
	}
}

SEC("sk_msg")
int bpf_redir(struct sk_msg_md *msg)
{
	struct settings *set = array_value(&fuse_settings);
	struct tcp_sock *own, *known, *peer;
	struct direction *direction;
	bool several;
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
	outcome = writer_speaks_against(set, own);
	if (!outcome && direction && is_leaving(direction))
		outcome = OUTCOME(tcp_backlog_number);
	if (outcome)
		goto by_tcp;
	known = direction ? direction->peer : NULL;
	if (known) {
		outcome = falls_back(msg, set, own, known, direction);
		if (outcome)
			goto by_tcp;
	}

	peer = in_map(own) ? redirect(msg, own) : NULL;
	if (!peer) {
		outcome = OUTCOME(tcp_peer_unknown);
		if (direction && is_alone(own, direction))
			direction->alone = 1;
		goto by_tcp;
	}
	if (peer != known) {
		if (direction)
			direction->peer = peer;
		outcome = falls_back(msg, set, own, peer, direction);
		if (outcome)
			goto by_tcp;
	}
	if (msg->size >= BULK_BYTES && streams(own, peer) &&
	    backlog_of(peer) > CACHE_BYTES)
		gather(msg);
	await_lock(peer);
	if (is_going(peer)) {
		outcome = OUTCOME(tcp_peer_unknown);
		goto by_tcp;
	}

	count_message(msg->size);
	several = several_readers(peer);
	if (!direction &&
	    (several || msg->size >= BULK_BYTES || bpf_get_prandom_u32() % SAMPLE == 0)) {
		direction = direction_of(msg);
		if (direction)
			direction->peer = peer;
	}
	if (direction) {
		direction->leaving |= several;
		direction->quiet = 0;
		direction->outcome = FUSED;
		direction->fused_bytes += msg->size;
		if (msg->size < BULK_BYTES)
			count_fused(direction, own, peer);
	}
	return SK_PASS;

by_tcp:
	count(outcome);
	send_by_own_tcp(msg, own);
	make_whole(msg, own);
	direction = direction_of(msg);
	if (direction) {
		note_reader(set, direction, outcome);
		if (!direction->quiet)
			direction->quiet = quiet(own);
		direction->outcome = outcome;
		count_by_tcp(direction, msg->size, outcome);
	}
	return SK_PASS;
}
