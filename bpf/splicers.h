/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * Keeps the sockets of programs that may splice out of the map: those of the list
 * splicers, which do not read where the guard makes splice answer EINVAL; and Go
 * programs, which do, where there is no guard.
 *
 * splice(2) looks at TCP's queue alone: from a fused socket it waits for ever, or tells
 * of the end of the stream while fused bytes wait.  No state of a socket shows who will
 * do so, but the callbacks run in the task that connects or listens.  Its connections
 * stay plain TCP from their first byte, and so do those to its services.  A program that
 * only accepts, on a socket that another one made, is not seen here: the name of the one
 * that listens stands for it (systemd, inetd).
 */
#pragma once

#include "services.h"

#define SIGBUS 7 /* asm-generic/signal.h */
#define SIGSEGV 11
#define SIGURG 23
#define SIG_IGN 1

struct program {
	char name[16]; /* comm, filled up with zeros; empty: any program in Go */
};

struct {
	__uint(pinning, PINNING);
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 4096); /* names */
	__type(key, struct program);
	__type(value, u8);
} fuse_programs SEC(".maps");

/* Their sockets; one that is accepted inherits this from the one that listens. */
struct {
	__uint(pinning, PINNING);
	__uint(type, BPF_MAP_TYPE_SK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC | BPF_F_CLONE);
	__type(key, int);
	__type(value, u8);
} fuse_splicers SEC(".maps");

/* A macro: CO-RE relocates an element whose number is a constant where it stands. */
#define HANDLER(sighand, signal) ((u64)READ(sighand, action[(signal)-1].sa.sa_handler))

/*
 * Go's io.Copy splices between two connections.  Its runtime has one handler for all
 * signals (os_linux.go); of the programs tried no other has one for these three.
 */
static __always_inline bool is_go(struct task_struct *task)
{
	struct sighand_struct *sighand = READ(task, sighand);
	u64 handler = HANDLER(sighand, SIGURG);

	return handler > SIG_IGN && handler == HANDLER(sighand, SIGSEGV) &&
	       handler == HANDLER(sighand, SIGBUS);
}

static __always_inline bool is_named(struct task_struct *task)
{
	struct program program = {};

	bpf_core_read_str(program.name, sizeof(program.name), &task->comm);
	return bpf_map_lookup_elem(&fuse_programs, &program);
}

/* A thread may have a name of its own. */
static __always_inline bool may_splice(struct task_struct *task)
{
	struct program go = {};
	struct task_struct *leader = READ(task, group_leader);

	return is_named(task) || (leader != task && is_named(leader)) ||
	       (bpf_map_lookup_elem(&fuse_programs, &go) && is_go(task));
}

/* For who connects there */
static __always_inline void note_splicers_service(struct tcp_sock *tp)
{
	struct service service = service_of(tp, false);

	note_reason(&service, REASON_MAY_SPLICE);
}

/* In TCP_CONNECT_CB and TCP_LISTEN_CB: marks the socket of who may splice. */
static __always_inline void mark_splicer(struct bpf_sock_ops *skops, bool listens)
{
	struct tcp_sock *tp = skops->sk ? bpf_skc_to_tcp_sock(skops->sk) : NULL;
	struct settings *set = array_value(&fuse_settings);
	struct bpf_sock *sk = skops->sk;
	struct service service;
	struct known *known;

	if (!tp || !sk || !set || !set->splicers)
		return;
	if (may_splice((void *)bpf_get_current_task())) {
		bpf_sk_storage_get(&fuse_splicers, sk, NULL, BPF_SK_STORAGE_GET_F_CREATE);
		if (listens)
			note_splicers_service(tp);
		return;
	}
	bpf_sk_storage_delete(&fuse_splicers, sk); /* another program has it now */
	service = service_of(tp, false);
	known = listens ? bpf_map_lookup_elem(&fuse_services, &service) : NULL;
	if (known && known->reason == REASON_MAY_SPLICE)
		bpf_map_delete_elem(&fuse_services, &service);
}

/* sk: of either type that bpf_sk_storage_get() takes */
#define IS_SPLICERS(set, sk)                                                             \
	((set)->splicers && bpf_sk_storage_get(&fuse_splicers, sk, NULL, 0))
