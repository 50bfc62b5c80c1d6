"""Host applications that name a CID and a port: who reaches whom, with which errno. Real namespaces, small guests."""

from __future__ import annotations

import json
import signal
import socket

import pytest
from netns.conftest import Command, Names
from netns.serving import LIMIT, Lines, World

ECHO = 1234


def listening(listener: Lines, served: World, port: int, namespace: str | None = None) -> None:
    """Waits until a listener is there, by connecting to it over loopback."""
    for _ in range(int(LIMIT * 10)):
        if served.connect(1, port, namespace) != "ECONNRESET":
            return
        assert listener.popen.poll() is None, "it does not listen any more"
    raise AssertionError(f"nobody listens on port {port}")


def test_same_cid_in_a_global_and_in_two_local_namespaces(world_of: World, spaces: dict[str, str]) -> None:
    world_of.daemon({"a": 42, "b": 42, "c": 42})
    for name, role in (("a", "global0"), ("b", "local0"), ("c", "local1")):
        assert world_of.guest(name, spaces[role], ECHO).next() == "attached 42"


def test_same_cid_in_two_global_namespaces_is_refused_and_the_log_names_the_holder(
    world_of: World, spaces: dict[str, str]
) -> None:
    daemon = world_of.daemon({"a": 42, "b": 42})
    assert world_of.guest("a", spaces["global0"]).next() == "attached 42"
    second = world_of.guest("b", spaces["global1"])
    assert second.next().startswith("refused: ")
    assert second.popen.wait(LIMIT) == 1
    line = daemon.wait("EADDRINUSE")
    assert "CID 42 is taken by VM 'a'" in line


def test_two_daemons_cannot_give_the_same_cid_in_one_domain(served: World) -> None:
    served.daemon({"a": 42})
    other = served.daemon({"b": 42})
    assert served.guest("a").next() == "attached 42"
    assert served.guest("b").next().startswith("refused: ")
    other.wait("EADDRINUSE")


def test_a_cid_is_free_the_moment_its_vm_is_gone_or_its_daemon_was_killed(served: World) -> None:
    first = served.daemon({"a": 42, "b": 42})
    served.daemon({"c": 42})
    guest = served.guest("a")
    assert guest.next() == "attached 42"
    guest.end("kill")
    first.wait("front-end gone")
    assert served.guest("b").next() == "attached 42"
    first.popen.send_signal(signal.SIGKILL)
    first.popen.wait(LIMIT)
    assert served.guest("c").next() == "attached 42"


def test_auto_takes_the_lowest_free_cid_and_ls_tells_which(
    world_of: World, spaces: dict[str, str], command: Command
) -> None:
    world_of.daemon({"b": "auto", "c": "auto", "d": "auto"})
    first = int(world_of.guest("b").next().split()[1])
    second = int(world_of.guest("c").next().split()[1])
    elsewhere = int(world_of.guest("d", spaces["local0"]).next().split()[1])
    # Where this machine is a VM itself, its own CID is left out.
    assert 3 <= first < second
    assert elsewhere == first
    rows = world_of.python("from vhostvsock.client import list_vms; print([(r['name'], r['cid']) for r in list_vms()])")
    assert rows.stdout == f"[('b', {first}), ('c', {second})]\n"


@pytest.mark.parametrize(
    ("client", "vm", "answer"),
    [
        ("global0", "global0", "hello"),
        ("global1", "global0", "hello"),
        (None, "global0", "hello"),
        ("global0", None, "hello"),
        ("local0", "local0", "hello"),
        ("global0", "local0", "ENODEV"),
        (None, "local0", "ENODEV"),
        ("local0", "global0", "ENODEV"),
        ("local0", None, "ENODEV"),
        ("local0", "local1", "ENODEV"),
    ],
)
def test_host_applications_reach_a_vm_in_their_domain_only(
    world_of: World, spaces: dict[str, str], client: str | None, vm: str | None, answer: str
) -> None:
    world_of.daemon({"a": 42})
    assert world_of.guest("a", spaces.get(vm or ""), ECHO).next() == "attached 42"
    assert world_of.connect(42, ECHO, spaces.get(client or "")) == answer


def test_ls_calls_the_namespaces_by_their_names(world_of: World, spaces: dict[str, str], command: Command) -> None:
    command = Command(spaces["registry"])
    world_of.daemon({"a": 42, "b": 43, "c": 42})
    for name, role in (("a", "global0"), ("b", "global1"), ("c", "local0")):
        assert world_of.guest(name, spaces[role]).next().startswith("attached ")

    def told(*options: str) -> list[list[str]]:
        # In order of the cookies, which are not in order of the namespaces' making.
        return sorted(line.split()[:4] for line in command.ok("ls", *options).splitlines()[1:])

    expected = [["a", "42", spaces["global0"], "global"], ["b", "43", spaces["global1"], "global"]]
    assert told() == expected
    assert told("--all") == [*expected, ["c", "42", spaces["local0"], "local"]]


