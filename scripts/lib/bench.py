#!/usr/bin/env python3
"""The benchmark's table: vhostvsock, vhost-device-vsock and the machine's own limit, row by row, run by run.

Before: scripts/bench built vsock-bench, which plays QEMU, the guest's driver and the host's applications, and measures.
After:  medians and their spread as a Markdown table on stdout; every single value as JSON where that is asked for.
Rules:  - Contenders take turns within each row, so that whatever else the machine does hits all alike.
        - Each value comes from a fresh daemon.
        - A contender that hangs in a row is not asked for that row again: one answer is enough, and it takes seconds.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

# Run as a program, the directory with fetch.py is on the path; imported by tests, the repository is.
if __package__:
    from scripts.lib.fetch import FetchError, peer
else:
    from fetch import FetchError, peer

ROOT = Path(__file__).resolve().parents[2]
CID = 42
# A daemon that does not listen by then does not work.
START_TIMEOUT = 20.0

HELP = """\
how to read the table:
  Each cell is the median of all runs, with the lowest and the highest value in brackets.
  "x peer" and "of limit" are ratios of medians, turned so that more is better in every row.
  "limit" is a plain UNIX stream socket between two processes, which every byte of a hybrid vsock has to cross anyway.
  Who runs beside whom is the scheduler's choice, and makes a great difference on few processors. --pin settles it: the
  guest (or the writer of the plain socket) on the first, daemon and host applications (or the reader) on the second.
  "waiting" guests sleep until an interrupt comes, as real ones do; "polling" guests look all the time.

  MB/s  millions of bytes that arrived     us   microseconds, and in the second table the 99th percentile
  1/s   things done in a second            B    bytes of the daemon's memory (PSS)

what is measured, and what not:
  A driver plays QEMU and the guest at memory speed, without a VM: the table shows what the daemons cost, and no more.
  Figures differ from machine to machine by far more than the ratios do. Close other programs; use --runs 11 for figures
  to be published.

examples:
  scripts/bench --rows g2h-64k,h2g,rtt
  scripts/bench --runs 11 --seconds 1 --json bench.json
  scripts/bench --list
"""


@dataclass(frozen=True)
class Row:
    """One row of the table, as vsock-bench lists it."""

    name: str
    unit: str
    title: str

    @property
    def less_is_better(self) -> bool:
        return self.unit in ("us", "B")


@dataclass
class Cell:
    """All that one contender did in one row."""

    results: list[dict[str, Any]] = field(default_factory=list)

    def values(self, name: str = "value") -> list[float]:
        return [float(result[name]) for result in self.results if name in result]

    def median(self, name: str = "value") -> float | None:
        values = self.values(name)
        return statistics.median(values) if values and not self.stopped() else None

    def stopped(self) -> str | None:
        """Why there is no figure."""
        for result in self.results:
            if result.get("hangs"):
                return "hangs"
            if "failed" in result:
                return f"fails: {result['failed']}"
        return None

    def text(self, name: str = "value") -> str:
        median = self.median(name)
        if median is None:
            return self.stopped() or "–"
        values = self.values(name)
        if len(values) == 1:
            return figure(median)
        return f"{figure(median)} ({figure(min(values))}–{figure(max(values))})"


def figure(value: float) -> str:
    """Three digits and no more, as more would be noise."""
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def say(text: str) -> None:
    print(f"bench: {text}", file=sys.stderr, flush=True)


class Daemon:
    """A daemon with its two sockets in a directory of its own."""

    def __init__(self, command: list[str], pinned: bool) -> None:
        # Paths of sockets have to be short, so not in TMPDIR, whatever that is.
        self.directory = Path(tempfile.mkdtemp(prefix="vhv-bench-", dir="/tmp"))
        self.socket = self.directory / "vh.sock"
        self.uds = self.directory / "v.sock"
        words = [
            *command,
            *("--guest-cid", str(CID), "--socket", str(self.socket), "--uds-path", str(self.uds)),
        ]
        self.log = (self.directory / "log").open("w+b")
        # Before it has threads, so that all of them stay there.
        pin = (lambda: os.sched_setaffinity(0, {1})) if pinned else None
        env = {**os.environ, "VHOSTVSOCK_RUNTIME_DIR": str(self.directory / "run")}
        self.process = subprocess.Popen(
            words, stdin=subprocess.DEVNULL, stdout=self.log, stderr=self.log, preexec_fn=pin, env=env
        )

    def wait(self) -> None:
        """Until both sockets are there. A connection to try them would be one that the peer counts as QEMU's."""
        deadline = time.monotonic() + START_TIMEOUT
        while not (listens(self.socket) and listens(self.uds)):
            if self.process.poll() is not None or time.monotonic() > deadline:
                self.log.seek(0)
                text = self.log.read().decode(errors="replace")[-2000:]
                raise SystemExit(f"bench: error: {self.process.args!r} did not start:\n{text}")
            time.sleep(0.002)

    def __enter__(self) -> Daemon:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(5)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.log.close()
        shutil.rmtree(self.directory, ignore_errors=True)


