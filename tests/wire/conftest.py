"""A real daemon process for the wire tests.

Rule: no test sleeps and hopes. Everything waits for a condition, with a limit.
"""

from __future__ import annotations

import contextlib
import os
import queue
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

LIMIT = 20.0


class Process:
    """`vhostvsock run` with its stderr collected line by line."""

    def __init__(self, *args: str, cwd: Path, env: dict[str, str] | None = None) -> None:
        self.popen = subprocess.Popen(
            [sys.executable, "-m", "vhostvsock", "run", *args],
            cwd=cwd,
            env={**os.environ, **(env or {})},
            stdin=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.lines: list[str] = []
        self._queue: queue.Queue[str | None] = queue.Queue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    @property
    def pid(self) -> int:
        return self.popen.pid

    def _read(self) -> None:
        assert self.popen.stderr is not None
        for line in self.popen.stderr:
            self._queue.put(line.rstrip("\n"))
        self._queue.put(None)

    def wait_line(self, part: str) -> str:
        """The next line that contains `part`; fails when the process ends or takes too long first."""
        deadline = time.monotonic() + LIMIT
        while True:
            try:
                line = self._queue.get(timeout=max(0.01, deadline - time.monotonic()))
            except queue.Empty:
                raise AssertionError(f"no line with {part!r} came; so far: {self.lines}") from None
            assert line is not None, f"the process ended before a line with {part!r}: {self.lines}"
            self.lines.append(line)
            if part in line:
                return line

    def wait_ready(self) -> str:
        return self.wait_line("vhostvsock: ready:")

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Send a signal and return the exit code; collects the last lines."""
        self.popen.send_signal(number)
        return self.ended()

    def ended(self) -> int:
        code = self.popen.wait(LIMIT)
        self._reader.join(LIMIT)
        while (line := self._queue.get(timeout=LIMIT)) is not None:
            self.lines.append(line)
        return code

    def destroy(self) -> None:
        if self.popen.poll() is None:
            self.popen.kill()
        self.popen.wait(LIMIT)
        self._reader.join(LIMIT)
        if self.popen.stderr is not None:
            self.popen.stderr.close()


Start = Callable[..., Process]


@pytest.fixture
def start(short_dir: Path) -> Iterator[Start]:
    """Starts daemons in a short directory of their own; they end with the test."""
    with contextlib.ExitStack() as stack:

        def run(*args: str, env: dict[str, str] | None = None) -> Process:
            process = Process(*args, cwd=short_dir, env=env)
            stack.callback(process.destroy)
            return process

        yield run


ONE_VM = ("--guest-cid", "42", "--socket", "vh.sock", "--uds-path", "v.sock")


@pytest.fixture
def daemon(start: Start) -> Process:
    """A daemon that serves CID 42 on vh.sock and v.sock, and is ready. No guest is attached."""
    process = start(*ONE_VM, "--handshake-timeout", "1", "-v")
    process.wait_ready()
    return process


def connect(path: Path, send: bytes = b"") -> socket.socket:
    """A client of a UNIX socket that gives up after a while."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    sock.settimeout(LIMIT)
    sock.connect(str(path))
    if send:
        sock.sendall(send)
    return sock


def read_to_end(sock: socket.socket) -> bytes:
    """All that comes until the other side ends; a reset counts as an end."""
    data = b""
    with contextlib.suppress(ConnectionResetError):
        while piece := sock.recv(65536):
            data += piece
    return data


def ask(path: Path, send: bytes) -> bytes:
    """Send something to a UNIX socket, and read until the other side ends."""
    with connect(path, send) as sock:
        return read_to_end(sock)


def descriptors(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))
