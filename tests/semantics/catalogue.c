// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/*
 * catalogue ADDRESS [--again | --polled] [CASE...]: what an application can see of a TCP
 * connection between two sockets on this IPv4 ADDRESS of the host, one behaviour
 * after the other; without CASE all of them.  Prints one line each,
 * NAME<TAB>TRANSCRIPT, that holds no times, ports or descriptors, so that two
 * runs on the same kind of connection print the same.
 *
 * --again: each on a second connection to the port of the first, where it has
 * been done before; only the second is told.  --polled: its pair has not waited
 * in recv before it begins.
 *
 * tests/semantics.bats runs it on plain TCP and fused and compares.
 *
 * Before a case begins, its pair has sent two bytes each way: whatever is
 * fused is fused from there on.  In a case, a is the end that connected.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/errqueue.h>
#include <linux/io_uring.h>
#include <linux/net_tstamp.h>
#include <linux/sockios.h>
#include <linux/tcp.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/select.h>
#include <sys/sendfile.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#ifndef IPPROTO_MPTCP
#define IPPROTO_MPTCP 262
#endif
#ifndef TCP_INQ
#define TCP_INQ 36
#endif
#ifndef SO_ZEROCOPY
#define SO_ZEROCOPY 60
#endif
#ifndef TCP_ULP
#define TCP_ULP 31
#endif

#define CASE_SECONDS 5 /* a case that takes longer hangs */
#define BULK 300000

static const int one = 1;
static char page[1 << 20];

/* ---- transcript ---- */

static void say(const char *format, ...)
{
	static const char *separator = "";
	va_list arguments;

	va_start(arguments, format);
	fputs(separator, stdout);
	vprintf(format, arguments);
	va_end(arguments);
	fflush(stdout);
	separator = "; ";
}

static const char *error_name(int error)
{
	static char number[16];

	switch (error) {
#define NAME(e)                                                                          \
	case e:                                                                          \
		return #e
		NAME(EAGAIN);
		NAME(EINTR);
		NAME(EIO);
		NAME(EPIPE);
		NAME(ECONNRESET);
		NAME(ECONNABORTED);
		NAME(ECONNREFUSED);
		NAME(ENOTCONN);
		NAME(EINVAL);
		NAME(EFAULT);
		NAME(EISCONN);
		NAME(EINPROGRESS);
		NAME(ENOENT);
		NAME(ENOSYS);
		NAME(EPERM);
		NAME(ENOBUFS);
		NAME(ENOMEM);
		NAME(ESPIPE);
		NAME(EOPNOTSUPP);
		NAME(ENOPROTOOPT);
		NAME(EPROTONOSUPPORT);
		NAME(EADDRNOTAVAIL);
		NAME(EACCES);
		NAME(ETIMEDOUT);
	}
	snprintf(number, sizeof(number), "errno %d", error);
	return number;
}

/* What a call returned, or its errno. */
static ssize_t result(const char *call, ssize_t value)
{
	if (value < 0)
		say("%s: %s", call, error_name(errno));
	else
		say("%s: %zd", call, value);
	return value;
}

/* Longer than an acknowledgment is delayed (TCP_DELACK_MAX), which Nagle waits for. */
static void settle(void)
{
	usleep(250000);
}

static ssize_t put(int fd, const char *text)
{
	return result("send", send(fd, text, strlen(text), MSG_NOSIGNAL));
}

/* Receives at most n bytes and says which. */
static ssize_t get(int fd, size_t n, int flags)
{
	char buffer[256] = "";
	ssize_t done = recv(fd, buffer, n, flags);

	if (done <= 0)
		result("recv", done);
	else
		say("recv: %zd \"%.*s\"", done, (int)done, buffer);
	return done;
}

static ssize_t get_now(int fd)
{
	return get(fd, 100, MSG_DONTWAIT);
}

static void say_poll(int fd, int events)
{
	struct pollfd p = { .fd = fd, .events = events };

	poll(&p, 1, 0);
	say("poll:%s%s%s%s%s%s%s", p.revents & POLLIN ? " IN" : "",
	    p.revents & POLLPRI ? " PRI" : "", p.revents & POLLOUT ? " OUT" : "",
	    p.revents & POLLRDHUP ? " RDHUP" : "", p.revents & POLLHUP ? " HUP" : "",
	    p.revents & POLLERR ? " ERR" : "", p.revents ? "" : " nothing");
}

static void say_epoll(int epoll_fd, int timeout)
{
	struct epoll_event e = { .events = 0 };
	int n = epoll_wait(epoll_fd, &e, 1, timeout);

	say("epoll:%s%s%s%s%s", n == 1 && e.events & EPOLLIN ? " IN" : "",
	    n == 1 && e.events & EPOLLOUT ? " OUT" : "",
	    n == 1 && e.events & EPOLLRDHUP ? " RDHUP" : "",
	    n == 1 && e.events & EPOLLHUP ? " HUP" : "", n == 1 ? "" : " nothing");
}

static int epoll_on(int fd, unsigned int events)
{
	struct epoll_event e = { .events = events };
	int epoll_fd = epoll_create1(0);

	epoll_ctl(epoll_fd, EPOLL_CTL_ADD, fd, &e);
	return epoll_fd;
}

static void set_int(int fd, int level, int option, int value)
{
	if (setsockopt(fd, level, option, &value, sizeof(value)))
		result("setsockopt", -1);
}

/* ---- helpers in other processes ---- */

/* Runs act(fd) in a process of its own after ms milliseconds. */
static pid_t later(int ms, void (*act)(int), int fd)
{
	pid_t pid = fork();

	if (pid)
		return pid;
	usleep(ms * 1000);
	act(fd);
	_exit(0);
}

static void send_cd(int fd)
{
	send(fd, "cd", 2, MSG_NOSIGNAL);
}

static void send_bulk(int fd)
{
	for (size_t sent = 0; sent < BULK;) {
		ssize_t n = send(fd, page + sent, BULK - sent, MSG_NOSIGNAL);

		if (n <= 0)
			return;
		sent += n;
	}
}

static void signal_parent(int fd)
{
	kill(getppid(), SIGUSR1);
	usleep(100000);
	send_cd(fd);
}

static void stop_parent(int fd)
{
	kill(getppid(), SIGSTOP);
	usleep(100000);
	kill(getppid(), SIGCONT);
	usleep(100000);
	send_cd(fd);
}

/* Reads until BULK bytes or the end came, and compares. */
static void get_bulk(int fd, size_t chunk)
{
	char *buffer = malloc(BULK);
	size_t got = 0;

	while (got < BULK) {
		ssize_t n = recv(fd, buffer + got,
				 chunk < BULK - got ? chunk : BULK - got, 0);

		if (n <= 0) {
			result("recv", n);
			break;
		}
		got += n;
	}
	say("bulk %zu %s", got, memcmp(buffer, page, got) ? "differs" : "intact");
	free(buffer);
}

static volatile sig_atomic_t signals;

static void count_signal(int number)
{
	(void)number;
	signals++;
}

static void on_signal(int number, int flags)
{
	struct sigaction action = { .sa_handler = count_signal, .sa_flags = flags };

	sigaction(number, &action, NULL);
}

/* ---- connections ---- */

/* --remote: who listens is of another cgroup. */
static const char *here, *elsewhere;

static void enter(const char *cgroup)
{
	char path[256];
	int fd;

	if (!cgroup)
		return;
	snprintf(path, sizeof(path), "%s/cgroup.procs", cgroup);
	fd = open(path, O_WRONLY);
	if (fd < 0 || write(fd, "0", 1) != 1) {
		perror(path);
		_exit(2);
	}
	close(fd);
}

static int listen_on(struct sockaddr_storage *address, socklen_t *length, int protocol)
{
	int fd;

	enter(elsewhere);
	fd = socket(address->ss_family, SOCK_STREAM, protocol);
	enter(here);
	if (fd < 0 || setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one)) ||
	    bind(fd, (void *)address, *length) || listen(fd, 64) ||
	    getsockname(fd, (void *)address, length))
		return -1;
	return fd;
}

static struct in_addr host;
static in_port_t port; /* of every listener; 0: any */

static void local(struct sockaddr_storage *address, socklen_t *length)
{
	struct sockaddr_in *in = (void *)address;

	memset(address, 0, sizeof(*address));
	in->sin_family = AF_INET;
	in->sin_addr = host;
	in->sin_port = port;
	*length = sizeof(*in);
}

static bool polled; /* exchange() does not wait in recv */

/* Two bytes each way. */
static void exchange(int a, int b)
{
	char buffer[2];

	for (int i = 0; i < 2; i++) {
		int from = i ? a : b, to = i ? b : a;
		struct pollfd ready = { .fd = to, .events = POLLIN };

		if (send(from, "..", 2, MSG_NOSIGNAL) != 2 ||
		    (polled && poll(&ready, 1, 1000) != 1) ||
		    recv(to, buffer, 2, polled ? MSG_DONTWAIT : 0) != 2)
			result("exchange", -1);
	}
}

/* -1: no connection */
static int connect_pair(int *a, int *b, int protocol)
{
	struct sockaddr_storage address;
	socklen_t length;
	int listener;

	local(&address, &length);
	listener = listen_on(&address, &length, protocol);
	if (listener < 0)
		return -1;
	*a = socket(AF_INET, SOCK_STREAM, protocol);
	if (*a < 0 || connect(*a, (void *)&address, length))
		return -1;
	*b = accept(listener, NULL, NULL);
	close(listener);
	return *b < 0 ? -1 : 0;
}

/* Connects *a to a listener and says so; returns the listener. */
static int dial(int *a)
{
	struct sockaddr_storage address;
	socklen_t length;
	int listener;

	local(&address, &length);
	listener = listen_on(&address, &length, 0);
	if (*a < 0)
		*a = socket(AF_INET, SOCK_STREAM, 0);
	result("connect", connect(*a, (void *)&address, length));
	return listener;
}

/* ---- receiving ---- */

static void recv_plain(int a, int b)
{
	put(b, "hello");
	get(a, 100, 0);
	get_now(a);
}

static void recv_in_parts(int a, int b)
{
	put(b, "hello");
	get(a, 2, 0);
	get(a, 2, 0);
	get(a, 2, 0);
}

static void recv_joins_messages(int a, int b)
{
	put(b, "ab");
	put(b, "cd");
	settle();
	get(a, 3, 0);
	get(a, 3, 0);
}

