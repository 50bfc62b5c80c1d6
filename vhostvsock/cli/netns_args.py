"""The options of `vhostvsock netns`, and its help.

Before: cli/__init__.py. After: cli/netns.py reads the parsed result.
Rule:   only argparse is needed to show help.
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    Subparsers = argparse._SubParsersAction[Any]

_DESCRIPTION = """\
Network namespaces as AF_VSOCK sees them. Each has a mode, decided when it is made and never changed:

  global  shares its CIDs and ports with all other global namespaces of the host
  local   has CIDs and ports of its own; nothing outside reaches in, nothing inside reaches out

The system's first namespace is global, and so is each of which nobody said otherwise. A namespace made by `add` gets
the child mode of the namespace in which the command runs. The child mode can be set once.
"""

_NS_HELP = """\
NS, a namespace, is one of:
  a name    in /run/netns, as `ip netns` knows it
  a pid     the namespace of that process; a name that has the same digits comes first
  a path    anything with a slash in it, such as /proc/PID/ns/net
  nothing   the namespace in which the command runs
A namespace that does not exist is an error; only `add` ever makes one.
"""

_WHERE = """\
where modes are kept:
  Where the kernel has them (/proc/sys/net/vsock/ns_mode, Linux 7.0 with its vsock module loaded), these are read and
  written. Elsewhere they are noted in the runtime directory, which daemons share; what root noted counts for every
  user's daemons. There it is not known from where other programs make namespaces: those count as global.

environment:
  VHOSTVSOCK_RUNTIME_DIR  the runtime directory; default /run/vhostvsock for root, $XDG_RUNTIME_DIR/vhostvsock for
                          others. The daemons and this command must mean the same one.
"""

_EXIT_CODES = """\
exit codes:
  0  done
  1  refused or failed; one line on stderr says why, with Linux's errno where there is one
  2  wrong usage
"""

_EPILOG = f"""\
{_NS_HELP}
examples:
  vhostvsock netns add red --mode local
  ip netns exec red vhostvsock run --guest-cid 42 --socket red.vhost --uds-path red.vsock
  vhostvsock netns list
  vhostvsock netns child-mode local            # namespaces made from within this one are local from now on
  ip netns exec red vhostvsock netns add blue  # is local, as red is

{_WHERE}
{_EXIT_CODES}
`vhostvsock netns COMMAND --help` has the details of each.
"""

_LIST = """\
List the namespaces that have a name, the one in which the command runs, the system's first one, and those that are
known only by the VMs in them. Columns: the name ("-" where there is none; "(NAME)" where the name is gone); the
kernel's cookie, which identifies the namespace until the next boot; mode and child mode, the latter with "!" where it
is known to be set for good; the number of VMs. The namespace in which the command runs is marked with "*".
"""

_LIST_EPILOG = f"""\
examples:
  vhostvsock netns list
  vhostvsock netns list --json | jq -r '.[] | select(.mode == "local") | .name'

keys of each object with --json:
  name (null where there is none), deleted, cookie, mode, child_mode, child_mode_locked (null where the kernel does not
  tell), own, init, vms (a list of objects with name, cid and pid)

{_EXIT_CODES}"""

_ADD = """\
Make a network namespace and give it a name in /run/netns, like `ip netns add`. Its mode is the child mode of the
namespace in which the command runs, or what --mode says where that can be had:

  this namespace's child mode   --mode global      --mode local
  global                        made               made, by way of a namespace in between
  local                         refused (EPERM)    made

Namespaces made from within a local one are local for ever. Needs root.
"""

_ADD_EPILOG = f"""\
examples:
  vhostvsock netns add red
  vhostvsock netns add red --mode local
  ip netns exec red vhostvsock netns add blue

{_EXIT_CODES}"""

_DEL = """\
Remove the name of a network namespace, like `ip netns del`. The namespace lives on for as long as something is in it:
VMs keep running there and keep their CIDs, and connections stay. Needs root.
"""

_DEL_EPILOG = f"""\
examples:
  vhostvsock netns del red

{_EXIT_CODES}"""

_MODE = """\
Print the mode of a namespace: "global" or "local". It cannot be changed.
"""

_MODE_EPILOG = f"""\
{_NS_HELP}
examples:
  vhostvsock netns mode
  vhostvsock netns mode red
  vhostvsock netns mode /proc/1234/ns/net

{_EXIT_CODES}"""

_CHILD = """\
Print the child mode of a namespace, or set it: the mode of namespaces that are made from within it later. Neither the
namespace itself nor those that exist already change.

It can be set once, also to what it is already; then it is locked. A single argument that reads "global" or "local" is
the VALUE, for the namespace in which the command runs.
"""

_CHILD_EPILOG = f"""\
{_NS_HELP}
refusals, in the order in which they are looked for:
  EACCES  only root, or who has CAP_NET_ADMIN in the user namespace that owns the network namespace, may set it
  EINVAL  VALUE is neither "global" nor "local"; an empty VALUE is fine and changes nothing
  EPERM   the namespace is local and VALUE is "global"
  EBUSY   it was set to the other value before

examples:
  vhostvsock netns child-mode
  vhostvsock netns child-mode local
  vhostvsock netns child-mode red global

{_EXIT_CODES}"""


def add(commands: Subparsers) -> None:
    """Add the command and its own commands to the parser."""
    command = _parser(commands, "netns", "show and make network namespaces, and their modes", _DESCRIPTION, _EPILOG)
    actions = command.add_subparsers(dest="action", metavar="COMMAND", required=True)

    one = _parser(actions, "list", "list namespaces with mode and VMs", _LIST, _LIST_EPILOG)
    one.add_argument("--json", action="store_true", help="print one JSON array of objects")

    one = _parser(actions, "add", "make a namespace", _ADD, _ADD_EPILOG)
    one.add_argument("name", metavar="NAME", help="the name, which nothing in /run/netns may have yet")
    one.add_argument("--mode", choices=("global", "local"), help="the mode to insist on (default: what is inherited)")

    one = _parser(actions, "del", "remove a namespace's name", _DEL, _DEL_EPILOG)
    one.add_argument("name", metavar="NAME", help="a name in /run/netns")

    one = _parser(actions, "mode", "print a namespace's mode", _MODE, _MODE_EPILOG)
    one.add_argument("netns", metavar="NS", nargs="?", help="the namespace (default: this one)")

    one = _parser(actions, "child-mode", "print or set the mode of namespaces to be made", _CHILD, _CHILD_EPILOG)
    one.add_argument("netns", metavar="NS", nargs="?", help="the namespace (default: this one)")
    one.add_argument("value", metavar="VALUE", nargs="?", help='"global" or "local"; left out: print')


def _parser(commands: Subparsers, name: str, line: str, description: str, epilog: str) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(
        name,
        help=line,
        description=description,
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    return parser
