"""Socket activation under a real systemd: QEMU's connection starts the service."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from .conftest import MakeService, Service, vm
from .container import Container

UNITS = ("vhostvsock-web@act.socket", "vhostvsock-db@act.socket")


@pytest.fixture
def activated(container: Container, service: MakeService) -> Iterator[Service]:
    """A service of two VMs whose sockets are the manager's; it does not run yet."""
    made = service("act", vm("act") + 'socket_mode = "0660"\nsocket_owner = ":kvm"\n' + vm("act2", 43, "db"))
    container.run("vhostvsock", "systemd", "sockets", "act")
    container.run("systemctl", "daemon-reload")
    container.run("systemctl", "start", *UNITS)
    try:
        yield made
    finally:
        container.run("systemctl", "stop", *UNITS)
        container.run("vhostvsock", "systemd", "sockets", "act", "--remove")
        container.run("systemctl", "daemon-reload")


def sockets(container: Container) -> set[str]:
    return {name for name in os.listdir(container.root / "run/vhostvsock") if name.startswith("act")}


def test_a_connection_starts_the_service_which_serves_the_managers_sockets(
    container: Container, activated: Service
) -> None:
    assert activated.state() == "inactive"
    said = container.run("stat", "--format=%U:%G %a", "/run/vhostvsock/act.vhost").strip()
    assert said == "vhostvsock:kvm 660"
    inode = (container.root / "run/vhostvsock/act.vhost").stat().st_ino
    assert activated.cid() == "cid 42"
    assert activated.state() == "active"
    assert activated.cid("act2") == "cid 43"
    # Bound by the manager: no lock file, and the very same socket.
    clients = {name + kind for name in ("act", "act2") for kind in ("", ".seqpacket")}
    assert sockets(container) == {"act.vhost", "act2.vhost", *clients, *(f"{client}.lock" for client in clients)}
    assert (container.root / "run/vhostvsock/act.vhost").stat().st_ino == inode


def test_the_sockets_outlive_the_service_and_start_it_again(container: Container, activated: Service) -> None:
    for _ in range(2):
        assert activated.cid() == "cid 42"
        container.run("systemctl", "stop", activated.unit)
        assert sockets(container) == {"act.vhost", "act2.vhost"}


def test_a_service_that_is_killed_gets_its_sockets_back(container: Container, activated: Service) -> None:
    activated.start()
    container.run("kill", "-KILL", str(activated.pid()))
    # Nobody is turned away in between: the connection waits for the next daemon.
    assert activated.cid() == "cid 42"
    activated.wait_restarted(0)


def test_a_socket_that_no_vm_has_is_told(container: Container, activated: Service) -> None:
    container.write("/etc/vhostvsock/act.toml", vm("act"))
    activated.start()
    assert activated.cid() == "cid 42"
    assert "/run/vhostvsock/act2.vhost (db): the service manager listens there" in container.journal(activated.unit)


def test_the_units_of_sockets_are_valid(container: Container, activated: Service) -> None:
    assert container.run("systemd-analyze", "verify", *UNITS) == ""
