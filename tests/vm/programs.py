"""Programs that know AF_VSOCK, under `vhostvsock exec`, in some place of the host.

Before: test_exec.py says which program talks to which guest. After: a shell under `vhostvsock exec`.
Rules:  - who connects sends SIZE bytes and gets them back; who listens answers one connection so. Nobody answers before
          all of them came, so that nobody waits for one who waits.
        - the commands are those that people write: all programs are on the PATH, by their names.
"""

from __future__ import annotations

import contextlib
import errno
import os
import random
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from harness.daemon import port_is_bound
from harness.waiting import LIMIT, Process, wait_for

# More than the buffers of one socket hold.
SIZE = 350_000
DATA = random.Random(11).randbytes(SIZE)
# A shell's command that answers.
ANSWER = f"head -c {SIZE} > {{came}} && cat {{came}}"

_PYTHON = """\
import errno, socket, sys
role, cid, port = sys.argv[1], *map(int, sys.argv[2:])
with socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM) as sock:
    if role == "connect":
        try: sock.connect((cid, port))
        except OSError as error: sys.exit(errno.errorcode[error.errno])
        sock.sendall(sys.stdin.buffer.read())
        sock.shutdown(socket.SHUT_WR)
        sys.stdout.buffer.writelines(iter(lambda: sock.recv(65536), b""))
    else:
        sock.bind((cid, port))
        sock.listen()
        with sock.accept()[0] as accepted:
            accepted.sendall(b"".join(iter(lambda: accepted.recv(65536), b"")))
"""


@dataclass(frozen=True)
class Program:
    """The commands of its two roles. `half_closes`: an end of one direction is not the end of the other."""

    connects: str
    listens: str
    half_closes: bool = True

    def connect(self, cid: int, port: int) -> str:
        return f"{self.connects.format(cid=cid, port=port)} < data"

    def converse(self, cid: int, port: int) -> str:
        """To connect, and to read the answer."""
        if self.half_closes:
            return self.connect(cid, port)
        # The last of its input is a fifo, which ends with the answer.
        command = self.connects.format(cid=cid, port=port)
        return f"cat data end | {command} | {{ head -c {SIZE}; : > end; }}"

    def listen(self, port: int) -> str:
        return self.listens.format(port=port)

    def asked(self, cid: int, port: int) -> tuple[str, ...]:
        """The words of a probe that connects to it."""
        options = ("shutdown",) if self.half_closes else ()
        return ("talk", f"vsock:{cid}:{port}", f"send=1:{SIZE}", f"recv=1:{SIZE}", "eof", *options)


PROGRAMS = {
    "nc": Program("nc --vsock {cid} {port}", "nc --vsock -l {port} --sh-exec ./answer", half_closes=False),
    "socat": Program("socat -t30 - VSOCK-CONNECT:{cid}:{port}", "socat VSOCK-LISTEN:{port} SYSTEM:./answer"),
    "static": Program("probe cat vsock:{cid}:{port}", "probe exec vsock-listen:{port} ./answer"),
    "go": Program("hello connect {cid} {port}", "hello listen {port}"),
    "python": Program("python script.py connect {cid} {port}", "python script.py listen 4294967295 {port}"),
}


class Place:
    """A place of the host, in which programs run."""

    def __init__(self, directory: Path, runtime_dir: Path, path: str, within: Sequence[str] = ()) -> None:
        """`path`: where programs are looked for; `within`: the words that run a command there."""
        self.directory = directory
        self._runtime_dir = runtime_dir
        self._within = within
        self._env = {**os.environ, "VHOSTVSOCK_RUNTIME_DIR": str(runtime_dir), "PATH": path}
        (directory / "data").write_bytes(DATA)
        if not (directory / "end").exists():
            os.mkfifo(directory / "end")
        (directory / "script.py").write_text(_PYTHON)
        (directory / "answer").write_text(f"#!/bin/sh\n{ANSWER.format(came='came')}\n")
        (directory / "answer").chmod(0o755)

    def _exec(self) -> list[str]:
        return [*self._within, sys.executable, "-m", "vhostvsock", "exec", "--"]

    def run(self, command: str, limit: float = LIMIT) -> subprocess.CompletedProcess[bytes]:
        """A command of a shell under exec, to its end."""
        # What hangs is ended from within: of a supervisor that is killed, the programs would live on.
        words = [*self._exec(), "timeout", "--kill-after=5", str(limit), "bash", "-c", command]
        return subprocess.run(words, cwd=self.directory, env=self._env, capture_output=True, check=False)

    def ok(self, command: str, limit: float = LIMIT) -> bytes:
        """What it writes; it has to succeed."""
        done = self.run(command, limit)
        assert done.returncode == 0, done
        return done.stdout

    @contextlib.contextmanager
    def listening(self, command: str, port: int) -> Iterator[Process]:
        """A command that listens meanwhile, and is ended as people end it."""
        words = [*self._exec(), "bash", "-c", command]
        with Process(words, self.directory, env=self._env, name=command) as process:
            try:
                wait_for(lambda: port_is_bound(self._runtime_dir, port) or not process.alive(), f"{command} listens")
                yield process
            finally:
                process.stop()


def says(done: subprocess.CompletedProcess[bytes], code: int) -> bool:
    """Whether a program has failed, and said why, each in its own words."""
    said = (done.stdout + done.stderr).decode().lower()
    return done.returncode != 0 and (os.strerror(code).lower() in said or errno.errorcode[code].lower() in said)
