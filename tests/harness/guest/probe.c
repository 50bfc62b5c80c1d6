/*
 * The probe: what tests do with sockets, in a guest (built with IN_GUEST) and on the host.
 *
 *   probe COMMAND ADDRESS ...     see address.h for addresses, and each command's file
 *
 * Before: the Python side starts it and reads its stdout (probe.py). After: one file for each command.
 * Rule:   one small static program, since a guest's whole system is in memory.
 */
#include "probe.h"

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

static const struct {
	const char *name;
	int (*run)(int count, char **words);
} commands[] = {
	{"talk", command_talk}, {"many", command_many}, {"ping", command_ping},       {"echo", command_echo},
	{"exec", command_exec}, {"cat", command_cat},   {"connect", command_connect},
	{"cid", command_cid},
	{"tsc", command_tsc},
	{"messages", command_messages},
};

uint64_t now_us(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (uint64_t)now.tv_sec * 1000000 + (uint64_t)now.tv_nsec / 1000;
}

const char *error_name(int error)
{
	const char *name = strerrorname_np(error);

	return error == 0 ? "OK" : name != NULL ? name : "EUNKNOWN";
}

bool write_all(int fd, const void *data, uint64_t size)
{
	const char *at = data;

	while (size > 0) {
		ssize_t done = write(fd, at, size);

		if (done < 0 && errno == EINTR)
			continue;
		if (done < 0)
			return false;
		at += done;
		size -= (uint64_t)done;
	}
	return true;
}

int main(int count, char **words)
{
	/* A line is of use when it is there at once, and a broken connection is a result, not a death. */
	setvbuf(stdout, NULL, _IOLBF, 0);
	signal(SIGPIPE, SIG_IGN);
	for (unsigned i = 0; count >= 3 && i < sizeof(commands) / sizeof(commands[0]); i++)
		if (strcmp(words[1], commands[i].name) == 0)
			return commands[i].run(count - 2, words + 2);
	fputs("usage: probe talk|many|ping|echo|exec|cat|connect|cid|tsc|messages ADDRESS ...\n", stderr);
	return 2;
}
