"""A daemon at the limit of its descriptors: it lives, rests, and serves again when there are some."""

from __future__ import annotations

import contextlib
import resource
import socket
import time
from pathlib import Path

import pytest
from harness.waiting import wait_for

from .conftest import LIMIT, ONE_VM, Start, ask, connect, descriptors, read_to_end
from .test_clients import cpu_seconds


def test_without_descriptors_nobody_is_served_and_with_some_everybody_is(start: Start, short_dir: Path) -> None:
    run = short_dir / "run"
    daemon = start(*ONE_VM, "-v", env={"VHOSTVSOCK_RUNTIME_DIR": str(run)})
    daemon.wait_ready()
    (bridge,) = (run / "bridge").glob("*.sock")
    old = resource.prlimit(daemon.pid, resource.RLIMIT_NOFILE)
    there = descriptors(daemon.pid)
    resource.prlimit(daemon.pid, resource.RLIMIT_NOFILE, (there + 1, old[1]))
    with contextlib.ExitStack() as stack:
        for path in (bridge, short_dir / "v.sock", short_dir / "vh.sock") * 10:
            stack.enter_context(connect(path))
        daemon.wait_line("cannot accept")
        used, begun = cpu_seconds(daemon.pid), time.monotonic()
        time.sleep(1.0)  # an interval to measure, not a wait
        assert cpu_seconds(daemon.pid) - used < 0.5 * (time.monotonic() - begun)
        resource.prlimit(daemon.pid, resource.RLIMIT_NOFILE, old)
    wait_for(lambda: descriptors(daemon.pid) <= there, "all that left are forgotten")
    assert ask(short_dir / "v.sock", b"CONNECT 22\n") == b""
    wait_for(lambda: ask(bridge, b"VERSION 1\nLIST\n") == b"OK 1\nOK 0\n", "front-ends that left are gone")
    with socket.socket(socket.AF_UNIX) as front_end:
        front_end.settimeout(LIMIT)
        front_end.connect(str(short_dir / "vh.sock"))
        daemon.wait_line("front-end attached")
        front_end.sendall(b"noise" * 10)
        assert read_to_end(front_end) == b""
    assert daemon.stop() == 0


def test_without_a_descriptor_for_the_connection_the_socket_that_asks_is_not_taken_for_it(
    start: Start, short_dir: Path
) -> None:
    run = short_dir / "run"
    daemon = start(*ONE_VM, env={"VHOSTVSOCK_RUNTIME_DIR": str(run)})
    daemon.wait_ready()
    (bridge,) = (run / "bridge").glob("*.sock")
    with connect(bridge, b"LISTEN 1 5000\n") as listener:
        assert listener.recv(100) == b"OK 5000\n"
        old = resource.prlimit(daemon.pid, resource.RLIMIT_NOFILE)
        there = descriptors(daemon.pid)
        resource.prlimit(daemon.pid, resource.RLIMIT_NOFILE, (there + 1, old[1]))
        ours, theirs = socket.socketpair()
        with ours, theirs, connect(bridge) as asking:
            socket.send_fds(asking, [b"CONNECT 1 5000\n"], [theirs.fileno()])
            assert read_to_end(asking).startswith(b"ERR EMFILE ")
        listener.setblocking(False)
        with pytest.raises(BlockingIOError):
            listener.recv(100)
    assert daemon.stop() == 0


def test_the_bound_on_connections_is_the_one_that_was_given(start: Start, short_dir: Path) -> None:
    daemon = start(*ONE_VM, "--max-connections", "3", "--handshake-timeout", "60")
    daemon.wait_ready()
    with contextlib.ExitStack() as stack:
        silent = [stack.enter_context(connect(short_dir / "v.sock")) for _ in range(3)]
        with connect(short_dir / "v.sock") as refused:
            assert read_to_end(refused) == b""  # and not after the handshake's time
        silent.pop().close()
        # There is room again as soon as the daemon has seen that.
        wait_for(lambda: _waits(short_dir / "v.sock"), "room for another one")
    assert daemon.stop() == 0


def _waits(path: Path) -> bool:
    """Whether a client that says nothing is waited for."""
    with connect(path) as sock:
        sock.settimeout(0.2)
        try:
            return sock.recv(1) != b""
        except TimeoutError:
            return True
