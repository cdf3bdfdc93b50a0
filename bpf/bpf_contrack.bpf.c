// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/*
 * Puts both ends of every loopback connection into sock_ops_map, and of every other
 * one between addresses of load.sh --net.
 *
 * A socket can enter a sockhash from sockops only in the two ESTABLISHED callbacks; the
 * kernel takes it out when it closes (sock_map_close, sock_map_unhash).  The two ends
 * enter one after the other, in any order and sometimes late: bpf_redirect.bpf.c sends by
 * TCP until it finds its peer.
 */
#include "diallers.h"
#include "enter.h"
#include "flows.h"
#include "nets.h"
#include "seam.h"

#define E2BIG 7
#define SOCK_NOSPACE (1 << 2) /* linux/net.h */

/*
 * Keeps what can be seen only now: how often the socket was disconnected before, for
 * closed(); whether another sockops program of the host has asked for the callback
 * already, for stop_calling(); when the connection began, for load.sh --account.  Few
 * sockets have something to remember.  False: there is no memory for it.
 */
static __always_inline bool remember(struct bpf_sock_ops *skops, struct settings *set,
				     int disconnects)
{
	bool shared = skops->bpf_sock_ops_cb_flags & BPF_SOCK_OPS_WRITE_HDR_OPT_CB_FLAG;
	struct bpf_sock *sk = skops->sk;
	struct direction *direction;

	if (!sk || (!set->account && !disconnects && !shared))
		return true;
	direction = direction_of(sk);
	if (!direction)
		return false;
	direction->disconnects = disconnects;
	direction->shared = shared;
	if (set->account)
		direction->since = bpf_ktime_get_ns();
	return true;
}

/*
 * The counter that tells why this end stays out, 0 if it may enter.  A reader that went
 * to sleep in tcp_recvmsg() before the handshake ended would not see fused bytes.  Only a
 * client whose connect() does not wait can have one.
 */
static __always_inline u32 stays_out(struct bpf_sock_ops *skops, struct bpf_sock *sk,
				     struct settings *set, struct tcp_sock *tp,
				     bool connected, bool local)
{
	struct service service = service_of(tp, connected);
	u32 outcome = local && !connected ? follow_word(tp) : 0;

	if (!outcome)
		outcome = excluded(set, &service);
	if (!outcome)
		outcome = kept_out(tp, &service, connected);
	if (!outcome && IS_SPLICERS(set, sk)) {
		outcome = OUTCOME(ends_may_splice);
		if (!connected) /* another address of the port may have made it forget */
			note_splicers_service(tp);
	}
	if (!outcome && waiters_of(address_of(tp), SLEEPS_CONNECTING) & WAITER_IN_TCP)
		outcome = OUTCOME(ends_left_out);
	if (!outcome && !remember(skops, set, disconnects_of(tp)))
		outcome = OUTCOME(ends_refused);
	if (!outcome && !local)
		outcome = pair(skops, tp, connected);
	return outcome;
}

/* As stays_out(). */
static __always_inline u32 put_in(struct bpf_sock_ops *skops, struct settings *set,
				  struct tcp_sock *tp, bool connected, bool local)
{
	struct service service = service_of(tp, connected);
	struct pair_key key = own_key(tp, connected);
	/* BPF_NOEXIST: who comes later with a known key never takes it over. */
	long err = bpf_sock_hash_update(skops, &sock_ops_map, &key, BPF_NOEXIST);

	if (err) {
		if (!local)
			unpair(tp, false);
		return err == -E2BIG ? OUTCOME(ends_map_full) : OUTCOME(ends_refused);
	}
	COUNT(ends_tracked);
	bpf_sock_ops_cb_flags_set(skops, skops->bpf_sock_ops_cb_flags | CALLBACKS);
	if (connected) /* what --port names is always fused, so nothing is learned */
		begin_flow(isns_as_one(tp), &service, set->listed);
	else
		join_flow(tp);
	return 0;
}

static __always_inline void track(struct bpf_sock_ops *skops)
{
	bool connected = skops->op == BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB, local;
	struct settings *set = array_value(&fuse_settings);
	struct bpf_sock *sk = skops->sk;
	struct tcp_sock *tp;
	u32 outcome;

	if (!set || !set->fuse)
		return;
	tp = sk ? bpf_skc_to_tcp_sock(sk) : NULL;
	if (!tp)
		return;
	local = both_ends_loopback(tp);
	if (!local && !(set->nets && both_ends_in_nets(tp)))
		return;
	if (set->trace)
		trace_end(tp, connected);
	outcome = stays_out(skops, sk, set, tp, connected, local);
	if (!outcome)
		outcome = put_in(skops, set, tp, connected, local);
	if (outcome)
		count(outcome);
	if (connected && local)
		leave_word(tp, outcome);
}

