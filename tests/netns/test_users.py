"""Two users on one host: what one has is out of the other's reach, and not in their way."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import lacking, tool

from vhostvsock.bridge import privilege

from .serving import LIMIT, World

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


# Connects, has a child ask, and becomes another program under the same pid, which the child waits for.
ASKS_BEHIND_ANOTHER_PROGRAM = """
import os, socket, sys, time
bridge, program = sys.argv[1:]
os.setgroups([]); os.setresgid(65534, 65534, 65534); os.setresuid(65534, 65534, 65534)
sock = socket.socket(socket.AF_UNIX); sock.connect(bridge)
parent = os.getpid()
if os.fork() == 0:
    while "sleep" not in open(f"/proc/{parent}/comm").read(): time.sleep(0.01)
    sock.sendall(b"LISTEN * 80\\n")
    print(sock.recv(100).decode(), end="")
    sys.stdout.flush()
    os.kill(os.getpid(), 9)
os.execv(program, [program, "2"])
"""


@pytest.mark.parametrize("mode", [0o755, 0o4755])
def test_a_program_that_runs_as_root_has_no_ports_for_the_user_who_started_it(served: World, mode: int) -> None:
    (config := served.directory / "open.toml").write_text(
        'bridge_mode = "0666"\n[[vm]]\ncid = 42\nsocket = "a.vh"\nuds_path = "a.v"\n'
    )
    served.run_daemon(config)
    for directory in (served.directory, served.runtime_dir):
        directory.chmod(0o755)
    if os.statvfs(served.directory).f_flag & os.ST_NOSUID:
        lacking("set-user-ID programs in the directory of tests")
    program = served.directory / "sleep"
    shutil.copy(tool("sleep"), program)
    program.chmod(mode)
    (bridge,) = (served.runtime_dir / "bridge").glob("*.sock")
    done = subprocess.run(
        [sys.executable, "-c", ASKS_BEHIND_ANOTHER_PROGRAM, str(bridge), str(program)],
        capture_output=True,
        text=True,
        timeout=LIMIT,
        check=True,
    )
    assert done.stdout.startswith("ERR EACCES "), done


def test_a_user_namespace_that_is_made_in_the_moment_of_the_question_counts_for_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    leaves = """
import ctypes, os, sys
os.setgroups([]); os.setresgid(65534, 65534, 65534); os.setresuid(65534, 65534, 65534)
print(flush=True); sys.stdin.readline()
print(ctypes.CDLL(None).unshare(0x10000000), flush=True); sys.stdin.readline()
"""
    words = [sys.executable, "-c", leaves]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdout.readline()
        looked = privilege._in_our_user_namespace
        left: list[str] = []

        def leave() -> None:
            process.stdin.write("\n")
            process.stdin.flush()
            left.append(process.stdout.readline())

        def look_and_leave(pid: int) -> bool:
            answer = looked(pid)
            leave()
            return answer

        monkeypatch.setattr(privilege, "_in_our_user_namespace", look_and_leave)
        assert not privilege.may_bind_low_ports(process.pid, NOBODY)
        monkeypatch.undo()
        if not left:
            leave()
        if left != ["0\n"]:
            lacking("user namespaces for the unprivileged")
        assert not privilege.may_bind_low_ports(process.pid, NOBODY)
        process.communicate("\n")
