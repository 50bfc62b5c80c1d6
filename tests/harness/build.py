"""The tests' own programs, in C (guest/) and in Go, compiled once for a given source text and kept in the cache.

Before: image.py (for the guest), probe.py (for the host) and the tests of `exec` ask for a program. After: gcc, go.
Rule:   a warning is an error.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from scripts.lib.fetch_apt import FetchError, cache_dir

SOURCES = Path(__file__).resolve().parent / "guest"
_GO_SOURCE = Path(__file__).resolve().parent / "hello.go"
_FLAGS = ("-std=gnu11", "-D_GNU_SOURCE", "-O2", "-Wall", "-Wextra", "-Werror", "-pthread")
_IN_GUEST = ("-static", "-s", "-DIN_GUEST")
_PROBE = ("probe.c", "talk.c", "many.c", "serve.c", "ask.c", "messages.c", "address.c", "stream.c")


def _kept(
    name: str,
    total: str,
    compiler: Sequence[str],
    sources: Sequence[Path],
    package: str,
    env: Mapping[str, str] | None = None,
) -> Path:
    """What a compiler makes of sources; `total` is a sum over all that decides over the outcome."""
    target = cache_dir() / "built" / f"{name}-{total[:16]}"
    if target.exists():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    work = target.with_name(f".{target.name}.{os.getpid()}")
    command = [*compiler, "-o", str(work), *map(str, sources)]
    env = {**os.environ, **(env or {})}
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL, env=env)
    except FileNotFoundError:
        raise FetchError(f"there is no {compiler[0]}", f"apt install {package}") from None
    if done.returncode != 0:
        raise FetchError(f"{compiler[0]} failed for {name}:\n{done.stderr}", f"is {package} installed?")
    work.rename(target)
    return target


def _compile(name: str, sources: tuple[str, ...], flags: tuple[str, ...]) -> Path:
    total = hashlib.sha256(repr((sources, flags)).encode())
    for path in sorted(SOURCES.glob("*.[ch]")):
        total.update(path.read_bytes())
    paths = [SOURCES / source for source in sources]
    return _kept(name, total.hexdigest(), ("gcc", *flags), paths, "gcc libc6-dev")


def guest_agent() -> Path:
    """The guest's first process."""
    return _compile("agent", ("agent.c",), (*_FLAGS, *_IN_GUEST))


def guest_probe() -> Path:
    """The probe with vsock, static."""
    return _compile("guest-probe", _PROBE, (*_FLAGS, *_IN_GUEST))


def host_probe() -> Path:
    """The probe for the host, which knows UNIX sockets only."""
    return _compile("host-probe", _PROBE, _FLAGS)


def go_program() -> Path:
    """hello.go, built without cgo: no C library is in between."""
    total = hashlib.sha256(_GO_SOURCE.read_bytes()).hexdigest()
    with tempfile.TemporaryDirectory(prefix="vv-") as cache:
        env = {"CGO_ENABLED": "0", "GOCACHE": cache}
        return _kept("hello", total, ("go", "build"), [_GO_SOURCE], "golang-go", env)
