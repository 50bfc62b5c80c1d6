"""A microvm guest, with the device on virtio-mmio."""

from __future__ import annotations

import pytest
from harness.machine import Kind, Machine

from .clients import connected_echo, connections_work, read_to_end
from .conftest import KERNELS, QEMUS

KINDS = [Kind(kernel, qemu, "microvm.cfg") for qemu in QEMUS for kernel in KERNELS]


@pytest.mark.parametrize("vm", KINDS, indirect=True, ids=str)
def test_a_microvm_talks_and_can_be_reset(vm: Machine) -> None:
    # No PCI: the device is where ACPI says.
    assert vm.guest.run("ls /sys/bus/virtio/devices") != ""
    assert "/pci" not in vm.guest.run("readlink -f /sys/bus/virtio/devices/virtio*")
    connections_work(vm)
    size = 64 << 20
    host = vm.host("talk", "unix-listen:v.sock_5000", f"recv=1:{size}", f"send=2:{size}", "shutdown", "eof").listening()
    guest = vm.inside("talk", "vsock:2:5000", f"send=1:{size}", f"recv=2:{size}", "shutdown", "eof")
    host.right(120)
    guest.right()
    with connected_echo(vm, 5001) as sock:
        vm.reset()
        assert read_to_end(sock) == b""
    connections_work(vm)
