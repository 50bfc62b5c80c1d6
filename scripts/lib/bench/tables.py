"""A measurement as Markdown.

Before: __main__.py prints it, page.py puts it into docs/performance.md. After: nothing.
Rule:   a cell is a median with the lowest and the highest value.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from scripts.lib.bench.results import Measurement, Ratio, as_option, figure
from scripts.lib.bench.rows import Row

# Values beside a row's own, and what they are called in the second table.
EXTRAS = {
    "cpu_s_per_gb": "processor time of the daemon, s per GB",
    "p99": "99th percentile, us",
    "slowest_to_mean": "slowest connection / mean",
    "fds": "descriptors per connection",
    "cpu_to_alone": "processor time per byte, to without",
}


def table(head: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """As Markdown has it."""
    rows = [head, ["---"] * len(head), *lines]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def titles(measurement: Measurement) -> dict[str, str]:
    """What the contenders are called."""
    return {
        "ours": "vhostvsock",
        "also": " ".join(["with", *as_option(measurement.also or "")]),
        "peer": "vhost-device-vsock",
        "limit": "limit",
    }


def circumstances(measurement: Measurement) -> str:
    """What was measured, where and how often."""
    pinned = ", pinned" if measurement.pinned else ""
    beside = f", beside {measurement.peer}" if measurement.peer else ""
    return (
        f"{measurement.machine}; medians of {measurement.runs} runs of {measurement.seconds} s{pinned} "
        f"(lowest–highest){beside}."
    )


def _ratio_text(ratio: Ratio | None) -> str:
    return "–" if ratio is None else figure(ratio.median)


def main_table(measurement: Measurement) -> str:
    """Each row's value, and how it compares."""
    named = titles(measurement)
    ours = [name for name in ("ours", "also") if name in measurement.contenders]
    head = ["row", "", *(named[name] for name in ours)]
    labels = {"peer": "x peer", "limit": "of limit"}
    others = [(name, label) for name, label in labels.items() if name in measurement.contenders]
    for name, label in others:
        head += [named[name], label]
        if name == "peer" and "also" in ours:
            head.append(f"{named['also']}, {label}")

    def line(row: Row) -> list[str]:
        words = [f"{row.title} (`{row.name}`)", row.unit]
        words += [measurement.cell(row.name, name).text() for name in ours]
        for name, _ in others:
            words += [measurement.cell(row.name, name).text(), _ratio_text(measurement.ratio(row, "ours", name))]
            if name == "peer" and "also" in ours:
                words.append(_ratio_text(measurement.ratio(row, "also", name)))
        return words

    return table(head, map(line, measurement.rows))


def extras_table(measurement: Measurement) -> str:
    """Values beside the rows' own; nothing if there are none."""
    named = titles(measurement)
    latencies = any(row.unit == "us" for row in measurement.rows)
    contenders = [name for name in measurement.contenders if name != "limit" or latencies]
    lines = []
    for row in measurement.rows:
        for key, title in EXTRAS.items():
            cells = [measurement.cell(row.name, name) for name in contenders]
            if any(cell.values(key) for cell in cells):
                lines.append([f"`{row.name}`", title, *(cell.text(key) for cell in cells)])
    return table(["row", "", *(named[name] for name in contenders)], lines) if lines else ""


def markdown(measurement: Measurement) -> str:
    """Both tables."""
    return "\n\n".join(part for part in (main_table(measurement), extras_table(measurement)) if part)
