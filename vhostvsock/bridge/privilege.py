"""Who may listen on ports below 1024: root, or whoever has CAP_NET_BIND_SERVICE in our user namespace.

Before: server.py, with what the kernel says of the client. After: the registry gets plain truth.
Rule:   what cannot be found out is not granted.
"""

from __future__ import annotations

import os

_CAP_NET_BIND_SERVICE = 10


def may_bind_low_ports(pid: int, uid: int) -> bool:
    """Whether the process with these credentials may."""
    if uid == 0:
        return True
    try:
        # Capabilities count in the process's own user namespace, which has to be ours.
        if not _in_our_user_namespace(pid):
            return False
        with open(f"/proc/{pid}/status", encoding="ascii", errors="replace") as file:
            for line in file:
                if line.startswith("CapEff:"):
                    return bool(int(line.split()[1], 16) >> _CAP_NET_BIND_SERVICE & 1)
    except (OSError, ValueError):
        pass
    return False


def _in_our_user_namespace(pid: int) -> bool:
    try:
        return os.readlink(f"/proc/{pid}/ns/user") == os.readlink("/proc/self/ns/user")
    except PermissionError:
        # That link is for those who may trace the process. The map is for everybody, and a foreign namespace with the
        # map of ours was made by one who has all that is asked for here.
        return _uid_map(str(pid)) == _uid_map("self")


def _uid_map(pid: str) -> str:
    with open(f"/proc/{pid}/uid_map", encoding="ascii") as file:
        return file.read()
