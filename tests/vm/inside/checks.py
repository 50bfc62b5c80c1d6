"""Checks on a host whose kernel keeps the modes of namespaces itself (Linux 7.0), and which is a VM: `checks.py NAME`.

Before: test_host_kernel.py, by way of the guest's agent. After: middle.py.
Rules:  - a check that fails raises.
        - the namespaces of one check are named after it, because they stay.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import subprocess
import sys
from collections.abc import Callable

from harness.guest import Guest
from inside.middle import ECHO, HERE, Listener, Middle, command, connect, in_netns, within

import vhostvsock
from vhostvsock.registry import making
from vhostvsock.registry.errors import Refused
from vhostvsock.registry.kernel import KernelModes, host_cid
from vhostvsock.registry.netns import open_namespace
from vhostvsock.registry.rules import Mode
from vhostvsock.registry.store import Registry

OWN_CID = 42
NOBODY = 65534
# A guest within a guest takes its time.
BOOT_SECONDS = 280.0


def expect(found: object, expected: object, where: object = "") -> None:
    assert found == expected, f"{where}: {found!r}, and not {expected!r}"


def sysctl(name: str, namespace: str | None = None) -> str:
    """What the kernel says of a namespace."""
    words = [*within(namespace), "cat", f"/proc/sys/net/vsock/{name}"]
    return subprocess.run(words, capture_output=True, text=True, check=True).stdout.strip()


def refusal(work: Callable[[], object]) -> str:
    """The errno with which something is refused."""
    try:
        work()
    except Refused as error:
        return errno.errorcode[error.errno]
    return "OK"


def write_child_mode(registry: Registry, namespace: str, data: bytes) -> str:
    """The errno of a write to a namespace's child mode."""
    with open_namespace(namespace) as netns:
        return refusal(lambda: registry.modes.write_child_mode(netns, data, allowed=True))


# Modes --------------------------------------------------------------------------------------------------------------


def modes_come_from_the_kernel() -> None:
    assert KernelModes().present()
    assert command("netns", "mode") == (0, "global\n")
    for name, options, mode in (("a-global", (), "global"), ("a-local", ("--mode", "local"), "local")):
        assert command("netns", "add", name, *options) == (0, "")
        assert (sysctl("ns_mode", name), sysctl("child_ns_mode", name)) == (mode, mode)
        assert command("netns", "mode", name) == (0, f"{mode}\n")
    # The setting of the first namespace was not used up for it.
    assert command("netns", "add", "a-other") == (0, "")
    assert sysctl("ns_mode", "a-other") == "global"
    assert command("netns", "add", "a-child", namespace="a-local") == (0, "")
    assert sysctl("ns_mode", "a-child") == "local"
    code, said = command("netns", "add", "a-wrong", "--mode", "global", namespace="a-local")
    assert code == 1, said
    assert "EPERM" in said, said
    assert not os.path.lexists("/run/netns/a-wrong")
    code, said = command("netns", "list")
    rows = {line.split()[0]: line.split()[2:4] for line in said.splitlines()[2:]}
    assert rows["a-global"] == ["global", "global"], said
    assert rows["a-child"] == ["local", "local"], said


def child_modes_have_the_kernels_errnos() -> None:
    with Registry() as registry:
        making.create(registry, "b-global")
        making.create(registry, "b-local", Mode.LOCAL)
        for wrong in (b"LOCAL", b"local ", b"", b"localx", b"local\n\n\n"):
            expected = "EINVAL" if wrong else "OK"
            assert write_child_mode(registry, "b-global", wrong) == expected, wrong
        # Not one of these was the one write that counts.
        assert write_child_mode(registry, "b-global", b"local\n") == "OK"
        assert write_child_mode(registry, "b-global", b"local") == "OK"
        assert write_child_mode(registry, "b-global", b"global") == "EBUSY"
        assert sysctl("child_ns_mode", "b-global") == "local"
        assert sysctl("ns_mode", "b-global") == "global"
        assert write_child_mode(registry, "b-local", b"global") == "EPERM"
        assert write_child_mode(registry, "b-local", b"local") == "OK"
        assert write_child_mode(registry, "b-local", b"global") == "EPERM"
        # Whoever may not, may not; and not because of what was written.
        assert _as_nobody(lambda: KernelModes().write_child_mode(b"x"), "b-global") == "EACCES"
    # And by the command: the errno in the sentence.
    for words, expected in (
        (("b-global", "global"), "EBUSY"),
        (("b-global", "both"), "EINVAL"),
        (("b-local", "global"), "EPERM"),
    ):
        code, said = command("netns", "child-mode", *words)
        assert code == 1, said
        assert expected in said, said
    # A namespace whose children are local, and which is global itself, makes local ones, by us or by anyone.
    assert command("netns", "add", "b-child", namespace="b-global") == (0, "")
    assert sysctl("ns_mode", "b-child") == "local"


