"""Kills those who may be killed, one after the other, and starts them again.

Before: cast.py says who that is. After: a count for each kind, and the longest time until one was back.
Rule:   a thread of its own, so that whoever watches is not held up, until all is over: what it starts ends with it.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Sequence

from harness.waiting import LIMIT


class Killer:
    """Begins with `start`; `enough` stops the killing, `close` ends it."""

    def __init__(self, victims: Sequence[tuple[str, Callable[[], None]]], every: float) -> None:
        """`victims`: what each is called, and a call that kills it and waits until it is back; `every`: seconds."""
        self.counts = {name: 0 for name, _ in victims}
        self.slowest = {name: 0.0 for name, _ in victims}
        self._fault: Exception | None = None
        self._victims = victims
        self._every = every
        self._enough = threading.Event()
        self._idle = threading.Event()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def start(self) -> None:
        self._thread.start()

    def _run(self) -> None:
        try:
            for name, kill in itertools.cycle(self._victims):
                if self._enough.wait(self._every):
                    break
                begin = time.monotonic()
                kill()
                self.slowest[name] = max(self.slowest[name], time.monotonic() - begin)
                self.counts[name] += 1
        except Exception as error:
            self._fault = error
        self._idle.set()
        self._over.wait()

    def check(self) -> None:
        """That all who were killed came back."""
        if self._fault is not None:
            raise self._fault

    def enough(self) -> None:
        """No more kills; whoever was killed is back."""
        self._enough.set()
        self._idle.wait(LIMIT)
        self.check()

    def close(self) -> None:
        """End the thread, and what it started with it."""
        self._enough.set()
        self._over.set()
        if self._thread.ident is not None:
            self._thread.join(LIMIT)
