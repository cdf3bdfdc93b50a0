// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/*
 * autoattach OBJECT DIRECTORY [map name NAME pinned PATH]...: what "bpftool prog loadall
 * ... autoattach" does, for hosts whose bpftool cannot (before 7.5).  Loads the object
 * with these maps, attaches each program and pins its link in the directory, under the
 * program's name.  libbpf says on stderr what fails.
 */
#include <bpf/bpf.h>
#include <bpf/libbpf.h>
#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

/* fail_on WHAT: in the form of bpftool's errors; errno says why. */
static void fail_on(const char *what)
{
	fprintf(stderr, "Error: %s: %s\n", what, strerror(errno));
	exit(1);
}

static void reuse_map(struct bpf_object *object, const char *name, const char *path)
{
	struct bpf_map *map = bpf_object__find_map_by_name(object, name);
	int fd = bpf_obj_get(path);

	if (!map)
		errno = ENOENT;
	if (!map || fd < 0 || bpf_map__reuse_fd(map, fd))
		fail_on(map ? path : name);
}

int main(int argc, char **argv)
{
	struct bpf_object *object;
	struct bpf_program *program;
	int i;

	if (argc < 3 || argc % 5 != 3) {
		fprintf(stderr, "Usage: autoattach OBJECT DIRECTORY [map name NAME "
				"pinned PATH]...\n");
		return 2;
	}
	/* Before 1.0 libbpf returned errors as pointers, unless it was asked not to. */
	libbpf_set_strict_mode(LIBBPF_STRICT_ALL);
	object = bpf_object__open_file(argv[1], NULL);
	if (!object)
		fail_on(argv[1]);
	for (i = 3; i < argc; i += 5)
		reuse_map(object, argv[i + 2], argv[i + 4]);
	if (bpf_object__load(object) || mkdir(argv[2], 0700))
		fail_on(argv[1]);
	bpf_object__for_each_program(program, object) {
		struct bpf_link *link = bpf_program__attach(program);
		char path[PATH_MAX];

		snprintf(path, sizeof(path), "%s/%s", argv[2],
			 bpf_program__name(program));
		if (!link || bpf_link__pin(link, path))
			fail_on(path);
	}
	return 0;
}
