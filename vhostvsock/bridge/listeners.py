"""One host application that listens through the bridge, and the connections that it has not taken yet.

Before: server.py answered its LISTEN. After: each connection goes to it as a descriptor, with a line that names the
        peer.
Rules:  - the connections are of the type of the socket on which LISTEN was said: streams, or messages.
        - Linux's backlog: N connections may wait, and one more; the next is refused.
        - what waits, waits in the application's own socket: when that closes, the kernel closes the waiting ones, and
          their peers see the end.
        - a client of loopback gets its OK here, in the step that hands its connection over: not before it is known
          that there is room, and before anything that the application may say.
"""

from __future__ import annotations

import contextlib
import errno
import socket

from vhostvsock.bridge.caller import Caller
from vhostvsock.bridge.lines import hung_up, limit_messages, readable, send_with
from vhostvsock.bridge.protocol import LINE_LIMIT, accept_line, parse_backlog
from vhostvsock.ids import CID_LOCAL
from vhostvsock.registry.errors import Refused

# What waits counts against the send buffer of our end, some 768 bytes for each: this many fit into the most that
# net.core.wmem_max allows where nobody changed it.
MAX_BACKLOG = 512
_SEND_BUFFER = 1 << 20


class BridgeListener:
    """The application's control connection."""

    def __init__(self, sock: socket.socket, backlog: int | None, buffer: int = 0) -> None:
        """`backlog` is None for a port that is only bound: whoever connects is refused until BACKLOG is said.

        `buffer`: so many bytes may each guest send ahead; 0 for what is usual.
        """
        self._sock = sock
        self._backlog = -1 if backlog is None else min(backlog, MAX_BACKLOG)
        self.buffer = buffer
        self.waiting = 0
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER)  # as far as it is allowed

    def offer(self, caller: Caller, cid: int, port: int) -> None:
        """Hand a connection over. Refused(ECONNRESET) where the backlog is full or the application is gone.

        A connection from CID 1 is a client's own, which is told OK. Closes nothing.
        """
        connection = caller.connection
        if connection.type != self._sock.type:
            raise Refused(errno.ECONNRESET, "who listens there has a socket of another type")
        if self.waiting > self._backlog or hung_up(self._sock):
            raise Refused(errno.ECONNRESET, "nobody listens any more, or too many connections wait to be accepted")
        greeted = cid == CID_LOCAL
        if greeted:
            caller.accept(port)
        connection.setblocking(True)  # that of a guest is, too
        limit_messages(connection)
        try:
            send_with(self._sock, accept_line(cid, port), [connection.fileno()])
        except OSError as error:
            if not greeted:
                raise Refused(errno.ECONNRESET, f"it cannot be handed to the listener: {error.strerror}") from error
            # Too late for another answer: the connection ends.
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
            return
        self.waiting += 1

    async def until_gone(self) -> None:
        """Follow what the application takes, until it closes or says something else."""
        buffer = b""
        with contextlib.suppress(OSError):
            while len(buffer) < LINE_LIMIT:
                await readable(self._sock)
                data = self._sock.recv(4096)
                if not data:
                    return
                *lines, buffer = (buffer + data).split(b"\n")
                if not all(self._heard(line) for line in lines):
                    return

    def _heard(self, line: bytes) -> bool:
        if line.split() == [b"TAKEN"]:
            self.waiting = max(0, self.waiting - 1)
            return True
        try:
            backlog, buffer = parse_backlog(line)
        except Refused:
            return False
        self._backlog = min(backlog, MAX_BACKLOG)
        if buffer is not None:
            self.buffer = buffer
        return True
