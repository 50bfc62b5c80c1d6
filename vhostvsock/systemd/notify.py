"""Tell the service manager how we are: sd_notify(3) in a few lines of the standard library.

Before: daemon.py, when it is ready and when it stops. After: the socket that NOTIFY_SOCKET names.
Rule:   never raises and never blocks; a manager that does not listen is not our problem.
"""

from __future__ import annotations

import os
import socket


def notify(*assignments: str) -> bool:
    """Send lines such as "READY=1" to the service manager. False where there is none, or it cannot be reached."""
    name = os.environ.get("NOTIFY_SOCKET", "")
    if not name or name[0] not in "/@":
        return False
    # "@" stands for the NUL byte of the abstract namespace.
    address = "\0" + name[1:] if name[0] == "@" else name
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as sock:
            sock.sendto("\n".join(assignments).encode(), address)
    except (OSError, ValueError):
        return False
    return True
