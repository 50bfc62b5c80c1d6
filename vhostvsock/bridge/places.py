"""Where the sockets of a daemon are, so that applications and other daemons find them.

Before: the runtime directory. After: daemon.py listens there, client.py and peers.py connect.
Rule:   `bridge/` is open to whoever may pass through the runtime directory; the sockets' own modes decide.
"""

from __future__ import annotations

import contextlib
import os
import secrets

from vhostvsock.errors import SocketError
from vhostvsock.paths import SEQPACKET_SUFFIX
from vhostvsock.registry.runtime import make_directory
from vhostvsock.sockets import is_alive

_BRIDGES = "bridge"


def bridge_directory(runtime_dir: str) -> str:
    """The directory with one bridge socket per daemon."""
    return os.path.join(runtime_dir, _BRIDGES)


def new_bridge_path(runtime_dir: str) -> str:
    """A path for the bridge socket of a daemon. Not by its pid, which may be the same in two containers."""
    return os.path.join(runtime_dir, _BRIDGES, f"{secrets.token_hex(6)}.sock")


def prepare(runtime_dir: str) -> None:
    """Make the directory, and remove what dead daemons left in it. Raises OSError."""
    directory = bridge_directory(runtime_dir)
    try:
        make_directory(directory, 0o755)
    except FileExistsError:
        pass
    for name in os.listdir(directory):
        path = os.path.join(directory, name)
        if name.endswith((".sock", ".peer", SEQPACKET_SUFFIX)) and not _may_live(path):
            for left in (path, path + ".lock"):
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(left)


def _may_live(path: str) -> bool:
    try:
        return is_alive(path)
    except SocketError:
        return True  # not for us to connect to: another user's, and not ours to remove


def peer_path(bridge: str) -> str:
    """The socket on which the daemon that has this bridge takes connections from other daemons."""
    return bridge.removesuffix(".sock") + ".peer"


def peer_path_here(runtime_dir: str, bridge: str) -> str:
    """The same for another daemon of our runtime directory, which may know that by another path (a mount, a link)."""
    return peer_path(os.path.join(bridge_directory(runtime_dir), os.path.basename(bridge)))
