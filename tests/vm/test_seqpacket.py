"""Messages (SOCK_SEQPACKET) between real guests and host applications: whole, in order, and as Linux limits them."""

from __future__ import annotations

import contextlib
import errno
import socket
from collections.abc import Iterator

import pytest
from harness.daemon import BACKEND, CID
from harness.machine import Kind, Machine
from harness.probe import Probe
from harness.waiting import wait_for

import vhostvsock

from .clients import LIMIT, connections_work, listener
from .conftest import on_both_kernels

# Where something changes: receive buffers, packets, and the longest message that Linux sends.
LENGTHS = [1, 2, 128, 3731, 3732, 3733, 65536, 65537, 200_000, 262_144]


def _fit_for_messages(sock: socket.socket) -> socket.socket:
    """A socket that gives up after a while, and takes as long a message as the guest's."""
    sock.settimeout(LIMIT)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 262_144)
    return sock


@contextlib.contextmanager
def connected(vm: Machine, *options: str) -> Iterator[tuple[socket.socket, Probe]]:
    """A connection that the host began, to a program of the guest."""
    guest = vm.inside("messages", "seqpacket-listen:5000", *options).listening()
    with _fit_for_messages(socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)) as sock:
        sock.connect(str(vm.cwd / "v.sock.seqpacket"))
        sock.send(b"CONNECT 5000\n")
        assert sock.recv(99).startswith(b"OK ")
        yield sock, guest


@contextlib.contextmanager
def accepted(vm: Machine, *options: str) -> Iterator[tuple[socket.socket, Probe]]:
    """A connection that a program of the guest began."""
    path = vm.cwd / "v.sock_5000"
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as server:
        server.settimeout(LIMIT)
        server.bind(str(path))
        server.listen()
        guest = vm.inside("messages", "seqpacket:2:5000", *options)
        with _fit_for_messages(server.accept()[0]) as sock:
            path.unlink()
            yield sock, guest


