// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/*
 * adversaries NAME ADDRESS SECONDS [SEED]: one program that met a fault once, again and
 * again on the IPv4 address ADDRESS for so long.  Prints one line of what it saw.
 *
 * Exit codes: 0 it ran, 2 it could not.
 */
#define _GNU_SOURCE
#include "adversaries.h"
#include <arpa/inet.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

struct counts *counts;
struct in_addr address;
uint64_t seed;
static long stop_ns;

static const struct {
	const char *name;
	void (*run)(void);
} adversaries[] = {
	{ "refused_connect", refused_connect },
	{ "leaving_map", leaving_map },
	{ "leaving_map_lowat", leaving_map_lowat },
	{ "closing_peer", closing_peer },
	{ "half_close", half_close },
	{ "under_way", under_way },
	{ "uring_seam", uring_seam },
	{ "sigio", sigio },
	{ "nested_epoll", nested_epoll },
	{ "zerocopy_receive", zerocopy_receive },
	{ "two_readers", two_readers },
	{ "woken_reader", woken_reader },
	{ "thread_pairs", thread_pairs },
	{ "acks_elsewhere", acks_elsewhere },
	{ "schedule", schedule },
};

#define ADVERSARIES (sizeof(adversaries) / sizeof(adversaries[0]))

bool running(void)
{
	return now_ns() < stop_ns && !counts->skipped;
}

static const char *name_of_this;
static const char *address_of_this;

/* The watcher calls it, too, for a round that cannot be ended. */
void report(void);
void report(void)
{
	printf("%s %s rounds=%llu bytes=%llu lost=%llu reordered=%llu failed=%llu "
	       "epipe=%llu hung=%llu skipped=%d seed=%llu\n",
	       name_of_this, address_of_this, counts->rounds, counts->bytes, counts->lost,
	       counts->reordered, counts->failed, counts->epipe, counts->hung,
	       counts->skipped, (unsigned long long)seed);
	fflush(stdout);
}

static int usage(void)
{
	fprintf(stderr, "usage: adversaries NAME ADDRESS SECONDS [SEED]\nNAME is one of");
	for (size_t i = 0; i < ADVERSARIES; i++)
		fprintf(stderr, " %s", adversaries[i].name);
	fprintf(stderr, "\n");
	return 2;
}

int main(int argc, char **argv)
{
	struct rlimit files;

	if (argc < 4 || argc > 5 || inet_pton(AF_INET, argv[2], &address) != 1)
		return usage();
	seed = argc == 5 ? strtoull(argv[4], NULL, 0)
			 : (uint64_t)time(NULL) * 1000003 + getpid();
	counts = mmap(NULL, sizeof(*counts), PROT_READ | PROT_WRITE,
		      MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (counts == MAP_FAILED)
		give_up("mmap");
	signal(SIGPIPE, SIG_IGN);
	getrlimit(RLIMIT_NOFILE, &files);
	files.rlim_cur = files.rlim_max;
	setrlimit(RLIMIT_NOFILE, &files);
	name_of_this = argv[1];
	address_of_this = argv[2];
	stop_ns = now_ns() + (long)(strtod(argv[3], NULL) * 1e9);
	for (size_t i = 0; i < ADVERSARIES; i++) {
		if (strcmp(argv[1], adversaries[i].name))
			continue;
		adversaries[i].run();
		report();
		return 0;
	}
	return usage();
}