static void recv_peek(int a, int b)
{
	put(b, "hello");
	get(a, 3, MSG_PEEK);
	get(a, 100, MSG_PEEK);
	get(a, 100, 0);
}

static void recv_peek_two_messages(int a, int b)
{
	put(b, "ab");
	put(b, "cd");
	settle();
	get(a, 100, MSG_PEEK);
	get(a, 1, 0);
	get(a, 100, MSG_PEEK);
	get(a, 100, 0);
}

static void recv_peek_offset(int a, int b)
{
	int offset = 0;

	result("SO_PEEK_OFF",
	       setsockopt(a, SOL_SOCKET, SO_PEEK_OFF, &offset, sizeof(offset)));
	put(b, "hello");
	get(a, 2, MSG_PEEK);
	get(a, 2, MSG_PEEK);
	get(a, 100, 0);
}

static void recv_waitall_there(int a, int b)
{
	put(b, "abcd");
	get(a, 4, MSG_WAITALL);
}

static void recv_waitall_two_messages(int a, int b)
{
	put(b, "ab");
	later(100, send_cd, b);
	get(a, 4, MSG_WAITALL);
}

static void recv_waitall_ends(int a, int b)
{
	put(b, "ab");
	shutdown(b, SHUT_WR);
	get(a, 4, MSG_WAITALL);
	get(a, 4, MSG_WAITALL);
}

static void recv_trunc(int a, int b)
{
	char buffer[8] = ".....";

	put(b, "hello");
	result("recv", recv(a, buffer, 3, MSG_TRUNC));
	say("buffer \"%s\"", buffer);
	get(a, 100, 0);
}

static void recv_dontwait(int a, int b)
{
	get_now(a);
	put(b, "ab");
	get_now(a);
	get_now(a);
}

static void recv_nonblocking(int a, int b)
{
	fcntl(a, F_SETFL, O_NONBLOCK);
	get(a, 100, 0);
	put(b, "ab");
	get(a, 100, 0);
}

static void recv_zero_length(int a, int b)
{
	char c;

	put(b, "ab");
	result("recv", recv(a, &c, 0, MSG_DONTWAIT));
	get_now(a);
}

static void recv_bad_buffer(int a, int b)
{
	put(b, "hello");
	result("recv", recv(a, (void *)8, 5, 0));
	get_now(a);
}

static void recv_partly_bad_buffer(int a, int b)
{
	char *two = mmap(NULL, 8192, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS,
			 -1, 0);

	munmap(two + 4096, 4096);
	put(b, "hello");
	result("recv", recv(a, two + 4094, 5, 0));
	get_now(a);
}

static void recv_errqueue_empty(int a, int b)
{
	put(b, "ab");
	get(a, 100, MSG_ERRQUEUE);
	get_now(a);
}

static void readv_segments(int a, int b)
{
	char x[2], y[2], z[2];
	struct iovec v[3] = { { x, 2 }, { y, 2 }, { z, 2 } };

	put(b, "hello");
	result("readv", readv(a, v, 3));
	say("%.2s %.2s %.1s", x, y, z);
}

static void many_segments(int a, int b)
{
	static char bytes[1000];
	struct iovec v[1000];

	for (int i = 0; i < 1000; i++)
		v[i] = (struct iovec){ page + i, 1 };
	result("writev", writev(b, v, 1000));
	for (int i = 0; i < 1000; i++)
		v[i].iov_base = bytes + i;
	settle();
	result("readv", readv(a, v, 1000));
	say("%s", memcmp(bytes, page, 1000) ? "differs" : "intact");
}

static void mmsg(int a, int b)
{
	struct iovec v[2] = { { "ab", 2 }, { "cd", 2 } };
	char x[8] = "", y[8] = "";
	struct iovec w[2] = { { x, 2 }, { y, 2 } };
	struct mmsghdr m[2] = { { .msg_hdr = { .msg_iov = v, .msg_iovlen = 1 } },
				{ .msg_hdr = { .msg_iov = v + 1, .msg_iovlen = 1 } } };

	result("sendmmsg", sendmmsg(b, m, 2, 0));
	m[0].msg_hdr.msg_iov = w;
	m[1].msg_hdr.msg_iov = w + 1;
	settle();
	result("recvmmsg", recvmmsg(a, m, 2, MSG_DONTWAIT, NULL));
	say("%s %s", x, y);
}

static void recvmsg_name_and_flags(int a, int b)
{
	struct sockaddr_in name = { .sin_family = 0 };
	char x[8] = "";
	struct iovec v = { x, 8 };
	struct msghdr m = { .msg_name = &name,
			    .msg_namelen = sizeof(name),
			    .msg_iov = &v,
			    .msg_iovlen = 1 };

	put(b, "ab");
	result("recvmsg", recvmsg(a, &m, 0));
	say("namelen %u, flags %#x, family %d", m.msg_namelen, m.msg_flags,
	    name.sin_family);
}

/* Receives with room for control messages and says which came. */
static void get_with_control(int fd, int flags)
{
	char x[64] = "", control[512];
	struct iovec v = { x, sizeof(x) };
	struct msghdr m = { .msg_iov = &v,
			    .msg_iovlen = 1,
			    .msg_control = control,
			    .msg_controllen = sizeof(control) };
	ssize_t n = recvmsg(fd, &m, flags);

	result("recvmsg", n);
	if (n < 0)
		return;
	for (struct cmsghdr *c = CMSG_FIRSTHDR(&m); c; c = CMSG_NXTHDR(&m, c)) {
		if (c->cmsg_level == IPPROTO_TCP && c->cmsg_type == TCP_INQ)
			say("TCP_INQ %d", *(int *)CMSG_DATA(c));
		else if (c->cmsg_level == SOL_IP && c->cmsg_type == IP_RECVERR) {
			struct sock_extended_err *e = (void *)CMSG_DATA(c);

			say("error queue: origin %d, %u to %u", e->ee_origin, e->ee_info,
			    e->ee_data);
		} else
			say("control %d/%d", c->cmsg_level, c->cmsg_type);
	}
}

static void cmsg_inq(int a, int b)
{
	set_int(a, IPPROTO_TCP, TCP_INQ, 1);
	put(b, "ab");
	settle();
	get_with_control(a, 0);
	put(b, "ab");
	put(b, "cd");
	settle();
	get_with_control(a, 0);
}

static void cmsg_timestamp(int a, int b)
{
	set_int(a, SOL_SOCKET, SO_TIMESTAMP, 1);
	settle(); /* the kernel begins to take the time a moment later */
	put(b, "ab");
	get_with_control(a, 0);
}

static void cmsg_timestamping_receive(int a, int b)
{
	set_int(a, SOL_SOCKET, SO_TIMESTAMPING,
		SOF_TIMESTAMPING_RX_SOFTWARE | SOF_TIMESTAMPING_SOFTWARE);
	settle();
	put(b, "ab");
	get_with_control(a, 0);
}

static void timestamping_send(int a, int b)
{
	set_int(b, SOL_SOCKET, SO_TIMESTAMPING,
		SOF_TIMESTAMPING_TX_ACK | SOF_TIMESTAMPING_SOFTWARE |
			SOF_TIMESTAMPING_OPT_ID);
	put(b, "ab");
	get(a, 100, 0);
	settle();
	get_with_control(b, MSG_ERRQUEUE | MSG_DONTWAIT);
}

static void rcvlowat_poll(int a, int b)
{
	set_int(a, SOL_SOCKET, SO_RCVLOWAT, 4);
	put(b, "ab");
	settle();
	say_poll(a, POLLIN);
	put(b, "cd");
	settle();
	say_poll(a, POLLIN);
	get_now(a);
}

static void rcvlowat_recv(int a, int b)
{
	set_int(a, SOL_SOCKET, SO_RCVLOWAT, 4);
	later(100, send_cd, b);
	later(200, send_cd, b);
	get(a, 100, 0);
}

static void rcvtimeo(int a, int b)
{
	struct timeval t = { .tv_usec = 100000 };

	setsockopt(a, SOL_SOCKET, SO_RCVTIMEO, &t, sizeof(t));
	get(a, 100, 0);
	put(b, "ab");
	get(a, 100, 0);
}

/* Writes until the socket takes no more. */
static size_t fill(int fd)
{
	size_t filled = 0;
	ssize_t n;

	while ((n = send(fd, page, 65536, MSG_DONTWAIT | MSG_NOSIGNAL)) > 0)
		filled += n;
	return filled;
}

static int drain(int fd, size_t expected)
{
	static char buffer[1 << 20];
	ssize_t n;

	while (expected &&
	       (n = recv(fd, buffer,
			 expected < sizeof(buffer) ? expected : sizeof(buffer), 0)) > 0)
		expected -= n;
	return !expected;
}

static void sndtimeo(int a, int b)
{
	struct timeval t = { .tv_usec = 100000 };

	setsockopt(b, SOL_SOCKET, SO_SNDTIMEO, &t, sizeof(t));
	fill(b);
	result("send", send(b, page, 65536, 0) > 0 ? 1 : -1);
	(void)a;
}

static void full_and_drained(int a, int b)
{
	size_t filled = fill(b);

	say("%s", error_name(errno));
	say_poll(b, POLLOUT);
	say("all read: %d", drain(a, filled));
	settle();
	say_poll(b, POLLOUT);
	put(b, "ab");
	get(a, 100, 0);
}

static void blocked_send_resumes(int a, int b)
{
	size_t filled = fill(b);

	later(0, send_bulk, b);
	settle();
	say("all read: %d", drain(a, filled));
	get_bulk(a, BULK);
}

static void small_receive_buffer(int a, int b)
{
	set_int(a, SOL_SOCKET, SO_RCVBUF, 65536);
	later(0, send_bulk, b);
	get_bulk(a, 5000);
}

static void small_send_buffer(int a, int b)
{
	set_int(b, SOL_SOCKET, SO_SNDBUF, 4096);
	later(0, send_bulk, b);
	get_bulk(a, 5000);
}

static void fionread(int a, int b)
{
	int n = -1;

	put(b, "hello");
	settle();
	ioctl(a, FIONREAD, &n);
	say("FIONREAD %d", n);
	get(a, 2, 0);
	ioctl(a, FIONREAD, &n);
	say("FIONREAD %d", n);
}

/* An option of the reader that leaves the direction to TCP. */
static void fionread_by_tcp(int a, int b)
{
	int n = -1;

	set_int(a, SOL_SOCKET, SO_RCVLOWAT, 2);
	put(b, "hello");
	settle();
	ioctl(a, FIONREAD, &n);
	say("FIONREAD %d", n);
	get(a, 100, 0);
}

