/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * The kernel types and fields that sockfuse reads, and no others: this list
 * is what sockfuse depends on inside the kernel.  Offsets written here mean
 * nothing; each access is relocated against the running kernel's BTF when an
 * object is loaded (CO-RE).  tests/vmlinux.bats holds every name in it against
 * that BTF.  What user space may see comes from <linux/bpf.h>.
 */
#ifndef SOCKFUSE_VMLINUX_H
#define SOCKFUSE_VMLINUX_H

#include <stdbool.h>
#include <linux/bpf.h>

typedef __u8 u8;
typedef __u16 u16;
typedef __u32 u32;
typedef __u64 u64;

#pragma clang attribute push(__attribute__((preserve_access_index)), apply_to = record)

struct list_head {
	struct list_head *next, *prev;
};

struct hlist_node {
	struct hlist_node *next;
};

struct hlist_head {
	struct hlist_node *first;
};

typedef struct {
	int counter;
} atomic_t;

typedef struct {
	long counter;
} atomic_long_t;

typedef struct {
	atomic_t refs;
} refcount_t;

typedef struct {
	long long counter;
} atomic64_t;

/* net/net_namespace.h, net/netns/ipv4.h, linux/ns_common.h */
struct netns_ipv4 {
	int sysctl_tcp_wmem[3];
	int sysctl_tcp_rmem[3];
};

struct ns_common {
	unsigned int inum;
};

struct net {
	struct ns_common ns;
	u64 net_cookie; /* atomic64_t before 5.12: not taken for this */
	struct netns_ipv4 ipv4;
};

typedef struct {
	struct net *net;
} possible_net_t;

/* linux/page_counter.h, linux/memcontrol.h: counts are in pages */
struct page_counter {
	atomic_long_t usage;
	unsigned long max;
	struct page_counter *parent;
};

/* linux/cgroup-defs.h, linux/kernfs.h */
struct kernfs_node {
	u64 id; /* the inode number of the directory */
};

struct cgroup_subsys_state {
	struct cgroup *cgroup;
	struct cgroup_subsys_state *parent;
};

struct cgroup {
	struct cgroup_subsys_state self;
	struct kernfs_node *kn;
};

struct sock_cgroup_data {
	struct cgroup *cgroup;
};

struct mem_cgroup {
	struct page_counter memory;
	struct page_counter tcpmem; /* cgroup v1 only */
};

/* linux/wait.h, linux/net.h */
typedef int (*wait_queue_func_t)(void);

struct wait_queue_entry {
	void *private; /* the task that sleeps */
	wait_queue_func_t func;
	struct list_head entry;
};

struct wait_queue_head {
	struct list_head head;
};

typedef struct wait_queue_head wait_queue_head_t;

/* linux/fs.h, linux/rbtree_types.h, linux/file_ref.h */
struct rb_node {
	unsigned long __rb_parent_color;
};

struct rb_root {
	struct rb_node *rb_node;
};

struct rb_root_cached {
	struct rb_root rb_root;
};

struct address_space {
	struct rb_root_cached i_mmap; /* the mappings of a file */
};

struct inode {
	unsigned short i_mode;
	struct address_space i_data;
};

typedef struct {
	atomic64_t refcnt;
} file_ref_t;

/* linux/pipe_fs_i.h, linux/sched.h */
struct pipe_inode_info {
	unsigned int head;
	unsigned int tail;
};

struct sigaction {
	void (*sa_handler)(int);
};

struct k_sigaction {
	struct sigaction sa;
};

struct sighand_struct {
	struct k_sigaction action[64];
};

struct files_struct {
	atomic_t count; /* tasks that share these descriptors */
};

struct task_struct {
	char comm[16]; /* name of the thread; before 5.17 not filled up with zeros */
	struct task_struct *group_leader;
	struct sighand_struct *sighand;
	struct files_struct *files;
	unsigned int flags;   /* PF_... */
	void *worker_private; /* of a thread that works for io_uring: struct io_worker */
	struct pipe_inode_info *splice_pipe;
	unsigned long nvcsw; /* how often it has slept */
};

/* io_uring/io-wq.c, linux/io_uring_types.h */
struct io_wq_work {
};

struct io_worker {
	struct io_wq_work *cur_work; /* is that of a struct io_kiocb */
};

