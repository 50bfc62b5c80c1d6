"""Clients that look for a bridge: daemons that hang, die or lie, and directories that somebody else prepared."""

from __future__ import annotations

import errno
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from vhostvsock import client
from vhostvsock.bridge import finding
from vhostvsock.bridge.lines import send_with

from .conftest import LIMIT, Process, Start, ask, connect

Answer = Callable[[socket.socket, bytes], None]


class FakeBridge:
    """Answers VERSION, and what follows by a function."""

    def __init__(self, path: Path, answer: Answer | None) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.asked: list[bytes] = []
        self._answer = answer
        self._sock = socket.socket(socket.AF_UNIX)
        self._sock.bind(str(path))
        self._sock.listen()
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        while True:
            try:
                sock, _ = self._sock.accept()
            except OSError:
                return
            with sock, sock.makefile("rb") as lines:
                for line in lines:
                    self.asked.append(line)
                    if self._answer is None:
                        time.sleep(0.001)  # it hangs; the client's end is what ends it
                    elif line.startswith(b"VERSION"):
                        sock.sendall(b"OK 1\n")
                    else:
                        self._answer(sock, line)
                        break

    def close(self) -> None:
        self._sock.shutdown(socket.SHUT_RDWR)
        self._sock.close()
        self._thread.join(LIMIT)


@pytest.fixture
def fake(short_dir: Path) -> Iterator[Callable[[str, Answer | None], FakeBridge]]:
    made: list[FakeBridge] = []

    def make(name: str, answer: Answer | None) -> FakeBridge:
        made.append(FakeBridge(short_dir / name, answer))
        return made[-1]

    yield make
    for each in made:
        each.close()


Fake = Callable[[str, Answer | None], FakeBridge]


def say(line: bytes) -> Answer:
    return lambda sock, _: sock.sendall(line)


def number(call: Callable[[], object]) -> int | None:
    with pytest.raises(OSError) as failed:  # noqa: PT011 - which one is what the caller looks at
        call()
    return failed.value.errno


def test_a_stopped_daemon_keeps_nobody_from_another_and_ls_names_it(start: Start, short_dir: Path) -> None:
    env = {"VHOSTVSOCK_RUNTIME_DIR": str(short_dir / "run")}
    stopped, _ = (started(start, name, env, extra) for name, extra in (("a", ()), ("b", ("--bridge-mode", "0666"))))
    (first, second) = sorted(
        (short_dir / "run" / "bridge").glob("*.sock"), key=lambda path: path.stat().st_mode & 0o066
    )
    assert first.stat().st_mode & 0o777 == 0o600
    assert second.stat().st_mode & 0o777 == 0o666
    first.rename(first.with_name("0.sock"))
    stopped.popen.send_signal(signal.SIGSTOP)
    try:
        began = time.monotonic()
        assert number(lambda: client.connect(77, 5, runtime_dir=env["VHOSTVSOCK_RUNTIME_DIR"])) == errno.ENODEV
        assert 1.5 < time.monotonic() - began < 5
        began = time.monotonic()
        call = lambda: client.connect(77, 5, timeout=0.5, runtime_dir=env["VHOSTVSOCK_RUNTIME_DIR"])  # noqa: E731
        assert number(call) == errno.ETIMEDOUT
        assert time.monotonic() - began < 1
        done = subprocess.run(
            [sys.executable, "-m", "vhostvsock", "ls"], env={**os.environ, **env}, capture_output=True, timeout=LIMIT
        )
        assert done.returncode == 0
        assert b"0.sock does not answer" in done.stderr
    finally:
        stopped.popen.send_signal(signal.SIGCONT)


def started(start: Start, name: str, env: dict[str, str], extra: tuple[str, ...]) -> Process:
    args = ("--guest-cid", "42", "--socket", f"{name}.vh", "--uds-path", f"{name}.v", "--no-parent", *extra)
    process = start(*args, env=env)
    process.wait_ready()
    return process