def test_ls_shows_what_each_device_has_counted(served: World) -> None:
    command = Command(served.env["VHOSTVSOCK_RUNTIME_DIR"])
    served.daemon({"a": 42, "b": 43})
    for name in ("a", "b"):
        assert served.guest(name, None, ECHO).next().startswith("attached ")
    assert served.connect(42, ECHO) == "hello"
    assert served.connect(42, ECHO + 1) == "ECONNRESET"
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(served.directory / "a.v"))
        client.sendall(b"nonsense\n")
        with pytest.raises(ConnectionResetError):
            client.recv(1)

    head, *lines = command.ok("ls", "--counters").splitlines()
    assert head.split() == ["NAME", "CID", "NETNS", "COUNTER", "VALUE"]
    shown = {(name, counter): int(value) for name, _, _, counter, value in map(str.split, lines)}
    expected = {"host_requests": 2, "established": 1, "refused_by_guest": 1, "handshake_bad": 1, "attached": 1}
    assert {counter: shown.get(("a", counter)) for counter in expected} == expected
    assert shown["b", "attached"] == 1
    assert ("b", "host_requests") not in shown

    first, second = json.loads(command.ok("ls", "--counters", "--json"))
    assert (first["name"], first["counters"]["handshake_bad"]) == ("a", 1)
    assert (second["name"], second["counters"]["handshake_bad"]) == ("b", 0)
    assert all("counters" not in row for row in json.loads(command.ok("ls", "--json")))
    assert command.run("ls", "--all", "--counters").returncode == 2


@pytest.mark.parametrize(
    ("client", "vm", "reached"),
    [
        ("global1", "global0", True),
        ("local0", "local0", True),
        ("local0", "global0", False),
        ("global0", "local0", False),
    ],
)
def test_the_hybrid_socket_obeys_namespaces_too(
    world_of: World, spaces: dict[str, str], client: str, vm: str, reached: bool
) -> None:
    command = Command(spaces["registry"])
    world_of.daemon({"a": 42})
    assert world_of.guest("a", spaces[vm], ECHO).next() == "attached 42"
    uds = str(world_of.directory / "a.v")
    if reached:
        assert command.ok("connect", "--uds", uds, str(ECHO), within=spaces[client]) == ""
    else:
        assert "refused" in command.fails("connect", "--uds", uds, str(ECHO), within=spaces[client])


def test_errnos_of_connecting_are_those_of_linux(served: World) -> None:
    served.daemon({"a": 42})
    assert served.connect(42, ECHO) == "ENODEV"
    assert served.guest("a", None, ECHO).next() == "attached 42"
    assert served.connect(42, 99) == "ECONNRESET"
    assert served.connect(43, ECHO) == "ENODEV"
    assert served.connect(0, ECHO) == "ENODEV"
    assert served.connect(1, ECHO) == "ECONNRESET"
    assert served.connect(2, ECHO) == "ECONNRESET"
    assert served.connect(0xFFFFFFFF, ECHO) == "ENODEV"


@pytest.mark.parametrize(
    ("listener", "vm", "reached"),
    [
        ("global0", "global0", True),
        ("global1", "global0", True),
        (None, "global0", True),
        ("local0", "local0", True),
        ("local0", "global0", False),
        ("global0", "local0", False),
        ("local0", "local1", False),
    ],
)
def test_guests_reach_listeners_in_their_domain_only(
    world_of: World, spaces: dict[str, str], listener: str | None, vm: str, reached: bool
) -> None:
    world_of.daemon({"a": 42})
    guest = world_of.guest("a", spaces[vm])
    assert guest.next() == "attached 42"
    where = spaces.get(listener or "")
    listening(world_of.listen(5000, where), world_of, 5000, where)
    guest.tell("connect 5000 hello")
    assert guest.next() == ("reply 42" if reached else "error Reset")
    if reached:
        assert guest.next() == "hello"


@pytest.mark.parametrize(
    ("listener", "client", "answer"),
    [
        ("global0", "global0", "1\nhello"),
        ("global0", "global1", "1\nhello"),
        ("local0", "local0", "1\nhello"),
        ("local0", "global0", "ECONNRESET"),
        ("global0", "local0", "ECONNRESET"),
        ("local0", "local1", "ECONNRESET"),
    ],
)
def test_loopback_is_within_a_domain(
    world_of: World, spaces: dict[str, str], listener: str, client: str, answer: str
) -> None:
    world_of.daemon({"a": 42})
    listening(world_of.listen(5000, spaces[listener]), world_of, 5000, spaces[listener])
    for cid in (1, 2):
        assert world_of.connect(cid, 5000, spaces[client]) == answer


def test_a_vm_and_a_listener_of_another_daemon_are_reached_by_handing_the_descriptor_over(served: World) -> None:
    served.daemon({"a": 42})
    served.daemon({"b": 43})
    one, two = served.guest("a", None, ECHO), served.guest("b", None, ECHO)
    assert (one.next(), two.next()) == ("attached 42", "attached 43")
    for cid in (42, 43):
        assert served.connect(cid, ECHO, times=60_000) == "hello" * 60_000
    listening(served.listen(5000), served, 5000)
    for guest, cid in ((one, 42), (two, 43)):
        guest.tell("connect 5000 hello")
        assert (guest.next(), guest.next()) == (f"reply {cid}", "hello")


