// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/* Somebody else's sockops program, under a name that is easily confused. */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

char LICENSE[] SEC("license") = "Dual BSD/GPL";

SEC("sockops")
int bpf_sockops(void *ctx)
{
	(void)ctx;
	return 1;
}
