"""All rows, all contenders, run by run.

Before: __main__.py says which rows and how often. After: a Measurement; progress on stderr.
Rules:  - Contenders take turns within each row.
        - A contender that hangs or fails in a row is not asked for that row again.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from scripts.lib.bench import standing
from scripts.lib.bench.daemons import BenchError, Contender, vhost_device_vsock, vhostvsock
from scripts.lib.bench.driver import Driver
from scripts.lib.bench.machine import machine
from scripts.lib.bench.results import Measurement, Result
from scripts.lib.bench.rows import Row
from scripts.lib.fetch_apt import FetchError


def say(text: str, *, end: str = "\n") -> None:
    print(f"bench: {text}", end=end, file=sys.stderr, flush=True)


@dataclass(frozen=True)
class Plan:
    """How to measure."""

    runs: int
    seconds: float
    with_peer: bool = True
    with_limit: bool = True
    pinned: bool = False
    # Also with this setting of a VM, `NAME=N`.
    also: str | None = None


def all_rows() -> list[Row]:
    """In the order of the table."""
    return [*Driver(0, False).rows(), *standing.ROWS]


def measure(plan: Plan, rows: Sequence[Row], name: str) -> Measurement:
    """Measure these rows; `name` is for the progress."""
    driver = Driver(plan.seconds, plan.pinned)

    def by_daemon(contender: Contender) -> Callable[[Row], Result]:
        def one(row: Row) -> Result:
            try:
                if row in standing.ROWS:
                    return standing.measure(contender, row, plan.pinned)
                return driver.measure(contender, row)
            except BenchError as error:
                return {"row": row.name, "failed": str(error)}

        return one

    def limit(row: Row) -> Result:
        return {"row": row.name, "none": True} if row in standing.ROWS else driver.limit(row)

    contenders = {"ours": by_daemon(vhostvsock())}
    if plan.also:
        contenders["also"] = by_daemon(vhostvsock(plan.also))
    version = ""
    if plan.with_peer:
        try:
            peer, version = vhost_device_vsock()
            contenders["peer"] = by_daemon(peer)
        except (FetchError, OSError, subprocess.CalledProcessError) as error:
            say(f"going on without vhost-device-vsock: {error}")
    if plan.with_limit:
        contenders["limit"] = limit

    measurement = Measurement(
        machine(), version, plan.runs, plan.seconds, plan.pinned, plan.also, list(contenders), list(rows)
    )
    say(f"{name}: {len(rows)} rows, {plan.runs} runs of {' and '.join(contenders)} in turn")
    start = time.monotonic()
    for number in range(1, plan.runs + 1):
        for done, row in enumerate(rows, 1):
            _show_progress(f"{name}: run {number} of {plan.runs}, row {done} of {len(rows)}, {row.name}")
            for contender, ask in contenders.items():
                cell = measurement.cell(row.name, contender)
                if cell.stopped() is None and not cell.has_nothing_to_measure():
                    cell.results.append(ask(row))
        _show_progress("")
        say(f"{name}: run {number} of {plan.runs} done after {time.monotonic() - start:.0f} s")
    return measurement


def _show_progress(text: str) -> None:
    """One line that changes, where somebody looks on."""
    if sys.stderr.isatty():
        say(f"{text:78}"[:78] if text else " " * 78, end="\r")