def test_ports_conflict_within_a_domain_as_in_linux(world_of: World, spaces: dict[str, str]) -> None:
    world_of.daemon({"a": 42})
    code = """
import errno, vhostvsock
def listen(port, cid=0xFFFFFFFF):
    try:
        kept.append(vhostvsock.create_server(port, cid=cid)); return "ok"
    except OSError as error:
        return errno.errorcode[error.errno]
kept = []
print(listen(5000), listen(5000), listen(5000, 2), listen(5001, 2), listen(5001, 1), listen(5001), listen(5002, 77))
print(kept[0].port, listen(0xFFFFFFFF), kept[-1].port > 1023, listen(100))
"""
    assert world_of.python(code).stdout == "ok EADDRINUSE EADDRINUSE ok ok EADDRINUSE EADDRNOTAVAIL\n5000 ok True ok\n"
    listening(world_of.listen(5000, spaces["global0"]), world_of, 5000)
    assert "EADDRINUSE" in world_of.python(code, spaces["global1"]).stdout.split()[0]
    assert world_of.python(code, spaces["local0"]).stdout.startswith("ok ")


def test_the_asyncio_api_serves_and_connects(served: World) -> None:
    served.daemon({"a": 42})
    guest = served.guest("a", None, ECHO)
    assert guest.next() == "attached 42"
    code = """
import asyncio, vhostvsock
async def serve(reader, writer):
    writer.write((await reader.read()).upper()); await writer.drain(); writer.close()
async def main():
    async with await vhostvsock.start_server(serve, 5000):
        for cid, port in ((1, 5000), (42, 1234)):
            reader, writer = await vhostvsock.open_connection(cid, port)
            writer.write(b"hello"); writer.write_eof()
            print(await reader.read()); writer.close()
        print("ready", flush=True); await asyncio.sleep(0.5)
asyncio.run(main())
"""
    assert served.python(code).stdout == "b'HELLO'\nb'hello'\nready\n"


def test_clients_that_talk_nonsense_get_an_error_line_and_harm_nobody(served: World) -> None:
    served.daemon({"a": 42})
    (bridge,) = (served.directory / "run" / "bridge").glob("*.sock")
    lines = [
        b"HELLO\n",
        b"CONNECT\n",
        b"CONNECT 1 2 3 4\n",
        b"CONNECT x 5\n",
        b"LISTEN 4294967296 1\n",
        b"\xff\n",
        b"x" * 100,
        b"VERSION 1\nVERSION 1\n",
    ]
    for line in lines:
        with socket.socket(socket.AF_UNIX) as sock:
            sock.settimeout(LIMIT)
            sock.connect(str(bridge))
            sock.sendall(line)
            answer = b"".join(iter(lambda sock=sock: sock.recv(1000), b""))  # type: ignore[misc]
            assert b"ERR EPROTO " in answer, line
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(LIMIT)
        sock.connect(str(bridge))
        sock.sendall(b"VERSION 2\n")
        assert sock.recv(100).startswith(b"ERR EPROTONOSUPPORT ")
    assert served.connect(43, 1) == "ENODEV"


def test_a_deleted_namespace_lives_on_with_its_vm_and_its_connections(
    world_of: World, names: Names, spaces: dict[str, str]
) -> None:
    doomed = names.add()
    daemon = world_of.daemon({"a": 42, "b": 42})
    guest = world_of.guest("a", doomed, ECHO)
    assert guest.next() == "attached 42"
    names.remove(doomed)
    assert world_of.connect(42, ECHO, spaces["global1"]) == "hello"
    assert world_of.guest("b", spaces["global1"]).next().startswith("refused: ")
    daemon.wait("EADDRINUSE")
    guest.end("kill")
    daemon.wait("front-end gone")
    assert world_of.guest("b", spaces["global1"]).next() == "attached 42"


def test_a_registry_that_is_removed_or_damaged_leaves_running_vms_alone(served: World) -> None:
    daemon = served.daemon({"a": 42, "b": 43})
    guest = served.guest("a", None, ECHO)
    assert guest.next() == "attached 42"
    file = served.directory / "run" / "registry.db"
    file.write_bytes(b"noise" * 1000)
    assert served.guest("b").next().startswith("refused: ")
    daemon.wait("registry")
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(LIMIT)
        sock.connect(str(served.directory / "a.v"))
        sock.sendall(b"CONNECT 1234\nhello")
        with sock.makefile("rb") as stream:
            assert stream.readline().startswith(b"OK ")
            assert stream.read(5) == b"hello"
    file.unlink()
    assert served.guest("b").next() == "attached 43"
    assert served.connect(42, ECHO) == "hello"
