"""The bridge on a host that is a VM itself: what the way up says, the client is told. The way up is a stand-in."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import struct
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from vhostvsock.bridge.lines import recv_with, send_with
from vhostvsock.bridge.server import Bridge
from vhostvsock.registry.kernel import KernelModes
from vhostvsock.registry.store import Registry

OWN_CID = 77
Up = Callable[[socket.socket, int, int], Awaitable[socket.socket]]


def ask(directory: Path, up: Up, line: bytes) -> tuple[bytes, list[socket.socket]]:
    """The answer to a request, and the sockets that came with it."""

    async def talk() -> tuple[bytes, list[socket.socket]]:
        ours, theirs = socket.socketpair()
        with ours, Registry(str(directory), kernel=KernelModes("/nonexistent"), own_cid=lambda: OWN_CID) as registry:
            ours.settimeout(10)
            ours.sendall(line)
            await Bridge(registry, lambda: (), lambda: OWN_CID, up)._client(theirs)
            return recv_with(ours, 512)

    return asyncio.run(talk())


@pytest.mark.parametrize("number", [errno.ETIMEDOUT, errno.ECONNRESET, errno.ENODEV])
@pytest.mark.parametrize("cid", [2, 999])
def test_a_refusal_from_above_is_passed_on(short_dir: Path, number: int, cid: int) -> None:
    async def up(*_: object) -> socket.socket:
        raise OSError(number, "so it says")

    answer, _ = ask(short_dir / "run", up, b"CONNECT %d 5000\n" % cid)
    assert answer == f"ERR {errno.errorcode[number]} so it says\n".encode()


def test_a_connection_from_above_is_handed_over(short_dir: Path) -> None:
    asked: list[tuple[int, int]] = []

    async def up(_: socket.socket, cid: int, port: int) -> socket.socket:
        asked.append((cid, port))
        sock = socket.socket(socket.AF_INET)
        sock.bind(("127.0.0.1", 0))
        return sock

    answer, sockets = ask(short_dir / "run", up, b"CONNECT 2 5000\n")
    [sock] = sockets
    with sock:
        assert answer == b"OK %d\n" % sock.getsockname()[1]
    assert asked == [(2, 5000)]


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_VSOCK, socket.AF_UNIX])
def test_sockets_that_come_close_at_once_whatever_their_family(family: socket.AddressFamily) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs, socket.socket(family, socket.SOCK_STREAM) as sent:
        # Python itself sets no such option of AF_VSOCK.
        plain = socket.socket(socket.AF_UNIX, fileno=os.dup(sent.fileno()))
        with plain:
            plain.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 600))
            send_with(theirs, b"x", [sent.fileno()])
            data, [came] = recv_with(ours, 1)
            with came:
                assert (data, came.family) == (b"x", family)
            assert plain.getsockopt(socket.SOL_SOCKET, socket.SO_LINGER, 8) == struct.pack("ii", 0, 600)
