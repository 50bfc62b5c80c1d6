"""The modes of namespaces: the kernel's where it keeps them (Linux 7.0), else those noted in the registry.

Before: store.py, which lends its transactions: who writes is alone. After: kernel.py and notes.py.
Rules:  - a namespace of which nothing is known is global where the registry is the model. Where the kernel has modes,
          it is taken for local until the kernel was asked: what is unknown must not be let out of its namespace. Only
          the system's first one is global by definition.
        - a mode never changes, so what the kernel said once is noted down, and holds also for daemons that may not
          enter that namespace.
        - what is noted from the one source does not count for the other.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import socket
import sqlite3
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Protocol

from vhostvsock.registry.errors import NetnsError, Refused
from vhostvsock.registry.kernel import KernelModes
from vhostvsock.registry.netns import Namespace, cookie_of_socket, init_id, namespace_of_socket, own
from vhostvsock.registry.notes import KnownNetns, Notes
from vhostvsock.registry.rules import UNDECLARED, Mode, NetnsId, NetnsState, inherit, write_child_mode

_INIT = NetnsState(Mode.GLOBAL, Mode.GLOBAL, True)
_UNASKED = NetnsState(Mode.LOCAL, Mode.LOCAL, True)


class Transactions(Protocol):
    """What store.py lends."""

    def writing(self) -> AbstractContextManager[sqlite3.Cursor]: ...


class Modes:
    """Modes and child modes of all namespaces."""

    def __init__(
        self,
        transactions: Transactions,
        notes: Notes,
        kernel: KernelModes,
        init: Callable[[], NetnsId | None] = init_id,
    ) -> None:
        self._transactions = transactions
        self._notes = notes
        self.kernel = kernel
        self._init = functools.cache(init)
        # What this process saw: for the next question, and to note it again should the whole directory be removed.
        self._seen: dict[NetnsId, KnownNetns] = {}

    def by_kernel(self) -> bool:
        """Whether the kernel decides. It can begin to while we run, when its vsock module is loaded."""
        return self.kernel.present()

    def state(self, netns: NetnsId) -> NetnsState:
        """What is known of a namespace."""
        by_kernel = self.by_kernel()
        known = self._notes.load(netns)
        if known is not None and known.by_kernel == by_kernel:
            self._seen[netns] = known
            return known.state
        if not by_kernel:
            return UNDECLARED
        return _INIT if netns == self._init() else _UNASKED

    def mode(self, netns: NetnsId) -> Mode:
        """The mode of a namespace. It never changes, so what was seen once is not read again."""
        seen = self._seen.get(netns)
        if seen is not None and seen.by_kernel == self.by_kernel():
            return seen.state.mode
        return self.state(netns).mode

    def note_again(self) -> None:
        """Into a new directory, what this process knows. Called within a writing transaction."""
        for known in self._seen.values():
            if self._notes.load(known.id) is None:
                self._notes.save(known)

    def all_known(self) -> list[KnownNetns]:
        """Every namespace of which something is noted, by the source that counts."""
        by_kernel = self.by_kernel()
        return [known for known in self._notes.load_all() if known.by_kernel == by_kernel]

    def observe(self, netns: Namespace, name: str | None = None) -> NetnsState:
        """The state of a namespace that is open, asked of the kernel where it knows."""
        if not self.by_kernel():
            return self.state(netns.id)
        state = self.kernel.here() if netns.id == own() else netns.run(self.kernel.here)
        self._note(KnownNetns(netns.id, name, state, True))
        return state

    def note_own(self) -> None:
        """Note what the kernel says of our own namespace, for daemons that may not ask it."""
        if self.by_kernel():
            with contextlib.suppress(NetnsError):
                self._note(KnownNetns(own(), None, self.kernel.here(), True))

    def admit(self, sock: socket.socket) -> NetnsId:
        """The namespace of an accepted socket's client. From here on its mode is known, as far as it can be."""
        netns = cookie_of_socket(sock)
        if self.by_kernel() and netns not in self._seen and not self._is_noted(netns):
            if netns == own():
                self._note(KnownNetns(netns, None, self.kernel.here(), True))
            else:
                try:
                    with namespace_of_socket(sock) as found:
                        self.observe(found)
                except NetnsError:
                    pass  # not for us to see: it stays what it is taken for
        return netns

    def declare_child(
        self, parent: NetnsId, child: NetnsId, *, name: str | None = None, wanted: Mode | None = None
    ) -> NetnsState:
        """Note a namespace that was just made from within `parent`, with the mode that it inherits."""
        with self._transactions.writing():
            if self._notes.load(child) is not None:
                raise Refused(errno.EEXIST, f"the mode of {child} was decided before")
            state = inherit(self.state(parent), wanted)
            known = KnownNetns(child, name, state, False)
            self._notes.save(known)
        self._seen[child] = known
        return state

    def write_child_mode(self, netns: Namespace, data: bytes, *, allowed: bool) -> None:
        """A write to child_ns_mode of a namespace. `allowed` is for the model; the kernel judges by itself."""
        if self.by_kernel():
            write = self.kernel.write_child_mode
            if netns.id == own():
                write(data)
            else:
                netns.run(lambda: write(data))
            self.observe(netns)
            return
        with self._transactions.writing():
            before = self.state(netns.id)
            after = write_child_mode(before, data, allowed=allowed, label=netns.label)
            if after == before:
                return
            known = KnownNetns(netns.id, None, after, False)
            self._notes.save(known)
        self._seen[netns.id] = known

    def _is_noted(self, netns: NetnsId) -> bool:
        known = self._notes.load(netns)
        return known is not None and known.by_kernel

    def _note(self, known: KnownNetns) -> None:
        if self._seen.get(known.id) == known:
            return
        with self._transactions.writing():
            self._notes.save(known)
        self._seen[known.id] = known
