"""One soak from its start to its verdict.

Before: __main__.py has the command line. After: cast.py has the processes, watch.py the daemon's figures.
Rules:  - The first fault ends the run, and is its result.
        - Time counts from the moment when all connections stand.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import asdict
from typing import Any

from harness.waiting import wait_for

from scripts.lib.soak.cast import Cast
from scripts.lib.soak.killer import Killer
from scripts.lib.soak.players import SoakError
from scripts.lib.soak.watch import MIB, Change, Sample, Watch

_TELL_EVERY = 5.0
# The first connections to all guests at once take a while on a small machine.
_SET_UP = 300.0


def say(text: str) -> None:
    print(f"soak: {text}", flush=True)


class Soak:
    """A run. `result` has what is to be written down."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.cast = Cast(options)
        self.result: dict[str, Any] = {"options": {k: v for k, v in vars(options).items() if k != "json"}}
        self._watch = Watch(0)
        self._least = 0

    def run(self) -> None:
        """SoakError where anything is wrong."""
        try:
            self._run()
        finally:
            self.cast.close()

    def _run(self) -> None:
        cast = self.cast
        daemon = cast.start_daemon()
        self._watch = Watch(daemon.pid)
        empty = self._watch.look()
        if self.options.guests:
            say(f"{self.options.guests} real guests boot")
        cast.boot()
        cast.start()
        say(f"{self.options.connections} connections are being opened")
        wait_for(lambda: cast.check() or self._standing() >= self.options.connections, "all connections stand", _SET_UP)
        killer = Killer(cast.victims, self.options.kill_every)
        try:
            self._soak(killer)
            changes = self._watch.changes(self.options.seconds)
            say("all conversations end")
            killer.enough()
            cast.finish()
        finally:
            killer.close()
        self._summary(killer, changes)
        self._nothing_left(empty)
        self._judge(changes)

    def _standing(self) -> int:
        return self.cast.now("standing")

    def _soak(self, killer: Killer) -> None:
        """The time of the soak itself."""
        seconds = self.options.seconds
        say(f"all of them stand; {seconds:.0f} seconds begin")
        self._watch.begin()
        begin = time.monotonic()
        looked = told = begin
        killer.start()
        self._least = self._standing()
        while (now := time.monotonic()) < begin + seconds:
            self.cast.check()
            killer.check()
            self._least = min(self._least, self._standing())
            if now - looked >= min(1.0, seconds / 60):
                looked = now
                sample = self._watch.look()
                if now - told >= _TELL_EVERY:
                    told = now
                    self._tell(sample, sum(killer.counts.values()))
            time.sleep(0.05)

    def _tell(self, sample: Sample, kills: int) -> None:
        cast = self.cast
        say(
            f"{sample.at:5.0f} s: {self._standing()} connections stand, {cast.now('active')} more are busy; "
            f"{cast.total('finished')} conversations, {cast.total('bytes') / 1e9:.1f} GB; "
            f"{kills} kills; daemon: {sample.fds} fds, {sample.threads} threads, "
            f"{sample.own / MIB:.1f} MiB of its own"
        )

    def _summary(self, killer: Killer, changes: list[Change]) -> None:
        cast = self.cast
        kills = {**killer.counts, "QEMUs": sum(guest.kills for guest in cast.real)}
        numbers = {name: cast.total(name) for name in ("finished", "bytes", "broken", "refused")}
        print(flush=True)
        say(f"conversations held to the end: {numbers['finished']}")
        say(f"bytes, each checked:           {numbers['bytes']}")
        say(f"connections open throughout:   {self._least}")
        say(f"kills:                         {', '.join(f'{n} {what}' for what, n in kills.items())}")
        say(f"broken or refused by kills:    {numbers['broken']}, {numbers['refused']}")
        say(f"slowest to come back:          {', '.join(f'{s:.1f} s {n}' for n, s in killer.slowest.items())}")
        for change in changes:
            say(change.text())
        self.result |= {
            **numbers,
            "throughout": self._least,
            "kills": kills,
            "slowest": killer.slowest,
            "changes": [asdict(change) for change in changes],
            "samples": [asdict(sample) for sample in self._watch.samples],
        }

    def _nothing_left(self, empty: Sample) -> None:
        """With everybody gone, the daemon has no more descriptors and threads than at first, and ends well."""
        daemon = self.cast.daemon

        def back() -> bool:
            sample = self._watch.look()
            return sample.fds <= empty.fds and sample.threads <= empty.threads

        wait_for(back, f"the daemon is back at {empty.fds} descriptors and {empty.threads} threads", 30)
        code = daemon.stop()
        said = [line for line in daemon.lines.seen if " error " in line or "panicked" in line]
        if code != 0 or said:
            raise SoakError(f"the daemon ended with {code}, and said: {said[:10]}")
        say(f"everybody gone, the daemon was back at {empty.fds} descriptors and {empty.threads} threads")

    def _judge(self, changes: list[Change]) -> None:
        if self._least < self.options.connections:
            raise SoakError(f"only {self._least} connections were open throughout")
        grown = [change.text() for change in changes if change.grown]
        if grown:
            raise SoakError(f"growth: {'; '.join(grown)}")


def write(path: Any, result: dict[str, Any]) -> None:
    path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
