#!/usr/bin/env python3
"""The fuzzers: built with cargo-fuzz, run one after the other, and their findings explained.

Before: scripts/fuzz set the toolchain up.
After:  one line for each target on stdout; exit code 1 if one of them found something, 2 if they could not be built.
Rules:  - Stable Rust does: RUSTC_BOOTSTRAP=1 lets it take the options that cargo-fuzz needs. AddressSanitizer is used
          where the toolchain has its runtime, as those of rustup have.
        - What a fuzzer learns goes into a corpus in the cache. That of the repository is only read, but for --minimise.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

# Run as a program, the directory with fetch_apt.py is on the path; imported by tests, the repository is.
if __package__:
    from scripts.lib.fetch_apt import cache_dir
else:
    from fetch_apt import cache_dir

ROOT = Path(__file__).resolve().parents[2]
FUZZ = ROOT / "native" / "fuzz"
TRIPLE = f"{os.uname().machine}-unknown-linux-gnu"
CARGO_FUZZ = "0.13.2"
# The longest input that can make a difference, in bytes.
LONGEST = {"header": 44, "connect": 64}
LONGEST_ELSE = 4096
# One input takes no longer than this, in seconds, on the slowest of machines.
INPUT_TIMEOUT = 30
# How often a fuzzer that runs for long is heard of, in seconds.
PROGRESS = 30.0

HELP = """\
a finding:
  The line says which file made it, and how to keep it. Kept in native/fuzz/crashes/TARGET/, it is replayed by every
  `cargo test` from then on. RUST_BACKTRACE=1 and `cargo test -p vhostvsock-fuzz --test replay` show where it happens.

examples:
  scripts/fuzz conversation --seconds 3600
  scripts/fuzz --seconds 5
  scripts/fuzz --minimise

exit codes:
  0  nothing was found     1  something was     2  the fuzzers cannot be built or run
