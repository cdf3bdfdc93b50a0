// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/*
 * Connections between network namespaces, for tests/nets.bats.
 *
 *	talk NETNS LISTEN PORT DIAL PORT MESSAGES [PAUSE_MS]
 *		An end in the namespace NETNS listens on LISTEN, one in the caller's dials
 *		DIAL, which may lead there by NAT.  So many requests and answers of
 *		random sizes, each byte checked, then both close.
 *	steal NETNS LISTEN PORT DIAL WHO
 *		A victim connects in the same way and one end of it closes: WHO, connected
 *		or accepted.  An adversary with user and network namespaces of its own and
 *		the victim's sequence numbers then poses as that end, and the other sends.
 *		returned: nobody closes; who accepted sends what has to go by its own TCP.
 *	impostor
 *		The adversary knows the sequence numbers of a victim's handshake before it
 *		ends, and accepts a connection that has the same.
 *	forge flow|socket
 *		The same who sees the number that a victim's packets have as their hash,
 *		and takes a victim for which he can send a packet with that hash: the
 *		kernel works one out from ports of his choice, or a raw socket has it.
 *	proxy PORT UID
 *		A transparent proxy as a sidecar is: becomes UID, listens on 127.0.0.1 and
 *::1, asks where each connection wanted to go (SO_ORIGINAL_DST), prints "to ADDRESS
 *PORT", connects there and copies both ways.  Runs until it is killed. peername ADDRESS
 *PORT Connects there; what getpeername() tells, and a line of what comes.
 *
 * Prints "name=value" words; ends with 0 only if all was as with plain TCP, and nothing
 * was stolen.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/if_ether.h>
#include <linux/if_packet.h>
#include <linux/if_tun.h>
#include <poll.h>
#include <linux/tcp.h>
#include <net/if.h>
#include <netinet/in.h>
#include <netinet/ip.h>
#include <sched.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#define MESSAGE_MAX 300000
#define SO_ORIGINAL_DST 80 /* linux/netfilter_ipv4.h; IP6T_SO_ORIGINAL_DST is, too */

static void __attribute__((format(printf, 1, 2), noreturn)) fail(const char *format, ...)
{
	int error = errno;
	va_list args;

	va_start(args, format);
	vfprintf(stderr, format, args);
	va_end(args);
	fprintf(stderr, " (%s)\n", strerror(error));
	_exit(1);
}

static socklen_t parse(const char *text, int port, struct sockaddr_storage *address)
{
	struct sockaddr_in6 *six = (void *)address;
	struct sockaddr_in *four = (void *)address;

	memset(address, 0, sizeof(*address));
	if (inet_pton(AF_INET6, text, &six->sin6_addr) == 1) {
		six->sin6_family = AF_INET6;
		six->sin6_port = htons(port);
		return sizeof(*six);
	}
	if (inet_pton(AF_INET, text, &four->sin_addr) != 1)
		fail("not an address: %s", text);
	four->sin_family = AF_INET;
	four->sin_port = htons(port);
	return sizeof(*four);
}

/* Between the two, this process is in that namespace. */
static int listen_in(const char *netns, const char *text, int port)
{
	int here = open("/proc/self/ns/net", O_RDONLY), there = open(netns, O_RDONLY);
	struct sockaddr_storage address;
	socklen_t length = parse(text, port, &address);
	int fd, one = 1;

	if (there < 0 || setns(there, CLONE_NEWNET))
		fail("setns %s", netns);
	fd = socket(address.ss_family, SOCK_STREAM, 0);
	setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one));
	if (fd < 0 || bind(fd, (void *)&address, length) || listen(fd, 16))
		fail("listen on %s", text);
	if (setns(here, CLONE_NEWNET))
		fail("setns back");
	close(here);
	close(there);
	return fd;
}

static int dial(const char *text, int port)
{
	struct sockaddr_storage address;
	socklen_t length = parse(text, port, &address);
	int fd = socket(address.ss_family, SOCK_STREAM, 0);

	if (fd < 0 || connect(fd, (void *)&address, length))
		fail("connect to %s port %d", text, port);
	return fd;
}

static void send_all(int fd, const unsigned char *data, size_t n)
{
	while (n) {
		ssize_t sent = send(fd, data, n, MSG_NOSIGNAL);

		if (sent < 0)
			fail("send, %zu bytes left", n);
		data += sent;
		n -= sent;
	}
}

static void recv_all(int fd, unsigned char *data, size_t n)
{
	struct timeval patience = { .tv_sec = 20 };

	setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof(patience));
	while (n) {
		ssize_t got = recv(fd, data, n, 0);

		if (got <= 0)
			fail("recv returned %zd with %zu bytes missing", got, n);
		data += got;
		n -= got;
	}
}

