"""What commands say on stdout: without what could move a terminal's cursor, and without complaints of Python's own.

Before: ls.py, netns.py. After: stdout; cli/__init__.py ends a command whose reader is gone.
Rule:   names come from files and from other daemons: what cannot be shown is escaped.
"""

from __future__ import annotations

import contextlib
import errno
import os
import sys
from collections.abc import Sequence


def say(text: str) -> None:
    """One or more lines. Raises BrokenPipeError where nobody reads them any more, EBADF where there is no stdout."""
    if sys.stdout is None:
        raise OSError(errno.EBADF, "stdout is closed")
    sys.stdout.write("".join(c if c.isprintable() or c == "\n" else ascii(c)[1:-1] for c in text) + "\n")
    sys.stdout.flush()


def table(rows: Sequence[Sequence[str]]) -> str:
    """Columns, each as wide as its longest cell."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )


def give_up() -> None:
    """Nobody reads stdout. Python's own flush at exit would complain."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        os.dup2(os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC), sys.stdout.fileno())
