"""For host applications on asyncio: the same as client.py, as streams or as plain sockets.

Before: an application. After: client.py, in a thread for the handshake, then plain asyncio.
Rules:  - a callback that fails is told to the loop's exception handler, and its connection is closed; others go on.
        - who is at the other end of an accepted connection is told by `peer(writer)`.
"""

from __future__ import annotations

import asyncio
import errno
import socket
import weakref
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import Self

from vhostvsock import client
from vhostvsock.bridge.protocol import ANY, DEFAULT_BACKLOG

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]
Callback = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None] | None]
SocketCallback = Callable[[socket.socket, tuple[int, int]], Awaitable[None] | None]

# What a process can run out of, and have again.
_NO_ROOM = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
_PAUSE_SECONDS = 1.0

_peers: weakref.WeakKeyDictionary[asyncio.StreamWriter, tuple[int, int]] = weakref.WeakKeyDictionary()


def peer(writer: asyncio.StreamWriter) -> tuple[int, int]:
    """(CID, port) of the other end of a connection that a `Server` accepted. KeyError for any other."""
    return _peers[writer]


async def connect(
    cid: int,
    port: int,
    *,
    type: socket.SocketKind = socket.SOCK_STREAM,  # noqa: A002 - as socket.socket has it
    timeout: float | None = None,  # noqa: ASYNC109 - it bounds what a thread does
    runtime_dir: str | None = None,
) -> socket.socket:
    """A socket connected to `port` of `cid` that does not block. Errors as in `client.connect`.

    With SOCK_SEQPACKET, for which asyncio has no streams, each `loop.sock_sendall` sends one message and each
    `loop.sock_recv` receives one.
    """
    thread = asyncio.ensure_future(
        asyncio.to_thread(client.connect, cid, port, type=type, timeout=timeout, runtime_dir=runtime_dir)
    )
    try:
        sock = await asyncio.shield(thread)
    except asyncio.CancelledError:
        thread.add_done_callback(_close_unwanted)  # the thread goes on to its end
        raise
    sock.setblocking(False)
    return sock


async def open_connection(
    cid: int,
    port: int,
    *,
    timeout: float | None = None,  # noqa: ASYNC109 - as above
    runtime_dir: str | None = None,
) -> Streams:
    """A connection to `port` of `cid`, as `asyncio.open_connection` would give it. Errors as in `client.connect`."""
    sock = await connect(cid, port, timeout=timeout, runtime_dir=runtime_dir)
    try:
        # Of any family: the way up to a hypervisor is an AF_VSOCK socket.
        return await asyncio.open_connection(sock=sock)
    except BaseException:
        sock.close()
        raise


def _close_unwanted(thread: asyncio.Future[socket.socket]) -> None:
    if not thread.cancelled() and thread.exception() is None:
        thread.result().close()


