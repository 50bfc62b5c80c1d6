"""A connect(2) in progress, and how the program's socket looks meanwhile.

Before: calls.py. After: the other end of the program's socket is with the bridge, or here as before.
Rules:  - a program that does not wait has to see a socket that is not writable until all is decided: the socket is
          filled up, and whoever decides takes the filler out.
        - a refused socket is as it was: it can be connected again, as with Linux.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import select
import socket

from vhostvsock.bridge.protocol import Wish
from vhostvsock.exec import asking
from vhostvsock.exec.address import Address
from vhostvsock.exec.sockets import SocketTable, State, Unheard, VsockSocket

# Of SOCK_SEQPACKET each piece is a message, which whoever takes it out has to receive whole.
_FILLER = bytes(16384)


class Attempt:
    """One connect(2). `result` is 0 or an errno."""

    def __init__(self, sockets: SocketTable, sock: VsockSocket, address: Address) -> None:
        self._sockets = sockets
        self._sock = sock
        self.address = address
        # The connection where it is another socket: to the hypervisor above.
        self.up: socket.socket | None = None
        sock.state, sock.attempt = State.CONNECTING, self
        self._waits = True
        self.result = asyncio.create_task(self._run())

    async def _run(self) -> int:
        result = await self._decide()
        if self._waits and self.up is None:
            self._sock.unheard = Unheard("connect", self.address, -result)
        return result

    async def _decide(self) -> int:
        sock = self._sock
        held = sock.held
        if held is None:
            return errno.EBADF  # the program closed it at once
        # A socket that was not bound has any port.
        wish = Wish(sock.options.timeout_ms, sock.options.buffer, sock.local.port)
        try:
            port, asked, self.up = await asking.connect(held, self.address, wish)
        except OSError as error:
            sock.state, sock.attempt = State.UNCONNECTED, None
            return error.errno or errno.EIO
        sock.state, sock.attempt, sock.peer = State.CONNECTED, None, self.address
        sock.local = Address(sock.local.cid, port)
        self._sockets.let_go(sock)
        bound, sock.port = sock.port, None
        if bound is None:
            asked.close()
        else:
            bound.keep_until_closed(asked)
        return 0

    def tell_later(self) -> None:
        """The program does not wait: what becomes of it is told by its socket, and by SO_ERROR."""
        self._waits = False
        self.result.add_done_callback(self._told)

    def _told(self, result: asyncio.Future[int]) -> None:
        if result.cancelled():
            return
        self._sock.error = result.result()
        if self.up is not None:
            # It could only be put in the place of the program's socket while that waits.
            self.up.close()
            self._sock.error = errno.ENETUNREACH
        if self._sock.held is not None:
            _empty(self._sock.held)


def fill(program_end: socket.socket) -> None:
    """Have the program's socket poll as not writable, and take nothing of the program."""
    piece = _FILLER
    with contextlib.suppress(BlockingIOError):
        while piece:
            try:
                program_end.send(piece, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
            except OSError as error:
                if error.errno != errno.EMSGSIZE:
                    raise
                piece = piece[: len(piece) // 2]  # no message is longer than the send buffer


def is_writable(program_end: socket.socket) -> bool:
    """Whether it is: a socket that was filled up is so again once all is decided."""
    poll = select.poll()
    poll.register(program_end, select.POLLOUT)
    return bool(poll.poll(0))


def _empty(held: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while held.recv(len(_FILLER), socket.MSG_DONTWAIT):
            pass
