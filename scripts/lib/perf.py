"""Where a daemon's time goes in a row of the benchmark: samples by perf, and its system calls and sleeps per unit.

Before: scripts/profile built vsock-bench. After: two tables per row on stdout.
Rules:  - A row runs twice with a fresh daemon each time: once sampled, once counted, since sampling slows it down.
        - Only the daemon is looked at: waking the guest and the applications is its own time, what they do is not.
        - Where perf is not allowed there is no profile of time; scripts/insns counts instructions anywhere.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from harness.daemon import start_daemon
from harness.waiting import LIMIT, WaitError

from scripts.lib.bench.driver import program

ROWS = ("g2h-64k", "h2g", "h2g-64k", "rtt", "connect-host", "messages-16")
# Samples a second. Of the clock, not of cycles: virtual machines mostly have no such counter.
FREQUENCY = 5000
# Seconds of a row that perf does not look at, half before and half after. The benchmark itself warms up for a fifth of
# a row's time first.
WARM_UP = 0.3
CALLS = (
    *("sendmsg", "recvmsg", "sendto", "recvfrom", "write", "read", "epoll_pwait", "epoll_ctl"),
    *("accept4", "connect", "socket", "shutdown", "close", "getsockopt"),
)

# What a sample shows, by its call chain, innermost function first; the first that fits.
KINDS = (
    ("copying bytes, in the kernel", r"^\S*(copy_from_iter|copy_to_iter|rep_movs|copy_user)"),
    ("waking the guest or an application", r"try_to_wake_up|ttwu"),
    ("going to sleep and waking up", r"\b(__)?schedule\b"),
)


class PerfError(Exception):
    """There is no profile; the text says why."""


@contextmanager
def running(row: str, seconds: float) -> Iterator[tuple[int, subprocess.Popen[str]]]:
    """A daemon's pid and the benchmark that runs a row against it."""
    with tempfile.TemporaryDirectory(prefix="vhv-perf-", dir="/tmp") as name:
        directory = Path(name)
        with start_daemon(directory) as daemon:
            where = ("--socket", "vh.sock", "--uds", "v.sock", "--pid", str(daemon.pid))
            command = [program(), *where, "--seconds", str(seconds + WARM_UP), row]
            with subprocess.Popen(command, cwd=directory, stdout=subprocess.PIPE, text=True) as process:
                try:
                    time.sleep((seconds + WARM_UP) / 5 + WARM_UP / 2)
                    yield daemon.pid, process
                finally:
                    process.kill()


def perf(*words: str) -> str:
    """What perf prints."""
    done = subprocess.run(["perf", *words], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise PerfError(f"perf {' '.join(words)}:\n{done.stderr[-1000:]}")
    # Counts go to stderr.
    return done.stdout + done.stderr


def samples(script: str) -> Iterator[list[str]]:
    """The call chains in the output of perf script, innermost function first."""
    for block in script.split("\n\n"):
        chain = [line.split(maxsplit=1)[1] for line in block.splitlines() if line.strip()]
        if chain:
            yield chain


def kind(chain: list[str]) -> str:
    """What a sample belongs to."""
    text = "\n".join(function.partition(" (")[0] for function in chain)
    for name, pattern in KINDS:
        if re.search(pattern, text):
            return name
    if call := re.search(r"^__(?:x64|arm64)_sys_(\w+)", text, re.MULTILINE):
        return f"the rest of {call[1]}"
    where = chain[0].rpartition("(")[2]
    if "kernel" in where:
        return "entering and leaving the kernel"
    return f"user: {re.sub(r'^vhostvsock_native::', '', text.splitlines()[0])}"


def sample(row: str, seconds: float) -> tuple[float, Counter[str]]:
    """The processor time that the daemon used per second, and the shares of it."""
    with tempfile.TemporaryDirectory(prefix="vhv-perf-") as name:
        data = str(Path(name) / "data")
        with running(row, seconds) as (pid, _):
            what = ("--event", "cpu-clock", "--freq", str(FREQUENCY), "--call-graph", "fp")
            perf("record", "--quiet", *what, "--pid", str(pid), "--output", data, "sleep", str(seconds))
        script = perf("script", "--input", data, "--fields", "ip,sym,dso")
    kinds = Counter(kind(chain) for chain in samples(script))
    return kinds.total() / FREQUENCY / seconds, kinds


def count(row: str, seconds: float) -> tuple[str, float, dict[str, float]]:
    """The unit of a row's work, how many the daemon did in a second, and what else it did in a second."""
    events = [f"syscalls:sys_enter_{call}" for call in CALLS]
    events += ["raw_syscalls:sys_enter", "context-switches", "sched:sched_waking"]
    with running(row, seconds) as (pid, bench):
        said = perf("stat", "-x", ",", "--pid", str(pid), "--event", ",".join(events), "sleep", str(seconds))
        output = bench.communicate(timeout=LIMIT)[0]
    result = json.loads(output)
    if "value" not in result:
        raise PerfError(f"the row {row} has no value: {output}")
    rates = {}
    for line in said.splitlines():
        value, _, event, *_ = line.split(",")
        rates[re.sub(r"^syscalls:sys_enter_", "", event)] = float(value) / seconds
    if result["unit"] == "MB/s":
        return "block of 64 KiB", result["value"] * 1e6 / 65536, rates
    if result["unit"] == "us":
        return "round trip", result["count"] / (seconds + WARM_UP), rates
    return "connection" if row.startswith("connect") else "message", result["value"], rates


def report(row: str, seconds: float) -> str:
    """Both tables of a row."""
    share, kinds = sample(row, seconds)
    unit, rate, counts = count(row, seconds)
    total = kinds.total()
    lines = [
        f"## {row}",
        f"\n{rate:,.0f} times a second, one {unit}. The daemon used {share:.0%} of a processor, for:\n",
        "| share | |\n| --- | --- |",
        *(f"| {n / total:.1%} | {name} |" for name, n in kinds.most_common() if n / total >= 0.01),
        f"\nThe daemon's system calls for one {unit}:\n",
        "| | |\n| --- | --- |",
        f"| all | {counts.pop('raw_syscalls:sys_enter') / rate:.2f} |",
        *(f"| {name} | {n / rate:.2f} |" for name, n in counts.items() if name in CALLS and n / rate >= 0.005),
        f"| sleeps and preemptions | {counts['context-switches'] / rate:.2f} |",
        f"| threads woken | {counts['sched:sched_waking'] / rate:.2f} |",
    ]
    return "\n".join(lines)


def main(words: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="scripts/profile",
        description="Show where a daemon's time goes in rows of scripts/bench, by perf.",
        epilog="Exit codes: 0 done, 1 there is no profile, 2 wrong usage.",
    )
    parser.add_argument("rows", nargs="*", metavar="ROW", help=f"rows of the benchmark (default: {' '.join(ROWS)})")
    parser.add_argument("--seconds", type=float, default=2.0, metavar="S", help="how long perf looks (default: 2)")
    options = parser.parse_args(words)
    if options.seconds <= 0:
        parser.error("--seconds has to be more than nothing")
    try:
        for row in options.rows or ROWS:
            print(report(row, options.seconds), end="\n\n", flush=True)
    except (PerfError, OSError, WaitError) as error:
        print(f"profile: error: {error}", file=sys.stderr)
        print(
            "profile: hint: perf needs root, or kernel.perf_event_paranoid at -1; scripts/insns counts instructions "
            "without it",
            file=sys.stderr,
        )
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
