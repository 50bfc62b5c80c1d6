"""The options of level AF_VSOCK, with Linux's defaults, bounds and errnos.

Before: calls.py has the bytes of a setsockopt(2) or getsockopt(2). After: connecting.py and listening.py tell the
        bridge.
Rule:   pure.
"""

from __future__ import annotations

import errno
import os
import struct
from dataclasses import dataclass

# linux/vm_sockets.h.
_BUFFER_SIZE, _BUFFER_MIN_SIZE, _BUFFER_MAX_SIZE = 0, 1, 2
_CONNECT_TIMEOUT_OLD, _CONNECT_TIMEOUT_NEW = 6, 8

# Of net/vmw_vsock/af_vsock.c, in bytes and in microseconds.
_DEFAULT_SIZE, _DEFAULT_MIN_SIZE, _DEFAULT_MAX_SIZE = 256 << 10, 128, 256 << 10
_DEFAULT_TIMEOUT = 2_000_000
# In seconds: MAX_SCHEDULE_TIMEOUT / HZ - 1, with the largest HZ that kernels are built with.
_MAX_TIMEOUT = 0x7FFF_FFFF_FFFF_FFFF // 1000 - 1

_SIZE = struct.Struct("=Q")
_TIMEVAL = struct.Struct("=qq")  # of 64-bit programs, old and new alike


def _error(number: int) -> OSError:
    return OSError(number, os.strerror(number))


@dataclass(slots=True)
class Options:
    """Of one socket."""

    size: int = _DEFAULT_SIZE
    min_size: int = _DEFAULT_MIN_SIZE
    max_size: int = _DEFAULT_MAX_SIZE
    timeout: int = _DEFAULT_TIMEOUT
    asked: bool = False  # a program that set nothing leaves the size to the daemon

    @property
    def timeout_ms(self) -> int:
        """How long connect(2) waits: at least a millisecond."""
        return max(1, min(self.timeout // 1000, 0xFFFF_FFFF))

    @property
    def buffer(self) -> int:
        """What the bridge is told of the size: 0 for nothing."""
        return max(1, min(self.size, 0xFFFF_FFFF)) if self.asked else 0

    def set(self, name: int, data: bytes) -> None:
        """What setsockopt(2) does. Raises OSError."""
        if name in (_CONNECT_TIMEOUT_OLD, _CONNECT_TIMEOUT_NEW):
            seconds, microseconds = _unpack(_TIMEVAL, data)
            if not 0 <= seconds < _MAX_TIMEOUT or not 0 <= microseconds < 1_000_000:
                raise _error(errno.ERANGE)
            self.timeout = seconds * 1_000_000 + microseconds or _DEFAULT_TIMEOUT
            return
        if name not in (_BUFFER_SIZE, _BUFFER_MIN_SIZE, _BUFFER_MAX_SIZE):
            raise _error(errno.ENOPROTOOPT)
        (size,) = _unpack(_SIZE, data)
        if name == _BUFFER_MIN_SIZE:
            self.min_size = size
        elif name == _BUFFER_MAX_SIZE:
            self.max_size = size
        else:
            self.size = size
        self.asked = True
        # In Linux's order: where the bounds cross, the lower one wins.
        self.size = max(min(self.size, self.max_size), self.min_size)

    def get(self, name: int) -> bytes:
        """What getsockopt(2) gives. Raises OSError."""
        if name in (_CONNECT_TIMEOUT_OLD, _CONNECT_TIMEOUT_NEW):
            return _TIMEVAL.pack(*divmod(self.timeout, 1_000_000))
        sizes = {_BUFFER_SIZE: self.size, _BUFFER_MIN_SIZE: self.min_size, _BUFFER_MAX_SIZE: self.max_size}
        if name not in sizes:
            raise _error(errno.ENOPROTOOPT)
        return _SIZE.pack(sizes[name])


def _unpack(form: struct.Struct, data: bytes) -> tuple[int, ...]:
    if len(data) < form.size:
        raise _error(errno.EINVAL)
    return form.unpack_from(data)
