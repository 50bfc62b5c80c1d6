"""Addresses of AF_VSOCK as programs write them: struct sockaddr_vm.

Before: arguments.py read bytes of a program. After: an `Address`, or Linux's errno.
Rule:   pure.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from dataclasses import dataclass

from vhostvsock.ids import CID_ANY, PORT_ANY

# linux/vm_sockets.h: family, reserved, port, CID, flags, zeroes.
_SOCKADDR_VM = struct.Struct("=HHIIB3x")
SIZE = _SOCKADDR_VM.size

# The one flag there is: the CID is to be reached through the hypervisor above.
_TO_HOST = 1


@dataclass(frozen=True, slots=True)
class Address:
    """A CID and a port, each of them perhaps ANY."""

    cid: int = CID_ANY
    port: int = PORT_ANY

    @classmethod
    def unpack(cls, data: bytes) -> Address:
        """Out of a program's bytes. OSError(EINVAL) for all that is wrong, as in bind(2) and connect(2) of AF_VSOCK."""
        if len(data) >= SIZE:
            family, _, port, cid, flags = _SOCKADDR_VM.unpack_from(data)
            if family == socket.AF_VSOCK and not flags & ~_TO_HOST:
                return cls(cid, port)
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))

    def pack(self) -> bytes:
        """As getsockname(2) and its like give it."""
        return _SOCKADDR_VM.pack(socket.AF_VSOCK, 0, self.port, self.cid, 0)


NOTHING = Address()
