"""Processes of the soak: daemons, and vsock-soak, which plays guests and host applications.

Before: run.py says who is there. After: native/driver's vsock-soak, and `vhostvsock run`.
Rules:  - Whoever is killed on purpose is told so before; any other end is a fault.
        - vsock-soak ends with its stdin, so it ends with us, whatever happens to us.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from harness.waiting import LIMIT, Process, wait_for

# They make the load. Who is tested, and what was killed and starts anew, comes before them.
_POLITE = ("nice", "-n", "9")
ROOT = Path(__file__).resolve().parents[3]


class SoakError(Exception):
    """What must not happen in a soak."""


@dataclass(frozen=True)
class Vm:
    """A VM of a daemon's configuration; its sockets are NAME.vh and NAME.v."""

    name: str
    cid: int

    def __str__(self) -> str:
        return f"{self.name}:{self.cid}"


def program() -> Path:
    """vsock-soak, which scripts/soak builds."""
    target = Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "native" / "target"))
    found = target / "release" / "vsock-soak"
    if not found.exists():
        raise SoakError(f"{found} is not there; scripts/soak builds it")
    return found


def daemon(cwd: Path, vms: Sequence[Vm], within: Sequence[str] = ()) -> Process:
    """`vhostvsock run` for these VMs, ready."""
    config = cwd / f"{vms[0].name}.toml"
    config.write_text(
        "".join(
            f'[[vm]]\nname = "{vm.name}"\ncid = {vm.cid}\nsocket = "{vm.name}.vh"\nuds_path = "{vm.name}.v"\n'
            for vm in vms
        )
    )
    where = ("--config", config.name, "--runtime-dir", "run", "--no-parent")
    process = Process([*within, sys.executable, "-m", "vhostvsock", "run", *where], cwd, name="vhostvsock")
    try:
        process.lines.wait_line("vhostvsock: ready:")
    except BaseException:
        process.close()
        raise
    return process


class Players:
    """One vsock-soak process, or one after the other if they are killed."""

    def __init__(
        self, role: str, cwd: Path, vms: Sequence[Vm], *options: str, seed: int, within: Sequence[str] = ()
    ) -> None:
        self.name = f"{role} of {vms[0].name}" + (f" to {vms[-1].name}" if len(vms) > 1 else "")
        self.vms = vms
        self._command = [*within, *_POLITE, program(), role, *options]
        self._cwd = cwd
        self._seed = seed
        self._lives = 0
        self._past: dict[str, int] = {}
        self._lock = threading.Lock()
        self._said = tempfile.TemporaryFile("w+", errors="replace")  # noqa: SIM115 (`close` does)
        self._start()

    def _start(self) -> None:
        self.now: dict[str, int] = {}
        self._lives += 1
        # Each life says something else.
        words = [*self._command, "--seed", str(self._seed + self._lives * 1000), *self.vms]
        self._said.seek(0)
        self._said.truncate()
        self._popen = subprocess.Popen(
            [str(word) for word in words],
            cwd=self._cwd,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._said,
            text=True,
        )
        self._reader = threading.Thread(target=self._read, args=(self._popen,), daemon=True)
        self._reader.start()

    def _read(self, popen: subprocess.Popen[str]) -> None:
        assert popen.stdout is not None
        with popen.stdout as output:
            for line in output:
                # A line that a kill cut short is none.
                if line.endswith("}\n"):
                    self.now = json.loads(line)

    def total(self, name: str) -> int:
        """A number, summed over all lives."""
        return self._past.get(name, 0) + self.now.get(name, 0)

    def wait_ready(self) -> None:
        """Until every guest is attached, or every listener listens."""
        wait_for(lambda: self.check() or self.now.get("ready") == len(self.vms), f"{self.name} are ready", LIMIT)

    def check(self) -> None:
        """That it runs, and found nothing wrong."""
        with self._lock:
            self._check()

    def _check(self) -> None:
        code = self._popen.poll()
        if code is not None or self.now.get("wrong"):
            raise SoakError(f"{self.name}{f' ended with {code}' if code is not None else ''}: {self.said()}")

    def said(self) -> str:
        """Its messages about faults."""
        self._said.seek(0)
        return self._said.read().strip() or "(it said nothing)"

    def tell(self, word: str) -> None:
        """`begin` or `finish`."""
        assert self._popen.stdin is not None
        self._popen.stdin.write(f"{word}\n")
        self._popen.stdin.flush()

    def kill(self) -> None:
        """SIGKILL, and another life. What it found before counts."""
        with self._lock:
            self._check()
            self._popen.kill()
            self._end()
            for name in ("finished", "bytes", "broken", "refused"):
                self._past[name] = self.total(name)
            self._start()

    def finish(self) -> None:
        """End it in an orderly way. SoakError if it has found anything wrong."""
        assert self._popen.stdin is not None
        self._popen.stdin.close()
        try:
            code = self._popen.wait(LIMIT)
        except subprocess.TimeoutExpired:
            raise SoakError(f"{self.name} do not end: {self.said()}") from None
        self._reader.join(LIMIT)
        if code != 0:
            raise SoakError(f"{self.name} ended with {code}: {self.said()}")

    def _end(self) -> None:
        self._popen.wait()
        self._reader.join(LIMIT)
        if self._popen.stdin is not None:
            self._popen.stdin.close()

    def close(self) -> None:
        """End it, whatever it does."""
        if self._popen.poll() is None:
            self._popen.kill()
        self._end()
        self._said.close()
