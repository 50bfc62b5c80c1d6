"""What applications may wish for at the bridge, a port of their own and a smaller buffer, and what guests see of it."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from netns.serving import LIMIT, Lines, World
from netns.test_users import as_nobody

from vhostvsock.bridge.finding import read_answer
from vhostvsock.bridge.protocol import parse_answer
from vhostvsock.registry.netns import open_namespace

TELLING = "telling:1234"
WINDOW = 256 * 1024


def bridge_of(world: World, number: int = 0) -> Path:
    """Of the daemon with this number, by the names of their sockets."""
    return sorted((world.runtime_dir / "bridge").glob("*.sock"))[number]


def answer(sock: socket.socket) -> int:
    """The number in the next answer; the OSError that it names."""
    return parse_answer(read_answer(sock, []))


@contextlib.contextmanager
def said(bridge: Path, line: str, namespace: str | None = None) -> Iterator[tuple[socket.socket, int]]:
    """A client, and the number that it was answered. Raises the OSError that it was told.

    It ends as a client that waits for the end: its port is free then, and its connection over.
    """

    def connect() -> socket.socket:
        sock = socket.socket(socket.AF_UNIX)
        sock.settimeout(LIMIT)
        sock.connect(str(bridge))
        return sock

    if namespace is None:
        made = connect()
    else:
        with open_namespace(f"/run/netns/{namespace}") as there:
            made = there.run(connect)
    with made as sock:
        sock.sendall(line.encode() + b"\n")
        yield sock, answer(sock)
        sock.shutdown(socket.SHUT_WR)
        while sock.recv(65536):
            pass


def seen(sock: socket.socket) -> list[int]:
    """What the guest says of a connection: the port of its other end, and the window."""
    with sock.makefile("rb") as stream:
        return [int(word) for word in stream.readline().split()]


def refused(bridge: Path, line: str, namespace: str | None = None) -> str:
    """The refusal, as an errno's name and a sentence."""
    with pytest.raises(OSError, match=r"\[Errno") as failed, said(bridge, line, namespace):
        pass
    return str(failed.value)


@pytest.fixture
def bridge(served: World) -> Path:
    """Of a daemon with a guest of CID 42."""
    served.daemon({"a": 42})
    assert served.guest("a", None, TELLING).next() == "attached 42"
    return bridge_of(served)


@pytest.mark.parametrize("reserve", ["BIND * 5555", "BIND 2 5555", "BIND 1 5555", "LISTEN * 5555"])
def test_the_guest_sees_the_port_that_its_user_holds(bridge: Path, reserve: str) -> None:
    with (
        said(bridge, reserve) as (_, held),
        said(bridge, "CONNECT 42 1234 from=5555") as (sock, port),
    ):
        assert (held, port) == (5555, 5555)
        assert seen(sock) == [5555, WINDOW]


def test_a_port_that_nobody_holds_is_not_to_be_had(bridge: Path) -> None:
    line = "CONNECT 42 1234 from=5555"
    assert "has not bound port 5555" in refused(bridge, line)
    with said(bridge, "BIND * 5555"), said(bridge, line):
        pass
    with said(bridge, "BIND * 5556"):
        assert "has not bound port 5555" in refused(bridge, line)


def test_the_port_of_another_user_is_not_to_be_had(served: World, bridge: Path) -> None:
    for path in (served.directory, served.runtime_dir, bridge.parent):
        path.chmod(0o755)
    bridge.chmod(0o666)

    def ask(*lines: str) -> None:
        with contextlib.ExitStack() as stack:
            for line in lines:
                stack.enter_context(said(bridge, line))

    with said(bridge, "BIND * 5555"), said(bridge, "BIND * 22"):
        assert as_nobody(
            {
                "its own": lambda: ask("BIND * 5556", "CONNECT 42 1234 from=5556"),
                "another's": lambda: ask("CONNECT 42 1234 from=5555"),
                "another's low one": lambda: ask("CONNECT 42 1234 from=22"),
                "one that is taken": lambda: ask("BIND * 5555", "CONNECT 42 1234 from=5555"),
            }
        ) == {
            "its own": "",
            "another's": "EADDRNOTAVAIL",
            "another's low one": "EADDRNOTAVAIL",
            "one that is taken": "EADDRINUSE",
        }


