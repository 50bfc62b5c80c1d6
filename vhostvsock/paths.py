"""Where the socket for messages (SOCK_SEQPACKET) is: beside the one for streams, whose path is what people name.

Before: whoever has the path of a stream socket. After: they listen or connect there as well.
"""

from __future__ import annotations

SEQPACKET_SUFFIX = ".seqpacket"


def seqpacket_path(path: str) -> str:
    """The path of the message socket beside the stream socket at `path`."""
    return path + SEQPACKET_SUFFIX
