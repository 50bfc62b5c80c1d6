"""The container with a real systemd in it, as the tests use it.

Before: conftest.py starts one for all tests. After: container.sh, which builds it and takes it down.
Rules:  - A missing prerequisite is named through `lacking`; a container that then does not start is a failure.
        - Everything waits for a condition, with a limit.
"""

from __future__ import annotations

import os
import select
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

from conftest import ROOT, lacking

LIMIT = 30.0
HERE = Path(__file__).parent
MANAGER = Path("/lib/systemd/systemd")
TOOLS = ("unshare", "nsenter", "setpriv", "pivot_root", "mount", "ip", "systemctl", "journalctl", "systemd-analyze")
SITE = sysconfig.get_paths()["purelib"]
# Where the script below SOURCE and the interpreter are, inside.
_PYTHON = ("env", "LD_LIBRARY_PATH=/opt/vv/python/lib", "/opt/vv/python/bin/python3")


def wait_for(condition: Callable[[], bool], what: str, limit: float = LIMIT) -> None:
    """Wait until `condition` holds."""
    deadline = time.monotonic() + limit
    while not condition():
        assert time.monotonic() < deadline, f"never came: {what}"
        time.sleep(0.02)


def check_prerequisites() -> None:
    """Skip, or fail in CI, where a real manager cannot be had."""
    if os.geteuid() != 0:
        lacking("root, for a container with systemd in it")
    for name in TOOLS:
        if shutil.which(name) is None:
            lacking(f"{name} (tests/harness/apt-packages.txt)")
    if not MANAGER.exists():
        lacking(f"{MANAGER} (tests/harness/apt-packages.txt)")
    for name in ("overlay", "cgroup2"):
        if f"\t{name}\n" not in Path("/proc/filesystems").read_text():
            lacking(f"the file system {name}")
    probe = subprocess.run(["unshare", "--mount", "--net", "true"], capture_output=True, check=False)
    if probe.returncode != 0:
        lacking("the right to make namespaces (a privileged container, or a machine)")


class Container:
    """A running container; use it in a `with` statement."""

    def __init__(self) -> None:
        check_prerequisites()
        # Not /tmp, which may be a tmpfs: it cannot always carry an overlay.
        self.directory = Path(tempfile.mkdtemp(prefix="vv-systemd-", dir="/var/tmp"))
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the container
        self.supervisor = subprocess.Popen(
            ["bash", str(HERE / "container.sh"), *map(str, (self.directory, ROOT, sys.base_prefix, SITE))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
        )
        try:
            self.init = self._wait_started()
            self.root = Path(f"/proc/{self.init}/root")
            wait_for(self._running, "the manager has started everything")
        except BaseException:
            self.close()
            raise

    def _wait_started(self) -> int:
        assert self.supervisor.stdout is not None
        ready, _, _ = select.select([self.supervisor.stdout], [], [], LIMIT)
        line = self.supervisor.stdout.readline().decode() if ready else ""
        if not line.startswith("init "):
            why = self._why()
            if "overlay" in why:
                lacking(f"an overlay over / with its upper layer in /var/tmp: {why}")
            raise AssertionError(f"the container did not start: {why}")
        return int(line.split()[1])

    def _why(self) -> str:
        """What went wrong, as the script saw it."""
        return os.pread(self._errors.fileno(), 65536, 0).decode()

    def _running(self) -> bool:
        assert self.supervisor.poll() is None, f"the container ended: {self._why()}"
        return self.run("systemctl", "is-system-running", check=False).strip() in ("running", "degraded")

    def command(self, *args: str, netns: str | None = None) -> list[str]:
        """How to run something inside, in one of its network namespaces if that is named."""
        inner = ["nsenter", f"--net=/run/netns/{netns}", "--", *args] if netns else args
        return ["nsenter", f"--target={self.init}", "--all", "--", *inner]

    def run(self, *args: str, netns: str | None = None, check: bool = True) -> str:
        """What a command inside says on stdout, and on stderr."""
        done = subprocess.run(
            self.command(*args, netns=netns),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env={"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"},
            text=True,
            check=False,
            timeout=LIMIT,
        )
        assert not check or done.returncode == 0, f"{' '.join(args)}: code {done.returncode}: {done.stdout}"
        return done.stdout

    def script(self, name: str, *args: str) -> tuple[str, ...]:
        """A script of this directory as a command for inside."""
        return (*_PYTHON, f"/opt/vv/source/tests/systemd/{name}", *args)

    def write(self, path: str, text: str) -> None:
        """Write a file inside."""
        target = self.root / path.lstrip("/")
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text)

    def show(self, unit: str, name: str) -> str:
        """A property of a unit."""
        return self.run("systemctl", "show", "--value", f"--property={name}", unit).strip()

    def journal(self, unit: str) -> str:
        """What a service, and the manager about it, has said."""
        self.run("journalctl", "--sync")
        return self.run("journalctl", "--no-pager", "--output=cat", "--unit", unit)

    def close(self) -> None:
        """Take everything down. May be called twice."""
        if self.supervisor.stdin is not None:
            self.supervisor.stdin.close()  # what the supervisor waits for
        try:
            self.supervisor.wait(LIMIT)
        except subprocess.TimeoutExpired:
            self.supervisor.kill()
            self.supervisor.wait()
        if self.supervisor.stdout is not None:
            self.supervisor.stdout.close()
        self._errors.close()
        for group in self.groups():
            # Only where the supervisor was killed: it removes them itself.
            for path, _, _ in os.walk(group, topdown=False):
                os.rmdir(path)
        shutil.rmtree(self.directory, ignore_errors=True)

    def groups(self) -> list[Path]:
        """The container's control groups that are there, as far as the machine shows them."""
        name = f"vhostvsock-test-{self.supervisor.pid}"
        mounts = [line.split() for line in Path("/proc/self/mounts").read_text().splitlines()]
        return [path for mount in mounts if mount[2] == "cgroup2" and (path := Path(mount[1]) / name).exists()]

    def __enter__(self) -> Container:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
