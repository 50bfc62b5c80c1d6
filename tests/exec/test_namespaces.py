"""Programs under `vhostvsock exec` in network namespaces: each socket belongs to where it was made."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import lacking, tool
from exec.conftest import CID, ECHO, PRELUDE, Supervised, as_root
from netns.conftest import Command, Names
from netns.serving import Lines, world


@pytest.fixture
def spaces(short_dir: Path) -> Iterator[dict[str, str]]:
    """Two global and two local namespaces, by role."""
    as_root()
    command, names = Command(str(short_dir / "run")), Names()
    try:
        found = {role: names.new(role) for role in ("global0", "global1", "local0", "local1")}
        for role, name in found.items():
            command.ok("netns", "add", name, "--mode", role[:-1])
        yield found
    finally:
        for name in names.used:
            names.remove(name)


@pytest.fixture
def spread(seccomp: None, spaces: dict[str, str], short_dir: Path, program: str) -> Iterator[Supervised]:
    """A daemon with a guest of CID 42 in a global and in a local namespace, both of which echo."""
    with world(short_dir, program) as made:
        daemon = made.daemon({"a": CID, "b": CID})
        guests = [made.guest(name, spaces[role], ECHO) for name, role in (("a", "global0"), ("b", "local0"))]
        assert [guest.next() for guest in guests] == [f"attached {CID}"] * 2
        supervised = Supervised(made, daemon, guests[0])
        supervised.local_guest = guests[1]
        try:
            yield supervised
        finally:
            supervised.close()


REACH = f"""
sock = new(); print(error(sock.connect, ({CID}, {ECHO})))
if error(sock.getpeername) != "ENOTCONN": sock.send(b"hello"); print(sock.recv(10))
"""


@pytest.mark.parametrize(
    ("role", "lines"),
    [
        ("global0", ["None", "b'hello'"]),
        ("global1", ["None", "b'hello'"]),
        ("local0", ["None", "b'hello'"]),
        ("local1", ["ENODEV"]),
    ],
)
def test_guests_are_reached_from_their_domain(
    spread: Supervised, spaces: dict[str, str], role: str, lines: list[str]
) -> None:
    assert spread.python(REACH, spaces[role]) == lines


def test_a_socket_belongs_to_the_namespace_in_which_its_program_made_it(
    spread: Supervised, spaces: dict[str, str]
) -> None:
    code = f"""
outside = new()
libc = ctypes.CDLL(None, use_errno=True)
with open("/run/netns/{spaces["local1"]}") as file: libc.setns(file.fileno(), 0x40000000)
inside = new()
print(error(inside.connect, ({CID}, {ECHO})), error(outside.connect, ({CID}, {ECHO})))
"""
    assert spread.python(code) == ["ENODEV None"]


def test_a_shell_under_exec_reaches_other_namespaces_by_entering_them(
    spread: Supervised, spaces: dict[str, str]
) -> None:
    # From a shell, as with any program: the command is said once, outside.
    enter = f"(echo hello; sleep 1) | {tool('ip')} netns exec {{}} ncat --vsock {CID} {ECHO}"
    assert spread.ok("sh", "-c", enter.format(spaces["local0"])) == b"hello\n"
    assert spread.run("sh", "-c", enter.format(spaces["local1"])).stderr == b"Ncat: No such device.\n"


@pytest.mark.parametrize(
    ("listener", "client", "reached"),
    [
        ("global0", "global1", True),
        ("local0", "local0", True),
        ("local0", "global0", False),
        ("global0", "local0", False),
        ("local0", "local1", False),
    ],
)
def test_nc_with_loopback_stays_within_a_domain(
    spread: Supervised, spaces: dict[str, str], listener: str, client: str, reached: bool
) -> None:
    ncat = tool("ncat")
    server = spread.start(ncat, "--vsock", "-l", "1235", namespace=spaces[listener])
    until_bound(spread, spaces[listener], server)
    done = spread.run(ncat, "--vsock", "1", "1235", data=b"hello\n", namespace=spaces[client])
    if reached:
        assert (done.returncode, server.next()) == (0, "hello")
    else:
        assert done.stderr == b"Ncat: Connection reset by peer.\n"


def test_guests_reach_listeners_in_their_domain(spread: Supervised, spaces: dict[str, str]) -> None:
    code = """
server = listening(5000); print("listening", flush=True)
while True:
    sock, peer = server.accept(); sock.send(sock.recv(100) + b" by way of %s"); sock.close()
"""
    for role in "global1", "local0":
        spread.script(code.replace("%s", role), namespace=spaces[role]).wait("listening")
    for guest, role in (spread.guest, "global1"), (spread.local_guest, "local0"):
        guest.tell("connect 5000 hello")
        assert guest.next() == f"reply hello by way of {role}"


def until_bound(supervised: Supervised, namespace: str, server: Lines) -> None:
    code = "print(error(new().bind, (ANY, 1235)))"
    while supervised.python(code, namespace) != ["EADDRINUSE"]:
        assert server.popen.poll() is None


def test_without_privilege_a_namespace_of_ones_own_user_namespace_is_served(supervised: Supervised) -> None:
    # Root may enter any namespace by a capability, which is taken away for once.
    meek = (tool("setpriv"), "--bounding-set=-sys_admin") if os.geteuid() == 0 else ()
    unshare = (tool("unshare"), "--user", "--net", "--map-root-user")
    if subprocess.run([*meek, *unshare, "true"], check=False, capture_output=True).returncode != 0:
        lacking("user namespaces for the unprivileged")
    code = """
server = listening(1237); print(error(new().bind, (ANY, 1237)))
client = connected(1, 1237); server.accept()[0].send(b"looped"); print(client.recv(10))
print(os.readlink("/proc/self/ns/net"))
"""
    done = supervised.run(*unshare, sys.executable, "-c", PRELUDE + REACH + code, before=meek)
    assert (done.returncode, done.stderr) == (0, b"")
    *lines, where = done.stdout.decode().splitlines()
    assert lines == ["None", "b'hello'", "EADDRINUSE", "b'looped'"]
    assert where != os.readlink("/proc/self/ns/net")
