"""Waiting for conditions, and processes whose output is read while they run.

Before: every other module of the harness. After: subprocess.
Rules:  - A wait has a limit, and says what it waited for and what was seen instead.
        - A process that was started here is ended here, by its pid alone.
        - Start processes from the main thread: they end with the thread that started them.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType

# Emulated guests on a busy machine are slow; what takes longer than this hangs.
LIMIT = 60.0
_POLL = 0.01


class WaitError(AssertionError):
    """What was waited for did not come."""


def wait_for(condition: Callable[[], object], what: str, limit: float = LIMIT) -> None:
    """Wait until `condition` is true."""
    deadline = time.monotonic() + limit
    while not condition():
        if time.monotonic() > deadline:
            raise WaitError(f"did not come within {limit:.0f} s: {what}")
        time.sleep(_POLL)


class Lines:
    """Lines that come from somewhere, kept, and waited for from any thread."""

    def __init__(self, whose: str) -> None:
        self.whose = whose
        self.seen: list[str] = []
        self.ended = False
        self._changed = threading.Condition()

    def add(self, line: str) -> None:
        with self._changed:
            self.seen.append(line)
            self._changed.notify_all()

    def end(self) -> None:
        with self._changed:
            self.ended = True
            self._changed.notify_all()

    def count(self) -> int:
        with self._changed:
            return len(self.seen)

    def wait_line(self, part: str, limit: float = LIMIT, since: int = 0) -> str:
        """The first line from number `since` on that contains `part`."""
        deadline = time.monotonic() + limit
        at = since
        with self._changed:
            while True:
                for line in self.seen[at:]:
                    if part in line:
                        return line
                at = max(at, len(self.seen))
                left = deadline - time.monotonic()
                if self.ended or left <= 0:
                    why = "it ended" if self.ended else f"not within {limit:.0f} s"
                    raise WaitError(f"{self.whose}: no line with {part!r} ({why}); it said: {self.seen[-30:]}")
                self._changed.wait(left)

    def wait_end(self, limit: float = LIMIT) -> None:
        with self._changed:
            if not self._changed.wait_for(lambda: self.ended, limit):
                raise WaitError(f"{self.whose}: no end within {limit:.0f} s; it said: {self.seen[-30:]}")


class Process:
    """A program with its stdout and stderr collected as lines."""

    def __init__(
        self,
        command: Sequence[str | Path],
        cwd: Path,
        *,
        name: str | None = None,
        env: Mapping[str, str] | None = None,
        descriptors: Sequence[int] = (),
    ) -> None:
        self.lines = Lines(name or Path(command[0]).name)
        # The kernel ends it when we die ourselves and could not: no test leaves a QEMU behind.
        leash = ["setpriv", "--pdeathsig", "KILL"] if shutil.which("setpriv") else []
        self.popen = subprocess.Popen(
            [*leash, *(str(word) for word in command)],
            cwd=cwd,
            env={**os.environ, **(env or {})},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            pass_fds=descriptors,
            text=True,
            errors="replace",
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.popen.stdout is not None
        with self.popen.stdout as output:
            for line in output:
                self.lines.add(line.rstrip("\n"))
        self.lines.end()

    @property
    def pid(self) -> int:
        return self.popen.pid

    def alive(self) -> bool:
        return self.popen.poll() is None

    def wait(self, limit: float = LIMIT) -> int:
        """The exit code, with all output collected."""
        try:
            code = self.popen.wait(limit)
        except subprocess.TimeoutExpired:
            said = self.lines.seen[-30:]
            raise WaitError(f"{self.lines.whose} did not end within {limit:.0f} s; it said: {said}") from None
        self._reader.join(LIMIT)
        return code

    def stop(self, number: int = signal.SIGTERM, limit: float = LIMIT) -> int:
        if self.alive():
            self.popen.send_signal(number)
        return self.wait(limit)

    def close(self) -> None:
        """End it, whatever it does."""
        if self.alive():
            self.popen.kill()
        self.popen.wait()
        self._reader.join(LIMIT)

    def __enter__(self) -> Process:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
