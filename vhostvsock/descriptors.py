"""The descriptors of this process: which numbers it leaves alone, and how many it may have open.

Before: cli/ starts. After: no socket or file of ours is stdin, stdout or stderr; as many connections as the system
        allows.
"""

from __future__ import annotations

import logging
import os
import resource


def raise_descriptor_limit() -> None:
    """Allow as many open descriptors as the system lets us have: each connection is one."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        except (OSError, ValueError) as error:
            logging.getLogger("vhostvsock").warning("descriptor limit stays at %d: %s", soft, error)


def keep_standard_numbers() -> None:
    """Where stdin, stdout or stderr is closed, see to it that nothing of ours gets its number, and is read or written.

    What is there instead fails as a closed one does, and is closed for programs that we start.
    """
    for number, access in ((0, os.O_WRONLY), (1, os.O_RDONLY), (2, os.O_RDONLY)):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, access | os.O_CLOEXEC)  # the lowest number that is free is this one