/* So many bytes wait that the last message goes by TCP. */
static void recv_at_seam(int a, int b)
{
	static char bytes[40000];

	for (int i = 0; i < 3; i++)
		result("send", send(b, page, 11000, 0));
	put(b, "tail");
	settle();
	result("recv", recv(a, bytes, sizeof(bytes), 0));
	result("recv", recv(a, bytes, sizeof(bytes), MSG_DONTWAIT));
}

static void siocoutq(int a, int b)
{
	int n = -1;

	put(b, "hello");
	get(a, 100, 0);
	settle();
	settle();
	ioctl(b, SIOCOUTQ, &n);
	say("SIOCOUTQ %d", n);
	ioctl(b, SIOCOUTQNSD, &n);
	say("SIOCOUTQNSD %d", n);
}

/* ---- events ---- */

static void epoll_level(int a, int b)
{
	int e = epoll_on(a, EPOLLIN);

	say_epoll(e, 0);
	put(b, "hello");
	say_epoll(e, 500);
	get(a, 2, 0);
	say_epoll(e, 0);
	get(a, 100, 0);
	say_epoll(e, 0);
}

static void epoll_edge(int a, int b)
{
	int e = epoll_on(a, EPOLLIN | EPOLLET);

	put(b, "ab");
	say_epoll(e, 500);
	say_epoll(e, 0);
	put(b, "cd");
	say_epoll(e, 500);
	get(a, 100, 0);
	say_epoll(e, 0);
}

static void epoll_oneshot(int a, int b)
{
	struct epoll_event again = { .events = EPOLLIN | EPOLLONESHOT };
	int e = epoll_on(a, EPOLLIN | EPOLLONESHOT);

	put(b, "ab");
	say_epoll(e, 500);
	put(b, "cd");
	say_epoll(e, 50);
	epoll_ctl(e, EPOLL_CTL_MOD, a, &again);
	say_epoll(e, 500);
}

static void epoll_rdhup(int a, int b)
{
	int e = epoll_on(a, EPOLLIN | EPOLLRDHUP);

	put(b, "ab");
	shutdown(b, SHUT_WR);
	settle();
	say_epoll(e, 500);
	get(a, 100, 0);
	say_epoll(e, 0);
	get(a, 100, 0);
}

static void epoll_wakes_waiter(int a, int b)
{
	int e = epoll_on(a, EPOLLIN);

	later(100, send_cd, b);
	say_epoll(e, 2000);
	get_now(a);
}

static void select_readable(int a, int b)
{
	struct timeval t = { .tv_sec = 2 };
	fd_set set;

	FD_ZERO(&set);
	FD_SET(a, &set);
	later(100, send_cd, b);
	result("select", select(a + 1, &set, NULL, NULL, &t));
	get_now(a);
}

static void poll_readable(int a, int b)
{
	say_poll(a, POLLIN | POLLOUT | POLLPRI);
	put(b, "ab");
	settle();
	say_poll(a, POLLIN | POLLOUT | POLLPRI);
	get(a, 100, 0);
	say_poll(a, POLLIN | POLLOUT | POLLPRI);
}

static void poll_wakes_waiter(int a, int b)
{
	struct pollfd p = { .fd = a, .events = POLLIN };

	later(100, send_cd, b);
	result("poll", poll(&p, 1, 2000));
	get_now(a);
}

static void poll_hangup(int a, int b)
{
	shutdown(a, SHUT_WR);
	shutdown(b, SHUT_WR);
	settle();
	say_poll(a, POLLIN | POLLOUT | POLLRDHUP);
	get_now(a);
}

static void sigio(int a, int b)
{
	on_signal(SIGIO, 0);
	fcntl(a, F_SETOWN, getpid());
	fcntl(a, F_SETFL, O_ASYNC | O_NONBLOCK);
	settle();
	signals = 0;
	put(b, "ab");
	settle();
	say("SIGIO %s", signals ? "came" : "did not come");
	get(a, 100, 0);
}

/* ---- urgent data ---- */

static void oob(int a, int b)
{
	put(b, "ab");
	result("send", send(b, "X", 1, MSG_OOB));
	put(b, "cd");
	settle();
	say_poll(a, POLLIN | POLLPRI);
	get_now(a);
	get(a, 1, MSG_OOB | MSG_DONTWAIT);
	get_now(a);
}

static void oob_inline(int a, int b)
{
	set_int(a, SOL_SOCKET, SO_OOBINLINE, 1);
	put(b, "ab");
	result("send", send(b, "X", 1, MSG_OOB));
	settle();
	get_now(a);
	say("at mark %d", sockatmark(a));
	get_now(a);
}

static void recv_oob_none(int a, int b)
{
	put(b, "ab");
	get(a, 1, MSG_OOB | MSG_DONTWAIT);
	get_now(a);
}

static void sigurg(int a, int b)
{
	on_signal(SIGURG, 0);
	fcntl(a, F_SETOWN, getpid());
	result("send", send(b, "X", 1, MSG_OOB));
	settle();
	say("SIGURG %s", signals ? "came" : "did not come");
}

/* ---- a change from fused to TCP, and readers that wait for an edge ---- */

#define EDGE_ROOM 65536 /* more than waits for such a reader here */
#define EDGE_MS 2500	/* an edge that has not come by then never comes */

/* So many bytes wait that the last message goes by TCP. */
static size_t send_past_backlog(int b)
{
	size_t sent = 0;

	for (int i = 0; i < 3; i++)
		sent += send(b, page + sent, 11000, MSG_NOSIGNAL);
	return sent + send(b, page + sent, 4, MSG_NOSIGNAL);
}

/* An option of the writer has the second message go by TCP. */
static size_t send_past_option(int b)
{
	size_t sent = send(b, page, 2, MSG_NOSIGNAL);

	set_int(b, SOL_SOCKET, SO_ZEROCOPY, 1);
	return sent + send(b, page + 2, 2, MSG_NOSIGNAL);
}

static size_t (*const seams[])(int b) = { send_past_backlog, send_past_option };

/* One recv, whose short count is taken for the end of what is there. */
static size_t read_once(int fd, char *bytes)
{
	ssize_t n = recv(fd, bytes, EDGE_ROOM, MSG_DONTWAIT);

	return n < 0 ? 0 : n;
}

/*
 * Each seam once: writes all, then reads at each edge that waits() tells of, until
 * all is there or no edge comes.
 */
static void read_at_edges(int a, int b, bool (*waits)(void))
{
	static char bytes[2 * EDGE_ROOM];

	for (size_t i = 0; i < sizeof(seams) / sizeof(*seams); i++) {
		size_t got = 0, sent = seams[i](b);

		settle();
		while (got < sent && waits())
			got += read_once(a, bytes + got);
		say("read %zu of %zu%s", got, sent,
		    memcmp(bytes, page, got) ? ", differs" : "");
	}
}

static int edge_fd, inner_fd;
static struct epoll_event edge;

static bool edge_comes(void)
{
	return epoll_wait(edge_fd, &edge, 1, EDGE_MS) == 1;
}

static void epoll_edge_seam(int a, int b)
{
	edge_fd = epoll_on(a, EPOLLIN | EPOLLET);
	read_at_edges(a, b, edge_comes);
}

/*
 * Both have sent FIN by the time that a reads, so there is no timer of a's any more.
 * What b sends after the first bytes goes by TCP.  EPOLLHUP comes with the first edge:
 * who reads on until recv answers 0 has all; this one does not.
 */
static void read_at_edges_closed(int a, int b, bool by_option)
{
	static char bytes[2 * EDGE_ROOM];
	size_t got = 0, sent;

	edge_fd = epoll_on(a, EPOLLIN | EPOLLET);
	if (by_option) { /* with bytes unread it does not leave the map as it half-closes
			  */
		sent = send(b, page, 2, MSG_NOSIGNAL);
		shutdown(a, SHUT_WR);
		set_int(b, SOL_SOCKET, SO_ZEROCOPY, 1);
		sent += send(b, page + 2, 2, MSG_NOSIGNAL);
	} else {
		epoll_on(b, EPOLLIN | EPOLLET);
		sent = send(b, page, 100, MSG_NOSIGNAL);
		set_int(b, SOL_SOCKET, SO_RCVLOWAT, 2);
		send(a, "..", 2, MSG_NOSIGNAL);
		shutdown(a, SHUT_WR);
		sent += send(b, page + 100, 8000, MSG_NOSIGNAL);
	}
	shutdown(b, SHUT_WR);
	settle();
	while (got < sent && edge_comes()) {
		if (!got)
			say("epoll%s", edge.events & EPOLLHUP ? ": HUP" : "");
		got += read_once(a, bytes + got);
	}
	say("read %zu of %zu%s", got, sent, memcmp(bytes, page, got) ? ", differs" : "");
}

static void epoll_edge_seam_closed(int a, int b)
{
	read_at_edges_closed(a, b, true);
}

static void epoll_edge_answer_closed(int a, int b)
{
	read_at_edges_closed(a, b, false);
}

/* The outer epoll tells of an edge; then the inner, level-triggered one is asked once. */
static bool nested_edge_comes(void)
{
	struct epoll_event e;

	return epoll_wait(edge_fd, &e, 1, EDGE_MS) == 1 &&
	       epoll_wait(inner_fd, &e, 1, 0) == 1;
}

static void epoll_nested_seam(int a, int b)
{
	inner_fd = epoll_on(a, EPOLLIN);
	edge_fd = epoll_on(inner_fd, EPOLLIN | EPOLLET);
	read_at_edges(a, b, nested_edge_comes);
}

static sigset_t edge_signal;

/* All that are queued are one edge. */
static bool signal_comes(void)
{
	struct timespec wait = { EDGE_MS / 1000, EDGE_MS % 1000 * 1000000L },
			none = { 0 };

	if (sigtimedwait(&edge_signal, NULL, &wait) < 0)
		return false;
	while (sigtimedwait(&edge_signal, NULL, &none) > 0)
		;
	return true;
}

static void sigio_reader(int a, int b, int flags)
{
	sigemptyset(&edge_signal);
	sigaddset(&edge_signal, SIGRTMIN);
	sigprocmask(SIG_BLOCK, &edge_signal, NULL);
	fcntl(a, F_SETOWN, getpid());
	fcntl(a, F_SETSIG, SIGRTMIN);
	fcntl(a, F_SETFL, O_ASYNC | flags);
	read_at_edges(a, b, signal_comes);
}

