"""For host applications on asyncio: the same as client.py, as streams.

Before: an application. After: client.py, in a thread for the handshake, then plain asyncio streams.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Awaitable, Callable
from types import TracebackType

from vhostvsock import client
from vhostvsock.bridge.protocol import ANY, DEFAULT_BACKLOG

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]
Callback = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None] | None]


async def open_connection(cid: int, port: int, *, runtime_dir: str | None = None) -> Streams:
    """A connection to `port` of `cid`, as `asyncio.open_connection` would give it. Errors as in `client.connect`."""
    sock = await asyncio.to_thread(client.connect, cid, port, runtime_dir=runtime_dir)
    try:
        # Of any family: the way up to a hypervisor is an AF_VSOCK socket.
        return await asyncio.open_connection(sock=sock)
    except BaseException:
        sock.close()
        raise


class Server:
    """A port with a callback for each connection. Made by `start_server`; used like asyncio's."""

    def __init__(self, inner: client.Server, callback: Callback) -> None:
        self._inner = inner
        self._callback = callback
        self._tasks: set[asyncio.Task[None]] = set()
        self._gone = asyncio.Event()
        self.port = inner.port
        asyncio.get_running_loop().add_reader(inner.fileno(), self._accept)

    def _accept(self) -> None:
        try:
            # A line and its descriptor come in one message: what is readable is there whole.
            sock, peer = self._inner.accept()
        except OSError:
            self.close()
            return
        task = asyncio.create_task(self._serve(sock, peer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, sock: socket.socket, _peer: tuple[int, int]) -> None:
        reader, writer = await asyncio.open_unix_connection(sock=sock)
        with contextlib.suppress(ConnectionError):
            result = self._callback(reader, writer)
            if result is not None:
                await result

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
        """The same under asyncio's name; when cancelled, the server is closed."""
        try:
            await self.wait_closed()
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
    """Listen on `port` and call `callback(reader, writer)` for each connection. Errors as in `client.create_server`."""
    inner = await asyncio.to_thread(client.create_server, port, cid=cid, backlog=backlog, runtime_dir=runtime_dir)
    return Server(inner, callback)