def _as_nobody(work: Callable[[], object], namespace: str) -> str:
    """The errno that an ordinary user gets, in a process of its own."""

    def body() -> str:
        reader, writer = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.setuid(NOBODY)
            os.write(writer, refusal(work).encode())
            os._exit(0)
        os.close(writer)
        with open(reader, encoding="ascii") as file:
            answer = file.read()
        os.waitpid(pid, 0)
        return answer

    return in_netns(namespace, body)


def what_others_make_is_asked_of_the_kernel() -> None:
    """Namespaces that no command of ours made, in which a guest starts: they are what the kernel says."""
    assert command("netns", "add", "c-manager") == (0, "")
    assert command("netns", "child-mode", "c-manager", "local") == (0, "")
    with Middle() as middle:
        daemon = middle.daemon({"c1": 61, "c2": 62}, "--no-parent")
        local = middle.start("unshare", "-n", "vsock-guest", "c1.vh", str(ECHO), namespace="c-manager")
        assert local.wait("attached") == "attached 61"
        other = middle.start("unshare", "-n", "vsock-guest", "c2.vh", str(ECHO))
        assert other.wait("attached") == "attached 62"
        middle.running("c2")
        assert connect(62, ECHO) == "hello"
        assert connect(61, ECHO) == "ENODEV"
        assert connect(61, ECHO, "c-manager") == "ENODEV"
        # From within, by the pid: there is no name.
        path = f"/proc/{local.popen.pid}/ns/net"
        assert connect(61, ECHO, path) == "hello"
        assert connect(62, ECHO, path) == "ENODEV"
        assert command("netns", "mode", str(local.popen.pid)) == (0, "local\n")
        assert daemon.popen.poll() is None


def a_daemon_without_privileges_knows_what_root_noted() -> None:
    """It may not enter other namespaces. Those that it knows nothing of are kept apart."""
    with Registry() as registry:
        making.create(registry, "h-global")
        making.create(registry, "h-local", Mode.LOCAL)
    directory = HERE / "nobody"
    directory.mkdir()
    os.chown(directory, NOBODY, NOBODY)
    with Middle(directory, user=NOBODY) as middle:
        daemon = middle.daemon({"h1": 63, "h2": 64}, "--no-parent")
        root = Middle(directory)
        with root:
            unknown = root.start("unshare", "-n", "sleep", "1000")
            for place, client in ((None, "h-global"), ("h-global", None), ("h-local", "h-local")):
                guest = root.guest("h1", place)
                expect(guest.wait("attached"), "attached 63", place)
                in_netns(place, lambda: root.running("h1"))
                expect(root.connect(63, client), "hello", (place, client))
                other = None if client == "h-local" else "h-local"
                expect(root.connect(63, other), "ENODEV", (place, other))
                expect(root.connect(63, f"/proc/{unknown.popen.pid}/ns/net"), "ENODEV", place)
                guest.end()
        assert daemon.popen.poll() is None


# Reachability -------------------------------------------------------------------------------------------------------


def the_same_cid_and_who_reaches_whom() -> None:
    places = {"d-global0": Mode.GLOBAL, "d-global1": Mode.GLOBAL, "d-local0": Mode.LOCAL, "d-local1": Mode.LOCAL}
    with Registry() as registry:
        for name, mode in places.items():
            making.create(registry, name, mode)
    with Middle() as middle:
        # A daemon that serves all, in the first namespace.
        middle.daemon({"dg": 50, "dl0": 50, "dl1": 50, "dx": 50}, "--no-parent")
        for vm, place in (("dg", "d-global0"), ("dl0", "d-local0"), ("dl1", "d-local1")):
            assert middle.guest(vm, place).wait("attached") == "attached 50"
            _until_running(middle, vm, place)
        # The second one of a domain is refused.
        for place in ("d-global1", "d-local0", None):
            assert middle.guest("dx", place).wait("refused").startswith("refused: ")
        for place in (None, *places):
            assert connect(50, ECHO, place) == "hello", place
        code, said = command("ls", namespace="d-local1")
        assert code == 0
        assert [line.split()[0] for line in said.splitlines()[1:]] == ["dl1"], said
        _loopback(places)
        _guests_reach(middle, places)
    with Middle() as middle:
        middle.daemon({"dl0": 50}, "--no-parent")
        assert middle.guest("dl0", "d-local0").wait("attached") == "attached 50"
        _until_running(middle, "dl0", "d-local0")
        answers = {place: connect(50, ECHO, place) for place in (None, *places)}
        assert answers.pop("d-local0") == "hello"
        assert set(answers.values()) == {"ENODEV"}, answers


def _until_running(middle: Middle, vm: str, place: str) -> None:
    in_netns(place, lambda: middle.running(vm))


def _loopback(places: dict[str, Mode]) -> None:
    listeners = {place: Listener(1, place) for place in places}
    for server, mode in places.items():
        for client, other in places.items():
            reachable = server == client or mode is other is Mode.GLOBAL
            expected = "hello" if reachable else "ECONNRESET"
            assert connect(1, listeners[server].port, client) == expected, (server, client)
    for server, listener in listeners.items():
        assert listener.came == [(1, b"hello")] * (2 if places[server] is Mode.GLOBAL else 1), server


