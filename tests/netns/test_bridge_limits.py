"""The bridge at its limits: backlogs that are full, listeners and daemons that are gone or hang."""

from __future__ import annotations

import contextlib
import signal
import socket
import struct
import time

import pytest
from netns.serving import LIMIT, World

ECHO = 1234


def test_a_full_backlog_refuses_and_taking_one_makes_room(served: World) -> None:
    served.daemon({"a": 42})
    code = """
import errno, os, vhostvsock
with vhostvsock.create_server(5000, backlog=1) as server:
    ends, clients = [], []
    for _ in range(4):
        try:
            clients.append(vhostvsock.connect(1, 5000)); ends.append("waits")
        except OSError as error:
            ends.append(errno.errorcode[error.errno])
    taken, peer = server.accept()
    taken.sendall(b"y")
    print(*ends, peer[0], clients[0].recv(1), os.get_blocking(taken.fileno()))
    for _ in range(10):
        try:
            vhostvsock.connect(1, 5000); print("room"); break
        except ConnectionResetError:
            pass
"""
    done = served.python(code)
    assert done.stdout == "waits waits ECONNRESET ECONNRESET 1 b'y' True\nroom\n", done.stderr


def test_a_full_backlog_at_another_daemon_refuses_as_well(served: World) -> None:
    served.daemon({"a": 42})
    code = """
import errno, glob, socket, vhostvsock
served = vhostvsock.create_server(5000, backlog=0)
def ask(path):
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect(path); sock.sendall(b"CONNECT 1 5000\\n")
        kept.append(sock.dup())
        return sock.recv(100).split()[:2]
kept = []
print(ask(PATH)[0], ask(PATH))
served.accept()
"""
    (first,) = served.runtime_dir.glob("bridge/*.sock")
    served.daemon({"b": 43})
    (second,) = set(served.runtime_dir.glob("bridge/*.sock")) - {first}
    for listens, asked in ((first, second), (second, first)):
        listens.rename(listens.with_name("0.sock"))  # the client takes the first by name
        done = served.python(code.replace("PATH", repr(str(asked))))
        listens.with_name("0.sock").rename(listens)
        assert done.stdout == "b'OK' [b'ERR', b'ECONNRESET']\n", done.stderr


def test_what_was_not_taken_ends_with_the_listener(served: World) -> None:
    served.daemon({"a": 42})
    code = """
import vhostvsock
server = vhostvsock.create_server(5000)
client = vhostvsock.connect(1, 5000)
server.close()
client.settimeout(10)
print(client.recv(1))
"""
    assert served.python(code).stdout == "b''\n"


def test_a_vm_of_a_daemon_that_hangs_times_out_and_of_one_that_died_is_not_there(served: World) -> None:
    first = served.daemon({"a": 42})
    served.daemon({"b": 43})
    guest = served.guest("a", None, ECHO)
    assert guest.next() == "attached 42"
    assert served.connect(42, ECHO) == "hello"
    first.popen.send_signal(signal.SIGSTOP)
    assert served.connect(42, ECHO) == "ETIMEDOUT"
    first.popen.send_signal(signal.SIGKILL)
    first.popen.wait(LIMIT)
    assert served.connect(42, ECHO) == "ENODEV"


@pytest.mark.parametrize("kind", [socket.SOCK_DGRAM, socket.SOCK_RAW])
def test_a_descriptor_that_can_be_no_connection_is_refused(served: World, kind: socket.SocketKind) -> None:
    served.daemon({"a": 42})
    (bridge,) = served.runtime_dir.glob("bridge/*.sock")
    family = socket.AF_NETLINK if kind == socket.SOCK_RAW else socket.AF_UNIX
    with socket.socket(socket.AF_UNIX) as sock, socket.socket(family, kind) as wrong:
        sock.settimeout(LIMIT)
        sock.connect(str(bridge))
        socket.send_fds(sock, [b"CONNECT 42 1\n"], [wrong.fileno()])
        assert sock.recv(100).startswith(b"ERR EPROTO ")


def test_a_descriptor_whose_end_takes_its_time_does_not_hold_up_the_daemon(served: World) -> None:
    daemon = served.daemon({"a": 42})
    (bridge,) = served.runtime_dir.glob("bridge/*.sock")
    with socket.create_server(("127.0.0.1", 0)) as server, socket.socket(socket.AF_UNIX) as sock:
        wrong = socket.create_connection(server.getsockname())
        with server.accept()[0]:  # it never reads
            wrong.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                while wrong.send(bytes(65536)):
                    pass
            wrong.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, int(LIMIT)))
            sock.settimeout(LIMIT)
            sock.connect(str(bridge))
            # So the daemon is the last that has it.
            daemon.popen.send_signal(signal.SIGSTOP)
            socket.send_fds(sock, [b"CONNECT 42 1\n"], [wrong.fileno()])
            wrong.close()
            daemon.popen.send_signal(signal.SIGCONT)
            before = time.monotonic()
            assert sock.recv(100).startswith(b"ERR EPROTO ")
            assert served.connect(43, ECHO) == "ENODEV"
            assert time.monotonic() - before < LIMIT / 2