def test_where_the_users_daemon_has_no_such_vm_the_systems_is_asked(
    fake: Fake, short_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("VHOSTVSOCK_RUNTIME_DIR")
    monkeypatch.setattr(finding, "default_directory", lambda _: str(short_dir / "own"))
    monkeypatch.setattr(finding, "SYSTEM_DIR", str(short_dir / "system"))
    own = fake("own/bridge/a.sock", say(b"ERR ENODEV none here\n"))
    assert number(lambda: client.connect(42, 5)) == errno.ENODEV
    fake("own/bridge/b.sock", say(b"OK 6\n"))
    system = fake("system/bridge/a.sock", say(b"OK 7\nhello"))
    with client.connect(42, 5) as sock:
        assert sock.recv(100) == b"hello"
    assert [line for line in own.asked + system.asked if b"CONNECT" in line] == [b"CONNECT 42 5\n"] * 3


def test_daemons_and_clients_may_know_the_directory_by_different_paths(start: Start, short_dir: Path) -> None:
    (short_dir / "real").mkdir()
    (short_dir / "link").symlink_to("real")
    started(start, "a", {"VHOSTVSOCK_RUNTIME_DIR": str(short_dir / "link" / "run")}, ())
    (first,) = (short_dir / "real" / "run" / "bridge").glob("*.sock")
    run = str(short_dir / "real" / "run")
    assert number(lambda: client.connect(77, 5, runtime_dir=run)) == errno.ENODEV
    started(start, "b", {"VHOSTVSOCK_RUNTIME_DIR": run}, ())
    (second,) = set((short_dir / "real" / "run" / "bridge").glob("*.sock")) - {first}
    with connect(first, b"LISTEN 1 5000\n") as listener:
        assert listener.recv(100) == b"OK 5000\n"
        # As for a daemon in a container, to which the directory is mounted elsewhere.
        (short_dir / "link").unlink()
        with connect(second, b"CONNECT 1 5000\n") as found:
            assert found.recv(100).startswith(b"OK ")
    assert ask(second, b"CONNECT 1 5001\n").startswith(b"ERR ECONNRESET ")


@pytest.mark.parametrize("how", ["link", "world", "other"])
def test_a_directory_that_others_could_have_prepared_is_passed_over(
    fake: Fake, short_dir: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    monkeypatch.delenv("VHOSTVSOCK_RUNTIME_DIR")
    monkeypatch.setattr(finding, "default_directory", lambda _: str(short_dir / "own"))
    monkeypatch.setattr(finding, "SYSTEM_DIR", str(short_dir / "system"))
    trap = fake("real/bridge/a.sock", say(b"OK 6\n"))
    if how == "link":
        (short_dir / "own").symlink_to(short_dir / "real")
    else:
        (short_dir / "real").rename(short_dir / "own")
    if how == "world":
        (short_dir / "own").chmod(0o777)
    if how == "other":
        monkeypatch.setattr(finding.os, "geteuid", lambda: 4242)
        if (short_dir / "own").stat().st_uid == 0:
            os.chown(short_dir / "own", 4243, -1)
    with pytest.raises(OSError, match="passed over") as failed:
        client.connect(42, 5)
    assert failed.value.errno == errno.ENODEV
    assert trap.asked == []


@pytest.mark.parametrize("answer", [b"", b"OK 2\n{}\n", b"OK 1\n{", b"ERR EIO it has a trouble\n", b"?\n"])
def test_a_daemon_that_dies_while_it_lists_or_cannot_is_left_out(fake: Fake, short_dir: Path, answer: bytes) -> None:
    fake("bridge/a.sock", say(answer))
    fake("bridge/b.sock", say(b'OK 1\n{"name": "x"}\n'))
    # LIST comes without VERSION, so the first line is the request.
    assert client.list_vms(str(short_dir)) == [{"name": "x"}]


def test_what_is_no_cid_or_port_is_refused_before_anybody_is_asked(short_dir: Path) -> None:
    for cid, port in ((-1, 5), (1 << 32, 5), (42, -1), (42, 1 << 32)):
        assert number(lambda cid=cid, port=port: client.connect(cid, port)) == errno.EINVAL  # type: ignore[misc]
        assert number(lambda cid=cid, port=port: client.create_server(port, cid=cid)) == errno.EINVAL  # type: ignore[misc]


def test_a_connection_that_was_announced_outlives_the_daemon() -> None:
    daemon, control = socket.socketpair()
    one, two = socket.socketpair()
    with client.Server(control, 2, 5000) as server, one:
        send_with(daemon, b"ACCEPT 42 1024\n", [two.fileno()])
        two.close()
        daemon.close()
        taken, peer = server.accept()
        with taken:
            one.sendall(b"x")
            assert (taken.recv(1), peer) == (b"x", (42, 1024))
        with pytest.raises(ConnectionResetError):
            server.accept()


def test_a_command_without_stdout_or_without_a_reader_ends_quietly(start: Start, short_dir: Path) -> None:
    env = {**os.environ, "VHOSTVSOCK_RUNTIME_DIR": str(short_dir / "run")}
    started(start, "a", {"VHOSTVSOCK_RUNTIME_DIR": str(short_dir / "run")}, ())
    for command in ("ls", "netns list"):
        words = f"{sys.executable} -m vhostvsock {command}"
        closed = subprocess.run(["sh", "-c", f"{words} >&-"], env=env, capture_output=True, text=True, timeout=LIMIT)
        assert closed.stderr == "vhostvsock: error: [Errno 9] stdout is closed\n"
        piped = subprocess.run(
            ["sh", "-c", f"(sleep 0.2; exec {words}) | true"], env=env, capture_output=True, text=True, timeout=LIMIT
        )
        assert piped.stderr == ""


def test_who_is_refused_by_a_daemon_is_told_what_to_do(start: Start, short_dir: Path) -> None:
    env = {**os.environ, "VHOSTVSOCK_RUNTIME_DIR": str(short_dir / "run")}
    started(start, "a", {"VHOSTVSOCK_RUNTIME_DIR": str(short_dir / "run")}, ())

    def complaint(*words: str) -> list[str]:
        command = [sys.executable, "-m", "vhostvsock", *words]
        done = subprocess.run(
            command, env=env, capture_output=True, text=True, timeout=LIMIT, stdin=subprocess.DEVNULL, check=False
        )
        assert done.returncode == 1
        return done.stderr.splitlines()

    for words, part, remedy in (
        (("connect", "99", "5"), "(ENODEV)", "`vhostvsock ls`"),
        (("connect", "1", "5"), "(ECONNRESET)", "has to listen there"),
    ):
        error, hint = complaint(*words)
        assert part in error
        assert hint.startswith("hint: ")
        assert remedy in hint
    with client.create_server(5000, runtime_dir=str(short_dir / "run")):
        error, hint = complaint("listen", "5000")
    assert "(EADDRINUSE)" in error
    assert "another port" in hint
