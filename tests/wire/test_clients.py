"""Host applications that misbehave towards the hybrid socket of a daemon without a guest."""

from __future__ import annotations

import random
import time
from pathlib import Path

import pytest
from harness.waiting import wait_for

from .conftest import Process, connect, descriptors, read_to_end


def cpu_seconds(pid: int) -> float:
    with open(f"/proc/{pid}/stat", encoding="ascii") as file:
        fields = file.read().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / 100


def test_connecting_is_refused_when_no_guest_is_there(daemon: Process, short_dir: Path) -> None:
    started = time.monotonic()
    with connect(short_dir / "v.sock", b"CONNECT 22\n") as sock:
        assert read_to_end(sock) == b""
    assert time.monotonic() - started < 1.0
    assert daemon.stop() == 0


@pytest.mark.parametrize(
    "line",
    [
        b"CONNECT " + b"1" * 5000,
        b"x" * 100_000,
        b"\xff\xfe\xfd\n",
        "CONNECT ٤٢\n".encode(),
        b"CONNECT 4294967296\n",
        b"CONNECT 4294967295\n",
        b"CONNECT -1\n",
        b"CONNECT\n",
        b"CONNECT 22 33\n",
        b"CONNECT 0x16\n",
        b"\n",
        b"\0\n",
        b"HELLO 22\n",
        b"GET / HTTP/1.0\r\n\r\n",
    ],
)
def test_a_line_that_is_no_request_is_closed(daemon: Process, short_dir: Path, line: bytes) -> None:
    with connect(short_dir / "v.sock") as sock:
        try:
            sock.sendall(line)
        except (BrokenPipeError, ConnectionResetError):
            return  # closed before all of it was taken: fine as well
        assert read_to_end(sock) == b""
    assert daemon.stop() == 0


@pytest.mark.parametrize("begun", [b"", b"CONN", b"CONNECT 22"])
def test_a_line_that_never_ends_is_closed_after_the_handshake_timeout(
    daemon: Process, short_dir: Path, begun: bytes
) -> None:
    started = time.monotonic()
    with connect(short_dir / "v.sock", begun) as sock:
        assert read_to_end(sock) == b""
    assert 0.8 < time.monotonic() - started < 5.0


def test_a_line_in_pieces_is_understood(daemon: Process, short_dir: Path) -> None:
    # Without a guest the answer is a refusal, at once and not after the timeout of 1 s.
    with connect(short_dir / "v.sock") as sock:
        for byte in b"CONNECT 22":
            sock.sendall(bytes([byte]))
            time.sleep(0.005)
        started = time.monotonic()
        sock.sendall(b"\n")
        assert read_to_end(sock) == b""
        assert time.monotonic() - started < 0.5


def test_clients_that_leave_at_any_moment_cost_nothing(daemon: Process, short_dir: Path) -> None:
    before = descriptors(daemon.pid)
    request = b"CONNECT 22\nhello"
    dice = random.Random(1)
    for _ in range(300):
        sock = connect(short_dir / "v.sock", request[: dice.randrange(len(request) + 1)])
        if dice.random() < 0.3:
            sock.shutdown(1)
        sock.close()
    wait_for(lambda: descriptors(daemon.pid) <= before, f"back to {before} descriptors")
    used = cpu_seconds(daemon.pid)
    time.sleep(0.5)  # an interval to measure, not a wait
    assert cpu_seconds(daemon.pid) - used < 0.1, "the daemon is busy with clients that have left"
    assert daemon.stop() == 0


def test_many_clients_that_say_nothing_do_not_hold_up_another(daemon: Process, short_dir: Path) -> None:
    silent = [connect(short_dir / "v.sock") for _ in range(200)]
    started = time.monotonic()
    with connect(short_dir / "v.sock", b"CONNECT 22\n") as sock:
        assert read_to_end(sock) == b""
    assert time.monotonic() - started < 0.8
    for each in silent:
        each.close()
    assert daemon.stop() == 0
