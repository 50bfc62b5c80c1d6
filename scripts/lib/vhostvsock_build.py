"""The build backend: check for a Rust toolchain in plain words, then let maturin do everything.

Before: pip (or `build`) calls the PEP 517 hooks named at the bottom; pyproject.toml points here with `backend-path`.
After:  maturin, with the same arguments.
Rule:   a missing or old toolchain ends with one message that says what to install, not with a traceback.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from typing import Any, NoReturn

# Debian 13's rustc; the same number as `rust-version` in native/Cargo.toml.
MINIMUM = (1, 85)


def _os_release() -> dict[str, str]:
    try:
        with open("/etc/os-release", encoding="utf-8") as file:
            pairs = (line.rstrip("\n").split("=", 1) for line in file if "=" in line)
            return {key: value.strip("\"'") for key, value in pairs}
    except OSError:
        return {}


def remedy(release: dict[str, str]) -> str:
    """The command that brings a new enough toolchain on this system."""
    rustup = "rustup (https://rustup.rs): `rustup toolchain install stable`"
    if release.get("ID") == "debian" and release.get("VERSION_ID") == "12":
        return f"`apt install rustc-web cargo-web` (Debian 12's plain rustc is too old), or {rustup}"
    if release.get("ID") == "debian":
        return f"`apt install rustc cargo`, or {rustup}"
    return f"rustc and cargo from your distribution if they are new enough, or {rustup}"


def parse_version(text: str) -> tuple[int, int] | None:
    """`rustc 1.85.0 (...)` -> (1, 85); None where there is no version in it."""
    found = re.search(r"\b(\d+)\.(\d+)\.\d+", text)
    return (int(found[1]), int(found[2])) if found else None


def _version_of(tool: str) -> tuple[int, int] | None:
    try:
        done = subprocess.run([tool, "--version"], capture_output=True, text=True, check=True, stdin=subprocess.DEVNULL)
    except (OSError, subprocess.CalledProcessError):
        return None
    return parse_version(done.stdout)


def _refuse(what: str) -> NoReturn:
    need = f"rustc and cargo >= {MINIMUM[0]}.{MINIMUM[1]}"
    print(
        f"\nvhostvsock: error: building vhostvsock needs a Rust toolchain ({need}): {what}"
        f"\nhint: install it with {remedy(_os_release())}, then run the same command again\n",
        file=sys.stderr,
        flush=True,
    )
    raise SystemExit(1)


def check_toolchain() -> None:
    """End the build with a clear message unless cargo and rustc are there and new enough."""
    for tool in (os.environ.get("CARGO", "cargo"), os.environ.get("RUSTC", "rustc")):
        version = _version_of(tool)
        if version is None:
            _refuse(f"`{tool}` was not found or does not run")
        if version < MINIMUM:
            _refuse(f"`{tool}` is version {version[0]}.{version[1]}")


def _maturin() -> Any:
    # Imported late, so that this file can be read and tested where maturin is not installed.
    import maturin

    return maturin


def get_requires_for_build_wheel(config_settings: Any = None) -> list[str]:
    check_toolchain()
    return list(_maturin().get_requires_for_build_wheel(config_settings))


def get_requires_for_build_editable(config_settings: Any = None) -> list[str]:
    check_toolchain()
    return list(_maturin().get_requires_for_build_editable(config_settings))


def get_requires_for_build_sdist(config_settings: Any = None) -> list[str]:
    return list(_maturin().get_requires_for_build_sdist(config_settings))


def prepare_metadata_for_build_wheel(metadata_directory: str, config_settings: Any = None) -> str:
    check_toolchain()
    return str(_maturin().prepare_metadata_for_build_wheel(metadata_directory, config_settings))


def prepare_metadata_for_build_editable(metadata_directory: str, config_settings: Any = None) -> str:
    check_toolchain()
    return str(_maturin().prepare_metadata_for_build_editable(metadata_directory, config_settings))


def build_wheel(wheel_directory: str, config_settings: Any = None, metadata_directory: str | None = None) -> str:
    check_toolchain()
    return str(_maturin().build_wheel(wheel_directory, config_settings, metadata_directory))


def build_editable(wheel_directory: str, config_settings: Any = None, metadata_directory: str | None = None) -> str:
    check_toolchain()
    return str(_maturin().build_editable(wheel_directory, config_settings, metadata_directory))


def build_sdist(sdist_directory: str, config_settings: Any = None) -> str:
    return str(_maturin().build_sdist(sdist_directory, config_settings))
