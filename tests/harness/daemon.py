"""The back-end that QEMU attaches to: vhostvsock, or for comparison the peer vhost-device-vsock.

Before: machine.py. After: qemu.py connects to vh.sock, host applications to v.sock, both in the working directory.
Rule:   started means ready: both sockets listen.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from harness.waiting import LIMIT, Process, WaitError, wait_for
from scripts.lib import fetch
from vhostvsock.registry.store import Registry

CID = 42
# VHOSTVSOCK_TEST_BACKEND=peer runs the VM tests against vhost-device-vsock: what fails there is the peer's defect or
# the test's, and not vhostvsock's.
BACKEND = os.environ.get("VHOSTVSOCK_TEST_BACKEND", "vhostvsock")
_ONE_VM = ("--guest-cid", str(CID), "--socket", "vh.sock", "--uds-path", "v.sock")


def start_daemon(cwd: Path, *options: str) -> Process:
    """`vhostvsock run` for one VM, or with the given options; ready."""
    if BACKEND == "peer":
        return start_peer(cwd)
    # A registry of its own: all VMs here have the same CID.
    where = ("--runtime-dir", "run", "--no-parent")
    command = [sys.executable, "-m", "vhostvsock", "run", *(options or _ONE_VM), *where, "-v"]
    process = Process(command, cwd, name="vhostvsock")
    try:
        process.lines.wait_line("vhostvsock: ready:")
    except WaitError:
        process.close()
        raise
    return process


def start_peer(cwd: Path) -> Process:
    """vhost-device-vsock for one VM, ready."""
    process = Process([fetch.peer(), *_ONE_VM], cwd, name="vhost-device-vsock")
    try:
        wait_for(lambda: (cwd / "vh.sock").exists() or not process.alive(), "vh.sock", LIMIT)
    except WaitError:
        process.close()
        raise
    return process


def port_is_bound(runtime_dir: Path, port: int) -> bool:
    """Whether an application of the host has this port. Looked up: who tries to bind it may have it for a moment
    himself, and who connects is a client."""
    with Registry(str(runtime_dir)) as registry:
        return any(listener.port == port for listener in registry.listeners())
