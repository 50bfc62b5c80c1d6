"""The AF_VSOCK sockets of all supervised programs, as far as they are not in the kernel.

Before: calls.py made a pair. After: calls.py finds the socket again by what a descriptor leads to.
Rules:  - a socket is known by its inode, whoever has a descriptor of it: it may have been duplicated, inherited or
          passed on. SO_COOKIE, which is never used twice, tells it from a successor with the same inode.
        - until it is connected we hold its other end, which hangs up when the program's last descriptor is closed.
        - of a connected one nothing is held, and its end is not told: such entries are collected once they are many.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import select
import socket
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import TYPE_CHECKING, NamedTuple

from vhostvsock.exec.address import NOTHING, Address
from vhostvsock.exec.options import Options

if TYPE_CHECKING:
    from vhostvsock.exec.connecting import Attempt
    from vhostvsock.exec.listening import BoundPort

# asm-generic/socket.h.
_SO_COOKIE = 57

# Connected sockets that are remembered before it is looked which of them still exist.
_COLLECT_AT = 1024


class State(Enum):
    """What may be asked of a socket."""

    UNCONNECTED = auto()
    CONNECTING = auto()
    CONNECTED = auto()
    LISTENING = auto()


class Unheard(NamedTuple):
    """What a call did to its socket, until the program has been answered.

    A signal may interrupt the call before. It is made again then, and must not find fault with its own work. One with
    another address is another call.
    """

    name: str
    address: Address
    result: int


class Binding(NamedTuple):
    """A bind(2) in progress."""

    address: Address
    task: asyncio.Task[None]


@dataclass(eq=False, slots=True)
class VsockSocket:
    """One socket. `held` is its other end, as long as it is ours."""

    kind: int
    held: socket.socket | None
    state: State = State.UNCONNECTED
    local: Address = NOTHING
    peer: Address = NOTHING
    options: Options = field(default_factory=Options)
    error: int = 0
    unheard: Unheard | None = None
    attempt: Attempt | None = None
    port: BoundPort | None = None
    binding: Binding | None = None
    inode: int = 0
    cookie: bytes = b""

    def result_of(self, name: str, address: Address | None) -> int | None:
        """What the program has not heard of this very call, if anything."""
        told = self.unheard
        return told.result if told is not None and (told.name, told.address) == (name, address) else None

    def heard(self, name: str | None) -> None:
        """The program knows the result of this call."""
        if self.unheard is not None and self.unheard.name == name:
            self.unheard = None


class SocketTable:
    """All of them."""

    def __init__(self, closed: Callable[[VsockSocket], None]) -> None:
        """`closed` is called for a socket that a program closed without having connected it."""
        self._closed = closed
        self._by_inode: dict[int, VsockSocket] = {}
        self._held: dict[int, VsockSocket] = {}
        self._ends = select.epoll()
        self._collect_at = _COLLECT_AT

    def __len__(self) -> int:
        return len(self._by_inode)

    def fileno(self) -> int:
        """Readable when `look` has something to do."""
        return self._ends.fileno()

    def add(self, program_end: socket.socket, made: VsockSocket) -> None:
        """Know a socket from now on by the end that the program has."""
        made.inode = os.fstat(program_end.fileno()).st_ino
        made.cookie = _cookie(program_end)
        self._by_inode[made.inode] = made
        if made.held is not None:
            self._held[made.held.fileno()] = made
            # Hanging up is always told, and nothing else.
            self._ends.register(made.held, 0)
        if len(self._by_inode) > self._collect_at:
            self._collect()

    def find(self, inode: int | None) -> VsockSocket | None:
        """The socket with this inode, if it is one of them."""
        return None if inode is None else self._by_inode.get(inode)

    def is_same(self, taken: socket.socket, known: VsockSocket) -> bool:
        """Whether a program's socket is the one that is known. A successor to its inode makes that one forgotten."""
        if _cookie(taken) == known.cookie:
            return True
        # Any other inode: the program has put something else under this number, and may have ours under another.
        if os.fstat(taken.fileno()).st_ino == known.inode:
            self._forget(known)
        return False

    def let_go(self, known: VsockSocket) -> None:
        """Hold the other end no more: it is connected."""
        held, known.held = known.held, None
        if held is not None:
            del self._held[held.fileno()]
            # Others have it, too, so that closing it would not take it out.
            self._ends.unregister(held)
            held.close()

    def look(self) -> None:
        """Find out which sockets were closed by now."""
        for fd, _ in self._ends.poll(0):
            known = self._held.get(fd)
            if known is not None:
                self._forget(known)

    def close(self) -> None:
        """Forget all."""
        for known in list(self._by_inode.values()):
            self._forget(known)
        self._ends.close()

    def _forget(self, known: VsockSocket) -> None:
        if self._by_inode.get(known.inode) is known:
            del self._by_inode[known.inode]
        if known.held is not None:
            self.let_go(known)
            self._closed(known)

    def _collect(self) -> None:
        """Forget those that no process has a descriptor of. One that is just being passed on may be among them."""
        there = set(_inodes())
        for known in list(self._by_inode.values()):
            if known.held is None and known.inode not in there:
                self._forget(known)
        self._collect_at = max(_COLLECT_AT, 2 * len(self._by_inode))


def _cookie(sock: socket.socket) -> bytes:
    return sock.getsockopt(socket.SOL_SOCKET, _SO_COOKIE, struct.calcsize("=Q"))


def _inodes() -> Iterator[int]:
    """Inodes of the sockets of all processes that we may look into."""
    for pid in filter(str.isdecimal, os.listdir("/proc")):
        with contextlib.suppress(OSError):
            for number in os.listdir(f"/proc/{pid}/fd"):
                with contextlib.suppress(OSError):
                    found = re.fullmatch(r"socket:\[(\d+)\]", os.readlink(f"/proc/{pid}/fd/{number}"))
                    if found:
                        yield int(found.group(1))
