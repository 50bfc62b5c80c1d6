"""Real guests in the soak: conversations with the probe in both directions, again and again.

Before: run.py has a daemon with a VM for each. After: tests/harness boots them, as the VM tests do.
Rules:  - One thread for each guest, for as long as the guest: what it starts ends with it.
        - A guest may be one whose QEMU is killed now and then: then conversations may break, and must work again after.
"""

from __future__ import annotations

import itertools
import shutil
import threading
import time
from pathlib import Path

from harness.machine import Kind, Machine
from harness.waiting import Process

from scripts.lib.soak.players import Vm

KINDS = (Kind("new", "10.0"), Kind("6.1", "7.2"))
MIB = 1 << 20
# Emulated guests on a machine that is full of work.
_LIMIT = 600.0


class RealGuest:
    """A guest with its conversations, which begin with `boot` and end with `close`."""

    def __init__(self, number: int, vm: Vm, cwd: Path, daemon: Process, kill_every: float | None) -> None:
        """`kill_every`: seconds between kills of its QEMU."""
        self.vm = vm
        self.finished = 0
        self.bytes = 0
        self.kills = 0
        self.fault: str | None = None
        self._kind = KINDS[number % len(KINDS)]
        self._kill_every = kill_every
        self._cwd = cwd / f"guest-{vm.name}"
        self._cwd.mkdir()
        # The configuration of QEMU names them so.
        (self._cwd / "vh.sock").symlink_to(cwd / f"{vm.name}.vh")
        (self._cwd / "v.sock").symlink_to(cwd / f"{vm.name}.v")
        self._uds = cwd / f"{vm.name}.v"
        self._daemon = daemon
        self._over = threading.Event()
        self._up = threading.Event()
        self._ports = itertools.count(6000)
        self._thread = threading.Thread(target=self._live, daemon=True)

    def start(self) -> None:
        self._thread.start()

    def wait_up(self) -> None:
        """Until it has booted, or failed to."""
        self._up.wait(_LIMIT)

    def _live(self) -> None:
        machine = Machine(self._kind, self._cwd, self._daemon)
        try:
            machine.boot(limit=_LIMIT)
            self._up.set()
            killed = time.monotonic()
            while not self._over.is_set():
                self._converse(machine, kill=False)
                if self._kill_every is not None and time.monotonic() - killed > self._kill_every:
                    self._converse(machine, kill=True)
                    machine.boot(limit=_LIMIT)
                    killed = time.monotonic()
        except Exception as error:
            self.fault = f"the guest {self._kind} of {self.vm.name}: {error!r}; {machine.describe()}"
        finally:
            self._up.set()
            machine.close()

    def _converse(self, machine: Machine, *, kill: bool) -> None:
        """A connection in each direction at once; with `kill`, QEMU dies in the middle of them."""
        size = (1 << 40) if kill else 8 * MIB
        port = next(self._ports)
        words = (f"every={MIB}", "shutdown", "eof")
        ours = machine.host(
            "talk", f"unix-listen:{self._uds}_{port}", f"recv=1:{size}", f"send=2:{size}", *words
        ).listening(_LIMIT)
        inside = machine.inside("talk", f"vsock:2:{port}", f"send=1:{size}", f"recv=2:{size}", *words)
        machine.inside("echo", f"vsock-listen:{port}").listening(_LIMIT)
        ping = machine.host("talk", f"hybrid:{self._uds}:{port}", f"send=3:{size}", f"recv=3:{size}", *words)
        if kill:
            ours.reached(2 * MIB, limit=_LIMIT)
            ping.reached(2 * MIB, limit=_LIMIT)
            machine.kill_qemu()
            self.kills += 1
            # They end, and what came before was right.
            for probe in (ours, ping):
                result = probe.result(_LIMIT)
                if result["wrong"] != "-1":
                    raise AssertionError(f"{probe.lines.whose}: {result}")
        else:
            for probe in (ours, ping, inside):
                probe.right(_LIMIT)
            self.finished += 2
            self.bytes += 4 * size
        machine.end_probes()
        Path(f"{self._uds}_{port}").unlink(missing_ok=True)

    def finish(self) -> None:
        """Let it begin nothing new."""
        self._over.set()

    def close(self) -> None:
        """End it after the conversations that are going on."""
        self._over.set()
        if self._thread.ident is not None:
            self._thread.join(_LIMIT)
        shutil.rmtree(self._cwd, ignore_errors=True)
