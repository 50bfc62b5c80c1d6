"""How many instructions the device spends on a packet: counted by callgrind, compared with a table that is checked in.

Before: scripts/insns set everything up; or a test asks. After: figures for each row, or what is wrong with them.
Rules:  what is counted is the device's own code in user space, of a workload in one thread that does the same each time
        (native/benches/insns): two runs differ by nothing, so a figure needs no quiet machine. It depends on the
        compiler: the table has a section for each that it was made with.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
import tomllib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TABLE = ROOT / "tests" / "perf" / "insns.toml"
# A figure may differ from its entry by so much.
MARGIN = 0.10
REGENERATE = "scripts/insns --write"

HEADER = f"""\
# Instructions in user space that the device spends on one unit of each row of native/benches/insns, by compiler.
# Made by: {REGENERATE}
# tests/perf compares, with a margin of {MARGIN:.0%} to both sides.
"""

# Where instructions belong, by the file that they were compiled from; the first that fits.
PARTS = (
    ("ring", r"/native/src/virtio/queue\.rs$"),
    ("guest memory", r"/native/src/virtio/"),
    ("mux", r"/native/src/(mux/|slab|ids|timers)"),
    ("headers", r"/native/src/packet/"),
    ("sockets", r"/native/src/(host/|device/(hosts|clients|reaching|visibility)\.rs)"),
    ("packets in and out", r"/native/src/device/(from_guest|(to_guest/)?messages|to_guest)\.rs$"),
    ("event loop", r"/native/src/(device/|stats)"),
    ("system calls, this side", r"/rustix-|/sysdeps/unix/|syscall|/libc\.so"),
    ("Rust's library, inlined", r"^/rustc/|/library/|/hashbrown-"),
    ("libc", r""),
)


class InsnsError(Exception):
    """There are no figures; the text says why."""


@dataclass(frozen=True)
class Row:
    """What one row cost."""

    name: str
    unit: str
    units: int
    instructions: int
    parts: Counter[str]
    packets: int
    kicks: int
    interrupts: int

    @property
    def figure(self) -> float:
        """Instructions for one unit."""
        return self.instructions / self.units


def compiler() -> str:
    """The compiler at hand, as a section of the table: its version and what it compiles for."""
    said = subprocess.run(["rustc", "-vV"], capture_output=True, text=True, check=True, cwd=ROOT).stdout
    fields = dict(line.split(": ", 1) for line in said.splitlines() if ": " in line)
    return f"{fields['release']} {fields['host']}"


def build() -> Path:
    """Compiles the workload, as a release is compiled."""
    command = ["cargo", "bench", "--no-run", "--manifest-path", "native/Cargo.toml", "--bench", "insns"]
    done = subprocess.run([*command, "--message-format", "json"], cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise InsnsError(f"{' '.join(command)}:\n{done.stderr[-4000:]}")
    messages = map(json.loads, done.stdout.splitlines())
    (program,) = (message["executable"] for message in messages if message.get("executable"))
    return Path(program)


def count(program: Path, names: list[str]) -> list[Row]:
    """Runs rows (none: all) under callgrind, which writes one profile for each."""
    with tempfile.TemporaryDirectory(prefix="vhv-insns-") as directory:
        profile = Path(directory) / "profile"
        command = [
            *("valgrind", "--quiet", "--tool=callgrind", f"--callgrind-out-file={profile}"),
            *("--toggle-collect=*ByHand::turn*", "--zero-before=insns::measured*", "--dump-before=insns::report*"),
            *(str(program), *names),
        ]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise InsnsError(f"{' '.join(command)}:\n{done.stderr[-4000:]}")
        found = [json.loads(line) for line in done.stdout.splitlines()]
        return [row(said, profile.with_name(f"profile.{n}")) for n, said in enumerate(found, 1)]


def row(said: dict[str, int | str], profile: Path) -> Row:
    """What the workload said of a row, and what callgrind wrote."""
    if not profile.exists():
        raise InsnsError("callgrind wrote no profile: it did not find the functions that begin and end a row")
    parts: Counter[str] = Counter()
    for file, cost in self_costs(profile.read_text(errors="replace")):
        parts[next(part for part, pattern in PARTS if re.search(pattern, file))] += cost
    return Row(
        name=str(said["row"]),
        unit=str(said["unit"]),
        units=int(said["units"]),
        instructions=sum(parts.values()),
        parts=parts,
        packets=int(said["from_guest"]) + int(said["to_guest"]),
        kicks=int(said["kicks"]),
        interrupts=int(said["interrupts"]),
    )


def self_costs(profile: str) -> Iterator[tuple[str, int]]:
    """Source files with instructions of their own, from a profile in callgrind's format.

    `fl`, `fi` and `fe` name the file of the lines that follow; the line behind `calls` is what a called function took.
    """
    names: dict[str, str] = {}
    file, skip = "", False
    for line in profile.splitlines():
        if match := re.match(r"(fl|fi|fe)=\((\d+)\)(?: (.*))?", line):
            names[match[2]] = match[3] or names[match[2]]
            file = names[match[2]]
        elif match := re.match(r"c(?:fi|fl)=\((\d+)\) (.*)", line):
            names[match[1]] = match[2]
        elif line.startswith("calls="):
            skip = True
        elif re.match(r"[0-9+*-]", line):
            cost = line.split()
            if not skip and len(cost) > 1:
                yield file, int(cost[1])
            skip = False


def entries(toolchain: str) -> dict[str, float] | None:
    """What the table says for a compiler; nothing if it has no section for it."""
    if not TABLE.exists():
        return None
    section: dict[str, float] | None = tomllib.loads(TABLE.read_text(encoding="utf-8")).get(toolchain)
    return section


def write(toolchain: str, rows: list[Row]) -> None:
    """Makes the table's section for a compiler anew; others stay."""
    sections = tomllib.loads(TABLE.read_text(encoding="utf-8")) if TABLE.exists() else {}
    sections[toolchain] = {row.name: round(row.figure, 1) for row in rows}
    lines = [HEADER]
    for name, section in sorted(sections.items()):
        lines.append(f'["{name}"]\n' + "".join(f"{key} = {value}\n" for key, value in section.items()))
    TABLE.write_text("\n".join(lines), encoding="utf-8")


