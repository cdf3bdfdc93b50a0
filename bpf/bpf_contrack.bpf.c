// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/*
 * Puts both ends of every loopback connection into sock_ops_map, and of every other
 * one between addresses of load.sh --net.
 *
 * A socket can enter a sockhash from sockops only in the two ESTABLISHED
 * callbacks; the kernel takes it out when it closes (sock_map_close,
 * sock_map_unhash).  The two ends enter one after the other, in any order and
 * sometimes late: bpf_redirect.bpf.c sends by TCP until it finds its peer.
 */
#include "bpf_enter.h"
#include "bpf_splicers.h"

#define E2BIG 7
#define SOL_SOCKET 1 /* asm-generic/socket.h, as the options */
#define SO_KEEPALIVE 9
#define SO_RCVLOWAT 18
#define SOL_TCP 6
#define TCP_KEEPIDLE 4
#define TCP_KEEPINTVL 5
#define TCP_KEEPCNT 6
#define RCV_SHUTDOWN 1
#define TCP_SYN_RECV 3
#define PROBING_NS 1000000000
#define PROBE 1	      /* of the options that start_probing() sets: yes, and a second */
#define PROBES 127    /* that may go unanswered, the most there can be */
#define BUCKET_MAX 64 /* elements of a sockhash's bucket, which has two or so */

char LICENSE[] SEC("license") = "Dual BSD/GPL";

/* load.sh --net; IPv4 as ::ffff:a.b.c.d */
struct net_key {
	u32 prefixlen;
	u32 words[4]; /* network byte order */
};

struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 4096);
	__type(key, struct net_key);
	__type(value, u8);
} fuse_nets SEC(".maps");

/* Ends that connected between such addresses, by their own key, until both have closed.
 */
struct dialled {
	u64 connected; /* address of its tcp_sock */
	u64 accepted;  /* of the one end that was taken for its peer; NOBODY: none may be
			*/
	u32 txhash;
	u32 answer; /* hash of the packet that ended its handshake, the other's SYN-ACK */
	struct bpf_spin_lock lock; /* of accepted while it is 0 or NOBODY */
};

#define NOBODY 1

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 65536);
	__type(key, struct pair_key);
	__type(value, struct dialled);
} fuse_dialled SEC(".maps");

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
	direction = bpf_sk_storage_get(&fuse_directions, sk, NULL,
				       BPF_SK_STORAGE_GET_F_CREATE);
	if (!direction)
		return false;
	direction->disconnects = disconnects;
	direction->shared = shared;
	if (set->account)
		direction->since = bpf_ktime_get_ns();
	return true;
}

/*
 * A reader that went to sleep in tcp_recvmsg() before the handshake ended would not see
 * fused bytes.  Only a client whose connect() does not wait can have one.
 */
static __always_inline bool reader_asleep(struct tcp_sock *tp)
{
	return waiters_of(address_of(tp), SLEEPS_CONNECTING) & WAITER_IN_TCP;
}

static __always_inline bool in_nets(u32 word0, u32 word1, u32 word2, u32 word3)
{
	struct net_key key = {
		.prefixlen = 128,
		.words = { word0, word1, word2, word3 },
	};

	return is_loopback6(key.words) || bpf_map_lookup_elem(&fuse_nets, &key);
}

static __always_inline bool both_ends_in_nets(struct tcp_sock *tp)
{
	struct sock_common *common = &sk_of(tp)->__sk_common;
	u32 mapped = bpf_htonl(0xffff), *own, *peer;

	if (common->skc_family == AF_INET)
		return in_nets(0, 0, mapped, common->skc_rcv_saddr) &&
		       in_nets(0, 0, mapped, common->skc_daddr);
	own = common->skc_v6_rcv_saddr.in6_u.u6_addr32;
	peer = common->skc_v6_daddr.in6_u.u6_addr32;
	return common->skc_family == AF_INET6 &&
	       in_nets(own[0], own[1], own[2], own[3]) &&
	       in_nets(peer[0], peer[1], peer[2], peer[3]);
}

