"""Names of namespaces that come and go in /run/netns.

Before: the daemon, which wants to know them for its messages. After: inotify.
Rules:  - a name appears as a plain file before the namespace is mounted on it, and no event tells of the mount: such a
          name is pending, and looked at again.
        - a name that is made anew at once counts as another namespace, by its cookie.
        - when the kernel lost events, everything is looked at anew: nothing is missed for good.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import struct
from collections.abc import AsyncIterator
from dataclasses import dataclass

from vhostvsock.registry.errors import NetnsError
from vhostvsock.registry.netns import RUN_DIR, names, open_namespace
from vhostvsock.registry.rules import NetnsId

# How soon a pending name is looked at again, and how often; a file left behind by somebody stays pending for ever.
PENDING_SECONDS = 0.01
_PENDING_LOOKS = 200

_IN_MOVED_FROM = 0x40
_IN_MOVED_TO = 0x80
_IN_CREATE = 0x100
_IN_DELETE = 0x200
_IN_Q_OVERFLOW = 0x4000
_IN_ONLYDIR = 0x0100_0000
_EVENT = struct.Struct("iIII")

_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True, slots=True)
class Change:
    """A name that leads to `id` from now on; None where it leads nowhere any more."""

    name: str
    id: NetnsId | None


class Watch:
    """Tells of every name: first of those that are there, then of what changes. Close it in the end."""

    def __init__(self, directory: str = RUN_DIR) -> None:
        self._directory = directory
        self._known: dict[str, NetnsId] = {}
        self._pending: dict[str, int] = {}
        self._fd: int = _libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        if self._fd < 0:
            number = ctypes.get_errno()
            raise NetnsError(
                f"cannot watch {directory}: {os.strerror(number)}", hint="raise fs.inotify.max_user_instances"
            )
        # The directory itself comes with the first namespace of the system.
        self._above = self._add(os.path.dirname(directory), _IN_CREATE | _IN_MOVED_TO)
        self._inside = -1
        self._look_at_all()

    def fileno(self) -> int:
        return self._fd

    @property
    def pending(self) -> bool:
        """Whether `poll` should be called again soon, even without an event."""
        return bool(self._pending)

    def poll(self) -> list[Change]:
        """What changed since the last call. Never waits."""
        self._read_events()
        changes = []
        for name in list(self._pending):
            found = self._resolve(name)
            exists = os.path.lexists(os.path.join(self._directory, name))
            self._pending[name] -= 1
            if found is not None or not exists or self._pending[name] <= 0:
                del self._pending[name]
            if found != self._known.get(name):
                if found is None:
                    del self._known[name]
                else:
                    self._known[name] = found
                changes.append(Change(name, found))
        return changes

    async def changes(self) -> AsyncIterator[Change]:
        """The changes as they come, for ever."""
        loop = asyncio.get_running_loop()
        readable = asyncio.Event()
        loop.add_reader(self._fd, readable.set)
        try:
            while True:
                for change in self.poll():
                    yield change
                try:
                    async with asyncio.timeout(PENDING_SECONDS if self.pending else None):
                        await readable.wait()
                except TimeoutError:
                    pass
                readable.clear()
        finally:
            loop.remove_reader(self._fd)

    def _add(self, path: str, mask: int) -> int:
        return int(_libc.inotify_add_watch(self._fd, os.fsencode(path), mask | _IN_ONLYDIR))

    def _look_at_all(self) -> None:
        self._inside = self._add(self._directory, _IN_CREATE | _IN_DELETE | _IN_MOVED_FROM | _IN_MOVED_TO)
        for name in {*self._known, *names(self._directory)}:
            self._pending[name] = _PENDING_LOOKS

    def _read_events(self) -> None:
        while True:
            try:
                data = os.read(self._fd, 65536)
            except BlockingIOError:
                return
            at = 0
            while at < len(data):
                watch, mask, _, size = _EVENT.unpack_from(data, at)
                name = os.fsdecode(data[at + _EVENT.size : at + _EVENT.size + size].rstrip(b"\0"))
                at += _EVENT.size + size
                if mask & _IN_Q_OVERFLOW or (watch == self._above and name == os.path.basename(self._directory)):
                    self._look_at_all()
                elif watch == self._inside and name:
                    self._pending[name] = _PENDING_LOOKS

    def _resolve(self, name: str) -> NetnsId | None:
        try:
            with open_namespace(os.path.join(self._directory, name)) as found:
                return found.id
        except NetnsError:
            return None

    def close(self) -> None:
        """May be called twice."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def __enter__(self) -> Watch:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
