"""One container with systemd and vhostvsock installed in it, and services in namespaces of their own for each test."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Callable, Iterator

import pytest

from .container import Container, wait_for

VM = """\
[[vm]]
name = "{name}"
cid = {cid}
socket = "/run/vhostvsock/{socket}.vhost"
uds_path = "/run/vhostvsock/{socket}"
"""


def vm(socket: str, cid: int = 42, name: str = "web") -> str:
    """A VM's table; `socket` tells it from those of other services."""
    return VM.format(name=name, cid=cid, socket=socket)


class Service:
    """vhostvsock@NAME, with the namespace NAME."""

    def __init__(self, container: Container, name: str) -> None:
        self.container = container
        self.name = name
        self.unit = f"vhostvsock@{name}.service"

    def start(self) -> None:
        self.container.run("systemctl", "start", self.unit)

    def pid(self) -> int:
        """The daemon's pid inside."""
        return int(self.container.show(self.unit, "MainPID"))

    def restarts(self) -> int:
        return int(self.container.show(self.unit, "NRestarts"))

    def state(self) -> str:
        return self.container.show(self.unit, "ActiveState")

    def cid(self, socket: str = "") -> str:
        """What a front-end in the namespace is told when it asks the device."""
        path = f"/run/vhostvsock/{socket or self.name}.vhost"
        return self.container.run(*self.container.script("front_end.py", path), netns=self.name).strip()

    def wait_restarted(self, before: int) -> None:
        """Wait until the manager has started it again after `before` restarts."""
        wait_for(lambda: self.restarts() > before and self.state() == "active", f"{self.unit} is active again")

    def override(self, text: str) -> None:
        """Change its unit, for this test."""
        self.container.write(f"/run/systemd/system/{self.unit}.d/test.conf", text)
        self.container.run("systemctl", "daemon-reload")


MakeService = Callable[..., Service]


@pytest.fixture(scope="session")
def container() -> Iterator[Container]:
    """A container with the services installed, as a user installs them."""
    with Container() as made:
        install(made)
        yield made


def install(container: Container) -> None:
    container.run("vhostvsock", "systemd", "install")
    container.run("systemd-sysusers")
    container.run("systemd-tmpfiles", "--create")
    container.run("systemctl", "daemon-reload")


@pytest.fixture
def service(container: Container) -> Iterator[MakeService]:
    """Makes a namespace with a configuration; namespace, configuration and service go with the test."""
    with contextlib.ExitStack() as stack:

        def make(name: str, config: str, mode: str = "global", **dropins: str) -> Service:
            container.run("vhostvsock", "netns", "add", name, "--mode", mode)
            stack.callback(container.run, "ip", "netns", "del", name)
            made = Service(container, name)
            file = f"/etc/vhostvsock/{name}.toml"
            container.write(file, config)
            for key, text in dropins.items():
                container.write(f"{file}.d/{key}.toml", text)
            stack.callback(container.run, "rm", "-rf", file, f"{file}.d", f"/run/systemd/system/{made.unit}.d")
            stack.callback(container.run, "systemctl", "reset-failed", made.unit, check=False)
            stack.callback(container.run, "systemctl", "stop", made.unit)
            return made

        yield make


@pytest.fixture
def background(container: Container) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Runs something inside that ends with the test at the latest."""
    with contextlib.ExitStack() as stack:

        def run(*args: str, netns: str | None = None) -> subprocess.Popen[str]:
            popen = subprocess.Popen(
                container.command(*args, netns=netns),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                text=True,
            )
            stack.enter_context(popen)
            stack.callback(popen.kill)
            return popen

        yield run
