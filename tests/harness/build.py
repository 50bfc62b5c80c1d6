"""The C programs in guest/, compiled once for a given source text and kept in the cache.

Before: image.py (for the guest) and probe.py (for the host) ask for a program. After: gcc.
Rule:   a warning is an error.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
from pathlib import Path

from scripts.lib.fetch_apt import FetchError, cache_dir

SOURCES = Path(__file__).resolve().parent / "guest"
_FLAGS = ("-std=gnu11", "-D_GNU_SOURCE", "-O2", "-Wall", "-Wextra", "-Werror", "-pthread")
_IN_GUEST = ("-static", "-s", "-DIN_GUEST")
_PROBE = ("probe.c", "talk.c", "many.c", "serve.c", "ask.c", "messages.c", "address.c", "stream.c")


def _compile(name: str, sources: tuple[str, ...], flags: tuple[str, ...]) -> Path:
    total = hashlib.sha256(repr((sources, flags)).encode())
    for path in sorted(SOURCES.glob("*.[ch]")):
        total.update(path.read_bytes())
    target = cache_dir() / "built" / f"{name}-{total.hexdigest()[:16]}"
    if target.exists():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    work = target.with_name(f".{target.name}.{os.getpid()}")
    command = ["gcc", *flags, "-o", str(work), *(str(SOURCES / source) for source in sources)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
    except FileNotFoundError:
        raise FetchError("there is no gcc", "apt install gcc libc6-dev") from None
    if done.returncode != 0:
        raise FetchError(f"gcc failed for {name}:\n{done.stderr}", "is libc6-dev installed?")
    work.rename(target)
    return target


def guest_agent() -> Path:
    """The guest's first process."""
    return _compile("agent", ("agent.c",), (*_FLAGS, *_IN_GUEST))


def guest_probe() -> Path:
    """The probe with vsock, static."""
    return _compile("guest-probe", _PROBE, (*_FLAGS, *_IN_GUEST))


def host_probe() -> Path:
    """The probe for the host, which knows UNIX sockets only."""
    return _compile("host-probe", _PROBE, _FLAGS)
