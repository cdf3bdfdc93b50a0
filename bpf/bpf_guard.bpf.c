// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/*
 * Optional: sees what no state of a socket shows, namely what the application does
 * with it.  Where a fused socket would answer a call otherwise than TCP, the
 * direction goes by TCP from then on (fuse_marks), and so do the next connections
 * of the service from their start (services.h).
 *
 * All but guard_splice() and guard_ulp() attach to functions that the kernel puts in
 * place of TCP's for a socket in a sockhash, so no other socket pays for them.  Needs
 * BTF trampolines; load.sh says so where the kernel has none.
 */
#include "services.h"
#include <linux/io_uring.h>

#define EAGAIN 11
#define EINVAL 22
#define MAY_READ 4 /* linux/fs.h */
#define MSG_OOB 0x1
#define MSG_TRUNC 0x20
#define MSG_DONTWAIT 0x40
#define MSG_WAITALL 0x100
#define LONG_MAX ((long)(~0UL >> 1))
/* Of each architecture and of its 32-bit programs */
#define NR_SPLICE_X86_64 275
#define NR_SENDFILE_X86_64 40
#define NR_SPLICE_I386 313
#define NR_SENDFILE_I386 187
#define NR_SENDFILE64_I386 239
#define X32_SYSCALL_BIT 0x40000000
#define NR_SPLICE_ARM64 76
#define NR_SENDFILE_ARM64 71
#define NR_SPLICE_ARM 340
#define NR_SENDFILE_ARM 187
#define NR_SENDFILE64_ARM 239

extern const void tcp_bpf_recvmsg __ksym __weak; /* static: known by its address alone */

#pragma clang attribute push(__attribute__((preserve_access_index)), apply_to = record)
struct pt_regs___x86 {
	unsigned long orig_ax;
};
struct pt_regs___arm64 {
	int syscallno;
};
struct task_struct___before_5_17 {
	void *pf_io_worker; /* what worker_private is now */
};
#pragma clang attribute pop

static __always_inline bool splices_x86(u64 call)
{
	call &= ~X32_SYSCALL_BIT;
	return call == NR_SPLICE_X86_64 || call == NR_SPLICE_I386 ||
	       call == NR_SENDFILE_X86_64 || call == NR_SENDFILE_I386 ||
	       call == NR_SENDFILE64_I386;
}

static __always_inline bool splices_arm(int call)
{
	return call == NR_SPLICE_ARM64 || call == NR_SPLICE_ARM ||
	       call == NR_SENDFILE_ARM64 || call == NR_SENDFILE_ARM ||
	       call == NR_SENDFILE64_ARM;
}

/* What the worker is at; false where the kernel does not say. */
static __always_inline bool worker_splices(struct task_struct *task)
{
	struct task_struct___before_5_17 *older = (void *)task;
	struct io_worker *worker = NULL;
	struct io_kiocb *request = NULL;
	struct io_wq_work *work;

	if (bpf_core_field_exists(older->pf_io_worker))
		worker = BPF_CORE_READ(older, pf_io_worker);
	else if (bpf_core_field_exists(task->worker_private))
		worker = BPF_CORE_READ(task, worker_private);
	if (!worker || !bpf_core_field_exists(worker->cur_work) ||
	    !bpf_core_field_exists(request->work))
		return false;
	work = BPF_CORE_READ(worker, cur_work);
	if (!work)
		return false;
	request = CONTAINER(work, struct io_kiocb, work);
	return BPF_CORE_READ(request, opcode) == IORING_OP_SPLICE;
}

/*
 * splice(2), or sendfile(2) into a pipe, which is the same; of io_uring a worker does
 * it.  A worker's registers are those that the thread which started it had, whatever
 * call that was in.  One test does for calls of 64 and of 32 bits: what has such a number
 * in the other table (mbind, say) reads no socket.
 */
static __always_inline bool in_splice_call(void)
{
	struct task_struct *task = bpf_get_current_task_btf();
	void *regs = (void *)bpf_task_pt_regs(task);
	struct pt_regs___x86 *x86 = regs;
	struct pt_regs___arm64 *arm64 = regs;

	if (BPF_CORE_READ(task, flags) & PF_IO_WORKER)
		return worker_splices(task);
	if (bpf_core_field_exists(x86->orig_ax))
		return splices_x86(BPF_CORE_READ(x86, orig_ax));
	if (bpf_core_field_exists(arm64->syscallno))
		return splices_arm(BPF_CORE_READ(arm64, syscallno));
	return false;
}

/*
 * Adds to the marks of a socket; returns those that it had, all if unknown.  Once there
 * was no room, every socket without marks counts as MARK_READER and MARK_WRITER.  The
 * socket may leave the map meanwhile: then its marks go here, or in forget_marks() if
 * that comes later, so none stay behind.
 */
