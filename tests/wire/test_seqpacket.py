"""The sockets for messages (SOCK_SEQPACKET) beside those for streams: who gets in, what is said, when they go."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
from pathlib import Path

import pytest

from wire.conftest import LIMIT, ONE_VM, Process, Start


def connect(path: Path) -> socket.socket:
    """A client for messages that gives up after a while."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    sock.settimeout(LIMIT)
    sock.connect(str(path))
    return sock


def bridge(runtime_dir: Path) -> Path:
    """The bridge's socket for messages."""
    (found,) = (runtime_dir / "bridge").glob("*.sock.seqpacket")
    return found


@pytest.mark.parametrize("said", [b"", b"CONNECT 80", b"CONNECT 80\nand more", b"nonsense\n", b"CONNECT 80\n"])
def test_client_without_a_guest_with_messages_sees_the_end(daemon: Process, short_dir: Path, said: bytes) -> None:
    with connect(short_dir / "v.sock.seqpacket") as client:
        client.send(said)
        # A line that is none is closed without having been taken, which the kernel shows as a reset.
        with contextlib.suppress(ConnectionResetError):
            assert client.recv(99) == b""


def test_sockets_have_the_mode_of_those_beside_them_and_go_with_the_daemon(start: Start, short_dir: Path) -> None:
    env = {"VHOSTVSOCK_RUNTIME_DIR": str(short_dir / "run")}
    process = start(*ONE_VM, "--no-parent", "--socket-mode", "0660", "--bridge-mode", "0640", env=env)
    process.wait_ready()
    paths = [short_dir / "v.sock.seqpacket", bridge(short_dir / "run")]
    assert [path.stat().st_mode & 0o777 for path in paths] == [0o660, 0o640]
    assert process.stop() == 0
    assert not [path for path in paths if os.path.lexists(path)]


def test_path_that_something_else_has_is_told(start: Start, short_dir: Path) -> None:
    (short_dir / "v.sock.seqpacket").write_text("mine")
    process = start(*ONE_VM)
    assert process.ended() == 1
    assert any("v.sock.seqpacket exists and is not a socket" in line for line in process.lines)
    assert (short_dir / "v.sock.seqpacket").read_text() == "mine"


def test_bridge_answers_in_messages(start: Start, short_dir: Path) -> None:
    process = start(*ONE_VM, "--no-parent", env={"VHOSTVSOCK_RUNTIME_DIR": str(short_dir / "run")})
    process.wait_ready()

    def answers(*said: bytes) -> list[bytes]:
        with connect(bridge(short_dir / "run")) as client:
            found = []
            for each in said:
                client.send(each)
                found.append(client.recv(999).partition(b" ")[0])
            return found

    assert answers(b"VERSION 1\n", b"LIST\n") == [b"OK", b"OK"]
    assert answers(b"LISTEN 1 5000\n") == [b"OK"]
    for bad in (b"LIST", b"LIST\nLIST\n", b"L" * 500 + b"\n"):
        assert answers(bad) == [b"ERR"]
    with connect(bridge(short_dir / "run")) as client:
        client.send(b"CONNECT 77 1\n")
        assert client.recv(999).startswith(b"ERR ESOCKTNOSUPPORT ")
        assert client.recv(999) == b""


def test_stream_client_of_a_message_socket_is_refused_by_the_kernel(daemon: Process, short_dir: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
        assert client.connect_ex(str(short_dir / "v.sock.seqpacket")) == errno.EPROTOTYPE
