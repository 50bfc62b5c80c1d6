"""Two users on one host: what one has is out of the other's reach, and not in their way."""

from __future__ import annotations

import errno
import json
import os
import signal
import socket
from collections.abc import Callable
from pathlib import Path

from .serving import World

NOBODY = 65534


def as_nobody(attempts: dict[str, Callable[[], object]]) -> dict[str, str]:
    """What comes of each attempt of another user: an errno's name, or nothing where it worked."""
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:  # everything that is needed is loaded
        try:
            os.setgroups([])
            os.setgid(NOBODY)
            os.setuid(NOBODY)
            found = {}
            for name, attempt in attempts.items():
                try:
                    attempt()
                    found[name] = ""
                except OSError as error:
                    found[name] = errno.errorcode.get(error.errno or 0, str(error))
            os.write(write, json.dumps(found).encode())
        finally:
            os._exit(0)
    os.close(write)
    with os.fdopen(read, "rb") as file:
        told = file.read()
    os.waitpid(pid, 0)
    result: dict[str, str] = json.loads(told)
    return result


def connects(path: Path, kind: socket.SocketKind = socket.SOCK_STREAM) -> Callable[[], object]:
    def attempt() -> None:
        with socket.socket(socket.AF_UNIX, kind) as sock:
            sock.connect(str(path))

    return attempt


def test_another_user_reaches_nothing_that_is_not_opened_to_them(served: World) -> None:
    daemon = served.daemon({"a": 42})
    assert served.guest("a", None, 1234).next() == "attached 42"
    run = served.runtime_dir
    served.directory.chmod(0o755)
    # Even where the way to it is open, as in /run/vhostvsock.
    run.chmod(0o755)
    (bridge,) = (run / "bridge").glob("*.sock")
    (lock,) = (run / "daemons").iterdir()
    denied = {
        "QEMU's socket": connects(served.directory / "a.vh"),
        "the hybrid socket": connects(served.directory / "a.v"),
        "the bridge": connects(bridge),
        "its side for daemons": connects(bridge.with_suffix(".peer"), socket.SOCK_SEQPACKET),
        "reading the registry": lambda: os.open(run / "registry.db", os.O_RDONLY),
        "writing to it": lambda: os.open(run / "registry.db", os.O_RDWR),
        "the turn to write": lambda: os.open(run / "registry.turn", os.O_RDWR),
        "a daemon's lock": lambda: os.open(lock, os.O_RDONLY),
        "removing the lock": lambda: os.unlink(lock),
        "a socket in place of the bridge": lambda: os.rename(bridge, str(bridge) + "x"),
        "another registry": lambda: os.rename(run / "registry.db", run / "old"),
        "a note of a mode": lambda: os.open(run / "netns" / "1", os.O_WRONLY | os.O_CREAT),
        "taking QEMU's socket away": lambda: os.unlink(served.directory / "a.vh"),
        "ending the daemon": lambda: os.kill(daemon.popen.pid, signal.SIGTERM),
    }
    outcomes = as_nobody(denied)
    assert outcomes.keys() == denied.keys()
    assert {name: how for name, how in outcomes.items() if how not in ("EACCES", "EPERM")} == {}
    assert served.connect(42, 1234) == "hello"
