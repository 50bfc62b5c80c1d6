"""What all tests share: the tier of each test from its directory, and prerequisites that CI insists on.

Tiers, cheapest first: unit, boundary, wire, netns, exec, style, perf, fuzz, systemd, vm. The directory decides,
nobody writes the marker.
Rule: outside CI a missing prerequisite skips the test and is named; in CI (CI=true) it is a failure.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

import pytest
from hypothesis import HealthCheck, settings

# The machines that run this differ in speed: how long an example takes is no finding.
settings.register_profile("vhostvsock", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("vhostvsock")

ROOT = Path(__file__).resolve().parent.parent
TIERS = ("unit", "boundary", "wire", "netns", "exec", "style", "perf", "fuzz", "systemd", "vm")
# Order in a full run: what fails fast comes first.
_ORDER = {
    "unit": 0,
    "boundary": 1,
    "style": 2,
    "perf": 3,
    "wire": 4,
    "netns": 5,
    "exec": 6,
    "fuzz": 7,
    "systemd": 8,
    "vm": 9,
}


def in_ci() -> bool:
    return os.environ.get("CI", "").lower() in ("1", "true", "yes")


def tier_of(path: Path) -> str | None:
    """The tier that a test file belongs to, by its directory below tests/."""
    try:
        first = path.resolve().relative_to(ROOT / "tests").parts[0]
    except ValueError:
        return None
    return first if first in TIERS else None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        tier = tier_of(item.path)
        if tier is not None:
            item.add_marker(getattr(pytest.mark, tier))
    items.sort(key=lambda item: _ORDER.get(tier_of(item.path) or "", 9))


def lacking(what: str) -> NoReturn:
    """A prerequisite is missing: skip, or fail in CI."""
    if in_ci():
        pytest.fail(f"in CI this must be there: {what}", pytrace=False)
    pytest.skip(f"missing: {what}")


def tool(name: str) -> str:
    """The path of a program that a test needs; those of the running virtual environment come first."""
    beside = Path(sys.executable).parent / name
    found = str(beside) if beside.exists() else shutil.which(name)
    if found is None:
        lacking(name)
    return found


@pytest.fixture(scope="session", autouse=True)
def _runtime_dir() -> Iterator[None]:
    """A runtime directory of our own: the machine's daemons, and their registry, are none of our business."""
    import tempfile

    with tempfile.TemporaryDirectory(prefix="vr-", dir="/tmp") as name, pytest.MonkeyPatch.context() as patch:
        patch.setenv("VHOSTVSOCK_RUNTIME_DIR", name)
        yield


@pytest.fixture
def short_dir() -> Iterator[Path]:
    """A directory with a short name: paths of UNIX sockets are limited to 107 bytes, and pytest's own are long."""
    import tempfile

    with tempfile.TemporaryDirectory(prefix="vv-", dir="/tmp") as name:
        yield Path(name)


# Programs of the tests of `vhostvsock exec`, with small guests (tests/exec) and with real ones (tests/vm) -------------


@pytest.fixture(scope="session")
def static_program() -> str:
    """The probe of the VM tests, with vsock: statically linked C."""
    from harness.build import guest_probe

    tool("gcc")
    return str(guest_probe())


@pytest.fixture(scope="session")
def go_program() -> str:
    """harness/hello.go: no C library is in between."""
    from harness.build import go_program

    tool("go")
    return str(go_program())


@pytest.fixture(scope="session")
def path_with_nc(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A PATH on which `nc` is ncat, as in AF_VSOCK's announcements. Several programs are called so."""
    directory = tmp_path_factory.mktemp("bin")
    (directory / "nc").symlink_to(tool("ncat"))
    return f"{directory}:{os.environ['PATH']}"
