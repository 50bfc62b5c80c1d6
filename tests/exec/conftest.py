"""Programs under `vhostvsock exec`, with a daemon and a small guest (native/driver's vsock-guest) to talk to.

Rules:  - no AF_VSOCK socket reaches the kernel of the machine: the first test of all shows that, and makes none that
          connects. Without seccomp there is nothing to test.
        - whatever is started ends with the test.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator, Sequence

import pytest
from conftest import lacking
from harness.daemon import port_is_bound
from harness.waiting import wait_for
from netns.serving import LIMIT, Lines, World, within
from netns.serving import program as program
from netns.serving import served as served

ECHO = 1234
# There the guest says first from which port somebody connected, and with which window.
TELLING = 1235
MESSAGES = 1236
CID = 42
# On the other two, what comes goes back, as bytes and as messages.
ANSWERS = (str(ECHO), f"telling:{TELLING}", f"messages:{MESSAGES}")

# What every script of these tests has at hand.
PRELUDE = """
import array, ctypes, errno, fcntl, os, select, signal, socket, struct, sys, threading, time
VSOCK, ANY = socket.AF_VSOCK, 0xFFFFFFFF
SEQ = socket.SOCK_SEQPACKET
def new(kind=socket.SOCK_STREAM): return socket.socket(VSOCK, kind)
def error(function, *args):
    try: return function(*args)
    except OSError as failed: return errno.errorcode[failed.errno]
def listening(port, cid=ANY, backlog=5, kind=socket.SOCK_STREAM):
    sock = bound(port, cid, kind); sock.listen(backlog); return sock
def bound(port, cid=ANY, kind=socket.SOCK_STREAM):
    sock = new(kind); sock.bind((cid, port)); return sock
def connected(cid, port, kind=socket.SOCK_STREAM):
    sock = new(kind); sock.connect((cid, port)); return sock
def plain(sock):
    "The same socket: Python lets nobody set options with a structure on a socket of AF_VSOCK."
    return socket.socket(socket.AF_UNIX, socket.SOCK_STREAM, 0, fileno=os.dup(sock.fileno()))
def so_error(sock): return sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
"""


class Supervised:
    """Runs programs under `vhostvsock exec`."""

    def __init__(self, world: World, daemon: Lines, guest: Lines) -> None:
        self.world = world
        self.daemon = daemon
        self.guest = guest
        # Of tests with a second one.
        self.local_guest = guest
        self._all: list[Lines] = []

    def words(self, *words: str, namespace: str | None = None, options: Sequence[str] = ()) -> list[str]:
        """The words that run a program so."""
        return [*within(namespace), sys.executable, "-m", "vhostvsock", "exec", *options, "--", *words]

    def run(
        self,
        *words: str,
        data: bytes = b"",
        namespace: str | None = None,
        limit: float = 3 * LIMIT,
        before: Sequence[str] = (),
        options: Sequence[str] = (),
    ) -> subprocess.CompletedProcess[bytes]:
        """To its end; `before` are words that run the command."""
        return subprocess.run(
            [*before, *self.words(*words, namespace=namespace, options=options)],
            cwd=self.world.directory,
            env=self.world.env,
            input=data,
            capture_output=True,
            check=False,
            timeout=limit,
        )

    def ok(self, *words: str, data: bytes = b"", namespace: str | None = None) -> bytes:
        """What it writes; it has to succeed."""
        done = self.run(*words, data=data, namespace=namespace)
        assert done.returncode == 0, done
        return done.stdout

    def python(self, code: str, namespace: str | None = None) -> list[str]:
        """The lines that a script writes."""
        done = self.run(sys.executable, "-c", PRELUDE + code, namespace=namespace)
        assert (done.returncode, done.stderr) == (0, b""), (done.stdout.decode(), done.stderr.decode())
        return done.stdout.decode().splitlines()

    def start(self, *words: str, namespace: str | None = None, stderr: bool = False) -> Lines:
        """Beside the test."""
        world = self.world
        made = Lines(self.words(*words, namespace=namespace), world.directory, world.env, stderr=stderr)
        self._all.append(made)
        return made

    def script(self, code: str, namespace: str | None = None) -> Lines:
        return self.start(sys.executable, "-u", "-c", PRELUDE + code, namespace=namespace)

    def until_bound(self, port: int) -> None:
        """Until a program has this port. It listens a moment later, and long before another program has started."""
        wait_for(lambda: port_is_bound(self.world.runtime_dir, port), f"somebody has port {port}", LIMIT)

    def close(self) -> None:
        for each in reversed(self._all):
            each.end()


@pytest.fixture(scope="session")
def seccomp() -> None:
    """Filters with notifications can be installed here."""
    done = subprocess.run(
        [sys.executable, "-m", "vhostvsock", "exec", "true"], capture_output=True, text=True, timeout=60, check=False
    )
    if done.returncode != 0:
        lacking(f"seccomp's user notifications ({done.stderr.strip()})")


@pytest.fixture
def supervised(seccomp: None, served: World) -> Iterator[Supervised]:
    """With a daemon, and a guest with CID 42 that answers on the ports above."""
    daemon = served.daemon({"a": CID})
    guest = served.guest("a", None, *ANSWERS)
    assert guest.next() == f"attached {CID}"
    made = Supervised(served, daemon, guest)
    try:
        yield made
    finally:
        made.close()
