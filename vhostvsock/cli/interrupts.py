"""How signals end a command that joins bytes.

Before: connect.py, listen.py. After: the kernel's default action, or the command's own.
Rule:   a signal that is ignored, as SIGINT is by `&` in a script, stays so.
"""

from __future__ import annotations

import signal
from collections.abc import Callable


def end_by_interrupts() -> None:
    """Be ended by SIGINT as cat is: by the signal, without a traceback."""
    on(signal.SIGINT, signal.SIG_DFL)


def on(number: signal.Signals, action: Callable[..., object] | signal.Handlers) -> None:
    """Have a signal lead to `action`."""
    if signal.getsignal(number) is not signal.SIG_IGN:
        signal.signal(number, action)