def listens(path: Path) -> bool:
    """Whether a socket listens at this path, by the kernel's own list."""
    # Fields: number, count, protocol, flags (0x10000 where it listens), type, state, inode, path.
    with open("/proc/net/unix", encoding="utf-8", errors="replace") as file:
        for line in file:
            fields = line.split()
            if len(fields) >= 8 and fields[7] == str(path) and int(fields[3], 16) & 0x10000:
                return True
    return False


class Bench:
    """The benchmark's program and the contenders."""

    def __init__(self, seconds: float, with_peer: bool, pinned: bool, poll_us: int | None) -> None:
        self.seconds = seconds
        self.pinned = pinned
        target = Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "native" / "target"))
        self.program = target / "release" / "vsock-bench"
        if not self.program.exists():
            raise SystemExit(
                f"bench: error: {self.program} is not there\nbench: hint: start scripts/bench, which builds it"
            )
        self.contenders: dict[str, Callable[[Row], dict[str, Any]]] = {"ours": self.by_daemon([self.ours(), "run"])}
        if poll_us is not None:
            self.contenders["polling"] = self.by_daemon([self.ours(), "run", "--poll-us", str(poll_us)])
        self.peer_version = ""
        if with_peer:
            try:
                program = str(peer())
                version = subprocess.run([program, "--version"], capture_output=True, text=True, check=True)
                self.peer_version = version.stdout.strip()
                self.contenders["peer"] = self.by_daemon([program])
            except (FetchError, OSError, subprocess.CalledProcessError) as error:
                say(f"going on without vhost-device-vsock: {error}")
        self.contenders["limit"] = self.limit

    @staticmethod
    def ours() -> str:
        found = shutil.which("vhostvsock")
        if found is None:
            raise SystemExit("bench: error: vhostvsock is not installed\nbench: hint: scripts/lib/setup.sh does that")
        return found

    def rows(self) -> list[Row]:
        listed = subprocess.run([self.program, "--list"], capture_output=True, text=True, check=True)
        return [Row(*line.split("\t")) for line in listed.stdout.splitlines()]

    def call(self, row: Row, *words: str) -> dict[str, Any]:
        pin = ["--pin"] if self.pinned else []
        command = [str(self.program), *pin, *words, "--seconds", str(self.seconds), row.name]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=60 + self.seconds, check=False)
        except subprocess.TimeoutExpired:
            return {"row": row.name, "hangs": True}
        if done.returncode != 0 or not done.stdout.strip():
            last = (done.stderr.strip().splitlines() or ["no output"])[-1]
            return {"row": row.name, "failed": last}
        result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        return result

    def by_daemon(self, command: list[str]) -> Callable[[Row], dict[str, Any]]:
        def measure(row: Row) -> dict[str, Any]:
            with Daemon(command, self.pinned) as daemon:
                daemon.wait()
                where = ("--socket", str(daemon.socket), "--uds", str(daemon.uds), "--pid", str(daemon.process.pid))
                return self.call(row, *where)

        return measure

    def limit(self, row: Row) -> dict[str, Any]:
        return self.call(row, "--limit")


Table = dict[str, dict[str, Cell]]


def run(bench: Bench, rows: list[Row], runs: int) -> Table:
    table: Table = {row.name: {name: Cell() for name in bench.contenders} for row in rows}
    start = time.monotonic()
    for number in range(1, runs + 1):
        for row in rows:
            for name, measure in bench.contenders.items():
                cell = table[row.name][name]
                if cell.stopped() is None and not (cell.results and cell.results[0].get("none")):
                    cell.results.append(measure(row))
        say(f"run {number} of {runs} done after {time.monotonic() - start:.0f} s")
    return table


def ratio(row: Row, ours: Cell, other: Cell | None) -> str:
    """How much better we are, whatever better means in this row."""
    mine, theirs = ours.median(), other.median() if other else None
    if not mine or not theirs:
        return "–"
    return f"{theirs / mine if row.less_is_better else mine / theirs:.2f}"


