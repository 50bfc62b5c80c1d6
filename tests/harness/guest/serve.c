/*
 * The commands that serve, or join, byte streams without looking at them:
 *
 *   probe echo ADDRESS              sends back what comes, until its end; any number of connections
 *   probe exec ADDRESS COMMAND      for each connection a shell runs COMMAND with the socket as stdin and stdout; of vsock,
 *                                   VSOCK_PEER_CID and VSOCK_PEER_PORT say who is at its other end
 *   probe cat ADDRESS               joins a connection with stdin and stdout; an end goes on as a half-close
 *
 * Before: probe.c. After: address.h.
 * Rule:   "listening" is said when a client can connect, and not before.
 */
#include "address.h"
#include "probe.h"

#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <unistd.h>

#include <linux/vm_sockets.h>

enum { PIECE = 65536, STACK = 2 * PIECE + 65536 };

static void *echo_one(void *argument)
{
	int fd = (int)(intptr_t)argument;
	char buffer[PIECE];
	ssize_t got;

	while ((got = read(fd, buffer, sizeof(buffer))) > 0)
		if (!write_all(fd, buffer, (uint64_t)got))
			break;
	close(fd);
	return NULL;
}

static int listen_or_complain(const char *address)
{
	int listener = address_listen(address);

	if (listener < 0)
		printf("result listen_error=%s\n", error_name(errno));
	else
		puts("listening");
	return listener;
}

int command_echo(int count, char **words)
{
	int listener = count < 1 ? -1 : listen_or_complain(words[0]);
	pthread_attr_t attributes;
	pthread_t thread;

	if (listener < 0)
		return 1;
	pthread_attr_init(&attributes);
	pthread_attr_setstacksize(&attributes, STACK);
	pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
	for (;;) {
		int fd = accept(listener, NULL, NULL);

		if (fd < 0 && (errno == EINTR || errno == ECONNABORTED))
			continue;
		if (fd < 0 || pthread_create(&thread, &attributes, echo_one, (void *)(intptr_t)fd) != 0) {
			perror("probe echo");
			return 1;
		}
	}
}

static void name_peer(int fd)
{
	struct sockaddr_vm peer;
	socklen_t size = sizeof(peer);
	char number[16];

	if (getpeername(fd, (struct sockaddr *)&peer, &size) != 0 || peer.svm_family != AF_VSOCK)
		return;
	snprintf(number, sizeof(number), "%u", peer.svm_cid);
	setenv("VSOCK_PEER_CID", number, 1);
	snprintf(number, sizeof(number), "%u", peer.svm_port);
	setenv("VSOCK_PEER_PORT", number, 1);
}

int command_exec(int count, char **words)
{
	int listener = count < 2 ? -1 : listen_or_complain(words[0]);

	if (listener < 0)
		return 1;
	signal(SIGCHLD, SIG_IGN);
	for (;;) {
		int fd = accept(listener, NULL, NULL);

		if (fd < 0 && (errno == EINTR || errno == ECONNABORTED))
			continue;
		if (fd < 0) {
			perror("probe exec");
			return 1;
		}
		if (fork() == 0) {
			signal(SIGCHLD, SIG_DFL);
			signal(SIGPIPE, SIG_DFL);
			name_peer(fd);
			dup2(fd, 0);
			dup2(fd, 1);
			close(fd);
			execl("/bin/sh", "sh", "-c", words[1], (char *)NULL);
			_exit(127);
		}
		close(fd);
	}
}

int command_cat(int count, char **words)
{
	int fd = count < 1 ? -1 : address_listens(words[0]) ? -1 : address_connect(words[0]);
	struct pollfd ends[2] = {{.fd = 0, .events = POLLIN}, {.fd = fd, .events = POLLIN}};
	char buffer[PIECE];

	if (fd < 0) {
		fprintf(stderr, "probe cat: %s\n", error_name(errno));
		return 1;
	}
	while (ends[1].fd >= 0) {
		if (poll(ends, 2, -1) < 0 && errno != EINTR)
			return 1;
		for (int i = 0; i < 2; i++) {
			if (ends[i].fd < 0 || ends[i].revents == 0)
				continue;
			ssize_t got = read(ends[i].fd, buffer, sizeof(buffer));

			if (got > 0 && write_all(i == 0 ? fd : 1, buffer, (uint64_t)got))
				continue;
			if (i == 0)
				shutdown(fd, SHUT_WR);
			ends[i].fd = -1;
		}
	}
	return 0;
}
