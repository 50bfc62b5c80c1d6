"""What the supervisor of `vhostvsock exec` keeps of programs' sockets, and what it takes of their descriptors."""

from __future__ import annotations

import asyncio
import errno
import os
import socket

import pytest

from vhostvsock.exec.address import Address
from vhostvsock.exec.connecting import Attempt
from vhostvsock.exec.process import Thread
from vhostvsock.exec.sockets import SocketTable, VsockSocket


def made(table: SocketTable) -> tuple[socket.socket, VsockSocket]:
    """A program's socket, and what is known of it."""
    program_end, held = socket.socketpair()
    known = VsockSocket(socket.SOCK_STREAM, held)
    table.add(program_end, known)
    return program_end, known


def test_connected_sockets_that_were_closed_are_collected() -> None:
    table = SocketTable(lambda _: None)
    for _ in range(3000):
        program_end, known = made(table)
        table.let_go(known)
        program_end.close()
    assert len(table) < 2000
    table.close()


def test_a_connect_whose_socket_is_closed_at_once_ends_in_silence() -> None:
    async def body() -> int:
        table = SocketTable(lambda _: None)
        program_end, known = made(table)
        attempt = Attempt(table, known, Address(42, 1))
        program_end.close()
        table.look()
        result = await attempt.result
        table.close()
        return result

    assert asyncio.run(body()) == errno.EBADF


def test_a_socket_is_not_forgotten_because_another_took_its_number() -> None:
    closed: list[VsockSocket] = []
    table = SocketTable(closed.append)
    program_end, known = made(table)
    other, _ = made(table)
    with program_end, other:
        assert table.is_same(program_end, known)
        assert not table.is_same(other, known)
        assert table.find(known.inode) is known
        # With the same inode it is a successor.
        known.cookie = b"of before"
        assert not table.is_same(program_end, known)
        assert table.find(known.inode) is None
        assert closed == [known]
    table.close()


def test_what_is_no_socket_is_not_kept() -> None:
    with open(os.devnull, "rb") as file:
        before = len(os.listdir("/proc/self/fd"))
        with pytest.raises(OSError, match="Socket operation on non-socket"):
            Thread(os.getpid()).take(file.fileno())
        assert len(os.listdir("/proc/self/fd")) == before
