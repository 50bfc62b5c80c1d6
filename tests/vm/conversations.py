"""What is to work between a guest and a host application, whichever of the two connects.

This stands where the kernel's tests run the whole of vsock_test: connect and close, half-closes, large and small
writes checked byte by byte, data that was sent before a close, refused ports, many connections, peers that die.
Left out is what vsock_test tries of other socket types and of the guest's own socket options.

Before: test_namespaces.py says who is where. After: harness/probe.py on both sides; host sockets from spaces.py.
Rule:   each conversation is written once, for a client and a server; `Ends` knows which one is in the guest.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import socket
import threading
from abc import ABC, abstractmethod
from dataclasses import dataclass, field

import pytest
from harness.machine import Machine
from harness.probe import Probe, on_connection

from .clients import LIMIT, echoes
from .spaces import CID, Host, accept

MIB = 1 << 20
MANY = 40


@dataclass
class Ends(ABC):
    """A place of the host and a guest."""

    host: Host
    place: str
    guest: Machine
    probes: list[Probe] = field(default_factory=list)
    ports: itertools.count[int] = field(default_factory=lambda: itertools.count(7000))

    @abstractmethod
    def talk(self, client: list[str], server: list[str]) -> tuple[Probe, Probe]:
        """One connection: the probes of the client and of the server."""

    @abstractmethod
    def refused(self) -> None:
        """The client is told at once that nobody listens."""

    @abstractmethod
    def many(self, number: int) -> None:
        """So many connections that are open at once, and echo."""

    def all_right(self, client: list[str], server: list[str]) -> None:
        for probe in self.talk(client, server):
            probe.right()


class GuestServes(Ends):
    """The host application connects."""

    def talk(self, client: list[str], server: list[str]) -> tuple[Probe, Probe]:
        port = next(self.ports)
        theirs = self.guest.inside("talk", f"vsock-listen:{port}", *server).listening()
        ours = on_connection(self.host.connect(self.place, CID, port), "talk", *client)
        self.probes.append(ours)
        return ours, theirs

    def refused(self) -> None:
        with pytest.raises(ConnectionResetError):
            self.host.connect(self.place, CID, next(self.ports))

    def many(self, number: int) -> None:
        port = next(self.ports)
        self.guest.inside("echo", f"vsock-listen:{port}").listening()
        socks = [self.host.connect(self.place, CID, port) for _ in range(number)]
        try:
            for turn, sock in enumerate(socks):
                echoes(sock, b"%d" % turn * 1000)
        finally:
            for sock in socks:
                sock.close()


class GuestAsks(Ends):
    """The guest connects."""

    def talk(self, client: list[str], server: list[str]) -> tuple[Probe, Probe]:
        with self.host.listening(self.place, cid=2) as listener:
            theirs = self.guest.inside("talk", f"vsock:2:{listener.port}", *client)
            sock, cid = accept(listener)
        assert cid == CID
        ours = on_connection(sock, "talk", *server)
        self.probes.append(ours)
        return theirs, ours

    def refused(self) -> None:
        with self.host.listening(self.place, cid=2) as listener:
            port = listener.port
        result = self.guest.inside("connect", f"vsock:2:{port}").result()
        assert result["error"] == "ECONNRESET"
        # A connection that is not answered takes Linux two seconds to give up.
        assert int(result["ms"]) < 1500

    def many(self, number: int) -> None:
        with self.host.listening(self.place, cid=2) as listener:
            guest = self.guest.inside("many", f"vsock:2:{listener.port}", str(number), "2000")
            with contextlib.ExitStack() as stack:
                for _ in range(number):
                    sock, _ = accept(listener)
                    thread = threading.Thread(target=_send_back, args=(sock,))
                    thread.start()
                    stack.callback(thread.join)
                assert guest.right()["right"] == str(number)


def _send_back(sock: socket.socket) -> None:
    with sock:
        sock.settimeout(LIMIT)
        while data := sock.recv(65536):
            sock.sendall(data)


def everything(ends: Ends) -> None:
    """All conversations, one after the other."""
    try:
        _in_order(ends)
        _at_once(ends)
        _death(ends)
    finally:
        for probe in ends.probes:
            probe.close()
        ends.guest.end_probes()


def _in_order(ends: Ends) -> None:
    # Connected and closed, by either.
    ends.all_right([], ["eof"])
    ends.all_right(["eof"], [])
    # The end of one direction, and the answer after it.
    ends.all_right(["send=1:100000", "shutdown", "recv=2:100000", "eof"], ["recv=1:all", "answer", "send=2:100000"])
    ends.all_right(["recv=1:all", "answer", "send=2:100000"], ["send=1:100000", "shutdown", "recv=2:100000", "eof"])
    # Sent and closed at once: nothing is lost.
    ends.all_right(["send=3:100000"], ["recv=3:100000", "eof"])
    ends.all_right(["recv=3:100000", "eof"], ["send=3:100000"])
    ends.refused()


def _at_once(ends: Ends) -> None:
    for size, options in ((8 * MIB, []), (100_000, ["max=32"])):
        ends.all_right(
            [f"send=4:{size}", f"recv=5:{size}", "shutdown", "eof", *options],
            [f"send=5:{size}", f"recv=4:{size}", "shutdown", "eof", *options],
        )
    ends.many(MANY)


def _death(ends: Ends) -> None:
    """Either side is killed while the other one sends."""
    client, server = ends.talk([f"send=6:{1 << 40}"], [f"recv=6:{1 << 40}", f"every={MIB}"])
    server.reached(MIB)
    server.close()
    assert client.result()["send_error"] in (errno.errorcode[errno.EPIPE], errno.errorcode[errno.ECONNRESET])
    client, server = ends.talk([f"recv=6:{1 << 40}", f"every={MIB}"], [f"send=6:{1 << 40}"])
    client.reached(MIB)
    client.close()
    assert server.result()["send_error"] in (errno.errorcode[errno.EPIPE], errno.errorcode[errno.ECONNRESET])
    # And all goes on.
    ends.all_right(["send=7:1000", "shutdown"], ["recv=7:1000", "eof"])