static void sigio_seam(int a, int b)
{
	sigio_reader(a, b, 0);
}

static void sigio_seam_nonblocking(int a, int b)
{
	sigio_reader(a, b, O_NONBLOCK);
}

/* ---- io_uring ---- */

struct ring {
	int fd;
	unsigned int *sq_tail, *sq_array, *cq_head, *cq_tail, mask, flags;
	struct io_uring_sqe *sqes;
	struct io_uring_cqe *cqes;
};

static int ring_open(struct ring *r)
{
	struct io_uring_params p = { .flags = 0 };
	char *sq, *cq;

	r->fd = syscall(SYS_io_uring_setup, 8, &p);
	if (r->fd < 0)
		return -1;
	sq = mmap(NULL, p.sq_off.array + p.sq_entries * 4, PROT_READ | PROT_WRITE,
		  MAP_SHARED | MAP_POPULATE, r->fd, IORING_OFF_SQ_RING);
	cq = mmap(NULL, p.cq_off.cqes + p.cq_entries * sizeof(*r->cqes),
		  PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, r->fd,
		  IORING_OFF_CQ_RING);
	r->sqes = mmap(NULL, p.sq_entries * sizeof(*r->sqes), PROT_READ | PROT_WRITE,
		       MAP_SHARED | MAP_POPULATE, r->fd, IORING_OFF_SQES);
	r->sq_tail = (void *)(sq + p.sq_off.tail);
	r->sq_array = (void *)(sq + p.sq_off.array);
	r->cq_head = (void *)(cq + p.cq_off.head);
	r->cq_tail = (void *)(cq + p.cq_off.tail);
	r->cqes = (void *)(cq + p.cq_off.cqes);
	r->mask = p.cq_entries - 1;
	return 0;
}

static void ring_submit(struct ring *r, struct io_uring_sqe sqe)
{
	unsigned int tail = *r->sq_tail;

	r->sqes[tail % 8] = sqe;
	r->sq_array[tail % 8] = tail % 8;
	__atomic_store_n(r->sq_tail, tail + 1, __ATOMIC_RELEASE);
	syscall(SYS_io_uring_enter, r->fd, 1, 0, 0, NULL, 0);
}

/* The result of the next completion; its flags are left in r->flags. */
static int ring_wait(struct ring *r)
{
	unsigned int head = *r->cq_head;
	const struct io_uring_cqe *c = &r->cqes[head & r->mask];
	int value;

	while (__atomic_load_n(r->cq_tail, __ATOMIC_ACQUIRE) == head)
		syscall(SYS_io_uring_enter, r->fd, 0, 1, IORING_ENTER_GETEVENTS, NULL, 0);
	value = c->res;
	r->flags = c->flags;
	__atomic_store_n(r->cq_head, head + 1, __ATOMIC_RELEASE);
	return value;
}

static int more(const struct ring *r)
{
	return !!(r->flags & IORING_CQE_F_MORE);
}

static void uring_recv_waits(int a, int b)
{
	char x[8] = "";
	struct ring r;
	int n;

	if (ring_open(&r)) {
		result("io_uring_setup", -1);
		return;
	}
	ring_submit(&r, (struct io_uring_sqe){ .opcode = IORING_OP_RECV,
					       .fd = a,
					       .addr = (long)x,
					       .len = 8 });
	settle();
	put(b, "ab");
	n = ring_wait(&r);
	say("completion %d \"%s\"", n, x);
}

static void uring_recv_ready(int a, int b)
{
	char x[8] = "";
	struct ring r;
	int n;

	if (ring_open(&r)) {
		result("io_uring_setup", -1);
		return;
	}
	put(b, "ab");
	settle();
	ring_submit(&r, (struct io_uring_sqe){ .opcode = IORING_OP_RECV,
					       .fd = a,
					       .addr = (long)x,
					       .len = 8 });
	n = ring_wait(&r);
	say("completion %d \"%s\"", n, x);
}

static void uring_send(int a, int b)
{
	struct ring r;

	if (ring_open(&r)) {
		result("io_uring_setup", -1);
		return;
	}
	ring_submit(&r, (struct io_uring_sqe){ .opcode = IORING_OP_SEND,
					       .fd = b,
					       .addr = (long)"ab",
					       .len = 2 });
	say("completion %d", ring_wait(&r));
	get(a, 100, 0);
}

static void uring_poll_multishot(int a, int b)
{
	struct ring r;
	int n;

	if (ring_open(&r)) {
		result("io_uring_setup", -1);
		return;
	}
	ring_submit(&r, (struct io_uring_sqe){ .opcode = IORING_OP_POLL_ADD,
					       .fd = a,
					       .len = IORING_POLL_ADD_MULTI,
					       .poll32_events = POLLIN });
	for (int i = 0; i < 2; i++) {
		put(b, "ab");
		n = ring_wait(&r);
		say("completion %s more %d", n & POLLIN ? "IN" : "?", more(&r));
		get_now(a);
	}
}

static struct ring edge_ring;

/* All completions that are there are one edge. */
static bool completion_comes(void)
{
	struct pollfd p = { .fd = edge_ring.fd, .events = POLLIN };

	if (poll(&p, 1, EDGE_MS) != 1)
		return false;
	while (*edge_ring.cq_head != __atomic_load_n(edge_ring.cq_tail, __ATOMIC_ACQUIRE))
		ring_wait(&edge_ring);
	return true;
}

static void uring_poll_seam(int a, int b)
{
	if (ring_open(&edge_ring)) {
		result("io_uring_setup", -1);
		return;
	}
	ring_submit(&edge_ring, (struct io_uring_sqe){ .opcode = IORING_OP_POLL_ADD,
						       .fd = a,
						       .len = IORING_POLL_ADD_MULTI,
						       .poll32_events = POLLIN });
	read_at_edges(a, b, completion_comes);
}

/* IORING_RECV_MULTISHOT with a provided buffer group. */
static void uring_recv_multishot(int a, int b)
{
#ifdef IORING_RECV_MULTISHOT
	static char buffers[4][16];
	struct ring r;
	int n;

	if (ring_open(&r)) {
		result("io_uring_setup", -1);
		return;
	}
	ring_submit(&r, (struct io_uring_sqe){ .opcode = IORING_OP_PROVIDE_BUFFERS,
					       .fd = 4,
					       .addr = (long)buffers,
					       .len = 16,
					       .buf_group = 1 });
	say("buffers %d", ring_wait(&r));
	ring_submit(&r, (struct io_uring_sqe){ .opcode = IORING_OP_RECV,
					       .fd = a,
					       .ioprio = IORING_RECV_MULTISHOT,
					       .flags = IOSQE_BUFFER_SELECT,
					       .buf_group = 1 });
	for (int i = 0; i < 2; i++) {
		put(b, i ? "cd" : "ab");
		n = ring_wait(&r);
		say("completion %d more %d \"%.2s\"", n, more(&r),
		    n < 0 ? "" : buffers[r.flags >> IORING_CQE_BUFFER_SHIFT]);
		if (n < 0)
			return;
	}
	shutdown(b, SHUT_WR);
	n = ring_wait(&r);
	say("completion %d more %d", n, more(&r));
#else
	(void)a, (void)b;
	say("not in these headers");
#endif
}

/* ---- splice, sendfile, zero copy ---- */

static void splice_from_socket(int a, int b)
{
	char x[8] = "";
	int p[2];

	if (pipe(p))
		return;
	put(b, "hello");
	settle();
	if (result("splice", splice(a, NULL, p[1], NULL, 5, SPLICE_F_NONBLOCK)) > 0) {
		result("read", read(p[0], x, 8));
		say("\"%s\"", x);
	}
	get_now(a);
}

static void splice_from_socket_waits(int a, int b)
{
	int p[2];

	if (pipe(p))
		return;
	later(100, send_cd, b);
	result("splice", splice(a, NULL, p[1], NULL, 5, 0));
}

/* Reads from fd by splice until it waits, ends or fails, and says what came. */
static void splice_all(int fd, int flags)
{
	static char bytes[1 << 20];
	size_t got = 0;
	ssize_t n;
	int p[2];

	if (pipe(p))
		return;
	while ((n = splice(fd, NULL, p[1], NULL, 65536, flags)) > 0)
		for (ssize_t done = 0, part; done < n; done += part) {
			part = read(p[0], bytes + got, n - done);
			if (part <= 0)
				return;
			got += part;
		}
	say("spliced %zu%s", got, memcmp(bytes, page, got) ? ", differs" : "");
	result("splice", n);
	close(p[0]);
	close(p[1]);
}

/* What splice leaves, recv finds. */
static void splice_then_recv(int a)
{
	static char bytes[1 << 18];
	size_t got = 0;
	ssize_t n;

	splice_all(a, SPLICE_F_NONBLOCK);
	while ((n = recv(a, bytes + got, sizeof(bytes) - got, MSG_DONTWAIT)) > 0)
		got += n;
	say("left %zu", got);
}

static void splice_after_close(int a, int b)
{
	put(b, "abc");
	close(b);
	settle();
	splice_all(a, 0);
	get_now(a);
}

static void splice_after_shutdown(int a, int b)
{
	put(b, "abc");
	shutdown(b, SHUT_WR);
	settle();
	splice_all(a, 0);
	get_now(a);
}

static void splice_nonblocking(int a, int b)
{
	fcntl(a, F_SETFL, O_NONBLOCK);
	result("send", send(b, page, 5, 0));
	settle();
	splice_then_recv(a);
}

static void splice_nonblocking_large(int a, int b)
{
	fcntl(a, F_SETFL, O_NONBLOCK);
	for (int i = 0; i < 4; i++)
		result("send", send(b, page + i * 50000, 50000, 0));
	settle();
	splice_then_recv(a);
}

static void splice_at_edges(int a, int b, size_t (*write_all)(int))
{
	edge_fd = epoll_on(a, EPOLLIN | EPOLLET);
	fcntl(a, F_SETFL, O_NONBLOCK);
	say("sent %zu", write_all(b));
	settle();
	say("edge %d", edge_comes());
	splice_then_recv(a);
}

static size_t send_five(int b)
{
	return send(b, page, 5, MSG_NOSIGNAL);
}

static void splice_at_edge(int a, int b)
{
	splice_at_edges(a, b, send_five);
}

static void splice_at_edge_seam(int a, int b)
{
	splice_at_edges(a, b, send_past_backlog);
}

