"""For host applications: connections to guests and from guests, by CID and port, as blocking sockets.

Before: an application, or cli/. After: the bridge socket of some daemon of this host.
Rules:  - whom one may reach is decided by the network namespace in which this process makes its socket, as for
          AF_VSOCK.
        - a refusal is an OSError with the errno that Linux would give.
        - any daemon will do: the one asked finds the one that serves the VM.
"""

from __future__ import annotations

import errno
import glob
import json
import os
import socket
from collections.abc import Iterator
from types import TracebackType
from typing import Any

from vhostvsock.bridge import protocol
from vhostvsock.bridge.lines import recv_with
from vhostvsock.bridge.places import bridge_directory
from vhostvsock.bridge.protocol import ANSWER_LIMIT, ANY, DEFAULT_BACKLOG, TAKEN, Connect, Listen, Request
from vhostvsock.registry.runtime import ENVIRONMENT, SYSTEM_DIR
from vhostvsock.registry.runtime import runtime_dir as default_directory

# A daemon that hangs costs the list no more than that.
_LIST_SECONDS = 5.0


def _bridges(runtime_dir: str | None) -> tuple[str, list[str]]:
    """Where daemons have their bridge sockets, for people, and the sockets there, dead ones perhaps among them.

    Those of the user's own daemons come first; the system's services are for everybody whom their mode lets in.
    """
    directories = [default_directory(runtime_dir)]
    if runtime_dir is None and ENVIRONMENT not in os.environ and SYSTEM_DIR not in directories:
        directories.append(SYSTEM_DIR)
    found = [bridge_directory(each) for each in directories]
    paths = [path for each in found for path in sorted(glob.glob(os.path.join(glob.escape(each), "*.sock")))]
    return " or ".join(found), paths


def _open(runtime_dir: str | None, timeout: float | None) -> socket.socket:
    """A connection to the bridge of a daemon that lives."""
    return next(_open_each(runtime_dir, timeout))


def _open_each(runtime_dir: str | None, timeout: float | None) -> Iterator[socket.socket]:
    """Connections to the bridges of all daemons that live, of which there is at least one. The caller closes them."""
    where, paths = _bridges(runtime_dir)
    denied = found = False
    for path in paths:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        sock.settimeout(timeout)
        try:
            sock.connect(path)
        except OSError as error:
            sock.close()
            if error.errno in (errno.EACCES, errno.EPERM):
                denied = True
            continue
        found = True
        yield sock
    if found:
        return
    if denied:
        raise PermissionError(errno.EACCES, f"may not connect to the bridge sockets in {where}")
    raise OSError(errno.ENODEV, f"no vhostvsock daemon runs (none has a bridge socket in {where})")


def _ask(sock: socket.socket, request: Request) -> tuple[int, list[socket.socket]]:
    """Send a request; the number of the answer, and the sockets that came with it. Takes nothing behind the line."""
    sock.sendall(protocol.request_line(request), socket.MSG_NOSIGNAL)
    line = b""
    sockets: list[socket.socket] = []
    try:
        while not line.endswith(b"\n"):
            # Byte by byte: what follows is payload.
            data, came = recv_with(sock, 1)
            sockets += came
            if not data:
                raise ConnectionResetError(errno.ECONNRESET, "the daemon closed the connection")
            line += data
            if len(line) > ANSWER_LIMIT:
                raise OSError(errno.EPROTO, "the answer is too long")
        return protocol.parse_answer(line[:-1]), sockets
    except BaseException:
        for each in sockets:
            each.close()
        raise


