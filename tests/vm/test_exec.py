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
def place(request: pytest.FixtureRequest, path: str, fleet: dict[Kind, Machine]) -> Iterator[Place]:
    """A place, and a guest that it reaches."""
    if isinstance(request.param, Kind):
        with working(fleet, request.param) as vm:
            yield Place(vm, vm.cwd, vm.cwd / "run", path, [])
        return
    host: Host = request.getfixturevalue("host")
    try:
        vm = host.vm(NAMESPACES[request.param])
        yield Place(vm, vm.cwd, host.runtime_dir, path, host.within(request.param))
    finally:
        host.end_programs()


def _guest_answers(vm: Machine) -> None:
    vm.guest.run("rm -f /tmp/came")
    vm.inside("exec", f"vsock-listen:{PORT}", f"'{ANSWER.format(came='/tmp/came')}'").listening()


@each_program
def test_a_program_connects_to_a_guest(place: Place, program: Program) -> None:
    _guest_answers(place.vm)
    assert place.ok(program.converse(CID, PORT)) == DATA
    assert says(place.run(program.connect(CID, 9)), errno.ECONNRESET)
    assert says(place.run(program.connect(77, PORT)), errno.ENODEV)


@each_program
def test_a_program_listens_for_a_guest(place: Place, program: Program) -> None:
    with place.listening(program.listen(PORT), PORT) as server:
        guest = place.vm.inside(*program.asked(2, PORT))
        while guest.result() == NOT_YET and server.alive():
            guest = place.vm.inside(*program.asked(2, PORT))
        guest.right()


@each_program
def test_guests_of_other_places_are_out_of_reach(host: Host, path: str, program: Program) -> None:
    guests = [host.vm(where) for where in NAMESPACES.values()]
    directory = host.directory / NOWHERE
    directory.mkdir(exist_ok=True)
    place = Place(guests[0], directory, host.runtime_dir, path, host.within(NOWHERE))
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


def test_nc_into_a_guest_and_back_as_it_was_announced(place: Place) -> None:
    guest = place.vm.guest
    guest.run("rm -f /tmp/came")
    place.vm.inside("exec", "vsock-listen:1234", "'cat > /tmp/came'").listening()
    place.ok("echo hello | nc --vsock 42 1234")
    wait_for(lambda: guest.run("cat /tmp/came 2>/dev/null || true") == "hello", "what was sent is in the guest")
    with place.listening("nc --vsock -l 1234", 1234) as server:
        while guest.start("echo hello | probe cat vsock:2:1234").wait() != 0 and server.alive():
            pass  # not yet
        server.lines.wait_line("hello")


@pytest.mark.timeout(300 + 4 * DISK_MIB)
def test_nbdkit_serves_a_guest_and_the_host_is_served_through_one(place: Place) -> None:
    disk = random.Random(10).randbytes(DISK_MIB * MIB)
    (place.directory / "disk").write_bytes(disk)
    size, total = str(len(disk)), hashlib.sha256(disk).hexdigest()
    limit = 120 + 2 * DISK_MIB
    with place.listening("nbdkit --foreground --exit-with-parent --vsock --port 10809 file disk", 10809) as server:
        while place.vm.inside("connect", "vsock:2:10809").result()["error"] == "ECONNRESET" and server.alive():
            pass  # not yet
        uri = "nbd+vsock://2:10809"
        assert place.vm.guest.run(nbd(f"nbdinfo --size {uri}")) == size
        read = f"set -o pipefail; {nbd(f'nbdcopy {uri} -')} | sha256sum"
        assert place.vm.guest.run(read, limit).split()[0] == total
        # The guest passes on what the clients of the host and the server say.
        place.vm.inside("exec", "vsock-listen:10810", "'exec probe cat vsock:2:10809'").listening()
        uri = f"nbd+vsock://{CID}:10810"
        assert place.ok(f"nbdinfo --size {uri}").decode().strip() == size
        assert place.ok(f"set -o pipefail; nbdcopy {uri} - | sha256sum", limit).split()[0].decode() == total
    (place.directory / "disk").unlink()