static void splice_at_seam(int a, int b)
{
	fcntl(a, F_SETFL, O_NONBLOCK);
	say("sent %zu", send_past_option(b));
	settle();
	splice_then_recv(a);
}

static void splice_to_socket(int a, int b)
{
	int p[2];

	if (pipe(p) || write(p[1], "hello", 5) != 5)
		return;
	result("splice", splice(p[0], NULL, b, NULL, 5, 0));
	get(a, 100, 0);
}

static int bulk_file(void)
{
	int fd = memfd_create("bulk", 0);

	if (fd < 0 || write(fd, page, BULK) != BULK)
		return -1;
	lseek(fd, 0, SEEK_SET);
	return fd;
}

static int file_fd;

static void send_file(int fd)
{
	for (off_t at = 0; at < BULK;)
		if (sendfile(fd, file_fd, &at, BULK - at) <= 0)
			return;
}

static void sendfile_to_socket(int a, int b)
{
	file_fd = bulk_file();
	later(0, send_file, b);
	get_bulk(a, BULK);
}

static void sendfile_from_socket(int a, int b)
{
	int fd = memfd_create("copy", 0);

	put(b, "hello");
	settle();
	result("sendfile", sendfile(fd, a, NULL, 5));
	get_now(a);
}

static void zerocopy(int a, int b)
{
	set_int(b, SOL_SOCKET, SO_ZEROCOPY, 1);
	result("send", send(b, page, 4096, MSG_ZEROCOPY));
	say("read %d", drain(a, 4096));
	settle();
	get_with_control(b, MSG_ERRQUEUE | MSG_DONTWAIT);
}

static void zerocopy_not_enabled(int a, int b)
{
	result("send", send(b, page, 4096, MSG_ZEROCOPY));
	say("read %d", drain(a, 4096));
	settle();
	get_with_control(b, MSG_ERRQUEUE | MSG_DONTWAIT);
}

#define MAPPED 65536

/* Maps a socket for TCP_ZEROCOPY_RECEIVE; false: this kernel cannot. */
static void *map_socket(int fd)
{
	void *at = mmap(NULL, MAPPED, PROT_READ, MAP_SHARED, fd, 0);

	if (at == MAP_FAILED)
		result("mmap", -1);
	return at;
}

/* Fewer bytes than a page are copied; map may be NULL then. */
static void get_zerocopy(int fd, void *map)
{
	char bytes[256] = "";
	struct tcp_zerocopy_receive z = { .address = (unsigned long)map,
					  .length = map ? MAPPED : 0,
					  .copybuf_address = (unsigned long)bytes,
					  .copybuf_len = sizeof(bytes) };
	socklen_t length = sizeof(z);

	if (getsockopt(fd, IPPROTO_TCP, TCP_ZEROCOPY_RECEIVE, &z, &length))
		result("zerocopy", -1);
	else
		say("zerocopy: \"%.*s\"", z.copybuf_len > 0 ? z.copybuf_len : 0, bytes);
}

/* Two messages, the second by TCP. */
static void send_old_and_new(int b)
{
	put(b, "old");
	set_int(b, SOL_SOCKET, SO_ZEROCOPY, 1);
	put(b, "new");
	settle();
}

/* Mapped before its first byte comes, as a program does that reads so. */
static void *mapped_pair(int *a, int *b)
{
	void *map;

	if (connect_pair(a, b, 0)) {
		say("no connection");
		_exit(1);
	}
	map = map_socket(*a);
	exchange(*a, *b);
	return map;
}

static void zerocopy_receive(int a, int b)
{
	void *map = mapped_pair(&a, &b);

	put(b, "hello");
	settle();
	get_zerocopy(a, map);
	get_now(a);
	put(b, "ab");
	put(b, "cd");
	settle();
	get_zerocopy(a, map);
	get_now(a);
}

static void zerocopy_receive_then_recv(int a, int b)
{
	void *map = mapped_pair(&a, &b);

	put(b, "ab");
	settle();
	get(a, 1, 0);
	get_zerocopy(a, map);
	put(b, "cd");
	get(a, 100, 0);
	get_zerocopy(a, map);
}

static void zerocopy_receive_at_seam(int a, int b)
{
	void *map = mapped_pair(&a, &b);

	send_old_and_new(b);
	get_zerocopy(a, map);
	get_now(a);
}

static void zerocopy_receive_ends(int a, int b)
{
	void *map = mapped_pair(&a, &b);

	put(b, "hello");
	close(b);
	settle();
	get_zerocopy(a, map);
	get_now(a);
}

/* What came before was fused and has been read. */
static void zerocopy_receive_mapped_in_silence(int a, int b)
{
	void *map = map_socket(a);

	put(b, "hello");
	settle();
	get_zerocopy(a, map);
	get_now(a);
}

/* Bytes wait. */
static void zerocopy_receive_mapped_behind_bytes(int a, int b)
{
	void *map;

	put(b, "hello");
	settle();
	map = map_socket(a);
	get_zerocopy(a, map);
	get_now(a);
	put(b, "ab");
	settle();
	get_zerocopy(a, map);
	get_now(a);
}

static void zerocopy_receive_mapped_at_seam(int a, int b)
{
	void *map;

	send_old_and_new(b);
	map = map_socket(a);
	get_zerocopy(a, map);
	get_now(a);
}

static void zerocopy_receive_not_mapped(int a, int b)
{
	send_old_and_new(b);
	get_zerocopy(a, NULL);
	get_now(a);
}

/* ---- sending ---- */

static void msg_more(int a, int b)
{
	result("send", send(b, "ab", 2, MSG_MORE));
	put(b, "cd");
	settle();
	get_now(a);
}

static void msg_more_alone(int a, int b)
{
	result("send", send(b, "ab", 2, MSG_MORE));
	get(a, 100, 0);
}

static void cork(int a, int b)
{
	set_int(b, IPPROTO_TCP, TCP_CORK, 1);
	put(b, "ab");
	put(b, "cd");
	set_int(b, IPPROTO_TCP, TCP_CORK, 0);
	settle();
	get_now(a);
}

static void nodelay(int a, int b)
{
	set_int(b, IPPROTO_TCP, TCP_NODELAY, 1);
	put(b, "ab");
	get(a, 100, 0);
}

static void send_nothing(int a, int b)
{
	result("send", send(b, "", 0, 0));
	settle();
	say_poll(a, POLLIN);
	put(b, "ab");
	get(a, 100, 0);
}

static void send_bad_buffer(int a, int b)
{
	result("send", send(b, (void *)8, 5, 0));
	get_now(a);
	put(b, "ab");
	get(a, 100, 0);
}

static void send_partly_bad_buffer(int a, int b)
{
	char *two = mmap(NULL, 8192, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS,
			 -1, 0);

	munmap(two + 4096, 4096);
	memcpy(two + 4094, "ab", 2);
	result("send", send(b, two + 4094, 5, 0));
	settle();
	get_now(a);
}

static void send_with_address(int a, int b)
{
	struct sockaddr_storage address;
	socklen_t length;

	local(&address, &length);
	result("sendto", sendto(b, "ab", 2, 0, (void *)&address, length));
	get_now(a);
}

static void notsent_lowat(int a, int b)
{
	set_int(b, IPPROTO_TCP, TCP_NOTSENT_LOWAT, 4096);
	say_poll(b, POLLOUT);
	put(b, "ab");
	get(a, 100, 0);
	say_poll(b, POLLOUT);
}

static void bulk(int a, int b)
{
	later(0, send_bulk, b);
	get_bulk(a, BULK);
}

static void bulk_in_small_reads(int a, int b)
{
	later(0, send_bulk, b);
	get_bulk(a, 777);
}

/* ---- closing ---- */

static void half_close(int a, int b)
{
	put(b, "ab");
	shutdown(b, SHUT_WR);
	get(a, 100, 0);
	get(a, 100, 0);
	put(a, "cd");
	get(b, 100, 0);
	put(b, "ef");
}

static void half_close_by_receiver(int a, int b)
{
	shutdown(a, SHUT_WR);
	settle();
	put(b, "ab");
	get(a, 100, 0);
	close(b);
	settle();
	get_now(a);
}

static void shutdown_of_reading(int a, int b)
{
	shutdown(a, SHUT_RD);
	get_now(a);
	put(b, "ab");
	settle();
	get_now(a);
	get_now(a);
}

static void shutdown_of_reading_unread(int a, int b)
{
	put(b, "ab");
	settle();
	shutdown(a, SHUT_RD);
	get_now(a);
	get_now(a);
}

static void both_close(int a, int b)
{
	put(a, "ab");
	put(b, "cd");
	shutdown(a, SHUT_WR);
	shutdown(b, SHUT_WR);
	get(a, 100, 0);
	get(b, 100, 0);
	get(a, 100, 0);
	get(b, 100, 0);
}

static void close_after_sending(int a, int b)
{
	put(b, "hello");
	close(b);
	settle();
	say_poll(a, POLLIN | POLLRDHUP);
	get(a, 100, 0);
	get(a, 100, 0);
}

static void say_socket_error(int fd)
{
	int error = -1;
	socklen_t length = sizeof(error);

	getsockopt(fd, SOL_SOCKET, SO_ERROR, &error, &length);
	say("SO_ERROR %s", error ? error_name(error) : "none");
}

static void close_with_unread(int a, int b)
{
	put(b, "hello");
	settle();
	close(a);
	settle();
	say_poll(b, POLLIN);
	get_now(b);
	put(b, "ab");
}

static void linger_zero(int a, int b)
{
	struct linger l = { .l_onoff = 1, .l_linger = 0 };

	setsockopt(a, SOL_SOCKET, SO_LINGER, &l, sizeof(l));
	close(a);
	settle();
	say_poll(b, POLLIN);
	get_now(b);
	get_now(b);
}

static void reset_behind_data(int a, int b)
{
	struct linger l = { .l_onoff = 1, .l_linger = 0 };

	put(b, "hello");
	settle();
	setsockopt(b, SOL_SOCKET, SO_LINGER, &l, sizeof(l));
	close(b);
	settle();
	say_poll(a, POLLIN);
	get_now(a);
	get_now(a);
}

static void reset_socket_error(int a, int b)
{
	struct linger l = { .l_onoff = 1, .l_linger = 0 };

	setsockopt(b, SOL_SOCKET, SO_LINGER, &l, sizeof(l));
	close(b);
	settle();
	say_socket_error(a);
	say_socket_error(a);
}

