"""The options of `vhostvsock run`, and its help.

Before: cli/__init__.py. After: cli/run.py reads the parsed result.
Rule:   only argparse is needed to show help.
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    Subparsers = argparse._SubParsersAction[Any]

_DESCRIPTION = """\
Serve the vsock device of one VM (flags) or of several (--config) in the foreground, until SIGTERM or SIGINT.

When every socket listens, one line that starts with "vhostvsock: ready:" goes to stderr, and READY=1 to the service
manager where NOTIFY_SOCKET is set. The sockets are removed at the end, but for those that the service manager made and
passed on, which are found by their paths. A socket that a dead daemon left behind is
taken over; that of a live process is not. QEMU may come and go as often as it likes.
"""

_EPILOG = """\
connecting, once the guest is up:
  host to guest   connect to the --uds-path socket, send "CONNECT 1234\\n"; the answer "OK 1073\\n" (with some port of
                  the host) means that the guest's port 1234 is at the other end. `vhostvsock connect` does this.
  guest to host   a guest that connects to CID 2, port 1234, reaches the UNIX socket <uds-path>_1234, where an
                  application of yours listens.
  messages        SOCK_SEQPACKET: <uds-path>.seqpacket, with the same lines, and a listener of that type.

examples:
  vhostvsock run --guest-cid 42 --socket vh.sock --uds-path v.sock

  and then, QEMU with memory that can be shared:

  qemu-system-x86_64 -machine q35 -m 1G \\
    -object memory-backend-memfd,id=mem,size=1G,share=on -machine memory-backend=mem \\
    -chardev socket,id=vsock0,path=vh.sock \\
    -device vhost-user-vsock-pci,chardev=vsock0 ...

  several VMs, vhostvsock.toml:

  handshake_timeout = 5.0             # seconds; optional
  bridge_mode = "0666"                # optional; who may ask by CID, whatever uds_mode says; default "0600"
  bridge_owner = ":users"             # optional
  runtime_dir = "/run/vhostvsock"     # optional
  parent = true                       # optional; false is --no-parent

  [[vm]]
  name = "web"                        # for the log; default: cidNUMBER
  cid = 42                            # or "auto": the lowest that is free
  socket = "/run/vhostvsock/web.vhost"
  uds_path = "/run/vhostvsock/web.vsock"
  socket_mode = "0660"                # optional; default "0600"
  socket_owner = "root:kvm"           # optional: "user", "user:group" or ":group"
  uds_mode = "0666"                   # optional; default: socket_mode
  uds_owner = ":users"                # optional; default: socket_owner
  poll_us = 50                        # optional; see --poll-us
  max_connections = 16384             # optional; see --max-connections
  buf_alloc = 262144                  # optional; see --buf-alloc
  reconnect = true                    # optional; see --reconnect

  Relative paths in the file start at the file's own directory.

  Drop-ins, vhostvsock.toml.d/*.toml, are laid over the file in the order of their names: a [[vm]] with the name of one
  that is there changes the keys that it has, any other adds a VM.

environment:
  VHOSTVSOCK_RUNTIME_DIR  the runtime directory, where no --runtime-dir is given
  NOTIFY_SOCKET, WATCHDOG_USEC, LISTEN_FDS and their like  from the service manager: see `vhostvsock systemd --help`

files, in the runtime directory:
  registry.db    who has which CID and port; may be removed while no daemon runs
  bridge/*.sock  where `vhostvsock connect CID PORT` and others ask

exit codes:
  0  ended by SIGTERM or SIGINT
  1  failed: a socket cannot be made or is in use, for instance
  2  wrong usage or configuration
"""


def add(commands: Subparsers) -> None:
    """Add the command to the parser."""
    command = commands.add_parser(
        "run",
        help="serve the vsock devices of one or more VMs",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    several = command.add_argument_group("several VMs")
    several.add_argument("-c", "--config", metavar="FILE", help="TOML file that lists the VMs; see below")
    one = command.add_argument_group("one VM")
    one.add_argument(
        "--guest-cid", metavar="CID", help="the guest's context id, 3 to 4294967294, or `auto` for the lowest free one"
    )
    one.add_argument("--socket", metavar="PATH", help="the vhost-user socket that QEMU connects to")
    one.add_argument(
        "--uds-path", metavar="PATH", help="the socket for host applications; PATH_PORT is where guests reach the host"
    )
    one.add_argument("--name", metavar="NAME", help="the VM's name in the log (default: cidNUMBER)")
    one.add_argument(
        "--socket-mode", metavar="MODE", help='file mode of --socket and --uds-path, octal (default: "0600")'
    )
    one.add_argument(
        "--socket-owner",
        metavar="OWNER",
        help='owner of --socket and --uds-path: "user", "user:group" or ":group" (default: who runs the command)',
    )
    one.add_argument(
        "--bridge-mode",
        metavar="MODE",
        help="file mode of the bridge, octal: who may ask by CID, for every VM in reach, whatever the mode of its own "
        'sockets (default: "0600")',
    )
    one.add_argument(
        "--poll-us",
        metavar="MICROSECONDS",
        type=int,
        help="after work, look for more for so long at the most before sleeping: less waiting for more processor time, "
        "and none while the VM is idle; 0 to 1000, 0 for never (default: 50)",
    )
    one.add_argument(
        "--max-connections",
        metavar="NUMBER",
        type=int,
        help="connections of the VM that may be open at once, whoever asked for them; further ones are refused; 1 to "
        "1048576 (default: 16384). With --buf-alloc it bounds the memory that the VM can make the daemon use: "
        "connections times window",
    )
    one.add_argument(
        "--buf-alloc",
        metavar="BYTES",
        type=int,
        help="receive window of each connection: how much the guest may send that the host application has not read; "
        "4096 to 16777216 (default: 262144, as Linux)",
    )
    one.add_argument(
        "--reconnect",
        action="store_true",
        default=None,
        help="QEMU's chardev has `reconnect`: should this daemon die, `stop` and `cont` in QEMU give the guest to the "
        "next one. The guest can have 8 regions of memory at most then",
    )
    command.add_argument(
        "--handshake-timeout",
        metavar="SECONDS",
        type=float,
        help="how long a host application may take over its CONNECT line (default: 5)",
    )
    command.add_argument(
        "--runtime-dir",
        metavar="DIR",
        help="where the registry and the bridge are (default: $VHOSTVSOCK_RUNTIME_DIR, or /run/vhostvsock for root, "
        "or $XDG_RUNTIME_DIR/vhostvsock, or /tmp/vhostvsock-UID)",
    )
    command.add_argument(
        "--no-parent",
        action="store_true",
        help="CID 2 is this host even where it is a VM itself; nothing goes to the hypervisor above",
    )
    command.add_argument(
        "-v",
        "--verbose",
        action="count",
        default=0,
        help="log more: -v what happens, -vv everything (default: warnings)",
    )
    command.add_argument(
        "--log-format",
        choices=("auto", "human", "json"),
        default="auto",
        help="human: lines with the time; json: one object per line; auto: human, without the time under systemd's "
        "journal (default: auto)",
    )
