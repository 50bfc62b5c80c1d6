"""Whose namespace a socket has, and how people's words lead to a namespace."""

from __future__ import annotations

import array
import contextlib
import os
import socket
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import tool

from vhostvsock.registry import netns as module
from vhostvsock.registry.errors import NetnsError
from vhostvsock.registry.netns import (
    NetnsId,
    cookie_of_fd,
    cookie_of_socket,
    in_thread,
    init_id,
    is_init_here,
    leave_for_new,
    named,
    namespace_of_socket,
    open_namespace,
    own,
)

from .conftest import Names, cookie, nameless


@pytest.fixture
def server(short_dir: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(short_dir / "s"))
        sock.listen()
        sock.settimeout(20)
        yield sock


def peer(server: socket.socket) -> NetnsId:
    accepted, _ = server.accept()
    with accepted:
        return cookie_of_socket(accepted)


def connected(server: socket.socket) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX)
    sock.connect(server.getsockname())
    return sock


# Sockets ------------------------------------------------------------------------------------------------------------


def test_an_accepted_socket_tells_the_namespace_of_the_process_that_connected(
    server: socket.socket, names: Names
) -> None:
    name = names.add()
    code = f"import socket; s = socket.socket(socket.AF_UNIX); s.connect({server.getsockname()!r})"
    subprocess.run([tool("ip"), "netns", "exec", name, sys.executable, "-c", code], check=True)
    assert peer(server) == cookie(name) != own()


def test_the_listeners_own_namespace_plays_no_role(short_dir: Path) -> None:
    with nameless() as there:

        def listen() -> socket.socket:
            sock = socket.socket(socket.AF_UNIX)
            sock.bind(str(short_dir / "there"))
            sock.listen()
            return sock

        with there.run(listen) as server, connected(server):
            assert cookie_of_socket(server) == there.id
            assert peer(server) == own()


def test_the_namespace_is_that_of_socket_and_not_that_of_connect(server: socket.socket) -> None:
    with nameless() as there, there.run(lambda: socket.socket(socket.AF_UNIX)) as sock:
        sock.connect(server.getsockname())  # in our own namespace
        assert peer(server) == there.id

        def move_and_connect() -> None:
            with socket.socket(socket.AF_UNIX) as mine:
                module.enter(there.fd)
                mine.connect(server.getsockname())

        in_thread(move_and_connect)
        assert peer(server) == own()


def test_a_socket_that_was_passed_on_keeps_its_namespace(server: socket.socket) -> None:
    ours, theirs = socket.socketpair()
    with nameless() as there, ours, theirs:

        def send() -> None:
            with socket.socket(socket.AF_UNIX) as sock:
                theirs.sendmsg([b"x"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [sock.fileno()]))])

        there.run(send)
        _, fds, _, _ = socket.recv_fds(ours, 1, 1)
        with socket.socket(fileno=fds[0]) as sock:
            sock.connect(server.getsockname())
            assert cookie_of_socket(sock) == there.id
            assert peer(server) == there.id


def test_a_namespace_whose_name_was_removed_lives_on_in_its_sockets(server: socket.socket, names: Names) -> None:
    name = names.add()
    identity = cookie(name)
    with open_namespace(name) as there:
        sock = there.run(lambda: socket.socket(socket.AF_UNIX))
    with sock:
        names.remove(name)
        sock.connect(server.getsockname())
        accepted, _ = server.accept()
        with accepted:
            assert cookie_of_socket(accepted) == identity
            # New sockets can be made in it, from what the accepted one holds.
            with namespace_of_socket(accepted) as again:
                assert again.id == identity
                with again.run(lambda: connected(server)):
                    assert peer(server) == identity
    with pytest.raises(NetnsError, match=f"there is no namespace {name}"):
        open_namespace(name)


def test_a_name_that_is_made_anew_is_another_namespace(names: Names) -> None:
    name = names.add()
    before = cookie(name)
    names.remove(name)
    subprocess.run([tool("ip"), "netns", "add", name], check=True)
    assert cookie(name) != before


# What people write --------------------------------------------------------------------------------------------------


