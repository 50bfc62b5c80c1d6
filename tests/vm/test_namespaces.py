"""The cases of Linux's own tests of vsock namespaces (tools/testing/selftests/vsock/vmtest.sh), by their names.

Before: spaces.py has the namespaces, the VMs (CID 1234, kernel 7.2 or newer) and the host applications: the client
        library and the command line do what the kernel's tests do with AF_VSOCK of the host.
After:  nothing.
Rules:  - where the original runs all of vsock_test, conversations.py does, with the client on the same side.
        - where the original shows that something does not arrive, the same is sent from a place from which it does.
        - the order is not the original's: cases that can use the VMs of those before them follow them. Each also
          passes alone.
"""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Iterator

import pytest
from harness.probe import Probe
from harness.waiting import WaitError, wait_for

from .clients import LIMIT
from .conversations import GuestAsks, GuestServes, everything
from .spaces import CID, GLOBAL_PLACES, Host, accept, nobody_came

PORT = 12345


@pytest.fixture(scope="module")
def all_of_host(namespaces_can_be_made: None) -> Iterator[Host]:
    with contextlib.closing(Host()) as made:
        yield made


@pytest.fixture
def host(all_of_host: Host) -> Iterator[Host]:
    try:
        yield all_of_host
    finally:
        all_of_host.end_programs()


def _code(error: pytest.ExceptionInfo[OSError]) -> str:
    return errno.errorcode[error.value.errno or 0]


# VMs and the host's first namespace ---------------------------------------------------------------------------------


def test_vm_server_host_client(host: Host) -> None:
    everything(GuestServes(host, "init", host.vm("init")))


def test_vm_client_host_server(host: Host) -> None:
    everything(GuestAsks(host, "init", host.vm("init")))


def test_vm_loopback(host: Host) -> None:
    """Within the guest, by its kernel's vsock_loopback: the device must not be in its way."""
    vm = host.vm("init")
    vm.guest.run("grep -q '^vsock_loopback ' /proc/modules || insmod /modules/later/vsock_loopback.ko")
    for cid in (1, CID):
        size = 4 << 20
        server = vm.inside("talk", "vsock-listen:6000", f"recv=1:{size}", f"send=2:{size}", "shutdown", "eof")
        server.listening()
        vm.inside("talk", f"vsock:{cid}:6000", f"send=1:{size}", f"recv=2:{size}", "shutdown", "eof").right()
        server.right()
    # The host sees none of it, and is reached as ever.
    everything(GuestServes(host, "init", vm))


# Modes --------------------------------------------------------------------------------------------------------------


def test_ns_host_vsock_ns_mode_ok(host: Host) -> None:
    for mode in ("global", "local"):
        assert host.ok("netns", "mode", host.name(f"{mode}0")) == f"{mode}\n"
        assert host.ok("netns", "mode", within=f"{mode}0") == f"{mode}\n"


def test_ns_host_vsock_child_ns_mode_ok(host: Host) -> None:
    for mode in ("local", "global"):
        # There is no word to change a mode; the original's write to ns_mode fails.
        assert host.run("netns", "mode", host.name(f"{mode}0"), mode).returncode == 2
        assert host.ok("netns", "child-mode", host.name(f"{mode}0"), mode) == ""
        assert host.ok("netns", "child-mode", host.name(f"{mode}0")) == f"{mode}\n"


# Loopback between host applications -----------------------------------------------------------------------------------


def _loopback(host: Host, client: str, server: str) -> bool:
    """Whether TEST arrives. If not, it must be refused as where nobody listens, and arrive from the server's place."""
    for place in ("init", server, client):
        host.daemon(place)  # any daemon serves host applications; here each place has its own
    process, port = host.listen(server, 1)
    done = host.run("connect", "1", str(port), within=client, data="TEST")
    if done.returncode == 0:
        assert process.wait() == 0
        assert process.lines.seen[1:] == ["TEST"]
        return True
    assert done.stderr.splitlines()[0].endswith("(ECONNRESET)"), done
    assert process.alive()
    assert host.ok("connect", "1", str(port), within=server, data="TEST") == ""
    assert process.wait() == 0
    assert process.lines.seen[1:] == ["TEST"]
    return False


def test_ns_diff_global_to_local_loopback_local_fails(host: Host) -> None:
    assert not _loopback(host, "global0", "local0")


