"""The options of `vhostvsock systemd`, and its help.

Before: cli/__init__.py. After: cli/systemd.py reads the parsed result.
Rule:   only argparse is needed to show help.
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    Subparsers = argparse._SubParsersAction[Any]

_DESCRIPTION = """\
Make vhostvsock a service of systemd: one instance per network namespace, vhostvsock@NAME.service, which runs in
/run/netns/NAME as the user vhostvsock, with no capability and hardly a view of the system; and vhostvsock.service for
the host's own namespace.
"""

_EPILOG = """\
what goes where:
  /etc/vhostvsock/NAME.toml           the VMs of vhostvsock@NAME, as in `vhostvsock run --help`; yours
  /etc/vhostvsock/NAME.toml.d/*.toml  drop-ins
  /etc/vhostvsock.toml                the VMs of vhostvsock.service; drop-ins in /etc/vhostvsock.toml.d/
  /run/vhostvsock/                    the place for sockets, made at boot
  /usr/local/lib/systemd/system/      both services, by `install`; `systemctl edit vhostvsock@.service` changes them
  /usr/local/lib/sysusers.d/, .../tmpfiles.d/  the user and the directories, by `install`
  /etc/systemd/system/                a socket unit per VM, by `sockets`

  A service can give a socket to group kvm, which QEMU mostly is in (socket_owner = ":kvm"), but not to just any user. A
  socket unit can.

examples:
  vhostvsock systemd install
  systemd-sysusers && systemd-tmpfiles --create && systemctl daemon-reload
  ip netns add blue
  systemctl enable --now vhostvsock@blue.service

  with the service started by QEMU's first connection:

  vhostvsock systemd sockets blue
  systemctl daemon-reload
  systemctl enable --now vhostvsock-web@blue.socket

  in a distribution package:

  vhostvsock systemd install --root "$DESTDIR" --prefix /usr --command /usr/bin/vhostvsock

  stop and disable the services before:

  vhostvsock systemd uninstall && systemctl daemon-reload

exit codes:
  0  done, or there was nothing to do
  1  failed: a file cannot be written, or is somebody else's
  2  wrong usage or configuration
"""


def add(commands: Subparsers) -> None:
    """Add the command to the parser."""
    command = commands.add_parser(
        "systemd",
        help="install the systemd units, or remove them",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    actions = command.add_subparsers(dest="action", metavar="ACTION", required=True)
    install = actions.add_parser(
        "install",
        help="put the units in place, or bring them up to date",
        description="Put services, user and directories in place below /usr/local/lib, or bring them up to date.",
        allow_abbrev=False,
    )
    install.add_argument(
        "--command",
        metavar="PATH",
        dest="command_path",
        help="the command that the services run (default: the one that runs now)",
    )
    uninstall = actions.add_parser(
        "uninstall",
        help="remove what install and sockets have written",
        description="Remove what install and sockets have written. The configuration and the user stay.",
        allow_abbrev=False,
    )
    sockets = actions.add_parser(
        "sockets",
        help="write a socket unit for each VM of a namespace",
        description="Write a socket unit for each VM in /etc/vhostvsock/NAME.toml; remove those of VMs that are gone.",
        allow_abbrev=False,
    )
    sockets.add_argument("name", metavar="NAME", nargs="?", help="the namespace (default: the host's own)")
    sockets.add_argument("--remove", action="store_true", help="remove them instead")
    for each in (install, uninstall):
        each.add_argument(
            "--prefix",
            metavar="DIR",
            default="/usr/local",
            help="where the files are: DIR/lib; distribution packages say /usr (default: /usr/local)",
        )
    for each in (install, uninstall, sockets):
        each.add_argument("--root", metavar="DIR", default="/", help="work below DIR instead of /")
