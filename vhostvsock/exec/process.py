"""A thread of a supervised program, as seen from outside: its memory, its descriptors, its namespace.

Before: calls.py has a notification. After: kernel.py and /proc.
Rules:  - failures are OSErrors. Of a process that we may not look into (another user's, or one that made itself
          undumpable) nothing is to be had.
        - a descriptor of ours of what is the program's is closed before the loop turns: close(2) of the program has to
          mean the end.
"""

from __future__ import annotations

import os
import re
import socket
import struct

from vhostvsock.exec import kernel

_SOCKET = re.compile(r"socket:\[(\d+)\]")


class Thread:
    """A thread that waits in a call."""

    def __init__(self, tid: int) -> None:
        self.tid = tid

    # Memory -----------------------------------------------------------------------------------------------------------

    def read(self, address: int, size: int) -> bytes:
        return kernel.read_memory(self.tid, address, size)

    def write(self, address: int, data: bytes) -> None:
        kernel.write_memory(self.tid, address, data)

    def read_int(self, address: int) -> int:
        return int(struct.unpack("=i", self.read(address, 4))[0])

    # Descriptors ------------------------------------------------------------------------------------------------------

    def inode(self, number: int) -> int | None:
        """The inode of a descriptor that is a socket; None for any other."""
        try:
            found = _SOCKET.fullmatch(os.readlink(f"/proc/{self.tid}/fd/{number}"))
        except OSError:
            return None
        return int(found.group(1)) if found else None

    def stat(self, number: int) -> os.stat_result | None:
        """What fstat(2) tells the program; None where there is no such descriptor."""
        try:
            return os.stat(f"/proc/{self.tid}/fd/{number}")
        except OSError:
            return None

    def take(self, number: int) -> socket.socket:
        """A socket of ours that is the same as the program's. To be closed soon."""
        pidfd = kernel.open_thread(self.tid, self.process())
        try:
            taken = kernel.take_fd(pidfd, number)
        finally:
            os.close(pidfd)
        try:
            return socket.socket(fileno=taken)
        except OSError:  # another thread of the program put something else there
            os.close(taken)
            raise

    def close_on_exec(self, number: int) -> bool:
        """Whether the program closes this descriptor at execve(2)."""
        with open(f"/proc/{self.tid}/fdinfo/{number}", encoding="ascii") as file:
            flags = next(line for line in file if line.startswith("flags:"))
        return bool(int(flags.split()[1], 8) & os.O_CLOEXEC)

    # Who it is --------------------------------------------------------------------------------------------------------

    def process(self) -> int:
        """The pid of its process."""
        with open(f"/proc/{self.tid}/status", encoding="utf-8", errors="replace") as file:
            return int(next(line for line in file if line.startswith("Tgid:")).split()[1])

    def uid(self) -> int:
        """The effective one."""
        return os.stat(f"/proc/{self.tid}").st_uid

    def network_namespace(self) -> tuple[int, int]:
        """What tells its network namespace from others that exist at the moment."""
        found = os.stat(f"/proc/{self.tid}/ns/net")
        return found.st_dev, found.st_ino