def test_a_port_is_held_within_a_domain(world_of: World, spaces: dict[str, str]) -> None:
    world_of.daemon({"a": 42, "b": 42})
    for name, role in (("a", "global0"), ("b", "local0")):
        assert world_of.guest(name, spaces[role], TELLING).next() == "attached 42"
    bridge, line = bridge_of(world_of), "CONNECT 42 1234 from=5555"
    with said(bridge, "BIND * 5555", spaces["global1"]):
        with said(bridge, line, spaces["global0"]) as (sock, _):
            assert seen(sock) == [5555, WINDOW]
        assert "has not bound" in refused(bridge, line, spaces["local0"])
        with said(bridge, "BIND * 5555", spaces["local0"]), said(bridge, line, spaces["local0"]) as (sock, _):
            assert seen(sock) == [5555, WINDOW]


def test_two_connections_between_the_same_two_ports_cannot_be(bridge: Path) -> None:
    line = "CONNECT 42 1234 from=5555"
    with said(bridge, "BIND * 5555"), said(bridge, line) as (sock, _):
        assert refused(bridge, line).startswith("[Errno 98] another connection")
        assert seen(sock) == [5555, WINDOW]


@pytest.mark.parametrize(("buffer", "window"), [(4096, 4096), (1, 128), (0, WINDOW), (0xFFFF_FFFF, WINDOW)])
def test_the_guest_is_told_the_buffer_of_who_connects(bridge: Path, buffer: int, window: int) -> None:
    with said(bridge, f"CONNECT 42 1234 2000 buffer={buffer}") as (sock, port):
        assert seen(sock) == [port, window]


def told(guest: Lines, control: socket.socket) -> int:
    """The window that a guest is told when it connects to who listens here on port 5000."""
    guest.tell("window 5000 hello")
    _, fds, _, _ = socket.recv_fds(control, 100, 1, socket.MSG_CMSG_CLOEXEC)
    with socket.socket(fileno=fds[0]) as sock:
        assert sock.recv(10) == b"hello"
    window = guest.next()
    assert guest.next() == "reply "
    return int(window.removeprefix("window "))


def test_the_guest_is_told_the_buffer_of_who_listens_as_it_is_at_the_time(served: World) -> None:
    served.daemon({"a": 42})
    guest = served.guest("a")
    assert guest.next() == "attached 42"
    with said(bridge_of(served), "LISTEN * 5000 buffer=4096") as (control, _):
        assert told(guest, control) == 4096
        for line, window in ((b"BACKLOG 5\n", 4096), (b"BACKLOG 5 buffer=8192\n", 8192)):
            control.sendall(line)
            # It was heard before what was said after it.
            assert "nobody listens" in refused(bridge_of(served), "CONNECT 1 9")
            assert told(guest, control) == window


def test_wishes_are_handed_over_to_another_daemon(served: World) -> None:
    guests = []
    for name, cid in (("a", 42), ("b", 43)):
        served.daemon({name: cid})
        guests.append(served.guest(name, None, TELLING))
        assert guests[-1].next() == f"attached {cid}"
    # One of the two has its VM there, and the other one's elsewhere.
    for number in (0, 1):
        bridge = bridge_of(served, number)
        with said(bridge, "BIND * 5555"), said(bridge, "LISTEN * 5000 buffer=4096") as (control, _):
            for cid in (42, 43):
                for asked in (bridge, bridge_of(served, 1 - number)):
                    with said(asked, f"CONNECT {cid} 1234 buffer=8192 from=5555") as (sock, port):
                        assert (port, seen(sock)) == (5555, [5555, 8192])
            assert [told(guest, control) for guest in guests] == [4096, 4096]
