"""In which mount namespace a name in /run/netns must be made, so that everybody sees it.

Before: making.py. After: /proc/PID/mountinfo, setns.
Why:    `ip netns exec` runs its command in a mount namespace of its own, in which mounts from outside appear but whose
        own mounts do not leave it. A name that is made there would be an empty file to everyone else. So the mount is
        made one floor up: in a process's namespace from which ours gets its mounts.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeVar

from vhostvsock.registry.errors import NetnsError
from vhostvsock.registry.netns import in_thread

_CLONE_FS = 0x200
_CLONE_NEWNS = 0x2_0000

_T = TypeVar("_T")
_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True)
class _Mount:
    point: str
    shared: str | None
    master: str | None


def run_where_seen(directory: str, work: Callable[[], _T]) -> _T:
    """Do `work`, which mounts something below `directory`, where the mount reaches those outside; in a thread."""
    fd = _outer(directory)
    if fd is None:
        return in_thread(work)

    def body() -> _T:
        # A thread shares its root and working directory with the others until it has its own.
        if _libc.unshare(_CLONE_FS) != 0 or _libc.setns(fd, _CLONE_NEWNS) != 0:
            raise NetnsError(
                f"cannot enter the mount namespace outside: {os.strerror(ctypes.get_errno())}",
                hint="run as root with every capability, and enter the namespace with `nsenter --net=PATH`",
            )
        return work()

    try:
        return in_thread(body)
    finally:
        os.close(fd)


def _outer(directory: str) -> int | None:
    """The mount namespace whose mounts below `directory` reach ours; None where ours is as good as any."""
    real = os.path.realpath(directory)
    master = _covering(real, _mounts("self")).master
    if master is None:
        return None
    for pid in (*_ancestors(), 1):
        try:
            if any(mount.shared == master for mount in _mounts(str(pid))):
                return os.open(f"/proc/{pid}/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            continue  # gone, or not for us to see
    raise NetnsError(
        f"a namespace made here would not be seen outside: this command runs in a mount namespace of its own ({real})",
        hint="enter the network namespace with `nsenter --net=PATH`, not with `ip netns exec`",
    )


def _covering(path: str, mounts: Iterator[_Mount]) -> _Mount:
    """The mount that a path is on; of several on the same point, the last is on top."""
    best = _Mount("/", None, None)
    for mount in mounts:
        if os.path.commonpath((path, mount.point)) == mount.point and len(mount.point) >= len(best.point):
            best = mount
    return best


def _mounts(pid: str) -> Iterator[_Mount]:
    with open(f"/proc/{pid}/mountinfo", encoding="utf-8", errors="surrogateescape") as file:
        for line in file:
            # id parent major:minor root point options [tag:value ...] - type source options
            fields = line.split(" ")
            tags = dict(tag.partition(":")[::2] for tag in fields[6 : fields.index("-")])
            yield _Mount(_unescaped(fields[4]), tags.get("shared"), tags.get("master"))


def _unescaped(text: str) -> str:
    for code, char in (("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")):
        text = text.replace(code, char)
    return text


def _ancestors() -> Iterator[int]:
    pid = os.getppid()
    while pid > 1:
        yield pid
        try:
            with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
                # The name in parentheses may have anything in it.
                pid = int(file.read().rpartition(")")[2].split()[1])
        except (OSError, ValueError, IndexError):
            return
