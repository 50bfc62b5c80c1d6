"""Servers on asyncio: callbacks that fail, daemons that go, and who is at the other end."""

from __future__ import annotations

import asyncio
import errno
import socket
import time
from pathlib import Path
from typing import Any

import pytest

from vhostvsock import aio, client
from vhostvsock.bridge.lines import send_with


def connect(daemon: socket.socket, cid: int, port: int) -> socket.socket:
    """What a daemon does for a connection; its other end."""
    one, two = socket.socketpair()
    with two:
        send_with(daemon, b"ACCEPT %d %d\n" % (cid, port), [two.fileno()])
    one.settimeout(10)
    return one


@pytest.mark.parametrize("coroutine", [True, False])
def test_a_callback_that_fails_is_told_and_its_connection_closed(coroutine: bool) -> None:
    told: list[dict[str, Any]] = []

    async def fails_later(*_: object) -> None:
        raise ValueError("ours")

    def fails(*_: object) -> None:
        raise ValueError("ours")

    async def main() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, context: told.append(context))
        daemon, control = socket.socketpair()
        async with aio.Server(client.Server(control, 2, 5000), fails_later if coroutine else fails):
            with daemon, connect(daemon, 42, 1024) as guest:
                assert await asyncio.to_thread(guest.recv, 1) == b""

    asyncio.run(main())
    assert [str(context["exception"]) for context in told] == ["ours"]
    assert "CID 42, port 1024" in told[0]["message"]


def test_the_callback_knows_who_connected() -> None:
    async def serve(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(repr(aio.peer(writer)).encode())
        writer.close()

    async def main() -> None:
        daemon, control = socket.socketpair()
        async with aio.Server(client.Server(control, 2, 5000), serve):
            with daemon, connect(daemon, 42, 1024) as guest:
                assert await asyncio.to_thread(guest.recv, 100) == b"(42, 1024)"

    asyncio.run(main())


def test_serving_for_ever_ends_with_an_error_when_the_daemon_is_gone() -> None:
    async def main() -> None:
        daemon, control = socket.socketpair()
        async with aio.Server(client.Server(control, 2, 5000), lambda *_: None) as server:
            daemon.close()
            with pytest.raises(ConnectionResetError, match="daemon"):
                await asyncio.wait_for(server.serve_forever(), 10)

    asyncio.run(main())


def test_opening_takes_a_timeout(short_dir: Path) -> None:
    (short_dir / "bridge").mkdir()
    with socket.socket(socket.AF_UNIX) as silent:
        silent.bind(str(short_dir / "bridge" / "a.sock"))
        silent.listen()
        began = time.monotonic()
        with pytest.raises(TimeoutError) as failed:
            asyncio.run(aio.open_connection(42, 5, timeout=0.2, runtime_dir=str(short_dir)))
        assert time.monotonic() - began < 1
        assert failed.value.errno == errno.ETIMEDOUT


def test_message_sockets_are_served_as_sockets_and_a_callback_that_fails_closes_its_own() -> None:
    told: list[dict[str, Any]] = []

    async def serve(sock: socket.socket, peer: tuple[int, int]) -> None:
        loop = asyncio.get_running_loop()
        while message := await loop.sock_recv(sock, 100):
            await loop.sock_sendall(sock, repr((peer, message)).encode())
        raise ValueError("ours")

    async def main() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, context: told.append(context))
        daemon, control = socket.socketpair(type=socket.SOCK_SEQPACKET)
        async with aio.SocketServer(client.Server(control, 2, 5000), serve):
            guest, theirs = socket.socketpair(type=socket.SOCK_SEQPACKET)
            guest.settimeout(10)
            with daemon, guest:
                with theirs:
                    send_with(daemon, b"ACCEPT 42 1024\n", [theirs.fileno()])
                guest.send(b"one")
                guest.send(b"two")
                for message in (b"one", b"two"):
                    assert await asyncio.to_thread(guest.recv, 100) == repr(((42, 1024), message)).encode()
                guest.shutdown(socket.SHUT_WR)
                assert await asyncio.to_thread(guest.recv, 100) == b""

    asyncio.run(main())
    assert [str(context["exception"]) for context in told] == ["ours"]
