"""One intercepted call: its arguments, the thread that waits in it, and its answer.

Before: supervisor.py received it. After: calls.py answers it, once.
Rule:   what was read of the thread counts only if it still waits afterwards: it may have ended, and another may have
        its number by now.
"""

from __future__ import annotations

import socket

from vhostvsock.exec import kernel
from vhostvsock.exec.process import Thread


class Call:
    """A system call that waits for an answer."""

    def __init__(self, listener: int, notification: kernel.Notification, name: str | None) -> None:
        self._listener = listener
        self._id = notification.id
        self.arguments = notification.arguments
        self.thread = Thread(notification.tid)
        # None: of another architecture.
        self.name = name

    def integer(self, index: int) -> int:
        """An argument that is an int to the kernel."""
        value = self.arguments[index] & 0xFFFF_FFFF
        return value - (1 << 32) if value >> 31 else value

    def is_waiting(self) -> bool:
        return kernel.is_waiting(self._listener, self._id)

    def answer(self, value: int) -> bool:
        """Return `value`, or fail with the errno of which it is the negative. False: nobody waits any more."""
        return kernel.answer(self._listener, self._id, value)

    def go_on(self) -> None:
        """It is none of our business."""
        kernel.let_go_on(self._listener, self._id)

    def give(self, fd: int, *, close_on_exec: bool) -> bool:
        """Return a new descriptor of what `fd` is. False: nobody waits any more. OSError where there is no room."""
        return kernel.answer_with_fd(self._listener, self._id, fd, close_on_exec=close_on_exec)

    def replace(self, number: int, sock: socket.socket) -> bool:
        """Put this socket in the place of one of the program's descriptors; the call goes on waiting."""
        keep = self.thread.close_on_exec(number)
        return kernel.replace_fd(self._listener, self._id, sock.fileno(), number, close_on_exec=keep)
