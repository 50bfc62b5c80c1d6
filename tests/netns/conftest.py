"""Real network namespaces for the tests: made for one test, with names of their own, and removed whatever happens.

Rule: nothing here needs AF_VSOCK; the machine that runs the tests may itself be a VM that uses it.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import lacking, tool
from netns.serving import World, world
from netns.serving import program as program
from netns.serving import served as served

from vhostvsock.registry.netns import Namespace, NetnsId, in_thread, leave_for_new, open_namespace, own

_numbers = itertools.count()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.parent == Path(__file__).parent:
            item.add_marker(pytest.mark.usefixtures("_root"))


@pytest.fixture
def _root() -> None:
    if os.geteuid() != 0:
        lacking("root, to make network namespaces")
    try:
        in_thread(leave_for_new)
    except Exception as error:
        lacking(f"network namespaces ({error})")


class Names:
    """Names that only this test uses. What is behind them is removed at the end."""

    def __init__(self) -> None:
        self.used: list[str] = []

    def new(self, what: str = "ns") -> str:
        """A name that nothing has yet."""
        name = f"vvt{os.getpid()}-{next(_numbers)}-{what}"
        self.used.append(name)
        return name

    def add(self, what: str = "ns") -> str:
        """A namespace made by iproute2, which our registry knows nothing of."""
        name = self.new(what)
        subprocess.run([tool("ip"), "netns", "add", name], check=True)
        return name

    def remove(self, name: str) -> None:
        if os.path.lexists(f"/run/netns/{name}"):
            subprocess.run([tool("ip"), "netns", "del", name], check=True)


@pytest.fixture
def names() -> Iterator[Names]:
    made = Names()
    try:
        yield made
    finally:
        for name in made.used:
            made.remove(name)


class Command:
    """The command `vhostvsock` with a registry of its own, in whichever namespace."""

    def __init__(self, directory: str) -> None:
        self.directory = directory
        self.env = {**os.environ, "VHOSTVSOCK_RUNTIME_DIR": directory}
        self.program = [sys.executable, "-m", "vhostvsock"]

    def run(self, *args: str, within: str | None = None, by: str = "exec") -> subprocess.CompletedProcess[str]:
        """Run it. `by`: how to enter the namespace `within`: `ip netns exec`, or nsenter."""
        enter: list[str] = []
        if within is not None:
            enter = [tool("ip"), "netns", "exec", within]
            if by == "nsenter":
                enter = [tool("nsenter"), f"--net=/run/netns/{within}"]
        return subprocess.run(
            [*enter, *self.program, *args], env=self.env, capture_output=True, text=True, check=False, timeout=60
        )

    def ok(self, *args: str, within: str | None = None, by: str = "exec") -> str:
        done = self.run(*args, within=within, by=by)
        assert (done.returncode, done.stderr) == (0, "")
        return done.stdout

    def fails(self, *args: str, within: str | None = None, code: int = 1) -> str:
        """The complaint of a command that must fail: one line, and perhaps a hint."""
        done = self.run(*args, within=within)
        assert (done.returncode, done.stdout) == (code, ""), done
        lines = done.stderr.splitlines()
        assert lines[0].startswith("vhostvsock: error: ")
        assert len(lines) <= 2
        assert len(lines) == 1 or lines[1].startswith("hint: ")
        return done.stderr


@pytest.fixture
def command(short_dir: Path) -> Command:
    return Command(str(short_dir / "run"))


def cookie(name: str) -> NetnsId:
    with open_namespace(f"/run/netns/{name}") as found:
        return found.id


@contextlib.contextmanager
def nameless() -> Iterator[Namespace]:
    """A namespace that has no name; it ends with the `with`."""

    def make() -> Namespace:
        leave_for_new()
        return Namespace(own(), os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC), "nameless")

    with in_thread(make) as made:
        yield made


@pytest.fixture(scope="module")
def spaces() -> Iterator[dict[str, str]]:
    """Two global and two local namespaces, by role, and the runtime directory in which their modes are noted."""
    if os.geteuid() != 0:
        lacking("root, to make network namespaces")
    found: dict[str, str] = {}
    with tempfile.TemporaryDirectory(prefix="vr-", dir="/tmp") as directory:
        command, names = Command(directory), Names()
        try:
            for role in ("global0", "global1", "local0", "local1"):
                found[role] = names.new(role)
                command.ok("netns", "add", found[role], "--mode", role[:-1])
            yield {**found, "registry": directory}
        finally:
            for name in names.used:
                names.remove(name)


@pytest.fixture
def world_of(spaces: dict[str, str], short_dir: Path, program: str) -> Iterator[World]:
    """Daemons and guests with the registry of `spaces`."""
    with world(short_dir, program, spaces["registry"]) as made:
        yield made
