"""Services under a real systemd: a namespace each, restarted when killed or hung, with no rights to speak of."""

from __future__ import annotations

import json
import os
import resource
import subprocess
from collections.abc import Callable

import pytest

from .conftest import MakeService, vm
from .container import Container, wait_for

CAP_SYS_RESOURCE = 24
# Long enough for a healthy daemon on a busy machine.
WATCHDOG_SECONDS = 3

Background = Callable[..., subprocess.Popen[str]]


def stay(container: Container, background: Background, name: str) -> str:
    """What a front-end in a namespace, on its service's socket, is told; it stays there if it may."""
    script = container.script("front_end.py", f"/run/vhostvsock/{name}.vhost", "--stay")
    front_end = background(*script, netns=name)
    assert front_end.stdout is not None
    return front_end.stdout.readline().strip()


def test_two_local_namespaces_have_the_same_cid_at_once(
    container: Container, service: MakeService, background: Background
) -> None:
    blue, red = (service(name, vm(name), mode="local") for name in ("blue", "red"))
    for each in (blue, red):
        each.start()
    for each in (blue, red):
        assert stay(container, background, each.name) == "cid 42"
        assert container.run("ip", "netns", "identify", str(each.pid())).strip() == each.name
    seen = container.run("vhostvsock", "ls", "--all")
    assert seen.count(" 42 ") == 2
    assert container.run("vhostvsock", "ls", netns="blue").count(" 42 ") == 1


def test_of_two_global_namespaces_only_one_has_the_cid_and_the_journal_names_the_holder(
    container: Container, service: MakeService, background: Background
) -> None:
    blue, red = service("blue", vm("blue", name="one")), service("red", vm("red", name="two"))
    for each in (blue, red):
        each.start()
    assert stay(container, background, "blue") == "cid 42"
    assert stay(container, background, "red") == ""
    wait_for(lambda: "CID 42 is taken by VM 'one'" in container.journal(red.unit), "the journal names the holder")


def test_the_daemon_has_no_rights_to_speak_of(container: Container, service: MakeService) -> None:
    blue = service("blue", vm("blue"))
    blue.start()
    process = container.root / "proc" / str(blue.pid())
    status = dict(line.split(":\t", 1) for line in (process / "status").read_text().splitlines() if ":\t" in line)
    uid = container.run("id", "-u", "vhostvsock").strip()
    assert uid != "0"
    assert set(status["Uid"].split()) == {uid}
    for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"):
        assert int(status[name], 16) == 0, name
    assert (status["NoNewPrivs"], status["Seccomp"]) == ("1", "2")
    limits = dict(line.split("  ", 1) for line in (process / "limits").read_text().splitlines())
    assert int(limits["Max open files"].split()[0]) == descriptors(container)
    assert int(limits["Max core file size"].split()[0]) == 0


def descriptors(container: Container) -> int:
    """As many descriptors as the unit asks for, or as the machine lets its manager give."""
    status = (container.root / "proc/1/status").read_text()
    capabilities = int(status.partition("CapEff:\t")[2].split()[0], 16)
    if capabilities >> CAP_SYS_RESOURCE & 1:
        return min(1_048_576, int((container.root / "proc/sys/fs/nr_open").read_text()))
    return resource.getrlimit(resource.RLIMIT_NOFILE)[1]


def test_a_service_that_is_killed_comes_back_on_its_sockets(
    container: Container, service: MakeService, background: Background
) -> None:
    blue = service("blue", vm("blue"))
    blue.start()
    for count in range(7):  # more than the five starts that systemd allows by default
        front_end = background(*container.script("front_end.py", "/run/vhostvsock/blue.vhost", "--stay"), netns="blue")
        assert front_end.stdout is not None
        assert front_end.stdout.readline() == "cid 42\n"
        container.run("kill", "-KILL", str(blue.pid()))
        assert front_end.stdout.readline() == "gone\n"
        blue.wait_restarted(count)
        assert blue.cid() == "cid 42"
    assert "stale" not in container.journal(blue.unit)


def test_a_service_that_stops_takes_its_own_sockets_away_and_no_others(
    container: Container, service: MakeService
) -> None:
    blue, red = service("blue", vm("blue")), service("red", vm("red"))
    for each in (blue, red):
        each.start()
    runtime = container.root / "run/vhostvsock"
    assert {"blue", "blue.vhost", "red", "red.vhost"} <= set(os.listdir(runtime))
    container.run("systemctl", "stop", blue.unit)
    left = os.listdir(runtime)
    assert not [name for name in left if name.startswith("blue")]
    assert red.cid() == "cid 42"
    container.run("systemctl", "stop", red.unit)
    assert runtime.is_dir()


