"""A file system without space, or read-only: told in plain words, and nothing that was there is lost."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from conftest import tool

# Runs in a mount namespace of its own, so that what is mounted ends with it.
SETUP = """
import os, subprocess, sys
from vhostvsock.registry.errors import RegistryError
from vhostvsock.registry.kernel import KernelModes
from vhostvsock.registry.rules import NetnsId
from vhostvsock.registry.store import Registry

place = sys.argv[1]
def mount(*args):
    subprocess.run(["mount", *args], check=True)
def registry():
    return Registry(os.path.join(place, "run"), kernel=KernelModes("/nonexistent"), own_cid=lambda: None)
def fill():
    with open(os.path.join(place, "filler"), "wb", buffering=0) as file:
        try:
            while file.write(b"x" * 4096):
                pass
        except OSError:
            pass
def fails(call, part):
    try:
        call()
    except RegistryError as error:
        assert part in str(error), error
        assert error.hint
    else:
        raise AssertionError("nothing failed")
mount("-t", "tmpfs", "-o", "size=256k", "none", place)
here = NetnsId(1)
"""

FULL_AT_THE_START = """
fill()
fails(registry, "")
os.unlink(os.path.join(place, "filler"))
with registry() as one:
    one.register_daemon("bridge")
    assert one.claim(here, None, "web").cid.value == 3
"""

FULL_LATER = """
with registry() as one, registry() as two:
    one.register_daemon("bridge")
    two.register_daemon("bridge")
    kept, given = one.claim(here, 42, "kept"), one.claim(here, 43, "given")
    fill()
    fails(lambda: [one.claim(here, None, "more" * 16) for _ in range(2000)], "no space left")
    before = len(two.vms())
    assert two.find_vm(here, 42) == kept  # reading goes on
    try:
        one.release(given)
    except RegistryError:
        pass
    os.unlink(os.path.join(place, "filler"))
    one.set_running(kept, True)
    assert two.find_vm(here, 43) is None
    assert two.find_vm(here, 42).running
    assert len(two.vms()) == before - 1
    assert two.claim(here, 43, "other").cid.value == 43
"""

READ_ONLY = """
one = registry()
one.register_daemon("bridge")
kept = one.claim(here, 42, "kept")
one._database.close()  # an open file would keep the file system from becoming read-only
os.close(one._lock)
mount("-o", "remount,ro", place)
with registry() as two:
    assert two.vms() == []  # looking is possible
    fails(lambda: two.register_daemon("bridge"), "ead-only")
    fails(lambda: two.modes.declare_child(here, NetnsId(2)), "ead-only")
mount("-o", "remount,rw", place)
with registry() as two:
    assert two.vms() == []
"""


@pytest.mark.parametrize("case", [FULL_AT_THE_START, FULL_LATER, READ_ONLY], ids=["full", "full later", "read-only"])
def test_a_file_system_that_takes_nothing_more_is_told_and_recovered_from(short_dir: Path, case: str) -> None:
    done = subprocess.run(
        [tool("unshare"), "--mount", sys.executable, "-c", SETUP + case, str(short_dir)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
