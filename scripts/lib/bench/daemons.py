"""The contenders that are daemons, and one of them that runs.

Before: measure.py says who is to serve how many VMs. After: vsock-bench connects to the sockets of each VM.
Rules:  - A daemon has a directory of its own, and ends with the block that started it.
        - Who starts it waits until it listens; a connection to try that would be one that the peer counts as QEMU's.
"""

from __future__ import annotations

import os
import resource
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from scripts.lib.bench.results import as_option
from scripts.lib.fetch import peer

# CIDs of the VMs: this one and those after it.
FIRST_CID = 42
# A daemon that does not listen by then does not work.
START_TIMEOUT = 20.0
_LOOK = 0.001
# Descriptors that a daemon may have, where that can be had: the peer needs two for each of 10,000 connections.
_DESCRIPTORS = 1 << 16


class BenchError(Exception):
    """The benchmark cannot go on."""


@dataclass(frozen=True)
class Place:
    """The sockets of a VM."""

    cid: int
    socket: Path
    uds: Path


@dataclass(frozen=True)
class Contender:
    """How a daemon is started for VMs, in a directory where files may be written; and what it says when it is ready."""

    title: str
    command: Callable[[Sequence[Place], Path], list[str]]
    ready: bytes | None = None


def vhostvsock(setting: str | None = None) -> Contender:
    """This project's daemon, with the default of everything but one setting."""
    program = shutil.which("vhostvsock")
    if program is None:
        raise BenchError("vhostvsock is not installed; scripts/lib/setup.sh does that")
    run = [program, "run", "--no-parent"]

    def command(places: Sequence[Place], directory: Path) -> list[str]:
        if len(places) == 1:
            [one] = places
            words = ["--guest-cid", str(one.cid), "--socket", str(one.socket), "--uds-path", str(one.uds)]
            return [*run, *words, *(as_option(setting) if setting else [])]
        set_so = [setting] if setting else []
        lines: list[str] = []
        for place in places:
            lines += [
                "[[vm]]",
                f"cid = {place.cid}",
                f'socket = "{place.socket}"',
                f'uds_path = "{place.uds}"',
                *set_so,
            ]
        config = directory / "vms.toml"
        config.write_text("\n".join(lines) + "\n", encoding="utf-8")
        return [*run, "--config", str(config)]

    title = " ".join(["with", *as_option(setting)]) if setting else "vhostvsock"
    return Contender(title, command, b"vhostvsock: ready:")


def vhost_device_vsock() -> tuple[Contender, str]:
    """The peer, and its version."""
    program = str(peer())
    version = subprocess.run([program, "--version"], capture_output=True, text=True, check=True).stdout.strip()

    def command(places: Sequence[Place], _directory: Path) -> list[str]:
        words = []
        for place in places:
            words += ["--vm", f"guest-cid={place.cid},socket={place.socket},uds-path={place.uds}"]
        return [program, *words]

    return Contender("vhost-device-vsock", command), version


def _as_child(pinned: bool) -> None:
    """In the daemon's process, before it has threads, so that all of them stay on their processor."""
    if pinned:
        os.sched_setaffinity(0, {1})
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(hard, _DESCRIPTORS),) * 2)
    except (OSError, ValueError):
        # Not everybody may have more than there are, not even root everywhere.
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


class Daemon:
    """A daemon that was started; after `wait` it serves."""

    def __init__(self, contender: Contender, vms: int = 1, pinned: bool = False) -> None:
        # Paths of sockets have to be short, so not in TMPDIR, whatever that is.
        self.directory = Path(tempfile.mkdtemp(prefix="vhv-bench-", dir="/tmp"))
        self.places = [
            Place(FIRST_CID + n, self.directory / f"h{n}.sock", self.directory / f"v{n}.sock") for n in range(vms)
        ]
        self._contender = contender
        self._log = (self.directory / "log").open("w+b")
        self.started = time.monotonic()
        self.process = subprocess.Popen(
            contender.command(self.places, self.directory),
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=self._log,
            preexec_fn=lambda: _as_child(pinned),
            env={**os.environ, "VHOSTVSOCK_RUNTIME_DIR": str(self.directory / "run")},
        )

    def said(self) -> bytes:
        return (self.directory / "log").read_bytes()

    def is_ready(self) -> bool:
        """It says so; or, where it says nothing, all of its sockets listen."""
        if self._contender.ready is not None:
            return self._contender.ready in self.said()
        wanted = {str(path) for place in self.places for path in (place.socket, place.uds)}
        return wanted <= listening()

    def wait(self) -> float:
        """Until it is ready; how many seconds after its start that was."""
        while not self.is_ready():
            if self.process.poll() is not None or time.monotonic() > self.started + START_TIMEOUT:
                said = self.said().decode(errors="replace").strip().splitlines() or ["it said nothing"]
                raise BenchError(f"{self._contender.title} did not start: {said[-1]}")
            time.sleep(_LOOK)
        return time.monotonic() - self.started

    def __enter__(self) -> Daemon:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(5)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self._log.close()
        shutil.rmtree(self.directory, ignore_errors=True)


def listening() -> set[str]:
    """Paths of all UNIX sockets that listen, by the kernel's own list."""
    # Fields: number, count, protocol, flags (0x10000 where it listens), type, state, inode, path.
    found = set()
    with open("/proc/net/unix", encoding="utf-8", errors="replace") as file:
        next(file)
        for line in file:
            fields = line.split()
            if len(fields) >= 8 and int(fields[3], 16) & 0x10000:
                found.add(fields[7])
    return found
