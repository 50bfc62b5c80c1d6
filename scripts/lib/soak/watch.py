"""What a daemon uses, sample by sample, and whether that has grown.

Before: run.py names the daemon's process and says when the load is complete.
After:  the lowest values of two windows of time, side by side, and a verdict on each.
Rules:  - Judged is what the daemon alone decides: descriptors, threads, and memory of its own. Its whole RSS and PSS
          have the guests' memory in them, which grows as guests touch it; they are shown.
        - Windows are compared by their lowest values: what comes and goes is no growth, and a leak does not go.
"""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

MIB = 1 << 20
# The fifth minute, and the last one.
_WINDOW = 60.0
_FIRST = 240.0
# smaps_rollup walks all pages of all guests: not each second.
_PSS_EVERY = 5.0


@dataclass(frozen=True)
class Sample:
    """One look: seconds since the start of the load, and what was used then, in bytes where it is memory."""

    at: float
    fds: int
    threads: int
    own: int
    rss: int
    pss: int


@dataclass(frozen=True)
class Limit:
    """How much more than before is no growth: a share of it, and a number."""

    share: float
    number: float

    def exceeded(self, before: float, after: float) -> bool:
        return after > before * (1 + self.share) + self.number


# Connections that come and go make descriptors and buffers come and go; threads do not.
LIMITS = {"fds": Limit(0.02, 64), "threads": Limit(0, 0), "own": Limit(0.05, 4 * MIB)}
TITLES = {
    "fds": "file descriptors",
    "threads": "threads",
    "own": "memory of its own (RssAnon)",
    "rss": "RSS, guests' memory included",
    "pss": "PSS, likewise",
}


@dataclass(frozen=True)
class Change:
    """One quantity in both windows."""

    name: str
    before: float
    after: float

    @property
    def grown(self) -> bool:
        return self.name in LIMITS and LIMITS[self.name].exceeded(self.before, self.after)

    def text(self) -> str:
        verdict = "GROWN" if self.grown else "fine" if self.name in LIMITS else "not judged"
        if self.name in ("fds", "threads"):
            return f"{TITLES[self.name]:<30} {self.before:>9.0f} -> {self.after:>9.0f}      {verdict}"
        return f"{TITLES[self.name]:<30} {self.before / MIB:>9.1f} -> {self.after / MIB:>9.1f} MiB  {verdict}"


def windows(seconds: float) -> tuple[tuple[float, float], tuple[float, float]]:
    """The two stretches of time that are compared, for a load of so many seconds."""
    length = min(_WINDOW, seconds / 6)
    first = min(_FIRST, seconds / 6)
    return (first, first + length), (seconds - length, seconds)


@dataclass
class Watch:
    """The samples of one process."""

    pid: int
    samples: list[Sample] = field(default_factory=list)
    _begin: float = field(default_factory=time.monotonic)
    _pss: tuple[float, int] | None = None

    def begin(self) -> None:
        """The load is complete: time counts from here."""
        self._begin = time.monotonic()
        self._pss = None
        self.samples.clear()

    def look(self) -> Sample:
        """Take one sample."""
        now = time.monotonic() - self._begin
        proc = Path("/proc") / str(self.pid)
        status = fields(proc / "status")
        if self._pss is None or now - self._pss[0] >= _PSS_EVERY:
            self._pss = (now, fields(proc / "smaps_rollup")["Pss"] * 1024)
        sample = Sample(
            at=round(now, 2),
            fds=len(list((proc / "fd").iterdir())),
            threads=status["Threads"],
            own=status["RssAnon"] * 1024,
            rss=status["VmRSS"] * 1024,
            pss=self._pss[1],
        )
        self.samples.append(sample)
        return sample

    def changes(self, seconds: float) -> list[Change]:
        """All quantities in the two windows. There must be samples in both."""
        lowest = []
        for begin, end in windows(seconds):
            within = [asdict(sample) for sample in self.samples if begin <= sample.at <= end]
            lowest.append({name: min(each[name] for each in within) for name in TITLES})
        before, after = lowest
        return [Change(name, before[name], after[name]) for name in TITLES]


def fields(path: Path) -> dict[str, int]:
    """The lines `Name: 123 kB` of a file in /proc, by name."""
    found = {}
    for line in path.read_text().splitlines():
        name, _, value = line.partition(":")
        words = value.split()
        if words and words[0].isdigit():
            found[name] = int(words[0])
    return found
