/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * What the two programs of sockfuse share: the pair key, the maps, the
 * settings and the counters.
 *
 * bpf_contrack.bpf.c puts every local socket into sock_ops_map when its
 * handshake ends; bpf_redirect.bpf.c decides for each message whether it may
 * be handed straight to the peer (fused) or goes by TCP (falls back).
 */
#ifndef SOCKFUSE_BPF_SOCKMAP_H
#define SOCKFUSE_BPF_SOCKMAP_H

#include "../vmlinux.h"
#include <bpf/bpf_core_read.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#define AF_INET 2
#define AF_INET6 10
#define PAGE_SIZE 4096
#define EPOLLET (1U << 31)
#define O_NONBLOCK 04000 /* of all but alpha, mips, parisc and sparc */
#define MAX_WAITERS 16
#define LOOPBACK_NET bpf_htonl(0x7f000000)
#define LOOPBACK_MASK bpf_htonl(0xff000000)

/* bpftool cannot lend maps to an iterator: libbpf finds them by their names. */
#ifndef PINNING
#define PINNING LIBBPF_PIN_NONE
#endif

/*
 * The pair key names a socket by the handshake it took part in: the two
 * initial sequence numbers (host byte order) and the network namespace whose
 * loopback device carried it.  No address stands in it, so IPv4, IPv6 and
 * v4-mapped ends of one connection meet, and equal addresses in two namespaces
 * never do.  A socket is stored under the key that its peer computes.
 *
 * Where the two ends may be in different namespaces (load.sh --net), the end says
 * which of the two it is instead; pair() in bpf_contrack.bpf.c tells why.
 */
#define CONNECTED 1
#define ACCEPTED 2

struct pair_key {
	u64 netns;	/* address of the struct net; or CONNECTED or ACCEPTED */
	u32 sender_isn; /* of the end that looks the key up */
	u32 peer_isn;
};

struct {
	__uint(type, BPF_MAP_TYPE_SOCKHASH);
	__uint(max_entries, 65536); /* load.sh --max-connections */
	__type(key, struct pair_key);
	__type(value, u64); /* bpftool dumps the socket cookies */
} sock_ops_map SEC(".maps");

/* Written by the scripts; bytes, so that no script needs the byte order. */
struct settings {
	u8 fuse;  /* 0: every message goes by TCP, no socket enters the map */
	u8 trace; /* 1: a line in the trace pipe for each end of a connection */
	u8 marks; /* MARKS_...: look at fuse_marks; bpf_guard.bpf.c, load.sh --careful */
	u8 careful; /* 1: fuse only for readers that have been seen to read plainly */
	u8 account; /* 1: bytes and age of each connection, struct direction */
	u8 min_age; /* seconds; not 0: bpf_adopt.bpf.c alone puts sockets into the map */
	u8 nets;    /* 1: fuse_nets holds networks; bpf_contrack.bpf.c */
	u8 listed;  /* 1: only services whose ports are in fuse_ports; bpf_enter.h */
	u8 refresh; /* seconds after which a message goes by TCP again; 0: never */
	u8 nonblocking; /* 1: bpf_adopt.bpf.c takes ends that are O_NONBLOCK alone */
	u8 sealed;	/* 1: fuse_sealed is to be looked at; set by bpf_contrack.bpf.c */
	u8 splicers;	/* not 0: who may splice stays out, bpf_splicers.h; 2: no guard */
};

struct {
	__uint(pinning, PINNING);
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, u32);
	__type(value, struct settings);
} fuse_settings SEC(".maps");

/*
 * What bpf_guard.bpf.c has seen the application do on a socket, by its cookie.
 * Without that object this stays empty.
 */
#define MARK_READER 1 /* reads as only TCP can: what it receives goes by TCP */
#define MARK_WRITER 2 /* writes as only TCP can */
#define MARK_PLAIN 4  /* has read as either path serves; --careful only */

/* Of struct settings; 0: there are none */
#define MARKS_KEPT 1
#define MARKS_LOST 2 /* there was no room: a socket without marks may have had them */

