"""Lines and descriptors on UNIX sockets, without taking a byte more than the line.

Before: server.py, peers.py and client.py have a socket. After: they have a line, or sent one with a descriptor.
Rule:   what follows a line stays in the socket: it is payload, and whoever gets the descriptor reads it there.
"""

from __future__ import annotations

import array
import asyncio
import contextlib
import errno
import os
import select
import socket
import struct
from collections.abc import Sequence

from vhostvsock.bridge.protocol import LONGEST_MESSAGE

# While a line is incomplete its beginning stays in the socket, which therefore always polls as readable.
_PAUSE = 0.01
_INT = array.array("i").itemsize
_NO_LINGER = struct.pack("ii", 0, 0)
# Descriptors for which there is room in what is received. More than two come with nothing of ours.
_DESCRIPTORS = 4


class DescriptorLostError(OSError):
    """EMFILE: with `data` came a descriptor for which this process had no room. The kernel has closed it."""

    def __init__(self, data: bytes) -> None:
        super().__init__(errno.EMFILE, "no room for a descriptor that came")
        self.data = data


async def readable(sock: socket.socket) -> None:
    """Wait until there is something to read, or an end."""
    loop = asyncio.get_running_loop()
    ready: asyncio.Future[None] = loop.create_future()

    def wake() -> None:
        if not ready.done():
            ready.set_result(None)

    loop.add_reader(sock.fileno(), wake)
    try:
        await ready
    finally:
        loop.remove_reader(sock.fileno())


def hung_up(sock: socket.socket) -> bool:
    """Whether the other side will send no more, though there may be something left to read."""
    poll = select.poll()
    poll.register(sock, select.POLLRDHUP)
    return bool(poll.poll(0))


async def read_line(sock: socket.socket, limit: int) -> tuple[bytes, list[socket.socket]]:
    """The next line, without its end, and the sockets that came with it; b"" at the end of the stream.

    Raises OSError(EPROTO) for one that is too long. On a message socket it is a message.
    """
    if sock.type == socket.SOCK_SEQPACKET:
        await readable(sock)
        data, sockets = recv_with(sock, limit + 1, socket.MSG_DONTWAIT)
        try:
            return whole_line(data, limit), sockets
        except OSError:
            for each in sockets:
                each.close()
            raise
    seen = 0
    while True:
        await readable(sock)
        ended = hung_up(sock)  # asked first: nothing comes after that
        data = sock.recv(limit, socket.MSG_PEEK)
        line, end, _ = data.partition(b"\n")
        if end:
            return line, _take(sock, len(line) + 1)
        if not data or ended:
            return b"", []
        if len(data) >= limit:
            raise OSError(errno.EPROTO, "the line is too long")
        if len(data) == seen:
            await asyncio.sleep(_PAUSE)
        seen = len(data)


def whole_line(message: bytes, limit: int) -> bytes:
    """The line that a message is, without its end; b"" for the end of messages. Raises OSError(EPROTO) for another."""
    line, end, rest = message.partition(b"\n")
    if message and (not end or rest or len(message) > limit):
        raise OSError(errno.EPROTO, "a message has to be one line, and not a long one")
    return line


def limit_messages(sock: socket.socket) -> None:
    """Have a message socket take what a vsock socket takes in one message, and refuse more with the same EMSGSIZE."""
    if sock.family == socket.AF_UNIX and sock.type == socket.SOCK_SEQPACKET:
        # The kernel doubles what it is told, and keeps 32 bytes to itself (unix_dgram_sendmsg, net/unix/af_unix.c).
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, (LONGEST_MESSAGE + 32) // 2)


def _take(sock: socket.socket, size: int) -> list[socket.socket]:
    """Take bytes that are there. No call reads on behind descriptors, so it may take several."""
    sockets: list[socket.socket] = []
    while size > 0:
        data, came = recv_with(sock, size, socket.MSG_DONTWAIT)
        sockets += came
        size -= len(data) or size
    return sockets


def send_with(sock: socket.socket, data: bytes, fds: Sequence[int]) -> None:
    """Send `data` with descriptors, all or nothing, without waiting. Raises OSError."""
    sent = socket.send_fds(sock, [data], list(fds), socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
    if sent != len(data):
        raise BlockingIOError(errno.EAGAIN, "the application does not read")


def recv_with(sock: socket.socket, size: int, flags: int = 0) -> tuple[bytes, list[socket.socket]]:
    """Receive data and the sockets that came with it. Raises OSError, DescriptorLostError where one is missing."""
    room = socket.CMSG_SPACE(_INT * _DESCRIPTORS)
    data, ancillary, told, _ = sock.recvmsg(size, room, flags | socket.MSG_CMSG_CLOEXEC)
    found: list[socket.socket] = []
    count = 0
    for level, kind, raw in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            for fd in array.array("i", raw[: len(raw) - len(raw) % _INT]):
                count += 1
                try:
                    found.append(socket.socket(fileno=fd))
                except OSError:  # not a socket
                    with contextlib.suppress(OSError):
                        os.close(fd)
    for came in found:
        _let_close_at_once(came)
    if told & socket.MSG_CTRUNC and count < _DESCRIPTORS:
        for each in found:
            each.close()
        raise DescriptorLostError(data)
    return data, found


def _let_close_at_once(sock: socket.socket) -> None:
    """Closing a socket of TCP or AF_VSOCK may wait for its other end as long as its sender likes: not any more."""
    # Python knows options of AF_VSOCK as numbers only, whatever their level.
    alias = socket.socket(socket.AF_UNIX, fileno=sock.fileno())
    try:
        alias.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _NO_LINGER)
    finally:
        alias.detach()
