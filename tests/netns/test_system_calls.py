"""System calls of a running daemon fail, as they do where a system has no descriptors, memory or disk left: newcomers
are refused or wait, those who are there go on, and afterwards everything is as it was.

Before: tracing.py makes calls of one thread fail. After: real clients and guests.
Rules:  - what must hold is the same in all cases; a case says which calls fail how, whom that concerns, and what
          becomes of him. That calls really failed is read in the trace.
        - no case says how long something takes: who waits is served when the calls work again, and not before.
"""

from __future__ import annotations

import contextlib
import os
import socket
import socketserver
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from harness.waiting import wait_for
from netns.serving import LIMIT, Lines, World
from netns.tracing import AT, failing
from netns.tracing import strace as strace

import vhostvsock

pytestmark = pytest.mark.usefixtures("strace")

ECHO, AT_PATH, AT_BRIDGE = 1234, 2000, 5000
NO_DESCRIPTORS = ("ENFILE", "EMFILE")
NO_MEMORY = ("ENOMEM", "ENOBUFS")
NO_DISK = ("ENOSPC", "EIO", "EROFS")


def thread_of(pid: int, name: str) -> int:
    """The thread of the VM with this name."""
    tasks = Path(f"/proc/{pid}/task").iterdir()
    (found,) = (int(task.name) for task in tasks if (task / "comm").read_text() == f"vs-{name}\n")
    return found


# Who may be there ---------------------------------------------------------------------------------------------------

SERVED, CLOSED = "served", "closed"


class Client:
    """A host application that asks for the echo of VM a, by the bridge or at the VM's own socket."""

    def __init__(self, path: Path, line: bytes) -> None:
        self._sock = socket.socket(socket.AF_UNIX)
        self._sock.settimeout(LIMIT)
        self._sock.connect(str(path))
        self._sock.sendall(line)

    def answer(self) -> str:
        try:
            said = self._sock.recv(200)
        except ConnectionResetError:  # closed with our line unread
            return CLOSED
        if not said.startswith(b"OK "):
            return said.decode().strip() or CLOSED
        self.echo()
        return SERVED

    def echo(self) -> None:
        self.say()
        self.hear()

    def say(self) -> None:
        self._sock.sendall(b"hello")

    def hear(self) -> None:
        data = b""
        while len(data) < 5:
            data += self._sock.recv(5) or pytest.fail("the connection ended")
        assert data == b"hello"

    def close(self) -> None:
        self._sock.close()


class FrontEnd:
    """A QEMU, as far as the daemon can tell, that comes for VM c."""

    def __init__(self, world: World) -> None:
        self._guest = world.guest("c", None, ECHO)

    def answer(self) -> str:
        said = self._guest.next()
        return SERVED if said == "attached 44" else said

    def close(self) -> None:
        self._guest.end("kill")


class Asking:
    """The guest of VM a connects to a host application."""

    def __init__(self, guest: Lines, port: int) -> None:
        self._guest = guest
        guest.tell(f"connect {port} hello")

    def answer(self) -> str:
        said = self._guest.next()
        return SERVED if said == "reply hello" else said

    def close(self) -> None:
        pass


class Talking:
    """Bytes on the connection to VM a that there is already."""

    def __init__(self, there: Client) -> None:
        self._there = there
        there.say()

    def answer(self) -> str:
        self._there.hear()
        return SERVED

    def close(self) -> None:
        pass


class Echo(socketserver.StreamRequestHandler):
    def handle(self) -> None:
        with contextlib.suppress(OSError):  # a guest that was refused after all
            self.wfile.write(self.rfile.read())


class Server(socketserver.ThreadingUnixStreamServer):
    daemon_threads = True


def answer_each(listener: vhostvsock.Server) -> None:
    """Send back what comes, one connection after the other, until the daemon is gone."""
    with contextlib.suppress(OSError):
        for sock, _ in listener:
            with sock:
                sock.sendall(sock.recv(200))


class Scene:
    """A daemon with VMs a and b, whose guests are up and have a connection each, and c, for which nobody came yet."""

    def __init__(self, world: World, stack: contextlib.ExitStack) -> None:
        self.world = world
        self.daemon = world.daemon({"a": 42, "b": 43, "c": 44})
        self.pid = self.daemon.popen.pid
        (bridge,) = (world.runtime_dir / "bridge").glob("*.sock")
        guests = {name: world.guest(name, None, ECHO) for name in "ab"}
        assert [guest.next() for guest in guests.values()] == ["attached 42", "attached 43"]
        self.there = {name: Client(world.directory / f"{name}.v", f"CONNECT {ECHO}\n".encode()) for name in "ab"}
        for client in self.there.values():
            stack.callback(client.close)
            assert client.answer() == SERVED
        server = stack.enter_context(Server(str(world.directory / f"a.v_{AT_PATH}"), Echo))
        threading.Thread(target=server.serve_forever, daemon=True).start()
        stack.callback(server.shutdown)
        listener = stack.enter_context(vhostvsock.create_server(AT_BRIDGE, runtime_dir=str(world.runtime_dir)))
        threading.Thread(target=answer_each, args=(listener,), daemon=True).start()
        self.kinds: dict[str, Callable[[], Client | FrontEnd | Asking | Talking]] = {
            "a client of the bridge": lambda: Client(bridge, f"CONNECT 42 {ECHO}\n".encode()),
            "a client of the VM's socket": lambda: Client(world.directory / "a.v", f"CONNECT {ECHO}\n".encode()),
            "a front-end": lambda: FrontEnd(world),
            "a guest, to a path": lambda: Asking(guests["a"], AT_PATH),
            "a guest, to the bridge": lambda: Asking(guests["a"], AT_BRIDGE),
            "who is there": lambda: Talking(self.there["a"]),
        }

    def everybody_is_served(self) -> None:
        for kind in self.kinds.values():
            with contextlib.closing(kind()) as one:
                assert one.answer() == SERVED

    def descriptors(self) -> int:
        return len(os.listdir(f"/proc/{self.pid}/fd"))


