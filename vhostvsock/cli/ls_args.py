"""The options of `vhostvsock ls`, and its help.

Before: cli/__init__.py. After: cli/ls.py reads the parsed result.
Rule:   only argparse is needed to show help.
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    Subparsers = argparse._SubParsersAction[Any]

_DESCRIPTION = """\
List the VMs that can be seen from this network namespace: those of all daemons of this host, as far as they are in this
namespace or, where it is a global one, in any global namespace. With --all, those of every namespace, as the registry
has them.
"""

_EPILOG = """\
columns:
  NAME    as configured
  CID     the guest's; for `cid = "auto"`, the one that was found
  NETNS   the namespace in which its QEMU attached
  MODE    global or local
  STATE   running: the guest's driver is up; attached: QEMU is there, its driver is not; failed: the VM lost its
          device to a fault of the daemon's, for the reason told, and gets it back when its QEMU connects again
  CONNS   connections open now

with --counters:
  COUNTER  what the VM's device has counted since its daemon started: packets and bytes, and a number of its own for
           each reason to drop a packet, or to refuse or reset a connection; docs/counters.md says what each one means.
           Those that are zero are left out here; --json has them all, as `counters`
  VALUE    how often, or how much

environment:
  VHOSTVSOCK_RUNTIME_DIR  where the daemons' sockets are, if not in the usual place

examples:
  vhostvsock ls
  vhostvsock ls --all --json
  vhostvsock ls --counters
  ip netns exec blue vhostvsock ls

exit codes:
  0  fine, also where there is no VM
  1  no daemon could be asked
  2  wrong usage
"""


def add(commands: Subparsers) -> None:
    """Add the command to the parser."""
    command = commands.add_parser(
        "ls",
        help="list the VMs and their CIDs",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    which = command.add_mutually_exclusive_group()
    which.add_argument("--all", action="store_true", help="VMs of every namespace; needs access to the registry")
    which.add_argument("--counters", action="store_true", help="what the device of each VM has counted")
    command.add_argument("--json", action="store_true", help="one JSON list of objects, for machines")
