"""Accept on a listening socket for ever, with a task for each connection, so that none holds up another.

Before: daemon.py listens. After: server.py serves an application, peers.py takes something from another daemon.
Rule:   when the accepting ends, the tasks end with it.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable, Coroutine
from typing import Any

from vhostvsock.sockets import ListeningSocket

# After an accept that failed (descriptors used up): long enough not to spin, short enough not to be noticed.
_PAUSE_SECONDS = 0.2

_log = logging.getLogger("vhostvsock.bridge")


async def accept_each(
    listening: ListeningSocket, serve: Callable[[socket.socket], Coroutine[Any, Any, None]], who: str
) -> None:
    """Run `serve` with every connection; `who` names the other side in the log."""
    loop = asyncio.get_running_loop()
    tasks: set[asyncio.Task[None]] = set()
    try:
        while True:
            try:
                sock, _ = await loop.sock_accept(listening.sock)
            except OSError as error:
                _log.error("cannot accept %s: %s", who, error.strerror)
                await asyncio.sleep(_PAUSE_SECONDS)
                continue
            task = asyncio.create_task(serve(sock))
            tasks.add(task)
            task.add_done_callback(tasks.discard)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