def test_a_name_a_path_and_a_pid_lead_to_the_same_namespace(names: Names) -> None:
    name = names.add()
    with subprocess.Popen(
        [tool("nsenter"), f"--net=/run/netns/{name}", "sh", "-c", "echo; read x"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        words = [name, f"/run/netns/{name}", str(process.pid), f"/proc/{process.pid}/ns/net"]
        found = []
        for word in words:
            with open_namespace(word) as namespace:
                found.append(namespace.id)
        process.communicate(b"\n")
    assert found == [cookie(name)] * 4


def test_nothing_means_ones_own_namespace() -> None:
    with open_namespace() as found, nameless() as there:
        assert found.id == own()
        assert cookie_of_fd(there.fd) == there.id != own()
        assert there.run(lambda: own()) == there.id


def test_a_name_of_digits_comes_before_a_pid(names: Names) -> None:
    name = str(4_000_000_000 + os.getpid())
    names.used.append(name)
    subprocess.run([tool("ip"), "netns", "add", name], check=True)
    with open_namespace(name) as found:
        assert found.label == name


@pytest.mark.parametrize(
    "word", ["no-such-ns", "4123456789", "/run/netns/no-such-ns", "/proc/4123456789/ns/net", "..", "."]
)
def test_what_does_not_exist_is_an_error_and_is_not_made(word: str) -> None:
    with pytest.raises(NetnsError, match="there is no") as caught:
        open_namespace(word)
    assert caught.value.hint
    assert word not in module.names()


@pytest.mark.parametrize(
    "word", ["", "a\0b", "/proc/self/ns/uts", "/etc/passwd", "/dev/null", "/tmp", "/proc/self/ns/user"]
)
def test_what_is_no_network_namespace_is_refused(word: str) -> None:
    with pytest.raises(NetnsError):
        open_namespace(word)


def test_a_fifo_is_refused_without_waiting(short_dir: Path) -> None:
    os.mkfifo(short_dir / "fifo")
    with pytest.raises(NetnsError, match="not a network namespace"):
        open_namespace(str(short_dir / "fifo"))


def test_named_namespaces_are_listed_and_leftovers_are_passed_over(names: Names) -> None:
    one, two = names.add("a"), names.add("b")
    left = names.new("left")
    Path("/run/netns", left).touch()
    try:
        found = {namespace.label: namespace.id for namespace in named()}
    finally:
        os.unlink(f"/run/netns/{left}")
    assert (found[one], found[two]) == (cookie(one), cookie(two))
    assert left not in found


def test_no_descriptor_is_left_open_also_by_what_fails(names: Names) -> None:
    name = names.add()
    before = os.listdir("/proc/self/fd")
    for word in (name, None, "no-such-ns", "/proc/self/ns/uts"):
        with contextlib.suppress(NetnsError), open_namespace(word):
            pass
    list(named())
    init_id()
    assert os.listdir("/proc/self/fd") == before


def test_no_thread_of_ours_ever_stays_in_another_namespace() -> None:
    here = own()
    with nameless() as there:
        with pytest.raises(ZeroDivisionError):
            there.run(lambda: 1 // 0)
        assert own() == here
        with open_namespace() as again:
            assert again.id == here


# The kernel's word and ours -----------------------------------------------------------------------------------------


def test_the_cookie_without_entering_is_the_cookie_from_within(monkeypatch: pytest.MonkeyPatch) -> None:
    with nameless() as there:
        told = cookie_of_fd(there.fd)
        # As on a kernel that does not tell: entered by a thread.
        monkeypatch.setattr(module, "_told_by_nsfs", lambda fd: None)
        assert cookie_of_fd(there.fd) == told == there.id


def test_where_neither_entering_nor_asking_is_possible_the_error_says_what_is_needed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Refusing:
        def setns(self, fd: int, kind: int) -> int:
            import ctypes

            ctypes.set_errno(1)
            return -1

    with nameless() as there:
        monkeypatch.setattr(module, "_libc", Refusing())
        with pytest.raises(NetnsError, match="cannot enter nameless: Operation not permitted") as caught:
            there.run(own)
        assert caught.value.hint is not None
        assert "CAP_SYS_ADMIN" in caught.value.hint


def test_the_first_namespace_is_known_by_what_only_it_has() -> None:
    with nameless() as there:
        assert not there.run(is_init_here)
        if is_init_here():
            assert init_id() == own()
            assert there.run(init_id) in (own(), None)  # None where pid 1 may not be looked at


def test_cookies_of_namespaces_made_one_after_the_other_never_repeat() -> None:
    def make() -> list[NetnsId]:
        found = []
        for _ in range(20):
            leave_for_new()
            found.append(own())
        return found

    seen = in_thread(make)
    assert len(set(seen)) == 20


def test_the_cookie_is_the_number_that_the_kernel_gives_any_socket() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        assert struct.unpack("=Q", sock.getsockopt(1, 71, 8))[0] == own().cookie
