/*
 * Connecting and listening by the words of address.h.
 *
 * Before: address.h. After: socket(2).
 * Rule:   the program for the host knows no vsock (IN_GUEST is not defined there).
 */
#include "address.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>
#ifdef IN_GUEST
#include <linux/vm_sockets.h>
#endif

enum { BACKLOG = 1024 };

static const char *after(const char *address, const char *prefix)
{
	size_t length = strlen(prefix);

	return strncmp(address, prefix, length) == 0 ? address + length : NULL;
}

static int finish(int fd, bool listens, const struct sockaddr *to, socklen_t length)
{
	if (fd < 0)
		return -1;
	if (listens ? bind(fd, to, length) < 0 || listen(fd, BACKLOG) < 0 : connect(fd, to, length) < 0) {
		int error = errno;

		close(fd);
		errno = error;
		return -1;
	}
	return fd;
}

static int with_unix(const char *path, size_t length, bool listens)
{
	struct sockaddr_un to = {.sun_family = AF_UNIX};

	if (length >= sizeof(to.sun_path)) {
		errno = ENAMETOOLONG;
		return -1;
	}
	memcpy(to.sun_path, path, length);
	if (listens)
		unlink(to.sun_path);
	return finish(socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0), listens, (struct sockaddr *)&to, sizeof(to));
}

static int with_vsock(const char *cid, const char *port, int type, bool listens)
{
#ifdef IN_GUEST
	struct sockaddr_vm to = {.svm_family = AF_VSOCK};

	to.svm_cid = cid == NULL ? VMADDR_CID_ANY : (unsigned)strtoul(cid, NULL, 0);
	to.svm_port = (unsigned)strtoul(port, NULL, 0);
	return finish(socket(AF_VSOCK, type | SOCK_CLOEXEC, 0), listens, (struct sockaddr *)&to, sizeof(to));
#else
	(void)cid, (void)port, (void)type, (void)listens;
	errno = EAFNOSUPPORT;
	return -1;
#endif
}

/* Says CONNECT and takes the answer byte by byte, because what follows it belongs to the connection. */
static int shake_hands(int fd, const char *port)
{
	char line[64];
	size_t length = 0;

	if (fd < 0)
		return -1;
	if (dprintf(fd, "CONNECT %s\n", port) < 0)
		goto refused;
	while (length < sizeof(line) - 1 && (length == 0 || line[length - 1] != '\n'))
		if (read(fd, line + length++, 1) != 1)
			goto refused;
	if (strncmp(line, "OK ", 3) == 0)
		return fd;
refused:
	close(fd);
	errno = ECONNREFUSED;
	return -1;
}

bool address_listens(const char *address)
{
	return after(address, "vsock-listen:") != NULL || after(address, "unix-listen:") != NULL ||
	       after(address, "seqpacket-listen:") != NULL;
}

int address_connect(const char *address)
{
	const char *rest, *port;

	if ((rest = after(address, "vsock:")) != NULL && (port = strchr(rest, ':')) != NULL)
		return with_vsock(rest, port + 1, SOCK_STREAM, false);
	if ((rest = after(address, "seqpacket:")) != NULL && (port = strchr(rest, ':')) != NULL)
		return with_vsock(rest, port + 1, SOCK_SEQPACKET, false);
	if ((rest = after(address, "unix:")) != NULL)
		return with_unix(rest, strlen(rest), false);
	if ((rest = after(address, "hybrid:")) != NULL && (port = strrchr(rest, ':')) != NULL)
		return shake_hands(with_unix(rest, (size_t)(port - rest), false), port + 1);
	if ((rest = after(address, "fd:")) != NULL)
		return (int)strtoul(rest, NULL, 10);
	errno = EINVAL;
	return -1;
}

int address_listen(const char *address)
{
	const char *rest;

	if ((rest = after(address, "vsock-listen:")) != NULL)
		return with_vsock(NULL, rest, SOCK_STREAM, true);
	if ((rest = after(address, "seqpacket-listen:")) != NULL)
		return with_vsock(NULL, rest, SOCK_SEQPACKET, true);
	if ((rest = after(address, "unix-listen:")) != NULL)
		return with_unix(rest, strlen(rest), true);
	errno = EINVAL;
	return -1;
}

int address_open(const char *address)
{
	int fd;

	if (address_listens(address)) {
		int listener = address_listen(address);

		if (listener < 0)
			return -1;
		puts("listening");
		fd = accept(listener, NULL, NULL);
		int error = errno;

		close(listener);
		errno = error;
	} else {
		fd = address_connect(address);
	}
	if (fd >= 0)
		puts("connected");
	return fd;
}
