"""scripts/soak: the command line, limits of the machine, and the last word.

Before: scripts/soak has built everything. After: run.py.
Rule:   exit code 0: nothing broke and nothing grew; 1: something did, and the last lines say what; 2: wrong usage.
"""

from __future__ import annotations

import argparse
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

from harness.waiting import WaitError

from scripts.lib.fetch_apt import FetchError
from scripts.lib.soak.players import SoakError
from scripts.lib.soak.run import Soak, say, write

# Beside the standing connections: busy ones, and what a process has anyway.
_RESERVE = 4000

_HELP = """\
what happens:
  One daemon serves --vms driver-level VMs and --guests real ones. Clients on both sides keep --connections open
  throughout, each with a message to and fro now and then, and begin one other conversation after the other: bulk in
  both directions, requests and answers, half-closes, data before a close, slow readers, storms of connections. Every
  byte is checked. Meanwhile front-ends, host applications and (as root) a daemon in another namespace are killed with
  SIGKILL and started again.

  docs/soak.md says how to read what is printed.

examples:
  scripts/soak --seconds 30 --vms 8 --guests 0 --connections 400
  scripts/soak --seconds 1800 --json soak.json
"""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="scripts/soak",
        description="Put vhostvsock under mixed load with faults for a given time, and look for errors and growth.",
        epilog=_HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--seconds", type=float, default=300, metavar="N", help="how long (default: 300)")
    parser.add_argument("--vms", type=int, default=64, metavar="N", help="driver-level VMs, 2 or more (default: 64)")
    parser.add_argument("--guests", type=int, default=2, metavar="N", help="real guests in QEMU (default: 2)")
    parser.add_argument(
        "--connections", type=int, default=10000, metavar="N", help="connections open throughout (default: 10000)"
    )
    parser.add_argument(
        "--active", type=int, default=4, metavar="N", help="others per VM and side at a time (default: 4)"
    )
    parser.add_argument(
        "--rate",
        type=float,
        default=200,
        metavar="N",
        help="conversations and storms begun per second, about (default: 200)",
    )
    parser.add_argument("--kill-every", type=float, metavar="S", help="seconds between kills (default: by --seconds)")
    parser.add_argument("--seed", type=int, metavar="S", help="what is said and when (default: by the clock)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures there")
    return parser


def _raise_limit(connections: int) -> None:
    """All our processes may have as many descriptors as the machine allows, and as the connections need."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    if hard < connections + _RESERVE:
        raise SoakError(f"{connections} connections need RLIMIT_NOFILE {connections + _RESERVE}, and it is {hard}")


def main(words: list[str]) -> int:
    parser = _parser()
    options = parser.parse_args(words)
    least = {"vms": 2, "guests": 0, "connections": 1, "active": 1, "rate": 1, "seconds": 12}
    if low := [name for name, number in least.items() if getattr(options, name) < number]:
        parser.error(f"at least {', '.join(f'--{name} {least[name]}' for name in low)}")
    if options.seed is None:
        options.seed = time.time_ns() % 1_000_000
    if options.kill_every is None:
        options.kill_every = min(10.0, max(1.0, options.seconds / 30))
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.default_int_handler)
    say(f"seed {options.seed}")
    if os.geteuid() != 0:
        say("not root: no daemon in another namespace")
    fault = None
    soak = None
    try:
        _raise_limit(options.connections)
        soak = Soak(options)
        soak.run()
    except KeyboardInterrupt:
        fault = "interrupted"
    except (SoakError, WaitError, FetchError, OSError, subprocess.SubprocessError) as error:
        fault = str(error)
    if soak is not None and options.json:
        write(options.json, {**soak.result, "fault": fault})
    if fault is not None:
        print(f"soak: error: {fault}", file=sys.stderr)
        print(f"soak: hint: the same again, as far as timing allows: --seed {options.seed}", file=sys.stderr)
        return 1
    say("no error, no growth")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
