"""Programs of the host with AF_VSOCK sockets, under `vhostvsock exec`, and real guests: each program in both roles.

Before: programs.py has the programs, spaces.py the namespaces. After: nothing.
Rule:   the places are the first namespace (with a guest of each kernel), a global one (the guest is in another) and a
        local one. A second local one is where no guest can be reached.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import random
import shlex
import sys
from collections.abc import Iterator

import pytest
from conftest import tool
from harness.daemon import BACKEND, CID
from harness.machine import Kind, Machine
from harness.waiting import wait_for

from .conftest import BOTH, working
from .programs import ANSWER, DATA, PROGRAMS, Place, Program, says
from .spaces import Host
from .test_clients import nbd
from .test_seqpacket import LENGTHS

pytestmark = pytest.mark.skipif(BACKEND == "peer", reason="a test of vhostvsock's own command")

# That of the announcements.
PORT = 1234
MIB = 1 << 20
# As much of a disk is read: 1024 takes a while under emulation.
DISK_MIB = int(os.environ.get("VHOSTVSOCK_TEST_DISK_MIB", "16"))
# What a probe says where a program has its port and does not listen yet.
NOT_YET = {"connect_error": "ECONNRESET"}
# Where programs are, and where the guest is.
NAMESPACES = {"global0": "global1", "local0": "local0"}
NOWHERE = "local1"

each_program = pytest.mark.parametrize("program", PROGRAMS.values(), ids=PROGRAMS)


@pytest.fixture(scope="module")
def path(path_with_nc: str, static_program: str, go_program: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Where all programs are found."""
    for name in ("socat", "nbdkit", "nbdinfo", "nbdcopy"):
        tool(name)
    directory = tmp_path_factory.mktemp("bin")
    for name, program in (
        ("probe", static_program),
        ("hello", go_program),
        ("python", os.path.realpath(sys.executable)),
    ):
        (directory / name).symlink_to(program)
    return f"{directory}:{path_with_nc}"


@pytest.fixture(scope="module")
def host(namespaces_can_be_made: None) -> Iterator[Host]:
    with contextlib.closing(Host(CID, BOTH[1])) as made:
        yield made


@pytest.fixture(params=[*BOTH, *NAMESPACES], ids=lambda param: f"init-{param}" if isinstance(param, Kind) else param)
def reached(request: pytest.FixtureRequest, path: str, fleet: dict[Kind, Machine]) -> Iterator[tuple[Place, Machine]]:
    """A place, and a guest that can be reached from there."""
    if isinstance(request.param, Kind):
        with working(fleet, request.param) as machine:
            yield Place(machine.cwd, machine.cwd / "run", path), machine
        return
    host: Host = request.getfixturevalue("host")
    try:
        machine = host.vm(NAMESPACES[request.param])
        yield Place(machine.cwd, host.runtime_dir, path, host.within(request.param)), machine
    finally:
        host.end_programs()


@pytest.fixture
def place(reached: tuple[Place, Machine]) -> Place:
    return reached[0]


@pytest.fixture
def vm(reached: tuple[Place, Machine]) -> Machine:
    return reached[1]


def _guest_answers(vm: Machine) -> None:
    vm.guest.run("rm -f /tmp/came")
    vm.inside("exec", f"vsock-listen:{PORT}", f"'{ANSWER.format(came='/tmp/came')}'").listening()


@each_program
def test_a_program_connects_to_a_guest(place: Place, vm: Machine, program: Program) -> None:
    _guest_answers(vm)
    assert place.ok(program.converse(CID, PORT)) == DATA
    assert says(place.run(program.connect(CID, 9)), errno.ECONNRESET)
    assert says(place.run(program.connect(77, PORT)), errno.ENODEV)


@each_program
def test_a_program_listens_for_a_guest(place: Place, vm: Machine, program: Program) -> None:
    with place.listening(program.listen(PORT), PORT) as server:
        guest = vm.inside(*program.asked(2, PORT))
        while guest.result() == NOT_YET and server.alive():
            guest = vm.inside(*program.asked(2, PORT))
        guest.right()


@each_program
def test_guests_of_other_places_are_out_of_reach(host: Host, path: str, program: Program) -> None:
    guests = [host.vm(where) for where in NAMESPACES.values()]
    directory = host.directory / NOWHERE
    directory.mkdir(exist_ok=True)
    place = Place(directory, host.runtime_dir, path, host.within(NOWHERE))
    try:
        for guest in guests:
            _guest_answers(guest)
        assert says(place.run(program.connect(CID, PORT)), errno.ENODEV)
        for guest in guests:
            guest.guest.run("test ! -e /tmp/came")
        with place.listening(program.listen(PORT), PORT):
            for guest in guests:
                assert guest.inside("connect", f"vsock:2:{PORT}").result()["error"] == "ECONNRESET"
            # Who is in the same place gets the one answer.
            place.ok(" ".join(["probe", *program.asked(1, PORT)]))
    finally:
        host.end_programs()


