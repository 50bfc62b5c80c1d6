"""A guest or its QEMU stops, restarts or dies; the daemon is the same all the while."""

from __future__ import annotations

import socket
import time

import pytest
from harness.daemon import CID
from harness.machine import Machine
from harness.waiting import wait_for

from .clients import both_ways, connected_echo, connections_work, read_to_end
from .conftest import on_all_pairs, on_both_kernels, on_one

MIB = 1 << 20


@on_all_pairs
def test_the_guest_has_its_cid_and_can_be_reached(vm: Machine) -> None:
    assert vm.inside("cid", "-").right() == {"cid": str(CID)}
    assert vm.guest.run("uname -r").startswith("6.1." if vm.kind.kernel == "6.1" else "7.")
    assert vm.qemu.qmp.command("query-version")["qemu"]["major"] == int(vm.kind.qemu.split(".")[0])
    connections_work(vm)


@on_all_pairs
def test_stop_and_cont_in_mid_stream_lose_nothing(vm: Machine) -> None:
    size = 128 * MIB
    words = (f"every={MIB}", "shutdown", "eof")
    host = vm.host("talk", "unix-listen:v.sock_5000", f"recv=1:{size}", f"send=2:{size}", *words).listening()
    guest = vm.inside("talk", "vsock:2:5000", f"send=1:{size}", f"recv=2:{size}", "shutdown", "eof")
    with connected_echo(vm, 5003) as idle:
        for turn in range(1, 4):
            host.reached(turn * 24 * MIB)
            vm.qemu.qmp.command("stop")
            assert not vm.qemu.qmp.command("query-status")["running"]
            # What the daemon had taken from the guest before may still arrive; then it is still.
            _still(host.so_far)
            idle.sendall(b"said while it stood still")
            assert host.running.alive()
            vm.qemu.qmp.command("cont")
            assert idle.recv(25, socket.MSG_WAITALL) == b"said while it stood still"
    host.right(120)
    guest.right()


def _still(so_far: object) -> None:
    assert callable(so_far)
    last, since = so_far(), time.monotonic()

    def unchanged() -> bool:
        nonlocal last, since
        now = so_far()
        if now != last:
            last, since = now, time.monotonic()
        return time.monotonic() - since > 0.3

    wait_for(unchanged, "the stream stands still while the VM is stopped")


@on_all_pairs
@pytest.mark.parametrize("how", ["system_reset", "reboot"])
def test_a_reset_ends_old_connections_and_new_ones_work(vm: Machine, how: str) -> None:
    before = vm.guest.boots
    with both_ways(vm) as connections:
        if how == "reboot":
            vm.guest.start("reboot -f")
        else:
            vm.qemu.qmp.command("system_reset")
        vm.guest.wait_boot(before)
        for sock in connections:
            assert read_to_end(sock) == b""
    connections_work(vm)


@on_both_kernels
def test_a_reset_in_the_middle_of_a_flood(vm: Machine) -> None:
    before = vm.guest.boots
    to_host = vm.host("talk", "unix-listen:v.sock_5000", "recv=1:all", f"every={MIB}").listening()
    vm.inside("talk", "vsock:2:5000", f"send=1:{1 << 40}")
    vm.inside("talk", "vsock-listen:5004", "recv=1:all").listening()
    to_guest = vm.host("talk", "hybrid:v.sock:5004", f"send=1:{1 << 40}", f"every={MIB}")
    to_host.reached(4 * MIB)
    to_guest.reached(4 * MIB, "sent")
    vm.qemu.qmp.command("system_reset")
    vm.guest.wait_boot(before)
    assert to_host.result()["wrong"] == "-1"
    assert to_guest.result()["send_error"] in ("EPIPE", "ECONNRESET")
    connections_work(vm)


@on_both_kernels
def test_qemu_is_killed_and_started_again_on_the_same_sockets(vm: Machine) -> None:
    daemon = vm.daemon.pid
    for _ in range(3):
        with both_ways(vm) as connections:
            vm.kill_qemu()
            for sock in connections:
                assert read_to_end(sock) == b""
        vm.boot()
        connections_work(vm)
    assert vm.daemon.pid == daemon
    assert vm.daemon.alive()


@on_all_pairs
def test_the_driver_is_unbound_and_bound_again(vm: Machine) -> None:
    driver = "/sys/bus/virtio/drivers/vmw_vsock_virtio_transport"
    device = vm.guest.run(f"cd {driver} && echo virtio*")
    for _ in range(3):
        with connected_echo(vm, 5001) as sock:
            vm.guest.run(f"echo {device} > {driver}/unbind")
            vm.guest.run(f"echo {device} > {driver}/bind")
            assert read_to_end(sock) == b""
        connections_work(vm)


@on_one
def test_the_daemon_ends_while_a_guest_is_attached(vm: Machine) -> None:
    with both_ways(vm) as connections:
        assert vm.daemon.stop() == 0
        for sock in connections:
            assert read_to_end(sock) == b""
    left = [path.name for path in vm.cwd.iterdir() if path.name.startswith(("vh.sock", "v.sock"))]
    assert left == []
    # The guest lives on, without vsock.
    assert vm.guest.run("echo fine") == "fine"
    assert vm.qemu.process.alive()
