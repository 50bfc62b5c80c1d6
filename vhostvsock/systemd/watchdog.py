"""Signs of life for the service manager's watchdog, each one earned by the threads that move the bytes.

Before: daemon.py starts it when everything is ready. After: notify.py sends the sign; the manager kills us without it.
Rules:  - A sign is sent only when every device's thread has answered the question that followed the last sign. A thread
          that hangs, or an event loop that hangs, is a daemon that has to go.
        - A device that failed and is being made anew is not asked: its end was noticed, and others are well.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable, Iterable, Mapping
from typing import Protocol

from vhostvsock.systemd.notify import notify

# Rounds per period: a sign that comes late by one or two rounds is still in time.
ROUNDS = 4

_log = logging.getLogger("vhostvsock.watchdog")


class Asked(Protocol):
    """What the watchdog asks for signs of life."""

    @property
    def name(self) -> str: ...
    def ask(self) -> None: ...
    def answered(self) -> bool: ...


def period(environ: Mapping[str, str]) -> float | None:
    """Seconds within which the manager wants a sign of life; None where it wants none from this process."""
    text = environ.get("WATCHDOG_USEC", "")
    if not (text.isdecimal() and text.isascii()) or int(text) == 0:
        return None
    if environ.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return None
    return int(text) / 1e6


async def watch(seconds: float, asked: Callable[[], Iterable[Asked]]) -> None:
    """Ask everyone and send a sign if all have answered, `ROUNDS` times in each period, for ever."""
    hung: list[str] = []
    while True:
        for each in asked():
            each.ask()
        await asyncio.sleep(seconds / ROUNDS)
        before, hung = hung, [each.name for each in asked() if not each.answered()]
        if not hung:
            notify("WATCHDOG=1")
        elif hung != before:
            _log.error("no answer from the thread of %s: no sign of life is sent", ", ".join(hung))
