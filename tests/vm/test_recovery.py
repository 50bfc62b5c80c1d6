"""The daemon is killed under a running guest, and another one takes its place: what brings the guest's vsock back.

docs/recovery.md says the same to users, with the commands.
"""

from __future__ import annotations

import re
import signal
from collections.abc import Iterator

import pytest
from harness.daemon import CID, start_daemon
from harness.machine import Kind, Machine
from harness.probe import Probe
from harness.qemu import CONFIGS
from harness.waiting import wait_for

from .clients import connections_work, listener, read_to_end
from .conftest import KERNELS, QEMUS, on_all_pairs

ONE_VM = ("--guest-cid", str(CID), "--socket", "vh.sock", "--uds-path", "v.sock")
DEVICE = {"driver": "vhost-user-vsock-pci", "id": "vsock", "bus": "vsockport", "chardev": "vsock0"}
# How an application in the guest hears of the end, depending on what it was about to do.
ENDED = ("EPIPE", "ECONNRESET", "ENOTCONN")


def _replace_daemon(vm: Machine, *options: str) -> None:
    """SIGKILL, and the next one, ready."""
    vm.daemon.stop(signal.SIGKILL)
    vm.daemon = start_daemon(vm.cwd, *ONE_VM, *options)


def _has_device(vm: Machine) -> bool:
    return vm.guest.run("ls -d /sys/bus/virtio/drivers/vmw_vsock_virtio_transport/virtio* 2>/dev/null || true") != ""


def _conversations(vm: Machine) -> tuple[Probe, Probe]:
    """In the guest: one application that waits for data, and one that sends all the time."""
    vm.inside("echo", "vsock-listen:5001").listening()
    return (
        vm.inside("talk", "vsock:2:5000", "recv=1:1000"),
        vm.inside("talk", "vsock:2:5000", f"send=1:{1 << 40}", "every=65536"),
    )


@on_all_pairs
def test_unplugging_and_plugging_attaches_the_guest_to_the_next_daemon(vm: Machine) -> None:
    qmp = vm.qemu.qmp
    with listener(vm, 5000) as server:
        waits, sends = _conversations(vm)
        ends = [server.accept()[0], server.accept()[0]]
        sends.reached(65536, "sent")
        _replace_daemon(vm)
        for end in ends:
            read_to_end(end)
            end.close()
        # Unplugging tells the guest's applications that their connections are gone, those that wait, too.
        qmp.command("device_del", id="vsock")
        qmp.event("DEVICE_DELETED", device="vsock")
        assert waits.result()["recv_error"] == "ECONNRESET"
        assert sends.result()["send_error"] in ENDED
    # The chardev of the dead daemon is of no use any more.
    qmp.command("chardev-remove", id="vsock0")
    address = {"type": "unix", "data": {"path": "vh.sock"}}
    backend = {"type": "socket", "data": {"addr": address, "server": False}}
    qmp.command("chardev-add", id="vsock0", backend=backend)
    qmp.command("device_add", **DEVICE)
    wait_for(lambda: _has_device(vm), "the guest finds the device that was plugged")
    connections_work(vm)


def _connected(vm: Machine) -> bool:
    chardevs = vm.qemu.qmp.command("query-chardev")
    return any(each["label"] == "vsock0" and "disconnected" not in each["filename"] for each in chardevs)


def _replug(vm: Machine) -> None:
    """Unplug the device and plug it, on the same chardev."""
    vm.qemu.qmp.command("device_del", id="vsock")
    vm.qemu.qmp.event("DEVICE_DELETED", device="vsock")
    vm.qemu.qmp.command("device_add", **DEVICE)
    wait_for(lambda: _has_device(vm), "the guest finds the device that was plugged")


