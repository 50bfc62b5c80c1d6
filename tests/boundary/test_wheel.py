"""`pip install .` as a user does it: one wheel for every Python, which brings the command and the native part."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT, lacking

from vhostvsock import __version__

VERSIONS = ("3.11", "3.12", "3.13")


def python(version: str) -> str:
    """An interpreter of this version that can make virtual environments."""
    found = [f"python{version}", *map(str, Path.home().glob(f".pyenv/versions/{version}.*/bin/python"))]
    if sys.version_info[:2] == tuple(map(int, version.split("."))):
        found.insert(0, sys.executable)
    for each in found:
        check = [each, "-c", "import ensurepip, venv"]
        if shutil.which(each) and subprocess.run(check, capture_output=True, check=False).returncode == 0:
            return each
    return ""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if shutil.which("cargo") is None:
        lacking("cargo")
    made = tmp_path_factory.mktemp("wheel")
    done = subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "-w", str(made), str(ROOT)],
        env={**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    (path,) = made.iterdir()
    return path


@pytest.mark.timeout(600)
def test_one_wheel_serves_every_python(wheel: Path) -> None:
    assert wheel.name.startswith(f"vhostvsock-{__version__}-py3-none-")


@pytest.mark.timeout(300)
@pytest.mark.parametrize("version", VERSIONS)
def test_the_wheel_installs_and_the_command_serves(version: str, wheel: Path, tmp_path: Path) -> None:
    interpreter = python(version)
    if not interpreter:
        lacking(f"python{version} with venv")
    venv = tmp_path / "venv"
    subprocess.run([interpreter, "-m", "venv", str(venv)], check=True)
    pip = [str(venv / "bin" / "pip"), "install", "-q", "--disable-pip-version-check", str(wheel)]
    subprocess.run(pip, check=True, timeout=200)
    said = subprocess.run([str(venv / "bin" / "vhostvsock"), "--version"], capture_output=True, text=True, check=True)
    assert said.stdout == f"vhostvsock {__version__}\n"
    code = "from vhostvsock.native import Engine\nwith Engine() as engine: print(engine.next_event())"
    ran = subprocess.run([str(venv / "bin" / "python"), "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout == "None\n"
