"""vhostvsock: virtio-vsock for QEMU guests, in user space, over vhost-user.

For applications: `connect` and `create_server` (blocking sockets), `open_connection` and `start_server` (streams).
The path of the daemon's start, file by file: cli -> config -> daemon -> sockets, native. See ARCHITECTURE.md.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vhostvsock.aio import open_connection, start_server
    from vhostvsock.client import connect, create_server

    __version__: str

__all__ = ["__version__", "connect", "create_server", "open_connection", "start_server"]

_FOUND_IN = {
    "connect": "vhostvsock.client",
    "create_server": "vhostvsock.client",
    "open_connection": "vhostvsock.aio",
    "start_server": "vhostvsock.aio",
}


def __getattr__(name: str) -> Any:
    # Loaded when asked for: the command line and the daemon start without them.
    if name == "__version__":
        from importlib.metadata import PackageNotFoundError, version

        try:
            return version("vhostvsock")
        except PackageNotFoundError:  # run from a tree that was never installed
            return "0+unknown"
    if name in _FOUND_IN:
        import importlib

        return getattr(importlib.import_module(_FOUND_IN[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
