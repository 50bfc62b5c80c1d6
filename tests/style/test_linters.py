"""Linters are tests: what they say must hold for every file in the tree."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from conftest import ROOT, lacking, tool

NATIVE = ("--manifest-path", "native/Cargo.toml")
TARGETS = ["vhostvsock", "tests", "scripts"]


def check(*command: str) -> None:
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout[-6000:]}{done.stderr[-6000:]}"


def cargo_with(component: str) -> str:
    """cargo, with a component that not every installation has."""
    cargo = tool("cargo")
    done = subprocess.run([cargo, component, "--version"], capture_output=True, check=False, cwd=ROOT)
    if done.returncode != 0:
        lacking(f"cargo {component} (rustup component add {'rustfmt' if component == 'fmt' else component})")
    return cargo


def test_ruff_finds_nothing() -> None:
    check(tool("ruff"), "check", *TARGETS)


def test_python_is_formatted() -> None:
    check(tool("ruff"), "format", "--check", *TARGETS)


@pytest.mark.timeout(300)
def test_types_are_right() -> None:
    check(tool("mypy"))


def test_rust_is_formatted() -> None:
    check(cargo_with("fmt"), "fmt", *NATIVE, "--all", "--", "--check")


@pytest.mark.timeout(900)
def test_clippy_finds_nothing() -> None:
    check(cargo_with("clippy"), "clippy", "--quiet", *NATIVE, "--workspace", "--all-targets", "--", "-D", "warnings")


def shell_scripts() -> list[Path]:
    """Every file that is a shell script by its name or first line."""
    found = []
    for directory in ("scripts", ".ci", "tests"):
        for path in sorted((ROOT / directory).rglob("*")):
            if not path.is_file() or path.suffix in (".py", ".pyc"):
                continue
            with open(path, "rb") as file:
                first = file.readline(100)
            if path.suffix == ".sh" or (first.startswith(b"#!") and b"sh" in first):
                found.append(path)
    return found


def test_shellcheck_finds_nothing() -> None:
    scripts = shell_scripts()
    assert scripts
    check(tool("shellcheck"), "--external-sources", *map(str, scripts))
