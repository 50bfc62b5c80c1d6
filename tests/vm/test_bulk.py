"""A gigabyte each way, in writes from one byte to a mebibyte, every byte checked on the other side."""

from __future__ import annotations

from harness.machine import Machine

from .conftest import on_both_kernels

GIB = 1 << 30
LIMIT = 200.0


@on_both_kernels
def test_a_gibibyte_from_the_guest_arrives_whole(vm: Machine) -> None:
    to = vm.host("talk", "unix-listen:v.sock_5000", f"recv=1:{GIB}", "eof").listening()
    source = vm.inside("talk", "vsock:2:5000", f"send=1:{GIB}", "shutdown")
    to.right(LIMIT)
    source.right()


@on_both_kernels
def test_a_gibibyte_to_the_guest_arrives_whole(vm: Machine) -> None:
    to = vm.inside("talk", "vsock-listen:5000", f"recv=2:{GIB}", "eof").listening()
    source = vm.host("talk", "hybrid:v.sock:5000", f"send=2:{GIB}", "shutdown")
    to.right(LIMIT)
    source.right()


@on_both_kernels
def test_both_directions_of_one_connection_at_once(vm: Machine) -> None:
    size = GIB // 4
    host = vm.host("talk", "unix-listen:v.sock_5000", f"recv=3:{size}", f"send=4:{size}", "shutdown", "eof").listening()
    guest = vm.inside("talk", "vsock:2:5000", f"send=3:{size}", f"recv=4:{size}", "shutdown", "eof")
    host.right(LIMIT)
    guest.right()


@on_both_kernels
def test_writes_of_a_few_bytes_both_ways(vm: Machine) -> None:
    size = 1 << 20
    guest = vm.inside("talk", "vsock-listen:5000", f"send=5:{size}", f"recv=6:{size}", "max=32", "shutdown", "eof")
    guest.listening()
    host = vm.host("talk", "hybrid:v.sock:5000", f"recv=5:{size}", f"send=6:{size}", "max=32", "shutdown", "eof")
    host.right(LIMIT)
    guest.right()


@on_both_kernels
def test_eight_connections_each_way_side_by_side(vm: Machine) -> None:
    size = 32 << 20
    probes = []
    for number in range(8):
        to_host, to_guest = 5100 + number, 5200 + number
        host = vm.host("talk", f"unix-listen:v.sock_{to_host}", f"recv={to_host}:{size}", "eof").listening()
        guest = vm.inside("talk", f"vsock-listen:{to_guest}", f"recv={to_guest}:{size}", "eof").listening()
        probes += [host, guest]
        probes.append(vm.inside("talk", f"vsock:2:{to_host}", f"send={to_host}:{size}", "shutdown"))
        probes.append(vm.host("talk", f"hybrid:v.sock:{to_guest}", f"send={to_guest}:{size}", "shutdown"))
    for probe in probes:
        probe.right(LIMIT)
