"""The verdict of scripts/soak: which stretches of time are compared, and what is growth."""

from __future__ import annotations

import os

import pytest

from scripts.lib.soak.watch import MIB, Sample, Watch, windows


def test_the_fifth_and_the_last_minute_are_compared_in_a_long_run() -> None:
    assert windows(1800) == ((240, 300), (1740, 1800))


def test_a_short_run_is_compared_from_its_second_sixth_on() -> None:
    assert windows(30) == ((5, 10), (25, 30))


def _grown(**last: int) -> list[str]:
    """What is said to have grown in a run that uses more in its second half."""
    first = {"fds": 10_000, "threads": 70, "own": 40 * MIB, "rss": 400 * MIB, "pss": 200 * MIB}
    watch = Watch(os.getpid())
    for second in range(1800):
        used = {**first, **(last if second > 900 else {})}
        # What comes and goes is no growth.
        more = 1000 * (second % 7)
        watch.samples.append(Sample(at=second, **{**used, "fds": used["fds"] + more}))
    return [change.name for change in watch.changes(1800) if change.grown]


@pytest.mark.parametrize(
    ("last", "expected"),
    [
        ({}, []),
        ({"fds": 10_200}, []),
        ({"fds": 10_400}, ["fds"]),
        ({"threads": 71}, ["threads"]),
        ({"own": 45 * MIB}, []),
        ({"own": 47 * MIB}, ["own"]),
        ({"rss": 900 * MIB, "pss": 900 * MIB}, []),
        ({"fds": 5_000, "own": 20 * MIB, "threads": 60}, []),
    ],
)
def test_growth(last: dict[str, int], expected: list[str]) -> None:
    assert _grown(**last) == expected


def test_a_sample_of_this_process_has_everything_in_it() -> None:
    sample = Watch(os.getpid()).look()
    assert min(sample.fds, sample.threads, sample.own) > 0
    assert sample.rss >= sample.own
    assert sample.rss >= sample.pss > 0