struct marks {
	u64 seen; /* MARK_... */
};

/*
 * Marks go when their socket leaves the map or closes.  load.sh makes room for twice as
 * many sockets as sock_ops_map has, since those of an earlier load have marks here, too.
 * So nobody can fill it who cannot fill sock_ops_map.
 */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 65536);
	__type(key, u64);
	__type(value, struct marks);
} fuse_marks SEC(".maps");

/*
 * Services whose next connections are plain TCP from the start, for what was seen of an
 * earlier one (enum reason).  What a client did concerns that user's connections to the
 * service alone; what the service itself did concerns ANYBODY's.
 */
#define ANYBODY (~0U) /* the kernel's own "no user" */

struct service {
	u32 netns; /* inode number, as in /proc/PID/ns/net */
	u32 port;  /* that it listens on, host byte order */
	u32 user;  /* who connects, as the first user namespace numbers users; ANYBODY */
};

struct {
	__uint(pinning, PINNING);
	__uint(type,
	       BPF_MAP_TYPE_LRU_HASH); /* who fills it pushes out what is not used */
	__uint(max_entries, 16384);
	__type(key, struct service);
	__type(value, u32); /* enum reason */
} fuse_guarded SEC(".maps");

enum reason {
	REASON_SPLICE = 1,
	REASON_RECV_FLAGS,     /* MSG_WAITALL, MSG_TRUNC, MSG_OOB */
	REASON_SEND_FLAGS,     /* MSG_OOB */
	REASON_INTERRUPTED,    /* a blocking recv answered EAGAIN */
	REASON_ULP,	       /* TCP_ULP: kTLS */
	REASON_MAY_SPLICE,     /* bpf_splicers.h */
	REASON_SPLICED_BEFORE, /* the same, of a service from before the load whose
				  socket could not be marked; it stays, whoever listens
				  there later */
};

/*
 * Ends, by their keys in sock_ops_map, whose peer has sealed its direction: it sends by
 * TCP alone from now on, and none of its fused messages is under way (seal() in
 * bpf_contrack.bpf.c).  Such an end may leave the map.  One whose entry is evicted
 * stays in the map, which costs speed alone.
 */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 8192);
	__type(key, struct pair_key);
	__type(value, u8);
} fuse_sealed SEC(".maps");

/* One for each outcome, in messages or connections unless the name says bytes. */
struct counters {
	u64 fused_messages;
	u64 fused_bytes;
	u64 tcp_switched_off;
	u64 tcp_socket_state;  /* closing, repair mode, upper-layer protocol, is_shared()
				*/
	u64 tcp_socket_option; /* a reader or writer asked for what only TCP has */
	u64 tcp_guarded;  /* the guard saw such a call; --careful: or saw no read yet */
	u64 tcp_sendfile; /* SENDFILE_BYTES of a file, which TCP sends without a copy */
	u64 tcp_peer_unknown;	/* the other end is not in the map */
	u64 tcp_refresh;	/* no segment for long: NAT would forget the connection */
	u64 tcp_in_flight;	/* TCP bytes the peer has not read yet */
	u64 tcp_backlog_bytes;	/* enough bytes wait for the peer's reader */
	u64 tcp_backlog_number; /* enough messages wait for the peer's reader */
	u64 tcp_edge_triggered; /* the peer's reader is, and there is more than it may get
				   fused */
	u64 tcp_memory;		/* the kernel might refuse to charge the peer */
	u64 tcp_blocked_reader; /* the peer's reader may sit inside tcp_recvmsg */
	u64 ends_tracked;	/* sockets that entered the map */
	u64 ends_left_out;	/* kernel socket, repair mode, upper-layer protocol */
	u64 ends_excluded;	/* load.sh --port, --exclude-port */
	u64 ends_remote;     /* load.sh --net: the other end is none that is known here */
	u64 ends_guarded;    /* their service is in fuse_guarded */
	u64 ends_may_splice; /* they or their peers may, bpf_splicers.h */
	u64 ends_map_full;
	u64 ends_refused; /* in another map already, or the kernel did not take it */
	u64 ends_unfused; /* left the map while they lived, leave() */
};