struct io_kiocb {
	u8 opcode; /* IORING_OP_... */
	u64 flags; /* REQ_F_...; 32 bits before 6.8 */
	struct io_wq_work work;
};

struct file {
	unsigned int f_flags;
	struct inode *f_inode;
	void *private_data; /* of a socket's: struct socket */
	file_ref_t f_ref;   /* f_count before 6.13 */
};

struct sock;

struct socket {
	unsigned long flags; /* SOCK_NOSPACE */
	struct file *file;
	struct sock *sk;
};

struct socket_alloc {
	struct socket socket;
	struct inode vfs_inode;
};

/* linux/socket.h */
struct msghdr {
	unsigned int msg_flags;
};

struct fasync_struct;

struct socket_wq {
	wait_queue_head_t wait;
	struct fasync_struct *fasync_list; /* O_ASYNC */
};

/* linux/bpf_local_storage.h, kernel/bpf/bpf_local_storage.c: sk_storage */
struct bpf_map {
	char name[16];
	u32 value_size;
};

struct bpf_local_storage_map {
	struct bpf_map map;
};

struct bpf_local_storage_data {
	struct bpf_local_storage_map *smap;
	u8 data[0];
};

struct bpf_local_storage_elem {
	struct hlist_node snode;
	struct bpf_local_storage_data sdata;
};

struct bpf_local_storage {
	struct hlist_head list;
};

/* fs/eventpoll.c: what epoll_ctl() puts into a socket's wait queue */
struct epoll_event {
	u32 events;
};

struct eventpoll {
	wait_queue_head_t poll_wait; /* who polls this epoll itself */
};

struct epitem {
	struct eventpoll *ep;
	struct epoll_event event;
};

struct eppoll_entry {
	struct epitem *base;
	struct wait_queue_entry wait;
};

/* net/sock.h */
struct proto {
	int (*recvmsg)(void);
	atomic_long_t *memory_allocated; /* pages, all of TCP */
	long *sysctl_mem;		 /* net.ipv4.tcp_mem, pages */
};

enum sock_flags {
	SOCK_URGINLINE, /* SO_OOBINLINE */
	SOCK_RCVTSTAMP, /* SO_TIMESTAMP, SO_TIMESTAMPNS */
	SOCK_ZEROCOPY,
};

struct in6_addr {
	union {
		u32 u6_addr32[4];
	} in6_u;
};

struct sock_common {
	unsigned long skc_flags; /* bits of enum sock_flags */
	volatile unsigned char skc_state;
	struct proto *skc_prot;
	possible_net_t skc_net;
	u16 skc_family;
	u16 skc_num;	   /* local port, host byte order */
	u16 skc_dport;	   /* network byte order, as the addresses */
	u32 skc_rcv_saddr; /* of this end */
	u32 skc_daddr;
	struct in6_addr skc_v6_rcv_saddr;
	struct in6_addr skc_v6_daddr;
	atomic64_t skc_cookie; /* 0 until somebody asked for it */
};

typedef struct {
	u32 val;
} kuid_t;

typedef struct {
	int owned;
} socket_lock_t;

struct sock {
	struct sock_common __sk_common;
	struct {
		atomic_t rmem_alloc; /* bytes queued for the reader */
	} sk_backlog;
	u8 sk_userlocks;
	u16 sk_protocol;
	u8 sk_shutdown;	      /* RCV_SHUTDOWN: a FIN has come */
	int sk_wmem_queued;   /* bytes in TCP's send buffer */
	int sk_write_pending; /* calls that sleep until it has room */
	int sk_sndbuf;
	int sk_rcvbuf;
	struct socket *sk_socket; /* NULL until it is accepted */
	struct socket_wq *sk_wq;
	kuid_t sk_uid;	    /* who made it */
	void *sk_user_data; /* struct sk_psock, with flags in the low bits */
	struct mem_cgroup *sk_memcg;
	struct sock_cgroup_data sk_cgrp_data;
	struct bpf_local_storage *sk_bpf_storage;
	socket_lock_t sk_lock;
	u32 sk_tsflags;	    /* SO_TIMESTAMPING; u16 before 6.6 */
	int sk_disconnects; /* connect(AF_UNSPEC) and connects that failed, for life;
			       6.6 and stable kernels */
	int sk_rcvlowat;
	u32 sk_txhash;	  /* random; what the skbs of this socket have as their hash */
	long sk_rcvtimeo; /* jiffies; LONG_MAX: none */
	int sk_peek_off;  /* negative: SO_PEEK_OFF not set */
	int sk_forward_alloc; /* bytes charged and not yet used */
	u8 sk_kern_sock : 1;
	bool sk_use_task_frag; /* false: the kernel reads, as nbd and iSCSI do; 6.2 */
	void (*sk_data_ready)(void);
};

