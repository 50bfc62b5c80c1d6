/*
 * probe messages ADDRESS OPTION...: one connection that carries messages (SOCK_SEQPACKET).
 *
 *   send=LENGTH[,LENGTH...]   send a message of each length, the bytes all 'x'
 *   record                    each of them ends a record (MSG_EOR)
 *   gate=FILE                 do not read before the file exists
 *   echo                      send each message back that comes
 *
 * Reads until the other side ends. result: sent, send_error, received, bytes, longest, records, recv_error
 *
 * Before: probe.c. After: address.h.
 * Rule:   what is received is counted message by message; one that does not fit is an error.
 */
#include "address.h"
#include "probe.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

enum { LONGEST = 1 << 20 };

struct counts {
	unsigned long sent, received, bytes, longest, records;
	int send_error, recv_error;
};

static void send_each(int fd, const char *lengths, int flags, char *buffer, struct counts *counts)
{
	memset(buffer, 'x', LONGEST);
	while (*lengths != '\0' && counts->send_error == 0) {
		char *end;
		size_t length = strtoul(lengths, &end, 10);

		if (send(fd, buffer, length, flags) == (ssize_t)length)
			counts->sent++;
		else
			counts->send_error = errno;
		lengths = *end == ',' ? end + 1 : end;
	}
}

static void receive_each(int fd, bool echo, char *buffer, struct counts *counts)
{
	for (;;) {
		struct iovec piece = {.iov_base = buffer, .iov_len = LONGEST};
		struct msghdr message = {.msg_iov = &piece, .msg_iovlen = 1};
		ssize_t got = recvmsg(fd, &message, 0);

		if (got < 0 && errno == EINTR)
			continue;
		if (got < 0 || (message.msg_flags & MSG_TRUNC) != 0)
			counts->recv_error = got < 0 ? errno : EMSGSIZE;
		if (got <= 0 || counts->recv_error != 0)
			return;
		counts->received++;
		counts->bytes += (unsigned long)got;
		counts->records += (message.msg_flags & MSG_EOR) != 0;
		if ((unsigned long)got > counts->longest)
			counts->longest = (unsigned long)got;
		if (echo && send(fd, buffer, (size_t)got, 0) == got)
			counts->sent++;
	}
}

int command_messages(int count, char **words)
{
	const char *lengths = "", *gate = NULL;
	struct counts counts = {0};
	char *buffer = malloc(LONGEST);
	bool echo = false;
	int flags = 0;

	for (int i = 1; i < count; i++) {
		if (strncmp(words[i], "send=", 5) == 0)
			lengths = words[i] + 5;
		else if (strncmp(words[i], "gate=", 5) == 0)
			gate = words[i] + 5;
		else if (strcmp(words[i], "record") == 0)
			flags |= MSG_EOR;
		else
			echo = true;
	}
	int fd = address_open(words[0]);

	if (fd < 0 || buffer == NULL) {
		printf("result connect_error=%s\n", error_name(errno));
		return 1;
	}
	send_each(fd, lengths, flags, buffer, &counts);
	wait_for_file(gate);
	receive_each(fd, echo, buffer, &counts);
	close(fd);
	free(buffer);
	printf("result sent=%lu send_error=%s received=%lu bytes=%lu longest=%lu records=%lu recv_error=%s\n", counts.sent,
	       error_name(counts.send_error), counts.received, counts.bytes, counts.longest, counts.records,
	       error_name(counts.recv_error));
	return counts.send_error == 0 && counts.recv_error == 0 ? 0 : 1;
}