def connect(cid: int, port: int, *, timeout: float | None = None, runtime_dir: str | None = None) -> socket.socket:
    """A stream connected to `port` of `cid`: of a guest, of this host (1), or of the hypervisor above (2).

    The socket is an AF_UNIX one. `timeout` bounds the connecting, in seconds; a guest that does not answer gives
    ETIMEDOUT after two anyway. The errors are Linux's: ENODEV where there is no such VM to be seen, EHOSTUNREACH
    where it runs no driver, ECONNRESET where nobody listens.
    """
    unreachable: OSError | None = None
    for sock in _open_each(runtime_dir, timeout):
        try:
            _, others = _ask(sock, Connect(cid, port))
        except BaseException as error:
            sock.close()
            # A daemon in a local namespace, without privileges, finds no way up for others either: ask the next one.
            if isinstance(error, OSError) and error.errno == errno.ENETUNREACH:
                unreachable = error
                continue
            raise
        if others:
            # The connection is another one: to the hypervisor above.
            sock.close()
            sock = others.pop()
            for each in others:
                each.close()
        sock.settimeout(None)
        return sock
    assert unreachable is not None
    raise unreachable


def list_vms(runtime_dir: str | None = None) -> list[dict[str, Any]]:
    """The VMs that can be seen from here, of all daemons: name, cid, netns (cookie), mode, state, connections, pid."""
    where, paths = _bridges(runtime_dir)
    rows: list[dict[str, Any]] = []
    asked = 0
    for path in paths:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
            sock.settimeout(_LIST_SECONDS)
            try:
                sock.connect(path)
                sock.sendall(protocol.request_line(protocol.List()), socket.MSG_NOSIGNAL)
                data = b""
                while piece := sock.recv(65536):
                    data += piece
            except OSError:
                continue  # dead, or not for us
        head, _, rest = data.partition(b"\n")
        protocol.parse_answer(head)
        rows += [json.loads(line) for line in rest.splitlines()]
        asked += 1
    if not asked:
        raise OSError(errno.ENODEV, f"no vhostvsock daemon can be asked (by a bridge socket in {where})")
    return rows


class Server:
    """A port on which this process listens, for guests and for host applications. Made by `create_server`."""

    def __init__(self, sock: socket.socket, cid: int, port: int) -> None:
        self._sock = sock
        self.cid = cid
        self.port = port

    def fileno(self) -> int:
        """Readable when a connection waits."""
        return self._sock.fileno()

    def accept(self) -> tuple[socket.socket, tuple[int, int]]:
        """The next connection, and (CID, port) of its other end. Raises ECONNRESET when the daemon is gone."""
        line = b""
        sockets: list[socket.socket] = []
        while not line.endswith(b"\n"):
            data, came = recv_with(self._sock, 1)
            sockets += came
            if not data or len(line) > ANSWER_LIMIT:
                for each in sockets:
                    each.close()
                raise ConnectionResetError(errno.ECONNRESET, "the daemon that listened for this port is gone")
            line += data
        peer = protocol.parse_accept(line[:-1])
        if len(sockets) != 1:
            raise OSError(errno.EPROTO, "the bridge announced a connection without one")
        self._sock.sendall(TAKEN, socket.MSG_NOSIGNAL)
        sockets[0].setblocking(True)
        return sockets[0], peer

    def __iter__(self) -> Iterator[tuple[socket.socket, tuple[int, int]]]:
        while True:
            yield self.accept()

    def close(self) -> None:
        """Listen no more. Connections that were not taken are closed."""
        self._sock.close()

    def __enter__(self) -> Server:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def create_server(
    port: int = ANY, *, cid: int = ANY, backlog: int = DEFAULT_BACKLOG, runtime_dir: str | None = None
) -> Server:
    """Listen on `port` (by default any free one, see `Server.port`) for guests, and host applications of this domain.

    `cid` may be 2 (for guests), 1 (for loopback) or ANY. The errors are Linux's: EADDRINUSE, EADDRNOTAVAIL, EACCES
    for ports below 1024.
    """
    sock = _open(runtime_dir, None)
    try:
        number, _ = _ask(sock, Listen(cid, port, backlog))
    except BaseException:
        sock.close()
        raise
    return Server(sock, cid, number)
