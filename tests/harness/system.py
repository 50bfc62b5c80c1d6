"""A guest that is itself a host: Python, this project and a QEMU are in its initramfs, beside what every guest has.

Before: tests/vm/test_host_kernel.py wants a host with a kernel that this machine does not have.
After:  qemu.py boots it.
Rules:  - What runs there is what runs here: the interpreter, the packages and the native library of this environment.
        - Programs bring the libraries that their loader finds here.
        - Python's own library comes as bytecode alone: to compile it takes an emulated processor minutes.
"""

from __future__ import annotations

import importlib.util
import os
import py_compile
import re
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

from harness.cpio import Archive
from harness.image import initramfs
from scripts.lib import fetch

ROOT = Path(__file__).resolve().parents[2]
SITE = "opt/project"
_PACKAGES = ("cffi", "_cffi_backend", "pycparser", "pyroute2")
# Large, and of no use there.
_LEFT_OUT = re.compile(r"(test|tests|idlelib|tkinter|turtledemo|lib2to3|ensurepip|pydoc_data|site-packages|config-.*)/")
_QEMU_FILES = ("bios-256k.bin", "bios-microvm.bin", "linuxboot_dma.bin", "kvmvapic.bin")


def _add_file(archive: Archive, path: Path, name: str | None = None) -> None:
    mode = 0o755 if os.access(path, os.X_OK) else 0o644
    archive.file((name or str(path)).lstrip("/"), path.read_bytes(), mode)


def _add_program(archive: Archive, path: Path, name: str | None = None) -> None:
    """A program or a library, with the libraries it needs."""
    _add_file(archive, path, name)
    done = subprocess.run(["ldd", str(path)], capture_output=True, text=True, check=False)
    for library in re.findall(r"(?:=> )?(/\S+) \(0x", done.stdout):
        _add_file(archive, Path(library))


def _add_bytecode(archive: Archive, root: Path, to: str) -> None:
    """Modules below a directory, each as bytecode where that is there."""
    for path in sorted(root.rglob("*")):
        inner = str(path.relative_to(root))
        if not path.is_file() or _LEFT_OUT.match(f"{inner}/") or "__pycache__" in inner:
            continue
        cached = Path(importlib.util.cache_from_source(str(path))) if path.suffix == ".py" else None
        if cached is not None and cached.exists():
            archive.file(f"{to}/{inner}c", cached.read_bytes())
        elif path.suffix == ".so":
            _add_program(archive, path, f"{to}/{inner}")
        elif path.suffix != ".a":
            _add_file(archive, path, f"{to}/{inner}")


def _add_python(archive: Archive) -> None:
    _add_program(archive, Path(sys.executable).resolve())
    library = sysconfig.get_paths()["stdlib"]
    _add_bytecode(archive, Path(library), library.lstrip("/"))
    for package in _PACKAGES:
        spec = importlib.util.find_spec(package)
        assert spec is not None, package
        assert spec.origin is not None, package
        origin = Path(spec.origin)
        if spec.submodule_search_locations:
            _add_bytecode(archive, origin.parent, f"{SITE}/{package}")
        else:
            _add_program(archive, origin, f"{SITE}/{origin.name}")


def _add_source(archive: Archive, root: Path, to: str) -> None:
    """Our own modules, as source and as bytecode that is not compared with it (files have no times there)."""
    with tempfile.TemporaryDirectory() as directory:
        compiled = f"{directory}/compiled"
        for path in sorted(root.rglob("*")):
            inner = path.relative_to(root)
            if not path.is_file() or "__pycache__" in inner.parts:
                continue
            if path.suffix == ".py":
                mode = py_compile.PycInvalidationMode.UNCHECKED_HASH
                py_compile.compile(str(path), compiled, doraise=True, invalidation_mode=mode)
                cached = importlib.util.cache_from_source(f"{to}/{inner}")
                archive.file(cached, Path(compiled).read_bytes())
            add = _add_program if path.suffix == ".so" else _add_file
            add(archive, path, f"{to}/{inner}")


def _add_qemu(archive: Archive) -> None:
    """The installed QEMU, and a kernel for its guest."""
    found = fetch.installed_qemu()
    if found is None:
        raise fetch.FetchError("qemu-system-x86_64 is not installed", "apt install qemu-system-x86")
    program = Path(found.command[0])
    _add_program(archive, program.resolve(), "usr/bin/qemu-system-x86_64")
    for module in Path("/usr/lib/x86_64-linux-gnu/qemu").glob("accel-*x86_64.so"):
        _add_program(archive, module)
    for name in _QEMU_FILES:
        for directory in ("/usr/share/qemu", "/usr/share/seabios"):
            if (path := Path(directory) / name).exists():
                _add_file(archive, path, f"usr/share/qemu/{name}")
                break
    kernel = fetch.kernel("6.1")
    _add_file(archive, kernel.image, "opt/guest/vmlinuz")
    _add_file(archive, initramfs(kernel), "opt/guest/initrd")


def system_image(kernel: fetch.Kernel, target: Path, programs: dict[str, Path]) -> Path:
    """Write the initramfs of such a guest to `target`; `programs` by the names that they get in /bin."""
    archive = Archive()
    _add_python(archive)
    _add_source(archive, ROOT / "vhostvsock", f"{SITE}/vhostvsock")
    _add_source(archive, ROOT / "tests" / "vm" / "inside", f"{SITE}/inside")
    for name in ("__init__", "guest", "waiting"):
        _add_file(archive, ROOT / "tests" / "harness" / f"{name}.py", f"{SITE}/harness/{name}.py")
    _add_qemu(archive)
    for name, path in programs.items():
        _add_program(archive, path, f"bin/{name}")
    python = Path(sys.executable).resolve()
    start = f"#!/bin/sh\nPYTHONPATH=/{SITE} PYTHONDONTWRITEBYTECODE=1 exec {python} "
    archive.file("bin/python3", f'{start}"$@"\n'.encode(), 0o755)
    archive.file("bin/vhostvsock", f'{start}-m vhostvsock "$@"\n'.encode(), 0o755)
    archive.link("var/run", "/run")
    # The kernel unpacks one archive behind the other.
    target.write_bytes(initramfs(kernel).read_bytes() + archive.finish())
    return target
