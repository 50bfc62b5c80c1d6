"""What runs in a guest that is itself a host: daemons, small guests and applications in its namespaces.

Before: checks.py, which the agent of the guest starts. After: vhostvsock as it is installed there.
Rules:  - the time limit is that of whoever waits for the checks, outside.
        - everything is in /w, and ends with the checks.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import subprocess
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TypeVar

import vhostvsock
from vhostvsock.client import list_vms
from vhostvsock.registry.netns import open_namespace

HERE = Path("/w")
ECHO = 1234
_T = TypeVar("_T")


def within(namespace: str | None) -> list[str]:
    """The words that run a command in a namespace."""
    return [] if namespace is None else ["nsenter", f"--net=/run/netns/{namespace}"]


def in_netns(namespace: str | None, work: Callable[[], _T]) -> _T:
    """Do something in a namespace, in a thread."""
    with open_namespace(namespace) as found:
        return found.run(work)


def command(*words: str, namespace: str | None = None) -> tuple[int, str]:
    """`vhostvsock ...`: exit code, and what it said."""
    done = subprocess.run([*within(namespace), "vhostvsock", *words], capture_output=True, text=True, check=False)
    return done.returncode, done.stdout + done.stderr


def connect(cid: int, port: int, namespace: str | None = None, runtime_dir: str | None = None) -> str:
    """What comes back for a hello, or the errno's name."""

    def talk() -> str:
        try:
            with vhostvsock.connect(cid, port, runtime_dir=runtime_dir) as sock:
                sock.sendall(b"hello")
                sock.shutdown(socket.SHUT_WR)
                return b"".join(iter(lambda: sock.recv(65536), b"")).decode()
        except OSError as error:
            return errno.errorcode[error.errno or 0]

    return in_netns(namespace, talk)


class Listener:
    """A port in a namespace, with an echo on each connection, one after the other. Ends with the process."""

    def __init__(self, cid: int, namespace: str | None = None) -> None:
        self._server = in_netns(namespace, lambda: vhostvsock.create_server(cid=cid))
        self.port = self._server.port
        # (CID of the other end, what it sent)
        self.came: list[tuple[int, bytes]] = []
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        with contextlib.suppress(ConnectionResetError):  # the daemon has ended
            for sock, (cid, _) in self._server:
                with sock:
                    data = b"".join(iter(partial(sock.recv, 65536), b""))
                    self.came.append((cid, data))
                    sock.sendall(data)


class Program:
    """A process whose lines are waited for."""

    def __init__(self, words: list[str], cwd: Path, env: dict[str, str], user: int | None) -> None:
        self.popen = subprocess.Popen(
            words,
            cwd=cwd,
            env={**os.environ, **env},
            user=user,
            group=user,
            extra_groups=None if user is None else [],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def wait(self, part: str) -> str:
        """The next line with `part` in it."""
        assert self.popen.stdout is not None
        seen = []
        for line in self.popen.stdout:
            seen.append(line)
            if part in line:
                return line.rstrip("\n")
        raise AssertionError(f"no line with {part!r}: {seen}")

    def tell(self, line: str) -> None:
        assert self.popen.stdin is not None
        self.popen.stdin.write(line + "\n")
        self.popen.stdin.flush()

    def end(self) -> None:
        self.popen.kill()
        self.popen.wait()


class Middle:
    """Programs that end together."""

    def __init__(self, directory: Path = HERE, user: int | None = None) -> None:
        """A directory other than the usual one has a registry of its own."""
        self.directory = directory
        self._user = user
        self._runtime_dir = None if directory == HERE else str(directory / "run")
        self._env = {} if self._runtime_dir is None else {"VHOSTVSOCK_RUNTIME_DIR": self._runtime_dir}
        self._programs: list[Program] = []

    def start(self, *words: str, namespace: str | None = None) -> Program:
        self._programs.append(Program([*within(namespace), *words], self.directory, self._env, self._user))
        return self._programs[-1]

    def connect(self, cid: int, namespace: str | None = None) -> str:
        """The answer of a VM's echo."""
        return connect(cid, ECHO, namespace, self._runtime_dir)

    def daemon(self, vms: dict[str, int | str], *options: str, namespace: str | None = None) -> Program:
        """A daemon, ready, with VMs by name and CID."""
        lines = []
        for name, cid in vms.items():
            word = f'"{cid}"' if isinstance(cid, str) else cid
            lines += ["[[vm]]", f'name = "{name}"', f"cid = {word}", f'socket = "{name}.vh"', f'uds_path = "{name}.v"']
        config = self.directory / f"{'-'.join(vms)}.toml"
        config.write_text("\n".join(lines))
        daemon = self.start("vhostvsock", "run", "--config", str(config), "-v", *options, namespace=namespace)
        daemon.wait("vhostvsock: ready:")
        return daemon

    def guest(self, name: str, namespace: str | None = None) -> Program:
        """A small guest on the socket of a VM, with an echo on port 1234."""
        return self.start("vsock-guest", f"{name}.vh", str(ECHO), namespace=namespace)

    def running(self, *names: str) -> None:
        """Wait until VMs run, as seen from here."""
        while not set(names) <= {vm["name"] for vm in list_vms(self._runtime_dir) if vm["state"] == "running"}:
            os.sched_yield()

    def __enter__(self) -> Middle:
        return self

    def __exit__(self, *_: object) -> None:
        for program in reversed(self._programs):
            program.end()
