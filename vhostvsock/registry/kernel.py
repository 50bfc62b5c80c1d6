"""What the kernel itself knows of AF_VSOCK: the modes of namespaces (Linux 7.0), and this host's own CID.

Before: modes.py, making.py. After: files below /proc/sys/net/vsock, and /dev/vsock.
Rules:  - the files show the namespace of the thread that opens them, so they are read by `Namespace.run`.
        - where they exist they are the truth; they do not exist before 7.0, nor while the vsock module is not loaded.
        - an errno that the kernel gives is passed on as a `Refused`.
"""

from __future__ import annotations

import errno
import fcntl
import os
import sys

from vhostvsock.ids import CID_ANY
from vhostvsock.registry.errors import NetnsError, Refused
from vhostvsock.registry.rules import LOWEST_GUEST_CID, Mode, NetnsState

SYSCTL_DIR = "/proc/sys/net/vsock"
DEVICE = "/dev/vsock"
# _IO(7, 0xb9): the CID of the way up to a parent hypervisor, else 2, 1 or any.
IOCTL_VM_SOCKETS_GET_LOCAL_CID = 0x7B9


class KernelModes:
    """The kernel's settings of the namespace that the calling thread is in."""

    def __init__(self, directory: str = SYSCTL_DIR) -> None:
        self._mode = os.path.join(directory, "ns_mode")
        self._child = os.path.join(directory, "child_ns_mode")

    def present(self) -> bool:
        """Whether this kernel keeps modes."""
        return os.path.exists(self._mode)

    def here(self) -> NetnsState:
        """Mode and child mode. Whether the latter is locked cannot be read, so it is said to be."""
        return NetnsState(_read(self._mode), _read(self._child), True)

    def write_child_mode(self, data: bytes) -> None:
        """Write to child_ns_mode; what the kernel answers is raised."""
        try:
            fd = os.open(self._child, os.O_WRONLY | os.O_CLOEXEC)
            try:
                # Nothing is a write of zero bytes, and Python's os.write does it.
                os.write(fd, data)
            finally:
                os.close(fd)
        except OSError as error:
            number = error.errno or errno.EIO
            raise Refused(number, _WRITE_ANSWERS.get(number, f"the kernel refuses: {error.strerror}")) from None


_WRITE_ANSWERS = {
    errno.EACCES: "only an administrator of the namespace may change its child mode",
    errno.EINVAL: "that is not a mode: write exactly `global` or `local`",
    errno.EPERM: "the namespace is local, and namespaces made from within a local one are local for ever",
    errno.EBUSY: "the child mode of the namespace was set before, and can be set only once",
}


def _read(path: str) -> Mode:
    try:
        with open(path, encoding="ascii") as file:
            return Mode(file.read().strip())
    except (OSError, ValueError) as error:
        raise NetnsError(f"cannot read a mode from {path}: {error}", hint="is /proc mounted here?") from error


def host_cid(device: str = DEVICE) -> int | None:
    """This host's own CID, if it is a VM with a vsock device itself."""
    try:
        fd = os.open(device, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError:
        return None  # no such device: not a VM, or one without vsock; or not for us to see
    try:
        answer = bytearray(4)
        fcntl.ioctl(fd, IOCTL_VM_SOCKETS_GET_LOCAL_CID, answer)
    except OSError:
        return None
    finally:
        os.close(fd)
    cid = int.from_bytes(answer, sys.byteorder)
    return cid if LOWEST_GUEST_CID <= cid < CID_ANY else None
