# SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
CLANG ?= clang
BPFTOOL ?= bpftool
CC ?= cc
V ?= 0

ifeq ($(V),1)
Q =
msg =
else
Q = @
msg = @printf '  %-8s %s\n' "$(1)" "$(2)"
MAKEFLAGS += --no-print-directory
endif

# <asm/types.h> lies in a directory of the architecture on Debian; elsewhere
# there is no such directory, and clang passes over it.
ARCH_INCLUDE := -idirafter /usr/include/$(shell uname -m)-linux-gnu
BPF_CFLAGS = -O2 -g -target bpf -Wall -Wextra -Werror $(ARCH_INCLUDE)
CFLAGS ?= -O2 -g
HELPER_CFLAGS = -std=gnu11 -Wall -Wextra -Werror -pthread $(CFLAGS)

OBJECTS := bpf/bpf_contrack.bpf.o bpf/bpf_redirect.bpf.o bpf/bpf_adopt.bpf.o bpf/bpf_guard.bpf.o bpf/bpf_sidecar.bpf.o bpf/bpf_splicers.bpf.o bpf/bpf_status.bpf.o
# Attaches the guard for bpftool before 7.5; asks the kernel for load.sh --check.
BINARIES := bpf/autoattach bpf/fionread
# The same objects for bpftool before 5.16; slower.
COMPAT := bpf/compat/bpf_contrack.bpf.o bpf/compat/bpf_redirect.bpf.o bpf/compat/bpf_splicers.bpf.o bpf/compat/bpf_status.bpf.o
ADVERSARIES := tests/adversaries/adversaries
HELPERS := tests/traffic tests/nets tests/semantics/catalogue tests/fuzz/fuzz $(ADVERSARIES) tests/vmlinux.bpf.o tests/foreign.bpf.o tests/neighbour.bpf.o tests/late.bpf.o bench/load bench/tutorial.bpf.o
COMMANDS := load unload status trace_bpf_output trace_lo_traffic
# What the commands share; deps.sh is for this Makefile alone.
SHARED := $(filter-out lib/deps.sh,$(wildcard lib/*.sh lib/*.jq)) lib/splicers lib/faults
SHELL_FILES := $(COMMANDS:=.sh) $(wildcard lib/*.sh) packaging/build.sh packaging/sockfuse.bash \
	tests/debian.sh tests/vm/run.sh tests/vm/kernel.sh tests/vm/check.sh tests/vm/proxies.sh tests/suite.bash tests/bpftools.sh tests/vm/root-arm64.sh tests/run.sh tests/isolate.sh tests/helpers.bash .ci/run bench/run.sh bench/compare.sh bench/comparison.sh bench/guard.sh bench/splicers.sh bench/applications.bash bench/profile.sh bench/demo.sh bench/document.sh \
	tests/semantics/run.sh tests/semantics/modes.sh tests/semantics/table.sh tests/fuzz/run.sh tests/adversaries/run.sh tests/foreign/build.sh tests/foreign/run.sh
C_FILES := $(wildcard *.h bpf/*.[ch] tests/*.[ch] tests/semantics/*.c tests/fuzz/*.c tests/adversaries/*.[ch] bench/*.[ch])

# What needs tests/apps/root or downloads of other suites, changes a setting of the host, or
# takes long.  The longest begin first, so that none is alone at the end.
APPS_TESTS := $(patsubst %,tests/%.bats,upgrade reloads scripts status services apps package adversaries bpftools formats memory sidecar)

# What tests/apps.bats and make bench run, what tests/package.bats and tests/formats.bats use, and
# what tests need in an emulated machine.
APPLICATIONS := nginx-light haproxy redis-server postgresql curl openssl socat openssh-server openssh-client \
	rsync python3 nodejs golang-go default-jdk-headless iperf3 git \
	systemd-sysv dbus bpftool jq iproute2 tcpdump python3-jsonschema python3-kubernetes ansible-core python3-apt prometheus \
	wrk sockperf docker.io passt apache2-utils mosquitto mosquitto-clients rsyslog vsftpd
VM_PACKAGES := bats bpftool curl haproxy iperf3 iproute2 jq kmod nginx-light open-iscsi openssl procps tcpdump tgt
# Debian 12 as it comes, and what make load needs there
BOOKWORM_PACKAGES := bats bpftool clang gcc iproute2 jq kmod libbpf-dev make procps systemd-sysv tcpdump
# The programs of tests/apps.bats that splice
PROXY_PACKAGES := bats bpftool curl docker.io haproxy iproute2 jq kmod nginx-light openssl passt procps systemd tcpdump
# Podman and Docker, for tests/vm/containers.bats
CONTAINER_PACKAGES := bats bpftool curl iproute2 jq kmod procps podman netavark aardvark-dns passt uidmap crun conmon docker.io docker-cli iptables nftables nginx-light busybox-static openssl slirp4netns catatonit
# What tests/foreign/ builds and runs: the tests that others wrote.
FOREIGN_PACKAGES := golang-go golang-src netbase libpython3.11-testsuite openssl gcc libc6-dev make cmake dpkg-dev pkg-config \
	libssl-dev zlib1g-dev
.PHONY: install uninstall deb rpm demo recording all objects helpers deps load check check-apps vmcheck vmcheck-all guardcheck containercheck bench bench-quick benchmarks compare semantics semantics-kernels fuzz adversaries foreign lint clean
.DELETE_ON_ERROR:

all: objects

objects: $(OBJECTS) $(COMPAT) $(BINARIES)

helpers: $(HELPERS)

bpf/%.bpf.o: bpf/%.bpf.c $(wildcard bpf/*.h) vmlinux.h
	$(call msg,BPF,$@)
	$(Q)$(CLANG) $(BPF_CFLAGS) -c $< -o $@

bpf/compat/%.bpf.o: bpf/%.bpf.c $(wildcard bpf/*.h) vmlinux.h
	$(call msg,BPF,$@)
	$(Q)mkdir -p $(@D)
	$(Q)$(CLANG) $(BPF_CFLAGS) -DOLD_LOADER -c $< -o $@

$(BINARIES): %: %.c
	$(call msg,CC,$@)
	$(Q)$(CC) $(HELPER_CFLAGS) $< -o $@ -lbpf

# Every structure of vmlinux.h in one object's BTF, for tests/vmlinux.bats.
tests/vmlinux.bpf.o: vmlinux.h
	$(call msg,BPF,$@)
	$(Q)sed -n 's/^struct \([a-z_0-9]*\) {.*/struct \1 *use_\1;/p' $< | \
		$(CLANG) $(BPF_CFLAGS) -include $< -x c -c - -o $@

tests/foreign.bpf.o tests/neighbour.bpf.o tests/late.bpf.o bench/tutorial.bpf.o: %.bpf.o: %.bpf.c
	$(call msg,BPF,$@)
	$(Q)$(CLANG) $(BPF_CFLAGS) -c $< -o $@

tests/traffic tests/nets tests/semantics/catalogue tests/fuzz/fuzz bench/load: %: %.c
	$(call msg,CC,$@)
	$(Q)$(CC) $(HELPER_CFLAGS) $< -o $@

$(ADVERSARIES): $(wildcard tests/adversaries/*.[ch])
	$(call msg,CC,$@)
	$(Q)$(CC) $(HELPER_CFLAGS) -std=c11 $(filter %.c,$^) -o $@

tests/vm/proxy: tests/apps/proxy.go
	$(call msg,GO,$@)
	$(Q)cp $< tests/apps/root/tmp/proxy.go
	$(Q)chroot tests/apps/root env GOCACHE=/tmp/go GO111MODULE=off CGO_ENABLED=0 go build -o /tmp/proxy /tmp/proxy.go
	$(Q)mv tests/apps/root/tmp/proxy $@

# Installs what is missing, with the host's own package manager.
deps:
	$(Q)lib/deps.sh load

load:
	$(Q)lib/deps.sh load
	$(Q)$(MAKE) objects
	$(Q)BPFTOOL=$(BPFTOOL) ./load.sh

# Nothing is downloaded for it but packages of this host's distribution.
check:
	$(Q)lib/deps.sh load check
	$(Q)$(MAKE) objects helpers
	$(Q)BPFTOOL=$(BPFTOOL) tests/run.sh $(filter-out $(APPS_TESTS),$(wildcard tests/*.bats))

# The rest.  FULL=1: as much through programs that splice as is promised, see tests/apps.bats.
check-apps:
	$(Q)lib/deps.sh load check apps
	$(Q)$(MAKE) objects helpers
	$(Q)tests/debian.sh bookworm tests/apps/root $(APPLICATIONS) || true # tests/apps.bats says what is skipped
	$(Q)tests/bpftools.sh || true # and tests/bpftools.bats
	$(Q)BPFTOOL=$(BPFTOOL) tests/run.sh $(APPS_TESTS)

# What is promised, on Debian's KERNEL under emulation (6.12, or 6.12-arm64), or on each.
vmcheck vmcheck-all: objects helpers
	$(Q)lib/deps.sh load check vm
	$(Q)tests/bpftools.sh || true
	$(Q)if tests/debian.sh trixie tests/vm/root $(VM_PACKAGES); then \
		tests/vm/check.sh $(if $(filter vmcheck,$@),$(or $(KERNEL),5.10 6.1 6.12),--table docs/kernels.md 5.10 6.1 6.12 newest 6.12-arm64); \
	else \
		echo "no emulated machine: skipped"; \
	fi

# The guard, on one, and by make load and as a service on Debian 12; programs that splice,
# on each kernel; takes long.
guardcheck: objects helpers
	$(Q)lib/deps.sh load check vm
	$(Q)tests/debian.sh bookworm tests/apps/root $(APPLICATIONS)
	$(Q)$(MAKE) tests/vm/proxy
	$(Q)tests/debian.sh trixie tests/vm/root $(VM_PACKAGES)
	$(Q)tests/vm/run.sh $(or $(KERNEL),6.12) bats --formatter tap tests/vm/guard.bats
	$(Q)$(MAKE) deb
	$(Q)tests/debian.sh bookworm tests/vm/root-bookworm $(BOOKWORM_PACKAGES)
	$(Q)ROOT=tests/vm/root-bookworm tests/vm/run.sh 6.1 bats --formatter tap tests/vm/bookworm.bats
	$(Q)tests/debian.sh bookworm tests/vm/root-proxies $(PROXY_PACKAGES)
	$(Q)for kernel in 6.1 6.12 newest; do \
		SWITCH_ROOT=1 SECONDS_MAX=3000 ROOT=tests/vm/root-proxies tests/vm/run.sh $$kernel tests/vm/proxies.sh || exit; \
	done

# Podman and Docker, on one; takes long.
containercheck: objects helpers
	$(Q)lib/deps.sh load check vm
	$(Q)$(MAKE) deb
	$(Q)tests/debian.sh trixie tests/vm/root-containers $(CONTAINER_PACKAGES)
	$(Q)SWITCH_ROOT=1 SECONDS_MAX=3000 ROOT=tests/vm/root-containers tests/vm/run.sh $(or $(KERNEL),6.12) bats --formatter tap tests/vm/containers.bats

# About 16 minutes, and about one; BENCH is where the result goes.
BENCH ?= bench/results.json
bench bench-quick: objects helpers
	$(Q)lib/deps.sh load check apps
	$(Q)$(if $(filter bench,$@),tests/debian.sh bookworm tests/apps/root $(APPLICATIONS) || true) # run.sh says what it leaves out
	$(Q)BPFTOOL=$(BPFTOOL) tests/isolate.sh bench/run.sh $(if $(filter bench-quick,$@),--quick) $(BENCH)
	$(Q)jq -r -f bench/report.jq $(BENCH)

# Writes docs/benchmarks.md, its plots and the tables of the READMEs from $(BENCH) and from a profile.
benchmarks: objects helpers
	$(Q)lib/deps.sh load check bench
	$(Q)BPFTOOL=$(BPFTOOL) tests/isolate.sh bench/profile.sh bench/profile.md
	$(Q)bench/document.sh $(BENCH) bench/profile.md docs README.md README.zh.md

# Writes docs/comparison.md, its plot and docs/comparison.json; some 4 minutes.
compare: objects helpers
	$(Q)lib/deps.sh load check bench
	$(Q)BPFTOOL=$(BPFTOOL) tests/isolate.sh bench/compare.sh docs/comparison.json
	$(Q)bench/comparison.sh docs/comparison.json docs

# What fusing does, in 20 seconds; nothing of this machine is touched.
demo:
	$(Q)lib/deps.sh load demo
	$(Q)$(MAKE) -s objects bench/load
	$(Q)BPFTOOL=$(BPFTOOL) tests/isolate.sh bench/demo.sh

# Writes docs/demo.svg: the demo in a terminal.
recording: objects bench/load
	$(Q)lib/deps.sh load demo recording
	$(Q)asciinema rec -q --overwrite --cols 92 --rows 8 -c '$(MAKE) -s --no-print-directory demo' docs/demo.cast </dev/null
	$(Q)sed -i 's|$(CURDIR)/||g' docs/demo.cast
	$(Q)npx --yes svg-term-cli@2.1.1 --in docs/demo.cast --out docs/demo.svg --no-cursor --window
	$(Q)rm docs/demo.cast

# Writes docs/semantics.md.
semantics: objects helpers
	$(Q)BPFTOOL=$(BPFTOOL) tests/semantics/table.sh

# Writes tests/semantics/kernels.tsv, from emulated machines.
semantics-kernels: objects helpers
	$(Q)lib/deps.sh load check vm
	$(Q)tests/debian.sh trixie tests/vm/root $(VM_PACKAGES)
	$(Q)for kernel in 6.1 6.12; do tests/vm/run.sh $$kernel tests/semantics/modes.sh; done | \
		sed -n 's/^.*differs\t/differs\t/p' >tests/semantics/kernels.tsv

PREFIX ?= /usr/local
SYSCONFDIR ?= /etc
SBINDIR = $(PREFIX)/sbin
LIBDIR = $(PREFIX)/lib/sockfuse
UNITDIR = $(PREFIX)/lib/systemd/system
MANDIR = $(PREFIX)/share/man
COMPLETIONDIR = $(PREFIX)/share/bash-completion/completions
DOCDIR = $(PREFIX)/share/doc/sockfuse
command = sockfuse-$(subst _,-,$(1))

install: objects
	$(Q)install -d $(addprefix $(DESTDIR),$(SBINDIR) $(LIBDIR)/lib $(LIBDIR)/bpf/compat $(UNITDIR) $(MANDIR)/man5 $(MANDIR)/man8 \
		$(COMPLETIONDIR) $(DOCDIR) $(SYSCONFDIR))
	$(Q)install -m 755 $(COMMANDS:=.sh) $(DESTDIR)$(LIBDIR)
	$(Q)install -m 644 $(SHARED) $(DESTDIR)$(LIBDIR)/lib
	$(Q)install -m 644 $(OBJECTS) $(DESTDIR)$(LIBDIR)/bpf
	$(Q)install -m 644 $(COMPAT) $(DESTDIR)$(LIBDIR)/bpf/compat
	$(Q)install -m 755 $(BINARIES) $(DESTDIR)$(LIBDIR)/bpf
	$(Q)$(foreach c,$(COMMANDS),ln -sf ../lib/sockfuse/$(c).sh $(DESTDIR)$(SBINDIR)/$(call command,$(c)) &&) true
	$(Q)sed 's|@SBINDIR@|$(SBINDIR)|; s|@SYSCONFDIR@|$(SYSCONFDIR)|' packaging/sockfuse.service.in >$(DESTDIR)$(UNITDIR)/sockfuse.service
	$(Q)sed 's|@SBINDIR@|$(SBINDIR)|' packaging/sockfuse-metrics.service.in >$(DESTDIR)$(UNITDIR)/sockfuse-metrics.service
	$(Q)install -m 644 packaging/sockfuse-metrics.timer $(DESTDIR)$(UNITDIR)
	$(Q)install -m 644 packaging/man/*.8 $(DESTDIR)$(MANDIR)/man8
	$(Q)install -m 644 packaging/man/*.5 $(DESTDIR)$(MANDIR)/man5
	$(Q)install -m 644 packaging/sockfuse.bash $(DESTDIR)$(COMPLETIONDIR)/sockfuse-load
	$(Q)$(foreach c,$(filter-out load,$(COMMANDS)),ln -sf sockfuse-load $(DESTDIR)$(COMPLETIONDIR)/$(call command,$(c)) &&) true
	$(Q)install -d $(DESTDIR)$(DOCDIR)/docs $(DESTDIR)$(DOCDIR)/examples
	$(Q)install -m 644 README.md README.zh.md CHANGELOG.md SECURITY.md LICENSE $(DESTDIR)$(DOCDIR)
	$(Q)install -m 644 docs/*.md docs/*.svg docs/*.json $(DESTDIR)$(DOCDIR)/docs
	$(Q)install -m 644 examples/* $(DESTDIR)$(DOCDIR)/examples
	$(Q)[ -e $(DESTDIR)$(SYSCONFDIR)/sockfuse.conf ] || install -m 644 packaging/sockfuse.conf $(DESTDIR)$(SYSCONFDIR)

# What install put there, with the same PREFIX and DESTDIR.  A changed
# sockfuse.conf stays.
uninstall:
	$(Q)rm -rf $(addprefix $(DESTDIR),$(LIBDIR) $(DOCDIR) $(addprefix $(UNITDIR)/,sockfuse.service sockfuse-metrics.service sockfuse-metrics.timer) \
		$(foreach c,$(COMMANDS),$(SBINDIR)/$(call command,$(c)) $(COMPLETIONDIR)/$(call command,$(c)) $(MANDIR)/man8/$(call command,$(c)).8) \
		$(MANDIR)/man5/sockfuse.conf.5)
	$(Q)! cmp -s packaging/sockfuse.conf $(DESTDIR)$(SYSCONFDIR)/sockfuse.conf || rm $(DESTDIR)$(SYSCONFDIR)/sockfuse.conf

deb: objects
	$(Q)lib/deps.sh deb
	$(Q)packaging/build.sh deb

rpm: objects
	$(Q)lib/deps.sh rpm
	$(Q)packaging/build.sh rpm

# CALLS and SEED may be given.
fuzz: objects helpers
	$(Q)BPFTOOL=$(BPFTOOL) tests/isolate.sh tests/fuzz/run.sh $(or $(CALLS),100000000) $(SEED)

# Programs that met a fault once: NAMES or all of them, for SECONDS in all.
SECONDS ?= 120
adversaries: objects helpers
	$(Q)BPFTOOL=$(BPFTOOL) tests/isolate.sh tests/adversaries/run.sh $(SECONDS) $(NAMES)

# The tests of Go, CPython, libuv and libevent, or of SUITES (see tests/foreign/run.sh), plain
# and fused; about 20 minutes.
foreign: objects helpers
	$(Q)lib/deps.sh load check apps
	$(Q)tests/debian.sh bookworm tests/foreign/root $(FOREIGN_PACKAGES)
	$(Q)tests/foreign/build.sh
	$(Q)BPFTOOL=$(BPFTOOL) tests/isolate.sh tests/foreign/run.sh $(SUITES)

lint:
	$(Q)lib/deps.sh lint
	$(Q)shellcheck -x $(SHELL_FILES)
	$(Q)shfmt -i 2 -ci -d $(SHELL_FILES)
	$(Q)clang-format --dry-run -Werror $(C_FILES)
	$(Q)! mandoc -T lint packaging/man/* 2>/dev/null | grep -v 'referenced manual not found'
	$(Q)awk '/^{$$|^[a-z_]+\(\) [{(]$$/ { head = last FS $$1; start = FNR } \
		/^[})]/ && start { if (FNR - start >= 40) { print FILENAME ": more than 40 lines: " head; failed = 1 } start = 0 } \
		{ last = $$0 } END { exit failed }' bpf/*.[ch] $(COMMANDS:=.sh) lib/*.sh

clean:
	$(Q)rm -rf $(OBJECTS) bpf/compat $(BINARIES) $(HELPERS) tests/vm/proxy dist tests/vm/arm64