class _Server(ABC):
    """A port with a conversation for each connection, until it is closed; used like asyncio's."""

    def __init__(self, inner: client.Server) -> None:
        self._inner = inner
        self._tasks: set[asyncio.Task[None]] = set()
        self._gone = asyncio.Event()
        self._lost: OSError | None = None
        self.port = inner.port
        asyncio.get_running_loop().add_reader(inner.fileno(), self._accept)

    def _accept(self) -> None:
        try:
            # A line and its descriptor come in one message: what is readable is there whole.
            sock, other = self._inner.accept()
        except OSError as error:
            if error.errno in _NO_ROOM:
                self._pause(error)
                return
            self._lost = error
            self.close()
            return
        task = asyncio.create_task(self._serve(sock, other))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _pause(self, error: OSError) -> None:
        """As asyncio's servers do: what waits is accepted once there is room."""
        loop = asyncio.get_running_loop()
        message = f"a connection to port {self.port} waits: there is no room for it"
        loop.call_exception_handler({"message": message, "exception": error})
        loop.remove_reader(self._inner.fileno())
        loop.call_later(_PAUSE_SECONDS, self._resume)

    def _resume(self) -> None:
        if not self._gone.is_set():
            asyncio.get_running_loop().add_reader(self._inner.fileno(), self._accept)

    @abstractmethod
    async def _serve(self, sock: socket.socket, other: tuple[int, int]) -> None:
        """One conversation."""

    async def _converse(
        self, result: Callable[[], Awaitable[None] | None], other: tuple[int, int], close: Callable[[], None]
    ) -> None:
        """Call back; what fails is told, and the connection closed."""
        try:
            awaitable = result()
            if awaitable is not None:
                await awaitable
        except BaseException as error:
            close()
            if not isinstance(error, Exception):
                raise
            if not isinstance(error, ConnectionError):  # the other end is gone: nobody's fault
                message = f"the callback for a connection from CID {other[0]}, port {other[1]} failed"
                asyncio.get_running_loop().call_exception_handler({"message": message, "exception": error})

    def close(self) -> None:
        """Listen no more; conversations that began go on."""
        if not self._gone.is_set():
            asyncio.get_running_loop().remove_reader(self._inner.fileno())
            self._inner.close()
            self._gone.set()

    async def wait_closed(self) -> None:
        """Until the server is closed, by us or because its daemon is gone."""
        await self._gone.wait()

    async def serve_forever(self) -> None:
        """Until cancelled; the server is closed then. Raises ConnectionResetError when the daemon is gone."""
        try:
            await self.wait_closed()
            if self._lost is not None:
                raise ConnectionResetError(errno.ECONNRESET, self._lost.strerror or str(self._lost)) from self._lost
        finally:
            self.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
        await self.wait_closed()


class Server(_Server):
    """A port with a callback for each connection, as streams. Made by `start_server`."""

    def __init__(self, inner: client.Server, callback: Callback) -> None:
        super().__init__(inner)
        self._callback = callback

    async def _serve(self, sock: socket.socket, other: tuple[int, int]) -> None:
        try:
            reader, writer = await asyncio.open_unix_connection(sock=sock)
        except BaseException:
            sock.close()
            raise
        _peers[writer] = other
        await self._converse(lambda: self._callback(reader, writer), other, writer.close)


class SocketServer(_Server):
    """A port with a callback for each connection, as a socket. Made by `start_socket_server`."""

    def __init__(self, inner: client.Server, callback: SocketCallback) -> None:
        super().__init__(inner)
        self._callback = callback

    async def _serve(self, sock: socket.socket, other: tuple[int, int]) -> None:
        sock.setblocking(False)
        await self._converse(lambda: self._callback(sock, other), other, sock.close)


async def start_server(
    callback: Callback,
    port: int = ANY,
    *,
    cid: int = ANY,
    backlog: int = DEFAULT_BACKLOG,
    runtime_dir: str | None = None,
) -> Server:
    """Listen on `port` and call `callback(reader, writer)` for each connection; `peer(writer)` says whose it is.

    Errors as in `client.create_server`.
    """
    inner = await asyncio.to_thread(client.create_server, port, cid=cid, backlog=backlog, runtime_dir=runtime_dir)
    return Server(inner, callback)


async def start_socket_server(
    callback: SocketCallback,
    port: int = ANY,
    *,
    type: socket.SocketKind = socket.SOCK_STREAM,  # noqa: A002 - as socket.socket has it
    cid: int = ANY,
    backlog: int = DEFAULT_BACKLOG,
    runtime_dir: str | None = None,
) -> SocketServer:
    """Listen on `port` and call `callback(sock, (cid, port))` for each connection, which is the callback's to close.

    The sockets do not block, and are used as those of `connect`. Errors as in `client.create_server`.
    """
    inner = await asyncio.to_thread(
        client.create_server, port, type=type, cid=cid, backlog=backlog, runtime_dir=runtime_dir
    )
    return SocketServer(inner, callback)