static void expect_end(int fd)
{
	unsigned char byte;
	ssize_t got = recv(fd, &byte, 1, 0);

	/* The acknowledgment of our own FIN may wake it, see docs/semantics.md. */
	if (got < 0 && errno == EAGAIN)
		got = recv(fd, &byte, 1, 0);
	if (got)
		fail("recv returned %zd where the stream ends", got);
}

/* The same on both ends: message number N of a direction. */
static size_t message(unsigned char *data, unsigned int direction, unsigned int number)
{
	unsigned int state = direction * 7919 + number * 104729 + 1;
	size_t n = 1 + (number * 2654435761u >> 8) % (number % 16 ? 3000 : MESSAGE_MAX);

	for (size_t i = 0; i < n; i++) {
		state = state * 1664525 + 1013904223;
		data[i] = state >> 24;
	}
	return n;
}

static void take_message(int fd, unsigned int direction, unsigned int number)
{
	static unsigned char got[MESSAGE_MAX], due[MESSAGE_MAX];
	size_t n = message(due, direction, number);

	recv_all(fd, got, n);
	if (memcmp(got, due, n))
		fail("message %u of direction %u differs", number, direction);
}

static void give_message(int fd, unsigned int direction, unsigned int number)
{
	static unsigned char data[MESSAGE_MAX];

	send_all(fd, data, message(data, direction, number));
}

static int run_talk(char **args)
{
	int listener = listen_in(args[0], args[1], atoi(args[2])), fd, status;
	unsigned int messages = atoi(args[5]), pause_ms = args[6] ? atoi(args[6]) : 0;
	pid_t child = fork();

	if (!child) {
		fd = accept(listener, NULL, NULL);
		for (unsigned int i = 0; i < messages; i++) {
			take_message(fd, 1, i);
			give_message(fd, 2, i);
		}
		expect_end(fd);
		close(fd);
		_exit(0);
	}
	close(listener);
	fd = dial(args[3], atoi(args[4]));
	for (unsigned int i = 0; i < messages; i++) {
		give_message(fd, 1, i);
		take_message(fd, 2, i);
		usleep(pause_ms * 1000);
	}
	if (shutdown(fd, SHUT_WR))
		fail("shutdown");
	expect_end(fd);
	if (waitpid(child, &status, 0) != child || status)
		return 1;
	printf("messages=%u\n", messages);
	return 0;
}

/* What an end sends next, or expects next; of a test that may (CAP_NET_ADMIN). */
static uint32_t sequence_of(int fd, int queue)
{
	int on = 1, off = -1; /* TCP_REPAIR_OFF_NO_WP */
	uint32_t sequence = 0;
	socklen_t length = sizeof(sequence);

	if (setsockopt(fd, IPPROTO_TCP, TCP_REPAIR, &on, sizeof(on)) ||
	    setsockopt(fd, IPPROTO_TCP, TCP_REPAIR_QUEUE, &queue, sizeof(queue)) ||
	    getsockopt(fd, IPPROTO_TCP, TCP_QUEUE_SEQ, &sequence, &length) ||
	    setsockopt(fd, IPPROTO_TCP, TCP_REPAIR, &off, sizeof(off)))
		fail("sequence numbers");
	return sequence;
}

static uint16_t checksum(const void *data, size_t n, uint32_t sum)
{
	const uint8_t *byte = data;

	for (size_t i = 0; i < n; i++)
		sum += i % 2 ? byte[i] : byte[i] << 8;
	while (sum >> 16)
		sum = (sum & 0xffff) + (sum >> 16);
	return htons(~sum);
}

struct segment {
	struct iphdr ip;
	struct tcphdr tcp;
	char data[2048];
};

/* Where segments go that are not sent by a TUN device or a raw socket */
static struct sockaddr_ll packets_to;

/* A segment of IPv4 without options, data of zeros; all but ports in host byte order. */
static void send_segment(int tun, uint32_t from, uint32_t to, uint16_t source,
			 uint16_t dest, uint32_t seq, uint32_t ack, bool syn, size_t data)
{
	struct segment out = {
		.ip = { .version = 4,
			.ihl = 5,
			.ttl = 64,
			.protocol = IPPROTO_TCP,
			.tot_len = htons(40 + data),
			.saddr = htonl(from),
			.daddr = htonl(to) },
		.tcp = { .source = source,
			 .dest = dest,
			 .seq = htonl(seq),
			 .ack_seq = htonl(ack),
			 .doff = 5,
			 .syn = syn,
			 .ack = ack != 0,
			 .window = htons(65535) },
	};
	ssize_t sent;
	uint32_t pseudo = (from >> 16) + (from & 0xffff) + (to >> 16) + (to & 0xffff) +
			  IPPROTO_TCP + 20 + data;

	out.ip.check = checksum(&out.ip, 20, 0);
	out.tcp.check = checksum(&out.tcp, 20 + data, pseudo);
	sent = packets_to.sll_family ? sendto(tun, &out, 40 + data, 0,
					      (void *)&packets_to, sizeof(packets_to))
				     : write(tun, &out, 40 + data);
	if (sent != (ssize_t)(40 + data))
		fail("write to tun");
}

