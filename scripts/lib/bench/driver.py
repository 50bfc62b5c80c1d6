"""Asks vsock-bench for one value.

Before: scripts/bench built vsock-bench, which plays QEMU, the guest's driver and the host's applications, and measures.
After:  its line of JSON, or why there is none.
Rule:   whatever a daemon does, a row ends.
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

from scripts.lib.bench.daemons import BenchError, Contender, Daemon
from scripts.lib.bench.results import Result
from scripts.lib.bench.rows import Row, parse

_ROOT = Path(__file__).resolve().parents[3]
# vsock-bench ends by itself long before.
_TIMEOUT = 60.0


def program() -> Path:
    """Where vsock-bench is, once it is built."""
    target = Path(os.environ.get("CARGO_TARGET_DIR", _ROOT / "native" / "target"))
    return target / "release" / "vsock-bench"


class Driver:
    """The program, and how it measures."""

    def __init__(self, seconds: float, pinned: bool) -> None:
        self._options = ["--seconds", str(seconds)]
        if pinned:
            self._options.insert(0, "--pin")
        self._pinned = pinned
        self._timeout = _TIMEOUT + seconds
        self._program = program()
        if not self._program.exists():
            raise BenchError(f"{self._program} is not there; start scripts/bench, which builds it")

    def rows(self) -> list[Row]:
        listed = subprocess.run([self._program, "--list"], capture_output=True, text=True, check=True)
        return parse(listed.stdout)

    def limit(self, row: Row) -> Result:
        return self._call(row, "--limit")

    def measure(self, contender: Contender, row: Row) -> Result:
        """With a fresh daemon."""
        with Daemon(contender, row.vms, self._pinned) as daemon:
            daemon.wait()
            words = ["--pid", str(daemon.process.pid)]
            for place in daemon.places:
                words += ["--socket", str(place.socket), "--uds", str(place.uds)]
            return self._call(row, *words)

    def _call(self, row: Row, *words: str) -> Result:
        command = [str(self._program), *self._options, *words, row.name]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=self._timeout, check=False)
        except subprocess.TimeoutExpired:
            return {"row": row.name, "hangs": True}
        if done.returncode != 0 or not done.stdout.strip():
            last = (done.stderr.strip().splitlines() or ["no output"])[-1]
            return {"row": row.name, "failed": last}
        result: Result = json.loads(done.stdout.splitlines()[-1])
        return result