/* net/inet_sock.h, net/inet_connection_sock.h, linux/tcp.h */
struct inet_sock {
	struct sock sk;
};

struct tcp_ulp_ops;

struct inet_connection_sock {
	struct inet_sock icsk_inet;
	const struct tcp_ulp_ops *icsk_ulp_ops;
};

struct tcp_sock {
	struct inet_connection_sock inet_conn;
	u32 rcv_nxt;
	u32 copied_seq; /* first byte the reader has not taken */
	u32 write_seq;	/* first byte the writer has not queued */
	u32 snd_una;
	u32 snd_nxt;
	u64 tcp_mstamp;	   /* of the last segment, us of CLOCK_MONOTONIC */
	u32 data_segs_out; /* segments with data, sent by TCP */
	u64 bytes_received;
	u64 bytes_acked;
	u64 bytes_sent;	    /* with what was sent again */
	u64 bytes_retrans;  /* that alone */
	u8 recvmsg_inq : 1; /* TCP_INQ */
	u8 repair : 1;
	u8 nonagle : 4; /* TCP_NODELAY is bit 0 */
};

/* linux/skbuff.h */
struct sk_buff {
	u32 hash;
	u8 l4_hash : 1; /* of a socket, or of ports */
	u8 sw_hash : 1; /* worked out from the packet by the kernel */
};

/* linux/filter.h: what struct bpf_sock_ops stands for */
struct bpf_sock_ops_kern {
	struct sk_buff *skb; /* in the ESTABLISHED callbacks, which ended the handshake */
};

/* linux/skmsg.h: struct sk_msg is what struct sk_msg_md stands for */
struct sk_msg_sg {
	u32 start; /* its pieces */
	u32 end;
};

struct sk_msg {
	struct sk_msg_sg sg;
	struct sock *sk_redir;
};

struct bpf_prog_aux {
	u32 id;
};

struct bpf_prog {
	struct bpf_prog_aux *aux;
};

struct sk_psock_progs {
	struct bpf_prog *msg_parser; /* the verdict program */
};

struct sk_psock {
	bool redir_ingress; /* where its last redirect went */
	struct list_head ingress_msg;
	u32 msg_tot_len;       /* bytes in it; FIONREAD tells them where this exists */
	refcount_t refcnt;     /* one for the map, one for each call that is inside */
	struct list_head link; /* of struct sk_psock_link */
};

struct sk_psock_link {
	struct list_head list;
	struct bpf_map *map;
	void *link_raw; /* the map's element */
};

/* net/core/sock_map.c: a sockhash and its elements */
struct bpf_shtab_elem {
	u32 hash;
	struct sock *sk;
	struct hlist_node node;
	u8 key[0];
};

struct bpf_shtab_bucket {
	struct hlist_head head;
};

struct bpf_shtab {
	struct bpf_map map;
	struct bpf_shtab_bucket *buckets;
	u32 buckets_num; /* a power of 2 */
	struct sk_psock_progs progs;
};

/* linux/bpf.h, net/core/sock_map.c: what an iter/sockmap program is given */
struct seq_file;

struct bpf_iter_meta {
	struct seq_file *seq;
	u64 session_id; /* of the open(2) of the pin */
};

struct bpf_iter__sockmap {
	struct bpf_iter_meta *meta;
	struct bpf_map *map;
	void *key;
	struct sock *sk; /* NULL in the last call */
};

/* kernel/bpf/task_iter.c: what an iter/task_file program is given */
struct bpf_iter__task_file {
	struct task_struct *task;
	struct file *file; /* both NULL in the last call */
};

/* net/ipv4/tcp_ipv4.c: what an iter/tcp program is given */
struct bpf_iter__tcp {
	struct bpf_iter_meta *meta;
	struct sock_common *sk_common; /* NULL in the last call */
};

#pragma clang attribute pop

#endif /* SOCKFUSE_VMLINUX_H */
