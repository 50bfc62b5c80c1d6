"""Sockets that the service manager made for us, as sd_listen_fds(3) passes them: taken once, checked, found by path.

Before: cli/run.py takes them as the first thing. After: vm.py serves those whose paths the configuration names.
Rules:  - A descriptor that is not a listening UNIX socket with a path, of the type that is served there, is an error,
          not something to serve.
        - The variables are removed, and the descriptors closed on exec: no child takes them for its own.
        - The path decides which VM a socket belongs to. Its name (FileDescriptorName=) is for people: all sockets of
          one unit share it, and it cannot hold every name that a VM may have.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterable, MutableMapping
from dataclasses import dataclass

from vhostvsock.errors import ActivationError, SocketError

# The first passed descriptor; fixed by the protocol.
FIRST_FD = 3

# How a unit asks for each type.
_DIRECTIVES = {socket.SOCK_STREAM: "ListenStream", socket.SOCK_SEQPACKET: "ListenSequentialPacket"}

_VARIABLES = ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES")


@dataclass(frozen=True, slots=True)
class PassedSocket:
    """A listening socket made by the manager: its name there, its path, and the socket, not blocking."""

    name: str
    path: str
    sock: socket.socket


class PassedSockets:
    """The sockets that were passed and not yet taken."""

    def __init__(self, sockets: Iterable[PassedSocket] = ()) -> None:
        self._by_path: dict[str, PassedSocket] = {}
        for passed in sockets:
            key = _key(passed.path)
            if key in self._by_path:
                raise ActivationError(f"the service manager passed two sockets for {passed.path}", hint=_HINT)
            self._by_path[key] = passed

    def take(self, path: str, kind: socket.SocketKind = socket.SOCK_STREAM) -> socket.socket | None:
        """The socket that listens at `path`, if one was passed; the caller owns it from now on."""
        passed = self._by_path.get(_key(path))
        if passed is None:
            return None
        if passed.sock.type != kind:
            raise ActivationError(
                f"the service manager passed a socket of the wrong type for {path}",
                hint=f"use {_DIRECTIVES[kind]}={path}",
            )
        del self._by_path[_key(path)]
        return passed.sock

    def left(self) -> list[PassedSocket]:
        """What nobody has taken."""
        return list(self._by_path.values())

    def close(self) -> None:
        """Close what nobody has taken."""
        while self._by_path:
            self._by_path.popitem()[1].sock.close()


_HINT = "look at the units: systemctl list-sockets"


def take(environ: MutableMapping[str, str]) -> PassedSockets:
    """The sockets passed to this process; none where the variables are not there, or meant for another process."""
    pid, count, names = (environ.pop(name, "") for name in _VARIABLES)
    if not pid and not count:
        return PassedSockets()
    if pid != str(os.getpid()):
        return PassedSockets()  # inherited from a parent that was meant
    if not (count.isdecimal() and count.isascii()):
        raise ActivationError(f"LISTEN_FDS is {count!r}, which is no number", hint=_HINT)
    fds = range(FIRST_FD, FIRST_FD + int(count))
    labels = names.split(":") if names else ["unknown"] * len(fds)
    if len(labels) != len(fds):
        raise ActivationError(f"LISTEN_FDNAMES has {len(labels)} names for {len(fds)} sockets", hint=_HINT)
    return PassedSockets([_checked(fd, label) for fd, label in zip(fds, labels, strict=True)])


def _checked(fd: int, name: str) -> PassedSocket:
    """What was passed as `fd`."""
    what = f"descriptor {fd} ({name}) from the service manager"
    try:
        os.set_inheritable(fd, False)
        sock = socket.socket(fileno=fd)
    except OSError as error:
        raise ActivationError(f"{what} is no socket: {error.strerror}", hint=_HINT) from error
    path = sock.getsockname() if sock.family == socket.AF_UNIX else None
    if sock.type not in _DIRECTIVES or not isinstance(path, str) or not path:
        raise ActivationError(f"{what} is no UNIX stream socket with a path", hint="use ListenStream=/some/path")
    if not sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
        raise ActivationError(f"{what} does not listen", hint="use Accept=no")
    sock.setblocking(False)
    return PassedSocket(name, path, sock)


def _key(path: str) -> str:
    """A path by which the same socket is found under either spelling."""
    try:
        return os.path.join(os.path.realpath(os.path.dirname(path) or "."), os.path.basename(path))
    except OSError as error:
        raise SocketError(f"cannot use {path}: {error.strerror}") from error
