"""Who takes part in a soak: the daemon that is watched, its VMs, and those who are killed all the time.

Before: run.py has the command line. After: players.py and real.py start them.
Rules:  - One daemon is watched, and never killed. Its VMs are `solid` ones, at which nothing may break, `frail` ones,
          whose front-ends are killed, and real guests.
        - As root, a second daemon in a namespace of its own is killed as well; its VMs are reached through the bridge
          of the first one.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path

from harness.waiting import Process, wait_for

from scripts.lib.soak.players import Players, SoakError, Vm, daemon
from scripts.lib.soak.real import RealGuest

# Of so many VMs, one is frail.
_FRAIL = 16
_OTHERS = 2
_FIRST_CID = 100
# A guest of QEMU needs a minute on a busy machine.
_QEMU_KILL_EVERY = 120.0
_LIGHT = ("--standing", "5", "--active", "2", "--pause", "200")


class Cast:
    """All processes of one soak. `close` ends them, whatever they do."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self._stack = contextlib.ExitStack()
        self.cwd = Path(self._stack.enter_context(tempfile.TemporaryDirectory(prefix="vhv-soak-", dir="/tmp")))
        self._seeds = iter(range(options.seed, 1 << 62, 1 << 20))
        frail = max(1, options.vms // _FRAIL)
        self.solid_vms = self._vms("s", options.vms - frail, _FIRST_CID)
        self.frail_vms = self._vms("f", frail, _FIRST_CID + options.vms)
        self.other_vms = self._vms("o", _OTHERS, _FIRST_CID + options.vms + frail)
        self.real_vms = self._vms("r", options.guests, _FIRST_CID + options.vms + frail + _OTHERS)
        self.solid: list[Players] = []
        self.victims: list[tuple[str, Callable[[], None]]] = []
        self.fragile: list[Players] = []
        self.real: list[RealGuest] = []
        self.other: Process | None = None
        self._within: tuple[str, ...] = ()

    @staticmethod
    def _vms(letter: str, count: int, cid: int) -> list[Vm]:
        return [Vm(f"{letter}{number}", cid + number) for number in range(count)]

    def start_daemon(self) -> Process:
        """The daemon that is watched."""
        self.daemon = daemon(self.cwd, [*self.solid_vms, *self.frail_vms, *self.real_vms])
        self._stack.callback(self.daemon.close)
        return self.daemon

    def _players(self, role: str, vms: list[Vm], *options: str, within: tuple[str, ...] = ()) -> Players:
        made = Players(role, self.cwd, vms, *options, seed=next(self._seeds), within=within)
        self._stack.callback(made.close)
        return made

    def boot(self) -> None:
        """The real guests, and their conversations."""
        for number, vm in enumerate(self.real_vms):
            # The last of several is killed now and then.
            mortal = number > 0 and number == len(self.real_vms) - 1
            guest = RealGuest(number, vm, self.cwd, self.daemon, _QEMU_KILL_EVERY if mortal else None)
            self._stack.callback(guest.close)
            self.real.append(guest)
            guest.start()
        for guest in self.real:
            guest.wait_up()
        self.check()

    def start(self) -> None:
        """Everybody else. All clients begin when all servers are there."""
        each = -(-self.options.connections // (2 * len(self.solid_vms)))
        # On the average, a pause is half of the longest one.
        pause = round(2 * 1000 * 2 * len(self.solid_vms) / self.options.rate)
        load = ("--standing", str(each), "--active", str(self.options.active), "--pause", str(pause))
        self.solid = [
            self._players("guests", self.solid_vms, *load, "--killed-hosts"),
            self._players("hosts", self.solid_vms, *load),
        ]
        beside = ("--active", "1", "--pause", str(4 * pause), "--fragile", "--beside")
        self._kill("host applications", self._players("hosts", self.solid_vms, *beside))
        for vm in self.frail_vms:
            self._kill("front-ends", self._players("guests", [vm], *_LIGHT, "--fragile"))
        self.fragile.append(self._players("hosts", self.frail_vms, *_LIGHT, "--fragile"))
        if os.geteuid() == 0:
            self._start_other()
        for players in (*self.solid, *self.fragile):
            players.wait_ready()
        for players in (*self.solid, *self.fragile):
            players.tell("begin")

    def _kill(self, what: str, players: Players) -> None:
        """These are killed from time to time."""

        def kill() -> None:
            players.kill()
            players.wait_ready()
            players.tell("begin")

        self.fragile.append(players)
        self.victims.append((what, kill))

    def _start_other(self) -> None:
        """The daemon of another namespace."""
        bridge = next((self.cwd / "run" / "bridge").glob("*.sock"))
        namespace = f"vhv-soak-{os.getpid()}"
        subprocess.run(["ip", "netns", "add", namespace], check=True)
        self._stack.callback(subprocess.run, ["ip", "netns", "del", namespace], check=False)
        self._within = ("ip", "netns", "exec", namespace)
        self.other = daemon(self.cwd, self.other_vms, self._within)
        self._stack.callback(lambda: self.other and self.other.close())
        self.fragile.append(self._players("guests", self.other_vms, *_LIGHT, "--fragile", within=self._within))
        # Clients by CID, through the first daemon's bridge.
        by_cid = ("--fragile", "--bridge", str(bridge))
        self.fragile.append(self._players("hosts", self.other_vms, *_LIGHT, *by_cid))
        self.victims.append(("daemons of other namespaces", self._kill_other))

    def _kill_other(self) -> None:
        assert self.other is not None
        if not self.other.alive():
            raise SoakError(f"the daemon of the other namespace ended by itself: {self.other.lines.seen[-20:]}")
        self.other.close()
        self.other = daemon(self.cwd, self.other_vms, self._within)

    def check(self) -> None:
        """That nobody found anything wrong, and that nobody ended who should not."""
        if not self.daemon.alive():
            raise SoakError(f"the daemon ended with {self.daemon.wait()}: {self.daemon.lines.seen[-20:]}")
        for players in (*self.solid, *self.fragile):
            players.check()
        for guest in self.real:
            if guest.fault is not None:
                raise SoakError(guest.fault)

    def total(self, name: str) -> int:
        """A number, summed over all who count."""
        return sum(players.total(name) for players in (*self.solid, *self.fragile)) + sum(
            {"finished": guest.finished, "bytes": guest.bytes}.get(name, 0) for guest in self.real
        )

    def now(self, name: str) -> int:
        """A number of this moment, of the solid ones."""
        return sum(players.now.get(name, 0) for players in self.solid)

    def finish(self) -> None:
        """All conversations end in an orderly way, then all processes but the daemon."""
        for guest in self.real:
            guest.finish()
        everybody = (*self.solid, *self.fragile)
        for players in everybody:
            players.tell("finish")
        wait_for(lambda: self.check() or self._drained(), "all conversations end", 180)
        for guest in self.real:
            guest.close()
        self.check()
        for players in everybody:
            players.finish()
            if players.total("finished") == 0:
                raise SoakError(f"{players.name} held no conversation to its end")
        if self.other is not None:
            self.other.stop()

    def _drained(self) -> bool:
        open_ones = ("opening", "standing", "active", "served")
        return all(players.now[name] == 0 for players in self.solid for name in open_ones)

    def close(self) -> None:
        self._stack.close()
