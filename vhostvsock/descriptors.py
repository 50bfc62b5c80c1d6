"""How many descriptors this process may have open.

Before: cli/run.py and exec/supervisor.py start. After: as many connections as the system allows.
"""

from __future__ import annotations

import logging
import resource


def raise_descriptor_limit() -> None:
    """Allow as many open descriptors as the system lets us have: each connection is one."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        except (OSError, ValueError) as error:
            logging.getLogger("vhostvsock").warning("descriptor limit stays at %d: %s", soft, error)
