"""Listening sockets: taken over from the dead, never from the living, removed at the end."""

import os
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from vhostvsock.config import Access
from vhostvsock.errors import SocketError, SocketInUseError
from vhostvsock.sockets import ListeningSocket


@pytest.fixture
def path(short_dir: Path) -> str:
    return str(short_dir / "s")


@pytest.fixture
def holder(path: str) -> Iterator[subprocess.Popen[bytes]]:
    """Another process that holds the socket as a daemon of ours would."""
    code = (
        "import sys,time; from vhostvsock.sockets import ListeningSocket; from vhostvsock.config import Access\n"
        f"s = ListeningSocket({path!r}, Access()); print('up', flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"up\n"
        yield process
        process.kill()


def files(path: str) -> set[str]:
    return set(os.listdir(os.path.dirname(path)))


def test_a_socket_listens_and_is_removed_with_its_lock_file(path: str) -> None:
    with ListeningSocket(path, Access()), socket.socket(socket.AF_UNIX) as client:
        client.connect(path)
        assert files(path) == {"s", "s.lock"}
        assert Path(path + ".lock").read_text() == f"{os.getpid()}\n"
    assert files(path) == set()


def test_closing_twice_is_fine(path: str) -> None:
    listening = ListeningSocket(path, Access())
    listening.close()
    listening.close()


@pytest.mark.parametrize("mode", [0o600, 0o660, 0o666])
def test_the_mode_is_as_asked_whatever_the_umask(path: str, mode: int) -> None:
    old = os.umask(0o077)
    try:
        with ListeningSocket(path, Access(mode)):
            assert stat.S_IMODE(os.lstat(path).st_mode) == mode
        assert os.umask(0o077) == 0o077
    finally:
        os.umask(old)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may give files away")
def test_the_owner_is_as_asked(path: str) -> None:
    with ListeningSocket(path, Access(0o660, 1234, 2345)):
        found = os.lstat(path)
        assert (found.st_uid, found.st_gid) == (1234, 2345)


def test_owner_and_mode_are_set_before_anyone_can_connect(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    refused = []

    def chown(*_args: object, **_keys: object) -> None:
        with socket.socket(socket.AF_UNIX) as early, pytest.raises(ConnectionRefusedError):
            early.connect(path)
        refused.append(True)

    monkeypatch.setattr(os, "chown", chown)
    with ListeningSocket(path, Access(0o666, 1, 1)):
        assert refused == [True]


def test_an_owner_that_may_not_be_set_leaves_nothing_behind(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def chown(*_args: object, **_keys: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "chown", chown)
    with pytest.raises(SocketError, match="not permitted"):
        ListeningSocket(path, Access(0o666, 1, 1))
    assert files(path) == set()


def test_the_socket_of_a_dead_daemon_is_taken_over(path: str, holder: subprocess.Popen[bytes]) -> None:
    holder.kill()
    holder.wait()
    assert files(path) == {"s", "s.lock"}
    with ListeningSocket(path, Access()), socket.socket(socket.AF_UNIX) as client:
        client.connect(path)


def test_the_socket_of_a_live_daemon_is_refused_with_its_pid(path: str, holder: subprocess.Popen[bytes]) -> None:
    with pytest.raises(SocketInUseError, match=f"pid {holder.pid}") as caught:
        ListeningSocket(path, Access())
    assert caught.value.pid == holder.pid
    assert caught.value.hint
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(path)


def test_a_live_foreign_listener_is_refused_with_its_pid(path: str) -> None:
    with socket.socket(socket.AF_UNIX) as foreign:
        foreign.bind(path)
        foreign.listen()
        with pytest.raises(SocketInUseError, match=f"another program, pid {os.getpid()}"):
            ListeningSocket(path, Access())
    assert files(path) == {"s"}


@pytest.mark.parametrize("kind", [socket.SOCK_STREAM, socket.SOCK_DGRAM, socket.SOCK_SEQPACKET])
def test_a_foreign_socket_that_does_not_listen_is_left_alone_too(path: str, kind: socket.SocketKind) -> None:
    with socket.socket(socket.AF_UNIX, kind) as foreign:
        foreign.bind(path)
        with pytest.raises(SocketInUseError, match="another program"):
            ListeningSocket(path, Access())
    assert files(path) == {"s"}


def test_the_probe_wakes_no_listener_of_a_live_foreign_program_before_it_is_refused(path: str) -> None:
    with socket.socket(socket.AF_UNIX) as foreign:
        foreign.bind(path)
        foreign.listen(0)
        # With a full backlog a stream probe would wait, or be taken for a dead socket.
        with socket.socket(socket.AF_UNIX) as first:
            first.connect(path)
            started = time.monotonic()
            with pytest.raises(SocketInUseError):
                ListeningSocket(path, Access())
            assert time.monotonic() - started < 5


def test_a_stale_socket_without_a_lock_file_is_taken_over(path: str) -> None:
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(path)
    with ListeningSocket(path, Access()), socket.socket(socket.AF_UNIX) as client:
        client.connect(path)


@pytest.mark.parametrize("kind", ["file", "directory", "fifo", "symlink", "dangling symlink"])
def test_what_is_not_a_socket_is_never_removed(path: str, kind: str) -> None:
    if kind == "file":
        Path(path).write_text("precious")
    elif kind == "directory":
        os.mkdir(path)
    elif kind == "fifo":
        os.mkfifo(path)
    else:
        Path(path).symlink_to("/etc/passwd" if kind == "symlink" else "/no/such/place")
    before = os.lstat(path)
    with pytest.raises(SocketError, match="not a socket"):
        ListeningSocket(path, Access())
    assert os.lstat(path) == before
    assert files(path) == {"s"}


def test_a_lock_file_that_is_a_symlink_is_not_followed(path: str, short_dir: Path) -> None:
    (short_dir / "victim").write_text("precious")
    Path(path + ".lock").symlink_to(short_dir / "victim")
    with pytest.raises(SocketError):
        ListeningSocket(path, Access())
    assert (short_dir / "victim").read_text() == "precious"


def test_at_the_end_only_what_is_still_ours_is_removed(path: str) -> None:
    listening = ListeningSocket(path, Access())
    os.unlink(path)
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(path)
        listening.close()
        assert files(path) == {"s"}


def test_a_directory_that_does_not_exist_is_named(short_dir: Path) -> None:
    with pytest.raises(SocketError, match="no such directory") as caught:
        ListeningSocket(str(short_dir / "none" / "s"), Access())
    assert caught.value.hint


def test_many_processes_want_one_socket_and_exactly_one_gets_it(path: str) -> None:
    code = (
        "import sys; from vhostvsock.sockets import ListeningSocket; from vhostvsock.config import Access\n"
        "from vhostvsock.errors import SocketInUseError\n"
        f"sys.stdin.readline()\ntry: s = ListeningSocket({path!r}, Access()); print('got', flush=True)\n"
        "except SocketInUseError: print('refused', flush=True)\nsys.stdin.readline()"
    )
    crowd = [
        subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for _ in range(6)
    ]
    try:
        for each in crowd:
            assert each.stdin is not None
            each.stdin.write("go\n")
            each.stdin.flush()
        said = sorted(each.stdout.readline().strip() for each in crowd if each.stdout)
    finally:
        for each in crowd:
            each.communicate(timeout=20)
    assert said == ["got"] + ["refused"] * 5
