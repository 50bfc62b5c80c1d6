/*
 * The commands of the probe, one file each.
 *
 * Before: probe.c parses the command's name. After: address.h, stream.h.
 * Rules:  - A command ends with one line "result KEY=VALUE ..." on stdout and the exit code 0, 1 (it did not go as
 *           expected) or 2 (wrong usage).
 *         - Lines before that tell what happened meanwhile: "listening", "connected", "progress BYTES".
 */
#ifndef PROBE_H
#define PROBE_H

#include <stdbool.h>
#include <stdint.h>

int command_talk(int count, char **words);
int command_many(int count, char **words);
int command_ping(int count, char **words);
int command_echo(int count, char **words);
int command_exec(int count, char **words);
int command_cat(int count, char **words);
int command_connect(int count, char **words);
int command_cid(int count, char **words);
int command_tsc(int count, char **words);
int command_messages(int count, char **words);
/* Waits until the file exists; without a name, not at all. */
void wait_for_file(const char *path);

/* Milliseconds and microseconds of a clock that never jumps. */
uint64_t now_us(void);
/* "OK", or an errno's name. */
const char *error_name(int error);
/* All bytes, or false and errno. */
bool write_all(int fd, const void *data, uint64_t size);

#endif
