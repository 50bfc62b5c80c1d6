"""How SIGINT ends a command that joins bytes.

Before: connect.py, listen.py. After: the kernel's default action.
"""

from __future__ import annotations

import signal


def end_by_interrupts() -> None:
    """Be ended by SIGINT as cat is: by the signal, without a traceback. Where it is ignored, as by `&`, it stays so."""
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
