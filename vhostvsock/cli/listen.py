"""`vhostvsock listen`: a port joined to stdin and stdout, or to a program for each connection.

Before: cli/__init__.py. After: client.py listens, cli/relay.py moves bytes.
"""

from __future__ import annotations

import argparse
import errno
import os
import signal
import socket
import subprocess
import sys

from vhostvsock import client
from vhostvsock.bridge.protocol import ANY
from vhostvsock.cli import hints, interrupts
from vhostvsock.cli.relay import OutputGoneError, Relay
from vhostvsock.errors import ConfigError, ConnectError
from vhostvsock.ids import parse_number
from vhostvsock.log import complain


def main(args: argparse.Namespace) -> int:
    port, cid = _number(args.port, "port"), _number(args.cid, "CID")
    if args.backlog < 0:
        raise ConfigError(f"--backlog: {args.backlog} is less than nothing")
    interrupts.end_by_interrupts()
    try:
        kind = socket.SOCK_SEQPACKET if args.seqpacket else socket.SOCK_STREAM
        server = client.create_server(port, type=kind, cid=cid, backlog=args.backlog)
    except OSError as error:
        name = errno.errorcode.get(error.errno or 0, "")
        raise ConnectError(
            f"cannot listen on port {args.port}: {error.strerror or error} ({name})",
            hint=hints.hint(error, hints.LISTENING),
        ) from error
    with server:
        if args.program is not None:
            # Before anybody is told that it listens, and may end it.
            for number in (signal.SIGTERM, signal.SIGINT):
                interrupts.on(number, lambda *_: sys.exit(0))
        if args.verbose or port == ANY:
            print(f"listening on port {server.port}", file=sys.stderr, flush=True)
        if args.program is not None:
            return _serve(server, args.program)
        sock, _ = server.accept()
    with sock:
        relay = Relay(sock, 0, 1)
        try:
            relay.run()
        except OutputGoneError:
            return 1
    if relay.unsent:
        complain("the other side closed the connection before it had read all input")
        return 1
    return 0


def _number(text: str, what: str) -> int:
    if text == "any":
        return ANY
    try:
        return parse_number(text, what)
    except ValueError as error:
        raise ConfigError(str(error)) from None


def _serve(server: client.Server, program: str) -> int:
    # Ended children are of no further interest; the kernel buries them.
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    try:
        for sock, (cid, port) in server:
            _start(program, sock, cid, port)
    except ConnectionResetError as error:
        raise ConnectError(str(error.strerror)) from error
    return 0


def _child() -> None:
    # Shells wait for their children.
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)


def _start(program: str, sock: socket.socket, cid: int, port: int) -> None:
    env = {**os.environ, "VSOCK_PEER_CID": str(cid), "VSOCK_PEER_PORT": str(port)}
    with sock:
        try:
            process = subprocess.Popen(
                ["/bin/sh", "-c", program],
                stdin=sock.fileno(),
                stdout=sock.fileno(),
                env=env,
                preexec_fn=_child,
            )
        except OSError as error:
            complain(f"cannot start {program!r}: {error.strerror}")
            return
        process.returncode = 0  # nobody waits for it
