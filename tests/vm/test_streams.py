"""What one connection promises: its beginning, its end, and that it is not disturbed by others."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
from harness.machine import Machine
from harness.waiting import wait_for

from .clients import client, connected, listener, read_line, read_to_end
from .conftest import on_both_kernels

MIB = 1 << 20


@on_both_kernels
def test_the_guest_ends_its_half_and_still_gets_the_answer(vm: Machine) -> None:
    host = vm.host("talk", "unix-listen:v.sock_5000", f"recv=1:{MIB}", "eof", "answer", f"send=2:{MIB}", "shutdown")
    host.listening()
    vm.inside("talk", "vsock:2:5000", f"send=1:{MIB}", "shutdown", f"recv=2:{MIB}", "eof").right()
    host.right()


@on_both_kernels
def test_the_host_ends_its_half_and_still_gets_the_answer(vm: Machine) -> None:
    guest = vm.inside("talk", "vsock-listen:5000", f"recv=1:{MIB}", "eof", "answer", f"send=2:{MIB}", "shutdown")
    guest.listening()
    vm.host("talk", "hybrid:v.sock:5000", f"send=1:{MIB}", "shutdown", f"recv=2:{MIB}", "eof").right()
    guest.right()


@on_both_kernels
def test_what_the_guest_sent_before_it_closed_is_delivered(vm: Machine) -> None:
    gate = vm.cwd / "gate"
    host = vm.host("talk", "unix-listen:v.sock_5000", "recv=1:100000", "eof", "gate=gate").listening()
    # It closes while nobody has read a byte.
    vm.inside("talk", "vsock:2:5000", "send=1:100000").right()
    gate.touch()
    host.right()


@on_both_kernels
def test_what_the_host_sent_before_it_closed_is_delivered(vm: Machine) -> None:
    vm.guest.run("rm -f /tmp/gate")
    guest = vm.inside("talk", "vsock-listen:5000", "recv=1:100000", "eof", "gate=/tmp/gate").listening()
    vm.host("talk", "hybrid:v.sock:5000", "send=1:100000").right()
    vm.guest.run("touch /tmp/gate")
    guest.right()


@on_both_kernels
def test_a_guest_is_refused_at_once_where_nobody_listens(vm: Machine) -> None:
    result = vm.inside("connect", "vsock:2:5999").result()
    assert result["error"] == "ECONNRESET"
    # A connection that is not answered takes Linux two seconds to give up.
    assert int(result["ms"]) < 1000


@on_both_kernels
def test_a_guest_is_refused_at_once_where_a_dead_listener_left_its_socket(vm: Machine) -> None:
    with listener(vm, 5998):
        path = vm.cwd / "v.sock_5998"
        os.link(path, vm.cwd / "v.sock_5997")
    result = vm.inside("connect", "vsock:2:5997").result()
    assert result["error"] == "ECONNRESET"
    assert int(result["ms"]) < 1000


@on_both_kernels
def test_a_host_application_is_refused_at_once_where_nobody_listens(vm: Machine) -> None:
    with client(vm.cwd / "v.sock") as sock:
        start = time.monotonic()
        sock.sendall(b"CONNECT 5999\n")
        assert read_to_end(sock) == b""
        assert time.monotonic() - start < 1.5


@on_both_kernels
def test_bytes_right_behind_the_connect_line_arrive(vm: Machine) -> None:
    vm.inside("echo", "vsock-listen:5000").listening()
    with client(vm.cwd / "v.sock") as sock:
        sock.sendall(b"CONNECT 5000\nand more")
        assert read_line(sock).startswith(b"OK ")
        assert sock.recv(8, 0x100) == b"and more"  # MSG_WAITALL


@on_both_kernels
@pytest.mark.parametrize("direction", ["guest to host", "host to guest"])
def test_two_hundred_connections_at_once(vm: Machine, direction: str) -> None:
    descriptors = Path(f"/proc/{vm.daemon.pid}/fd")
    before = len(list(descriptors.iterdir()))
    if direction == "guest to host":
        vm.host("echo", "unix-listen:v.sock_5000").listening()
        result = vm.inside("many", "vsock:2:5000", "200", "20000").result(120)
    else:
        vm.inside("echo", "vsock-listen:5000").listening()
        result = vm.host("many", "hybrid:v.sock:5000", "200", "20000").result(120)
    assert (result["connected"], result["right"]) == ("200", "200"), result
    wait_for(lambda: len(list(descriptors.iterdir())) <= before, "the daemon has given back all descriptors")


def _wait_until_stuck(vm: Machine, sender: str, so_far: object) -> int:
    """Wait until a sender makes no progress for a while; how far it came."""
    assert callable(so_far)
    last, since = -1, time.monotonic()

    def stuck() -> bool:
        nonlocal last, since
        now = int(so_far())
        if now != last:
            last, since = now, time.monotonic()
        return now > 0 and time.monotonic() - since > 0.5

    wait_for(stuck, f"{sender} stops")
    return last


@on_both_kernels
def test_a_guest_application_that_does_not_read_stops_its_own_peer_alone(vm: Machine) -> None:
    size = 64 * MIB
    vm.guest.run("rm -f /tmp/gate")
    vm.inside("echo", "vsock-listen:5001").listening()
    guest = vm.inside("talk", "vsock-listen:5000", f"recv=1:{size}", "eof", "gate=/tmp/gate").listening()
    host = vm.host("talk", "hybrid:v.sock:5000", f"send=1:{size}", "shutdown", "every=1000")
    sent = _wait_until_stuck(vm, "the host application", lambda: host.so_far("sent"))
    assert sent < 8 * MIB, "the data of a guest that does not read must stay with its sender"
    vm.host("talk", "hybrid:v.sock:5001", f"send=3:{MIB}", f"recv=3:{MIB}").right()
    vm.host("ping", "hybrid:v.sock:5001", "20").right()
    assert host.so_far("sent") == sent
    vm.guest.run("touch /tmp/gate")
    guest.right()
    host.right()


@on_both_kernels
def test_a_host_application_that_does_not_read_stops_its_own_peer_alone(vm: Machine) -> None:
    size = 64 * MIB
    vm.host("echo", "unix-listen:v.sock_5001").listening()
    host = vm.host("talk", "unix-listen:v.sock_5000", f"recv=1:{size}", "eof", "gate=gate").listening()
    guest = vm.inside("talk", "vsock:2:5000", f"send=1:{size}", "shutdown", "every=1000")
    sent = _wait_until_stuck(vm, "the guest application", lambda: guest.so_far("sent"))
    assert sent < 8 * MIB, "the data for a host application that does not read must stay with its sender"
    vm.inside("talk", "vsock:2:5001", f"send=3:{MIB}", f"recv=3:{MIB}").right()
    vm.inside("ping", "vsock:2:5001", "20").right()
    assert guest.so_far("sent") == sent
    (vm.cwd / "gate").touch()
    host.right()
    guest.right()


@on_both_kernels
def test_a_flood_from_the_guest_does_not_starve_a_single_byte(vm: Machine) -> None:
    vm.host("echo", "unix-listen:v.sock_5001").listening()
    host = vm.host("talk", "unix-listen:v.sock_5000", "recv=1:all", f"every={MIB}").listening()
    flood = vm.inside("talk", "vsock:2:5000", f"send=1:{1 << 40}")
    host.reached(8 * MIB)
    result = vm.inside("ping", "vsock:2:5001", "50").right()
    assert int(result["max_us"]) < 2_000_000, result
    assert flood.running.alive()


@on_both_kernels
def test_a_flood_to_the_guest_does_not_starve_a_single_byte(vm: Machine) -> None:
    vm.inside("echo", "vsock-listen:5001").listening()
    vm.inside("talk", "vsock-listen:5000", "recv=1:all").listening()
    flood = vm.host("talk", "hybrid:v.sock:5000", f"send=1:{1 << 40}", f"every={MIB}")
    flood.reached(8 * MIB, "sent")
    result = vm.host("ping", "hybrid:v.sock:5001", "50").right()
    assert int(result["max_us"]) < 2_000_000, result
    assert flood.running.alive()


@on_both_kernels
def test_an_application_that_dies_ends_the_connection_for_the_other_side(vm: Machine) -> None:
    vm.inside("exec", "vsock-listen:5000", "'kill -9 $$'").listening()
    with connected(vm, 5000) as sock:
        assert read_to_end(sock) == b""
    host = vm.host("talk", "unix-listen:v.sock_5001", "recv=1:all", f"every={MIB}").listening()
    guest = vm.inside("talk", "vsock:2:5001", f"send=1:{1 << 40}")
    host.reached(MIB)
    host.close()
    assert guest.result()["send_error"] in ("EPIPE", "ECONNRESET")
