"""Freed memory goes back to the system, by one call and by the daemon's task."""

from __future__ import annotations

import asyncio
import subprocess
import sys

import pytest

from vhostvsock import memory, native

# Blocks of the C library, with a small one that stays behind each: by itself, the heap cannot shrink.
_FRAGMENTS = """
import ctypes
from vhostvsock import native

libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
libc.malloc.argtypes = [ctypes.c_size_t]
libc.free.argtypes = [ctypes.c_void_p]

def own() -> int:
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("RssAnon:"))

blocks = []
for _ in range(1000):
    blocks.append(libc.malloc(100_000))
    ctypes.memset(blocks[-1], 1, 100_000)
    ctypes.memset(libc.malloc(100), 1, 100)
for block in blocks:
    libc.free(block)
before = own()
native.trim()
print(before - own())
"""


def test_what_is_free_between_blocks_in_use_goes_back() -> None:
    done = subprocess.run([sys.executable, "-c", _FRAGMENTS], capture_output=True, text=True, timeout=60, check=True)
    # Nearly all of the 100 MB; in KiB.
    assert int(done.stdout) > 80_000


def test_the_task_asks_again_and_again(monkeypatch: pytest.MonkeyPatch) -> None:
    async def three_times() -> None:
        left = asyncio.Semaphore(0)
        monkeypatch.setattr(native, "trim", left.release)
        task = asyncio.create_task(memory.give_back(0.001))
        for _ in range(3):
            await asyncio.wait_for(left.acquire(), 20)
        task.cancel()

    asyncio.run(three_times())