/* Before it (5.19, and stable kernels) a reset takes a socket out (sock_map_unhash). */
extern const void sock_map_destroy __ksym __weak;

/* What was known of the old connection, and the options that were set for it. */
static __always_inline void forget_direction(struct bpf_sock_ops *skops)
{
	struct bpf_sock *sk = skops->sk;
	struct direction *direction;

	if (!sk)
		return;
	direction = bpf_sk_storage_get(&fuse_directions, sk, NULL, 0);
	if (!direction) /* as good as every connect() */
		return;
	if (direction->probing_since)
		stop_probing(skops, direction);
	bpf_sk_storage_delete(&fuse_directions, sk);
}

/*
 * connect(AF_UNSPEC) leaves a socket in the map, with what it has not read:
 * connected again, it would read the old connection's bytes as the new one's.
 * To take the socket out drops them, as tcp_disconnect() does with its own.
 * Its counters may be gone by now, so the key comes from the map's element.
 */
static __always_inline void forget(struct bpf_sock_ops *skops)
{
	struct tcp_sock *tp = skops->sk ? bpf_skc_to_tcp_sock(skops->sk) : NULL;
	struct pair_key key;

	forget_direction(skops);
	if (!tp || !in_map(tp) || !stored_key(tp, &key))
		return;
	bpf_map_delete_elem(&sock_ops_map, &key);
	forget_marks(tp);
}

/*
 * connect(AF_UNSPEC), at once.  Of an established socket only a disconnect changes
 * sk_disconnects (__inet_stream_connect(), under the lock, just before this).  A
 * connect() that failed has done so too, but before the socket entered the map.  Before
 * 6.6 a disconnect cannot be told from the other ways to TCP_CLOSE, and forget() learns
 * of it at the next connect().
 *
 * The other ways are a reset and a timeout.  They leave what has not been read, as TCP
 * does.  Where nothing is left the socket goes, too: from then on its calls fail as TCP's
 * do (tcp_bpf_sendmsg() would tell the same error again and again).  A message that is
 * still under way to it comes after the end of the connection.
 */
static __always_inline void closed(struct bpf_sock_ops *skops)
{
	struct tcp_sock *tp = skops->sk ? bpf_skc_to_tcp_sock(skops->sk) : NULL;
	struct bpf_sock *sk = skops->sk;
	struct direction *direction;

	if (!tp || !sk)
		return;
	end_flow(tp);
	unpair(tp, true);
	if (!&sock_map_destroy)
		forget_marks(tp);
	if (!psock_of(tp))
		return;
	direction = bpf_sk_storage_get(&fuse_directions, sk, NULL, 0);
	if (disconnects_of(tp) != (direction ? direction->disconnects : 0) ||
	    no_fused_bytes(psock_of(tp)))
		forget(skops);
}

/*
 * shutdown(SHUT_WR).  A thread that then sleeps in recv is woken by the acknowledgement
 * of the FIN (tcp_rcv_state_process()), and in the map it would answer EAGAIN, where
 * TCP's sleeps on.  Until this returns, nobody can go to sleep there, as the lock is
 * held.  So the end takes itself out now, if nothing fused waits for it and
 * nothing_comes().  One that polls does, too: O_NONBLOCK may change at any time, and both
 * ends must come to the same answer.
 */
static __always_inline void leave_half_closed(struct bpf_sock_ops *skops,
					      struct tcp_sock *tp, u32 found)
{
	struct bpf_sock *sk = skops->sk;
	struct direction *direction;
	struct pair_key key;
	u64 peer;

	if (!sk || sk_of(tp)->sk_shutdown & RCV_SHUTDOWN ||
	    !no_fused_bytes(psock_of(tp)) || !stored_key(tp, &key))
		return;
	/* Another call may be inside that sends, or is on its way to sleep. */
	if (references(psock_of(tp)) - 1 != HARMLESS_ONES(found) || found & WAITER_IN_TCP)
		return;
	/* A peer that left in the steps of leave.h was sealed, so its address is known.
	 */
	peer = peer_of(tp);
	direction = bpf_sk_storage_get(&fuse_directions, sk, NULL, 0);
	if (peer == NO_PEER && direction)
		peer = address_of(direction->peer);
	if (peer == PEER_UNKNOWN || (peer != NO_PEER && !nothing_comes(peer)))
		return;
	bpf_map_delete_elem(&fuse_sealed, &key);
	if (!bpf_map_delete_elem(&sock_ops_map, &key))
		COUNT(ends_unfused);
	forget_marks(tp);
}

