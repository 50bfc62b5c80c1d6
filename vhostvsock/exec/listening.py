"""A port that a program bound, and the connections that wait there to be accepted.

Before: calls.py, at bind(2). After: the bridge sends connections; calls.py gives them to the program at accept(2).
Rules:  - the port is ours for as long as the program has its socket, and free again before the next bind(2) is tried.
          Of a connected socket we do not see the end: the port is ours for as long as the daemon has the connection.
        - for each connection that waits, the program's socket has a byte to read: so it polls as a listening one. Who
          accepts takes it out.
        - when the daemon ends, the port is asked for again at another one, or at its successor.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import socket
import struct
import termios
from collections import deque

from vhostvsock.bridge.lines import DescriptorLostError, readable, recv_with
from vhostvsock.bridge.protocol import TAKEN, backlog_line, parse_accept
from vhostvsock.exec import asking
from vhostvsock.exec.address import Address

_LINE_LIMIT = 512
_AGAIN_SECONDS = 1.0
_RELEASE_SECONDS = 2.0

# A connection, and who is at its other end.
Waiting = tuple[socket.socket, Address]


class BoundPort:
    """Made by `bind`."""

    def __init__(self, control: socket.socket, held: socket.socket, address: Address) -> None:
        self._control: socket.socket | None = control
        self._held = held
        self._address = address
        self._listening: tuple[int, int] | None = None  # backlog and buffer
        self._waiting: deque[Waiting] = deque()
        self._waiters: deque[asyncio.Future[None]] = deque()
        self._task = asyncio.create_task(self._follow())
        self.closed = False

    def listen(self, backlog: int, buffer: int) -> None:
        """From now on connections may come; so many may wait, and one more. Guests may send `buffer` bytes ahead."""
        self._listening = backlog, buffer
        self._say(backlog_line(backlog, buffer))

    def set_buffer(self, buffer: int) -> None:
        """Guests that connect from now on may send so many bytes ahead."""
        if self._listening is not None:
            self.listen(self._listening[0], buffer)

    def _say(self, line: bytes) -> None:
        if self._control is not None:
            # A daemon that is gone is noticed elsewhere; one that does not read has enough to read.
            with contextlib.suppress(OSError):
                self._control.send(line, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)

    async def _follow(self) -> None:
        while True:
            assert self._control is not None
            with contextlib.suppress(OSError):
                while await self._receive(self._control):
                    pass
            self._control.close()
            self._control = None
            while self._control is None:
                await asyncio.sleep(_AGAIN_SECONDS)
                with contextlib.suppress(OSError):
                    self._control, _ = await asking.bind(self._held, self._address)
            if self._listening is not None:
                self.listen(*self._listening)

    async def _receive(self, control: socket.socket) -> bool:
        """The next connection. False when the daemon is gone."""
        await readable(control)
        try:
            line, sockets = recv_with(control, _LINE_LIMIT)
        except DescriptorLostError:
            self._say(TAKEN)  # it waits no more
            return True
        if not line:
            return False
        for each in sockets:
            self._waiting.append((each, Address(*parse_accept(line.rstrip(b"\n")))))
            self._mark()
        self._wake()
        return True

    def _mark(self) -> None:
        # Without room there are many marks: enough to be seen, and `take` sees to the last one.
        with contextlib.suppress(OSError):
            self._held.send(b"\0", socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)

    def _wake(self) -> None:
        while self._waiters and self._waiting:
            waiter = self._waiters.popleft()
            if not waiter.done():
                waiter.set_result(None)
                return

    async def wait(self) -> None:
        """Until a connection may be there, or the port is closed."""
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiters.append(waiter)
        try:
            await waiter
        except asyncio.CancelledError:
            if waiter.cancelled():
                with contextlib.suppress(ValueError):  # a connection that came meanwhile passed it over
                    self._waiters.remove(waiter)
            else:
                self._wake()
            raise

    def has_waiting(self) -> bool:
        return bool(self._waiting)

    def take(self, program_end: socket.socket) -> Waiting:
        """The next connection, of those that there are; `taken` or `give_back` says what became of it.

        The program's socket shows one less before the program has the connection: it may look again at once.
        """
        waiting = self._waiting.popleft()
        with contextlib.suppress(OSError):
            program_end.recv(1, socket.MSG_DONTWAIT)
        if self._waiting and not _has_bytes(program_end):
            self._mark()
        return waiting

    def taken(self) -> None:
        """The program has it."""
        self._say(TAKEN)
        self._wake()

    def give_back(self, waiting: Waiting) -> None:
        """The program could not take it: it is for the next accept(2)."""
        self._waiting.appendleft(waiting)
        self._mark()
        self._wake()

    def pass_on(self) -> None:
        """Whoever was woken does not accept any more."""
        self._wake()

    async def close(self) -> None:
        """The program closed its socket. Returns when the port is free."""
        self.closed = True
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_result(None)
        for sock, _ in self._waiting:
            sock.close()
        await self._release()

    def keep_until_closed(self, asked: socket.socket) -> None:
        """The program's socket is connected. The daemon closes `asked` when that connection has ended."""
        self._task.cancel()
        self._task = asyncio.create_task(self._keep_until_closed(asked))

    async def _keep_until_closed(self, asked: socket.socket) -> None:
        with asked:
            await readable(asked)
        await self._release()

    async def _release(self) -> None:
        """Returns when the port is free."""
        if self._control is None:
            return
        with self._control as control, contextlib.suppress(OSError, TimeoutError):
            control.shutdown(socket.SHUT_WR)
            async with asyncio.timeout(_RELEASE_SECONDS):
                while await self._drain(control):
                    pass

    async def _drain(self, control: socket.socket) -> bool:
        await readable(control)
        try:
            line, sockets = recv_with(control, _LINE_LIMIT)
        except DescriptorLostError:
            return True
        for each in sockets:
            each.close()
        return bool(line)


async def bind(held: socket.socket, address: Address) -> tuple[BoundPort, Address]:
    """Have a port at the bridge, in the name of a program's socket; the address with the port there is. OSError."""
    control, port = await asking.bind(held, address)
    bound = Address(address.cid, port)
    return BoundPort(control, held, bound), bound


def _has_bytes(sock: socket.socket) -> bool:
    count = bytearray(4)
    fcntl.ioctl(sock.fileno(), termios.FIONREAD, count)
    return struct.unpack("=i", count) != (0,)
