"""The options of `vhostvsock exec`, and its help.

Before: cli/__init__.py. After: cli/exec.py reads the parsed result.
Rule:   only argparse is needed to show help.
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    Subparsers = argparse._SubParsersAction[Any]

_DESCRIPTION = """\
Run a program, and all that it starts, for which AF_VSOCK sockets go over vhostvsock.

The program connects to guests by their CIDs, listens for them, and reaches other host applications through CID 1, all
as seen from its network namespace. It may be any: statically linked, written in Go, a script, a shell. It needs no
privilege, and the system no vsock module. Its other sockets are its own business.

Calls such as socket(2) and connect(2) are intercepted (seccomp user notification); once connected, a socket is a plain
UNIX socket, and nothing that carries data is intercepted. The command ends when the last process has ended, with the
exit code of PROGRAM.
"""

_EPILOG = """\
environment:
  VHOSTVSOCK_RUNTIME_DIR  where the daemons' sockets are, if not in the usual place

examples:
  vhostvsock exec -- ncat --vsock 42 1234
  vhostvsock exec -- ncat --vsock -l 1234
  vhostvsock exec -- socat VSOCK-LISTEN:1234,fork EXEC:cat
  vhostvsock exec -- nbdkit --foreground --vsock memory 1G
  vhostvsock exec -- bash
  vhostvsock exec --dev-vsock -- ./which-cid-am-i
  ip netns exec blue vhostvsock exec -- ncat --vsock 42 1234

exit codes:
  that of PROGRAM; 128 and the number of the signal that ended it
  2    wrong usage
  126  PROGRAM cannot be executed, or its calls cannot be intercepted here
  127  there is no PROGRAM
"""


def add(commands: Subparsers) -> None:
    """Add the command to the parser."""
    command = commands.add_parser(
        "exec",
        help="run a program whose AF_VSOCK sockets go over vhostvsock",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    command.add_argument(
        "--dev-vsock",
        action="store_true",
        help="let the program open /dev/vsock, which tells it the CID of this host, also where there is none or it may "
        "not (in containers); to open any file then takes some tens of microseconds longer",
    )
    command.add_argument("program", metavar="PROGRAM", help="the program; put `--` before it")
    command.add_argument("arguments", metavar="ARGUMENT", nargs=argparse.REMAINDER, help="its arguments")
