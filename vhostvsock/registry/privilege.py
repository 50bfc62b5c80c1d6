"""Who may change a namespace's settings: the rule that Linux applies to /proc/sys/net in a namespace.

Before: cli/netns.py and the bridge, with an open namespace. After: rules.py gets `allowed` as plain truth.
Rule:   root of the system may, and whoever has CAP_NET_ADMIN in the user namespace that owns the network namespace.
"""

from __future__ import annotations

import fcntl
import os
import struct

from vhostvsock.registry.netns import Namespace

CAP_NET_ADMIN = 12
NS_GET_USERNS = 0xB701
NS_GET_PARENT = 0xB702
NS_GET_OWNER_UID = 0xB704
# The inode of the system's first user namespace is fixed (PROC_USER_INIT_INO).
_INIT_USERNS_INODE = 0xEFFF_FFFD


def may_administer(netns: Namespace) -> bool:
    """Whether the calling process may write settings of `netns`."""
    own = os.stat("/proc/self/ns/user")
    if os.geteuid() == 0 and own.st_ino == _INIT_USERNS_INODE:
        return True
    try:
        owner = fcntl.ioctl(netns.fd, NS_GET_USERNS)
    except OSError:
        return False  # owned by a user namespace that is not below ours: nothing that we have counts there
    try:
        if has_capability(CAP_NET_ADMIN):
            return True  # in our user namespace, and so in all that are below it
        return _made_by_us(owner, own)
    finally:
        os.close(owner)


def has_capability(number: int) -> bool:
    """Whether the calling thread has a capability in its own user namespace."""
    with open("/proc/thread-self/status", "rb") as file:
        for line in file:
            if line.startswith(b"CapEff:"):
                return bool(int(line.split()[1], 16) >> number & 1)
    return False


def _made_by_us(userns: int, own: os.stat_result) -> bool:
    """Whoever made a user namespace has every capability in it, as seen from its parent."""
    try:
        parent = fcntl.ioctl(userns, NS_GET_PARENT)
    except OSError:
        return False
    try:
        found = os.fstat(parent)
        if (found.st_dev, found.st_ino) != (own.st_dev, own.st_ino):
            return False
        answer = bytearray(4)
        fcntl.ioctl(userns, NS_GET_OWNER_UID, answer)
        return bool(struct.unpack("=I", answer)[0] == os.geteuid())
    except OSError:
        return False
    finally:
        os.close(parent)
