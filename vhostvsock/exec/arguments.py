"""What the arguments of a call point to: addresses and values of options, in the program's memory.

Before: calls.py has a call. After: process.py reads and writes there.
Rule:   failures are OSErrors. What was read counts only if the thread waits still, and only then something is written:
        EBADF where it does not.
"""

from __future__ import annotations

import errno
import os
import struct

from vhostvsock.exec.address import SIZE, Address
from vhostvsock.exec.call import Call

# Longer addresses than this are none, whatever the family (net/socket.c).
_ADDRESS_LIMIT = 128
# No option is longer.
_OPTION_LIMIT = 16


def _error(number: int) -> OSError:
    return OSError(number, os.strerror(number))


def _require_waiting(call: Call) -> None:
    if not call.is_waiting():
        raise _error(errno.EBADF)


def address(call: Call) -> Address | None:
    """The address that connect(2) and bind(2) have as their second argument; None for one that is wrong."""
    size = call.integer(2)
    if not 0 <= size <= _ADDRESS_LIMIT:
        raise _error(errno.EINVAL)
    data = call.thread.read(call.arguments[1], size)
    _require_waiting(call)
    try:
        return Address.unpack(data)
    except OSError:
        return None


def write_address(call: Call, value: Address) -> None:
    """Into what the second and third argument point to: the room for an address, and its length before and after."""
    where, length = call.arguments[1], call.arguments[2]
    room = call.thread.read_int(length)
    _require_waiting(call)
    if room < 0:
        raise _error(errno.EINVAL)
    call.thread.write(where, value.pack()[:room])
    call.thread.write(length, struct.pack("=i", SIZE))


def option(call: Call) -> bytes:
    """The value that setsockopt(2) has."""
    size = call.integer(4)
    if size < 0:
        raise _error(errno.EINVAL)
    data = call.thread.read(call.arguments[3], min(size, _OPTION_LIMIT))
    _require_waiting(call)
    return data


def write_option(call: Call, value: bytes, *, strict: bool = False) -> None:
    """The value that getsockopt(2) gives. `strict`: a program with less room gets nothing, instead of a part."""
    where, length = call.arguments[3], call.arguments[4]
    room = call.thread.read_int(length)
    _require_waiting(call)
    if room < 0 or (strict and room < len(value)):
        raise _error(errno.EINVAL)
    call.thread.write(where, value[:room])
    call.thread.write(length, struct.pack("=i", min(room, len(value))))
