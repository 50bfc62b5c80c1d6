/*
 * probe many ADDRESS COUNT BYTES: COUNT connections to an echo server, all open before the first byte is sent.
 *
 * result: connected (how many were open at once), right (how many got back what they sent, and then the end), error
 *
 * Before: probe.c. After: address.h, stream.h.
 * Rule:   each connection has a stream of its own, so bytes that went to the wrong one are found.
 */
#include "address.h"
#include "probe.h"
#include "stream.h"

#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

enum { STACK = 128 * 1024, PIECE = 4096 };

static pthread_barrier_t all_are_open;

struct one {
	const char *address;
	uint64_t seed, bytes;
	int error;
	bool connected, right;
};

static void *echoes(void *argument)
{
	struct one *one = argument;
	struct stream out, in;
	unsigned char buffer[PIECE];
	int fd = address_connect(one->address);

	one->error = fd < 0 ? errno : 0;
	one->connected = fd >= 0;
	pthread_barrier_wait(&all_are_open);
	if (fd < 0)
		return NULL;
	stream_begin(&out, one->seed);
	stream_begin(&in, one->seed);
	for (uint64_t done = 0; done < one->bytes;) {
		uint64_t size = one->bytes - done < PIECE ? one->bytes - done : PIECE;

		stream_fill(&out, buffer, size);
		if (!write_all(fd, buffer, size))
			goto failed;
		for (uint64_t back = 0; back < size;) {
			ssize_t got = read(fd, buffer, size - back);

			if (got <= 0)
				goto failed;
			if (stream_compare(&in, buffer, (size_t)got) != (size_t)got)
				goto out;
			back += (uint64_t)got;
		}
		done += size;
	}
	if (shutdown(fd, SHUT_WR) < 0)
		goto failed;
	one->right = read(fd, buffer, 1) == 0;
	goto out;
failed:
	one->error = errno;
out:
	close(fd);
	return NULL;
}

int command_many(int count, char **words)
{
	unsigned number = count < 3 ? 0 : (unsigned)strtoul(words[1], NULL, 0);
	struct one *all = calloc(number + 1, sizeof(*all));
	pthread_t *threads = calloc(number + 1, sizeof(*threads));
	pthread_attr_t attributes;
	unsigned connected = 0, right = 0;
	int error = 0;

	if (number == 0 || all == NULL || threads == NULL)
		return 2;
	pthread_attr_init(&attributes);
	pthread_attr_setstacksize(&attributes, STACK);
	pthread_barrier_init(&all_are_open, NULL, number);
	for (unsigned i = 0; i < number; i++) {
		all[i] = (struct one){.address = words[0], .seed = i, .bytes = strtoull(words[2], NULL, 0)};
		if (pthread_create(&threads[i], &attributes, echoes, &all[i]) != 0) {
			perror("probe many: pthread_create");
			return 1;
		}
	}
	for (unsigned i = 0; i < number; i++) {
		pthread_join(threads[i], NULL);
		connected += all[i].connected;
		right += all[i].right;
		error = all[i].error != 0 ? all[i].error : error;
	}
	printf("result connected=%u right=%u error=%s\n", connected, right, error_name(error));
	return right == number ? 0 : 1;
}
