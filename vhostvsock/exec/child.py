"""The program: started with the filter, which it cannot take off, and with the descriptor on which its calls are told.

Before: supervisor.py. After: the program runs, and waits in its first AF_VSOCK call until somebody answers.
Rule:   between fork and exec, only this: the process is a copy of one with an event loop and locks.
"""

from __future__ import annotations

import errno
import os
import signal
import socket
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NoReturn

from vhostvsock.errors import VhostvsockError
from vhostvsock.exec import filtering, kernel

# What tells a nested `vhostvsock exec` that it is one: processes have one supervisor at the most.
ENVIRONMENT = "VHOSTVSOCK_EXEC"

# As shells and env(1) have it.
_CANNOT_RUN = 126
_NOT_FOUND = 127

_FILTER, _EXEC = b"F", b"E"


class ProgramError(VhostvsockError):
    """The program cannot be started; `exit_code` says why as a shell's would."""

    def __init__(self, message: str, exit_code: int, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.exit_code = exit_code


@dataclass(frozen=True, slots=True)
class Child:
    """The program's process, and the descriptor on which its calls are told."""

    pid: int
    listener: int


def start(words: Sequence[str], blocked: Iterable[signal.Signals], *, dev_vsock: bool = False) -> Child:
    """Start the program under the filter. `blocked`: signals that only we wait for. Raises ProgramError."""
    architecture = filtering.here()
    instructions = filtering.build(architecture, dev_vsock=dev_vsock)
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        pid = os.fork()
        if pid == 0:
            _become(words, architecture.seccomp, instructions, theirs, blocked)
        theirs.close()
        message, fds, _, _ = socket.recv_fds(ours, 64, 1)
        if fds:
            listener = fds[0]
            os.set_inheritable(listener, False)
            message = ours.recv(64)
            if not message:
                return Child(pid, listener)
            os.close(listener)
    os.waitpid(pid, 0)
    raise _why(words[0], message)


def _become(
    words: Sequence[str], number: int, instructions: bytes, told: socket.socket, blocked: Iterable[signal.Signals]
) -> NoReturn:
    """In the child: become the program, or tell why not."""
    stage = _FILTER
    try:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, blocked)
        # What Python ignores for itself. Signals with handlers have their defaults after execve(2) anyway.
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)
        signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
        kernel.forbid_new_privileges()
        listener = kernel.install_filter(number, instructions)
        socket.send_fds(told, [stage], [listener])
        os.close(listener)
        stage = _EXEC
        os.execvpe(words[0], [*words], {**os.environ, ENVIRONMENT: str(os.getppid())})
    except OSError as error:
        told.send(stage + str(error.errno).encode())
    finally:
        os._exit(_CANNOT_RUN)


def _why(program: str, message: bytes) -> ProgramError:
    stage, number = message[:1], int(message[1:] or errno.EIO)
    if stage == _EXEC:
        code = _NOT_FOUND if number == errno.ENOENT else _CANNOT_RUN
        return ProgramError(f"cannot run {program}: {os.strerror(number)}", code)
    hints = {
        errno.EBUSY: "it runs under a supervisor of that kind already; start the program outside of it",
        errno.EPERM: "the container or sandbox around it forbids that; `vhostvsock connect` and `listen` work without",
    }
    return ProgramError(
        f"cannot intercept a program's calls (seccomp: {os.strerror(number)})",
        _CANNOT_RUN,
        hints.get(number, "this needs Linux 5.14 with CONFIG_SECCOMP_FILTER"),
    )
