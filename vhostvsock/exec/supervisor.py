"""The loop: calls come in and are answered, signals are passed on, processes that ended are buried.

Before: cli/exec.py. After: calls.py; at the end, the program's exit code.
Rules:  - it ends when the last process that the program started has ended.
        - a fault in the answer to one call fails that call, and nothing else.
        - a program that was buried is sent nothing: its number may be a stranger's by then.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import select
import signal
import threading
from collections.abc import Sequence

from vhostvsock.descriptors import raise_descriptor_limit
from vhostvsock.exec import child, filtering, kernel
from vhostvsock.exec.call import Call
from vhostvsock.exec.calls import Calls

# What others send to us they mean for the program.
_PASSED_ON = (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
_WAITED_FOR = (*_PASSED_ON, signal.SIGCHLD)

# siginfo_t's si_code of what a terminal sends to all processes in its foreground: the program has it, too.
_SI_KERNEL = 0x80

_log = logging.getLogger("vhostvsock.exec")


def run(words: Sequence[str], *, dev_vsock: bool = False) -> int:
    """Run a program to its end; its exit code as a shell has it. Raises ProgramError where it cannot be started.

    `dev_vsock`: it finds a /dev/vsock, whether or not there is one that it may open.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, _WAITED_FOR)
    kernel.adopt_orphans()
    started = child.start(words, _WAITED_FOR, dev_vsock=dev_vsock)
    # Of ours alone: a program keeps what it was given.
    raise_descriptor_limit()
    try:
        return asyncio.run(_Supervisor(started).run())
    finally:
        os.close(started.listener)


class _Supervisor:
    def __init__(self, program: child.Child) -> None:
        self._program = program
        self._architecture = filtering.here()
        self._calls = Calls()
        self._program_lives = True
        self._ended = asyncio.Event()
        self._code = 0

    async def run(self) -> int:
        loop = asyncio.get_running_loop()
        threading.Thread(target=self._wait_for_signals, args=(loop,), name="signals", daemon=True).start()
        loop.add_reader(self._program.listener, self._receive)
        loop.add_reader(self._calls.sockets.fileno(), self._calls.sockets.look)
        self._bury()
        await self._ended.wait()
        loop.remove_reader(self._program.listener)
        loop.remove_reader(self._calls.sockets.fileno())
        await self._calls.close()
        return self._code

    # Calls ------------------------------------------------------------------------------------------------------------

    def _receive(self) -> None:
        listener = self._program.listener
        poll = select.poll()
        poll.register(listener, select.POLLIN)
        events = poll.poll(0)
        if events and events[0][1] & (select.POLLHUP | select.POLLERR):
            # No process with the filter is left.
            asyncio.get_running_loop().remove_reader(listener)
            return
        if not events:
            return  # the thread was killed
        notification = kernel.receive(listener)
        if notification is None:
            return
        native = notification.architecture == self._architecture.audit
        call = Call(listener, notification, self._architecture.names[notification.number] if native else None)
        try:
            self._calls.handle(call)
        except Exception:
            _log.exception("%s of thread %d", call.name, notification.tid)
            with contextlib.suppress(OSError):
                call.answer(-errno.EIO)

    # Processes --------------------------------------------------------------------------------------------------------

    def _wait_for_signals(self, loop: asyncio.AbstractEventLoop) -> None:
        while True:
            told = signal.sigwaitinfo(_WAITED_FOR)
            with contextlib.suppress(RuntimeError):  # the loop has ended
                loop.call_soon_threadsafe(self._signal, told.si_signo, told.si_code)

    def _signal(self, number: int, code: int) -> None:
        if number == signal.SIGCHLD:
            self._bury()
        elif code != _SI_KERNEL and self._program_lives:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._program.pid, number)

    def _bury(self) -> None:
        """Bury all processes that have ended; with the last one, we end."""
        try:
            while True:
                pid, status = os.waitpid(-1, os.WNOHANG)
                if pid == 0:
                    return
                if pid == self._program.pid:
                    code = os.waitstatus_to_exitcode(status)
                    self._code = 128 - code if code < 0 else code
                    self._program_lives = False
        except ChildProcessError:
            self._ended.set()