struct {
	__uint(pinning, PINNING);
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, u32);
	__type(value, struct counters);
} fuse_counters SEC(".maps");

/*
 * What a direction keeps, by its sender's socket.  Without load.sh --account it has one
 * of these only once it has sent bytes by TCP or BULK_BYTES at a time, its reader did not
 * keep up, or one of its messages was drawn for SAMPLE: short connections that never fall
 * back pay for none.
 */
#define SEEN (1ULL << 32)

struct direction {
	/* Spares a redirect that would be taken back; steers only. */
	struct tcp_sock *peer;
	/* SEEN | write_seq when no reader of the peer was inside tcp_recvmsg() */
	u64 returned;
	u32 waiting;  /* no more messages than these wait, edge_reader_full() */
	u16 stream;   /* so many small messages go by TCP once nothing waits */
	u32 small;    /* messages below BULK_BYTES that were fused */
	u32 streamed; /* count_streamed() */
	u32 blocked;  /* messages in a row, reader_blocked() */
	u64 futile; /* ktime until which the reader is not waited for, reader_catches_up()
		     */
	u64 sampled; /* ktime of the last SAMPLE of small ones */
	u8 seam;     /* has sent by TCP to an edge-triggered reader, bpf_contrack.bpf.c */
	u8 adopted;  /* nothing has gone by TCP since both ends are in the map */
	u8 leaving;  /* is to leave the map: goes by TCP once nothing fused waits */
	u8 quiet;  /* none of its messages is under way, quiet() in bpf_redirect.bpf.c */
	u8 alone;  /* its peer has not entered the map and never will */
	u8 paired; /* its peer was seen in the map */
	u8 sealed; /* goes by TCP for good; its reader was told so, fuse_sealed */
	u8 shared; /* another sockops program wants HDR_OPT_LEN_CB, too */
	int disconnects;   /* sk_disconnects when the socket entered the map */
	u64 probing_since; /* ktime, mend_as_reader(); 0: it does not */
	int keepalive;	   /* these as the application had set them */
	int keepidle;
	int keepintvl;
	int keepcnt;
	u32 outcome;	 /* of the last message, OUTCOME() */
	u64 since;	 /* ktime at which it was established; 0: not accounted */
	u64 fused_bytes; /* since it has this storage */
};

struct {
	__uint(pinning, PINNING);
	__uint(type, BPF_MAP_TYPE_SK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, int);
	__type(value, struct direction);
} fuse_directions SEC(".maps");

/*
 * READ(address, field): a field of a kernel structure whose address may be
 * stale; 0 if it cannot be read.  bpf_rdonly_cast() (6.2) makes it one load,
 * whose fault the kernel mends; before, bpf_probe_read_kernel() is called.
 */
#ifndef OLD_LOADER
extern void *bpf_rdonly_cast(const void *obj, u32 btf_id) __ksym __weak;
#else /* libbpf before 0.6 does not load what names a function of the kernel */
#define bpf_rdonly_cast(obj, btf_id) ((void *)(obj))
static void *const bpf_rdonly_cast = NULL;
#endif

#define CAST(address)                                                                    \
	((typeof(address))bpf_rdonly_cast(address,                                       \
					  bpf_core_type_id_kernel(typeof(*(address)))))

#define READ(address, field)                                                             \
	({                                                                               \
		typeof((address)->field) value;                                          \
		if (bpf_rdonly_cast)                                                     \
			value = CAST(address)->field;                                    \
		else                                                                     \
			bpf_core_read(&value, sizeof(value), &(address)->field);         \
		value;                                                                   \
	})

/* The same for a bitfield, or a field whose size differs between kernels. */
#define READ_BITFIELD(address, field)                                                    \
	(bpf_rdonly_cast ? BPF_CORE_READ_BITFIELD(CAST(address), field)                  \
			 : BPF_CORE_READ_BITFIELD_PROBED(address, field))

static __always_inline void *array_value(void *map)
{
	u32 zero = 0;

	return bpf_map_lookup_elem(map, &zero);
}

