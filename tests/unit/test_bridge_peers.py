"""What a client is told when another daemon dies, hangs or fails, and when its request comes to nothing."""

from __future__ import annotations

import asyncio
import errno
import json
import socket
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from vhostvsock.bridge import peers, server
from vhostvsock.bridge.caller import Caller
from vhostvsock.bridge.listeners import BridgeListener
from vhostvsock.bridge.protocol import Wish
from vhostvsock.config import Access
from vhostvsock.errors import NativeError
from vhostvsock.registry.rules import Mode, NetnsId
from vhostvsock.registry.store import Registry
from vhostvsock.sockets import ListeningSocket
from vhostvsock.vm import ServedVm

WORDS = st.one_of(
    st.integers(0, 1 << 40).map(str),
    st.text(max_size=5),
    st.sampled_from(["5", "4294967295", "4294967296", "\u00b2", "buffer=5", "from=4294967296"]),
)
GONE = [(["CONNECT", "x", "5", "0"], errno.ENODEV), (["ACCEPT", "x", "1", "5"], errno.ECONNRESET)]


def hand_over(path: Path, words: list[str]) -> int | None:
    """The errno of handing something over."""
    one, two = socket.socketpair()
    with one, two, pytest.raises(OSError, match="gone") as failed:
        asyncio.run(peers.hand_over(str(path), words, Caller(one)))
    return failed.value.errno


@pytest.mark.parametrize(("words", "number"), GONE)
def test_a_daemon_that_is_gone_is_a_vm_or_a_listener_that_is_gone(
    short_dir: Path, words: list[str], number: int
) -> None:
    path = short_dir / "p"
    assert hand_over(path, words) == number
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as dead:
        dead.bind(str(path))
    assert hand_over(path, words) == number


@pytest.mark.parametrize(("words", "number"), GONE)
def test_a_daemon_that_ends_without_an_answer_is_one_that_is_gone(
    short_dir: Path, words: list[str], number: int
) -> None:
    async def main() -> int | None:
        loop = asyncio.get_running_loop()
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listening:
            listening.setblocking(False)
            listening.bind(str(short_dir / "p"))
            listening.listen()

            async def dying() -> None:
                (await loop.sock_accept(listening))[0].close()

            task = asyncio.create_task(dying())
            one, two = socket.socketpair()
            with one, two, pytest.raises(OSError, match="gone") as failed:
                await peers.hand_over(str(short_dir / "p"), words, Caller(one))
            await task
            return failed.value.errno

    assert asyncio.run(main()) == number


def test_a_device_that_refuses_is_an_answer_too(short_dir: Path) -> None:
    def fail(*_: object) -> None:
        raise NativeError("no room", code=-3)

    async def main() -> int | None:
        with ListeningSocket(str(short_dir / "p"), Access(), kind=socket.SOCK_SEQPACKET) as listening:
            task = asyncio.create_task(peers.serve(listening, fail))
            one, two = socket.socketpair()
            with one, two, pytest.raises(OSError, match="no room") as failed:
                await peers.hand_over(str(short_dir / "p"), ["CONNECT", "x", "5", "0"], Caller(one))
            task.cancel()
            return failed.value.errno

    assert asyncio.run(main()) == errno.EIO


def bridge(find_vm: Callable[..., object], vms: list[object]) -> server.Bridge:
    modes = SimpleNamespace(
        admit=lambda _: NetnsId(1), state=lambda _: SimpleNamespace(mode=Mode.GLOBAL), mode=lambda _: Mode.GLOBAL
    )
    registry = SimpleNamespace(modes=modes, find_vm=find_vm)
    return server.Bridge(
        cast("Registry", registry), lambda: cast("list[ServedVm]", vms), lambda: None, lambda *_: socket.socket()
    )


@given(st.tuples(st.sampled_from(["CONNECT", "ACCEPT"]), st.just("x")), st.lists(WORDS, max_size=4))
@example(("CONNECT", "x"), ["4294967296", "0"])
def test_what_another_daemon_says_is_done_within_bounds_or_answered(head: tuple[str, str], rest: list[str]) -> None:
    done: list[int] = []

    def connect(_: object, port: int, wish: Wish) -> None:
        done.extend((port, wish.timeout_ms, wish.buffer, wish.source_port))

    one = bridge(lambda *_: None, [SimpleNamespace(claim=SimpleNamespace(id="x"), connect=connect)])
    listener = SimpleNamespace(offer=lambda _, *numbers: done.extend(numbers), buffer=0)
    one._listeners["x"] = cast("BridgeListener", listener)
    try:
        one.take_over([*head, *rest], cast("Caller", None))
    except OSError as error:
        assert error.errno == errno.EPROTO
        assert done == []
    else:
        assert done
        assert all(0 <= number < 1 << 32 for number in done)


def served(bridge: server.Bridge, line: bytes, read: Callable[[socket.socket], bytes]) -> bytes:
    """What a client reads after it said `line`."""

    async def main() -> bytes:
        client, accepted = socket.socketpair()
        with client:
            client.sendall(line)
            task = asyncio.create_task(bridge._client(accepted))
            data = await asyncio.to_thread(read, client)
            await task
            return data

    return asyncio.run(main())


def everything(sock: socket.socket) -> bytes:
    sock.settimeout(10)
    return b"".join(iter(lambda: sock.recv(65536), b""))


def test_a_timeout_on_the_way_is_told_to_the_client() -> None:
    def late(*_: object) -> object:
        raise TimeoutError(errno.ETIMEDOUT, "the daemon that serves it does not answer")

    assert served(bridge(late, []), b"CONNECT 42 5\n", everything).startswith(b"ERR ETIMEDOUT the daemon")


def test_a_long_list_comes_whole_to_a_client_that_takes_its_time() -> None:
    row: dict[str, Any] = {"name": "x" * 1000}
    vms = [SimpleNamespace(row=lambda *_, **__: row)] * 2000
    head, *rows = served(bridge(lambda *_: None, list(vms)), b"LIST\n", everything).splitlines()
    assert head == b"OK 2000"
    assert [json.loads(line) for line in rows] == [row] * 2000
