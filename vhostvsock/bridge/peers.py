"""From daemon to daemon: a connected descriptor goes to the one that serves the VM, or whose application listens.

Before: server.py found out that another daemon of the host is concerned. After: that one's server.py goes on with it.
Rules:  - the bytes of a connection never pass through two daemons: the descriptor is handed over, and forgotten here.
        - one message, one answer, with a deadline: a daemon that hangs costs others no more than that.
        - only the same user, or root, may hand something over.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import socket
from collections.abc import Callable

from vhostvsock.bridge.accepting import accept_each
from vhostvsock.bridge.caller import Caller
from vhostvsock.bridge.lines import DescriptorLostError, readable, recv_with, send_with
from vhostvsock.bridge.protocol import ANSWER_LIMIT, error_line, ok_line, parse_answer
from vhostvsock.errors import VhostvsockError
from vhostvsock.registry.errors import Refused
from vhostvsock.sockets import ListeningSocket, peer_credentials

HAND_OVER_SECONDS = 2.0
_MESSAGE_LIMIT = 128

_GONE = {
    "CONNECT": (errno.ENODEV, "the daemon that served the VM is gone"),
    "ACCEPT": (errno.ECONNRESET, "the daemon for which the application listened is gone"),
}

_log = logging.getLogger("vhostvsock.bridge")

# Words of a message and whose connection came with it, to the number of the answer; raises OSError where it cannot be
# taken.
Handler = Callable[[list[str], Caller], int]


async def hand_over(path: str, words: list[str], caller: Caller) -> int:
    """Give a connection to the daemon at `path`; the number that it answers. Raises OSError where it does not take it.

    Closes nothing.

    A daemon that is gone, or about to go, is as a VM that is gone or a port on which nobody listens.
    """
    gone = Refused(*_GONE[words[0]])
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK) as sock:
        try:
            sock.connect(path)
            send_with(sock, " ".join(words).encode(), [each.fileno() for each in caller.sockets])
        except OSError as error:
            raise gone from error
        try:
            async with asyncio.timeout(HAND_OVER_SECONDS):
                await readable(sock)
        except TimeoutError:
            raise TimeoutError(errno.ETIMEDOUT, "the daemon that serves it does not answer") from None
        try:
            answer = sock.recv(ANSWER_LIMIT)
        except OSError as error:
            raise gone from error
        if not answer:
            raise gone
        return parse_answer(answer.rstrip(b"\n"))


async def serve(listening: ListeningSocket, handler: Handler) -> None:
    """Take what other daemons hand over, for ever."""
    await accept_each(listening, lambda sock: _one(sock, handler), "another daemon")


async def _one(sock: socket.socket, handler: Handler) -> None:
    with sock, contextlib.suppress(OSError, TimeoutError):
        _, uid, _ = peer_credentials(sock)
        if uid not in (0, os.geteuid()):
            _log.warning("uid %d may not hand connections over", uid)
            return
        async with asyncio.timeout(HAND_OVER_SECONDS):
            await readable(sock)
        try:
            data, sockets = recv_with(sock, _MESSAGE_LIMIT)
        except DescriptorLostError as error:
            sock.send(error_line(error), socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
            return
        try:
            sock.send(_answer(data, sockets, handler), socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
        finally:
            for each in sockets:
                each.close()


def _answer(data: bytes, sockets: list[socket.socket], handler: Handler) -> bytes:
    try:
        return ok_line(handler(data.decode("ascii", "replace").split(), Caller.of(sockets)))
    except OSError as error:
        return error_line(error)
    except VhostvsockError as error:
        _log.error("%s", error)
        return error_line(OSError(errno.EIO, str(error)))