/*
 * Atomic although per CPU: these programs can be preempted between the load
 * and the store, and a counter that loses counts explains nothing.
 */
#define COUNT(counter)                                                                   \
	do {                                                                             \
		struct counters *c = array_value(&fuse_counters);                        \
		if (c)                                                                   \
			__sync_fetch_and_add(&c->counter, 1);                            \
	} while (0)

/* The outcome of a message: the place of its counter. */
#define OUTCOME(counter) (offsetof(struct counters, counter) / sizeof(u64))
#define FUSED OUTCOME(fused_messages) /* 0 */

static __always_inline void count(u32 outcome)
{
	struct counters *c = array_value(&fuse_counters);

	asm volatile(""
		     : "+r"(outcome)); /* or the check is of a copy, and not of what is
					  added */
	if (c && outcome < sizeof(*c) / sizeof(u64))
		__sync_fetch_and_add((u64 *)c + outcome, 1);
}

/* What bpf_skc_to_tcp_sock() returns can be read like memory of our own. */
static __always_inline struct sock *sk_of(struct tcp_sock *tp)
{
	return &tp->inet_conn.icsk_inet.sk;
}

/* What bpf_guard.bpf.c has seen of this socket; 0 where nobody looks. */
static __always_inline u64 marks_of(struct tcp_sock *tp)
{
	u64 cookie = READ(sk_of(tp), __sk_common.skc_cookie.counter);
	struct marks *marks = bpf_map_lookup_elem(&fuse_marks, &cookie);
	struct settings *set = array_value(&fuse_settings);

	if (marks)
		return marks->seen;
	return set && set->marks == MARKS_LOST ? MARK_READER | MARK_WRITER : 0;
}

/* --careful: nothing is fused to a reader before it has been seen to read plainly. */
static __always_inline bool reader_unseen(struct settings *set, struct tcp_sock *peer)
{
	return set->careful && !(marks_of(peer) & MARK_PLAIN);
}

/* Bits below the pointer in sk_user_data; a psock has the first and not the second. */
#define SK_USER_DATA_NOCOPY 1ULL
#define SK_USER_DATA_BPF 2ULL
#define SK_USER_DATA_BITS 7ULL

/*
 * NULL if the socket is in no map.  A reader inside the kernel (iSCSI, say) keeps a bare
 * pointer of its own there, over that to the psock if there was one.
 */
static __always_inline struct sk_psock *psock_of(struct tcp_sock *tp)
{
	u64 data = (u64)READ(sk_of(tp), sk_user_data);

	if ((data & (SK_USER_DATA_NOCOPY | SK_USER_DATA_BPF)) != SK_USER_DATA_NOCOPY)
		return NULL;
	return (void *)(data & ~SK_USER_DATA_BITS);
}

/* Nothing fused waits for the reader of this psock, which may be NULL. */
static __always_inline bool no_fused_bytes(struct sk_psock *psock)
{
	struct list_head *head = &psock->ingress_msg;

	return !psock || READ(head, next) == head;
}

/* The map's reference, and one of each call that is inside the socket's psock. */
static __always_inline u32 references(struct sk_psock *psock)
{
	return READ(psock, refcnt.refs.counter);
}

/*
 * What ties the psock to the first map that it is in.  That is sock_ops_map or no map of
 * ours at all: a socket that has a psock already does not enter (kept_out()), and maps
 * of others come behind.
 */
static __always_inline struct sk_psock_link *link_of(struct sk_psock *psock)
{
	return (void *)READ(psock, link.next) -
	       bpf_core_field_offset(struct sk_psock_link, list);
}

/*
 * Is this end still in sock_ops_map?  It leaves under its own lock alone, so whoever
 * holds that may rely on the answer.
 */
static __always_inline bool in_map(struct tcp_sock *own)
{
	struct sk_psock *psock = psock_of(own);

	return psock && (u64)READ(link_of(psock), map) == (u64)&sock_ops_map;
}

/*
 * Another program has this socket in a map of its own, too, and may want to see what
 * comes, or send something of its own there.
 */
