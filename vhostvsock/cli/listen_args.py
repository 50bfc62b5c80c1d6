"""The options of `vhostvsock listen`, and its help.

Before: cli/__init__.py. After: cli/listen.py reads the parsed result.
Rule:   only argparse is needed to show help.
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    Subparsers = argparse._SubParsersAction[Any]

_DESCRIPTION = """\
Listen on a port for guests, and for host applications of the same namespace or, between global ones, of any.

Without --exec, the first connection is joined to stdin and stdout, and the command ends with it. With --exec, each
connection gets a process of its own, until the command is ended.

With --seqpacket it listens for connections that carry messages (SOCK_SEQPACKET). Without --exec, what one read of stdin
gives is sent as one, and each that comes is written out, with nothing in between.
"""

_EPILOG = """\
environment:
  VHOSTVSOCK_RUNTIME_DIR  where the daemons' sockets are, if not in the usual place

environment of the program that --exec starts:
  VSOCK_PEER_CID, VSOCK_PEER_PORT  who is at the other end

examples:
  vhostvsock listen 1234
  vhostvsock listen 1234 --exec cat
  vhostvsock listen 5000 --exec 'tar x -C /srv/incoming'
  ip netns exec blue vhostvsock listen 1234

exit codes:
  0  the connection ended in order; with --exec: ended by SIGTERM or SIGINT
  1  the port cannot be had (in use, privileged, no daemon), or the connection broke
  2  wrong usage
"""


def add(commands: Subparsers) -> None:
    """Add the command to the parser."""
    command = commands.add_parser(
        "listen",
        help="listen on a port for guests and host applications",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    command.add_argument(
        "--exec",
        metavar="COMMAND",
        dest="program",
        help="run this (by the shell) for each connection, which is its stdin and stdout",
    )
    command.add_argument(
        "-v",
        "--verbose",
        action="store_true",
        help="say on stderr when clients can connect; for the port `any` it is always said",
    )
    command.add_argument(
        "--cid",
        metavar="CID",
        default="any",
        help="listen for guests only (2), loopback only (1), or any (default: any)",
    )
    command.add_argument(
        "--backlog", metavar="N", type=int, default=128, help="connections that may wait, less one (default: 128)"
    )
    command.add_argument("--seqpacket", action="store_true", help="listen for messages (SOCK_SEQPACKET)")
    command.add_argument("port", metavar="PORT", help="the port, 0 to 4294967294, or `any` for a free one")