/* The next TCP segment of a socket in this namespace; NULL for other packets. */
static struct tcphdr *read_segment(int tun, struct segment *in, size_t *data)
{
	struct tcphdr *tcp;
	size_t header;

	if (read(tun, in, sizeof(*in)) <= 0)
		fail("read from tun");
	header = in->ip.ihl * 4;
	tcp = (void *)((char *)in + header);
	if (in->ip.version != 4 || in->ip.protocol != IPPROTO_TCP || tcp->rst)
		return NULL;
	*data = ntohs(in->ip.tot_len) - header - tcp->doff * 4;
	return tcp;
}

/*
 * Answers as the peer of a socket that connects would, and first sends so many bytes of
 * its own.  Tells of each byte that it is sent.  Never returns.
 */
static void answer_as_peer(int tun, uint32_t isn, size_t bytes, int pipe)
{
	uint32_t next = isn;

	for (;;) {
		struct segment in;
		size_t data, more = 0;
		struct tcphdr *tcp = read_segment(tun, &in, &data);

		if (!tcp)
			continue;
		if (data && write(pipe, &in, data) < 0)
			fail("tell");
		if (!tcp->syn && !tcp->fin && !data) {
			if (next != isn + 1 || !bytes)
				continue;
			more = bytes;
		}
		send_segment(tun, ntohl(in.ip.daddr), ntohl(in.ip.saddr), tcp->dest,
			     tcp->source, tcp->syn ? isn : next,
			     ntohl(tcp->seq) + tcp->syn + tcp->fin + data, tcp->syn,
			     more);
		next = tcp->syn ? isn + 1 : next + more;
	}
}

static void write_file(const char *path, const char *text)
{
	int fd = open(path, O_WRONLY);

	if (fd < 0 || write(fd, text, strlen(text)) < 0)
		fail("%s", path);
	close(fd);
}

#define OWN_ADDRESS "10.244.0.66" /* behind tun0, as PEER_ADDRESS */
#define PEER_ADDRESS "10.244.0.77"
#define PORT 7777

static struct sockaddr_in address_of(const char *text)
{
	struct sockaddr_in address = { .sin_family = AF_INET, .sin_port = htons(PORT) };

	inet_pton(AF_INET, text, &address.sin_addr);
	return address;
}

static void set_up(int any, unsigned long request, struct ifreq *tun0,
		   const char *address)
{
	struct sockaddr_in value = address_of(address);

	memcpy(&tun0->ifr_addr, &value, sizeof(value));
	if (ioctl(any, request, tun0))
		fail("tun0: %s", address);
}

/* A namespace of its own (flags: CLONE_...) with tun0, whose packets the caller makes. */
static int new_namespace(int flags)
{
	struct ifreq tun0 = { .ifr_flags = IFF_TUN | IFF_NO_PI, .ifr_name = "tun0" };
	char map[32];
	int tun, any;

	snprintf(map, sizeof(map), "0 %u 1", getuid());
	if (unshare(flags))
		fail("unshare");
	if (flags & CLONE_NEWUSER)
		write_file("/proc/self/uid_map", map);
	tun = open("/dev/net/tun", O_RDWR);
	if (tun < 0 || ioctl(tun, TUNSETIFF, &tun0))
		fail("tun");
	any = socket(AF_INET, SOCK_DGRAM, 0);
	set_up(any, SIOCSIFADDR, &tun0, OWN_ADDRESS);
	set_up(any, SIOCSIFNETMASK, &tun0, "255.255.255.0");
	tun0.ifr_flags = IFF_UP;
	if (ioctl(any, SIOCSIFFLAGS, &tun0))
		fail("tun0 up");
	close(any);
	return tun;
}

/* To PEER_ADDRESS, with sequence numbers of the caller's choice (TCP_REPAIR). */
static int connect_with(uint32_t isn)
{
	int fd = socket(AF_INET, SOCK_STREAM, 0), on = 1, off = 0, queue = TCP_SEND_QUEUE;
	struct sockaddr_in peer = address_of(PEER_ADDRESS);

	if (setsockopt(fd, IPPROTO_TCP, TCP_REPAIR, &on, sizeof(on)) ||
	    setsockopt(fd, IPPROTO_TCP, TCP_REPAIR_QUEUE, &queue, sizeof(queue)) ||
	    setsockopt(fd, IPPROTO_TCP, TCP_QUEUE_SEQ, &isn, sizeof(isn)) ||
	    setsockopt(fd, IPPROTO_TCP, TCP_REPAIR, &off, sizeof(off)))
		fail("own sequence numbers");
	if (connect(fd, (void *)&peer, sizeof(peer)))
		fail("connect to raw packets");
	return fd;
}

