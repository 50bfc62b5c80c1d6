/*
 * A stream of bytes that both sides can make from a seed, so that a gigabyte is checked without being kept.
 *
 * Before: talk.c and many.c. After: nothing.
 * Rule:   a word of eight bytes costs a few instructions, because guests run in an emulator.
 */
#ifndef STREAM_H
#define STREAM_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct stream {
	uint64_t state;
	unsigned char word[8]; /* the word that the last byte came from */
	unsigned used;         /* how much of it */
};

void stream_begin(struct stream *stream, uint64_t seed);
/* Write the next `size` bytes. */
void stream_fill(struct stream *stream, unsigned char *to, size_t size);
/* The number of leading bytes that are what comes next; `size` when all are. */
size_t stream_compare(struct stream *stream, const unsigned char *data, size_t size);

/* A size from 1 to `max`: small ones as likely as large ones. */
size_t stream_random_size(uint64_t *state, size_t max);

#endif