def _message(length: int) -> bytes:
    """Bytes that differ from place to place."""
    return bytes(at * 7 % 251 for at in range(min(length, 251))) * (length // 251 + 1)


@on_both_kernels
def test_messages_keep_their_boundaries_both_ways(vm: Machine) -> None:
    for way in (connected, accepted):
        with way(vm, "echo") as (sock, guest):
            for length in LENGTHS:
                message = _message(length)[:length]
                sock.send(message)
                assert sock.recv(1 << 20) == message
            # Many at once are as many in the end.
            for length in range(1, 101):
                sock.send(_message(length)[:length])
            assert [len(sock.recv(1 << 20)) for _ in range(100)] == list(range(1, 101))
            sock.shutdown(socket.SHUT_WR)
            assert sock.recv(1) == b""
            result = guest.right()
            assert (result["received"], result["sent"]) == (str(len(LENGTHS) + 100), str(len(LENGTHS) + 100))


@on_both_kernels
def test_records_of_the_guest_are_messages_of_the_host(vm: Machine) -> None:
    with accepted(vm, f"send={','.join(map(str, LENGTHS))}", "record") as (sock, guest):
        assert [len(sock.recv(1 << 20)) for _ in LENGTHS] == LENGTHS
        sock.send(b"answer")
        sock.shutdown(socket.SHUT_WR)
        result = guest.right()
        assert (result["received"], result["bytes"], result["records"]) == ("1", "6", "0")


@on_both_kernels
def test_longer_messages_are_refused_to_the_guest(vm: Machine) -> None:
    with accepted(vm, "send=262145") as (sock, guest):
        sock.shutdown(socket.SHUT_WR)
        # Linux 6.1 has the same error in its transport, and calls it so on the way up.
        assert guest.result()["send_error"] == ("ENOMEM" if vm.kind.kernel == "6.1" else "EMSGSIZE")
        assert sock.recv(1) == b"", "no part of it"


@on_both_kernels
def test_small_messages_that_the_guest_does_not_read_never_become_too_many_for_it(vm: Machine) -> None:
    # Linux 7 resets a connection with the 456th.
    vm.guest.run("rm -f /tmp/gate")
    with connected(vm, "gate=/tmp/gate") as (sock, guest):
        sock.settimeout(0.5)
        sent = 0
        with contextlib.suppress(TimeoutError):
            for _ in range(3000):
                sent += sock.send(b"x")
        assert sent > 455, "the host's socket takes more than the guest's"
        vm.guest.run("touch /tmp/gate")
        sock.settimeout(LIMIT)
        for _ in range(3000 - sent):
            sock.send(b"x")
        sock.shutdown(socket.SHUT_WR)
        result = guest.right()
        assert (result["received"], result["bytes"]) == ("3000", "3000")


@on_both_kernels
def test_types_have_to_match(vm: Machine) -> None:
    with listener(vm, 5001):
        assert vm.inside("connect", "seqpacket:2:5001").result()["error"] == "ECONNRESET"
    assert vm.inside("connect", "seqpacket:2:5999").result()["error"] == "ECONNRESET"
    vm.inside("echo", "vsock-listen:5002").listening()
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as sock:
        sock.settimeout(LIMIT)
        sock.connect(str(vm.cwd / "v.sock.seqpacket"))
        sock.send(b"CONNECT 5002\n")
        assert sock.recv(99) == b""


def _by_cid(vm: Machine, port: int, type_: socket.SocketKind = socket.SOCK_SEQPACKET) -> str:
    """What a host application is told that names the guest's CID."""
    try:
        vhostvsock.connect(CID, port, type=type_, timeout=LIMIT, runtime_dir=str(vm.cwd / "run")).close()
    except OSError as error:
        return errno.errorcode[error.errno or 0]
    return "OK"


by_cid = pytest.mark.skipif(BACKEND == "peer", reason="only vhostvsock is asked by CID")


@by_cid
@on_both_kernels
def test_who_connects_by_cid_is_told_what_is_wrong(vm: Machine) -> None:
    vm.inside("messages", "seqpacket-listen:5000").listening()
    vm.inside("echo", "vsock-listen:5001").listening()
    assert [_by_cid(vm, port) for port in (5000, 5001, 5002)] == ["OK", "ECONNRESET", "ECONNRESET"]
    driver = "/sys/bus/virtio/drivers/vmw_vsock_virtio_transport"
    device = vm.guest.run(f"cd {driver} && echo virtio*")
    vm.guest.run(f"echo {device} > {driver}/unbind")
    # What the driver took is still known.
    assert [_by_cid(vm, 5000), _by_cid(vm, 5001, socket.SOCK_STREAM)] == ["EHOSTUNREACH"] * 2
    vm.guest.run(f"echo {device} > {driver}/bind")
    wait_for(lambda: _by_cid(vm, 5002) == "ECONNRESET", "the guest answers again")


@by_cid
@pytest.mark.parametrize("kind", [Kind("6.1", "7.2"), Kind("new", "10.0")], ids=str)
def test_a_device_without_messages_has_none_and_carries_streams(prerequisites: None, kind: Kind) -> None:
    with contextlib.closing(Machine(kind)) as vm, socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as server:
        vm.boot("-global", "vhost-user-vsock-pci.seqpacket=off")
        server.bind(str(vm.cwd / "v.sock_5001"))
        server.listen()
        assert vm.inside("connect", "seqpacket:2:5001").result()["error"] == "ESOCKTNOSUPPORT"
        # A guest may listen, in vain.
        vm.inside("messages", "seqpacket-listen:5000").listening()
        assert [_by_cid(vm, port) for port in (5000, 5002)] == ["ESOCKTNOSUPPORT", "ESOCKTNOSUPPORT"]
        assert [_by_cid(vm, port, socket.SOCK_STREAM) for port in (5000, 5002)] == ["ECONNRESET", "ECONNRESET"]
        connections_work(vm)
