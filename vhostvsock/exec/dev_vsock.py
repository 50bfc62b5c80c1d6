"""/dev/vsock, which tells programs the CID of this host (IOCTL_VM_SOCKETS_GET_LOCAL_CID).

Before: calls.py has an ioctl(2) with that number, or with --dev-vsock an open(2) of any file. After: it is answered.
Rules:  - of the machine's own device, and of what was opened in its place, the CID is ours to tell.
        - what is opened in its place is an empty file of memory that nobody can write to.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct

from vhostvsock.exec.call import Call
from vhostvsock.ids import CID_HOST

_PATH = "/dev/vsock"
_PATH_BYTES = _PATH.encode() + b"\0"
_SEALS = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE

# Which argument has the path, and which the flags.
_OPENS = {"open": (0, 1), "openat": (1, 2), "openat2": (1, 2)}


class DevVsock:
    """Answers in the device's place."""

    def __init__(self) -> None:
        self._file = os.memfd_create("vsock", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        fcntl.fcntl(self._file, fcntl.F_ADD_SEALS, _SEALS)

    def close(self) -> None:
        os.close(self._file)

    def open(self, call: Call) -> None:
        """Of this path alone. Raises OSError where the program can have no more descriptors."""
        assert call.name is not None
        path, flags = _OPENS[call.name]
        if not _is_ours(call, call.arguments[path]):
            call.go_on()
            return
        # openat2(2) has its flags in memory.
        given = call.thread.read_int(call.arguments[flags]) if call.name == "openat2" else call.arguments[flags]
        call.give(self._file, close_on_exec=bool(given & os.O_CLOEXEC))

    def local_cid(self, call: Call) -> None:
        """Raises OSError."""
        found = call.thread.stat(call.integer(0))
        if found is None or not (self._is_file(found) or _is_device(found)):
            call.go_on()
            return
        if not call.is_waiting():
            return  # another thread may have its number by now
        call.thread.write(call.arguments[2], struct.pack("=I", CID_HOST))
        call.answer(0)

    def _is_file(self, found: os.stat_result) -> bool:
        return os.path.samestat(found, os.fstat(self._file))


def _is_ours(call: Call, address: int) -> bool:
    try:
        return call.thread.read(address, len(_PATH_BYTES)) == _PATH_BYTES
    except OSError as error:
        if error.errno != errno.EFAULT:
            raise
        return False  # a shorter path right before the end of memory, or none


def _is_device(found: os.stat_result) -> bool:
    try:
        return found.st_rdev == os.stat(_PATH).st_rdev
    except OSError:
        return False
