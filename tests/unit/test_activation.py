"""Sockets from the service manager: checked, found by path, served, and left in place."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from vhostvsock.config import Access
from vhostvsock.errors import ActivationError
from vhostvsock.sockets import ListeningSocket
from vhostvsock.systemd import activation
from vhostvsock.systemd.activation import PassedSocket, PassedSockets

# Passes sockets on as a manager does: as the descriptors from 3 on.
_PRELUDE = """
import os, socket, sys
from vhostvsock.systemd import activation
from vhostvsock.errors import ActivationError

def unix(path, kind=socket.SOCK_STREAM, listen=True, family=socket.AF_UNIX):
    s = socket.socket(family, kind)
    if path:
        s.bind(path)
    if listen:
        s.listen()
    low = s.detach()
    high = os.dup2(low, 100 + len(path))
    os.close(low)
    return high

def passed(*fds, names=None, **changes):
    for i, fd in enumerate(fds):
        os.dup2(fd, 3 + i)
    env = {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": str(len(fds))}
    if names is not None:
        env["LISTEN_FDNAMES"] = names
    env.update(changes)
    try:
        return activation.take(env), env
    except ActivationError as error:
        sys.exit(f"refused: {error}")
"""


def run(code: str, cwd: Path) -> str:
    """What `code` says, in a process of its own: the numbers of its descriptors are part of the protocol."""
    done = subprocess.run(
        [sys.executable, "-c", _PRELUDE + code], cwd=cwd, capture_output=True, text=True, check=False, timeout=30
    )
    return (done.stdout + done.stderr).strip()


def test_nothing_is_passed_without_the_variables() -> None:
    assert activation.take({}).left() == []


def test_variables_of_another_process_are_removed_and_not_used() -> None:
    environ = {"LISTEN_PID": str(os.getppid()), "LISTEN_FDS": "1", "LISTEN_FDNAMES": "x", "OTHER": "1"}
    assert activation.take(environ).left() == []
    assert environ == {"OTHER": "1"}


def test_sockets_are_found_by_path_with_their_names(short_dir: Path) -> None:
    code = """
got, env = passed(unix("a"), unix("bb"), names="one:two")
print([(p.name, p.path) for p in got.left()], env)
sock = got.take(os.path.abspath("../" + os.path.basename(os.getcwd()) + "/a"))
print(sock.fileno(), sock.getblocking(), os.get_inheritable(sock.fileno()), got.take("c"), len(got.left()))
"""
    assert run(code, short_dir) == "[('one', 'a'), ('two', 'bb')] {}\n3 False False None 1"


def test_names_are_not_needed(short_dir: Path) -> None:
    code = "got, env = passed(unix('a'))\nprint(got.left()[0].name)"
    assert run(code, short_dir) == "unknown"


@pytest.mark.parametrize(
    ("code", "part"),
    [
        ("passed(unix('a'), LISTEN_FDS='x')", "LISTEN_FDS is 'x'"),
        ("passed(unix('a'), names='a:b')", "2 names for 1 sockets"),
        ("passed(unix('a'), LISTEN_FDS='5')", "is no socket"),
        ("passed(unix('a', socket.SOCK_DGRAM, False))", "no UNIX stream socket with a path"),
        ("passed(unix('\\0a'))", "no UNIX stream socket with a path"),
        ("passed(unix('a', listen=False))", "does not listen"),
        ("s = unix('a'); passed(s, s)", "two sockets for a"),
        ("passed(unix('', family=socket.AF_INET))", "no UNIX stream socket with a path"),
    ],
)
def test_what_cannot_be_served_is_refused(short_dir: Path, code: str, part: str) -> None:
    said = run(code, short_dir)
    assert said.startswith("refused: ")
    assert part in said


def test_socket_of_another_type_than_is_served_at_its_path_is_refused_with_the_remedy(short_dir: Path) -> None:
    code = """
got, env = passed(unix("a", socket.SOCK_SEQPACKET), unix("bb"), unix("ccc", socket.SOCK_SEQPACKET))
print(got.take("a", socket.SOCK_SEQPACKET).type.name)
for path, kind in (("bb", socket.SOCK_SEQPACKET), ("ccc", socket.SOCK_STREAM)):
    try:
        got.take(path, kind)
    except ActivationError as error:
        print(error.hint)
"""
    assert run(code, short_dir).splitlines() == [
        "SOCK_SEQPACKET",
        "use ListenSequentialPacket=bb",
        "use ListenStream=ccc",
    ]


def test_two_sockets_for_one_path_are_refused(short_dir: Path) -> None:
    with socket.socket(socket.AF_UNIX) as one, pytest.raises(ActivationError, match="two sockets"):
        PassedSockets([PassedSocket("x", "/run/a", one), PassedSocket("y", "/run/../run/a", one)])


def test_an_adopted_socket_is_served_and_stays_at_the_end(short_dir: Path) -> None:
    path = str(short_dir / "s")
    with socket.socket(socket.AF_UNIX) as manager, socket.socket(socket.AF_UNIX) as client:
        manager.bind(path)
        manager.listen()
        passed = socket.socket(fileno=os.dup(manager.fileno()))
        with ListeningSocket(path, Access(), passed) as listening:
            assert listening.adopted
            client.connect(path)
            listening.sock.accept()[0].close()
        assert os.listdir(short_dir) == ["s"]
        with socket.socket(socket.AF_UNIX) as later:
            later.connect(path)
