"""`vhostvsock systemd`: put units in place, remove them, and say what to do next.

Before: cli/__init__.py. After: systemd/install.py and systemd/socket_units.py.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from vhostvsock.errors import ConfigError
from vhostvsock.systemd import install, socket_units

_RELOAD = "systemctl daemon-reload"


def main(args: argparse.Namespace) -> int:
    root = Path(args.root).absolute()
    if not root.is_dir():
        raise ConfigError(f"--root {args.root} is no directory")
    actions = {"install": _install, "uninstall": _uninstall, "sockets": _sockets}
    actions[args.action](args, root)
    return 0


def _install(args: argparse.Namespace, root: Path) -> None:
    changed = False
    for path, new in install.install(root, args.command_path, args.prefix):
        print(f"{'written' if new else 'unchanged'}: {path}")
        changed |= new
    if changed:
        _next(root, f"systemd-sysusers && systemd-tmpfiles --create && {_RELOAD}")


def _uninstall(args: argparse.Namespace, root: Path) -> None:
    gone = False
    for path in install.uninstall(root, args.prefix):
        print(f"removed: {path}")
        gone = True
    if gone:
        _next(root, _RELOAD)
    else:
        print("nothing of ours was there")


def _sockets(args: argparse.Namespace, root: Path) -> None:
    act = socket_units.remove if args.remove else socket_units.write
    written = []
    changed = False
    for path, what in act(root, args.name):
        print(f"{what}: {path}")
        changed |= what != "unchanged"
        if what != "removed":
            written.append(f"'{path.name}'" if "\\" in path.name else path.name)
    if changed:
        _next(root, _RELOAD + (f" && systemctl enable --now {' '.join(written)}" if written else ""))


def _next(root: Path, command: str) -> None:
    # Elsewhere it is for whoever puts the tree in its place.
    if root == Path("/"):
        print(f"next: {command}")
