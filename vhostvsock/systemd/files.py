"""Files of ours in directories that are not: written whole, known by their first line, removed only if they are ours.

Before: install.py and socket_units.py say what shall be there. After: the file system.
Rules:  - A file without our first line was written by somebody else: never overwritten, never removed.
        - Others see the old file or the new one, never a part.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from vhostvsock.errors import VhostvsockError

MARK = "# Written by vhostvsock systemd"


def put(path: Path, by: str, text: str) -> bool:
    """Write a file, with a first line that says `by` which subcommand; False where it is there already."""
    whole = f"{MARK} {by}\n{text}"
    try:
        if path.is_symlink() or path.exists():
            if not is_ours(path):
                raise VhostvsockError(f"{path} exists and is not ours", hint="remove it yourself, or rename it")
            if path.read_text() == whole:
                return False
        path.parent.mkdir(parents=True, exist_ok=True)
        new = path.with_name(f".{path.name}.new")
        new.write_text(whole)
        new.chmod(0o644)
        new.replace(path)
    except OSError as error:
        raise _refused("write", path, error) from error
    return True


def remove(path: Path, keep: Path) -> bool:
    """Remove a file of ours, and directories left empty by that, up to `keep`; False where none of ours is there."""
    try:
        if not is_ours(path):
            return False
        path.unlink()
    except OSError as error:
        raise _refused("remove", path, error) from error
    with contextlib.suppress(OSError):  # not empty: others have files there
        for parent in path.parents:
            if parent == keep or keep not in parent.parents:
                break
            parent.rmdir()
    return True


def is_ours(path: Path) -> bool:
    """Whether a file exists and begins as ours do."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return False
    with open(fd, "rb") as file:
        try:
            return file.read(len(MARK)) == MARK.encode()
        except OSError:
            return False


def _refused(what: str, path: Path, error: OSError) -> VhostvsockError:
    hint = "run this as root, or give --root" if isinstance(error, PermissionError) else None
    return VhostvsockError(f"cannot {what} {path}: {error.strerror}", hint=hint)
