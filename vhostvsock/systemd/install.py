"""Which files make vhostvsock a systemd service, where they go, and what is in them.

Before: cli/systemd.py. After: files.py writes and removes.
Rules:  - The units in units/ are whole and valid; only the path of the command in ExecStart= is put in here.
        - They go below /usr/local/lib, those of packages below /usr/lib: /etc stays the administrator's, who overrides
          them there.
        - A command that the hardened service could not see is refused here and not at its first start.
"""

from __future__ import annotations

import os
import re
import shutil
import sys
from collections.abc import Iterator
from importlib import resources
from pathlib import Path

from vhostvsock.errors import ConfigError, VhostvsockError
from vhostvsock.systemd import files, socket_units

# By name in units/: where each goes.
_PLACES = {
    "vhostvsock@.service": "systemd/system/vhostvsock@.service",
    "vhostvsock.service": "systemd/system/vhostvsock.service",
    "vhostvsock.sysusers.conf": "sysusers.d/vhostvsock.conf",
    "vhostvsock.tmpfiles.conf": "tmpfiles.d/vhostvsock.conf",
}
# What ProtectHome=yes hides.
_HIDDEN = ("/home", "/root", "/run/user")


def install(root: Path, command: str | None, prefix: str) -> Iterator[tuple[Path, bool]]:
    """Put everything in place below `root`; tells each file, and whether it is new or changed."""
    base = _base(root, prefix)
    line = f"ExecStart={quoted(command or _own_command(check=root == Path('/')))} "
    for name, place in _PLACES.items():
        text = (resources.files("vhostvsock.systemd") / "units" / name).read_text(encoding="utf-8")
        text = re.sub(r"^ExecStart=\S+ ", lambda _: line, text, flags=re.MULTILINE)
        path = base / place
        yield path, files.put(path, "install", text)


def uninstall(root: Path, prefix: str) -> Iterator[Path]:
    """Remove what `install` and socket_units.py have written below `root`; tells each file."""
    base = _base(root, prefix)
    for path in socket_units.all_below(root):
        if files.remove(path, root / socket_units.DIRECTORY):
            yield path
    for place in _PLACES.values():
        path = base / place
        if files.remove(path, base):
            yield path


def _base(root: Path, prefix: str) -> Path:
    """Where the files go. Below this, directories that are left empty are removed."""
    if not prefix.startswith("/"):
        raise ConfigError(f"--prefix {prefix} is no absolute path", hint="packages use --prefix /usr")
    return root / prefix.lstrip("/") / "lib"


def _own_command(*, check: bool) -> str:
    """The path by which the command `vhostvsock` was, or can be, run."""
    candidates = [sys.argv[0], str(Path(sys.executable).parent / "vhostvsock"), "vhostvsock"]
    found = (shutil.which(each) for each in candidates if Path(each).name == "vhostvsock")
    path = next((os.path.abspath(each) for each in found if each), None)
    if path is None:
        raise VhostvsockError("the command vhostvsock was not found", hint="say where it is: --command PATH")
    # The interpreter of a virtual environment may lie in another place than the environment.
    for each in (path, os.path.realpath(path), os.path.realpath(sys.executable)) if check else ():
        if any(Path(hidden) in Path(each).parents for hidden in _HIDDEN):
            raise VhostvsockError(
                f"{each} is in a home directory, which the service does not see",
                hint="install vhostvsock elsewhere, such as in a virtual environment in /opt, or give --command PATH",
            )
    return path


def quoted(path: str) -> str:
    """A path as systemd's ExecStart= takes it."""
    if not path.startswith("/") or not path.isprintable():
        raise VhostvsockError(f"{path!r} is no absolute path", hint="give --command an absolute path")
    escaped = path.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%").replace("$", "$$")
    return f'"{escaped}"' if re.search(r"[\s\"'\\;]", path) else escaped