def judge(rows: list[Row], table: dict[str, float]) -> list[str]:
    """What is not as the table says, a line each."""
    wrong = []
    for row in rows:
        entry = table.get(row.name)
        if entry is None:
            wrong.append(f"{row.name}: the table has no entry")
        elif abs(row.figure - entry) > MARGIN * entry:
            more = row.figure > entry
            wrong.append(
                f"{row.name}: {row.figure:,.0f} instructions for one {row.unit}, and the table says {entry:,.0f} "
                f"({row.figure / entry - 1:+.0%}): {'slower' if more else 'faster, which the table should hold fast'}"
            )
    gone = sorted(table.keys() - {row.name for row in rows})
    return wrong + [f"{name}: the table has an entry for a row that is no more" for name in gone]


def markdown(rows: list[Row]) -> str:
    """All figures, by part."""
    names = [part for part, _ in PARTS]
    lines = ["| row | for one | instructions | " + " | ".join(names) + " |", "|" + " --- |" * (3 + len(names))]
    for row in rows:
        shares = (f"{row.parts[name] / row.units:,.0f}" for name in names)
        lines.append(f"| `{row.name}` | {row.unit} | {row.figure:,.0f} | " + " | ".join(shares) + " |")
    return "\n".join(lines)


def main(words: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="scripts/insns",
        description="Count the instructions that the device spends on a packet, by part, and compare with the table.",
        epilog=f"The table is {TABLE.relative_to(ROOT)}. Exit codes: 0 as the table says, 1 not, 2 wrong usage.",
    )
    parser.add_argument("rows", nargs="*", metavar="ROW", help="only these rows, without a comparison (default: all)")
    parser.add_argument("--write", action="store_true", help="make the table anew for the compiler at hand")
    options = parser.parse_args(words)
    if options.write and options.rows:
        parser.error("--write is for all rows")
    try:
        toolchain, rows = compiler(), count(build(), options.rows)
    except (InsnsError, OSError, subprocess.CalledProcessError) as error:
        print(f"insns: error: {error}", file=sys.stderr)
        return 1
    print(f"rustc {toolchain}\n\n{markdown(rows)}")
    if options.rows:
        return 0
    if options.write:
        write(toolchain, rows)
        return 0
    table = entries(toolchain)
    wrong = [f"the table has no section for rustc {toolchain}"] if table is None else judge(rows, table)
    for line in wrong:
        print(f"insns: {line}", file=sys.stderr)
    if wrong:
        print(f"insns: hint: if that is as it should be: {REGENERATE}", file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
