"""Guests for the VM tests: booted once for each kernel and QEMU, and used again by one test after another.

Before: pytest asks for the fixture `vm` with one of the kinds below. After: harness/machine.py boots it.
Rules:  - Between two tests a machine is asked to prove that it works; if not, it gets a new daemon and a new boot. So a
          test may break its machine, and what one test breaks fails no other.
        - Everything ends with the session, also after Ctrl-C.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import lacking, tool
from harness.machine import Kind, Machine

from scripts.lib import fetch
from vhostvsock.registry.errors import NetnsError
from vhostvsock.registry.netns import in_thread, leave_for_new

_MISSING = pytest.StashKey[str]()
KERNELS = ("6.1", "new")
QEMUS = ("7.2", "10.0")
# Tests of the data path: both kernels, each on one QEMU. Tests of attaching, resetting and plugging: all four pairs.
BOTH = [Kind("6.1", "7.2", tools=True), Kind("new", "10.0", tools=True)]
ALL = [Kind(kernel, qemu, tools=True) for qemu in QEMUS for kernel in KERNELS]

on_both_kernels = pytest.mark.parametrize("vm", BOTH, indirect=True, ids=str)
on_all_pairs = pytest.mark.parametrize("vm", ALL, indirect=True, ids=str)
on_one = pytest.mark.parametrize("vm", BOTH[1:], indirect=True, ids=str)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.parent == Path(__file__).parent and item.get_closest_marker("timeout") is None:
            item.add_marker(pytest.mark.timeout(300))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
    """A failed test tells what its machine said."""
    report = yield
    machine = getattr(item, "funcargs", {}).get("vm")
    if report.when == "call" and report.failed and isinstance(machine, Machine):
        report.sections.append((f"the machine {machine.kind}", machine.describe()))
    return report


def pytest_collection_finish(session: pytest.Session) -> None:
    """Fetch what is missing before the first test: the network is under no test's time limit, and progress is seen."""
    config = session.config
    if config.option.collectonly or not any(item.path.parent == Path(__file__).parent for item in session.items):
        return
    capture = config.pluginmanager.getplugin("capturemanager")
    with capture.global_and_fixture_disabled() if capture else contextlib.nullcontext():
        try:
            for thing in ("kernel-6.1", "kernel-new", "qemu-7.2", "qemu-10.0", "guest-tools", "ssh-proxy"):
                fetch.THINGS[thing]()
        except (fetch.FetchError, OSError, subprocess.CalledProcessError) as error:
            config.stash[_MISSING] = f"{error} ({getattr(error, 'hint', 'fetch.py all tells more')})"


@pytest.fixture(scope="session")
def prerequisites(pytestconfig: pytest.Config) -> None:
    """All that a guest needs is there."""
    for name in ("gcc", "qemu-system-x86_64"):
        tool(name)
    if _MISSING in pytestconfig.stash:
        lacking(pytestconfig.stash[_MISSING])


@pytest.fixture(scope="session")
def namespaces_can_be_made(prerequisites: None) -> None:
    """The tests run as root, with network namespaces."""
    if os.geteuid() != 0:
        lacking("root, to make network namespaces")
    tool("ip")
    try:
        in_thread(leave_for_new)
    except NetnsError as error:
        lacking(f"network namespaces ({error})")


@pytest.fixture(scope="session")
def fleet(prerequisites: None) -> Iterator[dict[Kind, Machine]]:
    """The machines that were booted so far."""
    machines: dict[Kind, Machine] = {}
    try:
        yield machines
    finally:
        for machine in machines.values():
            machine.close()


@contextlib.contextmanager
def working(fleet: dict[Kind, Machine], kind: Kind) -> Iterator[Machine]:
    """The machine of a kind, one that works; probes end with the block."""
    if kind not in fleet:
        fleet[kind] = Machine(kind)
    machine = fleet[kind].ready()
    try:
        yield machine
    finally:
        machine.end_probes()


@pytest.fixture
def vm(request: pytest.FixtureRequest, fleet: dict[Kind, Machine]) -> Iterator[Machine]:
    """A machine that works, of the kind that the test is parametrized with."""
    with working(fleet, request.param) as machine:
        yield machine
