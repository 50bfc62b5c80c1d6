"""Applications that listen through the bridge, and those that talk nonsense to it: sockets in this process."""

from __future__ import annotations

import asyncio
import errno
import os
import resource
import socket
import time

import pytest

from vhostvsock.bridge import listeners
from vhostvsock.bridge.caller import Caller
from vhostvsock.bridge.lines import read_line, recv_with, send_with
from vhostvsock.bridge.listeners import MAX_BACKLOG, BridgeListener
from vhostvsock.registry.errors import Refused


def pair() -> tuple[socket.socket, socket.socket]:
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    return ours, theirs


@pytest.mark.parametrize(
    "said",
    [
        b"TAKE",
        b"TAKEN\nTAK",
        b"",
        b"NONSENSE\n",
        b"BACKLOG\n",
        b"BACKLOG x\n",
        b"BACKLOG 99999999999\n",
        b"BACKLOG 1 x=1\n",
        b"x" * 1000,
    ],
)
def test_a_listener_that_leaves_in_the_middle_of_a_line_is_gone(said: bytes) -> None:
    ours, theirs = pair()
    with ours:
        with theirs:
            theirs.sendall(said)
        asyncio.run(asyncio.wait_for(BridgeListener(ours, 1).until_gone(), 5))


def test_half_a_line_of_a_listener_costs_no_time_and_taken_is_counted() -> None:
    ours, theirs = pair()

    async def follow() -> None:
        served = BridgeListener(ours, 10)
        served.waiting = 5
        task = asyncio.create_task(served.until_gone())
        theirs.sendall(b"TAKEN\nTAKEN\nTAK")
        began = time.process_time()
        await asyncio.sleep(0.3)
        assert time.process_time() - began < 0.02
        assert served.waiting == 3
        theirs.sendall(b"EN\n")
        await asyncio.sleep(0.05)
        assert served.waiting == 2
        assert not task.done()
        task.cancel()

    with ours, theirs:
        asyncio.run(follow())


@pytest.mark.parametrize(("said", "line"), [(b"CONN", b""), (b"", b""), (b"LIST\n", b"LIST"), (b"LIST\nmore", b"LIST")])
def test_a_client_that_left_is_not_waited_for(said: bytes, line: bytes) -> None:
    ours, theirs = pair()
    with ours:
        with theirs:
            theirs.sendall(said)
        assert asyncio.run(asyncio.wait_for(read_line(ours, 64), 1)) == (line, [])


def test_descriptors_that_are_no_sockets_are_closed() -> None:
    ours, theirs = pair()
    with ours, theirs, open(os.devnull, "rb") as file:
        before = len(os.listdir("/proc/self/fd"))
        send_with(theirs, b"x", [file.fileno(), file.fileno()])
        assert recv_with(ours, 1) == (b"x", [])
        assert len(os.listdir("/proc/self/fd")) == before


def test_loopback_is_told_ok_where_there_is_room_and_reset_where_not() -> None:
    ours, theirs = pair()
    with ours, theirs:
        served = BridgeListener(ours, 0)
        for room in (True, False):
            client, accepted = socket.socketpair()
            accepted.setblocking(False)
            with client, accepted:
                if room:
                    served.offer(Caller(accepted), 1, 4321)
                    assert client.recv(100) == b"OK 4321\n"
                    assert accepted.getblocking()
                else:
                    with pytest.raises(Refused) as refused:
                        served.offer(Caller(accepted), 1, 4321)
                    assert refused.value.errno == errno.ECONNRESET
                    with pytest.raises(BlockingIOError):
                        client.recv(100, socket.MSG_DONTWAIT)


def test_a_port_that_is_only_bound_refuses_until_a_backlog_is_said_and_obeys_another_one() -> None:
    ours, theirs = pair()

    async def follow() -> None:
        served = BridgeListener(ours, None)
        task = asyncio.create_task(served.until_gone())
        with pytest.raises(Refused, match="ECONNRESET"):
            served.offer(Caller(connection), 42, 1024)
        for backlog in (0, 1):
            theirs.sendall(b"BACKLOG %d\n" % backlog)
            await asyncio.sleep(0.05)
            served.offer(Caller(connection), 42, 1024)
            with pytest.raises(Refused, match="ECONNRESET"):
                served.offer(Caller(connection), 42, 1024)
        assert not task.done()
        task.cancel()

    one, connection = socket.socketpair()
    with ours, theirs, one, connection:
        asyncio.run(follow())


def test_a_backlog_changes_the_buffer_where_it_says_one() -> None:
    ours, theirs = pair()

    async def follow() -> list[int]:
        served = BridgeListener(ours, 5, 4096)
        found = [served.buffer]
        task = asyncio.create_task(served.until_gone())
        # TAKEN, said behind it, shows that it was heard.
        for line in (b"BACKLOG 5\n", b"BACKLOG 5 buffer=1000\n", b"BACKLOG 5 buffer=0\n"):
            served.waiting = 1
            theirs.sendall(line + b"TAKEN\n")
            while served.waiting:
                await asyncio.sleep(0)
            found.append(served.buffer)
        task.cancel()
        return found

    with ours, theirs:
        assert asyncio.run(asyncio.wait_for(follow(), 5)) == [4096, 4096, 1000, 0]


def test_a_listener_that_is_gone_resets_and_nobody_is_told_ok() -> None:
    ours, theirs = pair()
    client, accepted = socket.socketpair()
    with ours, client, accepted:
        theirs.close()
        with pytest.raises(Refused, match="ECONNRESET"):
            BridgeListener(ours, 5).offer(Caller(accepted), 1, 4321)
        with pytest.raises(BlockingIOError):
            client.recv(100, socket.MSG_DONTWAIT)


def test_the_largest_backlog_is_true(monkeypatch: pytest.MonkeyPatch) -> None:
    # The most that net.core.wmem_max allows where nobody changed it.
    monkeypatch.setattr(listeners, "_SEND_BUFFER", 212_992)
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < MAX_BACKLOG + 100 and os.geteuid() != 0:
        pytest.skip("as many descriptors may not be under way")
    ours, theirs = pair()
    client, accepted = socket.socketpair()
    with ours, theirs, client, accepted:
        served = BridgeListener(ours, 1 << 32)
        for _ in range(MAX_BACKLOG + 1):
            served.offer(Caller(accepted), 4294967294, 4294967294)
        with pytest.raises(Refused, match="too many connections wait"):
            served.offer(Caller(accepted), 42, 1024)