static void reset_hard(int fd)
{
	struct linger l = { .l_onoff = 1, .l_linger = 0 };

	setsockopt(fd, SOL_SOCKET, SO_LINGER, &l, sizeof(l));
	close(fd);
}

static void reset_wakes_reader(int a, int b)
{
	later(100, reset_hard, b);
	close(b); /* the other process has it still */
	get(a, 100, 0);
}

static void close_wakes_reader(int a, int b)
{
	later(100, send_cd, b);
	close(b);
	get(a, 100, 0);
	get(a, 100, 0);
}

static void send_after_peer_closed(int a, int b)
{
	on_signal(SIGPIPE, 0);
	close(a);
	settle();
	put(b, "ab");
	settle();
	result("send", send(b, "cd", 2, 0));
	say("SIGPIPE %d", (int)signals);
	get_now(b);
}

/* What the sender is told before the close, by its first send after it, and then. */
static void send_thrice(int a, int b, void (*close_it)(int))
{
	put(b, "ab");
	get(a, 100, 0);
	close_it(a);
	put(b, "cd");
	put(b, "ef");
	get_now(b);
	get_now(b);
}

static void close_plainly(int fd)
{
	close(fd);
}

static void close_after_half(int fd)
{
	shutdown(fd, SHUT_WR);
	close(fd);
}

static void sends_about_close(int a, int b)
{
	send_thrice(a, b, close_plainly);
}

static void sends_about_half_close(int a, int b)
{
	send_thrice(a, b, close_after_half);
}

static void sends_about_reset(int a, int b)
{
	send_thrice(a, b, reset_hard);
}

/* The close comes while send waits for room. */
static void close_at_blocked_send(int a, int b)
{
	while (fill(b))
		settle(); /* what is acknowledged late makes room again */
	later(100, reset_hard, a);
	close(a); /* the other process has it still */
	result("send", send(b, "ab", 2, MSG_NOSIGNAL));
	put(b, "cd");
	get_now(b);
}

static void send_after_shutdown(int a, int b)
{
	on_signal(SIGPIPE, 0);
	shutdown(b, SHUT_WR);
	result("send", send(b, "ab", 2, 0));
	result("send", send(b, "ab", 2, MSG_NOSIGNAL));
	say("SIGPIPE %d", (int)signals);
	get_now(a);
}

static void disconnect(int a, int b)
{
	struct sockaddr nowhere = { .sa_family = AF_UNSPEC };
	int c;

	result("connect", connect(a, &nowhere, sizeof(nowhere)));
	settle();
	get_now(b);
	get_now(a);
	c = accept(dial(&a), NULL, NULL);
	exchange(a, c);
	put(c, "ab");
	get(a, 100, 0);
}

static void disconnect_with_unread(int a, int b)
{
	struct sockaddr nowhere = { .sa_family = AF_UNSPEC };
	int c;

	put(b, "old");
	settle();
	connect(a, &nowhere, sizeof(nowhere));
	c = accept(dial(&a), NULL, NULL);
	put(c, "new");
	get(a, 100, 0);
}

/* ---- signals and stops ---- */

static void signal_without_restart(int a, int b)
{
	on_signal(SIGUSR1, 0);
	later(100, signal_parent, b);
	get(a, 100, 0);
	say("signals %d", (int)signals);
}

static void signal_with_restart(int a, int b)
{
	on_signal(SIGUSR1, SA_RESTART);
	later(100, signal_parent, b);
	get(a, 100, 0);
	say("signals %d", (int)signals);
}

static void stop_and_continue(int a, int b)
{
	later(100, stop_parent, b);
	get(a, 100, 0);
}

static char frozen_group[256];

static void write_to(const char *file, const char *text)
{
	char path[512];
	int fd;

	snprintf(path, sizeof(path), "%s/%s", frozen_group, file);
	fd = open(path, O_WRONLY);
	if (fd < 0 || write(fd, text, strlen(text)) < 0)
		say("%s: %s", file, error_name(errno));
	close(fd);
}

static void freeze_parent(int fd)
{
	write_to("cgroup.freeze", "1");
	usleep(100000);
	write_to("cgroup.freeze", "0");
	usleep(100000);
	send_cd(fd);
}

static void frozen_cgroup(int a, int b)
{
	char line[128] = "", pid[16];
	FILE *file = fopen("/proc/self/cgroup", "r");
	pid_t helper;

	while (fgets(line, sizeof(line), file) && strncmp(line, "0::", 3))
		;
	fclose(file);
	line[strcspn(line, "\n")] = 0;
	snprintf(frozen_group, sizeof(frozen_group), "/sys/fs/cgroup%s/frozen.%d",
		 line + 3, getpid());
	if (mkdir(frozen_group, 0755)) {
		result("mkdir", -1);
		return;
	}
	helper = later(100, freeze_parent, b);
	snprintf(pid, sizeof(pid), "%d", getpid());
	write_to("cgroup.procs", pid);
	get(a, 100, 0);
	waitpid(helper, NULL, 0);
	strcat(frozen_group, "/..");
	write_to("cgroup.procs", pid);
	frozen_group[strlen(frozen_group) - 3] = 0;
	rmdir(frozen_group);
}

/* A thread blocks in send, another in recv; the peer makes room, then answers. */
static void *blocked_sender(void *fd)
{
	send_bulk(*(int *)fd);
	return NULL;
}

static void drain_and_answer(int fd)
{
	usleep(200000);
	while (recv(fd, page, sizeof(page), MSG_DONTWAIT) > 0)
		usleep(1000);
	usleep(200000);
	while (recv(fd, page, sizeof(page), MSG_DONTWAIT) > 0)
		usleep(1000);
	send_cd(fd);
}

static void recv_beside_blocked_send(int a, int b)
{
	pthread_t thread;

	fill(a);
	later(0, drain_and_answer, b);
	pthread_create(&thread, NULL, blocked_sender, &a);
	get(a, 100, 0);
}

/* ---- sharing ---- */

static void dup_shares(int a, int b)
{
	int d = dup(a);

	put(b, "hello");
	get(a, 2, 0);
	close(a);
	get(d, 100, 0);
}

static void get_two(int fd)
{
	char c[2];

	if (recv(fd, c, 2, 0) != 2)
		_exit(1);
}

static void fork_shares(int a, int b)
{
	put(b, "hello");
	waitpid(later(0, get_two, a), NULL, 0);
	get(a, 100, 0);
}

static void fork_close_keeps_open(int a, int b)
{
	pid_t child = later(600, send_cd, b);

	close(b);
	settle();
	get_now(a);
	waitpid(child, NULL, 0);
	get(a, 100, 0);
	get(a, 100, 0);
}

static void descriptor_passed(int a, int b)
{
	char control[CMSG_SPACE(sizeof(int))] = "", c;
	struct iovec v = { &c, 1 };
	struct msghdr m = { .msg_iov = &v,
			    .msg_iovlen = 1,
			    .msg_control = control,
			    .msg_controllen = sizeof(control) };
	struct cmsghdr *header = CMSG_FIRSTHDR(&m);
	int way[2];

	if (socketpair(AF_UNIX, SOCK_STREAM, 0, way))
		return;
	put(b, "hello");
	get(a, 2, 0);
	if (!fork()) {
		int fd;

		close(a);
		if (recvmsg(way[1], &m, 0) != 1)
			_exit(1);
		memcpy(&fd, CMSG_DATA(CMSG_FIRSTHDR(&m)), sizeof(fd));
		get(fd, 100, 0);
		get(fd, 100, 0);
		_exit(0);
	}
	header->cmsg_level = SOL_SOCKET;
	header->cmsg_type = SCM_RIGHTS;
	header->cmsg_len = CMSG_LEN(sizeof(int));
	memcpy(CMSG_DATA(header), &a, sizeof(int));
	close(way[1]);
	sendmsg(way[0], &m, 0);
	close(a);
	settle();
	send(b, "ab", 2, 0);
	wait(NULL);
}

static void count_one(int fd)
{
	char c[8];

	_exit(recv(fd, c, sizeof(c), 0) == 2 ? 0 : 1);
}

static void several_readers(int a, int b)
{
	int good = 0, status;

	for (int i = 0; i < 3; i++)
		later(0, count_one, a);
	settle();
	for (int i = 0; i < 3; i++) {
		send_cd(b);
		settle();
	}
	for (int i = 0; i < 3; i++)
		if (wait(&status) > 0 && WIFEXITED(status) && !WEXITSTATUS(status))
			good++;
	say("readers with one message each: %d", good);
}

#define READERS 3
#define READS 3

static struct reading_thread {
	pthread_t thread;
	int fd, good;
} reading[READERS];

/* READS messages of two bytes; EAGAIN is told by recv_woken_without_bytes. */
static void *read_messages(void *argument)
{
	struct reading_thread *r = argument;
	char c[8];
	ssize_t n;

	for (int i = 0; i<READS; i += n> 0) {
		n = recv(r->fd, c, sizeof(c), 0);
		if (!n || (n < 0 && errno != EAGAIN))
			break;
		r->good += n == 2 && !memcmp(c, "cd", 2);
	}
	return NULL;
}

/* Threads that block in recv on one socket; the middle READERS messages go by TCP if
 * asked. */
static void threads_read(int a, int b, bool fall_back)
{
	int good = 0;

	for (int i = 0; i < READERS; i++) {
		reading[i].fd = a;
		pthread_create(&reading[i].thread, NULL, read_messages, &reading[i]);
	}
	settle();
	for (int i = 0; i < READERS * READS; i++) {
		if (fall_back && i % READERS == 0)
			set_int(b, SOL_SOCKET, SO_ZEROCOPY, i / READERS == 1);
		send_cd(b);
		usleep(50000);
	}
	for (int i = 0; i < READERS; i++) {
		pthread_join(reading[i].thread, NULL);
		good += reading[i].good;
	}
	say("threads with their messages: %d of %d", good, READERS * READS);
}

static void threads_read_fused(int a, int b)
{
	threads_read(a, b, false);
}

static void threads_read_after_fallback(int a, int b)
{
	threads_read(a, b, true);
}

static void several_writers(int a, int b)
{
	static char got[30001];
	size_t n = 0;
	ssize_t done;

	for (int i = 0; i < 3; i++)
		if (!fork()) {
			memset(page, 'a' + i, 10);
			for (int j = 0; j < 1000; j++)
				send(b, page, 10, 0);
			_exit(0);
		}
	while (n < 30000 && (done = recv(a, got + n, 30000 - n, 0)) > 0)
		n += done;
	for (size_t i = 0; i < n; i++)
		if (got[i] != got[i - i % 10]) {
			say("messages are mixed");
			break;
		}
	say("%zu bytes", n);
}

