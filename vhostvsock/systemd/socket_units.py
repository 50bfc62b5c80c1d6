"""One socket unit per VM, made from the configuration: QEMU's connection starts the service.

Before: cli/systemd.py. After: files.py writes; at run time the sockets come back through activation.py.
Rules:  - A unit per VM, not one for all: each socket has its own owner and mode, and its own name in the journal.
        - The name says both, `vhostvsock-VM@NAMESPACE.socket`, so that drop-ins for all fit in `vhostvsock-.socket.d/`.
        - Units of VMs that are no longer in the configuration go.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

from vhostvsock import config
from vhostvsock.config import VmConfig
from vhostvsock.errors import VhostvsockError
from vhostvsock.systemd import files

DIRECTORY = Path("etc/systemd/system")
_USER = "vhostvsock"


def write(root: Path, instance: str | None) -> Iterator[tuple[Path, str]]:
    """Write the units of one service, and remove those that are too many; tells each file and what happened."""
    service = service_of(instance)
    wanted: dict[Path, str] = {}
    for vm in config.from_file(str(root / _configuration(instance))).vms:
        wanted[root / DIRECTORY / unit_name(vm.name, instance)] = _unit(vm, instance, service, root)
    for path in _of_service(root, service):
        if path not in wanted and files.remove(path, root / DIRECTORY):
            yield path, "removed"
    for path, text in wanted.items():
        yield path, "written" if files.put(path, "sockets", text) else "unchanged"


def remove(root: Path, instance: str | None) -> Iterator[tuple[Path, str]]:
    """Remove the units of one service; tells each file."""
    for path in _of_service(root, service_of(instance)):
        if files.remove(path, root / DIRECTORY):
            yield path, "removed"


def service_of(instance: str | None) -> str:
    """The service of a namespace, or that of the host's own."""
    if instance is None:
        return "vhostvsock.service"
    if not re.fullmatch(r"[A-Za-z0-9:_.\\@-]{1,128}", instance):
        raise VhostvsockError(
            f"{instance!r} cannot be a part of a unit's name",
            hint="name namespaces with letters, digits and : _ . @ - only",
        )
    return f"vhostvsock@{instance}.service"


def unit_name(vm: str, instance: str | None) -> str:
    """The name of a VM's socket unit."""
    # In a unit's name the first "@" begins the instance.
    prefix = "vhostvsock-" + vm.replace("@", "\\x40")
    return f"{prefix}.socket" if instance is None else f"{prefix}@{instance}.socket"


def all_below(root: Path) -> list[Path]:
    """Every unit that `write` may have written."""
    return sorted(path for path in (root / DIRECTORY).glob("vhostvsock-*.socket") if files.is_ours(path))


def _of_service(root: Path, service: str) -> list[Path]:
    return [path for path in all_below(root) if f"\nService={service}\n" in path.read_text()]


def _configuration(instance: str | None) -> str:
    return "etc/vhostvsock.toml" if instance is None else f"etc/vhostvsock/{instance}.toml"


def _unit(vm: VmConfig, instance: str | None, service: str, root: Path) -> str:
    # A relative path in the configuration starts at its directory, which lies below the root only for now.
    path = vm.socket
    if root != Path("/"):
        path = path.removeprefix(str(root))
    where = "" if instance is None else f" in network namespace {instance}"
    lines = [
        "[Unit]",
        f"Description=vhost-user socket of VM {vm.name}{where}".replace("%", "%%"),
        "",
        "[Socket]",
        f"ListenStream={os.path.abspath(path)}".replace("%", "%%"),
        f"SocketUser={_USER if vm.socket_access.uid is None else vm.socket_access.uid}",
        f"SocketGroup={_USER if vm.socket_access.gid is None else vm.socket_access.gid}",
        f"SocketMode={vm.socket_access.mode:04o}",
        # A colon separates the names.
        f"FileDescriptorName={vm.name.replace(':', '_')}",
        f"Service={service}",
        "RemoveOnStop=yes",
        "",
        "[Install]",
        "WantedBy=sockets.target",
        "",
    ]
    return "\n".join(lines)
