"""Values that need no guest: how soon a daemon is ready, and what it holds of the machine's memory.

Before: measure.py. After: a daemon is started, looked at, and ended.
Rule:   memory is the kernel's account of it in /proc: resident (RSS) for a daemon alone, and a proportional share of
        what is shared (PSS) where two daemons are compared.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from scripts.lib.bench.daemons import Contender, Daemon
from scripts.lib.bench.results import Result
from scripts.lib.bench.rows import Row

# VMs of which the difference is taken, so that one VM more or less of anything does not show.
_FURTHER = 64


def _memory(daemon: Daemon, field: str) -> float:
    """In KiB."""
    text = Path(f"/proc/{daemon.process.pid}/smaps_rollup").read_text()
    found = re.search(rf"^{field}:\s+(\d+) kB", text, re.MULTILINE)
    if found is None:
        raise OSError(f"the kernel does not tell the {field} of a process")
    return float(found[1])


def _ready_with(contender: Contender, vms: int, pinned: bool, field: str) -> float:
    with Daemon(contender, vms, pinned) as daemon:
        daemon.wait()
        return _memory(daemon, field)


def _start(contender: Contender, pinned: bool) -> float:
    with Daemon(contender, 1, pinned) as daemon:
        return daemon.wait() * 1000


def _resident(contender: Contender, pinned: bool) -> float:
    return _ready_with(contender, 1, pinned, "Rss") / 1024


def _further_vm(contender: Contender, pinned: bool) -> float:
    one = _ready_with(contender, 1, pinned, "Pss")
    return (_ready_with(contender, 1 + _FURTHER, pinned, "Pss") - one) / _FURTHER


ROWS: dict[Row, Callable[[Contender, bool], float]] = {
    Row("start", "ms", "from start to ready"): _start,
    Row("memory", "MiB", "resident memory, one VM without a guest"): _resident,
    Row("memory-vm", "KiB", "memory of each further VM without a guest"): _further_vm,
}


def measure(contender: Contender, row: Row, pinned: bool) -> Result:
    """One value, of a fresh daemon."""
    try:
        return {"row": row.name, "value": ROWS[row](contender, pinned), "unit": row.unit}
    except OSError as error:
        return {"row": row.name, "failed": str(error)}