@pytest.fixture
def scene(served: World) -> Iterator[Scene]:
    with contextlib.ExitStack() as stack:
        yield Scene(served, stack)


# What fails, and whom it concerns -----------------------------------------------------------------------------------

WAITS = "waits"
REFUSED = "refused"


@dataclass(frozen=True)
class Case:
    """These calls of a thread fail while somebody comes; he waits until they work, is refused, or is told just this."""

    thread: str  # "main", or the name of a VM
    calls: str  # as NAME, or NAME:WHEN in strace's words
    errors: tuple[str, ...]
    who: str
    fate: str

    @property
    def names(self) -> set[str]:
        """The calls."""
        return {call.partition(":")[0] for call in self.calls.split(",")}

    def __str__(self) -> str:
        return f"{self.thread}-{self.calls}-{self.who}".replace(" ", "_")


BRIDGE, OWN, FRONT_END = "a client of the bridge", "a client of the VM's socket", "a front-end"
TO_PATH, TO_BRIDGE, THERE = "a guest, to a path", "a guest, to the bridge", "who is there"

CASES = (
    Case("main", "accept4", NO_DESCRIPTORS + NO_MEMORY, BRIDGE, WAITS),
    Case("main", "accept4", NO_DESCRIPTORS + NO_MEMORY, FRONT_END, WAITS),
    Case("a", "accept4", (*NO_DESCRIPTORS, *NO_MEMORY, "EPERM"), OWN, WAITS),
    # The first two take the listeners out; looking after them again is what fails.
    Case("a", "accept4,epoll_ctl:3+", ("ENOMEM", "ENOSPC"), OWN, WAITS),
    # Taking a descriptor out does not fail in any system. What comes after that is the listener's, then the client's.
    Case("main", "epoll_ctl:2..3", ("ENOMEM", "ENOSPC"), BRIDGE, "ERR {}"),
    Case("a", "epoll_ctl", ("ENOMEM", "ENOSPC"), OWN, CLOSED),
    Case("a", "epoll_ctl", ("ENOMEM", "ENOSPC"), TO_PATH, REFUSED),
    Case("c", "epoll_ctl", ("ENOMEM", "ENOSPC"), FRONT_END, REFUSED),
    Case("main", "recvmsg", NO_MEMORY, BRIDGE, "ERR {}"),
    Case("main", "socketpair", NO_DESCRIPTORS + NO_MEMORY, TO_BRIDGE, REFUSED),
    Case("main", "sendmsg", (*NO_MEMORY, "ETOOMANYREFS"), TO_BRIDGE, REFUSED),
    Case("a", "socket", NO_DESCRIPTORS + NO_MEMORY, TO_PATH, REFUSED),
    Case("a", "connect", NO_MEMORY, TO_PATH, REFUSED),
    Case("a", "recvmsg", NO_MEMORY, THERE, WAITS),
    Case("a", "sendmsg,sendto", NO_MEMORY, THERE, WAITS),
    Case("c", "recvmsg", NO_MEMORY, FRONT_END, REFUSED),
    Case("c", "mmap", ("ENOMEM",), FRONT_END, REFUSED),
    # The registry's.
    Case("main", "pwrite64", NO_DISK, FRONT_END, REFUSED),
    Case("main", f"unlink{AT}", NO_DISK, FRONT_END, REFUSED),
    Case("main", "openat", (*NO_DESCRIPTORS, *NO_DISK), FRONT_END, REFUSED),
    Case("main", "fcntl", ("ENOLCK",), FRONT_END, REFUSED),
    Case("main", "pwrite64", NO_DISK, BRIDGE, SERVED),
    Case("main", "openat", NO_DESCRIPTORS, BRIDGE, "ERR EIO"),
    Case("main", "pread64", ("EIO",), BRIDGE, "ERR EIO"),
    Case("main", "pread64", ("EIO",), FRONT_END, REFUSED),
)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_calls_that_fail_cost_newcomers_at_most_their_turn(scene: Scene, case: Case) -> None:
    thread = scene.pid if case.thread == "main" else thread_of(scene.pid, case.thread)
    before = scene.descriptors()
    for error in case.errors:
        with contextlib.ExitStack() as stack:
            with failing(thread, case.calls, error, scene.world.directory / f"trace-{error}") as failed:
                newcomer = stack.enter_context(contextlib.closing(scene.kinds[case.who]()))
                if case.fate == WAITS:
                    wait_for(lambda failed=failed: case.names <= set(failed()), f"calls that fail with {error}", LIMIT)
                    tried = len(failed())
                    time.sleep(0.3)  # an interval to measure, not a wait
                    assert len(failed()) - tried < 200, "the thread is busy with it"
                else:
                    answer = newcomer.answer()
                    assert case.fate == SERVED or case.names <= set(failed())
                scene.there["b"].echo()
            if case.fate == WAITS:
                assert newcomer.answer() == SERVED, error
            elif case.fate == REFUSED:
                assert answer != SERVED, error
            else:
                assert answer.startswith(case.fate.format(error)), error
        scene.everybody_is_served()
        for client in scene.there.values():
            client.echo()
        wait_for(lambda: scene.descriptors() <= before, "nothing that came is left", LIMIT)
    assert scene.daemon.popen.poll() is None
    assert scene.daemon.end() == 0
    assert not [line for line in scene.daemon.rest() if "Traceback" in line or "started again" in line]