def test_nc_into_a_guest_and_back_as_it_was_announced(place: Place, vm: Machine) -> None:
    vm.guest.run("rm -f /tmp/came")
    vm.inside("exec", "vsock-listen:1234", "'cat > /tmp/came'").listening()
    place.ok("echo hello | nc --vsock 42 1234")
    wait_for(lambda: vm.guest.run("cat /tmp/came 2>/dev/null || true") == "hello", "what was sent is in the guest")
    with place.listening("nc --vsock -l 1234", 1234) as server:
        while vm.guest.start("echo hello | probe cat vsock:2:1234").wait() != 0 and server.alive():
            pass  # not yet
        server.lines.wait_line("hello")


_CONNECTING = f"""
import errno, os, socket
def tried(call, *args):
    try: return call(*args)
    except OSError as error: return errno.errorcode[error.errno]
with socket.socket(socket.AF_VSOCK, socket.SOCK_SEQPACKET) as sock:
    print(*[tried(sock.connect, address) for address in (({CID}, 9), ({CID}, {PORT + 1}), (77, {PORT}))])
    sock.connect(({CID}, {PORT}))
    for length in {LENGTHS}:
        message = os.urandom(length)
        sock.send(message)
        assert sock.recv(1 << 20) == message, length
    print(tried(sock.send, bytes(262145)))
    sock.shutdown(socket.SHUT_WR)
    print(sock.recv(1))
"""
_LISTENING = f"""
import socket
with socket.socket(socket.AF_VSOCK, socket.SOCK_SEQPACKET) as sock:
    sock.bind((socket.VMADDR_CID_ANY, {PORT}))
    sock.listen()
    print("listening", flush=True)
    with sock.accept()[0] as accepted:
        for _ in {LENGTHS}: accepted.send(accepted.recv(1 << 20))
"""


def test_messages_between_a_program_and_a_guest(place: Place, vm: Machine) -> None:
    guest = vm.inside("messages", f"seqpacket-listen:{PORT}", "echo").listening()
    vm.inside("echo", f"vsock-listen:{PORT + 1}").listening()
    said = place.ok(f"python -c {shlex.quote(_CONNECTING)}").decode().splitlines()
    assert said == ["ECONNRESET ECONNRESET ESOCKTNOSUPPORT", "EMSGSIZE", "b''"]
    assert guest.right()["received"] == str(len(LENGTHS))
    with place.listening(f"python -c {shlex.quote(_LISTENING)}", PORT) as server:
        server.lines.wait_line("listening")
        assert vm.inside("connect", f"vsock:2:{PORT}").result()["error"] == "ECONNRESET"
        guest = vm.inside("messages", f"seqpacket:2:{PORT}", f"send={','.join(map(str, LENGTHS))}")
        result = guest.right()
        assert (result["received"], result["bytes"]) == (str(len(LENGTHS)), str(sum(LENGTHS)))


@pytest.mark.timeout(300 + 4 * DISK_MIB)
def test_nbdkit_serves_a_guest_and_the_host_is_served_through_one(place: Place, vm: Machine) -> None:
    source = random.Random(10)
    disk = b"".join(source.randbytes(MIB) for _ in range(DISK_MIB))
    (place.directory / "disk").write_bytes(disk)
    size, total = str(len(disk)), hashlib.sha256(disk).hexdigest()
    limit = 120 + 2 * DISK_MIB
    with place.listening("nbdkit --foreground --exit-with-parent --vsock --port 10809 file disk", 10809) as server:
        while vm.inside("connect", "vsock:2:10809").result()["error"] == "ECONNRESET" and server.alive():
            pass  # not yet
        uri = "nbd+vsock://2:10809"
        assert vm.guest.run(nbd(f"nbdinfo --size {uri}")) == size
        read = f"set -o pipefail; {nbd(f'nbdcopy {uri} -')} | sha256sum"
        assert vm.guest.run(read, limit).split()[0] == total
        # The guest passes on what the clients of the host and the server say.
        vm.inside("exec", "vsock-listen:10810", "'exec probe cat vsock:2:10809'").listening()
        uri = f"nbd+vsock://{CID}:10810"
        assert place.ok(f"nbdinfo --size {uri}").decode().strip() == size
        assert place.ok(f"set -o pipefail; nbdcopy {uri} - | sha256sum", limit).split()[0].decode() == total
    (place.directory / "disk").unlink()
