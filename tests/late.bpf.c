// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/* A thread named "late" takes half a second to begin tcp_recvmsg() (tests/vm/guard.bats).
 */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

#define HALF_A_SECOND 500000000ULL /* ns */
#define MANY (1 << 23)

char LICENSE[] SEC("license") = "Dual BSD/GPL";

static long is_over(__u32 turn, void *end)
{
	(void)turn;
	return bpf_ktime_get_ns() > *(__u64 *)end;
}

SEC("fentry/tcp_recvmsg")
int late(void *context)
{
	__u64 end = bpf_ktime_get_ns() + HALF_A_SECOND;
	char name[16];

	(void)context;
	if (!bpf_get_current_comm(name, sizeof(name)) && name[0] == 'l' &&
	    name[1] == 'a' && name[2] == 't' && name[3] == 'e' && !name[4])
		bpf_loop(MANY, is_over, &end, 0);
	return 0;
}
