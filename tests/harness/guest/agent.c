/*
 * The first process of a test guest: runs shell commands that come over a serial port, and tells what they print.
 *
 *   from the host  RUN ID COMMAND      starts `sh -c COMMAND` in a process group of its own
 *                  KILL ID SIGNAL      sends a signal to that group
 *                  HELLO               asks for READY again
 *   to the host    READY RELEASE BOOT  the kernel's release, and a number that differs with every boot
 *                  OUT ID TEXT         a piece of stdout and stderr
 *                  END ID CODE         it ended: exit code, or 128 and the signal's number
 *
 * Texts have every byte that is not printable, and '%', as %XX.
 *
 * Before: /init loads the modules and starts this with the port's name. After: /bin/sh, /bin/probe.
 * Rules:  - It never waits for a command, so that any number of them run at once.
 *         - It must not end: it is process 1.
 */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/utsname.h>
#include <sys/wait.h>
#include <termios.h>
#include <time.h>
#include <unistd.h>

enum { JOBS = 64, LINE = 65536, PIECE = 1024 };

static struct job {
	bool used;
	int id, out;
	pid_t pid;
} jobs[JOBS];

static int port;
static int child_ended[2];

static void on_child(int number)
{
	int error = errno;

	(void)number;
	(void)!write(child_ended[1], "", 1);
	errno = error;
}

static void tell(const char *data, size_t size)
{
	while (size > 0) {
		ssize_t done = write(port, data, size);

		if (done < 0 && errno != EINTR)
			return;
		data += done > 0 ? done : 0;
		size -= done > 0 ? (size_t)done : 0;
	}
}

static void tell_ready(void)
{
	char text[256];
	struct utsname name;
	static long boot;

	if (boot == 0) {
		struct timespec now;

		clock_gettime(CLOCK_REALTIME, &now);
		boot = (now.tv_sec & 0xffff) * 1000000 + now.tv_nsec / 1000 + 1;
	}
	uname(&name);
	/* The line end before it closes whatever the port held from before a reset. */
	int size = snprintf(text, sizeof(text), "\nREADY %s %ld\n", name.release, boot);

	tell(text, (size_t)size);
}

static void forward(struct job *job)
{
	unsigned char data[PIECE];
	char text[3 * PIECE + 64];
	ssize_t got = read(job->out, data, sizeof(data));

	if (got < 0 && (errno == EAGAIN || errno == EINTR))
		return;
	if (got <= 0) {
		close(job->out);
		job->out = -1;
		return;
	}
	int size = snprintf(text, 64, "OUT %d ", job->id);

	for (ssize_t i = 0; i < got; i++)
		if (data[i] > ' ' && data[i] < 0x7f && data[i] != '%')
			text[size++] = (char)data[i];
		else
			size += sprintf(text + size, "%%%02X", data[i]);
	text[size++] = '\n';
	tell(text, (size_t)size);
}

static void reap(void)
{
	int status;
	pid_t pid;
	char text[64];

	while ((pid = waitpid(-1, &status, WNOHANG)) > 0)
		for (struct job *job = jobs; job < jobs + JOBS; job++) {
			if (!job->used || job->pid != pid)
				continue;
			for (struct pollfd left = {.fd = job->out, .events = POLLIN};
			     job->out >= 0 && poll(&left, 1, 0) > 0;)
				forward(job);
			if (job->out >= 0)
				close(job->out);
			int code = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);

			job->used = false;
			tell(text, (size_t)snprintf(text, sizeof(text), "END %d %d\n", job->id, code));
		}
}

static void run(int id, const char *command)
{
	int ends[2];
	char text[64];
	struct job *job = jobs;

	while (job < jobs + JOBS && job->used)
		job++;
	if (job == jobs + JOBS || pipe2(ends, O_CLOEXEC | O_NONBLOCK) < 0) {
		tell(text, (size_t)snprintf(text, sizeof(text), "END %d 126\n", id));
		return;
	}
	*job = (struct job){.used = true, .id = id, .out = ends[0], .pid = fork()};
	if (job->pid == 0) {
		sigset_t none;

		setpgid(0, 0);
		sigemptyset(&none);
		sigprocmask(SIG_SETMASK, &none, NULL);
		/* The reading end alone is to be non-blocking. */
		fcntl(ends[1], F_SETFL, 0);
		dup2(open("/dev/null", O_RDONLY), 0);
		dup2(ends[1], 1);
		dup2(ends[1], 2);
		execl("/bin/sh", "sh", "-c", command, (char *)NULL);
		_exit(127);
	}
	setpgid(job->pid, job->pid);
	close(ends[1]);
}

static void decode(char *text)
{
	char *to = text;

	for (; *text != '\0'; text++)
		if (text[0] == '%' && text[1] != '\0' && text[2] != '\0') {
			char digits[3] = {text[1], text[2], '\0'};

			*to++ = (char)strtol(digits, NULL, 16);
			text += 2;
		} else {
			*to++ = *text;
		}
	*to = '\0';
}

static void obey(char *line)
{
	int id, number, at = 0;

	if (strcmp(line, "HELLO") == 0) {
		tell_ready();
	} else if (sscanf(line, "KILL %d %d", &id, &number) == 2) {
		for (struct job *job = jobs; job < jobs + JOBS; job++)
			if (job->used && job->id == id)
				kill(-job->pid, number);
	} else if (sscanf(line, "RUN %d %n", &id, &at) == 1 && at > 0) {
		decode(line + at);
		run(id, line + at);
	}
}

static void read_port(void)
{
	static char line[LINE];
	static size_t length;
	ssize_t got = read(port, line + length, sizeof(line) - 1 - length);
	char *end;

	if (got <= 0)
		return;
	length += (size_t)got;
	line[length] = '\0';
	while ((end = strchr(line, '\n')) != NULL) {
		*end = '\0';
		obey(line);
		length -= (size_t)(end + 1 - line);
		memmove(line, end + 1, length + 1);
	}
	if (length == sizeof(line) - 1)
		length = 0;
}

int main(int count, char **words)
{
	struct termios raw;
	struct sigaction action = {.sa_handler = on_child, .sa_flags = SA_RESTART | SA_NOCLDSTOP};

	if (count < 2 || (port = open(words[1], O_RDWR | O_NOCTTY | O_CLOEXEC)) < 0) {
		perror("agent: no port");
		return 1;
	}
	tcgetattr(port, &raw);
	cfmakeraw(&raw);
	tcsetattr(port, TCSANOW, &raw);
	if (pipe2(child_ended, O_CLOEXEC | O_NONBLOCK) < 0)
		return 1;
	sigaction(SIGCHLD, &action, NULL);
	tell_ready();
	for (;;) {
		struct pollfd ends[JOBS + 2] = {{.fd = port, .events = POLLIN}, {.fd = child_ended[0], .events = POLLIN}};
		char drain[64];

		for (int i = 0; i < JOBS; i++)
			ends[i + 2] = (struct pollfd){.fd = jobs[i].used ? jobs[i].out : -1, .events = POLLIN};
		if (poll(ends, JOBS + 2, -1) < 0)
			continue;
		for (int i = 0; i < JOBS; i++)
			if (ends[i + 2].revents != 0 && jobs[i].used && jobs[i].out >= 0)
				forward(&jobs[i]);
		if (ends[1].revents != 0) {
			while (read(child_ended[0], drain, sizeof(drain)) > 0)
				;
			reap();
		}
		if (ends[0].revents != 0)
			read_port();
	}
}
