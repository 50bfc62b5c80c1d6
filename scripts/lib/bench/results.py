"""What came out: for each row and contender all values, their median and spread, and ratios between contenders.

Before: measure.py fills a Measurement. After: tables.py, plot.py and targets.py read it; a JSON file keeps it.
Rules:  - A ratio is more than 1 where we are better, whatever better means in the row.
        - Ratios are of medians; their spread is that of the ratios of single runs, in which both took turns.
"""

from __future__ import annotations

import json
import statistics
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from scripts.lib.bench.rows import Row

Result = dict[str, Any]


@dataclass
class Cell:
    """All that one contender did in one row: a result for each run."""

    results: list[Result] = field(default_factory=list)

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

    def has_nothing_to_measure(self) -> bool:
        return bool(self.results and self.results[0].get("none"))

    def text(self, name: str = "value") -> str:
        """The median, and the lowest and the highest value."""
        median = self.median(name)
        if median is None:
            return self.stopped() or "–"
        values = self.values(name)
        if len(values) == 1:
            return figure(median)
        return f"{figure(median)} ({figure(min(values))}–{figure(max(values))})"


@dataclass(frozen=True)
class Ratio:
    """How much better one is than the other, and between which bounds in single runs."""

    median: float
    lowest: float
    highest: float


@dataclass
class Measurement:
    """All rows of one call, and under which circumstances."""

    machine: str
    peer: str
    runs: int
    seconds: float
    pinned: bool
    # The setting, `NAME=N`, of the contender "also", if there is one.
    also: str | None
    contenders: list[str]
    rows: list[Row]
    cells: dict[str, dict[str, Cell]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.cells:
            self.cells = {row.name: {name: Cell() for name in self.contenders} for row in self.rows}

    def cell(self, row: str, contender: str) -> Cell:
        """Empty where it was not measured."""
        return self.cells.get(row, {}).get(contender, Cell())

    def ratio(self, row: Row, ours: str, other: str) -> Ratio | None:
        """How much better `ours` is than `other`; nothing where one of them has no figure, or where it is zero."""
        mine, theirs = self.cell(row.name, ours), self.cell(row.name, other)
        medians = mine.median(), theirs.median()
        if not medians[0] or not medians[1]:
            return None

        def better(mine: float, theirs: float) -> float:
            return theirs / mine if row.less_is_better else mine / theirs

        median = better(medians[0], medians[1])
        pairs = zip(mine.values(), theirs.values(), strict=False)
        single = [better(one, another) for one, another in pairs if one and another] or [median]
        return Ratio(median, min(single), max(single))


def as_option(setting: str) -> list[str]:
    """A setting of a VM, `NAME=N`, as `vhostvsock run` has it."""
    name, _, value = setting.partition("=")
    return [f"--{name.replace('_', '-')}", value]


# By name: "main", and what else one call measured.
Report = dict[str, Measurement]


def figure(value: float) -> str:
    """Three digits and no more, as more would be noise."""
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def save(path: Path, report: Report) -> None:
    """Write every single value."""
    everything = {}
    for name, measurement in report.items():
        fields = asdict(measurement)
        fields["cells"] = {
            row: {contender: cell.results for contender, cell in cells.items()}
            for row, cells in measurement.cells.items()
        }
        everything[name] = fields
    path.write_text(json.dumps(everything, indent=1) + "\n", encoding="utf-8")


def load(path: Path) -> Report:
    """What `save` wrote."""
    report = {}
    for name, fields in json.loads(path.read_text(encoding="utf-8")).items():
        fields["rows"] = [Row(**row) for row in fields["rows"]]
        fields["cells"] = {
            row: {contender: Cell(results) for contender, results in cells.items()}
            for row, cells in fields["cells"].items()
        }
        report[name] = Measurement(**fields)
    return report