static void tell(int pipe, const void *what, size_t n)
{
	if (write(pipe, what, n) != (ssize_t)n)
		fail("tell");
}

static void tell_what_comes(int fd, int pipe)
{
	char byte;

	tell(pipe, "+", 1);
	while (recv(fd, &byte, 1, 0) == 1)
		tell(pipe, &byte, 1);
	_exit(0);
}

/*
 * In user and network namespaces of its own: a socket that connects with the sequence
 * numbers that it was told, to a peer made of raw packets.  Tells when it is established,
 * and then each byte that it gets.
 */
static void pose(uint32_t isn, uint32_t peer_isn, size_t bytes, int pipe)
{
	int tun = new_namespace(CLONE_NEWUSER | CLONE_NEWNET), fd;
	unsigned char zeros[bytes + 1];

	if (!fork())
		answer_as_peer(tun, peer_isn, bytes, pipe);
	fd = connect_with(isn);
	recv_all(fd, zeros, bytes);
	tell_what_comes(fd, pipe);
}

/*
 * The same for one that accepts from raw packets: tells which sequence number it got,
 * and ends the handshake once it is told to.
 */
static void pose_as_accepted(uint32_t peer_isn, int pipe, int go)
{
	int tun = new_namespace(CLONE_NEWUSER | CLONE_NEWNET), listener, fd;
	struct sockaddr_in own = address_of(OWN_ADDRESS), peer = address_of(PEER_ADDRESS);
	uint32_t here = ntohl(own.sin_addr.s_addr), there = ntohl(peer.sin_addr.s_addr),
		 isn;
	struct tcphdr *tcp;
	struct segment in;
	size_t data;
	char byte;

	listener = socket(AF_INET, SOCK_STREAM, 0);
	if (bind(listener, (void *)&own, sizeof(own)) || listen(listener, 1))
		fail("listen behind tun");
	send_segment(tun, there, here, htons(PORT), htons(PORT), peer_isn, 0, true, 0);
	do
		tcp = read_segment(tun, &in, &data);
	while (!tcp || !tcp->syn);
	isn = ntohl(tcp->seq);
	tell(pipe, &isn, sizeof(isn));
	if (read(go, &byte, 1) != 1)
		fail("go");
	send_segment(tun, there, here, htons(PORT), htons(PORT), peer_isn + 1, isn + 1,
		     false, 0);
	fd = accept(listener, NULL, NULL);
	if (fd < 0)
		fail("accept from raw packets");
	tell_what_comes(fd, pipe);
}

/* The victim sends to its peer; how many bytes the adversary tells of */
static int stolen_from(int victim, int told)
{
	int stolen = 0;
	char byte;

	if (read(told, &byte, 1) != 1)
		fail("the adversary has no connection");
	for (int i = 0; i < 5; i++) {
		send(victim, "secret", 6, MSG_NOSIGNAL);
		usleep(20000);
	}
	fcntl(told, F_SETFL, O_NONBLOCK);
	while (read(told, &byte, 1) == 1)
		stolen++;
	printf("stolen=%d\n", stolen);
	return stolen;
}

static int run_impostor(void)
{
	const uint32_t isn = 123456789;
	int told[2], go[2], tun, victim, stolen, discarded;
	pid_t adversary, peer;
	uint32_t peer_isn;

	if (pipe(told) || pipe(go))
		fail("pipe");
	adversary = fork();
	if (!adversary)
		pose_as_accepted(isn, told[1], go[0]);
	if (read(told[0], &peer_isn, sizeof(peer_isn)) != sizeof(peer_isn))
		fail("the adversary's sequence number");
	tun = new_namespace(CLONE_NEWNET);
	discarded = open("/dev/null", O_WRONLY);
	peer = fork();
	if (!peer)
		answer_as_peer(tun, peer_isn, 0, discarded);
	victim = connect_with(isn);
	tell(go[1], "+", 1);
	stolen = stolen_from(victim, told[0]);
	kill(adversary, SIGKILL);
	kill(peer, SIGKILL);
	return stolen > 0;
}

/*
 * What forge shares: the hashes that the adversary's packets can have, and how.  One
 * that a later packet has as well takes the place of the earlier.
 */
#define FORGED (1 << 20)

struct forgery {
	uint32_t hash; /* 0: none */
	uint32_t how;  /* flow: the packet's ports; socket: its file descriptor */
};

struct forge {
	struct forgery table[FORGED];
	struct forgery chosen;
	uint32_t isn;	/* of the victim */
	in_port_t port; /* its own */
};

