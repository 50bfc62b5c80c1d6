"""Pairs of connected UNIX sockets: one end for the program, as its AF_VSOCK socket; the other one stays here.

Before: calls.py, for a thread that calls socket(2). After: sockets.py.
Rules:  - both ends are made in the thread's network namespace: the kernel notes it in them, where the bridge reads it.
        - connected from the beginning, a pair polls as an AF_VSOCK socket does that is not connected, and our end tells
          when the program has closed its own.
"""

from __future__ import annotations

import os
import socket

from vhostvsock.exec.process import Thread
from vhostvsock.registry.netns import in_namespace

Pair = tuple[socket.socket, socket.socket]


class PairMaker:
    """Knows which namespace is our own."""

    def __init__(self) -> None:
        self._own = Thread(os.getpid()).network_namespace()

    def make(self, thread: Thread, kind: int) -> Pair:
        """A pair of type `kind`. Raises OSError, and NetnsError where the thread's namespace is not for us to enter."""
        if thread.network_namespace() == self._own:
            return socket.socketpair(socket.AF_UNIX, kind)
        fd = os.open(f"/proc/{thread.tid}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        try:
            return in_namespace(fd, lambda: socket.socketpair(socket.AF_UNIX, kind), "the program's network namespace")
        finally:
            os.close(fd)