/*
 * Whose packet ended the handshake: a socket's skbs have its sk_txhash for their hash
 * (skb_set_hash_from_sk, tcp_make_synack), and keep it through loopback, veth, bridges
 * and NAT.  0: no socket's.  What the kernel works out from addresses and ports of a
 * packet (__skb_get_hash, for RPS or a queue) is marked by sw_hash; whoever makes packets
 * could tabulate that, and then send the one that has the hash he wants.
 */
static __always_inline u32 hash_of_last(struct bpf_sock_ops *skops)
{
	struct bpf_sock_ops_kern *kern = (void *)skops;
	struct sk_buff *skb = READ(kern, skb);

	if (!READ_BITFIELD(skb, l4_hash) || READ_BITFIELD(skb, sw_hash))
		return 0;
	return READ(skb, hash);
}

/*
 * Gives the place of the peer to one end, or to NOBODY, for good; false if another end
 * has it (from: NOBODY) or it was given at all (from: 0).
 *
 * accepted changes only here, from 0 or NOBODY, and in unpair(), by the end whose
 * address it is.  So under the lock one processor sees 0 and all others what it wrote:
 * an entry answers one guess, however many guess at once.  And an end that has made it
 * NOBODY may leave the map: none that accepted has entered for it, and none will.
 */
static __always_inline bool claim(struct dialled *found, u64 from, u64 accepted)
{
	bool free;

	bpf_spin_lock(&found->lock);
	free = found->accepted <= from;
	if (free)
		found->accepted = accepted;
	bpf_spin_unlock(&found->lock);
	return free;
}

/*
 * Between namespaces sequence numbers prove nothing: who owns one can choose its own,
 * and the peer's with a raw socket.  So who accepts enters only if each end has had a
 * packet of the other: the one that ended its handshake came from the very socket that
 * connected, and the one that ended that socket's came from this.  Both say so by a
 * random number that nobody can choose, nor see but who sees their packets.  A wrong one
 * leaves the socket that connected alone for good, so there is one guess in 2^64 and no
 * second.  (A SYN-ACK that is sent again, or a SYN cookie, has another number than the
 * end that accepts: that connection is TCP's.)  Both roles have keys of their own, and
 * the entry here outlives whoever of the two closes first, so what is stored under the
 * key of a live socket's peer is its peer or nothing.
 *
 * True: this end may enter.
 */
static __always_inline u32 pair(struct bpf_sock_ops *skops, struct tcp_sock *tp,
				bool connected)
{
	u32 last = hash_of_last(skops);
	struct dialled *found;
	struct pair_key key;
	bool peer;

	if (connected) {
		struct dialled dialled = {
			.connected = (u64)tp,
			.txhash = sk_of(tp)->sk_txhash,
			.answer = last,
		};

		key = own_key(tp, true);
		if (!bpf_map_update_elem(&fuse_dialled, &key, &dialled, BPF_NOEXIST))
			return 0;
		return bpf_map_lookup_elem(&fuse_dialled, &key) ? OUTCOME(ends_refused)
								: OUTCOME(ends_map_full);
	}
	key = peer_key_of(tp, false);
	found = bpf_map_lookup_elem(&fuse_dialled, &key);
	if (!found)
		return OUTCOME(ends_remote);
	peer = last && found->txhash == last && found->answer == sk_of(tp)->sk_txhash;
	if (!claim(found, 0, peer ? (u64)tp : NOBODY) || !peer)
		return OUTCOME(ends_remote);
	return 0;
}

/*
 * Who accepted takes the entry along, unless it never entered the map and the other
 * end is to leave it; one that connected and has no peer takes its own.
 */