static __always_inline bool is_shared(struct tcp_sock *tp)
{
	struct sk_psock *psock = psock_of(tp);

	return READ(psock, link.next) != READ(psock, link.prev);
}

/* The kernel itself reads, and takes EAGAIN for an error (nbd, usbip). */
static __always_inline bool kernel_reads(struct tcp_sock *tp)
{
	return bpf_core_field_exists(struct sock, sk_use_task_frag) &&
	       !READ(sk_of(tp), sk_use_task_frag);
}

/*
 * The address, once what was seen has been read.  x86 keeps loads in order anyway; arm64
 * keeps those whose address comes from the value of one before, as here.
 */
static __always_inline u64 after(u64 seen, u64 address)
{
	asm volatile("%0 &= 0\n\t%1 += %0" : "+r"(seen), "+r"(address));
	return address;
}

/* Nor does anything wait that an earlier load has fused to it, without --careful. */
static __always_inline bool nothing_fused(struct settings *set, struct tcp_sock *tp)
{
	struct sk_psock *psock;

	if (!reader_unseen(set, tp))
		return false;
	psock = psock_of(tp);
	return no_fused_bytes(psock);
}

static __always_inline bool never_waits(struct tcp_sock *peer)
{
	struct socket *socket = READ(sk_of(peer), sk_socket);
	struct file *file = READ(socket, file);

	return READ(file, f_flags) & O_NONBLOCK;
}

/* Sleeps of receive functions, and of connect(2), wake by this; those of poll do not. */
extern const void woken_wake_function __ksym __weak;
/* Where they sleep for TCP bytes alone, where for fused ones too, where for neither. */
extern const void tcp_recvmsg __ksym __weak;
extern const void tcp_recvmsg_locked __ksym __weak;
extern const void tcp_splice_read __ksym __weak;
extern const void tcp_bpf_recvmsg __ksym __weak;
extern const void inet_stream_connect __ksym __weak;
extern const void __inet_stream_connect __ksym __weak;
/* Waits of poll(2) and select(2). */
extern const void pollwake __ksym __weak;
/* Waits of epoll, for as long as the socket is in its set, and of io_uring. */
extern const void ep_poll_callback __ksym __weak;
extern const void io_poll_wake __ksym __weak;
extern const void io_async_wake __ksym __weak; /* until 5.16, of what is not a poll */

#define WAITER_IN_TCP 1	 /* may sleep inside tcp_recvmsg() */
#define WAITER_EDGE 2	 /* is told once of what there is: told_once() */
#define WAITER_LATER 4	 /* none yet: not accepted, or O_NONBLOCK and not polled */
#define SLEEPER 0x100	 /* for each that sleeps in a call on the socket, and */
#define HARMLESS 0x10000 /* for each of those that sleeps harmlessly */
#define HOLDER 0x1000000 /* for each whose call holds a reference to the file */
#define SLEEPERS(found) ((found) / SLEEPER % (HARMLESS / SLEEPER))
#define HARMLESS_ONES(found) ((found) / HARMLESS % (HOLDER / HARMLESS))
#define HOLDERS(found) ((found) / HOLDER)

#define SLEEPS_IN_TCP 1
#define SLEEPS_FUSED 2
#define SLEEPS_CONNECTING 3

#define STACK_BELOW 128 /* bytes, from the waiter's entry on its stack */
#define STACK_CHUNKS 10
#define STACK_WORDS 8
#define ADDRESS_BITS ((1ULL << 48) - 1) /* arm64 signs return addresses above */
#define IO_WAIT_BITS 3ULL /* io_uring marks its waits by these, over the request */
#define REQ_F_FIXED_FILE 1
#define PF_IO_WORKER 0x10	/* linux/sched.h: a thread that works for io_uring */
#define RECEIVE_BYTES 16384	/* more than any of these functions has */
#define CONNECT_BYTES 1024	/* inet_recvmsg() is not far behind */
#define TEXT_BYTES (1ULL << 28) /* around any of them lies all kernel text */

static __always_inline bool inside(u64 word, const void *function, u64 size)
{
	return function && ((word - (u64)function) & ADDRESS_BITS) < size;
}

