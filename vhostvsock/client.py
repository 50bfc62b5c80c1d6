"""For host applications: connections to guests and from guests, by CID and port, as blocking sockets.

Before: an application, or cli/. After: the bridge socket of some daemon of this host (bridge/finding.py).
Rules:  - whom one may reach is decided by the network namespace in which this process makes its socket, as for
          AF_VSOCK.
        - a refusal is an OSError with the errno that Linux would give.
        - any daemon of a runtime directory will do: the one asked finds the one that serves the VM. Where there is no
          such VM for the user's own daemons, the system's are asked.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import socket
from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import Any

from vhostvsock.bridge import finding, protocol
from vhostvsock.bridge.finding import Deadline, Group
from vhostvsock.bridge.lines import DescriptorLostError, limit_messages
from vhostvsock.bridge.protocol import ANY, DEFAULT_BACKLOG, TAKEN, Connect, Listen

# Where one daemon has no VM or no way, another may have it. Linux's word for no VM depends on the type of the socket.
_ELSEWHERE = (errno.ENODEV, errno.ESOCKTNOSUPPORT, errno.ENETUNREACH)
# A daemon that hangs costs the list no more than that.
_LIST_SECONDS = 5.0


def connect(
    cid: int,
    port: int,
    *,
    type: socket.SocketKind = socket.SOCK_STREAM,  # noqa: A002 - as socket.socket has it
    timeout: float | None = None,
    runtime_dir: str | None = None,
) -> socket.socket:
    """A socket connected to `port` of `cid`: of a guest, of this host (1), or of the hypervisor above (2).

    It is an AF_UNIX one of `type`: a stream, or SOCK_SEQPACKET for messages. `timeout` bounds the connecting as a
    whole, in seconds; a guest that does not answer gives ETIMEDOUT after two anyway. The errors are Linux's: ENODEV
    where there is no such VM to be seen, EHOSTUNREACH where it runs no driver, ECONNRESET where nobody listens, EINVAL
    for what is no CID or port. For SOCK_SEQPACKET, ESOCKTNOSUPPORT where there is no such VM, or one without such
    sockets.
    """
    request = Connect(_number(cid, "CID"), _number(port, "port"))
    sock, _, others = ask_for_connection(request, type, Deadline(timeout), runtime_dir)
    if others:
        # The connection is another one: to the hypervisor above.
        sock.close()
        sock = others.pop()
        for each in others:
            each.close()
    sock.settimeout(None)
    limit_messages(sock)
    return sock


def ask_for_connection(
    request: Connect,
    kind: socket.SocketKind,
    deadline: Deadline,
    runtime_dir: str | None,
    sockets: Sequence[socket.socket] = (),
) -> tuple[socket.socket, int, list[socket.socket]]:
    """The socket on which some daemon said OK to `request`, the port that it named, and sockets that came with that.

    `sockets` go with the request: one that is to become the connection. Raises OSError as `connect` does.
    """
    groups = finding.groups(runtime_dir)
    refusal: OSError | None = None
    failed: list[OSError] = []
    # The daemons of one directory know the same VMs. Not all have a way up, though: that of a local namespace has none.
    left = list(groups)
    while left:
        group = left.pop(0)
        try:
            sock, asked = finding.open_one([group], deadline, kind)
        except OSError as error:
            failed.append(error)
            continue
        try:
            number, others = finding.ask(sock, request, deadline, sockets)
        except BaseException as error:
            sock.close()
            if not (isinstance(error, OSError) and error.errno in _ELSEWHERE):
                raise
            refusal = error
            others_there = group.paths[group.paths.index(asked) + 1 :]
            if error.errno == errno.ENETUNREACH and others_there:
                left.insert(0, Group(group.where, others_there))
            continue
        return sock, number, others
    if refusal is not None:
        raise refusal
    raise next((error for error in failed if error.errno != errno.ENODEV), finding.nobody(groups))


def _number(value: int, what: str) -> int:
    if not 0 <= value <= ANY:
        raise OSError(errno.EINVAL, f"{what} {value} does not fit in 32 bits")
    return value


def list_vms(
    runtime_dir: str | None = None, *, silent: list[str] | None = None, counters: bool = False
) -> list[dict[str, Any]]:
    """The VMs that can be seen from here, of all daemons: name, cid, netns (cookie), mode, state, connections, pid.

    With `counters`, also counters: what the VM's device has counted, by name (docs/counters.md). `silent` gets the
    bridge sockets of daemons that live and did not answer.
    """
    groups = finding.groups(runtime_dir)
    rows: list[dict[str, Any]] = []
    asked = 0
    for path in (path for group in groups for path in group.paths):
        deadline = Deadline(_LIST_SECONDS)
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
            try:
                deadline.apply(sock)
                sock.connect(path)
                data = _listed(sock, counters, deadline)
                head, _, rest = data.partition(b"\n")
                whole = bool(data) and protocol.parse_answer(head) == rest.count(b"\n")
            except TimeoutError:
                if silent is not None:
                    silent.append(path)
                continue
            except OSError:
                continue  # dead, not for us, or with a trouble of its own
        if not whole:
            continue  # it went away before all was said
        rows += (json.loads(line) for line in rest.splitlines())
        asked += 1
    if not asked:
        raise OSError(
            errno.ENODEV, f"no vhostvsock daemon can be asked (by a bridge socket in {finding.where(groups)})"
        )
    return rows


def _listed(sock: socket.socket, counters: bool, deadline: Deadline) -> bytes:
    """All that is answered to LIST."""
    sock.sendall(protocol.request_line(protocol.List(counters)), socket.MSG_NOSIGNAL)
    data = b""
    while True:
        deadline.apply(sock)
        piece = sock.recv(65536)
        if not piece:
            return data
        data += piece


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
        """The next connection, and (CID, port) of its other end. Raises ECONNRESET when the daemon is gone.

        And EMFILE where this process can have no more descriptors: the connection waits, as with accept(2).
        """
        os.close(os.dup(self._sock.fileno()))
        sockets: list[socket.socket] = []
        try:
            line = finding.read_answer(self._sock, sockets)
        except DescriptorLostError:
            self._say_taken()  # another thread was faster: the connection is lost, and waits no more
            raise
        except OSError as error:
            for each in sockets:
                each.close()
            raise ConnectionResetError(errno.ECONNRESET, "the daemon that listened for this port is gone") from error
        peer = protocol.parse_accept(line)
        if len(sockets) != 1:
            raise OSError(errno.EPROTO, "the bridge announced a connection without one")
        self._say_taken()
        sockets[0].setblocking(True)
        return sockets[0], peer

    def _say_taken(self) -> None:
        with contextlib.suppress(OSError):  # the daemon may be gone: the connection does without
            self._sock.sendall(TAKEN, socket.MSG_NOSIGNAL)

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
    port: int = ANY,
    *,
    type: socket.SocketKind = socket.SOCK_STREAM,  # noqa: A002 - as socket.socket has it
    cid: int = ANY,
    backlog: int = DEFAULT_BACKLOG,
    runtime_dir: str | None = None,
) -> Server:
    """Listen on `port` (by default any free one, see `Server.port`) for guests, and host applications of this domain.

    `cid` may be 2 (for guests), 1 (for loopback) or ANY. Connections of another type (SOCK_STREAM, SOCK_SEQPACKET) are
    reset; one port cannot have both. The errors are Linux's: EADDRINUSE, EADDRNOTAVAIL, EACCES
    for ports below 1024, EINVAL for what is no CID or port.
    """
    request = Listen(_number(cid, "CID"), _number(port, "port"), _number(backlog, "backlog"))
    deadline = Deadline(None)
    sock, _ = finding.open_one(finding.groups(runtime_dir), deadline, type)
    try:
        number, _ = finding.ask(sock, request, deadline)
    except BaseException:
        sock.close()
        raise
    return Server(sock, cid, number)