def test_ns_diff_local_to_global_loopback_fails(host: Host) -> None:
    assert not _loopback(host, "local0", "global0")


def test_ns_diff_local_to_local_loopback_fails(host: Host) -> None:
    assert not _loopback(host, "local0", "local1")


def test_ns_diff_global_to_global_loopback_ok(host: Host) -> None:
    assert _loopback(host, "global0", "global1")


def test_ns_same_local_loopback_ok(host: Host) -> None:
    assert _loopback(host, "local0", "local0")


# Local namespaces ---------------------------------------------------------------------------------------------------


def _all_have_the_cid(host: Host, *places: str) -> None:
    for place in places:
        assert host.machines[place].inside("cid", "-").right() == {"cid": str(CID)}
        assert host.works(place)


def test_ns_local_same_cid_ok(host: Host) -> None:
    host.vm("local0")
    host.vm("local1")
    _all_have_the_cid(host, "local0", "local1")


def test_ns_same_local_host_connect_to_local_vm_ok(host: Host) -> None:
    everything(GuestServes(host, "local0", host.vm("local0")))


def test_ns_same_local_vm_connect_to_local_host_ok(host: Host) -> None:
    everything(GuestAsks(host, "local0", host.vm("local0")))


def _host_does_not_reach(host: Host, client: str, server: str) -> None:
    """The guest in `server` listens; TEST does not arrive from `client`, and does from the guest's own place."""
    vm = host.vm(server)
    vm.guest.run("rm -f /tmp/came")
    vm.inside("exec", f"vsock-listen:{PORT}", "'cat >> /tmp/came'").listening()
    done = host.run("connect", str(CID), str(PORT), within=client, data="TEST")
    assert (done.returncode, done.stdout) == (1, "")
    # Not even that there is such a VM can be seen.
    assert done.stderr.splitlines()[0].endswith("(ENODEV)"), done
    vm.guest.run("test ! -e /tmp/came")
    host.ok("connect", str(CID), str(PORT), within=server, data="TEST")
    assert vm.guest.run("cat /tmp/came") == "TEST"


def _guest_does_not_reach(host: Host, vm: str, server: str) -> None:
    """The guest in `vm` does not reach a listener in `server`, and one in its own place it does."""
    guest = host.vm(vm)
    with host.listening(server, cid=2) as foreign:
        result = guest.inside("connect", f"vsock:2:{foreign.port}").result()
        assert result["error"] == "ECONNRESET"
        nobody_came(foreign)
    with host.listening(vm, cid=2) as own:
        probe = guest.inside("talk", f"vsock:2:{own.port}", "send=1:1000", "shutdown", "eof")
        sock, cid = accept(own)
        with sock:
            assert cid == CID
            sock.settimeout(LIMIT)
            assert len(sock.recv(1000, 0x100)) == 1000  # MSG_WAITALL
        probe.right()


def test_ns_diff_local_host_connect_to_local_vm_fails(host: Host) -> None:
    # As in the original, the other local namespace has no VM of its own: that one would be reached.
    host.end_vms("local0")
    host.daemon("local0")
    _host_does_not_reach(host, "local0", "local1")


def test_ns_diff_global_host_connect_to_local_vm_fails(host: Host) -> None:
    host.end_vms(*GLOBAL_PLACES)
    host.daemon("global0")
    _host_does_not_reach(host, "global0", "local0")


def test_ns_diff_local_vm_connect_to_local_host_fails(host: Host) -> None:
    host.daemon("local1")
    _guest_does_not_reach(host, "local0", "local1")


# The same CID, in one order and the other ---------------------------------------------------------------------------


def test_ns_local_global_same_cid_ok(host: Host) -> None:
    host.end_vms(*GLOBAL_PLACES)
    host.vm("local0")
    host.start_vm("global0")
    _all_have_the_cid(host, "local0", "global0")


def test_ns_global_local_same_cid_ok(host: Host) -> None:
    host.end_vms("local0")
    host.vm("global0")
    host.start_vm("local0")
    _all_have_the_cid(host, "global0", "local0")


def test_ns_global_same_cid_fails(host: Host) -> None:
    host.vm("global0")
    with pytest.raises(WaitError, match="QEMU did not start"):
        host.start_vm("global1")
    # The log says why, and who has the CID; that one is not disturbed.
    host.daemon("global1").lines.wait_line(f"CID {CID} is taken by VM 'global0'")
    _all_have_the_cid(host, "global0")


