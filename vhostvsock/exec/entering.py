"""Two connected sockets in a network namespace for which another user namespace has to be entered first.

Before: pairs.py runs this file as a program. After: both ends are sent through the socket that is standard input.
Rules:  - a user namespace can be entered by a process with a single thread only, and not be left: hence the program.
        - whoever made a user namespace may do everything in it, and so may his other processes.
        - of the standard library alone, and little of it: it runs for each socket.
"""

import ctypes
import os
import socket
import sys


def main(user: int, network: int, kind: int) -> int:
    """`user` and `network` are descriptors of namespaces. 0, or the errno."""
    libc = ctypes.CDLL(None, use_errno=True)
    for namespace in (user, network):
        if libc.setns(namespace, 0) != 0:
            return ctypes.get_errno()
    ends = socket.socketpair(socket.AF_UNIX, kind)
    with socket.socket(fileno=os.dup(0)) as channel:
        socket.send_fds(channel, [b"\0"], [end.fileno() for end in ends])
    return 0


if __name__ == "__main__":
    sys.exit(main(*map(int, sys.argv[1:])))
