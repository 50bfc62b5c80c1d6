"""QMP, for code that is not asynchronous.

Before: qemu.py has a QEMU with a monitor socket. After: qemu.qmp, in a thread with an event loop of its own.
Rules:  - Every call has a limit: a QEMU whose back-end does not answer has a dead monitor.
        - Events are kept from the start of the connection, so a wait that begins late misses none.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, TypeVar

from qemu.qmp import ConnectError, EventListener, ExecuteError, QMPClient

from harness.waiting import LIMIT, WaitError

__all__ = ["ExecuteError", "Qmp"]
_T = TypeVar("_T")


class Qmp:
    """A connection to one QEMU's monitor."""

    def __init__(self, path: Path, alive: Callable[[], bool]) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._client = QMPClient("vm")
        self._listener = EventListener()
        self._client.register_listener(self._listener)
        self._events: list[dict[str, Any]] = []
        try:
            self._run(self._connect(path, alive))
        except BaseException:
            self._end_loop()
            raise

    async def _connect(self, path: Path, alive: Callable[[], bool]) -> None:
        deadline = time.monotonic() + LIMIT
        while True:
            try:
                return await self._client.connect(str(path))
            except ConnectError:
                # QEMU makes the socket some time after it started.
                if not alive() or time.monotonic() > deadline:
                    raise
                await asyncio.sleep(0.02)

    def _run(self, coroutine: Coroutine[Any, Any, _T], limit: float = LIMIT) -> _T:
        async def limited() -> _T:
            return await asyncio.wait_for(coroutine, limit)

        return asyncio.run_coroutine_threadsafe(limited(), self._loop).result(limit + LIMIT)

    def command(self, name: str, **arguments: Any) -> Any:
        """Run a command; `_` in an argument's name stands for `-`."""
        words = {key.replace("_", "-"): value for key, value in arguments.items()}
        try:
            return self._run(self._client.execute(name, words or None))
        except TimeoutError:
            raise WaitError(f"QMP {name}: no answer within {LIMIT:.0f} s") from None

    def event(self, name: str, limit: float = LIMIT, **data: Any) -> dict[str, Any]:
        """The next event of that name with these data; it is used up."""

        def matches(event: dict[str, Any]) -> bool:
            found = event.get("data", {})
            return event["event"] == name and all(found.get(key) == value for key, value in data.items())

        async def wait() -> dict[str, Any]:
            while True:
                for event in self._events:
                    if matches(event):
                        self._events.remove(event)
                        return event
                self._events.append(dict(await self._listener.get()))

        try:
            return self._run(wait(), limit)
        except TimeoutError:
            names = [event["event"] for event in self._events]
            raise WaitError(f"QMP: no event {name} {data} within {limit:.0f} s; there were {names}") from None

    def close(self) -> None:
        try:
            self._run(self._client.disconnect(), 5.0)
        except Exception:
            pass  # QEMU is gone, or was killed: nothing to take leave of
        self._end_loop()

    def _end_loop(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(LIMIT)
        self._loop.close()
