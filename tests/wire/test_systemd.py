"""A real daemon and a manager played by the test: sockets passed to it, and signs of life that it gives."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from harness.waiting import wait_for

from .conftest import LIMIT, ONE_VM, Start, connect

# Shells have no other way to make LISTEN_PID right: it is known after the fork, before the exec.
_PASS = 'exec 3<&"$1"; shift; export LISTEN_PID=$$ LISTEN_FDS=1 LISTEN_FDNAMES=web; exec "$@"'


@pytest.fixture
def passed(short_dir: Path) -> Iterator[socket.socket]:
    """A socket as a manager makes it."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.bind(str(short_dir / "vh.sock"))
        sock.listen()
        yield sock


def test_a_passed_socket_is_served_and_left_in_place(passed: socket.socket, short_dir: Path) -> None:
    with connect(short_dir / "vh.sock") as early:  # before anything of ours runs
        process = subprocess.Popen(
            ["bash", "-c", _PASS, "bash", str(passed.fileno()), sys.executable, "-m", "vhostvsock", "run", *ONE_VM],
            cwd=short_dir,
            pass_fds=[passed.fileno()],
        )
        try:
            wait_for(lambda: (short_dir / "v.sock").exists(), "the other socket is made")
            # GET_QUEUE_NUM and its answer: the device is there.
            early.sendall(b"\x11\0\0\0\x01\0\0\0\0\0\0\0")
            assert len(early.recv(100)) == 20
        finally:
            process.terminate()
            assert process.wait(LIMIT) == 0
    assert os.listdir(short_dir) == ["vh.sock"]


def test_signs_of_life_reach_the_manager(start: Start, short_dir: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.settimeout(LIMIT)
        manager.bind(str(short_dir / "notify"))
        process = start(*ONE_VM, env={"NOTIFY_SOCKET": str(short_dir / "notify"), "WATCHDOG_USEC": "200000"})
        signs = 0
        while signs < 5:
            signs += manager.recv(200) == b"WATCHDOG=1"
        assert process.stop() == 0