def markdown(rows: list[Row], table: Table, names: list[str]) -> str:
    peers, polling = "peer" in names, "polling" in names
    head = ["row", "", "vhostvsock"]
    head += ["with --poll-us"] if polling else []
    head += ["vhost-device-vsock", "x peer"] if peers else []
    head += ["polling x peer"] if peers and polling else []
    head += ["limit", "of limit"]
    lines = ["| " + " | ".join(head) + " |", "|" + " --- |" * len(head)]
    for row in rows:
        cells = table[row.name]
        ours, limit = cells["ours"], cells["limit"]
        words = [f"{row.title} (`{row.name}`)", row.unit, ours.text()]
        if polling:
            words.append(cells["polling"].text())
        if peers:
            words += [cells["peer"].text(), ratio(row, ours, cells["peer"])]
        if peers and polling:
            words.append(ratio(row, cells["polling"], cells["peer"]))
        words += [limit.text(), ratio(row, ours, limit)]
        lines.append("| " + " | ".join(words) + " |")
    return "\n".join(lines)


# Values beside a row's own, and what they are called in the second table.
EXTRAS = {
    "cpu_s_per_gb": "processor time of the daemon, s per GB",
    "p99": "99th percentile, us",
    "slowest_to_mean": "slowest connection / mean",
    "fds": "descriptors per connection",
}


def extras(rows: list[Row], table: Table, names: list[str]) -> str:
    contenders = [name for name in names if name != "limit" or any(row.unit == "us" for row in rows)]
    titles = {"ours": "vhostvsock", "polling": "with --poll-us", "peer": "vhost-device-vsock", "limit": "limit"}
    lines = [
        "| row | | " + " | ".join(titles[name] for name in contenders) + " |",
        "|" + " --- |" * (2 + len(contenders)),
    ]
    for row in rows:
        for key, title in EXTRAS.items():
            cells = [table[row.name][name] for name in contenders]
            if any(cell.values(key) for cell in cells):
                lines.append(f"| `{row.name}` | {title} | " + " | ".join(cell.text(key) for cell in cells) + " |")
    return "\n".join(lines)


def machine() -> str:
    model = platform.machine()
    with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as file:
        for line in file:
            if line.startswith("model name"):
                model = line.split(":", 1)[1].strip()
                break
    return f"{os.cpu_count()} x {model}, Linux {platform.release()}"


def main(words: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="scripts/bench",
        description="Measure vhostvsock beside vhost-device-vsock and beside a plain UNIX socket.",
        epilog=HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--runs", type=int, default=5, metavar="N", help="how often each row is measured (default: 5)")
    parser.add_argument("--rows", metavar="A,B", help="only these rows (default: all)")
    parser.add_argument("--seconds", type=float, default=0.3, metavar="S", help="time for each value (default: 0.3)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every single value there")
    parser.add_argument("--no-peer", action="store_true", help="leave vhost-device-vsock out")
    parser.add_argument(
        "--poll-us", type=int, metavar="N", help="also measure vhostvsock run --poll-us N (default: not)"
    )
    parser.add_argument("--pin", action="store_true", help="fixed processors for all (needs two)")
    parser.add_argument("--list", action="store_true", help="name the rows, and measure nothing")
    options = parser.parse_args(words)
    if options.runs < 1 or not options.seconds > 0:
        parser.error("--runs and --seconds have to be more than nothing")

    if options.pin and len(os.sched_getaffinity(0)) < 2:
        parser.error("--pin needs two processors")

    bench = Bench(options.seconds, not (options.no_peer or options.list), options.pin, options.poll_us)
    rows = bench.rows()
    if options.list:
        for row in rows:
            print(f"{row.name:18} {row.unit:5} {row.title}")
        return 0
    if options.rows:
        wanted = options.rows.split(",")
        known = {row.name: row for row in rows}
        if unknown := [name for name in wanted if name not in known]:
            parser.error(f"there is no row {', '.join(unknown)}; --list names them")
        rows = [known[name] for name in wanted]

    names = list(bench.contenders)
    say(f"{len(rows)} rows, {options.runs} runs of {' and '.join(names)} in turn")
    table = run(bench, rows, options.runs)
    pinned = ", pinned" if options.pin else ""
    print(f"{machine()}; medians of {options.runs} runs of {options.seconds} s{pinned} (lowest–highest)")
    if bench.peer_version:
        print(f"beside {bench.peer_version}")
    print()
    print(markdown(rows, table, names))
    more = extras(rows, table, names)
    if more.count("\n") > 1:
        print()
        print(more)
    if options.json:
        everything = {
            "machine": machine(),
            "peer": bench.peer_version,
            "seconds": options.seconds,
            "pinned": options.pin,
            "rows": {row: {name: cell.results for name, cell in cells.items()} for row, cells in table.items()},
        }
        options.json.write_text(json.dumps(everything, indent=2) + "\n", encoding="utf-8")
        say(f"every value is in {options.json}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
