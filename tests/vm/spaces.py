"""A host with the namespaces of the kernel's own tests: a daemon in each, and VMs that all have the same CID.

Before: test_namespaces.py and its neighbours say who is where. After: harness/machine.py boots the guests, the client
        library and the command line are the host applications.
Rules:  - Places: "init" is the namespace in which the tests run; the others are made by `vhostvsock netns add`, in a
          parent whose child mode was set, as the kernel's tests do it.
        - A socket of a host application is made by a thread in its namespace, or by a program that
          `ip netns exec` started there.
        - Two VMs of global namespaces cannot have the same CID: to ask for one ends the other.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import select
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from conftest import tool
from harness.machine import Kind, Machine
from harness.waiting import LIMIT, Process, WaitError

import vhostvsock
from vhostvsock.client import Server
from vhostvsock.registry.netns import open_namespace

CID = 1234
KIND = Kind("new", "10.0")
INIT = "init"
GLOBAL_PLACES = (INIT, "global0", "global1")
LOCAL_PLACES = ("local0", "local1")
PLACES = (*GLOBAL_PLACES, *LOCAL_PLACES)
PROGRAM = (sys.executable, "-m", "vhostvsock")
_numbers = itertools.count()


class Host:
    """Made, it has namespaces; daemons and VMs come when they are asked for."""

    def __init__(self, cid: int = CID, kind: Kind = KIND) -> None:
        self.cid = cid
        self._kind = kind
        self._stack = contextlib.ExitStack()
        self.directory = Path(self._stack.enter_context(tempfile.TemporaryDirectory(prefix="vv-", dir="/tmp")))
        self.runtime_dir = self.directory / "run"
        self.env = {"VHOSTVSOCK_RUNTIME_DIR": str(self.runtime_dir)}
        self.daemons: dict[str, Process] = {}
        self.machines: dict[str, Machine] = {}
        self._names: dict[str, str] = {}
        self._processes: list[Process] = []
        try:
            for mode in ("global", "local"):
                parent = f"{mode}-parent"
                self.add(parent)
                self.ok("netns", "child-mode", self.name(parent), mode)
            for place in PLACES:
                if place != INIT:
                    self.add(place)
        except BaseException:
            self.close()
            raise

    # Namespaces -----------------------------------------------------------------------------------------------------

    def name(self, place: str) -> str:
        """What the namespace is called in /run/netns."""
        return self._names[place]

    def add(self, place: str) -> None:
        """Make a namespace, in the parent of its mode, unless it is there."""
        if place in self._names:
            return
        name = f"vvt{os.getpid()}-{next(_numbers)}-{place}"
        parent = None if place.endswith("-parent") else f"{place[:-1]}-parent"
        self.ok("netns", "add", name, within=parent)
        self._names[place] = name

    def delete(self, place: str) -> None:
        """Remove the name; what is in the namespace stays."""
        self.ok("netns", "del", self._names[place])
        del self._names[place]

    def within(self, place: str | None) -> list[str]:
        """The words that run a command in a place."""
        return [] if place in (None, INIT) else [tool("ip"), "netns", "exec", self.name(str(place))]

    # Programs -------------------------------------------------------------------------------------------------------

    def run(self, *words: str, within: str | None = None, data: str = "") -> subprocess.CompletedProcess[str]:
        """The command `vhostvsock`, to its end."""
        return subprocess.run(
            [*self.within(within), *PROGRAM, *words],
            cwd=self.directory,
            env={**os.environ, **self.env},
            input=data,
            capture_output=True,
            text=True,
            timeout=LIMIT,
            check=False,
        )

    def ok(self, *words: str, within: str | None = None, data: str = "") -> str:
        done = self.run(*words, within=within, data=data)
        assert (done.returncode, done.stderr) == (0, ""), done
        return done.stdout

    def start(self, *words: str, within: str | None = None) -> Process:
        """The command `vhostvsock`, beside us, until the test's end."""
        process = Process([*self.within(within), *PROGRAM, *words], self.directory, name=" ".join(words), env=self.env)
        self._processes.append(process)
        return process

    def daemon(self, place: str) -> Process:
        """The daemon of a place, ready. It serves one VM, in the directory of that name."""
        if place not in self.daemons:
            (self.directory / place).mkdir()
            vm = ("--guest-cid", str(self.cid), "--socket", f"{place}/vh.sock", "--uds-path", f"{place}/v.sock")
            words = [*self.within(place), *PROGRAM, "run", *vm, "--name", place, "--no-parent", "-v"]
            self.daemons[place] = Process(words, self.directory, name=f"daemon in {place}", env=self.env)
            self.daemons[place].lines.wait_line("vhostvsock: ready:")
        return self.daemons[place]

    # VMs ------------------------------------------------------------------------------------------------------------

    def vm(self, place: str) -> Machine:
        """A VM that works, the one of the place; alone in its domain."""
        if place in GLOBAL_PLACES:
            self.end_vms(*(other for other in GLOBAL_PLACES if other != place))
        machine = self.machines.get(place)
        if machine is not None and not self.works(place):
            self.end_vms(place)
            machine = None
        return machine or self.start_vm(place)

    def works(self, place: str) -> bool:
        """Whether a byte goes to the VM of the place and back."""
        machine = self.machines[place]
        server = machine.inside("echo", "vsock-listen:65000")
        try:
            server.listening()
            with self.connect(place, self.cid, 65000) as sock:
                sock.settimeout(LIMIT)
                sock.sendall(b"x")
                return sock.recv(1) == b"x"
        except (WaitError, OSError):
            return False
        finally:
            server.close()

    def start_vm(self, place: str) -> Machine:
        """Start a VM, whoever else may be there. Raises WaitError where it does not come up."""
        machine = Machine(self._kind, self.directory / place, self.daemon(place), self.within(place))
        try:
            machine.boot()
        except BaseException:
            machine.close()
            raise
        self.machines[place] = machine
        return machine

    def end_vms(self, *places: str) -> None:
        """End VMs; the CID is free when this returns."""
        for place in places:
            if (machine := self.machines.pop(place, None)) is not None:
                lines = self.daemons[place].lines
                seen = lines.count()
                machine.close()
                lines.wait_line("front-end gone", since=seen)

    # Host applications ----------------------------------------------------------------------------------------------

    def connect(self, place: str, cid: int, port: int) -> socket.socket:
        """A connection whose socket is made in the place."""
        with open_namespace(None if place == INIT else self.name(place)) as netns:
            runtime_dir = str(self.runtime_dir)
            return netns.run(lambda: vhostvsock.connect(cid, port, timeout=LIMIT, runtime_dir=runtime_dir))

    @contextlib.contextmanager
    def listening(self, place: str, cid: int) -> Iterator[Server]:
        """A listener in the place, on any free port: for guests (CID 2), for host applications (1)."""
        with open_namespace(None if place == INIT else self.name(place)) as netns:
            runtime_dir = str(self.runtime_dir)
            server = netns.run(lambda: vhostvsock.create_server(cid=cid, runtime_dir=runtime_dir))
        with server:
            yield server

    def listen(self, place: str, cid: int, *options: str) -> tuple[Process, int]:
        """`vhostvsock listen` in the place, and its port."""
        process = self.start("listen", "any", "--cid", str(cid), *options, within=place)
        return process, int(process.lines.wait_line("listening on port ").split()[-1])

    # The end --------------------------------------------------------------------------------------------------------

    def end_programs(self) -> None:
        """What a test started."""
        processes, self._processes = self._processes, []
        for process in processes:
            process.close()
        for machine in self.machines.values():
            machine.end_probes()

    def close(self) -> None:
        self.end_programs()
        for machine in self.machines.values():
            machine.close()
        for daemon in self.daemons.values():
            daemon.close()
        for name in self._names.values():
            subprocess.run([tool("ip"), "netns", "del", name], check=False)
        self._stack.close()


def accept(server: Server) -> tuple[socket.socket, int]:
    """The next connection, soon, and the CID of its other end."""
    assert select.select([server], [], [], LIMIT)[0], "no connection came"
    sock, (cid, _) = server.accept()
    return sock, cid


def nobody_came(server: Server) -> None:
    """No connection waits. Of use when whoever tried has had an answer."""
    assert select.select([server], [], [], 0)[0] == []
