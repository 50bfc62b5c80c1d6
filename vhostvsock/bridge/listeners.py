"""One host application that listens through the bridge, and the connections that it has not taken yet.

Before: server.py answered its LISTEN. After: each connection goes to it as a descriptor, with a line that names the
        peer.
Rules:  - Linux's backlog: N connections may wait, and one more; the next is refused.
        - what waits, waits in the application's own socket: when that closes, the kernel closes the waiting ones, and
          their peers see the end.
"""

from __future__ import annotations

import contextlib
import socket

from vhostvsock.bridge.lines import read_line, send_with
from vhostvsock.bridge.protocol import LINE_LIMIT, TAKEN, accept_line

# What sk_max_ack_backlog would be cut to (net.core.somaxconn).
MAX_BACKLOG = 4096


class BridgeListener:
    """The application's control connection."""

    def __init__(self, sock: socket.socket, backlog: int) -> None:
        self._sock = sock
        self._backlog = min(backlog, MAX_BACKLOG)
        self.waiting = 0

    def offer(self, connection: socket.socket, cid: int, port: int) -> bool:
        """Hand a connection over; False where the backlog is full or the application is gone. Closes nothing."""
        if self.waiting > self._backlog:
            return False
        with contextlib.suppress(OSError):
            send_with(self._sock, accept_line(cid, port), [connection.fileno()])
            self.waiting += 1
            return True
        return False

    async def until_gone(self) -> None:
        """Follow what the application takes, until it closes or says something else."""
        with contextlib.suppress(OSError):
            while await read_line(self._sock, LINE_LIMIT) == TAKEN.rstrip():
                self.waiting = max(0, self.waiting - 1)