static struct forgery *place_of(struct forge *forge, uint32_t hash)
{
	uint32_t at = hash % FORGED;

	while (forge->table[at].hash && forge->table[at].hash != hash)
		at = (at + 1) % FORGED;
	return &forge->table[at];
}

/* What AF_PACKET tells of packets, their hashes too (CAP_NET_RAW in the namespace). */
#define RING_BLOCK (1 << 20)
#define RING_BLOCKS 16

struct ring {
	char *blocks;
	unsigned int next;
};

static struct ring open_ring(const char *device)
{
	struct tpacket_req3 request = {
		.tp_block_size = RING_BLOCK,
		.tp_block_nr = RING_BLOCKS,
		.tp_frame_size = 2048,
		.tp_frame_nr = RING_BLOCKS * (RING_BLOCK / 2048),
		.tp_retire_blk_tov = 10,
		.tp_feature_req_word = TP_FT_REQ_FILL_RXHASH,
	};
	int fd = socket(AF_PACKET, SOCK_DGRAM, 0), version = TPACKET_V3;
	struct sockaddr_ll address = { .sll_family = AF_PACKET,
				       .sll_protocol = htons(ETH_P_ALL),
				       .sll_ifindex = if_nametoindex(device) };
	struct ring ring = {};

	if (setsockopt(fd, SOL_PACKET, PACKET_VERSION, &version, sizeof(version)) ||
	    setsockopt(fd, SOL_PACKET, PACKET_RX_RING, &request, sizeof(request)))
		fail("packet ring");
	ring.blocks = mmap(NULL, (size_t)RING_BLOCK * RING_BLOCKS, PROT_READ | PROT_WRITE,
			   MAP_SHARED, fd, 0);
	if (ring.blocks == MAP_FAILED || bind(fd, (void *)&address, sizeof(address)))
		fail("packet ring on %s", device);
	return ring;
}

/* Calls see() for each packet, until the ring has said nothing for a while. */
static void drain(struct ring *ring,
		  void (*see)(struct forge *forge, uint32_t hash, const struct segment *),
		  struct forge *forge)
{
	for (int idle = 0; idle < 40;) {
		struct tpacket_block_desc *block =
			(void *)(ring->blocks +
				 (size_t)ring->next % RING_BLOCKS * RING_BLOCK);
		struct tpacket_hdr_v1 *header = &block->hdr.bh1;
		struct tpacket3_hdr *packet;

		if (!(__atomic_load_n(&header->block_status, __ATOMIC_ACQUIRE) &
		      TP_STATUS_USER)) {
			usleep(1000);
			idle++;
			continue;
		}
		packet = (void *)((char *)block + header->offset_to_first_pkt);
		for (unsigned int i = 0; i < header->num_pkts; i++) {
			see(forge, packet->hv1.tp_rxhash,
			    (void *)((char *)packet + packet->tp_net));
			packet = (void *)((char *)packet + packet->tp_next_offset);
		}
		__atomic_store_n(&header->block_status, TP_STATUS_KERNEL,
				 __ATOMIC_RELEASE);
		ring->next++;
		idle = 0;
	}
}

/* Of a packet to the adversary's own address */
static uint32_t ports_of(const struct segment *segment)
{
	return ntohs(segment->tcp.source) << 16 | ntohs(segment->tcp.dest);
}

static void note_flow(struct forge *forge, uint32_t hash, const struct segment *segment)
{
	if (segment->ip.protocol == IPPROTO_TCP)
		*place_of(forge, hash) = (struct forgery){ hash, ports_of(segment) };
}

/* The packet that a raw socket sends to say what hash it has is numbered by it. */
static void note_socket(struct forge *forge, uint32_t hash, const struct segment *segment)
{
	if (segment->ip.protocol == IPPROTO_TCP && !segment->tcp.rst)
		*place_of(forge, hash) =
			(struct forgery){ hash, ntohl(segment->tcp.seq) };
}

/* Has a number of its own, sk_txhash, that its packets have as their hash. */
static int raw_socket(void)
{
	struct sockaddr_in own = address_of(OWN_ADDRESS);
	int fd = socket(AF_INET, SOCK_RAW, IPPROTO_RAW);

	if (fd < 0 || connect(fd, (void *)&own, sizeof(own)))
		fail("raw socket");
	return fd;
}

/*
 * Its packets have none, so the kernel works one out from addresses and ports to choose
 * one of the device's queues (netdev_pick_tx).
 */
static int packet_socket(void)
{
	packets_to = (struct sockaddr_ll){ .sll_family = AF_PACKET,
					   .sll_protocol = htons(ETH_P_IP),
					   .sll_ifindex = if_nametoindex("out"),
					   .sll_halen = 6,
					   .sll_addr = { 2, 0, 0, 0, 0, 2 } };
	return socket(AF_PACKET, SOCK_DGRAM, 0);
}

