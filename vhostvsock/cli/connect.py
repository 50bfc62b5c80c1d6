"""`vhostvsock connect`: stdin and stdout joined to a guest port.

Before: cli/__init__.py. After: the VM's socket, then cli/relay.py.
Rule:   nothing of stdin is sent before the guest has answered, so that a refusal loses no input.
"""

from __future__ import annotations

import argparse
import math
import os
import select
import signal
import socket
import time

from vhostvsock.cli.handshake import Answer, HandshakeError, request
from vhostvsock.cli.relay import OutputGoneError, Relay
from vhostvsock.errors import ConfigError, ConnectError
from vhostvsock.ids import Port
from vhostvsock.log import complain


def main(args: argparse.Namespace) -> int:
    try:
        port = Port.parse(args.port)
    except ValueError as error:
        raise ConfigError(str(error)) from None
    path = args.uds or os.environ.get("VHOSTVSOCK_UDS", "")
    if not path:
        raise ConfigError("which VM? Neither --uds nor VHOSTVSOCK_UDS is given", hint="add --uds PATH, the VM's socket")
    if not (math.isfinite(args.timeout) and args.timeout >= 0):
        raise ConfigError(f"--timeout: {args.timeout} is not a number of seconds")
    # An interrupt ends us as it ends cat: by the signal, without a traceback.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        answer = _open(sock, path, port, args.timeout or None)
        relay = Relay(sock, 0, 1, answer.rest)
        try:
            relay.run()
        except OutputGoneError:
            return 1  # as with any filter piped into `head`: quiet
    if relay.unsent:
        complain("the guest closed the connection before it had read all input")
        return 1
    return 0


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
        hint="the guest is not running, has no vsock driver, or nobody listens there on that port",
    )
