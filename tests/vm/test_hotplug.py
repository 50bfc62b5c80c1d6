"""The device and memory come and go while the guest runs, all in one daemon; memory that is not shared is named."""

from __future__ import annotations

import pytest
from harness.machine import Kind, Machine
from harness.qemu import CONFIGS
from harness.waiting import wait_for

from .clients import connected_echo, connections_work, read_to_end
from .conftest import QEMUS, on_all_pairs, on_both_kernels

MIB = 1 << 20
PLUGGED = 128 * MIB


def _devices(vm: Machine) -> str:
    """The virtio devices that the vsock driver has."""
    return vm.guest.run("ls -d /sys/bus/virtio/drivers/vmw_vsock_virtio_transport/virtio* 2>/dev/null || true")


@on_all_pairs
def test_the_device_is_unplugged_and_plugged_again_on_the_same_chardev(vm: Machine) -> None:
    qmp = vm.qemu.qmp
    for _ in range(3):
        with connected_echo(vm, 5001) as sock:
            qmp.command("device_del", id="vsock")
            qmp.event("DEVICE_DELETED", device="vsock")
            assert _devices(vm) == ""
            qmp.command("device_add", driver="vhost-user-vsock-pci", id="vsock", bus="vsockport", chardev="vsock0")
            wait_for(lambda: _devices(vm) != "", "the guest finds the device that was plugged")
            assert read_to_end(sock) == b""
        connections_work(vm)


def _memory(vm: Machine) -> int:
    return int(vm.guest.run("awk '/MemTotal/ {print $2}' /proc/meminfo")) * 1024


@on_both_kernels
def test_memory_is_added_and_removed_while_data_flows(vm: Machine) -> None:
    qmp = vm.qemu.qmp
    # Memory that the kernel keeps movable can be removed again.
    vm.guest.run("echo online_movable > /sys/devices/system/memory/auto_online_blocks")
    size = 1 << 40
    to_host = vm.host("talk", "unix-listen:v.sock_5000", "recv=1:all", f"every={MIB}").listening()
    vm.inside("talk", "vsock:2:5000", f"send=1:{size}")
    vm.inside("talk", "vsock-listen:5004", "recv=1:all").listening()
    to_guest = vm.host("talk", "hybrid:v.sock:5004", f"send=1:{size}", f"every={MIB}")
    before = _memory(vm)

    def flows() -> None:
        to_host.reached(to_host.so_far() + 4 * MIB)
        to_guest.reached(to_guest.so_far("sent") + 4 * MIB, "sent")

    flows()
    for turn in range(3):
        qmp.command("object-add", qom_type="memory-backend-memfd", id="more", size=PLUGGED, share=True)
        qmp.command("device_add", driver="pc-dimm", id=f"dimm{turn}", memdev="more")
        wait_for(lambda: _memory(vm) > before + PLUGGED // 2, "the guest has the memory that was added")
        flows()
        # All of it is used for a moment, so that buffers of the device come to lie there, too.
        vm.guest.run("dd if=/dev/zero of=/tmp/fill bs=1M count=300 2>/dev/null; rm -f /tmp/fill")
        flows()
        qmp.command("device_del", id=f"dimm{turn}")
        qmp.event("DEVICE_DELETED", device=f"dimm{turn}")
        qmp.command("object-del", id="more")
        assert _memory(vm) < before + PLUGGED // 2
        flows()
    to_guest.close()
    connections_work(vm)


@pytest.mark.parametrize("qemu", QEMUS)
def test_memory_that_is_not_shared_is_named_in_the_log(prerequisites: None, qemu: str) -> None:
    machine = Machine(Kind("6.1", qemu))
    try:
        text = (CONFIGS / "q35.cfg").read_text()
        # The setting, and not the comment about it.
        changed = text.replace('\n  share = "on"', '\n  share = "off"')
        assert changed != text
        config = machine.cwd / "unshared.cfg"
        config.write_text(changed)
        machine.boot(config=config)
        warning = machine.daemon.lines.wait_line("share=on")
        assert "warning" in warning.lower(), warning
        # And the VM can be mended without a new daemon.
        machine.kill_qemu()
        machine.boot()
        assert machine.works()
    finally:
        machine.close()