static __always_inline u64 mark(struct sock *sk, u64 add)
{
	struct settings *set = array_value(&fuse_settings);
	struct tcp_sock *tp = bpf_skc_to_tcp_sock(sk);
	struct marks *marks, first = { .seen = add };
	u64 cookie = bpf_get_socket_cookie(sk);
	struct pair_key key;

	if (!set || !tp)
		return ~0ULL;
	marks = bpf_map_lookup_elem(&fuse_marks, &cookie);
	if (!marks && !bpf_map_update_elem(&fuse_marks, &cookie, &first, BPF_NOEXIST)) {
		if (set->marks != MARKS_LOST)
			set->marks = MARKS_KEPT;
		if (!stored_key(tp, &key))
			bpf_map_delete_elem(&fuse_marks, &cookie);
		return 0;
	}
	if (!marks)
		marks = bpf_map_lookup_elem(&fuse_marks, &cookie);
	if (!marks) {
		set->marks = MARKS_LOST;
		return ~0ULL;
	}
	if ((marks->seen & add) == add)
		return marks->seen;
	return __sync_fetch_and_or(&marks->seen, add);
}

static __always_inline void learn_of(struct sock *sk, u16 reason)
{
	struct tcp_sock *tp = bpf_skc_to_tcp_sock(sk);

	if (tp)
		learn(tp, reason);
}

/* With --careful, a reader that has not read yet gets nothing fused from now on. */
static __always_inline bool may_splice(struct sock *sk)
{
	struct settings *set = array_value(&fuse_settings);
	struct tcp_sock *tp = bpf_skc_to_tcp_sock(sk);
	struct sk_psock *psock = tp ? psock_of(tp) : NULL;

	return set && set->careful && psock && !(mark(sk, MARK_READER) & MARK_PLAIN) &&
	       no_fused_bytes(psock);
}

/*
 * Splice from a socket looks at TCP's queue only and would wait for ever.  EINVAL is
 * what it answers for a file that cannot be spliced; Go then reads.  (HAProxy may wait
 * for ever, so it is in the list splicers.)  The hook is the one that every read passes
 * (rw_verify_area), since every splice does, those of io_uring and of programs of 32
 * bits, too; docs/semantics.md says what it costs, and why no other will do.
 */
SEC("fmod_ret/security_file_permission")
int guard_splice(u64 *ctx)
{
	struct file *file = (void *)ctx[0];
	int mask = ctx[1];
	struct socket *socket;
	struct sock *sk;

	if (!(mask & MAY_READ) || (file->f_inode->i_mode & S_IFMT) != S_IFSOCK ||
	    !in_splice_call())
		return 0;
	socket = bpf_sock_from_file(file);
	sk = socket ? socket->sk : NULL;
	if (!sk || (void *)sk->__sk_common.skc_prot->recvmsg != &tcp_bpf_recvmsg ||
	    may_splice(sk))
		return 0;
	learn_of(sk, REASON_SPLICE);
	return -EINVAL;
}

/* tcp_bpf_recvmsg(sk, msg, size, flags, …) */
SEC("fentry/tcp_bpf_recvmsg")
int guard_recvmsg(u64 *ctx)
{
	struct settings *set = array_value(&fuse_settings);
	struct sock *sk = (void *)ctx[0];
	int flags = ctx[3];

	if (flags & (MSG_WAITALL | MSG_TRUNC | MSG_OOB)) {
		mark(sk, MARK_READER);
		learn_of(sk, REASON_RECV_FLAGS);
	} else if (set && set->careful) {
		/* One that waits here gets EAGAIN when it is interrupted. */
		mark(sk, flags & MSG_DONTWAIT ? MARK_PLAIN : MARK_READER);
	}
	return 0;
}

/* TCP would have restarted it, or gone on to wait. */
SEC("fexit/tcp_bpf_recvmsg")
int guard_recvmsg_end(u64 *ctx)
{
	struct sock *sk = (void *)ctx[0];
	int flags = ctx[3];
	u64 ret;

	if (bpf_get_func_ret(ctx, &ret))
		return 0;
	if ((int)ret == -EAGAIN && !(flags & MSG_DONTWAIT) && sk->sk_rcvtimeo == LONG_MAX)
		learn_of(sk, REASON_INTERRUPTED);
	return 0;
}

/* tcp_bpf_sendmsg(sk, msg, size) */
SEC("fentry/tcp_bpf_sendmsg")
int guard_sendmsg(u64 *ctx)
{
	struct sock *sk = (void *)ctx[0];
	struct msghdr *msg = (void *)ctx[1];

	if (msg->msg_flags & MSG_OOB) {
		mark(sk, MARK_WRITER);
		learn_of(sk, REASON_SEND_FLAGS);
	}
	return 0;
}

/* tcp_set_ulp(sk, name): a socket in a map may get kTLS, but no keys. */
SEC("fentry/tcp_set_ulp")
int guard_ulp(u64 *ctx)
{
	learn_of((void *)ctx[0], REASON_ULP);
	return 0;
}

/* sock_map_close(sk, timeout) */
SEC("fentry/sock_map_close")
int guard_close(u64 *ctx)
{
	u64 cookie = bpf_get_socket_cookie((void *)ctx[0]);

	bpf_map_delete_elem(&fuse_marks, &cookie);
	return 0;
}
