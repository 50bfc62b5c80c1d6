"""System calls fail at a start, in a command, or where a thread is to be made: each says so, and leaves nothing behind.

Before: tracing.py makes calls fail. After: real daemons, commands and guests.
"""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import tool
from netns.conftest import Command, Names
from netns.serving import World
from netns.test_fault import ECHO, PROGRAM, say
from netns.tracing import AT, failed, failing, inject
from netns.tracing import strace as strace

pytestmark = pytest.mark.usefixtures("strace")


def test_a_device_that_failed_comes_back_though_there_is_no_thread_for_a_while(served: World) -> None:
    daemon = served.daemon({"a": 42, "b": 43}, program=["-c", PROGRAM])
    first, other = served.guest("a", None, ECHO), served.guest("b", None, ECHO)
    assert (first.next(), other.next()) == ("attached 42", "attached 43")
    with failing(daemon.popen.pid, "clone3", "EAGAIN", served.directory / "trace"):
        daemon.popen.send_signal(signal.SIGUSR1)
        # What wakes the thread, which may be gone before it answers.
        with contextlib.suppress(ConnectionError):
            say(served.directory / "a.v", f"CONNECT {ECHO}\n".encode())
        daemon.wait("the device cannot be made anew")
        assert served.connect(43, ECHO) == "hello"
    daemon.wait("the device is back")
    first.end("kill")
    assert served.guest("a", None, ECHO).next() == "attached 42"
    assert served.connect(42, ECHO) == "hello"


@pytest.mark.parametrize(
    ("call", "error"),
    [
        ("socketpair", "EMFILE"),
        ("eventfd2", "ENFILE"),
        ("bind", "ENOSPC"),
        ("listen", "ENOBUFS"),
        (f"mkdir{AT}", "EROFS"),
    ],
)
def test_a_start_is_refused_with_a_reason_whichever_call_fails_and_leaves_nothing(
    short_dir: Path, call: str, error: str
) -> None:
    run = [sys.executable, "-m", "vhostvsock", "run", "--no-parent", "--runtime-dir", "run"]
    vm = ["--guest-cid", "42", "--socket", "vh.sock", "--uds-path", "v.sock"]
    (short_dir / "daemon").mkdir()
    for when in range(1, 20):
        log = short_dir / f"trace-{when}"
        # -D: the daemon is our child, and strace its own.
        words = [tool("strace"), "-f", "-D", "-o", str(log), *inject(f"{call}:{when}", error), *run, *vm]
        with subprocess.Popen(words, cwd=short_dir / "daemon", stderr=subprocess.PIPE, text=True) as process:
            assert process.stderr is not None
            said = []
            for line in process.stderr:
                said.append(line)
                if "vhostvsock: ready:" in line:
                    process.terminate()
        if not failed(log):
            assert (process.returncode, len(said)) == (0, 1)
            assert when > 1
            return
        assert process.returncode == 1, said
        assert said[0].startswith("vhostvsock: error: ")
        assert len(said) == 1 or (len(said) == 2 and said[1].startswith("hint: "))
        assert {path.name for path in (short_dir / "daemon").iterdir()} <= {"run"}
    raise AssertionError(f"there is no end of {call}")


@pytest.mark.parametrize(
    ("call", "error", "said"),
    [(f"rename{AT}", "EIO", ["Input/output error", "check that file system"]), ("clone3", "EAGAIN", ["no thread"])],
)
def test_a_namespace_whose_mode_cannot_be_noted_is_not_made(
    command: Command, names: Names, short_dir: Path, call: str, error: str, said: list[str]
) -> None:
    name, log = names.new(), short_dir / "trace"
    words = [tool("strace"), "-f", "-o", str(log), *inject(call, error), *command.program, "netns", "add", name]
    done = subprocess.run(words, env=command.env, capture_output=True, text=True, check=False, timeout=60)
    assert failed(log)
    assert done.returncode == 1
    for line, part in zip(done.stderr.splitlines(), said, strict=True):
        assert part in line
    assert not Path(f"/run/netns/{name}").exists()
    assert list((Path(command.directory) / "netns").glob("*.new")) == []
    command.ok("netns", "add", name)