/* ---- what getsockopt and the like tell ---- */

static void tcp_info_bytes(int a, int b)
{
	struct tcp_info i = { .tcpi_state = 0 };
	socklen_t length = sizeof(i);

	put(b, "hello");
	get(a, 100, 0);
	settle();
	getsockopt(a, IPPROTO_TCP, TCP_INFO, &i, &length);
	say("state %d, received %llu", i.tcpi_state,
	    (unsigned long long)i.tcpi_bytes_received);
}

static void names(int a, int b)
{
	struct sockaddr_in x = { .sin_family = 0 }, y = { .sin_family = 0 };
	socklen_t length = sizeof(x);

	getsockname(a, (void *)&x, &length);
	getpeername(b, (void *)&y, &length);
	say("same %d", !memcmp(&x, &y, sizeof(x)));
}

static void options_unchanged(int a, int b)
{
	static const int options[] = { SO_TYPE,	    SO_PROTOCOL,  SO_DOMAIN,
				       SO_RCVLOWAT, SO_KEEPALIVE, SO_RCVBUF,
				       SO_BROADCAST };

	for (size_t i = 0; i < sizeof(options) / sizeof(*options); i++) {
		int value = -1;
		socklen_t length = sizeof(value);

		getsockopt(a, SOL_SOCKET, options[i], &value, &length);
		say("%d", value);
	}
	(void)b;
}

static void ulp_tls(int a, int b)
{
	result("TCP_ULP tls", setsockopt(a, IPPROTO_TCP, TCP_ULP, "tls", 4));
	put(b, "ab");
	get(a, 100, 0);
}

static void ulp_unknown(int a, int b)
{
	result("TCP_ULP", setsockopt(a, IPPROTO_TCP, TCP_ULP, "nothing", 8));
	put(b, "ab");
	get(a, 100, 0);
}

/* ---- connections that come about otherwise: these make their own ---- */

static void connection_mptcp(int a, int b)
{
	if (connect_pair(&a, &b, IPPROTO_MPTCP)) {
		result("socket", -1);
		return;
	}
	exchange(a, b);
	put(b, "hello");
	get(a, 100, 0);
	get(b, 100, MSG_DONTWAIT);
}

static void connection_to_itself(int a, int b)
{
	struct sockaddr_storage address;
	socklen_t length;

	local(&address, &length);
	a = socket(AF_INET, SOCK_STREAM, 0);
	result("bind", bind(a, (void *)&address, length));
	getsockname(a, (void *)&address, &length);
	result("connect", connect(a, (void *)&address, length));
	put(a, "hello");
	get(a, 100, 0);
	put(a, "ab");
	put(a, "cd");
	settle();
	get(a, 100, 0);
	shutdown(a, SHUT_WR);
	settle();
	get_now(a);
	(void)b;
}

static void connection_over_ipv6(int a, int b)
{
	struct sockaddr_storage address = { .ss_family = AF_INET6 };
	struct sockaddr_in6 *in6 = (void *)&address;
	socklen_t length = sizeof(*in6);
	int listener;

	in6->sin6_addr = in6addr_loopback;
	listener = listen_on(&address, &length, 0);
	a = socket(AF_INET6, SOCK_STREAM, 0);
	result("connect", connect(a, (void *)&address, length));
	b = accept(listener, NULL, NULL);
	exchange(a, b);
	put(b, "hello");
	get(a, 100, 0);
}

static void connection_to_dual_stack(int a, int b)
{
	struct sockaddr_storage address = { .ss_family = AF_INET6 }, target;
	socklen_t length = sizeof(struct sockaddr_in6), target_length;
	int listener;

	listener = listen_on(&address, &length, 0);
	local(&target, &target_length);
	((struct sockaddr_in *)&target)->sin_port =
		((struct sockaddr_in6 *)&address)->sin6_port;
	a = socket(AF_INET, SOCK_STREAM, 0);
	result("connect", connect(a, (void *)&target, target_length));
	b = accept(listener, NULL, NULL);
	exchange(a, b);
	put(b, "hello");
	get(a, 100, 0);
}

static void connection_nonblocking(int a, int b)
{
	struct sockaddr_storage address;
	socklen_t length;
	int listener;

	local(&address, &length);
	listener = listen_on(&address, &length, 0);
	a = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
	result("connect", connect(a, (void *)&address, length));
	settle();
	say_poll(a, POLLOUT);
	say_socket_error(a);
	b = accept4(listener, NULL, NULL, SOCK_NONBLOCK);
	put(b, "hello");
	settle();
	get(a, 100, 0);
	get(a, 100, 0);
}

static void connection_with_data_before_accept(int a, int b)
{
	int listener = dial(&a);

	put(a, "hello");
	put(a, " you");
	settle();
	b = accept(listener, NULL, NULL);
	get(b, 100, 0);
}

static void connection_closed_before_accept(int a, int b)
{
	int listener = dial(&a);

	put(a, "hello");
	close(a);
	settle();
	b = accept(listener, NULL, NULL);
	get(b, 100, 0);
	get(b, 100, 0);
}

static void connection_never_accepted(int a, int b)
{
	int listener = dial(&a);

	put(a, "hello");
	settle();
	close(listener);
	settle();
	get_now(a);
	(void)b;
}

static void connection_deferred_accept(int a, int b)
{
	struct sockaddr_storage address;
	socklen_t length;
	int listener;

	local(&address, &length);
	listener = listen_on(&address, &length, 0);
	set_int(listener, IPPROTO_TCP, TCP_DEFER_ACCEPT, 1);
	a = socket(AF_INET, SOCK_STREAM, 0);
	result("connect", connect(a, (void *)&address, length));
	settle();
	say_poll(listener, POLLIN);
	put(a, "hello");
	settle();
	say_poll(listener, POLLIN);
	b = accept(listener, NULL, NULL);
	get(b, 100, 0);
	put(b, "ab");
	get(a, 100, 0);
}

static void connection_fast_open(int a, int b)
{
	struct sockaddr_storage address;
	socklen_t length;
	int listener, fd;

	/* client and server, both without a cookie */
	fd = open("/proc/sys/net/ipv4/tcp_fastopen", O_WRONLY);
	if (fd < 0 || write(fd, "519", 3) != 3)
		result("tcp_fastopen", -1);
	close(fd);
	local(&address, &length);
	listener = listen_on(&address, &length, 0);
	set_int(listener, IPPROTO_TCP, TCP_FASTOPEN, 16);
	a = socket(AF_INET, SOCK_STREAM, 0);
	result("sendto", sendto(a, "hello", 5, MSG_FASTOPEN, (void *)&address, length));
	b = accept(listener, NULL, NULL);
	put(a, " you");
	settle();
	get(b, 100, 0);
	put(b, "ab");
	get(a, 100, 0);
	exchange(a, b);
}

static void connection_reuseport(int a, int b)
{
	struct sockaddr_storage address;
	int listeners[2], good = 0;
	struct pollfd ready[2];
	socklen_t length;

	local(&address, &length);
	for (int i = 0; i < 2; i++) {
		listeners[i] = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
		set_int(listeners[i], SOL_SOCKET, SO_REUSEPORT, 1);
		if (bind(listeners[i], (void *)&address, length) ||
		    listen(listeners[i], 64))
			result("bind", -1);
		getsockname(listeners[i], (void *)&address, &length);
		ready[i] = (struct pollfd){ .fd = listeners[i], .events = POLLIN };
	}
	for (int i = 0; i < 16; i++) {
		char c[2];

		a = socket(AF_INET, SOCK_STREAM, 0);
		if (connect(a, (void *)&address, length))
			result("connect", -1);
		poll(ready, 2, 1000); /* the handshake may end behind connect() */
		b = accept4(listeners[0], NULL, NULL, 0);
		if (b < 0)
			b = accept4(listeners[1], NULL, NULL, 0);
		if (send(a, "ab", 2, 0) == 2 && recv(b, c, 2, 0) == 2)
			good++;
	}
	say("good %d", good);
}

static void connection_refused(int a, int b)
{
	struct sockaddr_storage address;
	socklen_t length;

	local(&address, &length);
	((struct sockaddr_in *)&address)->sin_port = htons(1);
	a = socket(AF_INET, SOCK_STREAM, 0);
	result("connect", connect(a, (void *)&address, length));
	(void)b;
}

/* Connects a again after a refusal.  The end b has answered when this returns. */
static void connect_after_refusal(int *a, int *b)
{
	struct sockaddr_storage address;
	socklen_t length;

	local(&address, &length);
	((struct sockaddr_in *)&address)->sin_port = htons(1);
	*a = socket(AF_INET, SOCK_STREAM, 0);
	result("connect", connect(*a, (void *)&address, length));
	*b = accept(dial(a), NULL, NULL);
	exchange(*a, *b);
}

static void refused_then_connected(int a, int b)
{
	connect_after_refusal(&a, &b);
	put(b, "hello");
	get(a, 100, 0);
	put(a, "ab");
	get(b, 100, 0);
}

/* Bytes are unread as the connection ends by FIN. */
static void refused_then_half_close(int a, int b)
{
	connect_after_refusal(&a, &b);
	shutdown(a, SHUT_WR);
	get(b, 100, 0);
	put(b, "hello");
	close(b);
	settle();
	get_now(a);
	get_now(a);
}

static void refused_then_reset(int a, int b)
{
	connect_after_refusal(&a, &b);
	put(b, "hello");
	settle();
	reset_hard(b);
	settle();
	get_now(a);
	get_now(a);
}

/*
 * Bytes that a writer can send before it would wait, between two powers of two: how
 * TCP's buffers grow is not the same each time.
 */
static void room_for_writer(int a, int b)
{
	size_t filled = fill(b), low = 1;

	while (low * 2 <= filled >> 20)
		low *= 2;
	say("%zu to %zu MB, then %s", low, low * 2, error_name(errno));
	say("all read: %d", drain(a, filled));
}

/* ---- time passes ---- */

static void keepalive(int a, int b)
{
	set_int(a, SOL_SOCKET, SO_KEEPALIVE, 1);
	set_int(a, IPPROTO_TCP, TCP_KEEPIDLE, 1);
	set_int(a, IPPROTO_TCP, TCP_KEEPINTVL, 1);
	set_int(a, IPPROTO_TCP, TCP_KEEPCNT, 1);
	put(b, "ab");
	usleep(2500000);
	get_now(a);
	put(a, "cd");
	get(b, 100, 0);
}

