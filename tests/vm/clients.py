"""Host applications of the VM tests, as small as they can be: a socket and the CONNECT line.

Before: a test. After: the VM's v.sock and its listeners.
Rule:   every socket has a time limit, so that a byte that never comes is a failure and not a hang.
"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator
from pathlib import Path

from harness.machine import Machine

LIMIT = 60.0


@contextlib.contextmanager
def client(path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.settimeout(LIMIT)
        sock.connect(str(path))
        yield sock


def read_line(sock: socket.socket) -> bytes:
    """Up to the line's end and no further, or what came before the other side ended."""
    line = b""
    while not line.endswith(b"\n") and (byte := sock.recv(1)):
        line += byte
    return line


@contextlib.contextmanager
def connected(machine: Machine, port: int) -> Iterator[socket.socket]:
    """A connection to a port of the guest."""
    with client(machine.cwd / "v.sock") as sock:
        sock.sendall(b"CONNECT %d\n" % port)
        answer = read_line(sock)
        assert answer.startswith(b"OK "), answer
        yield sock


@contextlib.contextmanager
def listener(machine: Machine, port: int) -> Iterator[socket.socket]:
    """A listener that guests reach as (2, port)."""
    path = machine.cwd / f"v.sock_{port}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.settimeout(LIMIT)
        sock.bind(str(path))
        try:
            sock.listen(64)
            yield sock
        finally:
            path.unlink(missing_ok=True)


def read_to_end(sock: socket.socket) -> bytes:
    """All that comes until the other side ends; a reset counts as an end."""
    data = b""
    with contextlib.suppress(ConnectionResetError, BrokenPipeError):
        while piece := sock.recv(65536):
            data += piece
    return data


def echoes(sock: socket.socket, data: bytes) -> None:
    """What is sent comes back."""
    sock.sendall(data)
    back = b""
    while len(back) < len(data):
        piece = sock.recv(65536)
        assert piece, f"ended after {len(back)} of {len(data)} bytes"
        back += piece
    assert back == data


@contextlib.contextmanager
def connected_echo(machine: Machine, port: int) -> Iterator[socket.socket]:
    """A connection to a new echo server in the guest, that has carried data."""
    machine.inside("echo", f"vsock-listen:{port}").listening()
    with connected(machine, port) as sock:
        echoes(sock, b"before")
        yield sock


@contextlib.contextmanager
def both_ways(machine: Machine) -> Iterator[list[socket.socket]]:
    """Two connections: one that the host began, and one that the guest began."""
    machine.end_probes()
    with listener(machine, 5000) as server, connected_echo(machine, 5001) as outgoing:
        machine.inside("cat", "vsock:2:5000")
        incoming, _ = server.accept()
        with incoming:
            incoming.settimeout(LIMIT)
            yield [outgoing, incoming]


def connections_work(machine: Machine) -> None:
    """New connections in both directions, with data on them. Ends all probes, before and after."""
    size = 1 << 20
    machine.end_probes()
    machine.inside("echo", "vsock-listen:5001").listening()
    machine.host("talk", "hybrid:v.sock:5001", f"send=1:{size}", f"recv=1:{size}", "shutdown", "eof").right()
    machine.host("echo", "unix-listen:v.sock_5002").listening()
    machine.inside("talk", "vsock:2:5002", f"send=2:{size}", f"recv=2:{size}", "shutdown", "eof").right()
    machine.end_probes()