/* A pointer as a number: what a global function may be called with. */
static __always_inline u64 address_of(const void *pointer)
{
	u64 address = 0;

	bpf_probe_read_kernel(&address, sizeof(address), &pointer);
	return address;
}

/*
 * SLEEPS_FUSED: in tcp_bpf_recvmsg(), which sees fused bytes; SLEEPS_CONNECTING: in
 * connect(2); else SLEEPS_IN_TCP.  The sleeper's stack tells: close above its entry in
 * the wait queue (and for arm64 just below) are the addresses that its functions return
 * to.  What earlier calls have left on the stack may look like one.  The address in
 * connect(2) is so near that the first one found counts.  That in tcp_bpf_recvmsg() is
 * further up, so it counts only if no address in TCP is found; a reader in
 * tcp_recvmsg() has two of those.
 */
__weak u32 sleeps_in(u64 waiter)
{
	u64 stack[STACK_WORDS], at = waiter - STACK_BELOW;
	u32 found = SLEEPS_IN_TCP;

	if (!&tcp_recvmsg || !&tcp_splice_read || !&tcp_bpf_recvmsg)
		return SLEEPS_IN_TCP;
	for (int chunk = 0; chunk < STACK_CHUNKS; chunk++, at += sizeof(stack)) {
		if (bpf_probe_read_kernel(stack, sizeof(stack), (void *)at))
			return SLEEPS_IN_TCP;
		for (int i = 0; i < STACK_WORDS; i++) {
			if (!inside(stack[i] + TEXT_BYTES / 2, &tcp_recvmsg, TEXT_BYTES))
				continue; /* most */
			if (inside(stack[i], &tcp_recvmsg, RECEIVE_BYTES) ||
			    inside(stack[i], &tcp_recvmsg_locked, RECEIVE_BYTES) ||
			    inside(stack[i], &tcp_splice_read, RECEIVE_BYTES))
				return SLEEPS_IN_TCP;
			if (inside(stack[i], &tcp_bpf_recvmsg, RECEIVE_BYTES))
				found = SLEEPS_FUSED;
			if (found == SLEEPS_IN_TCP &&
			    (inside(stack[i], &inet_stream_connect, CONNECT_BYTES) ||
			     inside(stack[i], &__inet_stream_connect, CONNECT_BYTES)))
				return SLEEPS_CONNECTING;
		}
	}
	return found;
}

/*
 * Does this waiter of epoll or io_uring learn of what there is only once?  An
 * edge-triggered epoll does, and one that is itself in the set of another epoll may.
 * Of io_uring a multishot poll does, and the others have the same function.
 */
static __always_inline bool told_once(struct wait_queue_entry *waiter, const void *func)
{
	struct eppoll_entry *entry =
		(void *)waiter - bpf_core_field_offset(struct eppoll_entry, wait);
	struct list_head *outer;
	struct epitem *item;

	if (func != &ep_poll_callback)
		return &io_poll_wake && func == &io_poll_wake;
	item = READ(entry, base);
	if (READ(item, event.events) & EPOLLET)
		return true;
	outer = &READ(item, ep)->poll_wait.head;
	return READ(outer, next) != outer;
}

/*
 * The same number, but unknown to the verifier.  Until 6.2 it tells apart all values of
 * every number that it knows, in a program with functions, and walks on from each.
 */
static __always_inline u64 unknown(u64 number, u64 argument)
{
	asm volatile("%0 += %1\n\t%0 -= %1" : "+r"(number) : "r"(argument));
	return number;
}

/*
 * Does the call of this waiter hold a reference to the socket's file?  One that sleeps in
 * the socket does if its task shares its descriptors with another (fdget()), poll(2)
 * always does (__pollwait()), and io_uring unless the file is registered.  Of its workers
 * nobody knows.
 */