/*
 * This end half-closes (TCP_FIN_WAIT1), or its FIN has been acknowledged (TCP_FIN_WAIT2).
 * Either wakes who sleeps in recv by now, which answers EAGAIN.  That cannot be helped,
 * but the service's next connections are plain TCP.
 */
static __always_inline void half_closes(struct bpf_sock_ops *skops)
{
	struct tcp_sock *tp = skops->sk ? bpf_skc_to_tcp_sock(skops->sk) : NULL;
	u32 found;

	if (!tp || !in_map(tp))
		return;
	found = waiters_of(address_of(tp), SLEEPS_FUSED);
	if (HARMLESS_ONES(found))
		learn(tp, REASON_INTERRUPTED);
	if (skops->args[1] == BPF_TCP_FIN_WAIT1)
		leave_half_closed(skops, tp, found);
}

/*
 * A socket that is out of the map needs the callback no more, and pays for it with each
 * call of sendmsg() (tcp_current_mss()).  Its flag is one for all sockops programs of the
 * host, so it stays where another one had set it.
 */
static __always_inline void stop_calling(struct bpf_sock_ops *skops,
					 struct direction *direction)
{
	u32 flags = skops->bpf_sock_ops_cb_flags;

	if (!direction || !(direction->shared || direction->probing_since))
		bpf_sock_ops_cb_flags_set(skops,
					  flags & ~BPF_SOCK_OPS_WRITE_HDR_OPT_CB_FLAG);
}

/*
 * What is acknowledged soon makes room in TCP's send buffer, and that wakes who sleeps in
 * recv by now (SOCK_NOSPACE), which answers EAGAIN.  It cannot be helped here.
 * wakes_writer() sees what comes from a send that slept.  This sees the rest: a send with
 * MSG_DONTWAIT or a poll() found no room, and then a recv blocks.
 */
static __always_inline bool room_wakes_reader(struct tcp_sock *tp)
{
	struct socket *socket = READ(sk_of(tp), sk_socket);

	return READ(socket, flags) & SOCK_NOSPACE && !never_waits(tp) && in_map(tp) &&
	       HARMLESS_ONES(waiters_of(address_of(tp), SLEEPS_FUSED));
}

/* Before each segment of an end that was tracked, under its lock. */
static __always_inline void before_segment(struct bpf_sock_ops *skops)
{
	struct settings *set = array_value(&fuse_settings);
	struct bpf_sock *sk = skops->sk;
	struct direction *direction;
	struct tcp_sock *tp;

	tp = sk ? bpf_skc_to_tcp_sock(sk) : NULL;
	if (!tp || !set)
		return;
	leave_if_alone(tp);
	if (room_wakes_reader(tp))
		learn(tp, REASON_RECV_BESIDE_SEND);
	direction = bpf_sk_storage_get(&fuse_directions, sk, NULL, 0);
	if (direction && direction->peer) {
		if (direction->seam)
			mend_as_sender(direction);
		if (direction->leaving)
			seal(set, tp, direction);
	}
	leave(set, tp, direction, direction && direction->sealed);
	if (!nothing_fused(set, tp) && tcp_bytes_wait(tp))
		mend_as_reader(skops, set, tp, direction);
	else if (direction && direction->probing_since &&
		 bpf_ktime_get_ns() - direction->probing_since > PROBING_NS)
		stop_probing(skops, direction);
	if (is_out(tp))
		stop_calling(skops, direction);
}

SEC("sockops")
int bpf_sockops(struct bpf_sock_ops *skops)
{
	switch (skops->op) {
	case BPF_SOCK_OPS_TCP_CONNECT_CB:
		forget(skops);
		mark_splicer(skops, false);
		break;
	case BPF_SOCK_OPS_TCP_LISTEN_CB:
		mark_splicer(skops, true);
		break;
	case BPF_SOCK_OPS_STATE_CB:
		if (skops->args[1] == BPF_TCP_CLOSE)
			closed(skops);
		else if (skops->args[1] == BPF_TCP_FIN_WAIT1 ||
			 skops->args[1] == BPF_TCP_FIN_WAIT2)
			half_closes(skops);
		break;
	case BPF_SOCK_OPS_HDR_OPT_LEN_CB:
		before_segment(skops);
		break;
	case BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB:
	case BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB:
		track(skops);
	}
	/* 0 becomes -EPERM: tcp_call_bpf() would drop the answers of others, too. */
	return 1;
}
