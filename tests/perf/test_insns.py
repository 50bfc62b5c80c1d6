"""The device spends as many instructions on a packet as the table says, within a margin: a hot path that became slower
shows here, on any machine, however busy.

Before: the compiler at hand made the workload. After: scripts/lib/insns.py counted with callgrind.
Rules:  - What is faster than the table fails as well, so that what was won is held fast.
        - Another compiler makes other figures: without a section of its own, they cannot be judged. That is a missing
          prerequisite, which only CI insists on.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from conftest import lacking, tool

from scripts.lib.insns import REGENERATE, TABLE, build, compiler, count, entries, judge


@pytest.fixture(scope="module")
def workload() -> Path:
    for name in ("cargo", "rustc", "valgrind"):
        tool(name)
    return build()


@pytest.mark.timeout(600)
def test_a_packet_takes_as_many_instructions_as_the_table_says(workload: Path) -> None:
    table = entries(compiler())
    if table is None:
        lacking(f"a section for rustc {compiler()} in {TABLE}; {REGENERATE} makes it")
    wrong = judge(count(workload, []), table)
    assert not wrong, "\n".join([*wrong, f"if that is as it should be: {REGENERATE}"])


@pytest.mark.timeout(600)
def test_two_runs_count_the_same(workload: Path) -> None:
    first, second = ({row.name: row.figure for row in count(workload, ["g2h-4k", "h2g", "rtt"])} for _ in range(2))
    assert first == pytest.approx(second, rel=0.001)