static __always_inline bool holds_file(struct wait_queue_entry *waiter, const void *func)
{
	struct task_struct *task = READ(waiter, private);
	struct files_struct *files;
	struct io_kiocb *request;

	if (func == &woken_wake_function) {
		files = READ(task, files);
		return !(READ(task, flags) & PF_IO_WORKER) &&
		       READ(files, count.counter) > 1;
	}
	if ((&io_poll_wake && func == &io_poll_wake) ||
	    (&io_async_wake && func == &io_async_wake)) {
		request = (void *)((u64)task & ~IO_WAIT_BITS);
		return bpf_core_field_exists(request->flags) &&
		       !(READ_BITFIELD(request, flags) & REQ_F_FIXED_FILE);
	}
	return &pollwake && func == &pollwake;
}

/*
 * Who waits in the peer's wait queue; epoll does while it watches the socket.
 * harmless: 0, or the SLEEPS_... of those to count as HARMLESS, and not as in TCP; only
 * then their stacks are looked at.  A global function: the verifier walks through its
 * loop once, and not for every way that leads to a call.
 */
__weak u32 waiters_of(u64 address, u32 harmless)
{
	struct tcp_sock *peer = (void *)address;
	struct socket *socket = READ(sk_of(peer), sk_socket);
	struct file *file = READ(socket, file);
	struct socket_wq *queue;
	struct list_head *head, *pos, *last;
	u32 once = 0, left = 0;
	u64 found;

	if (!socket)
		return WAITER_LATER;
	queue = READ(sk_of(peer), sk_wq);
	if (READ(queue, fasync_list)) /* O_ASYNC: a signal for each edge */
		once = WAITER_EDGE;
	head = &queue->wait.head;
	pos = READ(head, next);
	if (pos == head)
		return unknown(once, address)
			       ?: READ(file, f_flags) & O_NONBLOCK ? WAITER_LATER
								   : 0;
	if (!&woken_wake_function || !&ep_poll_callback)
		return WAITER_IN_TCP | WAITER_EDGE; /* hidden: kernel.kptr_restrict = 2 */
	found = unknown(once, address);
	for (int i = 0; i < MAX_WAITERS; i++) {
		struct wait_queue_entry *waiter;
		const void *func;

		waiter = (void *)pos -
			 bpf_core_field_offset(struct wait_queue_entry, entry);
		func = (const void *)READ(waiter, func);
		if (func == &woken_wake_function) {
			found += SLEEPER;
			if (harmless && sleeps_in(address_of(waiter)) == harmless)
				found += HARMLESS;
			else
				found |= WAITER_IN_TCP;
		} else if (told_once(waiter, func)) {
			found |= WAITER_EDGE;
		}
		if (harmless && holds_file(waiter, func))
			found += HOLDER;
		last = pos;
		pos = READ(pos, next);
		if (pos == last || !pos) { /* it has just left the queue: once more */
			left = WAITER_IN_TCP;
			pos = READ(head, next);
			found = unknown(once, address);
		}
		if (pos == head)
			return found;
	}
	return found | (left ?: WAITER_IN_TCP | WAITER_EDGE); /* many */
}

static __always_inline u32 waiters(struct tcp_sock *peer)
{
	return waiters_of(address_of(peer), 0);
}

/* addr: network byte order */
static __always_inline bool is_loopback4(u32 addr)
{
	return (addr & LOOPBACK_MASK) == LOOPBACK_NET;
}

/* words: network byte order; ::1 or ::ffff:127.0.0.0/104 */
static __always_inline bool is_loopback6(u32 *words)
{
	if (words[0] || words[1])
		return false;
	return words[2] ? words[2] == bpf_htonl(0xffff) && is_loopback4(words[3])
			: words[3] == bpf_htonl(1);
}

/* Policy, unless load.sh --net says more: which connections may be fused at all. */
static __always_inline bool both_ends_loopback(struct tcp_sock *tp)
{
	struct sock_common *common = &sk_of(tp)->__sk_common;

	if (common->skc_family == AF_INET)
		return is_loopback4(common->skc_rcv_saddr) &&
		       is_loopback4(common->skc_daddr);
	return common->skc_family == AF_INET6 &&
	       is_loopback6(common->skc_v6_rcv_saddr.in6_u.u6_addr32) &&
	       is_loopback6(common->skc_v6_daddr.in6_u.u6_addr32);
}

