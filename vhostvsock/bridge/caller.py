"""An application that asked for a connection: where it is answered, and what becomes the connection.

Before: server.py read its request, or peers.py took it over from another daemon. After: a device, or an application
        that listens, has the connection.
Rules:  - without a descriptor in the request, the socket that asks is answered and becomes the connection.
        - with one, that is the connection, and its namespace counts. What is in it beforehand is no payload. It is
          untouched where the request is refused.
"""

from __future__ import annotations

import array
import errno
import fcntl
import socket
import termios
from dataclasses import dataclass

from vhostvsock.bridge.protocol import ok_line
from vhostvsock.registry.errors import Refused


@dataclass(frozen=True, slots=True)
class Caller:
    """`answer` is None where the connection itself is answered."""

    connection: socket.socket
    answer: socket.socket | None = None

    @property
    def sockets(self) -> list[socket.socket]:
        """The connection, and the socket for the answer if there is one: so it is handed to another daemon."""
        return [self.connection] if self.answer is None else [self.connection, self.answer]

    @classmethod
    def of(cls, sockets: list[socket.socket]) -> Caller:
        """The reverse. Raises Refused(EPROTO)."""
        match sockets:
            case [connection]:
                return cls(connection)
            case [connection, answer]:
                return cls(connection, answer)
        raise Refused(errno.EPROTO, "a message comes with one descriptor, or two")

    def accept(self, port: int) -> None:
        """Say OK; what comes out of the connection from here on is payload. Raises OSError where the caller is gone."""
        if self.answer is not None:
            _discard(self.connection)
        (self.answer or self.connection).send(ok_line(port), socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)


def _discard(sock: socket.socket) -> None:
    """Take out what is in the socket by now, and not what comes meanwhile."""
    count = array.array("i", [0])
    fcntl.ioctl(sock.fileno(), termios.FIONREAD, count)
    left = count[0]
    while left > 0:
        left -= len(sock.recv(min(left, 65536), socket.MSG_DONTWAIT)) or left
