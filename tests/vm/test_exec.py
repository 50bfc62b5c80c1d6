"""Programs of the host with AF_VSOCK sockets, under `vhostvsock exec`, and real guests: the announcements' commands."""

from __future__ import annotations

import contextlib
import hashlib
import os
import subprocess
import sys
from collections.abc import Iterator

import pytest
from conftest import tool
from harness.build import guest_probe
from harness.daemon import BACKEND, CID
from harness.machine import Machine
from harness.waiting import Process, wait_for

from .conftest import on_both_kernels, on_one
from .test_clients import nbd

pytestmark = pytest.mark.skipif(BACKEND == "peer", reason="a test of vhostvsock's own command")

MIB = 1 << 20
# As much of a disk is read: 1024 takes a while under emulation.
DISK_MIB = int(os.environ.get("VHOSTVSOCK_TEST_DISK_MIB", "64"))


def _env(vm: Machine) -> dict[str, str]:
    return {**os.environ, "VHOSTVSOCK_RUNTIME_DIR": str(vm.cwd / "run")}


def _words(*words: str) -> list[str]:
    return [sys.executable, "-m", "vhostvsock", "exec", "--", *words]


def _run(vm: Machine, *words: str, data: bytes = b"") -> bytes:
    done = subprocess.run(
        _words(*words), cwd=vm.cwd, env=_env(vm), input=data, capture_output=True, timeout=120, check=False
    )
    assert done.returncode == 0, (done.returncode, done.stdout, done.stderr)
    return done.stdout


@contextlib.contextmanager
def _beside(vm: Machine, *words: str) -> Iterator[Process]:
    """A program that runs meanwhile, and is ended as people end it."""
    with Process(_words(*words), vm.cwd, env=_env(vm), name=words[0]) as process:
        try:
            yield process
        finally:
            process.stop()


def _until_it_listens(vm: Machine, port: int) -> None:
    code = f"""
import socket
with socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM) as sock: sock.bind((socket.VMADDR_CID_ANY, {port}))
"""

    def taken() -> bool:
        command = _words(sys.executable, "-c", code)
        return subprocess.run(command, env=_env(vm), capture_output=True, timeout=60, check=False).returncode != 0

    wait_for(taken, f"somebody listens on port {port}")


@on_both_kernels
def test_nc_into_a_guest_and_back(vm: Machine) -> None:
    nc = tool("ncat")
    vm.inside("exec", "vsock-listen:1234", "'read line; echo guest heard $line'").listening()
    # ncat ends with its input: that lasts until the answer is there.
    script = f"(echo hello; sleep 2) | {nc} --vsock {CID} 1234"
    assert _run(vm, "sh", "-c", script) == b"guest heard hello\n"
    with _beside(vm, nc, "--vsock", "-l", "1234") as server:
        _until_it_listens(vm, 1234)
        vm.guest.run("echo hello | socat -t5 - VSOCK-CONNECT:2:1234")
        server.lines.wait_line("hello")


@on_both_kernels
def test_socat_in_both_roles(vm: Machine) -> None:
    socat = tool("socat")
    data = os.urandom(300_000)
    total = hashlib.sha256(data).hexdigest()
    vm.inside("exec", "vsock-listen:1235", "sha256sum").listening()
    assert _run(vm, socat, "-t30", "-", f"VSOCK-CONNECT:{CID}:1235", data=data).split()[0].decode() == total
    with _beside(vm, socat, "VSOCK-LISTEN:1235,fork", "SYSTEM:sha256sum"):
        _until_it_listens(vm, 1235)
        vm.guest.run("dd if=/dev/urandom of=/tmp/data bs=1000 count=300 2>/dev/null")
        answer = vm.guest.run("socat -t30 - VSOCK-CONNECT:2:1235 < /tmp/data")
        assert answer.split()[0] == vm.guest.run("sha256sum < /tmp/data").split()[0]


@on_both_kernels
def test_a_statically_linked_program_in_both_roles(vm: Machine) -> None:
    probe = str(guest_probe())
    conversation = (f"send=1:{MIB}", "shutdown", f"recv=2:{MIB}", "eof")
    answer = (f"recv=1:{MIB}", "eof", f"send=2:{MIB}", "shutdown")
    guest = vm.inside("talk", "vsock-listen:1236", *answer).listening()
    _run(vm, probe, "talk", f"vsock:{CID}:1236", *conversation)
    guest.right()
    with _beside(vm, probe, "talk", "vsock-listen:1236", *answer) as host:
        host.lines.wait_line("listening")
        vm.inside("talk", "vsock:2:1236", *conversation).right()
        assert host.wait() == 0


@on_one
def test_a_python_program_is_refused_as_by_linux(vm: Machine) -> None:
    code = f"""
import errno, socket
sock = socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM)
for address in ({CID}, 5999), (77, 1):
    try: sock.connect(address)
    except OSError as error: print(errno.errorcode[error.errno])
"""
    assert _run(vm, sys.executable, "-c", code) == b"ECONNRESET\nENODEV\n"


@on_one
@pytest.mark.timeout(300 + 2 * DISK_MIB)
def test_nbdkit_serves_a_guest(vm: Machine) -> None:
    disk = vm.cwd / "gate-disk"
    total = hashlib.sha256()
    with disk.open("wb") as file:
        for _ in range(DISK_MIB):
            piece = os.urandom(MIB)
            total.update(piece)
            file.write(piece)
    command = [tool("nbdkit"), "--foreground", "--exit-with-parent", "--vsock", "--port", "10809", "file", str(disk)]
    with _beside(vm, *command):
        _until_it_listens(vm, 10809)
        uri = "nbd+vsock://2:10809"
        assert vm.guest.run(nbd(f"nbdinfo --size {uri}")) == str(DISK_MIB * MIB)
        read = f"set -o pipefail; {nbd(f'nbdcopy {uri} -')} | sha256sum"
        assert vm.guest.run(read, 120 + 2 * DISK_MIB).split()[0] == total.hexdigest()