static void user_timeout(int a, int b)
{
	set_int(b, IPPROTO_TCP, TCP_USER_TIMEOUT, 300);
	put(b, "ab");
	usleep(1000000);
	put(b, "cd");
	get(a, 100, 0);
}

static void killed_by_ss(int a, int b)
{
	struct sockaddr_in x;
	socklen_t length = sizeof(x);
	char command[128];

	getsockname(a, (void *)&x, &length);
	put(b, "hello");
	settle();
	snprintf(command, sizeof(command), "ss -K 'sport = :%d' >/dev/null 2>&1",
		 ntohs(x.sin_port));
	if (system(command))
		say("ss failed");
	settle();
	get_now(a);
	get_now(a);
	get_now(b);
}

/* ---- the catalogue ---- */

#define MAX_VARIANTS 4

#define VARIANTS(name, ...)                                                              \
	{                                                                                \
		name, { __VA_ARGS__ }, 0                                                 \
	}
#define PAIR(f) VARIANTS(#f, f)
#define OWN_VARIANTS(name, ...)                                                          \
	{                                                                                \
		name, { __VA_ARGS__ }, 1                                                 \
	}
#define OWN(f) OWN_VARIANTS(#f, f)

/* A behaviour in some variants, each on a connection of its own. */
static const struct behaviour {
	const char *name;
	void (*run[MAX_VARIANTS])(int a, int b);
	int makes_its_own; /* connection */
} catalogue[] = {
	PAIR(recv_plain),
	PAIR(recv_in_parts),
	PAIR(recv_joins_messages),
	PAIR(recv_peek),
	PAIR(recv_peek_two_messages),
	PAIR(recv_peek_offset),
	PAIR(recv_waitall_there),
	VARIANTS("recv_flags", recv_waitall_two_messages, recv_trunc, recv_oob_none),
	PAIR(recv_waitall_ends),
	PAIR(recv_dontwait),
	PAIR(recv_nonblocking),
	PAIR(recv_zero_length),
	PAIR(recv_bad_buffer),
	VARIANTS("buffer_partly_bad", recv_partly_bad_buffer, send_bad_buffer,
		 send_partly_bad_buffer),
	PAIR(recv_errqueue_empty),
	PAIR(readv_segments),
	PAIR(many_segments),
	PAIR(mmsg),
	PAIR(recvmsg_name_and_flags),
	PAIR(cmsg_inq),
	PAIR(cmsg_timestamp),
	PAIR(cmsg_timestamping_receive),
	PAIR(timestamping_send),
	PAIR(rcvlowat_poll),
	PAIR(rcvlowat_recv),
	PAIR(rcvtimeo),
	PAIR(sndtimeo),
	PAIR(full_and_drained),
	PAIR(blocked_send_resumes),
	PAIR(room_for_writer),
	PAIR(small_receive_buffer),
	PAIR(small_send_buffer),
	PAIR(fionread),
	VARIANTS("bytes_in_both_queues", fionread_by_tcp, recv_at_seam),
	PAIR(siocoutq),
	PAIR(epoll_level),
	PAIR(epoll_edge),
	PAIR(epoll_oneshot),
	PAIR(epoll_rdhup),
	PAIR(epoll_wakes_waiter),
	PAIR(select_readable),
	PAIR(poll_readable),
	PAIR(poll_wakes_waiter),
	PAIR(poll_hangup),
	PAIR(sigio),
	PAIR(epoll_edge_seam),
	PAIR(epoll_edge_seam_closed),
	PAIR(epoll_edge_answer_closed),
	PAIR(epoll_nested_seam),
	VARIANTS("sigio_seam", sigio_seam, sigio_seam_nonblocking),
	VARIANTS("oob", oob, sigurg),
	PAIR(oob_inline),
	PAIR(uring_recv_waits),
	PAIR(uring_recv_ready),
	PAIR(uring_send),
	PAIR(uring_poll_multishot),
	PAIR(uring_poll_seam),
	PAIR(uring_recv_multishot),
	VARIANTS("splice_from_socket", splice_from_socket, splice_from_socket_waits),
	VARIANTS("splice_at_end", splice_after_close, splice_after_shutdown),
	VARIANTS("splice_nonblocking", splice_nonblocking, splice_nonblocking_large,
		 splice_at_edge),
	VARIANTS("splice_at_seam", splice_at_seam, splice_at_edge_seam),
	PAIR(splice_to_socket),
	PAIR(sendfile_to_socket),
	PAIR(sendfile_from_socket),
	PAIR(zerocopy),
	PAIR(zerocopy_not_enabled),
	OWN_VARIANTS("zerocopy_receive", zerocopy_receive, zerocopy_receive_then_recv,
		     zerocopy_receive_at_seam, zerocopy_receive_ends),
	PAIR(zerocopy_receive_mapped_in_silence),
	VARIANTS("zerocopy_receive_mapped_behind_bytes",
		 zerocopy_receive_mapped_behind_bytes, zerocopy_receive_mapped_at_seam,
		 zerocopy_receive_not_mapped),
	PAIR(msg_more),
	PAIR(msg_more_alone),
	PAIR(cork),
	PAIR(nodelay),
	PAIR(send_nothing),
	PAIR(send_with_address),
	PAIR(notsent_lowat),
	PAIR(bulk),
	PAIR(bulk_in_small_reads),
	PAIR(half_close),
	PAIR(half_close_by_receiver),
	PAIR(shutdown_of_reading),
	PAIR(shutdown_of_reading_unread),
	PAIR(both_close),
	PAIR(close_after_sending),
	PAIR(close_with_unread),
	PAIR(linger_zero),
	PAIR(reset_behind_data),
	PAIR(reset_socket_error),
	PAIR(close_wakes_reader),
	PAIR(send_after_peer_closed),
	VARIANTS("sends_about_close", sends_about_close, sends_about_half_close,
		 close_at_blocked_send),
	PAIR(sends_about_reset),
	PAIR(send_after_shutdown),
	PAIR(disconnect),
	PAIR(disconnect_with_unread),
	VARIANTS("recv_interrupted", signal_without_restart, signal_with_restart,
		 stop_and_continue, frozen_cgroup),
	VARIANTS("recv_woken_without_bytes", recv_beside_blocked_send, several_readers,
		 reset_wakes_reader),
	PAIR(dup_shares),
	PAIR(fork_shares),
	PAIR(fork_close_keeps_open),
	PAIR(descriptor_passed),
	VARIANTS("reading_threads", threads_read_fused, threads_read_after_fallback),
	PAIR(several_writers),
	PAIR(tcp_info_bytes),
	PAIR(names),
	PAIR(options_unchanged),
	PAIR(ulp_tls),
	PAIR(ulp_unknown),
	OWN(connection_mptcp),
	OWN(connection_to_itself),
	OWN(connection_over_ipv6),
	OWN(connection_to_dual_stack),
	OWN(connection_nonblocking),
	OWN(connection_with_data_before_accept),
	OWN(connection_closed_before_accept),
	OWN(connection_never_accepted),
	OWN(connection_deferred_accept),
	OWN(connection_fast_open),
	OWN(connection_reuseport),
	OWN(connection_refused),
	OWN_VARIANTS("connection_after_refusal", refused_then_connected,
		     refused_then_half_close, refused_then_reset),
	PAIR(keepalive),
	PAIR(user_timeout),
	PAIR(killed_by_ss),
};

/* In a process group of its own, so that what it leaves behind ends with it. */
static void run_variant(const struct behaviour *c, int variant, bool silent)
{
	siginfo_t end = { .si_pid = 0 };
	pid_t pid = fork();

	if (!pid) {
		int a = -1, b = -1;

		setpgid(0, 0);
		if (silent)
			dup2(open("/dev/null", O_WRONLY), STDOUT_FILENO);
		if (!c->makes_its_own) {
			if (connect_pair(&a, &b, 0)) {
				say("no connection");
				_exit(1);
			}
			exchange(a, b);
		}
		c->run[variant](a, b);
		fflush(stdout);
		_exit(0);
	}
	setpgid(pid, pid);
	for (int i = 0; i < CASE_SECONDS * 100 && !end.si_pid; i++) {
		usleep(10000);
		waitid(P_PID, pid, &end, WEXITED | WNOHANG | WNOWAIT);
	}
	if (silent)
		; /* whatever came of it */
	else if (!end.si_pid)
		printf(" ... and it hangs");
	else if (end.si_code != CLD_EXITED)
		printf(" ... and it dies of signal %d", end.si_status);
	kill(-pid, SIGKILL);
	waitpid(pid, NULL, 0);
}

/* Network byte order. */
static in_port_t free_port(void)
{
	struct sockaddr_storage address;
	socklen_t length;

	port = 0;
	local(&address, &length);
	close(listen_on(&address, &length, 0));
	return ((struct sockaddr_in *)&address)->sin_port;
}

static void run_case(const struct behaviour *c, bool again)
{
	printf("%s\t", c->name);
	for (int i = 0; i < MAX_VARIANTS && c->run[i]; i++) {
		fputs(i ? " // " : "", stdout);
		fflush(stdout);
		port = 0;
		if (again && !c->makes_its_own) {
			port = free_port();
			run_variant(c, i, true);
		}
		run_variant(c, i, false);
	}
	printf("\n");
	fflush(stdout);
}

int main(int argc, char **argv)
{
	bool again = argc > 2 && !strcmp(argv[2], "--again");
	int first;

	polled = argc > 2 && !strcmp(argv[2], "--polled");
	first = again || polled ? 3 : 2;
	if (argc > 4 && !strcmp(argv[2], "--remote")) {
		here = argv[3];
		elsewhere = argv[4];
		first = 5;
	}

	if (argc < 2 || inet_pton(AF_INET, argv[1], &host) != 1) {
		fprintf(stderr, "usage: catalogue ADDRESS [--again | --polled | --remote "
				"HERE ELSEWHERE] [CASE...]\n");
		return 2;
	}
	for (size_t i = 0; i < sizeof(page); i++)
		page[i] = 'a' + i % 23;
	for (size_t i = 0; i < sizeof(catalogue) / sizeof(*catalogue); i++) {
		int chosen = argc == first;

		for (int j = first; j < argc; j++)
			chosen |= !strcmp(argv[j], catalogue[i].name);
		if (chosen)
			run_case(&catalogue[i], again);
	}
	return 0;
}
