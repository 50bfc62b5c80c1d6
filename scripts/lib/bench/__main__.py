"""The command line of scripts/bench.

Before: scripts/bench built what is needed. After: tables on stdout, and files where they are asked for.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
from pathlib import Path

from scripts.lib.bench import page, plot, results, tables
from scripts.lib.bench.daemons import BenchError
from scripts.lib.bench.measure import Plan, all_rows, measure, say
from scripts.lib.bench.rows import Row
from scripts.lib.fetch_apt import FetchError

HELP = """\
how to read the table:
  Each cell is the median of all runs, with the lowest and the highest value in brackets.
  "x peer" and "of limit" are ratios of medians, turned so that more is better in every row.
  "limit" is a plain UNIX socket of the same type between two processes; every byte of a hybrid vsock crosses one.
  Who runs beside whom is the scheduler's choice, and makes a great difference on few processors. --pin settles it: the
  guest (or the writer of the plain socket) on the first, daemon and host applications (or the reader) on the second.
  "waiting" guests sleep until an interrupt comes, as real ones do; "polling" guests look all the time.

  MB/s  millions of bytes that arrived     us, ms   microseconds (in the second table the 99th percentile), milliseconds
  1/s   things done in a second            B, KiB, MiB   of the daemon's memory (PSS; RSS where a daemon is alone)
  part  of what it is without              %    of a processor

what is measured, and what not:
  A driver plays QEMU and the guest at memory speed, without a VM: the table shows what the daemons cost, and no more.
  --vm goes through real guests instead. Figures differ from machine to machine by far more than the ratios do. Close
  other programs; use --runs 11 for figures to be published.

examples:
  scripts/bench --rows g2h-64k,h2g,rtt
  scripts/bench --runs 11 --seconds 1 --json bench.json --plot bench.svg
  scripts/bench --from bench.json --plot bench.svg
  scripts/bench --write-docs --vm
  scripts/bench --list
"""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="scripts/bench",
        description="Measure vhostvsock beside vhost-device-vsock and beside a plain UNIX socket.",
        epilog=HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--runs", type=int, default=5, metavar="N", help="how often each row is measured (default: 5)")
    add("--rows", metavar="A,B", help="only these rows (default: all)")
    add("--seconds", type=float, default=0.3, metavar="S", help="time for each value (default: 0.3)")
    add("--json", type=Path, metavar="FILE", help="write every single value there")
    add("--from", type=Path, metavar="FILE", dest="source", help="measure nothing, show what --json wrote there")
    add("--plot", type=Path, metavar="FILE", help="draw the ratios there, as SVG")
    add("--write-docs", action="store_true", help="make the tables and the picture of docs/performance.md anew")
    add("--vm", action="store_true", help="through real guests, under emulation; with --write-docs, both")
    add("--no-peer", action="store_true", help="leave vhost-device-vsock out")
    add(
        "--also", metavar="NAME=N", help="measure vhostvsock with this setting of a VM, too: poll_us=0, buf_alloc=65536"
    )
    add("--pin", action="store_true", help="fixed processors for all (needs two)")
    add("--list", action="store_true", help="name the rows, and measure nothing")
    return parser


def _chosen(names: str | None, parser: argparse.ArgumentParser) -> list[Row]:
    known = {row.name: row for row in all_rows()}
    if names is None:
        return list(known.values())
    wanted = names.split(",")
    if unknown := [name for name in wanted if name not in known]:
        parser.error(f"there is no row {', '.join(unknown)}; --list names them")
    return [known[name] for name in wanted]


def _check(options: argparse.Namespace, parser: argparse.ArgumentParser) -> None:
    if options.runs < 1 or not options.seconds > 0:
        parser.error("--runs and --seconds have to be more than nothing")
    if (options.pin or options.write_docs) and len(os.sched_getaffinity(0)) < 2:
        parser.error("--pin and --write-docs need two processors")
    if options.also and not re.fullmatch(r"[a-z_]+=\d+", options.also):
        parser.error(f"--also {options.also}: that is no setting and a number, such as poll_us=0")
    if options.write_docs and (options.rows or options.pin or options.no_peer or options.also):
        parser.error("--write-docs measures what the page shows: no --rows, --pin, --no-peer, --also")


def _run(options: argparse.Namespace, parser: argparse.ArgumentParser) -> None:
    plan = Plan(options.runs, options.seconds, not options.no_peer, True, options.pin, options.also)
    report: results.Report = {}
    if options.source:
        report = results.load(options.source)
    elif options.write_docs:
        report = page.measure_all(plan)
    elif not options.vm:
        report = {"main": measure(plan, _chosen(options.rows, parser), "rows")}
    # First of all: nothing that follows may lose what took minutes.
    if options.json and not options.source:
        results.save(options.json, report)
        say(f"every value is in {options.json}")
    for measurement in report.values():
        print(f"{tables.circumstances(measurement)}\n\n{tables.markdown(measurement)}\n")
    if options.plot and report:
        options.plot.write_text(plot.svg(report["main"]), encoding="utf-8")
        say(f"the picture is {options.plot}")
    if options.write_docs:
        page.write(page.sections(report))
        page.picture(report)
        say(f"{page.PAGE} and {page.PICTURE.name} are new; see git diff")
    if options.vm:
        # Only here: it takes the tests' harness.
        from scripts.lib.bench import vm

        text = vm.measure(options.runs, not options.no_peer)
        print(text)
        if options.write_docs:
            page.write({"vm": text})


def main(words: list[str]) -> int:
    parser = _parser()
    options = parser.parse_args(words)
    _check(options, parser)
    try:
        if options.list:
            for row in all_rows():
                print(f"{row.name:18} {row.unit:10} {row.title}")
        else:
            _run(options, parser)
    except (BenchError, FetchError, OSError) as error:
        print(f"bench: error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nbench: stopped", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
