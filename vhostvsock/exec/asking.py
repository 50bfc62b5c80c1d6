"""What is asked of the bridge in a program's name, in threads: the answer may take seconds.

Before: connecting.py and listening.py. After: bridge/finding.py finds a daemon.
Rule:   the program's own socket goes along, or rather its other end: by its namespace the bridge decides.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket
import threading
from collections.abc import Callable
from typing import Any, TypeVar

from vhostvsock import client
from vhostvsock.bridge import finding
from vhostvsock.bridge.finding import Deadline
from vhostvsock.bridge.protocol import Bind, Connect, Wish
from vhostvsock.exec.address import Address

# A daemon answers a little later than the guest, and one that hangs does not.
_SLACK_SECONDS = 3.0
# Guests that do not answer keep a thread each, for as long as connect(2) waits. No other call has to wait for these.
_CONNECTING = 512

# The program's port, the socket on which the bridge said so, and another one where that is the connection.
Connected = tuple[int, socket.socket, socket.socket | None]

_T = TypeVar("_T")
_free = asyncio.Semaphore(_CONNECTING)


async def _in_thread(work: Callable[[], _T]) -> _T:
    """The result of `work`, or its exception. Not by an executor: at its end the process would wait for the threads."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[_T] = loop.create_future()

    def settle(how: Callable[[Any], None], value: object) -> None:
        if not future.done():
            how(value)

    def body() -> None:
        try:
            outcome: tuple[Callable[[Any], None], object] = future.set_result, work()
        except BaseException as error:
            outcome = future.set_exception, error
        with contextlib.suppress(RuntimeError):  # the loop has ended
            loop.call_soon_threadsafe(settle, *outcome)

    try:
        threading.Thread(target=body, name="asking", daemon=True).start()
    except RuntimeError as error:
        raise OSError(errno.EAGAIN, "no thread can be started") from error
    return await future


async def connect(connection: socket.socket, address: Address, wish: Wish) -> Connected:
    """Have `connection` connected. Raises OSError."""
    with connection.dup() as theirs:
        async with _free:
            return await _in_thread(lambda: _connect(theirs, address, wish))


def _connect(connection: socket.socket, address: Address, wish: Wish) -> Connected:
    request = Connect(address.cid, address.port, wish)
    deadline = Deadline(wish.timeout_ms / 1000 + _SLACK_SECONDS)
    asked, port, others = client.ask_for_connection(request, connection.type, deadline, None, [connection])
    for each in others[1:]:
        each.close()
    asked.setblocking(False)
    return port, asked, others[0] if others else None


async def bind(held: socket.socket, address: Address) -> tuple[socket.socket, int]:
    """Have a port for as long as the socket that is returned is open, and which one. OSError."""
    with held.dup() as theirs:
        return await _in_thread(lambda: _bind(theirs, address))


def _bind(held: socket.socket, address: Address) -> tuple[socket.socket, int]:
    deadline = Deadline(_SLACK_SECONDS)
    control, _ = finding.open_one(finding.groups(None), deadline, held.type)
    try:
        port, _ = finding.ask(control, Bind(address.cid, address.port), deadline, [held])
        control.setblocking(False)
    except BaseException:
        control.close()
        raise
    return control, port
