"""`vhostvsock connect`: stdin and stdout joined to a guest port.

Before: cli/__init__.py. After: the VM's socket, then cli/relay.py.
Rule:   nothing of stdin is sent before the guest has answered, so that a refusal loses no input.
"""

from __future__ import annotations

import argparse
import errno
import math
import os
import select
import socket
import time

from vhostvsock import client
from vhostvsock.cli import hints
from vhostvsock.cli.handshake import Answer, HandshakeError, request
from vhostvsock.cli.interrupts import end_by_interrupts
from vhostvsock.cli.relay import OutputGoneError, Relay
from vhostvsock.errors import ConfigError, ConnectError
from vhostvsock.ids import Port, parse_number
from vhostvsock.log import complain
from vhostvsock.paths import seqpacket_path


def main(args: argparse.Namespace) -> int:
    try:
        port = Port.parse(args.port)
    except ValueError as error:
        raise ConfigError(str(error)) from None
    if not (math.isfinite(args.timeout) and args.timeout >= 0):
        raise ConfigError(f"--timeout: {args.timeout} is not a number of seconds")
    end_by_interrupts()
    kind = socket.SOCK_SEQPACKET if args.seqpacket else socket.SOCK_STREAM
    if args.cid is not None:
        if args.uds is not None:
            raise ConfigError("CID and --uds exclude each other", hint="--uds names the VM's socket, CID the VM itself")
        with _by_cid(args.cid, port, kind, args.timeout or None) as sock:
            return _join(sock, b"")
    path = args.uds or os.environ.get("VHOSTVSOCK_UDS", "")
    if not path:
        raise ConfigError(
            "which VM? Neither CID, --uds nor VHOSTVSOCK_UDS is given", hint="vhostvsock connect CID PORT"
        )
    with socket.socket(socket.AF_UNIX, kind) as sock:
        path = seqpacket_path(path) if args.seqpacket else path
        return _join(sock, _open(sock, path, port, args.timeout or None).rest)


def _join(sock: socket.socket, first: bytes) -> int:
    """Join stdin and stdout to the connection; the exit code."""
    relay = Relay(sock, 0, 1, first)
    try:
        relay.run()
    except OutputGoneError:
        return 1  # as with any filter piped into `head`: quiet
    if relay.unsent:
        complain("the other side closed the connection before it had read all input")
        return 1
    return 0


def _by_cid(text: str, port: Port, kind: socket.SocketKind, timeout: float | None) -> socket.socket:
    """A connection that some daemon of this host makes."""
    try:
        cid = parse_number(text, "CID")
    except ValueError as error:
        raise ConfigError(str(error)) from None
    try:
        return client.connect(cid, port.value, type=kind, timeout=timeout)
    except OSError as error:
        name = errno.errorcode.get(error.errno or 0, "")
        raise ConnectError(
            f"cannot connect to port {port} of CID {cid}: {error.strerror or error} ({name})",
            hint=hints.hint(error, hints.CONNECTING),
        ) from error


def _open(sock: socket.socket, path: str, port: Port, timeout: float | None) -> Answer:
    """Connect and ask for `port`; returns once the guest accepted."""
    deadline = None if timeout is None else time.monotonic() + timeout
    late = f"no answer from {path} for port {port} within {timeout} s"
    try:
        sock.settimeout(timeout)
        sock.connect(path)
        sock.sendall(request(port))
    except TimeoutError:
        raise ConnectError(late, hint="is the daemon busy or stopped?") from None
    except BrokenPipeError:
        raise _refused(path, port) from None
    except OSError as error:
        hint = "is `vhostvsock run` running, with that path as --uds-path?"
        if isinstance(error, PermissionError):
            hint = "run as a user who may write to that socket, or start the daemon with --socket-mode"
        raise ConnectError(f"cannot connect to {path}: {error.strerror or error}", hint=hint) from error
    answer = Answer()
    poll = select.poll()
    poll.register(sock, select.POLLIN)
    while True:
        left = None if deadline is None else max(0.0, deadline - time.monotonic()) * 1000
        if not poll.poll(left):
            raise ConnectError(late, hint="is the guest running? --timeout sets how long to wait") from None
        try:
            data = sock.recv(4096)
        except ConnectionResetError:
            data = b""
        if not data:
            raise _refused(path, port)
        try:
            if answer.feed(data):
                return answer
        except HandshakeError as error:
            raise ConnectError(f"{path} sent {error}", hint="is it a hybrid vsock socket (--uds-path)?") from None


def _refused(path: str, port: Port) -> ConnectError:
    return ConnectError(
        f"connection to port {port} through {path} refused",
        hint="the guest is not running, has no vsock driver, or nobody listens there on that port; or the path is that "
        "of --socket, where it has to be that of --uds-path",
    )