def test_the_watchdog_leaves_a_healthy_daemon_alone_and_kills_one_that_hangs(
    container: Container, service: MakeService
) -> None:
    blue = service("blue", vm("blue"))
    blue.override(f"[Service]\nWatchdogSec={WATCHDOG_SECONDS}s\n")
    blue.start()
    pid, since = blue.pid(), int(container.show(blue.unit, "WatchdogTimestampMonotonic"))
    wait_for(
        lambda: int(container.show(blue.unit, "WatchdogTimestampMonotonic")) - since > WATCHDOG_SECONDS * 1_200_000,
        "signs of life for more than a period",
    )
    assert (blue.pid(), blue.restarts()) == (pid, 0)
    container.run("kill", "-STOP", str(pid))
    blue.wait_restarted(0)
    assert blue.cid() == "cid 42"
    assert "Watchdog timeout" in container.journal(blue.unit)


def test_a_vm_whose_thread_hangs_is_a_daemon_that_hangs(
    container: Container, service: MakeService, background: Background
) -> None:
    blue = service("blue", vm("blue") + vm("blue2", 43, "db"))
    blue.override(f"[Service]\nWatchdogSec={WATCHDOG_SECONDS}s\n")
    blue.start()
    frozen = background(*container.script("freeze.py", str(blue.pid()), "vs-db"))
    assert frozen.stdout is not None
    assert frozen.stdout.readline() == "frozen\n"
    blue.wait_restarted(0)
    said = container.journal(blue.unit)
    assert "no answer from the thread of db" in said
    assert "Watchdog timeout" in said
    assert (blue.cid(), blue.cid("blue2")) == ("cid 42", "cid 43")


def test_the_manager_knows_which_vms_there_are_and_how_they_are(
    container: Container, service: MakeService, background: Background
) -> None:
    blue = service("blue", vm("blue"), more=vm("blue2", 43, "db"), web='[[vm]]\nname = "web"\ncid = 50\n')
    blue.start()
    wait_for(
        lambda: (
            container.show(blue.unit, "StatusText") == "web (cid 50) waiting for QEMU, db (cid 43) waiting for QEMU"
        ),
        "both VMs in the status",
    )
    front_end = background(*container.script("front_end.py", "/run/vhostvsock/blue2.vhost", "--stay"), netns="blue")
    assert front_end.stdout is not None
    assert front_end.stdout.readline() == "cid 43\n"
    wait_for(lambda: "db (cid 43) QEMU attached" in container.show(blue.unit, "StatusText"), "attached")


def test_the_journal_gets_plain_lines_with_a_priority(container: Container, service: MakeService) -> None:
    blue = service("blue", vm("blue"))
    blue.start()
    blue.cid()
    container.run("systemctl", "stop", blue.unit)
    container.run("journalctl", "--sync")
    text = container.run("journalctl", "--output=json", f"_SYSTEMD_UNIT={blue.unit}")
    entries = {entry["MESSAGE"]: entry["PRIORITY"] for entry in map(json.loads, text.splitlines())}
    assert entries["web: front-end attached"] == "6"
    assert all(not message.startswith(("<", "20")) for message in entries)


def test_without_its_namespace_a_service_does_not_start(container: Container) -> None:
    said = container.run("systemctl", "start", "vhostvsock@nowhere.service", check=False)
    assert "ssert" in said
    assert container.show("vhostvsock@nowhere.service", "AssertResult") == "no"


def test_a_wrong_configuration_is_told_and_not_tried_again(container: Container, service: MakeService) -> None:
    blue = service("blue", vm("blue", cid=2))
    assert "failed" in container.run("systemctl", "start", blue.unit, check=False)
    wait_for(lambda: blue.state() == "failed", "the service has failed")
    assert blue.restarts() == 0
    assert "/etc/vhostvsock/blue.toml: vm 'web': cid" in container.journal(blue.unit)


def test_the_hosts_own_namespace_has_a_service_too(container: Container) -> None:
    container.write("/etc/vhostvsock.toml", vm("host", 77))
    try:
        container.run("systemctl", "start", "vhostvsock.service")
        path = "/run/vhostvsock/host.vhost"
        assert container.run(*container.script("front_end.py", path)).strip() == "cid 77"
    finally:
        container.run("systemctl", "stop", "vhostvsock.service")


@pytest.mark.parametrize("owner", [":kvm", "vhostvsock:kvm"])
def test_a_service_can_give_its_socket_to_the_group_of_qemu(
    container: Container, service: MakeService, owner: str
) -> None:
    blue = service("blue", vm("blue") + f'socket_mode = "0660"\nsocket_owner = "{owner}"\n')
    blue.start()
    said = container.run("stat", "--format=%U:%G %a", "/run/vhostvsock/blue.vhost").strip()
    assert said == "vhostvsock:kvm 660"