"""


@dataclass(frozen=True)
class Outcome:
    """What one fuzzer did."""

    runs: int
    seconds: float
    covered: int
    edges: int
    inputs: int
    finding: Path | None


def targets() -> list[str]:
    """All targets, in the order of the manifest."""
    return re.findall(r'^name = "fuzz-(\w+)"', (FUZZ / "Cargo.toml").read_text(), re.MULTILINE)


def fail(what: str, hint: str) -> SystemExit:
    print(f"fuzz: error: {what}\nfuzz: hint: {hint}", file=sys.stderr)
    return SystemExit(2)


def say(text: str) -> None:
    print(f"fuzz: {text}", file=sys.stderr, flush=True)


def find_cargo_fuzz() -> None:
    """Have cargo find its subcommand: from PATH, or from the cache, where it is put if it is missing."""
    if shutil.which("cargo-fuzz"):
        return
    home = cache_dir() / f"cargo-fuzz-{CARGO_FUZZ}"
    os.environ["PATH"] = f"{home / 'bin'}:{os.environ['PATH']}"
    if shutil.which("cargo-fuzz"):
        return
    say(f"installing cargo-fuzz {CARGO_FUZZ} into the cache (once: minutes)")
    command = ["cargo", "install", "--locked", "--quiet", "--version", CARGO_FUZZ, "--root", str(home), "cargo-fuzz"]
    if subprocess.run(command, check=False).returncode != 0:
        raise fail(
            "cargo-fuzz could not be installed", "check the network, or install it yourself so that it is on PATH"
        )


def has_address_sanitizer() -> bool:
    done = subprocess.run(["rustc", "--print", "target-libdir"], capture_output=True, text=True, check=True)
    return any(Path(done.stdout.strip()).glob("librustc*_rt.asan.a"))


def target_directory(sanitizer: str) -> Path:
    return ROOT / "native" / "target" / f"fuzz-{sanitizer}"


def build(sanitizer: str) -> None:
    """Build all fuzzers."""
    target = target_directory(sanitizer)
    command = ["cargo", "fuzz", "build", "--fuzz-dir", str(FUZZ), "--features", "libfuzzer", "--target", TRIPLE]
    command += ["--target-dir", str(target), "--sanitizer", sanitizer, "--codegen-units", "4"]
    env = {**os.environ, "RUSTC_BOOTSTRAP": "1", "CARGO_PROFILE_RELEASE_LTO": "off"}
    say(f"building the fuzzers (sanitizer: {sanitizer})")
    done = subprocess.run(command, cwd=ROOT / "native", env=env, check=False, stderr=subprocess.PIPE, text=True)
    if done.returncode != 0:
        sys.stderr.write(done.stderr[-6000:])
        raise fail("the fuzzers could not be built", "a C++ compiler is needed, too: apt install g++")


def command_for(program: Path, target: str, options: list[str]) -> list[str]:
    longest = LONGEST.get(target, LONGEST_ELSE)
    return [str(program), f"-max_len={longest}", f"-timeout={INPUT_TIMEOUT}", *options]


def environment() -> dict[str, str]:
    # The device handles SIGBUS itself; AddressSanitizer must let it.
    return {**os.environ, "ASAN_OPTIONS": "detect_odr_violation=0:allow_user_segv_handler=1", "RUST_BACKTRACE": "1"}


def run(program: Path, target: str, seconds: int) -> Outcome:
    """Fuzz one target."""
    home = cache_dir() / "fuzz" / target
    learned, found = home / "corpus", home / "found"
    for directory in (learned, found):
        directory.mkdir(parents=True, exist_ok=True)
    kept = [str(path) for path in (FUZZ / "corpus" / target, FUZZ / "crashes" / target) if path.is_dir()]
    options = [f"-max_total_time={seconds}", f"-artifact_prefix={found}/", str(learned), *kept]
    start = last = time.monotonic()
    log: list[str] = []
    runs = covered = edges = inputs = 0
    with subprocess.Popen(
        command_for(program, target, options), stderr=subprocess.PIPE, text=True, errors="replace", env=environment()
    ) as process:
        assert process.stderr is not None
        for line in process.stderr:
            log = [*log[-400:], line]
            if said := re.match(r"#(\d+)\s.*?cov: (\d+) .*?corp: (\d+)/", line):
                runs, covered, inputs = int(said[1]), int(said[2]), int(said[3])
            elif said := re.match(r"Done (\d+) runs", line):
                runs = int(said[1])
            elif said := re.search(r"Loaded \d+ PC tables \((\d+) PCs\)", line):
                edges = int(said[1])
            if time.monotonic() - last >= PROGRESS:
                last = time.monotonic()
                say(f"{target}: {runs} inputs tried, {covered} of {edges} edges")
    finding = None
    if process.returncode != 0:
        named = re.search(r"Test unit written to (\S+)", "".join(log))
        sys.stderr.write("".join(log[-60:]))
        if named is None:
            raise fail(f"the fuzzer {target} ended with {process.returncode}", "see its output above")
        finding = Path(named[1])
    return Outcome(runs, time.monotonic() - start, covered, edges, inputs, finding)


def tell(target: str, outcome: Outcome) -> None:
    rate = outcome.runs / max(outcome.seconds, 1.0)
    print(
        f"{target:<13} {outcome.runs:>10} inputs in {outcome.seconds:.0f} s ({rate:.0f}/s), "
        f"{outcome.covered} of {outcome.edges} edges, corpus of {outcome.inputs}",
        flush=True,
    )
    if outcome.finding is not None:
        keep = f"native/fuzz/crashes/{target}"
        print(f"{target}: FOUND something: {outcome.finding}")
        print(f"  keep it: mkdir -p {keep} && cp {outcome.finding} {keep}/NAME")


def minimise(program: Path, target: str) -> None:
    """Replace the repository's corpus by the fewest inputs that reach as much as it and the cache's together."""
    learned, kept = cache_dir() / "fuzz" / target / "corpus", FUZZ / "corpus" / target
    with tempfile.TemporaryDirectory(prefix="fuzz-") as name:
        source, fresh = Path(name) / "source", Path(name) / "fresh"
        fresh.mkdir()
        source.mkdir()
        for path in [*learned.glob("*"), *kept.glob("*")]:
            # A fuzzer that runs meanwhile replaces its files.
            with contextlib.suppress(FileNotFoundError):
                shutil.copy(path, source)
        command = command_for(program, target, ["-set_cover_merge=1", str(fresh), str(source)])
        done = subprocess.run(command, env=environment(), capture_output=True, text=True, errors="replace", check=False)
        if done.returncode != 0:
            raise fail(f"the corpus of {target} could not be minimised", done.stderr[-2000:])
        shutil.rmtree(kept, ignore_errors=True)
        shutil.copytree(fresh, kept)
    files = list(kept.iterdir())
    print(f"{target:<13} {len(files)} inputs, {sum(path.stat().st_size for path in files)} bytes")


def main() -> int:
    known = targets()
    parser = argparse.ArgumentParser(
        prog="scripts/fuzz",
        description="Run the fuzzers of native/fuzz.",
        epilog=HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("target", nargs="*", metavar="TARGET", help=f"one of {', '.join(known)} (default: all)")
    parser.add_argument("--seconds", type=int, default=60, help="how long each runs (default: 60)")
    parser.add_argument("--sanitizer", choices=["address", "none"], help="default: address where the toolchain has it")
    parser.add_argument("--no-build", action="store_true", help="run what was built before, whatever changed since")
    parser.add_argument("--minimise", action="store_true", help="do not fuzz; make the repository's corpora anew")
    args = parser.parse_args()
    if unknown := set(args.target) - set(known):
        parser.error(f"no such target: {', '.join(sorted(unknown))}")
    sanitizer = args.sanitizer or ("address" if has_address_sanitizer() else "none")
    if not args.no_build:
        find_cargo_fuzz()
        build(sanitizer)
    programs = target_directory(sanitizer) / TRIPLE / "release"
    found = False
    for target in args.target or known:
        program = programs / f"fuzz-{target}"
        if args.minimise:
            minimise(program, target)
            continue
        outcome = run(program, target, args.seconds)
        tell(target, outcome)
        found |= outcome.finding is not None
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
