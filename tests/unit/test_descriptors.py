"""A process that can have no more descriptors: what comes with one is refused or waits, and never taken for less."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import resource
import socket
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from vhostvsock import aio, client
from vhostvsock.bridge import peers
from vhostvsock.bridge.caller import Caller
from vhostvsock.bridge.lines import DescriptorLostError, read_line, recv_with, send_with
from vhostvsock.bridge.protocol import TAKEN
from vhostvsock.config import Access
from vhostvsock.exec.address import Address
from vhostvsock.exec.listening import BoundPort
from vhostvsock.sockets import ListeningSocket

KINDS = pytest.mark.parametrize("kind", [socket.SOCK_STREAM, socket.SOCK_SEQPACKET])


@contextlib.contextmanager
def room_for(count: int) -> Iterator[None]:
    """So many descriptors, and no more, can be made within."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    free = os.dup(0)
    os.close(free)
    taken = [os.dup(0) for _ in range(count)]
    for each in taken:
        os.close(each)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max([free, *taken[-1:]]) + (1 if count else 0), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@KINDS
@pytest.mark.parametrize("room", [0, 1])
def test_a_request_whose_descriptor_is_lost_is_not_taken_for_one_without(kind: socket.SocketKind, room: int) -> None:
    ours, theirs = socket.socketpair(type=kind)

    async def read() -> None:
        ours.setblocking(False)
        send_with(theirs, b"CONNECT 42 5\n", [theirs.fileno()] * (room + 1))
        with room_for(room), pytest.raises(DescriptorLostError) as failed:
            await read_line(ours, 96)
        assert failed.value.errno == errno.EMFILE

    with ours, theirs:
        before = len(os.listdir("/proc/self/fd"))
        asyncio.run(read())
        assert len(os.listdir("/proc/self/fd")) == before


def test_more_descriptors_than_anything_of_ours_has_are_no_lack_of_room() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        send_with(theirs, b"x", [theirs.fileno()] * 9)
        data, came = recv_with(ours, 1)
        assert (data, len(came)) == (b"x", 4)
        for each in came:
            each.close()


@KINDS
def test_a_connection_waits_until_there_is_room_for_it(kind: socket.SocketKind) -> None:
    daemon, control = socket.socketpair(type=kind)
    with daemon, client.Server(control, 2, 5000) as server:
        send_with(daemon, b"ACCEPT 42 1024\n", [daemon.fileno()])
        with room_for(0), pytest.raises(OSError, match="Too many open files"):
            server.accept()
        taken, peer = server.accept()
        taken.close()
        assert peer == (42, 1024)
        assert daemon.recv(100) == TAKEN


@KINDS
def test_a_connection_that_is_lost_waits_no_more_and_the_next_one_comes(
    kind: socket.SocketKind, monkeypatch: pytest.MonkeyPatch
) -> None:
    daemon, control = socket.socketpair(type=kind)
    with daemon, client.Server(control, 2, 5000) as server:
        send_with(daemon, b"ACCEPT 42 1024\n", [daemon.fileno()])
        # As if another thread took what there was room for.
        monkeypatch.setattr(client, "os", SimpleNamespace(dup=lambda _: -1, close=lambda _: None))
        with room_for(0), pytest.raises(DescriptorLostError):
            server.accept()
        monkeypatch.undo()
        send_with(daemon, b"ACCEPT 42 1025\n", [daemon.fileno()])
        taken, peer = server.accept()
        taken.close()
        assert peer == (42, 1025)
        assert [daemon.recv(len(TAKEN), socket.MSG_DONTWAIT) for _ in range(2)] == [TAKEN, TAKEN]


def test_a_server_on_asyncio_outlives_a_time_without_descriptors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(aio, "_PAUSE_SECONDS", 0.05)
    told: list[dict[str, Any]] = []

    async def main() -> None:
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda _, context: told.append(context))
        daemon, control = socket.socketpair()
        one, two = socket.socketpair()
        with daemon, one, two:
            one.setblocking(False)
            async with aio.SocketServer(client.Server(control, 2, 5000), lambda sock, _: sock.close()):
                send_with(daemon, b"ACCEPT 42 1024\n", [two.fileno()])
                two.close()
                with room_for(0):
                    while len(told) < 2:
                        await asyncio.sleep(0.01)
                assert await asyncio.wait_for(loop.sock_recv(one, 1), 10) == b""

    asyncio.run(main())
    assert {context["exception"].errno for context in told} == {errno.EMFILE}


# What is there without: the socket on which it is handed over, at both ends. With one more, the answer's is missing.
@pytest.mark.parametrize("room", [2, 3])
def test_what_another_daemon_hands_over_is_taken_whole_or_refused_with_the_reason(short_dir: Path, room: int) -> None:
    got: list[Caller] = []

    async def main() -> int | None:
        with ListeningSocket(str(short_dir / "p"), Access(), kind=socket.SOCK_SEQPACKET) as listening:
            task = asyncio.create_task(peers.serve(listening, lambda _, caller: len(got.append(caller) or "")))
            one, two = socket.socketpair()
            await asyncio.sleep(0)
            with one, two, room_for(room), pytest.raises(OSError, match="no room") as failed:
                await peers.hand_over(str(short_dir / "p"), ["CONNECT", "x", "5", "0"], Caller(one, two))
            task.cancel()
            return failed.value.errno

    assert asyncio.run(main()) == errno.EMFILE
    assert got == []


def test_a_port_under_exec_stays_when_a_connection_to_it_is_lost() -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        daemon, control = socket.socketpair()
        held, program_end = socket.socketpair()
        with daemon, held, program_end:
            for each in (daemon, control, held):
                each.setblocking(False)
            port = BoundPort(control, held, Address(2, 5000))
            await asyncio.sleep(0)
            with room_for(0):
                send_with(daemon, b"ACCEPT 42 1024\n", [daemon.fileno()])
                assert await asyncio.wait_for(loop.sock_recv(daemon, 100), 10) == TAKEN
            send_with(daemon, b"ACCEPT 42 1025\n", [daemon.fileno()])
            while not port.has_waiting():
                await asyncio.sleep(0.01)
            connection, peer = port.take(program_end)
            connection.close()
            assert peer == Address(42, 1025)
            daemon.close()
            await port.close()

    asyncio.run(asyncio.wait_for(main(), 20))
