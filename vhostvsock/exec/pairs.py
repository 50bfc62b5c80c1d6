"""Pairs of connected UNIX sockets: one end for the program, as its AF_VSOCK socket; the other one stays here.

Before: calls.py, for a thread that calls socket(2). After: sockets.py.
Rules:  - both ends are made in the thread's network namespace: the kernel notes it in them, where the bridge reads it.
        - a namespace that the supervisor may not enter as it is may belong to a user namespace that its user made.
        - connected from the beginning, a pair polls as an AF_VSOCK socket does that is not connected, and our end tells
          when the program has closed its own.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import subprocess
import sys

from vhostvsock.bridge.lines import recv_with
from vhostvsock.exec import entering
from vhostvsock.exec.process import Thread
from vhostvsock.registry.errors import NetnsError
from vhostvsock.registry.netns import in_namespace

Pair = tuple[socket.socket, socket.socket]

# linux/nsfs.h: the user namespace to which a namespace belongs.
_NS_GET_USERNS = 0xB701
_ENTER_SECONDS = 10


class PairMaker:
    """Knows which namespace is our own."""

    def __init__(self) -> None:
        self._own = Thread(os.getpid()).network_namespace()

    def make(self, thread: Thread, kind: int) -> Pair:
        """A pair of type `kind`. Raises OSError, and NetnsError where the thread's namespace is not for us to enter."""
        if thread.network_namespace() == self._own:
            return socket.socketpair(socket.AF_UNIX, kind)
        fd = os.open(f"/proc/{thread.tid}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        try:
            return in_namespace(fd, lambda: socket.socketpair(socket.AF_UNIX, kind), "the program's network namespace")
        except NetnsError:
            made = _by_way_of_its_user_namespace(fd, kind)
            if made is None:
                raise
            return made
        finally:
            os.close(fd)


def _by_way_of_its_user_namespace(network: int, kind: int) -> Pair | None:
    """None where that is not for us to enter, either."""
    with contextlib.ExitStack() as stack:
        try:
            user = fcntl.ioctl(network, _NS_GET_USERNS)
            stack.callback(os.close, user)
            ours, theirs = socket.socketpair()
            stack.enter_context(ours)
            stack.enter_context(theirs)
            command = [sys.executable, "-I", "-S", entering.__file__, str(user), str(network), str(int(kind))]
            subprocess.run(
                command,
                stdin=theirs.fileno(),
                stderr=subprocess.DEVNULL,
                pass_fds=(user, network),
                timeout=_ENTER_SECONDS,
                check=True,
            )
            _, ends = recv_with(ours, 1, socket.MSG_DONTWAIT)
        except (OSError, subprocess.SubprocessError):
            return None
    if len(ends) != 2:
        for end in ends:
            end.close()
        return None
    return ends[0], ends[1]
