"""A program under `vhostvsock exec` with a port and a buffer size of its own, and what a real guest makes of them."""

from __future__ import annotations

import os
import shlex
import sys

import pytest
from harness.daemon import BACKEND, CID
from harness.machine import Machine

from .conftest import on_both_kernels
from .programs import Place

pytestmark = pytest.mark.skipif(BACKEND == "peer", reason="a test of vhostvsock's own command")

MIB = 1 << 20


def _python(vm: Machine, code: str) -> list[str]:
    """The lines that a script writes."""
    place = Place(vm.cwd, vm.cwd / "run", os.environ["PATH"])
    script = shlex.join([sys.executable, "-c", "import hashlib, socket\n" + code])
    return place.ok(script).decode().splitlines()


@on_both_kernels
def test_a_guests_program_sees_the_port_that_was_bound(vm: Machine) -> None:
    vm.inside("exec", "vsock-listen:1240", "'echo $VSOCK_PEER_CID $VSOCK_PEER_PORT'").listening()
    code = f"""
for port in 5555, 5556:
    with socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM) as sock:
        sock.bind((socket.VMADDR_CID_ANY, port)); sock.connect(({CID}, 1240))
        print(sock.recv(100).decode().split(), sock.getsockname() == (socket.VMADDR_CID_ANY, port))
"""
    assert _python(vm, code) == ["['2', '5555'] True", "['2', '5556'] True"]


@on_both_kernels
def test_a_mebibyte_of_a_guest_arrives_through_small_windows(vm: Machine) -> None:
    vm.guest.run("dd if=/dev/urandom of=/tmp/data bs=1024 count=1024 2>/dev/null")
    total = vm.guest.run("sha256sum < /tmp/data").split()[0]
    vm.inside("exec", "vsock-listen:1241", "'exec cat /tmp/data'").listening()
    code = f"""
for size in 128, 4096:
    with socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM) as sock:
        sock.setsockopt(socket.AF_VSOCK, socket.SO_VM_SOCKETS_BUFFER_SIZE, size)
        sock.connect(({CID}, 1241))
        data = b"".join(iter(lambda: sock.recv(65536), b""))
        print(len(data), hashlib.sha256(data).hexdigest())
"""
    assert _python(vm, code) == [f"{MIB} {total}"] * 2