static void forge_segment(int fd, uint32_t ports, uint32_t seq, uint32_t ack, bool syn)
{
	struct sockaddr_in own = address_of(OWN_ADDRESS), peer = address_of(PEER_ADDRESS);

	send_segment(fd, ntohl(peer.sin_addr.s_addr), ntohl(own.sin_addr.s_addr),
		     htons(ports >> 16), htons(ports & 0xffff), seq, ack, syn, 0);
}

#define FLOW_PORTS 4 /* with each 65535 flows */
#define RAW_SOCKETS 16384
#define SAME_PORTS ((uint32_t)PORT << 16 | PORT)

/* All that it can send later, each with the hash that it will have. */
static void fill_table(struct forge *forge, bool flows)
{
	struct ring ring = open_ring(flows ? "in" : "lo");
	int raw = flows ? packet_socket() : -1;

	for (uint32_t i = 0; flows && i < FLOW_PORTS * 65535; i++) {
		forge_segment(raw, (1 + i % 65535) << 16 | (PORT + i / 65535), 1, 1,
			      false);
		if (i % 4096 == 4095)
			drain(&ring, note_flow, forge);
	}
	for (int i = 0; !flows && i < RAW_SOCKETS; i++) {
		int fd = raw_socket();

		forge_segment(fd, SAME_PORTS, fd, 1, false);
		if (i % 4096 == 4095)
			drain(&ring, note_socket, forge);
	}
	drain(&ring, flows ? note_flow : note_socket, forge);
	if (flows)
		close(raw);
}

/*
 * An end that connects, and whose peer connects at the same time, accepts: with this, an
 * adversary has such an end with both sequence numbers of his choice (TCP_REPAIR).
 */
static int accept_crossed(int raw, uint32_t ports, uint32_t isn, uint32_t peer_isn)
{
	int fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0), on = 1, off = 0,
	    queue = TCP_SEND_QUEUE;
	struct sockaddr_in own = address_of(OWN_ADDRESS), peer = address_of(PEER_ADDRESS);
	struct pollfd connected = { .fd = fd, .events = POLLOUT };

	own.sin_port = htons(ports & 0xffff);
	peer.sin_port = htons(ports >> 16);
	if (bind(fd, (void *)&own, sizeof(own)) ||
	    setsockopt(fd, IPPROTO_TCP, TCP_REPAIR, &on, sizeof(on)) ||
	    setsockopt(fd, IPPROTO_TCP, TCP_REPAIR_QUEUE, &queue, sizeof(queue)) ||
	    setsockopt(fd, IPPROTO_TCP, TCP_QUEUE_SEQ, &isn, sizeof(isn)) ||
	    setsockopt(fd, IPPROTO_TCP, TCP_REPAIR, &off, sizeof(off)))
		fail("own sequence numbers");
	if (!connect(fd, (void *)&peer, sizeof(peer)) || errno != EINPROGRESS)
		fail("connect to who connects");
	forge_segment(raw, ports, peer_isn, 0, true);
	forge_segment(raw, ports, peer_isn + 1, isn + 1, false);
	if (poll(&connected, 1, 5000) != 1 || connected.revents != POLLOUT)
		fail("SYNs that cross");
	fcntl(fd, F_SETFL, 0);
	return fd;
}

#define FORGED_ISN 123456789

static void pose_by_hash(struct forge *forge, bool flows, int pipe, int go)
{
	uint32_t ports = SAME_PORTS;
	char byte;
	int raw;

	new_namespace(CLONE_NEWUSER | CLONE_NEWNET);
	if (system("ip link set lo up && "
		   "ip link add out numtxqueues 2 type veth peer name in "
		   "address 02:00:00:00:00:02 && ip link set out up && ip link set in "
		   "up"))
		fail("devices");
	fill_table(forge, flows);
	tell(pipe, "+", 1);
	if (read(go, &byte, 1) != 1)
		fail("go");
	raw = forge->chosen.how;
	if (flows) {
		ports = forge->chosen.how;
		raw = packet_socket();
	}
	tell_what_comes(accept_crossed(raw, ports, FORGED_ISN + 1, forge->isn), pipe);
}

static void look_for_victim(struct forge *forge, uint32_t hash,
			    const struct segment *segment)
{
	struct forgery *found = place_of(forge, hash);

	if (segment->ip.protocol != IPPROTO_TCP || !segment->tcp.syn || !found->hash ||
	    forge->chosen.hash)
		return;
	forge->chosen = *found;
	forge->isn = ntohl(segment->tcp.seq);
	forge->port = segment->tcp.source;
}

#define VICTIMS 8192