def _guests_reach(middle: Middle, places: dict[str, Mode]) -> None:
    """A guest, started anew in each namespace, tries a listener in each."""
    middle.daemon({"de": 70}, "--no-parent")
    listeners = {place: Listener(2, place) for place in places}
    for place, mode in places.items():
        guest = middle.guest("de", place)
        assert guest.wait("attached") == "attached 70"
        for server, other in places.items():
            guest.tell(f"connect {listeners[server].port} hello")
            if place == server or mode is other is Mode.GLOBAL:
                assert guest.wait(" ") == "reply hello", (place, server)
            else:
                assert guest.wait(" ").startswith("error "), (place, server)
        guest.end()
    for server, listener in listeners.items():
        assert listener.came == [(70, b"hello")] * (2 if places[server] is Mode.GLOBAL else 1), server


# A VM within a VM ---------------------------------------------------------------------------------------------------


def the_own_cid_is_taken() -> None:
    assert host_cid() == OWN_CID
    with Registry() as registry:
        making.create(registry, "e-local", Mode.LOCAL)
    with Middle() as middle:
        daemon = middle.daemon({"e": OWN_CID, "auto": "auto"})
        for place in (None, "e-local"):
            assert middle.guest("e", place).wait("refused").startswith("refused: ")
            assert "EADDRINUSE" in daemon.wait(f"CID {OWN_CID} is this host's own")
        assert middle.guest("auto").wait("attached") == "attached 3"


def the_host_above_is_reached_from_global_namespaces() -> None:
    """It echoes on port 5000. Which daemon is asked, and from where that one was started, makes no difference."""
    with Registry() as registry:
        making.create(registry, "f-global")
        making.create(registry, "f-local", Mode.LOCAL)
    for place in (None, "f-global", "f-local"):
        with Middle() as middle:
            middle.daemon({"f": 53}, namespace=place)
            for client in (None, "f-global"):
                expect(connect(2, 5000, client), "hello", (place, client))
                expect(connect(2, 5001, client), "ECONNRESET", (place, client))
            expect(asyncio.run(_echo(2, 5000)), b"hello", place)
            # Nobody here has the CID, so it is the business of the host above; that one knows none but its own.
            expect(connect(999, 5000), "ETIMEDOUT", place)
            expect(connect(2, 5000, "f-local"), "ENETUNREACH", place)
            expect(connect(999, 5000, "f-local"), "ENETUNREACH", place)
            for cid in (1, OWN_CID):
                expect(connect(cid, Listener(0xFFFF_FFFF).port), "hello", (place, cid))
            expect(connect(1, Listener(1, "f-local").port, "f-local"), "hello", place)


async def _echo(cid: int, port: int) -> bytes:
    reader, writer = await vhostvsock.open_connection(cid, port)
    with contextlib.closing(writer):
        writer.write(b"hello")
        return await reader.readexactly(5)


def a_vm_within_and_the_host_above() -> None:
    """A guest in this guest has CID 52, and its VM was started before."""
    with Registry() as registry:
        making.create(registry, "g-global")
        making.create(registry, "g-local", Mode.LOCAL)
    with contextlib.closing(Guest(HERE / "control.sock")) as guest:
        guest.wait_boot(limit=BOOT_SECONDS)
        guest.start(f"exec probe echo vsock-listen:{ECHO}").lines.wait_line("listening", BOOT_SECONDS)
        assert "cid=52" in guest.run("probe cid -")
        # Down, by its CID, and up.
        for client in (None, "g-global"):
            expect(connect(52, ECHO, client), "hello", client)
            expect(connect(2, 5000, client), "hello", client)
        expect(connect(52, 9999), "ECONNRESET")
        expect(connect(52, ECHO, "g-local"), "ENETUNREACH")
        # The inner guest's host is this system, and not the one above.
        listener = Listener(2)
        told = guest.run(f"probe talk vsock:2:{listener.port} send=1:1000 shutdown recv=1:1000 eof", BOOT_SECONDS)
        assert "received=1000" in told, told
        expect([(cid, len(data)) for cid, data in listener.came], [(52, 1000)])
        told = guest.run("probe connect vsock:2:5000", BOOT_SECONDS)
        assert "ECONNRESET" in told, told


CHECKS = (
    modes_come_from_the_kernel,
    child_modes_have_the_kernels_errnos,
    what_others_make_is_asked_of_the_kernel,
    a_daemon_without_privileges_knows_what_root_noted,
    the_same_cid_and_who_reaches_whom,
    the_own_cid_is_taken,
    the_host_above_is_reached_from_global_namespaces,
    a_vm_within_and_the_host_above,
)

if __name__ == "__main__":
    {check.__name__: check for check in CHECKS}[sys.argv[1]]()
