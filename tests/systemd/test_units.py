"""The units as systemd judges them, and what installing and the tests' own container leave behind: nothing."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from .conftest import install
from .container import LIMIT, Container, wait_for

SERVICES = ("vhostvsock@blue.service", "vhostvsock.service")
# In tenths, as systemd-analyze takes it.
EXPOSURE = 15
PLACES = ("usr/local/lib", "etc/systemd", "etc/vhostvsock")


def files(container: Container) -> set[str]:
    return {str(path) for place in PLACES for path in (container.root / place).rglob("*") if not path.is_dir()}


def test_the_units_are_valid(container: Container) -> None:
    assert container.run("systemd-analyze", "verify", *SERVICES) == ""


@pytest.mark.parametrize("unit", ["vhostvsock@.service", "vhostvsock.service"])
def test_the_units_expose_little(container: Container, unit: str) -> None:
    path = f"/usr/local/lib/systemd/system/{unit}"
    container.run("systemd-analyze", "security", "--offline=yes", f"--threshold={EXPOSURE}", path)


def test_uninstall_removes_exactly_what_install_put_in_place(container: Container) -> None:
    with_units = files(container)
    container.run("vhostvsock", "systemd", "uninstall")
    try:
        without = files(container)
        assert not [path for path in without if "vhostvsock" in Path(path).name]
        assert len(with_units - without) == 4
        assert not without - with_units
        container.run("systemctl", "daemon-reload")
        assert container.show("vhostvsock.service", "LoadState") == "not-found"
    finally:
        install(container)
    assert files(container) == with_units


def leftovers(container: Container) -> list[str]:
    """What is still there of a container that ended."""
    found = []
    if container.directory.exists():
        found.append(str(container.directory))
    if str(container.directory) in Path("/proc/self/mountinfo").read_text():
        found.append("a mount")
    for name in os.listdir("/proc"):
        try:
            command = Path(f"/proc/{name}/cmdline").read_bytes() if name.isdecimal() else b""
        except OSError:
            continue
        if os.fsencode(container.directory) in command:
            found.append(f"process {name}")
    if Path(f"/proc/{container.init}").exists():
        found.append("the manager")
    return found + [str(path) for path in container.groups()]


def test_the_container_leaves_nothing_behind() -> None:
    with Container() as container:
        container.run("ip", "netns", "add", "x")
    assert leftovers(container) == []


def test_the_container_ends_and_cleans_up_when_the_tests_are_killed() -> None:
    with Container() as container:
        assert container.supervisor.stdin is not None
        container.supervisor.stdin.close()  # as the kernel does it for the dead
        assert container.supervisor.wait(LIMIT) == 0
        assert leftovers(container) == []


def test_the_container_ends_when_its_supervisor_is_killed() -> None:
    with Container() as container:
        os.kill(container.supervisor.pid, signal.SIGKILL)
        wait_for(lambda: not Path(f"/proc/{container.init}").exists(), "the manager is gone")
    assert leftovers(container) == []
