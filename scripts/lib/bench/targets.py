"""What is to be reached, and whether it was.

Before: a Report with the measurements of page.py. After: page.py makes a table of the verdicts.
Rules:  - Targets are data, here and nowhere else; verdicts are computed.
        - A target is a bound for a median, or for the ratio of two medians of one measurement.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from scripts.lib.bench.results import Measurement, Report, figure


@dataclass(frozen=True)
class Target:
    """A bound for a row's value."""

    group: str
    row: str
    bound: float
    # "least" or "most".
    at: str
    # Contender or, for `vms-1`, row that it is a part or a multiple of; nothing for the value itself.
    to: str = ""
    value: str = "value"
    # Of which measurement, and of which of its contenders.
    part: str = "main"
    contender: str = "ours"
    # A second row whose value is added.
    plus: str = ""


@dataclass(frozen=True)
class Verdict:
    """What came of a target; `measured` is nothing where there is no figure, and `why` says why."""

    target: Target
    measured: float | None
    why: str = ""

    @property
    def met(self) -> bool | None:
        if self.measured is None:
            return None
        bound = self.target.bound
        return self.measured >= bound if self.target.at == "least" else self.measured <= bound


def _several(target: Target, *rows: str) -> Iterator[Target]:
    """The same for other rows."""
    for row in rows:
        yield replace(target, row=row)


BULK = (
    *("g2h-64k", "g2h-64k-poll", "g2h-64k-one", "g2h-64k-one-poll", "g2h-4k", "g2h-4k-poll", "g2h-256", "g2h-256-poll"),
    *("h2g", "h2g-poll", "h2g-64k", "both", "both-poll"),
)
_BULK, _BOTH, _TRIP, _MANY = "bulk", "both directions", "round trip", "connections and messages"
_IDLE, _CPU, _START, _VMS = "idle and stuck", "processor time per byte", "start and memory", "many VMs"

TARGETS: tuple[Target, ...] = (
    *_several(Target(_BULK, "", 0.8, "least", "limit"), "g2h-64k", "g2h-64k-poll", "h2g", "h2g-poll"),
    *_several(Target(_BULK, "", 4, "least", "peer"), "g2h-4k", "g2h-4k-poll", "g2h-256", "g2h-256-poll"),
    *_several(Target(_BOTH, "", 3, "least", "peer"), "both", "both-poll"),
    # Without looking before sleeping, a guest that waits is to be no worse off than with the peer; with it, better.
    Target(_TRIP, "rtt", 1, "most", "peer", part="polling", contender="also"),
    Target(_TRIP, "rtt", 1, "most", "peer", "p99", part="polling", contender="also"),
    Target(_TRIP, "rtt-poll", 0.55, "most", "peer"),
    Target(_TRIP, "rtt-poll", 0.55, "most", "peer", "p99"),
    Target(_TRIP, "rtt", 0.6, "most", "peer"),
    Target(_TRIP, "rtt", 0.6, "most", "peer", "p99"),
    Target(_MANY, "connect-guest", 1.2, "least", "peer", part="polling", contender="also"),
    Target(_MANY, "connect-host", 1.2, "least", "peer", part="polling", contender="also"),
    *_several(Target(_MANY, "", 2, "least", "peer"), "connect-guest", "connect-host"),
    *_several(Target(_MANY, "", 1.5, "least", "peer"), "connect-guest-16", "connect-host-16"),
    Target(_MANY, "messages-1", 1.2, "least", "peer"),
    *_several(Target(_MANY, "", 1.5, "least", "peer"), "messages-16", "messages-256", "messages-1024"),
    Target(_MANY, "messages-4096", 2, "least", "peer"),
    *_several(
        Target(_MANY, "", 0.8, "least", value="slowest_to_mean"),
        *("messages-16", "messages-256", "messages-1024", "messages-4096"),
    ),
    Target(_IDLE, "idle", 1024, "most"),
    Target(_IDLE, "idle", 1, "most", value="fds"),
    # "Nothing measurable": medians of one and the same thing differ by as much here.
    Target(_IDLE, "idle-10k", 0.9, "least"),
    Target(_IDLE, "idle-10k", 1.1, "most", value="cpu_to_alone"),
    Target(_IDLE, "wake-ups", 0, "most"),
    *_several(Target(_IDLE, "", 0.1, "most"), "stuck-1", "stuck-16", "stuck-host-1", "stuck-host-16"),
    *_several(Target(_CPU, "", 0.5, "most", "peer", "cpu_s_per_gb"), *BULK),
    Target(_START, "start", 300, "most"),
    Target(_START, "memory", 40, "most"),
    Target(_START, "memory-vm", 200, "most", plus="idle-guest"),
    *_several(Target(_VMS, "", 0.9, "least", "vms-1"), "vms-16", "vms-128"),
)


def judge(target: Target, report: Report) -> Verdict:
    """Compare what was measured with what is to be."""
    measurement = report.get(target.part)
    if measurement is None:
        return Verdict(target, None, "not measured")
    measured, why = _figure_of(measurement, target.row, target.contender, target.value)
    if measured is not None and target.plus:
        further, why = _figure_of(measurement, target.plus, target.contender, target.value)
        measured = None if further is None else measured + further
    if measured is None:
        return Verdict(target, None, why)
    if not target.to:
        return Verdict(target, measured)
    if target.to in measurement.contenders:
        other, why = _figure_of(measurement, target.row, target.to, target.value)
        name = "the peer" if target.to == "peer" else target.to
    else:
        other, why = _figure_of(measurement, target.to, target.contender, target.value)
        name = target.to
    return Verdict(target, measured / other) if other else Verdict(target, None, f"{name}: {why or 'zero'}")


def _figure_of(measurement: Measurement, row: str, contender: str, value: str) -> tuple[float | None, str]:
    cell = measurement.cell(row, contender)
    median = cell.median(value)
    return median, "" if median is not None else cell.stopped() or "not measured"


def judge_all(report: Report) -> list[Verdict]:
    return [judge(target, report) for target in TARGETS]


def bound_text(target: Target, unit: str) -> str:
    """Such as "at least 0.8 of the limit"."""
    to = {"": unit, "peer": "x the peer's", "limit": "of the limit"}.get(target.to, f"of `{target.to}`")
    return f"at {target.at} {target.bound:g} {to}".rstrip()


def measured_text(verdict: Verdict) -> str:
    return verdict.why if verdict.measured is None else figure(verdict.measured)
