"""The native part under tools that need a build of their own: the fuzzers, loom, AddressSanitizer.

Before: native/fuzz, native/src/device/interleavings.rs and the driver-level tests. After: none of them found anything.
Rule:   a fuzzer runs here for seconds, from what it learned before; docs/fuzzing.md says how to run it for hours.
"""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from conftest import ROOT, lacking, tool

from scripts.lib import fuzz

SECONDS = 5


def run(*command: str, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, cwd=ROOT, env={**os.environ, **env}, capture_output=True, text=True, errors="replace", check=False
    )


def cargo_test(*arguments: str, target: str, **env: str) -> str:
    """Run tests of the native part as a build of its own; their output."""
    manifest = ("--manifest-path", "native/Cargo.toml", "-p", "vhostvsock-native")
    done = run(tool("cargo"), "test", *manifest, "--target-dir", f"native/target/{target}", *arguments, **env)
    assert done.returncode == 0, f"{done.stdout[-6000:]}{done.stderr[-3000:]}"
    return done.stdout


@pytest.mark.timeout(900)
def test_no_fuzzer_finds_anything_within_seconds() -> None:
    tool("cargo")
    done = run(sys.executable, "scripts/lib/fuzz.py", "--seconds", str(SECONDS))
    if done.returncode == 2:
        lacking(f"cargo-fuzz and what it needs: {done.stderr[-2000:]}")
    assert done.returncode == 0, f"{done.stdout}{done.stderr[-6000:]}"
    assert [line.split()[0] for line in done.stdout.splitlines()] == fuzz.targets()


@pytest.mark.timeout(900)
def test_threads_may_come_in_any_order() -> None:
    said = cargo_test("--lib", "interleavings", target="loom", RUSTFLAGS="--cfg loom")
    assert "6 passed" in said


@pytest.mark.timeout(900)
def test_the_driver_finds_nothing_wrong_with_addresses() -> None:
    tool("cargo")
    if not fuzz.has_address_sanitizer():
        lacking("a Rust toolchain with AddressSanitizer's runtime (rustup's has it)")
    cargo_test(
        # Not `exhaustion`: where memory runs out, AddressSanitizer gives up first.
        *("--target", fuzz.TRIPLE, "--test", "conformance", "--test", "rings", "--test", "exhaustive"),
        target="asan",
        RUSTC_BOOTSTRAP="1",
        RUSTFLAGS="-Zsanitizer=address",
        CARGO_PROFILE_DEV_DEBUG="line-tables-only",
        # The device handles it itself.
        ASAN_OPTIONS="handle_sigbus=0",
        # Instrumented, everything takes a few times as long.
        PROPTEST_CASES="32",
    )
