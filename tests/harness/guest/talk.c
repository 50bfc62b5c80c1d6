/*
 * probe talk ADDRESS OPTION...: one connection, checked byte by byte in both directions at once.
 *
 *   send=SEED:BYTES   send that much of the stream, in writes of random sizes
 *   recv=SEED:BYTES   expect exactly that; BYTES "all": until the other side ends
 *   max=BYTES         the largest write (1 MiB)
 *   shutdown          after sending, SHUT_WR
 *   eof               after receiving, expect the end of the stream
 *   answer            send only after everything was received
 *   gate=FILE         do not read before the file exists
 *   hold=FILE         do not close before the file exists
 *   every=BYTES       a line "progress N" each time that much more was received, or "sent N" was sent
 *
 * result: sent, received, wrong (the position of the first wrong byte, or -1), eof, ms, send_error, recv_error
 *
 * Before: probe.c. After: stream.h makes and checks the bytes.
 * Rule:   sending and receiving never wait for each other, unless told to.
 */
#include "address.h"
#include "probe.h"
#include "stream.h"

#include <errno.h>
#include <limits.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

enum { MAX_WRITE = 1 << 20, READ = 1 << 18, GATE_US = 5000 };

struct talk {
	int fd;
	uint64_t send_seed, send_bytes, recv_seed, recv_bytes, max, every;
	bool shutdown, eof, answer, sends, receives;
	const char *gate, *hold;
	/* Results. */
	uint64_t sent, received;
	int64_t wrong;
	int saw_eof, send_error, recv_error;
};

void wait_for_file(const char *path)
{
	while (path != NULL && access(path, F_OK) != 0)
		usleep(GATE_US);
}

static void *send_all(void *argument)
{
	struct talk *talk = argument;
	struct stream stream;
	uint64_t sizes = talk->send_seed * 2 + 1, told = 0;
	unsigned char *buffer = malloc(MAX_WRITE);

	stream_begin(&stream, talk->send_seed);
	while (buffer != NULL && talk->sent < talk->send_bytes) {
		uint64_t left = talk->send_bytes - talk->sent, size = stream_random_size(&sizes, talk->max);

		size = size < left ? size : left;
		stream_fill(&stream, buffer, size);
		for (uint64_t done = 0; done < size;) {
			ssize_t wrote = write(talk->fd, buffer + done, size - done);

			if (wrote < 0 && errno == EINTR)
				continue;
			if (wrote < 0) {
				talk->send_error = errno;
				goto out;
			}
			done += (uint64_t)wrote;
			talk->sent += (uint64_t)wrote;
			if (talk->every > 0 && talk->sent >= told + talk->every) {
				told = talk->sent;
				printf("sent %llu\n", (unsigned long long)told);
			}
		}
	}
	if (talk->shutdown && shutdown(talk->fd, SHUT_WR) < 0)
		talk->send_error = errno;
out:
	free(buffer);
	return NULL;
}

static void receive_all(struct talk *talk)
{
	struct stream stream;
	uint64_t told = 0;
	unsigned char *buffer = malloc(READ);

	stream_begin(&stream, talk->recv_seed);
	while (buffer != NULL && talk->received < talk->recv_bytes) {
		uint64_t left = talk->recv_bytes - talk->received;
		ssize_t got = read(talk->fd, buffer, left < READ ? left : READ);

		if (got < 0 && errno == EINTR)
			continue;
		if (got < 0)
			talk->recv_error = errno;
		if (got == 0)
			talk->saw_eof = 1;
		if (got <= 0)
			goto out;
		size_t right = stream_compare(&stream, buffer, (size_t)got);

		if (right < (size_t)got) {
			talk->wrong = (int64_t)(talk->received + right);
			goto out;
		}
		talk->received += (uint64_t)got;
		if (talk->every > 0 && talk->received >= told + talk->every) {
			told = talk->received;
			printf("progress %llu\n", (unsigned long long)told);
		}
	}
	if (talk->eof) {
		ssize_t got = read(talk->fd, buffer, 1);

		if (got < 0)
			talk->recv_error = errno;
		if (got > 0)
			talk->wrong = (int64_t)talk->received;
		talk->saw_eof = got == 0;
	}
out:
	free(buffer);
}

static bool parse(struct talk *talk, char *word)
{
	char *value = strchr(word, '='), *size;

	if (value == NULL) {
		talk->shutdown |= strcmp(word, "shutdown") == 0;
		talk->eof |= strcmp(word, "eof") == 0;
		talk->answer |= strcmp(word, "answer") == 0;
		return strcmp(word, "shutdown") == 0 || strcmp(word, "eof") == 0 || strcmp(word, "answer") == 0;
	}
	*value++ = '\0';
	size = strchr(value, ':');
	if (strcmp(word, "send") == 0 && size != NULL) {
		talk->sends = true;
		talk->send_seed = strtoull(value, NULL, 0);
		talk->send_bytes = strtoull(size + 1, NULL, 0);
	} else if (strcmp(word, "recv") == 0 && size != NULL) {
		talk->receives = true;
		talk->recv_seed = strtoull(value, NULL, 0);
		talk->recv_bytes = strcmp(size + 1, "all") == 0 ? UINT64_MAX : strtoull(size + 1, NULL, 0);
	} else if (strcmp(word, "max") == 0) {
		talk->max = strtoull(value, NULL, 0);
	} else if (strcmp(word, "every") == 0) {
		talk->every = strtoull(value, NULL, 0);
	} else if (strcmp(word, "gate") == 0) {
		talk->gate = value;
	} else if (strcmp(word, "hold") == 0) {
		talk->hold = value;
	} else {
		return false;
	}
	return talk->max >= 1 && talk->max <= MAX_WRITE;
}

int command_talk(int count, char **words)
{
	struct talk talk = {.max = MAX_WRITE, .wrong = -1};
	pthread_t sender;
	uint64_t start;

	for (int i = 1; i < count; i++)
		if (!parse(&talk, words[i])) {
			fprintf(stderr, "probe talk: what is %s?\n", words[i]);
			return 2;
		}
	talk.fd = address_open(words[0]);
	if (talk.fd < 0) {
		printf("result connect_error=%s\n", error_name(errno));
		return 1;
	}
	start = now_us();
	bool beside = !talk.answer && pthread_create(&sender, NULL, send_all, &talk) == 0;

	wait_for_file(talk.gate);
	if (talk.receives || talk.eof)
		receive_all(&talk);
	if (beside)
		pthread_join(sender, NULL);
	else
		send_all(&talk);
	uint64_t took = now_us() - start;

	wait_for_file(talk.hold);
	close(talk.fd);
	printf("result sent=%llu received=%llu wrong=%lld eof=%d ms=%llu send_error=%s recv_error=%s\n",
	       (unsigned long long)talk.sent, (unsigned long long)talk.received, (long long)talk.wrong, talk.saw_eof,
	       (unsigned long long)took / 1000, error_name(talk.send_error), error_name(talk.recv_error));
	bool complete = talk.sent == talk.send_bytes && talk.wrong < 0 && talk.send_error == 0 && talk.recv_error == 0 &&
			(talk.recv_bytes == UINT64_MAX || talk.received == talk.recv_bytes) &&
			(!talk.eof || talk.saw_eof);
	return complete ? 0 : 1;
}
