"""Which rows there are, and in which direction each is better.

Before: vsock-bench lists those that it measures, standing.py those that need no guest. After: every other module.
Rule:   a row is the same for every contender.
"""

from __future__ import annotations

from dataclasses import dataclass

# Units of what is better when it is less.
_COSTS = ("us", "ms", "B", "KiB", "MiB", "%", "wake-ups/s")


@dataclass(frozen=True)
class Row:
    """One row of the table."""

    name: str
    unit: str
    title: str
    # How many VMs the daemon serves.
    vms: int = 1

    @property
    def less_is_better(self) -> bool:
        return self.unit in _COSTS


def parse(listing: str) -> list[Row]:
    """Rows as `vsock-bench --list` prints them."""
    rows = []
    for line in listing.splitlines():
        name, unit, title, vms = line.split("\t")
        rows.append(Row(name, unit, title, int(vms)))
    return rows
