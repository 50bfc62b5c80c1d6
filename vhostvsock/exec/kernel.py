"""The kernel's interface of seccomp's user notifications, and of other processes' memory and descriptors.

Before: child.py, supervisor.py and process.py. After: system calls.
Rules:  - failures are OSErrors with the kernel's errno.
        - structures are those of linux/seccomp.h, which are the same on all architectures.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import struct
from collections.abc import Callable
from dataclasses import dataclass

_libc = ctypes.CDLL(None, use_errno=True)

_PR_SET_NO_NEW_PRIVS = 38
_PR_SET_CHILD_SUBREAPER = 36

_SET_MODE_FILTER = 1
_FLAG_NEW_LISTENER = 8

_SYS_PIDFD_OPEN = 434
_SYS_PIDFD_GETFD = 438
# pidfd_open(2) of a thread that is not its process's first, since Linux 6.9.
_PIDFD_THREAD = os.O_EXCL

_NOTIFICATION = struct.Struct("=QIIiIQ6Q")
_RESPONSE = struct.Struct("=QqiI")
_ADD_FD = struct.Struct("=QIIII")

_CONTINUE = 1
_ADD_FD_SET = 1
_ADD_FD_SEND = 2


def _request(direction: int, number: int, size: int) -> int:
    return (direction << 30) | (size << 16) | (ord("!") << 8) | number


_IOCTL_RECEIVE = _request(3, 0, _NOTIFICATION.size)
_IOCTL_SEND = _request(3, 1, _RESPONSE.size)
_IOCTL_ID_VALID = _request(1, 2, 8)
_IOCTL_ADD_FD = _request(1, 3, _ADD_FD.size)


class _FilterProgram(ctypes.Structure):
    """struct sock_fprog."""

    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_char_p))


class _Vector(ctypes.Structure):
    """struct iovec."""

    _fields_ = (("base", ctypes.c_void_p), ("length", ctypes.c_size_t))


@dataclass(frozen=True, slots=True)
class Notification:
    """A call that a thread waits in. `tid` is 0 for one that our pid namespace does not show."""

    id: int
    tid: int
    number: int
    architecture: int
    arguments: tuple[int, ...]


def _failure() -> OSError:
    number = ctypes.get_errno()
    return OSError(number, os.strerror(number))


def _checked(result: int) -> int:
    if result < 0:
        raise _failure()
    return result


# The program's side ---------------------------------------------------------------------------------------------------


def forbid_new_privileges() -> None:
    """This process and its children gain none by execve(2): without that, filters are for the privileged."""
    _checked(_libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))


def install_filter(seccomp_number: int, instructions: bytes) -> int:
    """Have the calling thread, and all that it starts, filtered; the descriptor on which calls are told."""
    program = _FilterProgram(len(instructions) // 8, instructions)
    return _checked(
        _libc.syscall(
            ctypes.c_long(seccomp_number),
            ctypes.c_ulong(_SET_MODE_FILTER),
            ctypes.c_ulong(_FLAG_NEW_LISTENER),
            ctypes.byref(program),
        )
    )


def adopt_orphans() -> None:
    """Descendants whose parents ended become our children."""
    _checked(_libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0))


# Notifications --------------------------------------------------------------------------------------------------------


def receive(listener: int) -> Notification | None:
    """The next call; None where its thread was killed or interrupted meanwhile."""
    buffer = bytearray(_NOTIFICATION.size)
    try:
        fcntl.ioctl(listener, _IOCTL_RECEIVE, buffer)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.EINTR):
            return None
        raise
    id_, tid, _, number, architecture, _, *arguments = _NOTIFICATION.unpack(buffer)
    return Notification(id_, tid, number, architecture, tuple(arguments))


def _send(listener: int, response: bytes) -> bool:
    try:
        fcntl.ioctl(listener, _IOCTL_SEND, bytearray(response))
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.EINPROGRESS):
            return False
        raise
    return True


def answer(listener: int, id_: int, value: int) -> bool:
    """Have the call return `value`, or fail with the errno of which it is the negative. False: it waits no more."""
    return _send(listener, _RESPONSE.pack(id_, max(value, 0), min(value, 0), 0))


def let_go_on(listener: int, id_: int) -> bool:
    """Have the kernel execute the call as if nothing had been."""
    return _send(listener, _RESPONSE.pack(id_, 0, 0, _CONTINUE))


def is_waiting(listener: int, id_: int) -> bool:
    """Whether the thread still waits in the call. What was read of it before is its own then, and no successor's."""
    try:
        fcntl.ioctl(listener, _IOCTL_ID_VALID, struct.pack("=Q", id_))
    except OSError as error:
        if error.errno == errno.ENOENT:
            return False
        raise
    return True


def answer_with_fd(listener: int, id_: int, fd: int, *, close_on_exec: bool) -> bool:
    """Give the process a descriptor of its own of what `fd` is, which the call returns. False: it waits no more.

    Raises OSError (EMFILE and its like) where the process cannot have it; the call goes on waiting.
    """
    return _add_fd(listener, id_, fd, _ADD_FD_SEND, 0, close_on_exec)


def replace_fd(listener: int, id_: int, fd: int, number: int, *, close_on_exec: bool) -> bool:
    """Put a descriptor of what `fd` is in the place of the process's `number`. The call goes on waiting."""
    return _add_fd(listener, id_, fd, _ADD_FD_SET, number, close_on_exec)


def _add_fd(listener: int, id_: int, fd: int, flags: int, number: int, close_on_exec: bool) -> bool:
    record = _ADD_FD.pack(id_, flags, fd, number, os.O_CLOEXEC if close_on_exec else 0)
    try:
        fcntl.ioctl(listener, _IOCTL_ADD_FD, record)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.EINPROGRESS):
            return False
        raise
    return True


# Other processes ------------------------------------------------------------------------------------------------------


def open_thread(tid: int, pid: int) -> int:
    """A pidfd of thread `tid`, or before Linux 6.9 of its process `pid`."""
    try:
        return _checked(_libc.syscall(_SYS_PIDFD_OPEN, tid, _PIDFD_THREAD))
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        return os.pidfd_open(pid)


def take_fd(pidfd: int, number: int) -> int:
    """A descriptor of ours of what the process has under `number`."""
    return _checked(_libc.syscall(_SYS_PIDFD_GETFD, pidfd, number, 0))


def read_memory(tid: int, address: int, size: int) -> bytes:
    """Bytes of a process. EFAULT where there are not so many."""
    buffer = ctypes.create_string_buffer(size)
    _move(_libc.process_vm_readv, tid, buffer, address, size)
    return buffer.raw


def write_memory(tid: int, address: int, data: bytes) -> None:
    """Write to a process's memory. EFAULT where it cannot be written to."""
    _move(_libc.process_vm_writev, tid, ctypes.create_string_buffer(data, len(data)), address, len(data))


def _move(function: Callable[..., int], tid: int, buffer: ctypes.Array[ctypes.c_char], address: int, size: int) -> None:
    if size == 0:
        return
    here = _Vector(ctypes.cast(buffer, ctypes.c_void_p), size)
    there = _Vector(address, size)
    one = ctypes.c_ulong(1)
    moved = _checked(function(ctypes.c_int(tid), ctypes.byref(here), one, ctypes.byref(there), one, ctypes.c_ulong(0)))
    if moved != size:
        raise OSError(errno.EFAULT, os.strerror(errno.EFAULT))
