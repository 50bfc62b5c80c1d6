/*
 * The generator (xorshift64) behind stream.h.
 *
 * Before: stream.h. After: nothing.
 * Rule:   the same seed gives the same bytes, however the calls cut them.
 */
#include "stream.h"

#include <string.h>

static inline uint64_t next(uint64_t *state)
{
	uint64_t x = *state;

	x ^= x << 13;
	x ^= x >> 7;
	x ^= x << 17;
	return *state = x;
}

void stream_begin(struct stream *stream, uint64_t seed)
{
	/* Zero is the one state that never changes; neighbouring seeds shall not start alike. */
	stream->state = (seed + 1) * 0x9e3779b97f4a7c15ull;
	if (stream->state == 0)
		stream->state = 1;
	stream->used = 8;
}

void stream_fill(struct stream *stream, unsigned char *to, size_t size)
{
	while (size > 0) {
		if (stream->used == 8) {
			for (; size >= 8; size -= 8, to += 8) {
				uint64_t word = next(&stream->state);

				memcpy(to, &word, 8);
			}
			if (size == 0)
				return;
			uint64_t word = next(&stream->state);

			memcpy(stream->word, &word, 8);
			stream->used = 0;
		}
		*to++ = stream->word[stream->used++];
		size--;
	}
}

size_t stream_compare(struct stream *stream, const unsigned char *data, size_t size)
{
	size_t at = 0;

	while (at < size) {
		if (stream->used == 8) {
			while (size - at >= 8) {
				uint64_t word = next(&stream->state), found;

				memcpy(&found, data + at, 8);
				if (found != word) {
					memcpy(stream->word, &word, 8);
					stream->used = 0;
					break;
				}
				at += 8;
			}
			if (at == size)
				break;
			if (stream->used == 8) {
				uint64_t word = next(&stream->state);

				memcpy(stream->word, &word, 8);
				stream->used = 0;
			}
		}
		if (data[at] != stream->word[stream->used])
			return at;
		stream->used++;
		at++;
	}
	return size;
}

size_t stream_random_size(uint64_t *state, size_t max)
{
	unsigned bits = 0;

	while (bits < 63 && ((size_t)2 << bits) <= max)
		bits++;
	/* From 1 up to a power of two that is chosen first. */
	size_t top = (size_t)1 << (next(state) % (bits + 1));

	if (top * 2 > max)
		top = max;
	return 1 + next(state) % top;
}