static __always_inline void unpair(struct tcp_sock *tp, bool gone)
{
	struct pair_key key = own_key(tp, true);
	struct dialled *found;

	if (both_ends_loopback(tp))
		return;
	found = bpf_map_lookup_elem(&fuse_dialled, &key);
	if (found && found->connected == (u64)tp && claim(found, NOBODY, NOBODY))
		bpf_map_delete_elem(&fuse_dialled, &key);
	key = peer_key_of(tp, false);
	found = bpf_map_lookup_elem(&fuse_dialled, &key);
	if (found && found->accepted == (u64)tp) {
		found->accepted = NOBODY;
		if (gone)
			bpf_map_delete_elem(&fuse_dialled, &key);
	}
}

static __always_inline void track(struct bpf_sock_ops *skops)
{
	bool connected = skops->op == BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB;
	struct settings *set = array_value(&fuse_settings);
	struct bpf_sock *sk = skops->sk;
	struct pair_key key;
	struct tcp_sock *tp;
	u32 outcome;
	bool local;
	long err;

	if (!set || !set->fuse || set->min_age)
		return;
	tp = sk ? bpf_skc_to_tcp_sock(sk) : NULL;
	if (!tp)
		return;
	local = both_ends_loopback(tp);
	if (!local && !(set->nets && both_ends_in_nets(tp)))
		return;
	if (set->trace)
		trace_end(tp, connected);
	outcome = kept_out(set, tp, connected);
	if (!outcome && IS_SPLICERS(set, sk)) {
		outcome = OUTCOME(ends_may_splice);
		if (!connected) /* another address of the port may have made it forget */
			note_splicers_service(tp);
	}
	if (!outcome && reader_asleep(tp))
		outcome = OUTCOME(ends_left_out);
	if (!outcome && !remember(skops, set, disconnects_of(tp)))
		outcome = OUTCOME(ends_refused);
	if (!outcome && !local)
		outcome = pair(skops, tp, connected);
	if (outcome) {
		count(outcome);
		/* Before it acknowledges the SYN-ACK, by which the other end is
		 * established; that finds out by itself what port it has. */
		if (connected && outcome != OUTCOME(ends_excluded))
			keep_peer_out(tp, isns_of(tp).sender_isn, outcome);
		return;
	}

	key = own_key(tp, connected);
	/* BPF_NOEXIST: who comes later with a known key never takes it over. */
	err = bpf_sock_hash_update(skops, &sock_ops_map, &key, BPF_NOEXIST);
	if (!err) {
		COUNT(ends_tracked);
		bpf_sock_ops_cb_flags_set(skops,
					  skops->bpf_sock_ops_cb_flags | CALLBACKS);
	} else if (err == -E2BIG) {
		COUNT(ends_map_full);
	} else {
		COUNT(ends_refused);
	}
	if (err && connected)
		keep_peer_out(tp, isns_of(tp).sender_isn,
			      err == -E2BIG ? OUTCOME(ends_map_full)
					    : OUTCOME(ends_refused));
	if (err && !local)
		unpair(tp, false);
}

/* Before it (5.19, and stable kernels) a reset takes a socket out (sock_map_unhash). */
extern const void sock_map_destroy __ksym __weak;

/* bpf_guard.bpf.c does so when a socket in the map closes; this one is out of it. */
static __always_inline void forget_marks(struct tcp_sock *tp)
{
	u64 cookie = READ(sk_of(tp), __sk_common.skc_cookie.counter);

	bpf_map_delete_elem(&fuse_marks, &cookie);
}

static __always_inline void set_option(struct bpf_sock_ops *skops, int level, int option,
				       int value)
{
	bpf_setsockopt(skops, level, option, &value, sizeof(value));
}

/* Puts an option back, unless the application has set it meanwhile. */
static __always_inline void restore(struct bpf_sock_ops *skops, int level, int option,
				    int ours, int value)
{
	int now = 0;

	if (!bpf_getsockopt(skops, level, option, &now, sizeof(now)) && now == ours)
		set_option(skops, level, option, value);
}

