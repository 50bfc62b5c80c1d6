"""The options of `vhostvsock connect`, and its help.

Before: cli/__init__.py. After: cli/connect.py reads the parsed result.
Rule:   only argparse is needed to show help.
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    Subparsers = argparse._SubParsersAction[Any]

_DESCRIPTION = """\
Join stdin and stdout to a port of a guest, byte for byte, like a netcat.

With CID and PORT, the guest is found by its CID, as this network namespace sees it: any daemon of this host is asked.
CID 1 is this host itself. With PORT alone, the guest is the one behind a socket that is named by --uds.

The end of stdin is passed on (half-close) and the guest's remaining output is still written. When the guest ends its
side, stdout is closed; the command ends when both sides have ended, or the guest closed the connection altogether.

With --seqpacket the connection carries messages (SOCK_SEQPACKET): what one read of stdin gives is sent as one, and each
that comes is written out, with nothing in between.
"""

_EPILOG = """\
environment:
  VHOSTVSOCK_UDS          the socket to use where neither --uds nor CID is given
  VHOSTVSOCK_RUNTIME_DIR  where the daemons' sockets are, if not in the usual place

examples:
  vhostvsock connect 42 1234
  ip netns exec blue vhostvsock connect 42 1234
  vhostvsock connect --uds v.sock 1234
  tar c /etc | vhostvsock connect --uds v.sock 5000
  ssh -o ProxyCommand='vhostvsock connect --uds v.sock 22' root@guest

exit codes:
  0  both sides ended in order
  1  no connection (no such socket, no guest, nobody listens on the port), or it broke
  2  wrong usage
"""


def add(commands: Subparsers) -> None:
    """Add the command to the parser."""
    command = commands.add_parser(
        "connect",
        help="join stdin and stdout to a guest port",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    command.add_argument(
        "--uds",
        metavar="PATH",
        help="the VM's socket for host applications, as in `run --uds-path` (default: $VHOSTVSOCK_UDS)",
    )
    command.add_argument(
        "--timeout",
        metavar="SECONDS",
        type=float,
        default=10.0,
        help="how long to wait for the guest's answer; 0: for ever (default: 10)",
    )
    command.add_argument("--seqpacket", action="store_true", help="connect for messages (SOCK_SEQPACKET)")
    command.add_argument("cid", metavar="CID", nargs="?", help="CID of the guest, or 1 for this host")
    command.add_argument("port", metavar="PORT", help="port of the guest, 0 to 4294967294")
