"""Freed memory goes back to the system now and then.

Before: daemon.py starts the task. After: native.py asks the allocator.
Rule:   slow host applications make the native threads use memory for a while. What is free between the blocks that stay
        would otherwise be kept for good, a little more with each such time.
"""

from __future__ import annotations

import asyncio

from vhostvsock import native

PERIOD = 60.0


async def give_back(period: float = PERIOD) -> None:
    """Each `period` seconds, for ever. It takes a millisecond or two, in which the event loop does nothing else."""
    while True:
        await asyncio.sleep(period)
        native.trim()
