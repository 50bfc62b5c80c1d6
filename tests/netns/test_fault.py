"""The device of one VM fails: its reason is told, the VM is served again, and another VM of the daemon goes on."""

from __future__ import annotations

import contextlib
import json
import signal
import socket
import subprocess
import sys
from pathlib import Path

from .serving import LIMIT, World

ECHO = 1234

# `vhostvsock run` in which SIGUSR1 takes the first device's epoll instance away from under its thread.
PROGRAM = """
import os, signal, sys
from vhostvsock import cli, native

def polls():
    found = set()
    for name in os.listdir("/proc/self/fd"):
        try:
            if os.readlink(f"/proc/self/fd/{name}") == "anon_inode:[eventpoll]":
                found.add(int(name))
        except FileNotFoundError:
            pass
    return found

made = []
new_device = native.Engine.new_device

def noting(self, config):
    before = polls()
    device = new_device(self, config)
    made.extend(polls() - before)
    return device

native.Engine.new_device = noting
signal.signal(signal.SIGUSR1, lambda *_: os.dup2(os.open("/dev/null", os.O_RDONLY), made[0]))
sys.exit(cli.main(sys.argv[1:]))
"""


def say(path: Path, line: bytes) -> bytes:
    """What the hybrid socket answers to a line; its beginning."""
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(LIMIT)
        sock.connect(str(path))
        sock.sendall(line)
        return sock.recv(3)


def ls(world: World) -> dict[str, dict[str, object]]:
    words = [sys.executable, "-m", "vhostvsock", "ls", "--json"]
    done = subprocess.run(words, env=world.env, capture_output=True, text=True, check=True)
    return {row["name"]: row for row in json.loads(done.stdout)}


def test_a_device_that_fails_is_shown_with_its_reason_and_comes_back_with_the_next_qemu(served: World) -> None:
    daemon = served.daemon({"a": 42, "b": 43}, program=["-c", PROGRAM])
    first, other = served.guest("a", None, ECHO), served.guest("b", None, ECHO)
    assert (first.next(), other.next()) == ("attached 42", "attached 43")
    assert say(served.directory / "a.v", b"CONNECT 1234\n") == b"OK "
    daemon.popen.send_signal(signal.SIGUSR1)
    # Its thread notices when something wakes it, and may be gone before it is told anything.
    with contextlib.suppress(ConnectionError):
        say(served.directory / "a.v", b"CONNECT 1234\n")
    line = daemon.wait("the device failed and is made anew")
    assert "a: " in line
    assert "cannot go on" in line
    daemon.wait("the device is back")
    rows = ls(served)
    assert rows["a"]["state"] == "failed"
    assert "cannot go on" in str(rows["a"]["reason"])
    assert (rows["b"]["state"], "reason" in rows["b"]) == ("running", False)
    assert served.connect(43, ECHO) == "hello"
    assert served.connect(42, ECHO) == "ENODEV"
    first.end("kill")
    assert served.guest("a", None, ECHO).next() == "attached 42"
    assert served.connect(42, ECHO) == "hello"
    rows = ls(served)
    assert (rows["a"]["state"], "reason" in rows["a"]) == ("running", False)
