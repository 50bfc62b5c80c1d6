"""Reading what callgrind writes, and judging it."""

from __future__ import annotations

from collections import Counter

from scripts.lib.insns import Row, judge, self_costs

PROFILE = """\
events: Ir
fl=(1) src/a.rs
fn=(1) a
10 5
+2 7
fi=(2) src/b.rs
* 3
fe=(1)
15 1
cfi=(3) src/c.rs
cfn=(2) c
calls=2 20
16 1000
-1 4
fl=(3)
fn=(2)
20 1000
"""


def row(name: str, figure: int) -> Row:
    return Row(name, "packet", 10, figure * 10, Counter(), 10, 1, 1)


def test_costs_belong_to_the_file_of_the_line_and_those_of_callees_to_their_own() -> None:
    total: Counter[str] = Counter()
    for file, cost in self_costs(PROFILE):
        total[file] += cost
    assert total == {"src/a.rs": 17, "src/b.rs": 3, "src/c.rs": 1000}


def test_a_tenth_more_or_less_is_within_the_margin() -> None:
    assert judge([row("a", 1100), row("b", 900)], {"a": 1000, "b": 1000}) == []


def test_what_lies_beyond_the_margin_is_told_in_either_direction() -> None:
    slower, faster = judge([row("a", 1101), row("b", 899)], {"a": 1000, "b": 1000})
    assert slower == "a: 1,101 instructions for one packet, and the table says 1,000 (+10%): slower"
    assert faster.startswith("b: 899 instructions")
    assert "(-10%): faster" in faster


def test_rows_and_entries_have_to_match() -> None:
    assert judge([row("new", 1)], {"old": 1.0}) == [
        "new: the table has no entry",
        "old: the table has an entry for a row that is no more",
    ]
