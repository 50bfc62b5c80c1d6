"""Checked conversations: guest/probe.c started on either side, and its results.

Before: a test says what to send and what to expect. After: guest.py or waiting.py runs the program.
Rule:   what a test asserts is in the result; the exit code says "all as expected".
"""

from __future__ import annotations

import re
import socket
from pathlib import Path
from typing import Protocol

from harness.build import host_probe
from harness.guest import Guest, Job
from harness.waiting import LIMIT, Lines, Process


class Running(Protocol):
    """What a job in the guest and a process on the host have in common."""

    lines: Lines

    def alive(self) -> bool: ...
    def wait(self, limit: float = LIMIT) -> int: ...
    def close(self) -> None: ...


class Probe:
    """A probe that was started."""

    def __init__(self, running: Running) -> None:
        self.running = running
        self.lines = running.lines

    def listening(self, limit: float = LIMIT) -> Probe:
        self.lines.wait_line("listening", limit)
        return self

    def connected(self, limit: float = LIMIT) -> Probe:
        self.lines.wait_line("connected", limit)
        return self

    def reached(self, size: int, word: str = "progress", limit: float = LIMIT) -> Probe:
        """Wait until it has received ("progress") or sent ("sent") that much; needs the option every=."""
        at = 0
        while True:
            line = self.lines.wait_line(f"{word} ", limit, since=at)
            if int(line.split()[1]) >= size:
                return self
            at = self.lines.seen.index(line) + 1

    def so_far(self, word: str = "progress") -> int:
        """How much it has received or sent, as far as it told."""
        told = [int(line.split()[1]) for line in list(self.lines.seen) if line.startswith(f"{word} ")]
        return told[-1] if told else 0

    def result(self, limit: float = LIMIT) -> dict[str, str]:
        """The values of its last line."""
        self.running.wait(limit)
        line = next((line for line in reversed(self.lines.seen) if line.startswith("result ")), None)
        assert line is not None, f"{self.lines.whose} gave no result: {self.lines.seen[-10:]}"
        return dict(re.findall(r"(\w+)=(\S+)", line))

    def right(self, limit: float = LIMIT) -> dict[str, str]:
        """The values of its last line, where all was as expected."""
        code = self.running.wait(limit)
        assert code == 0, f"{self.lines.whose}: {self.lines.seen[-5:]}"
        return self.result()

    def close(self) -> None:
        self.running.close()


def on_host(cwd: Path, command: str, *words: str) -> Probe:
    return Probe(Process([host_probe(), command, *words], cwd, name=f"host: {command} {' '.join(words)}"))


def on_connection(sock: socket.socket, command: str, *words: str) -> Probe:
    """On a connection of this process, which is the program's alone from then on."""
    with sock:
        number = sock.fileno()
        name = f"host: {command} fd:{number} {' '.join(words)}"
        return Probe(
            Process([host_probe(), command, f"fd:{number}", *words], Path("/"), name=name, descriptors=[number])
        )


def in_guest(guest: Guest, command: str, *words: str) -> Probe:
    # exec: a signal to the job reaches the probe.
    job: Job = guest.start(" ".join(["exec", "probe", command, *words]))
    return Probe(job)
