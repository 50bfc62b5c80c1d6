"""Programs under `vhostvsock exec` in network namespaces: each socket belongs to where it was made."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator

import pytest
from conftest import lacking, tool
from exec.conftest import ANSWERS, CID, ECHO, MESSAGES, PRELUDE, Supervised
from netns.conftest import spaces as spaces
from netns.conftest import world_of as world_of
from netns.serving import World


@pytest.fixture
def spread(seccomp: None, spaces: dict[str, str], world_of: World) -> Iterator[Supervised]:
    """A daemon with a guest of CID 42 in a global and in a local namespace, both of which echo."""
    daemon = world_of.daemon({"a": CID, "b": CID})
    guests = [world_of.guest(name, spaces[role], *ANSWERS) for name, role in (("a", "global0"), ("b", "local0"))]
    assert [guest.next() for guest in guests] == [f"attached {CID}"] * 2
    supervised = Supervised(world_of, daemon, guests[0])
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
def test_nc_as_it_was_announced_stays_within_a_domain(
    spread: Supervised, spaces: dict[str, str], path_with_nc: str, listener: str, client: str, reached: bool
) -> None:
    def shell(command: str) -> list[str]:
        return ["env", f"PATH={path_with_nc}", "bash", "-c", command]

    server = spread.start(*shell("nc --vsock -l 1234"), namespace=spaces[listener])
    spread.until_bound(1234)
    if not reached:
        done = spread.run(*shell("echo lost | nc --vsock 1 1234"), namespace=spaces[client])
        assert (done.returncode, done.stderr) == (1, b"Ncat: Connection reset by peer.\n")
        client = listener  # from where it does arrive
    spread.ok(*shell("echo hello | nc --vsock 1 1234"), namespace=spaces[client])
    assert server.next() == "hello"


@pytest.mark.parametrize(
    ("role", "guest", "loopback"),
    [
        ("global0", "None", "None"),
        ("global1", "None", "None"),
        ("local0", "None", "ESOCKTNOSUPPORT"),
        ("local1", "ESOCKTNOSUPPORT", "ESOCKTNOSUPPORT"),
    ],
)
def test_messages_go_where_linux_lets_them(
    spread: Supervised, spaces: dict[str, str], role: str, guest: str, loopback: str
) -> None:
    # Of one's own local namespace there are guests, and no loopback, also not to who listens there.
    code = f"""
server, streams = listening(5000, kind=SEQ), listening(5001)
for cid, port in ({CID}, {MESSAGES}), (1, 5000), (2, 5000): print(error(new(SEQ).connect, (cid, port)))
print(error(new(SEQ).connect, (1, 5001)), error(new().connect, (1, 5001)))
"""
    mixed = "ECONNRESET" if loopback == "None" else loopback
    assert spread.python(code, spaces[role]) == [guest, loopback, loopback, f"{mixed} None"]


@pytest.mark.parametrize(("kind", "says"), [("SOCK_STREAM", "connect"), ("SOCK_SEQPACKET", "messages")])
def test_guests_reach_listeners_in_their_domain(
    spread: Supervised, spaces: dict[str, str], kind: str, says: str
) -> None:
    code = f"""
server = listening(5000, kind=socket.{kind}); print("listening", flush=True)
while True:
    sock, peer = server.accept(); sock.send(sock.recv(100) + b" by way of %s"); sock.close()
"""
    for role in "global1", "local0":
        spread.script(code.replace("%s", role), namespace=spaces[role]).wait("listening")
    for guest, role in (spread.guest, "global1"), (spread.local_guest, "local0"):
        guest.tell(f"{says} 5000 hello")
        assert guest.next() == f"reply hello by way of {role}"


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