/* Connections that nobody has answered yet; the one of them that can be forged, or -1. */
static int find_victim(struct forge *forge, struct ring *ring)
{
	struct sockaddr_in peer = address_of(PEER_ADDRESS);
	static int fds[VICTIMS];
	int victim = -1;

	for (int i = 0; i < VICTIMS; i++) {
		fds[i] = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
		if (fds[i] < 0 || (connect(fds[i], (void *)&peer, sizeof(peer)) &&
				   errno != EINPROGRESS))
			fail("connect");
	}
	drain(ring, look_for_victim, forge);
	for (int i = 0; i < VICTIMS; i++) {
		struct sockaddr_in own;
		socklen_t length = sizeof(own);

		getsockname(fds[i], (void *)&own, &length);
		if (forge->chosen.hash && own.sin_port == forge->port)
			victim = fds[i];
		else
			close(fds[i]);
	}
	return victim;
}

static int run_forge(const char *how)
{
	struct forge *forge = mmap(NULL, sizeof(*forge), PROT_READ | PROT_WRITE,
				   MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	struct sockaddr_in own = address_of(OWN_ADDRESS), peer = address_of(PEER_ADDRESS);
	struct rlimit files;
	int told[2], go[2], tun, victim = -1, stolen, tries = 0;
	struct pollfd connected = { .events = POLLOUT };
	pid_t adversary, reader;
	struct ring ring;
	char packet[2048];

	getrlimit(RLIMIT_NOFILE, &files);
	files.rlim_cur = files.rlim_max;
	if (forge == MAP_FAILED || pipe(told) || pipe(go) ||
	    setrlimit(RLIMIT_NOFILE, &files))
		fail("forge");
	adversary = fork();
	if (!adversary)
		pose_by_hash(forge, !strcmp(how, "flow"), told[1], go[0]);
	close(told[1]);
	if (read(told[0], packet, 1) != 1)
		fail("the adversary's table");
	tun = new_namespace(CLONE_NEWNET);
	ring = open_ring("tun0");
	reader = fork();
	if (!reader)
		while (read(tun, packet, sizeof(packet)) > 0)
			;
	while (victim < 0 && tries++ < 400)
		victim = find_victim(forge, &ring);
	if (victim < 0)
		fail("no hash of %d connections met the table", tries * VICTIMS);
	/* The peer that the victim connects to, on another host, say */
	send_segment(tun, ntohl(peer.sin_addr.s_addr), ntohl(own.sin_addr.s_addr),
		     htons(PORT), forge->port, FORGED_ISN, forge->isn + 1, true, 0);
	connected.fd = victim;
	if (poll(&connected, 1, 5000) != 1 || connected.revents != POLLOUT)
		fail("the victim is not connected");
	tell(go[1], "+", 1);
	printf("connections=%d ", tries * VICTIMS);
	stolen = stolen_from(victim, told[0]);
	kill(adversary, SIGKILL);
	kill(reader, SIGKILL);
	return stolen > 0;
}

/* The two initial sequence numbers of an end: its own, and the other's. */
static void isns_of(int fd, uint32_t isns[2])
{
	struct tcp_info info;
	socklen_t length = sizeof(info);

	if (getsockopt(fd, IPPROTO_TCP, TCP_INFO, &info, &length))
		fail("TCP_INFO");
	isns[0] = sequence_of(fd, TCP_SEND_QUEUE) - info.tcpi_bytes_sent - 1;
	isns[1] = sequence_of(fd, TCP_RECV_QUEUE) - info.tcpi_bytes_received - 1;
}

static int run_steal(char **args)
{
	int listener = listen_in(args[0], args[1], atoi(args[2])), fds[2], told[2];
	int posed = strcmp(args[4], "connected") ? 1 : 0, stolen, low = 1000;
	bool returned = !strcmp(args[4], "returned");
	unsigned char secret[6];
	uint32_t isns[2];
	pid_t adversary;

	fds[0] = dial(args[3], atoi(args[2]));
	fds[1] = accept(listener, NULL, NULL);
	close(listener);
	for (int k = 0; k < 40; k++) {
		send_all(fds[k % 2], (void *)"secret", 6);
		recv_all(fds[!(k % 2)], secret, 6);
	}
	isns_of(fds[posed], isns);
	if (!returned)
		close(fds[posed]);
	else if (setsockopt(fds[0], SOL_SOCKET, SO_RCVLOWAT, &low, sizeof(low)))
		fail("SO_RCVLOWAT"); /* what only TCP gives */
	if (pipe(told))
		fail("pipe");
	adversary = fork();
	if (!adversary) {
		close(fds[0]);
		close(fds[1]);
		if (returned) /* the key that who accepted would have had it connected */
			pose(isns[0] + 1, isns[1], 0, told[1]);
		/*
		 * The key of one that accepted, with a socket that connects: one less,
		 * and a byte more that it has read.
		 */
		pose(isns[0], isns[1] - posed, posed, told[1]);
	}
	stolen = stolen_from(fds[returned || !posed], told[0]);
	kill(adversary, SIGKILL);
	return stolen > 0;
}

/* One way; false at the end */
static bool copy(int from, int to)
{
	unsigned char buffer[65536];
	ssize_t n = recv(from, buffer, sizeof(buffer), 0);

	if (n > 0)
		send_all(to, buffer, n);
	return n > 0;
}

static void print_place(const char *what, const struct sockaddr_storage *place)
{
	const struct sockaddr_in6 *six = (void *)place;
	const struct sockaddr_in *four = (void *)place;
	char text[INET6_ADDRSTRLEN];

	if (place->ss_family == AF_INET)
		inet_ntop(AF_INET, &four->sin_addr, text, sizeof(text));
	else
		inet_ntop(AF_INET6, &six->sin6_addr, text, sizeof(text));
	printf("%s %s %u\n", what, text, ntohs(four->sin_port));
	fflush(stdout);
}

/* A process for each connection, its own among them not told from others */
static void forward(int client)
{
	struct sockaddr_storage to = {}, from;
	socklen_t length = sizeof(from), size;
	struct pollfd ends[2] = { { .fd = client, .events = POLLIN } };
	int server;

	getpeername(client, (void *)&from, &length);
	size = from.ss_family == AF_INET ? sizeof(struct sockaddr_in)
					 : sizeof(struct sockaddr_in6);
	if (getsockopt(client, from.ss_family == AF_INET ? IPPROTO_IP : IPPROTO_IPV6,
		       SO_ORIGINAL_DST, &to, &size))
		fail("SO_ORIGINAL_DST");
	print_place("to", &to);
	server = socket(to.ss_family, SOCK_STREAM, 0);
	if (connect(server, (void *)&to, size))
		fail("connect to the original destination");
	ends[1] = (struct pollfd){ .fd = server, .events = POLLIN };
	for (int open = 2; open;) {
		poll(ends, 2, -1);
		for (int i = 0; i < 2; i++)
			if (ends[i].revents && !copy(ends[i].fd, ends[!i].fd)) {
				shutdown(ends[!i].fd, SHUT_WR);
				ends[i].fd = -1 - ends[i].fd; /* poll(2) passes over it */
				open--;
			}
		for (int i = 0; i < 2 && open; i++)
			if (ends[i].fd < 0)
				ends[i].revents = 0;
	}
	_exit(0);
}

static int run_proxy(char **args)
{
	struct pollfd listeners[2] = {
		{ .fd = listen_in("/proc/self/ns/net", "127.0.0.1", atoi(args[0])),
		  .events = POLLIN },
		{ .fd = listen_in("/proc/self/ns/net", "::1", atoi(args[0])),
		  .events = POLLIN },
	};

	signal(SIGCHLD, SIG_IGN);
	if (setuid(atoi(args[1])))
		fail("setuid");
	print_place("listening", &(struct sockaddr_storage){ .ss_family = AF_INET });
	for (;;) {
		poll(listeners, 2, -1);
		for (int i = 0; i < 2; i++) {
			int client = listeners[i].revents
					     ? accept(listeners[i].fd, NULL, NULL)
					     : -1;

			if (client >= 0 && !fork())
				forward(client);
			if (client >= 0)
				close(client);
		}
	}
}

static int run_peername(char **args)
{
	int fd = dial(args[0], atoi(args[1]));
	struct sockaddr_storage peer;
	socklen_t length = sizeof(peer);

	if (getpeername(fd, (void *)&peer, &length))
		fail("getpeername");
	print_place("peer", &peer);
	return 0;
}

int main(int argc, char **argv)
{
	if (argc >= 8 && !strcmp(argv[1], "talk"))
		return run_talk(argv + 2);
	if (argc == 7 && !strcmp(argv[1], "steal"))
		return run_steal(argv + 2);
	if (argc == 4 && !strcmp(argv[1], "proxy"))
		return run_proxy(argv + 2);
	if (argc == 4 && !strcmp(argv[1], "peername"))
		return run_peername(argv + 2);
	if (argc == 3 && !strcmp(argv[1], "forge"))
		return run_forge(argv[2]);
	if (argc == 2 && !strcmp(argv[1], "impostor"))
		return run_impostor();
	fprintf(stderr,
		"usage: nets talk NETNS LISTEN PORT DIAL PORT MESSAGES [PAUSE_MS]\n"
		"       nets steal NETNS LISTEN PORT DIAL connected|accepted|"
		"returned\n"
		"       nets impostor\n"
		"       nets forge flow|socket\n"
		"       nets proxy PORT UID\n"
		"       nets peername ADDRESS PORT\n");
	return 2;
}
