"""Who may listen on ports below 1024: root, or whoever has CAP_NET_BIND_SERVICE in our user namespace.

Before: server.py, with what the kernel says of the client. After: the registry gets plain truth.
Rules:  - what cannot be found out is not granted.
        - the kernel's word on the client is of when it connected. By now its process may run another program, with
          rights of its own (set-user-ID), or have made a user namespace: nobody gets more by either.
"""

from __future__ import annotations

import os

_CAP_NET_BIND_SERVICE = 10


def may_bind_low_ports(pid: int, uid: int) -> bool:
    """Whether the process with these credentials may."""
    if uid == 0:
        return True
    try:
        now, capabilities = _effective(pid)
        if now != uid or not capabilities >> _CAP_NET_BIND_SERVICE & 1:
            return False
        # Capabilities count in the process's own user namespace, which has to be ours. Looked at last: there is no way
        # back from another one.
        return _in_our_user_namespace(pid)
    except (OSError, ValueError, KeyError):
        return False


def _effective(pid: int) -> tuple[int, int]:
    """The effective user and capabilities of a process at one moment."""
    with open(f"/proc/{pid}/status", encoding="ascii", errors="replace") as file:
        found = dict(line.split(":", 1) for line in file if ":" in line)
    return int(found["Uid"].split()[1]), int(found["CapEff"], 16)


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