static __always_inline void stop_probing(struct bpf_sock_ops *skops,
					 struct direction *direction)
{
	direction->probing_since = 0;
	restore(skops, SOL_TCP, TCP_KEEPIDLE, PROBE, direction->keepidle);
	restore(skops, SOL_TCP, TCP_KEEPINTVL, PROBE, direction->keepintvl);
	restore(skops, SOL_TCP, TCP_KEEPCNT, PROBES, direction->keepcnt);
	restore(skops, SOL_SOCKET, SO_KEEPALIVE, PROBE, direction->keepalive);
}

static __always_inline bool is_out(struct tcp_sock *tp)
{
	return !psock_of(tp);
}

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
	int before;

	if (!tp || !sk)
		return;
	unpair(tp, true);
	if (!&sock_map_destroy)
		forget_marks(tp);
	if (!psock_of(tp))
		return;
	direction = bpf_sk_storage_get(&fuse_directions, sk, NULL, 0);
	before = direction ? direction->disconnects : 0;
	if (disconnects_of(tp) != before || no_fused_bytes(psock_of(tp)))
		forget(skops);
}

/*
 * A socket leaves the map while it lives in three steps, so that no message is lost and
 * no send fails.  A is an end, B the other.  Each runs its part in HDR_OPT_LEN, before a
 * segment of its own and under its own lock, and takes out nobody but itself.
 *
 * 1. seal(), A: from now on A sends by TCP alone (direction->sealed, which
 *    bpf_redirect.bpf.c asks first, under the same lock), and no fused message of A is
 *    under way (direction->quiet; quiet() in bpf_redirect.bpf.c has the proof).  So
 *    B's fused queue never grows again.  A writes B's key into fuse_sealed.
 * 2. leave(), B: its direction is sealed by A, and its fused queue is empty.  B takes
 *    itself out.  A message of B may be under way to A: A is still in the map, and what
 *    is under way holds a reference to B's psock.  A call that sleeps inside B's
 *    tcp_bpf_recvmsg() holds one, too, and wakes by TCP's bytes.
 * 3. leave(), A: B has no psock.  So no call is inside it, and none of B's messages is
 *    under way: what it delivered to A was delivered under A's lock, before this.  Nor
 *    will there be one, since B is out.  A's fused queue is empty.  A takes itself out.
 *
 * An end that has closed has no psock, either: to the other that is as good as 3.  So is
 * one that never entered the map (direction->alone): nothing fused comes from it.  Who
 * has acknowledged or sent a byte after the handshake is past the callback in which it
 * would have entered, so an end that is not in the map then never will be, but by
 * adoption (is_alone() in bpf_redirect.bpf.c, peer_in_map() here).
 *
 * What is read of the other end: each reads the other's queue, but for step 3, only so
 * that no TCP byte gets behind a fused one of an edge-triggered reader; a stale answer
 * costs that reader time (mend_as_reader()).  Once B's psock is gone, it never comes
 * back.  The cached address of B may be another socket's once B has been freed; then B
 * has closed, and it is right to leave A in the map, and right to take it out.
 */

