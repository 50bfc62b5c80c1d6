/*
 * The commands that measure an answer:
 *
 *   probe connect ADDRESS         connects and closes; result: error, ms
 *   probe cid -                   the guest's own CID; result: cid
 *   probe tsc -                   how fast this machine's time stamp counter runs; result: khz
 *   probe ping ADDRESS COUNT      COUNT times one byte to an echo server and back; result: done, max_us, mean_us
 *
 * Before: probe.c. After: address.h.
 * Rule:   a refusal is a result, and the exit code is 0 for it: the test says what it expected.
 */
#include "address.h"
#include "probe.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <unistd.h>
#ifdef IN_GUEST
#include <linux/vm_sockets.h>
#endif

int command_cid(int count, char **words)
{
	unsigned cid = 0;

	(void)count, (void)words;
#ifdef IN_GUEST
	int fd = open("/dev/vsock", O_RDONLY | O_CLOEXEC);

	if (fd < 0 || ioctl(fd, IOCTL_VM_SOCKETS_GET_LOCAL_CID, &cid) < 0)
		perror("probe cid");
#endif
	printf("result cid=%u\n", cid);
	return cid == 0;
}

int command_tsc(int count, char **words)
{
	uint64_t start = now_us(), ticks = __builtin_ia32_rdtsc(), took;

	(void)count, (void)words;
	while ((took = now_us() - start) < 50000)
		;
	printf("result khz=%llu\n", (unsigned long long)((__builtin_ia32_rdtsc() - ticks) * 1000 / took));
	return 0;
}

int command_connect(int count, char **words)
{
	uint64_t start = now_us();
	int fd = count < 1 ? -1 : address_connect(words[0]);
	int error = fd < 0 ? errno : 0;

	printf("result error=%s ms=%llu\n", error_name(error), (unsigned long long)(now_us() - start) / 1000);
	if (fd >= 0)
		close(fd);
	return 0;
}

int command_ping(int count, char **words)
{
	unsigned long number = count < 2 ? 1 : strtoul(words[1], NULL, 0), done;
	uint64_t longest = 0, total = 0;
	int fd = address_open(words[0]);
	char byte = 'x';

	if (fd < 0) {
		printf("result connect_error=%s\n", error_name(errno));
		return 1;
	}
	for (done = 0; done < number; done++) {
		uint64_t start = now_us();

		if (write(fd, &byte, 1) != 1 || read(fd, &byte, 1) != 1)
			break;
		uint64_t took = now_us() - start;

		longest = took > longest ? took : longest;
		total += took;
	}
	printf("result done=%lu max_us=%llu mean_us=%llu\n", done, (unsigned long long)longest,
	       (unsigned long long)(done > 0 ? total / done : 0));
	close(fd);
	return done == number ? 0 : 1;
}