# Two global namespaces ----------------------------------------------------------------------------------------------


def test_ns_diff_global_host_connect_to_global_vm_ok(host: Host) -> None:
    host.daemon("global1")
    everything(GuestServes(host, "global1", host.vm("global0")))


def test_ns_diff_global_vm_connect_to_global_host_ok(host: Host) -> None:
    host.daemon("global1")
    everything(GuestAsks(host, "global1", host.vm("global0")))


def test_ns_diff_global_vm_connect_to_local_host_fails(host: Host) -> None:
    host.daemon("local0")
    _guest_does_not_reach(host, "global0", "local0")


# Namespaces that are deleted ----------------------------------------------------------------------------------------


def _goes_on(host: Host, *deleted: str) -> None:
    """A VM in global0, an application in global1 that is connected to it: whichever is deleted, all goes on."""
    vm = host.vm("global0")
    host.daemon("global1")
    vm.guest.run("rm -f /tmp/came")
    vm.inside("exec", f"vsock-listen:{PORT}", "'cat > /tmp/came'").listening()
    try:
        with host.connect("global1", CID, PORT) as sock:
            for place in deleted:
                host.delete(place)
            sock.sendall(b"TEST")
            wait_for(lambda: vm.guest.run("cat /tmp/came") == "TEST", "what was written after the deletion arrives")
        # The CID is still taken, and the VM can be reached anew.
        if "global1" not in deleted:
            host.ok("connect", str(CID), str(PORT), within="global1", data="AGAIN")
            wait_for(lambda: vm.guest.run("cat /tmp/came") == "AGAIN", "a new connection arrives")
        with pytest.raises(WaitError, match="QEMU did not start"):
            host.start_vm("init")
        host.daemon("init").lines.wait_line(f"CID {CID} is taken by VM 'global0'")
    finally:
        # For those that follow: namespaces of that name, and no VM in one that has none.
        if "global0" in deleted:
            host.end_vms("global0")
        for place in deleted:
            host.add(place)


def test_ns_delete_vm_ok(host: Host) -> None:
    _goes_on(host, "global0")


def test_ns_delete_host_ok(host: Host) -> None:
    _goes_on(host, "global1")


def test_ns_delete_both_ok(host: Host) -> None:
    _goes_on(host, "global0", "global1")


# The guest's own namespaces -----------------------------------------------------------------------------------------


def test_only_listeners_in_global_namespaces_of_the_guest_can_be_reached(host: Host) -> None:
    """The device belongs to the guest's kernel, which lets its global namespaces have it and no other."""
    vm = host.vm("init")
    assert vm.guest.run("cat /proc/sys/net/vsock/ns_mode /proc/sys/net/vsock/child_ns_mode") == "global\nglobal"

    def reached(port: int, prefix: str) -> bool:
        server = Probe(
            vm.guest.start(f"exec {prefix} probe exec vsock-listen:{port} 'cat /proc/sys/net/vsock/ns_mode'")
        )
        try:
            server.listening()
            with host.connect("init", CID, port) as sock:
                sock.settimeout(LIMIT)
                assert sock.recv(100) == b"global\n"
                return True
        except ConnectionResetError:
            assert server.running.alive()
            return False
        finally:
            server.close()

    # A namespace in between takes the setting, so that the guest stays what it was.
    local = "unshare -n sh -c 'echo local > /proc/sys/net/vsock/child_ns_mode && exec unshare -n \"$@\"' sh"
    assert vm.guest.run(f"{local} cat /proc/sys/net/vsock/ns_mode") == "local"
    assert reached(8001, "")
    assert reached(8002, "unshare -n")
    assert not reached(8003, local)
    # And up to the host, too, only global ones find the way.
    with host.listening("init", cid=2) as server:
        result = vm.guest.run(f"{local} probe connect vsock:2:{server.port}")
        assert "error=ENETUNREACH" in result
        nobody_came(server)
        assert "error=OK" in vm.guest.run(f"unshare -n probe connect vsock:2:{server.port}")
        accept(server)[0].close()


@pytest.mark.parametrize("place", ["local0", "global0"])
def test_a_connection_without_a_listener_is_reset(host: Host, place: str) -> None:
    host.vm(place)
    with pytest.raises(OSError) as caught:  # noqa: PT011
        host.connect(place, CID, 9999)
    assert _code(caught) == "ECONNRESET"