/* But for the map, nobody holds the psock of a socket that is in it. */
static __always_inline bool nobody_inside(struct tcp_sock *tp)
{
	return references(psock_of(tp)) == 1 && in_map(tp);
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

/* By TCP this end would get behind what it has sent fused. */
static __always_inline bool answer_waits(struct direction *direction)
{
	return direction && direction->peer && !no_fused_bytes(psock_of(direction->peer));
}

/* Steps 2 and 3; wanted: the latter has a use, too. */
static __always_inline void leave(struct settings *set, struct tcp_sock *tp,
				  struct direction *direction, bool wanted)
{
	struct sk_psock *psock = psock_of(tp);
	struct pair_key key;

	bool alone = direction && (direction->alone || (wanted && direction->peer &&
							is_out(direction->peer)));

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

/* before_segment() runs again each second, before the segment of tcp_keepalive_timer().
 */
static __always_inline void start_probing(struct bpf_sock_ops *skops)
{
	struct bpf_sock *sk = skops->sk;
	struct direction *direction;
	int size = sizeof(int);

	if (!sk)
		return;
	direction = bpf_sk_storage_get(&fuse_directions, sk, NULL,
				       BPF_SK_STORAGE_GET_F_CREATE);
	if (!direction || direction->probing_since ||
	    bpf_getsockopt(skops, SOL_SOCKET, SO_KEEPALIVE, &direction->keepalive,
			   size) ||
	    bpf_getsockopt(skops, SOL_TCP, TCP_KEEPIDLE, &direction->keepidle, size) ||
	    bpf_getsockopt(skops, SOL_TCP, TCP_KEEPINTVL, &direction->keepintvl, size) ||
	    bpf_getsockopt(skops, SOL_TCP, TCP_KEEPCNT, &direction->keepcnt, size))
		return;
	direction->probing_since = bpf_ktime_get_ns();
	set_option(skops, SOL_TCP, TCP_KEEPIDLE, PROBE);
	set_option(skops, SOL_TCP, TCP_KEEPINTVL, PROBE);
	set_option(skops, SOL_TCP, TCP_KEEPCNT, PROBES);
	set_option(skops, SOL_SOCKET, SO_KEEPALIVE, PROBE);
}

/* TCP bytes that the reader has not taken; a FIN is none. */
static __always_inline bool tcp_bytes_wait(struct tcp_sock *tp)
{
	u32 fin = sk_of(tp)->sk_shutdown & RCV_SHUTDOWN;

	return (int)(tp->rcv_nxt - fin - tp->copied_seq) > 0;
}

/*
 * As the sender of TCP bytes, before they leave.  A reader that is told once of what
 * there is meets no seam if its end leaves the map before it reads.
 */
static __always_inline void mend_as_sender(struct direction *direction)
{
	u32 found = waiters(direction->peer);

	if (found & WAITER_EDGE)
		direction->leaving = 1;
	else if (!(found & WAITER_LATER))
		direction->seam = 0;
}

#define ROTATED(word, bits) ((word) << (bits) | (word) >> (32 - (bits)))

/* jhash() of a key, as sock_hash_bucket_hash() has it. */
static __always_inline u32 hash_of_key(struct pair_key *key)
{
	u32 a, b, c, words[4] = {};

	/* Else the verifier would see half a pointer to a network namespace. */
	bpf_probe_read_kernel(words, sizeof(words), key);
	a = b = c = 0xdeadbeef + sizeof(words);
	a += words[0], b += words[1], c += words[2];
	a = (a - c) ^ ROTATED(c, 4), c += b;
	b = (b - a) ^ ROTATED(a, 6), a += c;
	c = (c - b) ^ ROTATED(b, 8), b += a;
	a = (a - c) ^ ROTATED(c, 16), c += b;
	b = (b - a) ^ ROTATED(a, 19), a += c;
	c = (c - b) ^ ROTATED(b, 4), b += a;
	a += words[3];
	c = (c ^ b) - ROTATED(b, 14), a = (a ^ c) - ROTATED(c, 11);
	b = (b ^ a) - ROTATED(a, 25), c = (c ^ b) - ROTATED(b, 16);
	a = (a ^ c) - ROTATED(c, 4), b = (b ^ a) - ROTATED(a, 14);
	return (c ^ b) - ROTATED(b, 24);
}

/*
 * Is the peer of an end that is in the map there, too?  A sockops program may not look a
 * socket up, so this walks through the bucket as sock_hash_lookup_elem_raw() does, under
 * the same RCU lock: what was there before and stays there is found.  The element of this
 * end tells the hash that the kernel computed of its key; where ours differs, or the
 * bucket is full, the answer is yes, which is as if nobody had asked.
 */
static __noinline bool peer_in_map(struct tcp_sock *tp)
{
	struct sk_psock *psock = psock_of(tp);
	struct bpf_shtab_elem *elem;
	struct pair_key key, other;
	struct sk_psock_link *link;
	struct bpf_shtab *table;
	struct hlist_node *node;
	u64 bucket;
	u32 hash;

	if (!in_map(tp) || !stored_key(tp, &key))
		return true;
	link = link_of(psock);
	elem = READ(link, link_raw);
	if (READ(elem, hash) != hash_of_key(&key) || !peer_key(tp, &key))
		return true;
	table = (void *)READ(link, map) - bpf_core_field_offset(struct bpf_shtab, map);
	hash = hash_of_key(&key);
	bucket = (u64)READ(table, buckets) +
		 (u64)(hash & (READ(table, buckets_num) - 1)) *
			 bpf_core_type_size(struct bpf_shtab_bucket);
	node = READ((struct bpf_shtab_bucket *)bucket, head.first);
	for (int i = 0; node; i++, node = READ(node, next)) {
		elem = (void *)node - bpf_core_field_offset(struct bpf_shtab_elem, node);
		if (i == BUCKET_MAX ||
		    bpf_probe_read_kernel(&other, sizeof(other), &elem->key))
			return true;
		if (other.netns == key.netns && other.sender_isn == key.sender_isn &&
		    other.peer_isn == key.peer_isn)
			return true;
	}
	return false;
}

/*
 * As the reader of TCP bytes, before they are acknowledged.  Once the fused
 * ones have been read, the kernel is made to tell again of TCP's:
 * tcp_set_rcvlowat() does when SO_RCVLOWAT is set to what it is.  While fused
 * bytes wait, nothing will happen on the socket when they are read (the sender
 * may be gone by then), so it probes the peer until they are.
 */
static __always_inline void mend_as_reader(struct bpf_sock_ops *skops,
					   struct settings *set, struct tcp_sock *tp,
					   struct direction *direction)
{
	struct bpf_sock *sk = skops->sk;
	u32 found = waiters(tp);
	struct sk_psock *psock;

	if (!sk || !(found & (WAITER_EDGE | WAITER_LATER)))
		return;
	if (!direction)
		direction = bpf_sk_storage_get(&fuse_directions, sk, NULL,
					       BPF_SK_STORAGE_GET_F_CREATE);
	/* With a SYN's data (TCP Fast Open), or adopted, the peer may be on its way. */
	if (direction && !direction->paired && !direction->adopted &&
	    sk_of(tp)->__sk_common.skc_state != TCP_SYN_RECV) {
		direction->paired = peer_in_map(tp);
		direction->alone |= !direction->paired;
	}
	leave(set, tp, direction, found & WAITER_EDGE);
	psock = psock_of(tp);
	if (psock)
		start_probing(skops);
	if (found & WAITER_EDGE && no_fused_bytes(psock))
		set_option(skops, SOL_SOCKET, SO_RCVLOWAT, sk_of(tp)->sk_rcvlowat);
}

/*
 * load.sh --net: an end that connected and has an answer, or its bytes acknowledged,
 * has a peer that is past its handshake.  If that has not entered, it is on another
 * host, or not to be fused; nothing was fused to this end, which leaves the map.
 */
static __always_inline void leave_if_alone(struct tcp_sock *tp)
{
	struct pair_key key = own_key(tp, true);
	struct dialled *found;

	if (both_ends_loopback(tp) || !psock_of(tp))
		return;
	found = bpf_map_lookup_elem(&fuse_dialled, &key);
	if (!found || found->connected != (u64)tp)
		return;
	if (tp->bytes_acked <= 1 && !tp->bytes_received) /* the SYN alone */
		return;
	if (!claim(found, NOBODY, NOBODY))
		return;
	if (!bpf_map_delete_elem(&sock_ops_map, &key))
		COUNT(ends_remote);
	forget_marks(tp);
	bpf_map_delete_elem(&fuse_dialled, &key);
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
		break;
	case BPF_SOCK_OPS_HDR_OPT_LEN_CB:
		before_segment(skops);
		break;
	case BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB:
	case BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB:
		track(skops);
	}
	/*
	 * Always 1: 0 becomes -EPERM in bpf_prog_run_array_cg(), and
	 * tcp_call_bpf() then drops the answer of any other sockops program.
	 */
	return 1;
}
