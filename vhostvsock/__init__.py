"""vhostvsock: virtio-vsock for QEMU guests, in user space, over vhost-user.

The path of a start, file by file: cli -> config -> daemon -> sockets, native. See ARCHITECTURE.md.
"""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("vhostvsock")
except PackageNotFoundError:  # run from a tree that was never installed
    __version__ = "0+unknown"

__all__ = ["__version__"]
