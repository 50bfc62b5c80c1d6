"""For host applications on asyncio: the same as client.py, as streams.

Before: an application. After: client.py, in a thread for the handshake, then plain asyncio streams.
Rules:  - a callback that fails is told to the loop's exception handler, and its connection is closed; others go on.
        - who is at the other end of an accepted connection is told by `peer(writer)`.
"""

from __future__ import annotations

import asyncio
import errno
import socket
import weakref
from collections.abc import Awaitable, Callable
from types import TracebackType

from vhostvsock import client
from vhostvsock.bridge.protocol import ANY, DEFAULT_BACKLOG

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]
Callback = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None] | None]

_peers: weakref.WeakKeyDictionary[asyncio.StreamWriter, tuple[int, int]] = weakref.WeakKeyDictionary()


def peer(writer: asyncio.StreamWriter) -> tuple[int, int]:
    """(CID, port) of the other end of a connection that a `Server` accepted. KeyError for any other."""
    return _peers[writer]


async def open_connection(
    cid: int,
    port: int,
    *,
    timeout: float | None = None,  # noqa: ASYNC109 - it bounds what a thread does
    runtime_dir: str | None = None,
) -> Streams:
    """A connection to `port` of `cid`, as `asyncio.open_connection` would give it. Errors as in `client.connect`."""
    thread = asyncio.ensure_future(
        asyncio.to_thread(client.connect, cid, port, timeout=timeout, runtime_dir=runtime_dir)
    )
    try:
        sock = await asyncio.shield(thread)
    except asyncio.CancelledError:
        thread.add_done_callback(_close_unwanted)  # the thread goes on to its end
        raise
    try:
        # Of any family: the way up to a hypervisor is an AF_VSOCK socket.
        return await asyncio.open_connection(sock=sock)
    except BaseException:
        sock.close()
        raise


def _close_unwanted(thread: asyncio.Future[socket.socket]) -> None:
    if not thread.cancelled() and thread.exception() is None:
        thread.result().close()


class Server:
    """A port with a callback for each connection. Made by `start_server`; used like asyncio's."""

    def __init__(self, inner: client.Server, callback: Callback) -> None:
        self._inner = inner
        self._callback = callback
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
            self._lost = error
            self.close()
            return
        task = asyncio.create_task(self._serve(sock, other))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, sock: socket.socket, other: tuple[int, int]) -> None:
        try:
            reader, writer = await asyncio.open_unix_connection(sock=sock)
        except BaseException:
            sock.close()
            raise
        _peers[writer] = other
        try:
            result = self._callback(reader, writer)
            if result is not None:
                await result
        except BaseException as error:
            writer.close()
            if not isinstance(error, Exception):
                raise
            if not isinstance(error, ConnectionError):  # the other end is gone: nobody's fault
                message = f"the callback for a connection from CID {other[0]}, port {other[1]} failed"
                context = {"message": message, "exception": error, "transport": writer.transport}
                asyncio.get_running_loop().call_exception_handler(context)

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

    async def __aenter__(self) -> Server:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
        await self.wait_closed()


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
