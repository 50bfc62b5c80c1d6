"""Daemons and small guests (native/driver's vsock-guest) in namespaces, as processes.

Before: test_bridge.py and its like. After: real vhost-user sockets and rings, no VM.
Rule:   whatever is started ends with the test.
"""

from __future__ import annotations

import contextlib
import os
import queue
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from conftest import ROOT, lacking, tool

LIMIT = 20.0


def driver_program(name: str) -> str:
    """A program of native/driver, built if it has to be."""
    cargo = shutil.which("cargo")
    if cargo is None:
        lacking("cargo")
    manifest = str(ROOT / "native" / "Cargo.toml")
    command = [cargo, "build", "-q", "--release", "--manifest-path", manifest, "-p", "vsock-driver", "--bin", name]
    subprocess.run(command, check=True)
    return str(ROOT / "native" / "target" / "release" / name)


def within(namespace: str | None) -> list[str]:
    """The words that run a command in a namespace."""
    return [] if namespace is None else [tool("ip"), "netns", "exec", namespace]


class Lines:
    """A process whose lines are read as they come."""

    def __init__(self, words: list[str], cwd: Path, env: dict[str, str], *, stderr: bool) -> None:
        stream = "stderr" if stderr else "stdout"
        self.popen = subprocess.Popen(
            words, cwd=cwd, env=env, stdin=subprocess.PIPE, text=True, **{stream: subprocess.PIPE}
        )
        self.seen: list[str] = []
        self._queue: queue.Queue[str | None] = queue.Queue()
        self._stream = getattr(self.popen, stream)
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        for line in self._stream:
            self._queue.put(line.rstrip("\n"))
        self._queue.put(None)

    def wait(self, part: str) -> str:
        """The next line with `part` in it."""
        while True:
            try:
                line = self._queue.get(timeout=LIMIT)
            except queue.Empty:
                raise AssertionError(f"no line with {part!r} came: {self.seen}") from None
            assert line is not None, f"it ended before a line with {part!r}: {self.seen}"
            self.seen.append(line)
            if part in line:
                return line

    def next(self) -> str:
        return self.wait("")

    def rest(self) -> list[str]:
        """The lines that nobody waited for, once it ended."""
        self._reader.join(LIMIT)
        lines: list[str] = []
        while (line := self._queue.get(timeout=LIMIT)) is not None:
            lines.append(line)
        return lines

    def tell(self, line: str) -> None:
        assert self.popen.stdin is not None
        self.popen.stdin.write(line + "\n")
        self.popen.stdin.flush()

    def end(self, how: str = "terminate") -> int:
        if self.popen.poll() is None:
            getattr(self.popen, how)()
        code = self.popen.wait(LIMIT)
        self._reader.join(LIMIT)
        self._stream.close()
        if self.popen.stdin is not None:
            with contextlib.suppress(OSError):
                self.popen.stdin.close()
        return code


class World:
    """A directory with daemons and guests in it."""

    def __init__(self, directory: Path, program: str, runtime_dir: str | None = None) -> None:
        self.directory = directory
        self.runtime_dir = Path(runtime_dir or directory / "run")
        self.env = {**os.environ, "VHOSTVSOCK_RUNTIME_DIR": str(self.runtime_dir)}
        self._program = program
        self._all: list[Lines] = []

    def daemon(
        self, vms: dict[str, int | str], namespace: str | None = None, program: Sequence[str] = ("-m", "vhostvsock")
    ) -> Lines:
        """A daemon, ready, that serves VMs by name and CID at NAME.vh and NAME.v. `program`: what Python runs."""
        config = self.directory / f"{'-'.join(vms)}.toml"
        config.write_text(
            "".join(
                f'[[vm]]\nname = "{name}"\ncid = {cid!r}\nsocket = "{name}.vh"\nuds_path = "{name}.v"\n'.replace(
                    "'", '"'
                )
                for name, cid in vms.items()
            )
        )
        return self.run_daemon(config, namespace, program)

    def run_daemon(
        self, config: Path, namespace: str | None = None, program: Sequence[str] = ("-m", "vhostvsock")
    ) -> Lines:
        """A daemon, ready, with this configuration."""
        words = [sys.executable, *program, "run", "--config", str(config), "--no-parent", "-v"]
        made = Lines([*within(namespace), *words], self.directory, self.env, stderr=True)
        self._all.append(made)
        made.wait("vhostvsock: ready:")
        return made

    def guest(self, name: str, namespace: str | None = None, *echo: int | str) -> Lines:
        """A guest that was started in `namespace` on the socket of VM `name`."""
        words = [*within(namespace), self._program, f"{name}.vh", *map(str, echo)]
        made = Lines(words, self.directory, self.env, stderr=False)
        self._all.append(made)
        return made

    def python(self, code: str, namespace: str | None = None) -> subprocess.CompletedProcess[str]:
        """Runs Python code in a namespace."""
        return subprocess.run(
            [*within(namespace), sys.executable, "-c", code],
            cwd=self.directory,
            env=self.env,
            capture_output=True,
            text=True,
            timeout=LIMIT * 2,
            check=False,
        )

    def connect(self, cid: int, port: int, namespace: str | None = None, times: int = 1) -> str:
        """What an echo at (cid, port) sends back for so many hellos, or the name of the errno."""
        code = f"""
import errno, socket, vhostvsock
try:
    with vhostvsock.connect({cid}, {port}) as sock:
        sock.sendall(b"hello" * {times}); sock.shutdown(socket.SHUT_WR)
        print(b"".join(iter(lambda: sock.recv(65536), b"")).decode(), end="")
except OSError as error:
    print(errno.errorcode[error.errno], end="")
"""
        done = self.python(code, namespace)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def listen(self, port: int, namespace: str | None = None, *options: str) -> Lines:
        """`vhostvsock listen PORT --exec`: sends the peer's CID and a copy of what came. Waits until it listens."""
        words = [
            sys.executable,
            "-m",
            "vhostvsock",
            "listen",
            str(port),
            *options,
            "--exec",
            'echo "$VSOCK_PEER_CID"; cat',
        ]
        made = Lines([*within(namespace), *words], self.directory, self.env, stderr=True)
        self._all.append(made)
        return made

    def close(self) -> None:
        for each in reversed(self._all):
            each.end("kill")


@contextlib.contextmanager
def world(directory: Path, program: str, runtime_dir: str | None = None) -> Iterator[World]:
    made = World(directory, program, runtime_dir)
    try:
        yield made
    finally:
        made.close()


@pytest.fixture(scope="session")
def program() -> str:
    """The small guest."""
    return driver_program("vsock-guest")


@pytest.fixture
def served(short_dir: Path, program: str) -> Iterator[World]:
    """A directory in which daemons and guests run, with a registry of its own."""
    with world(short_dir, program) as made:
        yield made
