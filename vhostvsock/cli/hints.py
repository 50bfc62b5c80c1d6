"""What helps when a daemon, or nobody, refuses what `connect` and `listen` ask for.

Before: an OSError of client.py. After: the second line of the error.
Rule:   an error that brings its remedy along (a note) knows best; else the errno decides.
"""

from __future__ import annotations

import errno
from collections.abc import Mapping

CONNECTING: Mapping[int, str] = {
    errno.ENODEV: "`vhostvsock ls` lists the VMs that can be seen from here",
    errno.ESOCKTNOSUPPORT: "`vhostvsock ls` lists the VMs that can be seen from here; Linux guests have SOCK_SEQPACKET "
    "since 5.14, unless QEMU was told seqpacket=off",
    errno.EHOSTUNREACH: "is the guest still booting? Else its driver is missing: modprobe vmw_vsock_virtio_transport",
    errno.ECONNRESET: "a program has to listen there, with the same type of socket (--seqpacket or not)",
    errno.ETIMEDOUT: "is the guest paused, or does it hang?",
}
LISTENING: Mapping[int, str] = {
    errno.EADDRINUSE: "take another port, or `any` for a free one",
    errno.EACCES: "take a port from 1024 on, or run it as root",
}


def hint(error: OSError, remedies: Mapping[int, str]) -> str | None:
    """The remedy, where one is known."""
    notes: list[str] = getattr(error, "__notes__", [])
    return notes[0] if notes else remedies.get(error.errno or 0)