/*
 * The key under which a sockhash holds the socket; false if none does.  The sockhash may
 * be sock_ops_map, that of an earlier load, whose sockets stay in it, or another
 * program's: only in_map() tells.
 */
static __always_inline bool stored_key(struct tcp_sock *tp, struct pair_key *key)
{
	struct sk_psock *psock = psock_of(tp);
	struct bpf_shtab_elem *elem;

	if (!psock)
		return false;
	elem = READ(link_of(psock), link_raw);
	/* The kernel's own sockets keep other things in sk_user_data. */
	if (READ(elem, sk) != sk_of(tp))
		return false;
	return !bpf_probe_read_kernel(key, sizeof(*key), &elem->key);
}

/*
 * The two numbers as this end sees them.  The counters advance in step
 * (tcp_snd_una_update, tcp_rcv_nxt_update), so the differences are constant
 * for the life of a connection: nothing has to be remembered for it.
 *
 * sender_isn is the initial sequence number itself on the side that connected,
 * where bytes_acked counts the SYN, and one more on the side that accepted.
 * peer_isn is one more than the initial sequence number on both.
 */
static __always_inline struct pair_key isns_of(struct tcp_sock *tp)
{
	return (struct pair_key){
		.netns = (u64)sk_of(tp)->__sk_common.skc_net.net,
		.sender_isn = tp->snd_una - (u32)tp->bytes_acked,
		.peer_isn = tp->rcv_nxt - (u32)tp->bytes_received,
	};
}

/* The key under which the peer is stored, of an end that knows which it is. */
static __always_inline struct pair_key peer_key_of(struct tcp_sock *tp, bool connected)
{
	struct pair_key key = isns_of(tp);

	if (!both_ends_loopback(tp))
		key.netns = connected ? ACCEPTED : CONNECTED;
	return key;
}

/*
 * The same, of an end that does not know which it is.  Where that matters, the element of
 * the map tells; false: the socket is in none.
 */
static __always_inline bool peer_key(struct tcp_sock *tp, struct pair_key *key)
{
	struct pair_key stored;

	*key = isns_of(tp);
	if (both_ends_loopback(tp))
		return true;
	if (!stored_key(tp, &stored))
		return false;
	key->netns = stored.netns == CONNECTED ? ACCEPTED : CONNECTED;
	return true;
}

/* The key under which the socket itself is stored: its peer's view. */
static __always_inline struct pair_key own_key(struct tcp_sock *tp, bool connected)
{
	struct pair_key key = isns_of(tp);
	u32 isn = key.sender_isn;

	if (!both_ends_loopback(tp))
		key.netns = connected ? CONNECTED : ACCEPTED;
	key.sender_isn = connected ? key.peer_isn : key.peer_isn - 1;
	key.peer_isn = connected ? isn + 1 : isn;
	return key;
}

/*
 * Which end is this?  The sequence number of its first byte is one more than
 * isns_of() says on the end that connected, and the same on the one that accepted.
 * False: the counters do not tell (a segment that the host itself dropped).
 */
static __always_inline bool tell_end(struct tcp_sock *tp, bool *connected)
{
	u32 first = tp->snd_nxt - (u32)tp->bytes_sent + (u32)tp->bytes_retrans;
	u32 ahead = first - isns_of(tp).sender_isn;

	*connected = ahead == 1;
	return ahead <= 1;
}

/*
 * The service that is concerned by what this end does.  connected: this end did, so its
 * user counts; the one that accepted cannot know who connected.
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

/*
 * Repair mode (tcp_repair in tcp(7)) chooses its own sequence numbers; an
 * upper-layer protocol (kTLS, an MPTCP subflow, SMC fallback) changes what
 * the bytes mean.
 */
static __always_inline bool not_plain_tcp(struct tcp_sock *tp)
{
	return BPF_CORE_READ_BITFIELD(tp, repair) || tp->inet_conn.icsk_ulp_ops;
}

#endif /* SOCKFUSE_BPF_SOCKMAP_H */