def _plug_reconnecting(vm: Machine) -> None:
    """The chardev first, by QMP: where QEMU makes both at its start, the device finds no connection yet."""
    retry = {"reconnect": 1} if vm.kind.qemu == "7.2" else {"reconnect-ms": 100}
    address = {"type": "unix", "data": {"path": "vh.sock"}}
    backend = {"type": "socket", "data": {"addr": address, "server": False, **retry}}
    vm.qemu.qmp.command("chardev-add", id="vsock0", backend=backend)
    wait_for(lambda: _connected(vm), "the chardev is connected")
    vm.qemu.qmp.command("device_add", **DEVICE)
    wait_for(lambda: _has_device(vm), "the guest finds the device that was plugged")


@pytest.fixture(params=[Kind(kernel, qemu) for qemu in QEMUS for kernel in KERNELS], ids=str)
def reconnecting(request: pytest.FixtureRequest, prerequisites: None) -> Iterator[Machine]:
    """A guest whose QEMU connects anew by itself, and a daemon that is prepared for that."""
    machine = Machine(request.param)
    try:
        _replace_daemon(machine, "--reconnect")
        config = machine.cwd / "bare.cfg"
        text = (CONFIGS / "q35.cfg").read_text()
        bare, count = re.subn(r'(?m)^\[(chardev|device) "vsock0?"\]\n(  .*\n)+', "", text)
        assert count == 2
        config.write_text(bare)
        machine.boot(config=config)
        _plug_reconnecting(machine)
        yield machine
    except AssertionError:
        print(machine.describe())
        raise
    finally:
        machine.close()


def _attached(vm: Machine) -> None:
    """QEMU has found the next daemon."""
    vm.daemon.lines.wait_line("front-end attached")


def test_stop_and_cont_give_the_guest_of_a_qemu_that_reconnects_to_the_next_daemon(reconnecting: Machine) -> None:
    vm = reconnecting
    connections_work(vm)
    for _ in range(2):
        with listener(vm, 5000) as server:
            waits, sends = _conversations(vm)
            ends = [server.accept()[0], server.accept()[0]]
            sends.reached(65536, "sent")
            _replace_daemon(vm, "--reconnect")
            for end in ends:
                read_to_end(end)
                end.close()
            _attached(vm)
            vm.qemu.qmp.command("stop")
            vm.qemu.qmp.command("cont")
            vm.daemon.lines.wait_line("the guest's driver is up")
        # Who sends is told that the connection is gone; who only waits is not, and waits on.
        assert sends.result()["send_error"] in ENDED
        assert waits.running.alive()
        connections_work(vm)


def test_a_guest_that_stopped_while_nobody_served_it_goes_on_at_the_next_daemon(reconnecting: Machine) -> None:
    vm = reconnecting
    vm.daemon.stop(signal.SIGKILL)
    vm.qemu.qmp.command("stop")
    vm.daemon = start_daemon(vm.cwd, *ONE_VM, "--reconnect")
    _attached(vm)
    vm.qemu.qmp.command("cont")
    connections_work(vm)


def test_a_reset_of_the_guest_does_what_stop_and_cont_do(reconnecting: Machine) -> None:
    vm = reconnecting
    _replace_daemon(vm, "--reconnect")
    _attached(vm)
    vm.reset()
    connections_work(vm)


def test_a_device_plugged_where_no_reconnect_was_expected_cannot_go_on_and_the_log_says_why(
    reconnecting: Machine,
) -> None:
    vm = reconnecting
    # What counts is the daemon at which the device was plugged, not the one that takes over.
    _replace_daemon(vm)
    _attached(vm)
    vm.qemu.qmp.command("stop")
    vm.qemu.qmp.command("cont")
    connections_work(vm)
    _replug(vm)
    connections_work(vm)
    _replace_daemon(vm, "--reconnect")
    _attached(vm)
    vm.qemu.qmp.command("stop")
    vm.qemu.qmp.command("cont")
    assert "--reconnect" in vm.daemon.lines.wait_line("front-end thrown out")
    # Plugging still helps.
    wait_for(lambda: _connected(vm), "the chardev is connected")
    _replug(vm)
    connections_work(vm)
