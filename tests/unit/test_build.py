"""The build backend says in plain words which Rust toolchain is missing and how to get it."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

BACKEND = Path(__file__).resolve().parents[2] / "scripts" / "lib" / "vhostvsock_build.py"


@pytest.fixture(scope="module")
def backend() -> ModuleType:
    spec = importlib.util.spec_from_file_location("vhostvsock_build", BACKEND)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("hook", ["get_requires_for_build_wheel", "get_requires_for_build_editable"])
def test_without_cargo_the_build_ends_with_one_clear_message(tmp_path: Path, hook: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", f"import vhostvsock_build; vhostvsock_build.{hook}()"],
        env={"PATH": str(tmp_path), "PYTHONPATH": str(BACKEND.parent), "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "vhostvsock: error: building vhostvsock needs a Rust toolchain (rustc and cargo >= 1.85)" in done.stderr
    assert "hint: install it with" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_toolchain_that_is_too_old_is_named_with_its_version(tmp_path: Path) -> None:
    for name in ("cargo", "rustc"):
        (tmp_path / name).write_text(f"#!/bin/sh\necho '{name} 1.63.0 (x 2022)'\n")
        (tmp_path / name).chmod(0o755)
    done = subprocess.run(
        [sys.executable, "-c", "import vhostvsock_build; vhostvsock_build.check_toolchain()"],
        env={"PATH": f"{tmp_path}:{os.defpath}", "PYTHONPATH": str(BACKEND.parent)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "`cargo` is version 1.63" in done.stderr


@pytest.mark.parametrize(
    ("release", "packages"),
    [
        ({"ID": "debian", "VERSION_ID": "12"}, "rustc-web cargo-web"),
        ({"ID": "debian", "VERSION_ID": "13"}, "rustc cargo"),
        ({"ID": "fedora"}, "rustup"),
        ({}, "rustup"),
    ],
)
def test_the_remedy_fits_the_system(backend: ModuleType, release: dict[str, str], packages: str) -> None:
    assert packages in backend.remedy(release)


def test_versions_are_read(backend: ModuleType) -> None:
    assert backend.parse_version("cargo 1.95.0 (f2d3ce0bd 2026-03-21)") == (1, 95)
    assert backend.parse_version("nothing") is None
