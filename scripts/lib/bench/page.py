"""docs/performance.md: its tables are made here, its prose is not.

Before: __main__.py. After: measure.py measures; tables.py, targets.py and plot.py say how it looks.
Rules:  - What is between `<!-- bench: NAME -->` and `<!-- bench: end -->` is made anew; nothing else is touched.
        - A part that was not measured stays as it is.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from scripts.lib.bench import plot, targets
from scripts.lib.bench.daemons import BenchError
from scripts.lib.bench.measure import Plan, all_rows, measure
from scripts.lib.bench.results import Measurement, Report, as_option
from scripts.lib.bench.rows import Row
from scripts.lib.bench.tables import EXTRAS, circumstances, extras_table, main_table, table

DOCS = Path(__file__).resolve().parents[3] / "docs"
PAGE, PICTURE = DOCS / "performance.md", DOCS / "performance.svg"
# Rows in which who runs where makes the difference.
PINNED = (
    *("g2h-64k", "g2h-64k-poll", "g2h-64k-one", "g2h-64k-one-poll", "g2h-4k", "g2h-4k-poll", "h2g", "h2g-poll", "both"),
    *("rtt", "rtt-poll", "connect-guest", "connect-host", "messages-1", "idle-10k", "vms-1", "vms-16", "vms-128"),
    *("seq-g2h-64k", "seq-g2h-64k-poll", "seq-g2h-256", "seq-h2g-64k", "seq-h2g-64k-poll", "seq-h2g-256", "seq-rtt"),
)
# Rows in which looking before sleeping does.
POLLING = (
    "rtt",
    "rtt-poll",
    "connect-guest",
    "connect-host",
    "messages-1",
    "messages-16",
    "g2h-64k",
    "g2h-4k-poll",
    "h2g",
)
_END = "<!-- bench: end -->"


def measure_all(plan: Plan) -> Report:
    """What the page shows: everything, the same pinned, and without looking before sleeping."""
    rows = all_rows()

    def named(names: Iterable[str]) -> Sequence[Row]:
        return [row for row in rows if row.name in set(names)]

    return {
        "main": measure(plan, rows, "1 of 3"),
        "pinned": measure(replace(plan, pinned=True), named(PINNED), "2 of 3, pinned"),
        "polling": measure(replace(plan, also="poll_us=0", with_limit=False), named(POLLING), "3 of 3, --poll-us 0"),
    }


def write(sections: dict[str, str], page: Path = PAGE) -> None:
    """Put these sections into the page."""
    text = page.read_text(encoding="utf-8")
    for name, content in sections.items():
        text = replace_section(text, name, content)
    page.write_text(text, encoding="utf-8")


def replace_section(text: str, name: str, content: str) -> str:
    """The page with one section made anew."""
    begin = f"<!-- bench: {name} -->"
    found = re.compile(rf"{re.escape(begin)}\n.*?{re.escape(_END)}", re.DOTALL)
    if len(found.findall(text)) != 1:
        raise BenchError(f"the page has no section, or more than one, that begins with {begin}")
    return found.sub(lambda _: f"{begin}\n{content}\n{_END}", text)


def sections(report: Report) -> dict[str, str]:
    """What the measurements make of the page."""
    made = {"targets": targets_table(report)}
    for name, measurement in report.items():
        made[name] = f"{circumstances(measurement)}\n\n{main_table(measurement)}"
        if name == "main":
            made["extras"] = extras_table(measurement)
    return made


def targets_table(report: Report) -> str:
    """All targets with what was measured, and how many were met."""
    units = {row.name: row.unit for measurement in report.values() for row in measurement.rows}
    verdicts = targets.judge_all(report)
    lines = []
    for verdict in verdicts:
        target = verdict.target
        what = f"`{target.row}`" + (f" + `{target.plus}`" if target.plus else "")
        what += f", {EXTRAS[target.value]}" if target.value != "value" else ""
        what += _setting_of(target, report.get(target.part))
        unit = units.get(target.row, "") if target.value == "value" else ""
        met = {True: "met", False: "**not met**", None: "–"}[verdict.met]
        lines.append([target.group, what, targets.bound_text(target, unit), targets.measured_text(verdict), met])
    count = {met: sum(verdict.met is met for verdict in verdicts) for met in (True, False, None)}
    total = f"{count[True]} met, {count[False]} not met, {count[None]} without a figure to compare with."
    return table(["", "row", "target", "measured", ""], lines) + "\n\n" + total


def _setting_of(target: targets.Target, measurement: Measurement | None) -> str:
    if target.contender != "also" or measurement is None or measurement.also is None:
        return ""
    return f", `{' '.join(as_option(measurement.also))}`"


def picture(report: Report) -> None:
    """Draw the main measurement."""
    PICTURE.write_text(plot.svg(report["main"]), encoding="utf-8")
